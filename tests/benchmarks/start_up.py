"""How long `orch --help` takes beside `import click` alone, in turns; prints the median ratio.

python tests/benchmarks/start_up.py [ROUNDS]
"""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CLICK = [sys.executable, "-c", "import click"]
HELP = [sys.executable, "-m", "orchestrator.cli", "--help"]


def cpu_s(command: list[str]) -> float:
    """Seconds of processor time that the command takes; neighbours do not add to them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median_ratio(rounds: int) -> float:
    """The median, over rounds of one after the other, of the one's time over the other's."""
    return statistics.median(cpu_s(HELP) / cpu_s(CLICK) for _ in range(rounds))


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    print(f"orch --help / import click: {median_ratio(rounds):.2f} ({rounds} rounds)")
