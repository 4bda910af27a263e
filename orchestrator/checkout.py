"""`orch` works on the checkout it was installed from (`pip install -e .`); this finds it.

Imports only the standard library: every command, and every program of `jobs`, starts here.
"""

import importlib.util
import os
import sys
from pathlib import Path

from orchestrator.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout that holds this file, complete or not; see `checkout`."""

_ROOMS = ("orchestrator", "kernels", "jobs", "templates")


def checkout() -> Path:
    """Return the folder that holds our packages, put first on the import path.

    Raises:
        InputError: this is no checkout, or another distribution's `kernels` shadows ours.
    """
    root = ROOT
    missing = [room for room in _ROOMS if not (root / room).is_dir()]
    if missing:
        raise InputError(
            f"orch works from its checkout only: {root} lacks {', '.join(missing)}; "
            f"clone the repository and `pip install -e .` there"
        )
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    _refuse_shadows(root)
    return root


def require_ours() -> None:
    """Exit with code 2 where Python finds another distribution's `kernels`.

    Call it before the first import of `kernels`, which would take theirs for ours.
    """
    try:
        _refuse_shadows(ROOT)
    except InputError as error:
        print(f"orch: launch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def local_path(text: str) -> Path:
    """Expand $VARIABLES and ~ in a path of a grid or case; it is relative to the checkout.

    Raises:
        InputError: it names a variable that is not set here.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise InputError(
            f"{text!r} names a variable that is not set here; set it, or write the path out"
        )
    return ROOT / expanded


def _refuse_shadows(root: Path) -> None:
    for room in ("kernels", "jobs"):
        found = _origin(room)
        if found is None or not found.is_relative_to(root):
            raise InputError(
                f"the package {room!r} must be the checkout's, {root / room}, but Python finds "
                f"{found}; uninstall that one, or put {root} first in PYTHONPATH"
            )


def _origin(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve()
