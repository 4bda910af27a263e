"""`orch` works on the checkout it was installed from (`pip install -e .`); this finds it.

Only the standard library, because every command passes here first.
"""

import importlib.util
import sys
from pathlib import Path

from orchestrator.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout this program lies in, whole or not; see `checkout`."""

_ROOMS = ("orchestrator", "kernels", "jobs", "templates")


def checkout() -> Path:
    """The folder that holds our packages, put first on the import path.

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


def _refuse_shadows(root: Path) -> None:
    for room in ("kernels", "jobs"):
        found = _origin(room)
        if found is None or not found.is_relative_to(root):
            raise InputError(
                f"the package {room!r} must be the checkout's, {root / room}, but Python finds "
                f"{found}; uninstall that one, or import nothing of that name before orch"
            )


def _origin(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    spec = loaded.__spec__ if loaded else importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve()
