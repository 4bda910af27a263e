"""What is measured: a plain-torch Llama and the strategies to run it on several devices.

*Kernel* in the HPC sense (the measured computation, as in the NAS Parallel Benchmarks), not a
CUDA kernel. Nothing here knows Slurm, YAML, result files or a stopwatch, and nothing here
imports another package of this project. `shapes` and `placement` are integers without torch.
"""
