"""How long `orch status` and `orch collect --long` take for 100 to 10,000 cases.

    python tests/benchmarks/read_curve.py [NUMBER OF CASES …]

Every point is the real command in a process of its own, on a study of synthetic records.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

COMMANDS = {
    "orch status --json": ["status", "--json"],
    "orch status": ["status"],
    "orch collect --long": ["collect", "--long"],
    "orch collect": ["collect"],
}


def seconds(results: Path, study: str, arguments: list[str]) -> float:
    """Wall time of one command."""
    command = [sys.executable, "-m", "orchestrator.cli", *arguments, "--study", study]
    began = time.perf_counter()
    subprocess.run(
        command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"ORCH_RESULTS": str(results)},
    )  # fmt: skip
    return time.perf_counter() - began


def main(numbers: list[int]) -> None:
    """Print the curve."""
    from tests.orchestrator.made import big_study

    print(f"{'cases':>7}  {'  '.join(f'{name:>19}' for name in COMMANDS)}   seconds")
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            study = big_study(Path(folder), number)
            took = [
                seconds(Path(folder), study.name, each) for each in COMMANDS.values()
            ]
            print(
                f"{number:>7}  {'  '.join(f'{each:>19.2f}' for each in took)}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [100, 300, 1000, 3000, 10000])
