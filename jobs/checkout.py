"""Where the checkout is, and whether its packages are the ones that Python finds."""

import importlib.util
import os
from pathlib import Path

from orchestrator.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[1]


def expanded(path: str) -> Path:
    """A path as a case spells it: `$USER` and `~` filled in, relative to the checkout."""
    return CHECKOUT / os.path.expanduser(os.path.expandvars(path))


def refuse_shadows() -> None:
    """Stop where another distribution of that name stands before our `kernels`.

    Raises:
        InputError: it names the file that Python finds.
    """
    spec = importlib.util.find_spec("kernels")
    found = spec.origin if spec else None
    if found is None or not Path(found).resolve().is_relative_to(CHECKOUT):
        raise InputError(
            f"the package 'kernels' must be the checkout's, {CHECKOUT / 'kernels'}, but Python "
            f"finds {found}; start with PYTHONPATH={CHECKOUT}, or uninstall the other one"
        )
