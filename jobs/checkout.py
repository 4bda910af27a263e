"""Where the checkout is, and whether its packages are the ones that Python finds."""

import importlib.util
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def expanded(path: str) -> Path:
    """A path as a case spells it: `$USER` and `~` filled in, relative to the checkout."""
    return CHECKOUT / os.path.expanduser(os.path.expandvars(path))


def require_ours() -> None:
    """Stop this program where another distribution's `kernels` stands before ours.

    To be called before anything that imports kernels: theirs would be taken for ours.
    """
    spec = importlib.util.find_spec("kernels")
    found = spec.origin if spec else None
    if found is None or not Path(found).resolve().is_relative_to(CHECKOUT):
        print(
            f"orch: launch: the package 'kernels' must be the checkout's, "
            f"{CHECKOUT / 'kernels'}, but Python finds {found}; start with "
            f"PYTHONPATH={CHECKOUT}, or uninstall the other one",
            file=sys.stderr,
        )
        sys.exit(2)
