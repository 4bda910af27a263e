"""What can go wrong for a person, as exceptions; the command line turns them into exit codes.

    OrchError            exit 1: something failed
    └── InputError       exit 2: what was given cannot be right (also a ValueError)

A message has three parts: the rule, the values found, and the way out.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class OrchError(Exception):
    """A failure that a person is told in a line or a few, without a traceback."""

    exit_code = 1


class InputError(OrchError, ValueError):
    """A grid, profile, option or file that cannot be right."""

    exit_code = 2


_WAYS_OUT = {
    errno.ENOSPC: "make room, then give the same command again",
    errno.EDQUOT: "your quota is used up; make room, then give the same command again",
    errno.EROFS: "another folder can be named with --results or ORCH_RESULTS",
    errno.EACCES: "it belongs to someone else, or the folder can be named with --results",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def explained(error: OSError) -> str:
    """Say what the system refused, for which file, and the way out if one is known."""
    what = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    way = _WAYS_OUT.get(error.errno or 0)
    return f"{where}{what}; {way}" if way else f"{where}{what}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the way out for a name that is not known: the nearest valid one, and all of them.

    >>> nearest("modle", ["model", "tensor"])
    "did you mean 'model'? valid: model, tensor"
    """
    known = sorted(valid)
    close = get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}valid: {', '.join(known)}"
