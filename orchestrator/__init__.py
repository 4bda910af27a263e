"""The program a person runs on the login node; it never imports torch.

It turns a grid into jobs, watches them and gathers what they wrote. Entry: `orchestrator.cli`.
"""
