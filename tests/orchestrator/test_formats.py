"""Text goes into each format so that it comes out as it was, and runs nothing."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from pandas import DataFrame

from orchestrator.tables.formats import text_of

COLUMNS = ["name", "tok/s", "note"]
ROWS = [
    {"name": "a_b", "tok/s": 1234.5678912345, "note": None},
    {"name": 'quote " comma , line\nbreak', "tok/s": 0.000123456789, "note": "#"},
]
FRAME = DataFrame(ROWS)
HOSTILE = ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"]


def test_csv_comes_back_as_it_went() -> None:
    head, *body = csv.reader(io.StringIO(text_of(FRAME, "csv")))
    assert head == COLUMNS
    assert body[0] == ["a_b", "1234.56789", ""]
    assert body[1][0] == ROWS[1]["name"]
    assert float(body[1][1]) == pytest.approx(0.000123456789)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spreadsheet_sees_no_formula(text: str) -> None:
    written = text_of(DataFrame([{"x": text}]), "csv")
    cell = list(csv.reader(io.StringIO(written, newline="")))[1][0]
    assert cell == f"'{text}".replace("\r", "\n")


def test_negative_numbers_stay_numbers() -> None:
    assert text_of(DataFrame([{"x": -1.5}]), "csv") == "x\n-1.5\n"


def test_markdown_is_a_table_whatever_the_cells_hold() -> None:
    text = text_of(DataFrame([{"a|b": "x|y\n<b>`*", "n": 1234.56}]), "markdown")
    lines = text.splitlines()
    assert lines == [
        r"| a\|b | n |", "| --- | ---: |", r"| x\|y &lt;b&gt;\`\* | 1235 |",
    ]  # fmt: skip


def test_numbers_for_people_have_four_digits() -> None:
    cells = [65.23456, 218.04, 0.0072572, 12345.6, 3, 1e-7]
    rows = [{"n": cell} for cell in cells]
    body = text_of(DataFrame(rows, dtype=object), "markdown").splitlines()[2:]
    assert [line.strip("| ") for line in body] == [
        "65.23", "218", "0.007257", "12346", "3", "1e-07",
    ]  # fmt: skip


def test_latex_escapes_all_that_it_would_obey() -> None:
    text = text_of(DataFrame([{"x": r"\input{/etc/passwd} 50% & $x_1^2$ #~"}]), "latex")
    body = text.splitlines()[4]
    assert body == (
        r"\textbackslash{}input\{/etc/passwd\} 50\% \& \$x\_1\textasciicircum{}2\$ "
        r"\#\textasciitilde{} \\"
    )


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no pdflatex on this machine"
)
def test_latex_compiles(tmp_path: Path) -> None:
    table = text_of(
        DataFrame([{"x": "".join(map(chr, range(32, 127))), "n": 1.5}]), "latex"
    )
    whole = f"\\documentclass{{article}}\\begin{{document}}{table}\\end{{document}}"
    (tmp_path / "table.tex").write_text(whole)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_json_is_a_list_of_rows_with_all_digits() -> None:
    assert json.loads(text_of(FRAME, "json")) == ROWS
