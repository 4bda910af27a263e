"""Start a virtual Slurm to play with: `python tests/slurm/up.py`; Ctrl-C stops it."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from virtual_slurm import VirtualSlurm


def main() -> None:
    """Run a cluster until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A real Slurm on this machine")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=4, help="fake GPUs per node")
    parser.add_argument("--no-accounting", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="virtual-slurm-") as folder,
        VirtualSlurm(
            Path(folder),
            nodes=options.nodes,
            gpus=options.gpus,
            accounting=not options.no_accounting,
        ) as slurm,
    ):
        print(
            f"up in {time.monotonic() - begin:.1f} s; in another terminal:",
            file=sys.stderr,
        )
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)


if __name__ == "__main__":
    main()
