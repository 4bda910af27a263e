"""Find the study that a command is about: by name, or the one last submitted to."""

import re
from pathlib import Path

from orchestrator.errors import InputError, nearest
from orchestrator.study.files import Study

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def named_study(results: Path, name: str) -> Study:
    """Return the study of that name; it need not exist.

    Raises:
        InputError: the name is not that of a plain folder.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a study's name consists of letters, digits, '.', '_' and '-' and starts with a "
            f"letter or digit, got {name!r}; give another with --study"
        )
    return Study(results / name)


def studies(results: Path) -> list[Study]:
    """Return every study in `results`, the one last submitted to first."""
    found = [file.parent for file in results.glob("*/study.json")]
    found.sort(
        key=lambda folder: (folder / "study.json").stat().st_mtime_ns, reverse=True
    )
    return [Study(folder) for folder in found]


def find_study(results: Path, name: str | None) -> Study:
    """Return the named study, or the one last submitted to.

    Raises:
        InputError: there is no such study.
    """
    found = studies(results)
    if name is None:
        if found:
            return found[0]
        raise InputError(
            f"no study in {results} yet; `orch submit --grid FILE` makes one"
        )
    study = named_study(results, name)
    if study.name not in {each.name for each in found}:
        hint = (
            nearest(name, (each.name for each in found))
            if found
            else "there is none yet"
        )
        raise InputError(f"no study {name!r} in {results}; {hint}")
    return study
