"""All tests, as `make test` runs them: four parts at once, then what compares clocks, alone.

    python tests/run.py [PYTEST OPTIONS]

Most tests wait for processes, so four of them share two cores well. What a part writes is shown
when it ends; the last part's as it comes. Exit code 1 where a part failed.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

AT_ONCE = {
    "Slurm with accounting": ["tests/slurm", "-m", "accounting and not alone"],
    "Slurm without": ["tests/slurm", "-m", "not accounting and not alone"],
    "kernels and jobs": ["tests/kernels", "tests/jobs", "-m", "not alone"],
    "everything else": [
        "tests", *(f"--ignore=tests/{part}" for part in ("slurm", "kernels", "jobs")),
        "-m", "not alone",
    ],
}  # fmt: skip
ALONE = ["tests", "-m", "alone"]


def pytest(
    words: list[str], output: int | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one part of the tests."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, *sys.argv[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        text=True,
    )


def main() -> int:
    """Run every part, whatever the others say."""
    began = time.monotonic()
    codes = {}
    print(f"at once: {', '.join(AT_ONCE)}", flush=True)
    with ThreadPoolExecutor() as pool:
        parts = {
            pool.submit(pytest, words, subprocess.PIPE): name
            for name, words in AT_ONCE.items()
        }
        for part in as_completed(parts):
            codes[parts[part]] = part.result().returncode
            print(f"\n>>> {parts[part]}\n{part.result().stdout}", flush=True)
    print("\n>>> alone: what compares clocks", flush=True)
    codes["alone"] = pytest(ALONE).returncode
    told = (f"{name} {'FAILED' if code else 'ok'}" for name, code in codes.items())
    print(f"\n{time.monotonic() - began:.0f} s: {', '.join(told)}")
    return 1 if any(codes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
