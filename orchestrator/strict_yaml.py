"""YAML as we accept it: the safe loader, duplicate keys refused, lines known."""

from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML silently keeps the last of two equal keys; a person did not mean that."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key!r} stands here a second time (first in line {seen[key]}); keep one",
                    key_node.start_mark,
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: it cannot be read, is not YAML, holds a key twice, or is no mapping.
    """
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{where}: {problem}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{file} must be a mapping of names to values")
    return data


def line_of(file: Path, path: tuple[int | str, ...]) -> int | None:
    """The line of the value at `path`, or of the nearest thing above it that the file has."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    line: int | None = None
    for step in path:
        found = _child(node, step)
        if found is None:
            break
        line, node = found
    return line


def _child(node: yaml.Node | None, step: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        child = node.value[step]
        return child.start_mark.line + 1, child
    return None
