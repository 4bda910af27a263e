"""YAML with places: what is refused, where it is said to stand, and what is read as what."""

from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.yaml_document import Document, read_marked


def read(folder: Path, text: str | bytes) -> Document:
    file = folder / "grid.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_marked(file)


def problems(document: Document) -> list[str]:
    with pytest.raises(InputError) as caught:
        document.raise_problems()
    return str(caught.value).replace(document.name, "FILE").splitlines()


def test_plain_values_are_what_yaml_says(tmp_path: Path) -> None:
    text = "a: [1, 2.5, true, null, text, 1e-5, 5E6]\nb: {c: 2024-01-02}\n"
    document = read(tmp_path, text)
    assert document.data == {
        "a": [1, 2.5, True, None, "text", 1e-5, 5e6],
        "b": {"c": "2024-01-02"},
    }
    assert document.text == text
    assert document.is_sound
    document.raise_problems()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("016", "016"), ("1:20", "1:20"), ("02:00:00", "02:00:00"), ("0x1F", "0x1F"),
        ("0", 0), ("-3", -3), ("1_000", 1000), ("0.5", 0.5), (".5", 0.5), ("2.", 2.0),
        ("-1.5e3", -1500.0), (".inf", float("inf")), ("-.inf", float("-inf")), (".", "."),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(
    tmp_path: Path, written: str, value: object
) -> None:
    read_value = read(tmp_path, f"a: {written}\n").data["a"]
    assert (type(read_value), read_value) == (type(value), value)


def test_every_duplicate_key_is_named_with_the_line_of_the_first(
    tmp_path: Path,
) -> None:
    document = read(tmp_path, "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert problems(document) == [
        "FILE:4:3: duplicate key 'c', first in line 3; keep one",
        "FILE:5:1: duplicate key 'a', first in line 1; keep one",
    ]


def test_a_problem_stands_where_the_value_stands_or_the_nearest_above(
    tmp_path: Path,
) -> None:
    document = read(tmp_path, "a:\n  - {b: 1}\n")
    document.problem(("a", 0, "b"), "value")
    document.problem(("a", 0, "b"), "key", at_key=True)
    document.problem(("a", 0, "gone", 7), "above")
    document.problem(("x",), "top")
    assert problems(document) == [
        "FILE:1:1: top",
        "FILE:2:5: above",
        "FILE:2:6: key",
        "FILE:2:9: value",
    ]


def test_problems_come_in_the_order_of_the_file_and_once(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb: 2\n" + "\n" * 9 + "c: 3\n")
    for name in ("c", "b", "b", "a"):
        document.problem((name,), f"about {name}")
    assert [line.rpartition(" ")[2] for line in problems(document)] == ["a", "b", "c"]


def test_aliases_and_merge_keys_unfold_and_own_keys_win(tmp_path: Path) -> None:
    text = "base: &base {x: 1, y: 2}\nother: &other {y: 3, z: 4}\n"
    text += "use: {<<: [*base, *other], x: 9}\n"
    assert read(tmp_path, text).data["use"] == {"x": 9, "y": 2, "z": 4}


def test_a_billion_laughs_are_refused_before_they_are_unfolded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(
        InputError, match=r"unfolds to more than 100,000 values.*aliases"
    ):
        read(tmp_path, "\n".join(lines))


def test_a_value_that_contains_itself_is_noted(tmp_path: Path) -> None:
    document = read(tmp_path, "a: &a\n  b: *a\n")
    assert problems(document) == ["FILE:1:4: contains itself through an alias (*name)"]


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [touch HACKED]",
        "!custom x",
        "!!set {a, b}",
        "!!binary aGk=",
    ],
)
def test_tags_are_refused_and_nothing_is_executed(
    tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line, *_) = problems(read(tmp_path, f"a: {value}\n"))
    assert "is not allowed" in line
    assert line.startswith("FILE:1:")
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\t- 1\n", r"yaml:2:1: not YAML: .*'\\t'.*; indent with spaces"),
        ("a: [1, 2\nb: 3\n", r"yaml:2:\d+: not YAML"),
        ("a: b: c\n", r"yaml:1:5: not YAML"),
        ("a: *nowhere\n", r"yaml:1:4: not YAML: .*nowhere"),
        ("--- {a: 1}\n--- {b: 2}\n", r"yaml:2:1: not YAML: .*single document"),
        (b"a: 1\nb: \xff\n", r"yaml:2: not UTF-8 \(byte 0xff\)"),
        (b"a: 1\nb: \x00\n", r"yaml:2: not YAML"),
        ("[" * 5000, r"nested too deeply"),
        ("# " + "x" * 2**20, r"larger than 1 MiB"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_marked(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_marked(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    document = read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert document.data == {"a": 1, "b": 2}


def test_keys_that_are_not_text_are_refused(tmp_path: Path) -> None:
    said = problems(read(tmp_path, "1: a\non: b\n? [x]\n: c\n"))
    assert len(said) == 3
    assert said[0] == 'FILE:1:1: a key must be text; quote it: "1"'
    assert said[1] == 'FILE:2:1: a key must be text; quote it: "on"'


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    for text in ("", "\n\n", "# only a comment\n"):
        assert read(tmp_path, text).data is None
