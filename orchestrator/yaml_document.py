"""YAML that remembers the place of each value, so that an error names its file, line and column.

Read by PyYAML's safe loader. Refused: duplicate keys, keys that are not text, tags, values that
contain themselves, and files that unfold to more than `MAX_VALUES` values (anchors and aliases
can make ten lines into gigabytes). Numbers are those of YAML 1.2: 1e-5 is one; 016 and 1:20, which
YAML 1.1 reads as 14 and 80, are text.
"""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from orchestrator.errors import InputError

MAX_BYTES = 2**20
MAX_VALUES = 100_000

Loc = tuple[str | int, ...]
"""Keys and list indices from the top of the file to a value."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    _TAG + "int": r"[-+]?(0|[1-9][0-9_]*)$",
    _TAG + "float": r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$",
}
_PLAIN = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


class _Loader(yaml.SafeLoader):
    """The safe loader; composed into nodes only, never constructed by it."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [each for each in resolvers if each[0] not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_name, re.compile(_pattern), list("-+.0123456789"))


class Document:
    """A file's values, the place of each, and the problems found in them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.data: Any = None
        self._values: dict[Loc, yaml.Mark] = {}
        self._keys: dict[Loc, yaml.Mark] = {}
        self._problems: dict[tuple[int, int, str], None] = {}

    def mark(self, loc: Loc, value: yaml.Mark, key: yaml.Mark | None = None) -> None:
        """Remember the place of the value at `loc` and of its key."""
        self._values[loc] = value
        if key is not None:
            self._keys[loc] = key

    def problem(self, loc: Loc, message: str, *, at_key: bool = False) -> None:
        """Note a problem of the value at `loc`, or of the nearest one above it."""
        marks = self._keys if at_key else self._values
        while loc and loc not in marks:
            loc, marks = loc[:-1], self._values
        mark = marks.get(loc)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self._problems[line, column, message] = None

    @property
    def is_sound(self) -> bool:
        """Whether no problem is noted yet."""
        return not self._problems

    def raise_problems(self) -> None:
        """Raise an InputError with every problem, one a line, in the order of the file."""
        if self._problems:
            lines = [
                f"{self.name}:{line}:{column}: {message}"
                for line, column, message in sorted(self._problems)
            ]
            raise InputError("\n".join(lines))


def read_marked(file: Path) -> Document:
    """Read the file's values with their places; what is wrong with some is noted, not raised.

    Raises:
        InputError: nothing can be read: no such file, not UTF-8, not YAML, too large.
    """
    document = Document(str(file))
    document.text = _text(file)
    try:
        root = yaml.compose(document.text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error) from error
    except yaml.reader.ReaderError as error:
        line = document.text.count("\n", 0, error.position) + 1
        raise InputError(f"{file}:{line}: not YAML: {error.reason}") from error
    except RecursionError as error:
        raise InputError(f"{file}:1: nested too deeply to be read") from error
    if root is not None:
        document.mark((), root.start_mark)
        document.data = _Builder(document).build(root, ())
    return document


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{file} is larger than 1 MiB: not a file of this kind")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line}: not UTF-8 (byte {raw[error.start]:#04x}); save it as UTF-8"
        ) from error


def _not_yaml(file: Path, error: yaml.MarkedYAMLError) -> InputError:
    mark = error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
    hint = "; indent with spaces" if "'\\t'" in (error.problem or "") else ""
    what = ", ".join(filter(None, (error.context, error.problem)))
    return InputError(f"{place}: not YAML: {what}{hint}")


class _Builder:
    """Turns composed nodes into plain values, noting the place of each."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._left = MAX_VALUES
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self._left -= 1
        if self._left < 0:
            raise InputError(
                f"{self._document.name}:{node.start_mark.line + 1}: unfolds to more than "
                f"{MAX_VALUES:,} values; write fewer, or use fewer aliases (*name)"
            )
        if id(node) in self._open:
            self._document.problem(loc, "contains itself through an alias (*name)")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, yaml.SequenceNode):
                return self._sequence(node, loc)
            return self._scalar(cast(yaml.ScalarNode, node), loc)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        self._check_tag(node, loc, "map")
        values: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                for name, merged in self._merged(value, loc).items():
                    values.setdefault(name, merged)
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                continue
            name = self._key(key, loc)
            self._document.mark((*loc, name), value.start_mark, key.start_mark)
            if name in seen:
                self._document.problem(
                    (*loc, name),
                    f"duplicate key {name!r}, first in line {seen[name]}; keep one",
                    at_key=True,
                )
                continue
            seen[name] = key.start_mark.line + 1
            values.pop(name, None)
            values[name] = self.build(value, (*loc, name))
        return values

    def _merged(self, node: yaml.Node, loc: Loc) -> dict[str, Any]:
        # `<<: *base` or `<<: [*first, *second]`: the first one that has a key wins
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            values = self.build(source, loc)
            if not isinstance(values, dict):
                self._document.problem(loc, "`<<` merges a mapping or a list of them")
                continue
            merged = values | merged
        return merged

    def _key(self, node: yaml.Node, loc: Loc) -> str:
        if node.tag == _TAG + "str":
            return str(node.value)
        written = node.value if isinstance(node, yaml.ScalarNode) else "?"
        self._document.mark((*loc, str(written)), node.start_mark, node.start_mark)
        self._document.problem(
            (*loc, str(written)), f'a key must be text; quote it: "{written}"'
        )
        return str(written)

    def _sequence(self, node: yaml.SequenceNode, loc: Loc) -> list[Any]:
        self._check_tag(node, loc, "seq")
        values = []
        for index, item in enumerate(node.value):
            self._document.mark((*loc, index), item.start_mark)
            values.append(self.build(item, (*loc, index)))
        return values

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        if node.tag == _TAG + "timestamp":
            return node.value
        if node.tag not in _PLAIN:
            self._check_tag(node, loc, "str")
            return node.value
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError):
            self._document.problem(loc, f"{node.value!r} is no {node.tag[len(_TAG) :]}")
            return None

    def _check_tag(self, node: yaml.Node, loc: Loc, kind: str) -> None:
        if node.tag != _TAG + kind:
            tag = node.tag.replace(_TAG, "!!")
            self._document.problem(loc, f"the tag {tag} is not allowed; leave it out")
