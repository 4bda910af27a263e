"""How much of a measured pinned copy to the GPU zero-offload reaches, and accelerate beside it.

In one run, on one GPU, for a Llama-2-7B in bf16 with random weights: the rate of copying a
layer-sized pinned buffer to the GPU over and over; the weights that zero-offload streams per
second while it decodes (from host memory, and from files with --disk); and the same for
accelerate's `cpu_offload` of transformers' model. Each round measures all of them in turn.
Without a GPU it says so, measures nothing and ends with status 0.

    python tests/benchmarks/offload_gpu.py [--model llama-2-7b] [--rounds 3] [--disk]
"""

import argparse
import gc
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from kernels.generate import Batch, Generation
from kernels.offload.store import HostMemory
from kernels.parallelize import parallelize
from kernels.shapes import KNOWN, ModelShape, num_parameters
from kernels.strategies import Parallel, ZeroOffload
from kernels.weights import RandomWeights
from kernels.world import World
from kernels.zero_offload import OffloadEngine

DEVICE = torch.device("cuda", 0)
TOKENS = 4
PROMPTS = [[1 + row, 2, 3, 4] for row in range(4)]

Rate = Callable[[], float]
"""Measures bytes per second."""


def main() -> None:
    """Print every round and the median shares."""
    options = parsed()
    if not torch.cuda.is_available():
        print("nothing measured: this benchmark needs a CUDA GPU, and there is none")
        return
    shape = KNOWN[options.model]
    rates: dict[str, Rate] = {"pinned copy": pinned_copy(layer_bytes(shape))}
    for source in ("host", "disk") if options.disk else ("host",):
        rates[f"zero-offload from {source}"] = zero_offload(shape, source)
    if not options.no_accelerate:
        rates["accelerate cpu_offload"] = accelerate_offload(shape)
    print(f"{torch.cuda.get_device_name(DEVICE)}, {options.model} in bf16, batch of 4")
    shares: dict[str, list[float]] = {name: [] for name in rates}
    for number in range(options.rounds):
        found = {name: rate() for name, rate in rates.items()}
        for name, rate_found in found.items():
            shares[name].append(rate_found / found["pinned copy"])
            print(
                f"round {number + 1}: {name} {rate_found / 1e9:.2f} GB/s, "
                f"{shares[name][-1]:.1%} of the copy"
            )
    for name, of_copy in shares.items():
        print(f"median: {name} {median(of_copy):.1%} of the copy")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llama-2-7b", choices=sorted(KNOWN))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", action="store_true", help="from files too")
    parser.add_argument("--no-accelerate", action="store_true")
    return parser.parse_args()


def layer_bytes(shape: ModelShape) -> int:
    """Bytes of one layer in bf16, about: what is copied in one piece."""
    embeddings = 2 * shape.vocab_size * shape.dim
    return 2 * (num_parameters(shape) - embeddings) // shape.n_layers


def pinned_copy(num_bytes: int, times: int = 16) -> Rate:
    """Copies of a pinned buffer, one after another."""
    memory = HostMemory(DEVICE)
    source = memory.allocate(num_bytes)
    source.fill_(1)
    target = torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE)

    def rate() -> float:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(DEVICE)
        begin = time.perf_counter()
        for _ in range(times):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(DEVICE)
        return times * num_bytes / (time.perf_counter() - begin)

    # Unlocked before it is freed, when nobody can ask for the rate any more.
    weakref.finalize(rate, memory.free)
    return rate


def zero_offload(shape: ModelShape, source: str) -> Rate:
    """Our engine, all layers and the head streamed."""
    engine = parallelize(
        shape,
        Parallel(zero_offload=ZeroOffload(source=source)),
        World(device=DEVICE),
        torch.bfloat16,
        RandomWeights(shape, 0, torch.bfloat16),
    )
    assert isinstance(engine, OffloadEngine)
    streamed = sum(unit.num_bytes for unit in engine.streamer.units)

    def rate() -> float:
        ends: list[torch.cuda.Event] = []

        def on_token(_index: int) -> None:
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record(torch.cuda.current_stream(DEVICE))

        engine.generate(Batch.of(PROMPTS), Generation(new_tokens=TOKENS + 1), on_token)
        torch.cuda.synchronize(DEVICE)
        return TOKENS * streamed / (ends[0].elapsed_time(ends[-1]) / 1e3)

    rate()  # the first pass checks what files hold, and warms the allocator
    return rate


def accelerate_offload(shape: ModelShape) -> Rate:
    """transformers' model with accelerate's hooks; its embedding is copied each time, ours not."""
    import transformers
    from accelerate import cpu_offload

    config = transformers.LlamaConfig(
        hidden_size=shape.dim,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.ffn_dim,
        vocab_size=shape.vocab_size,
    )
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(0.01)
    streamed = sum(parameter.nbytes for parameter in model.parameters())
    cpu_offload(model, execution_device=DEVICE)
    ids = torch.tensor(PROMPTS, device=DEVICE)

    def seconds(new_tokens: int) -> float:
        torch.cuda.synchronize(DEVICE)
        begin = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
        torch.cuda.synchronize(DEVICE)
        return time.perf_counter() - begin

    def rate() -> float:
        with torch.inference_mode():
            prefill = seconds(1)
            return TOKENS * streamed / (seconds(TOKENS + 1) - prefill)

    rate()
    gc.collect()
    return rate


if __name__ == "__main__":
    main()
