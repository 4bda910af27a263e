"""Rows as CSV, Markdown, LaTeX, JSON or Parquet, with every text escaped for where it goes."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import OrchError
from orchestrator.tables.columns import Cell, Kind
from orchestrator.tables.long import data_frame

Rows = Sequence[Mapping[str, Cell]]

_FORMULA = re.compile(r"^[=+\-@\t\r]")
_MARKDOWN = re.compile(r"([\\|`*\[\]])")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def text_of(columns: Sequence[str], rows: Rows, kind: str) -> str:
    """The table in one of the text formats: csv, markdown, latex, json."""
    return _WRITERS[kind](columns, rows)


def csv_text(columns: Sequence[str], rows: Rows) -> str:
    """Header and rows; a text that a spreadsheet would take for a formula gets a ' before it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row[column]) for column in columns])
    return stream.getvalue()


def markdown_text(columns: Sequence[str], rows: Rows) -> str:
    """A GitHub table; numbers to four digits, right-aligned."""
    sides = [_side(rows, column) for column in columns]
    rule = ["---:" if side == "r" else "---" for side in sides]
    body = [[_markdown_cell(row[column]) for column in columns] for row in rows]
    lines = [[_markdown_cell(column) for column in columns], rule, *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_text(columns: Sequence[str], rows: Rows) -> str:
    """A tabular that needs no package; numbers to four digits."""
    sides = "".join(_side(rows, column) for column in columns)
    body = [[_latex_cell(row[column]) for column in columns] for row in rows]
    head = " & ".join(map(_latex_cell, columns))
    lines = [f"\\begin{{tabular}}{{{sides}}}", "\\hline", f"{head} \\\\", "\\hline"]
    lines += [f"{' & '.join(line)} \\\\" for line in body]
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def json_text(columns: Sequence[str], rows: Rows) -> str:
    """A list of rows; absent is null."""
    whole = [{column: row[column] for column in columns} for row in rows]
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


_WRITERS: dict[str, Callable[[Sequence[str], Rows], str]] = {
    "csv": csv_text, "markdown": markdown_text, "latex": latex_text, "json": json_text,
}  # fmt: skip


def parquet_bytes(kinds: Mapping[str, Kind], rows: Rows) -> bytes:
    """A Parquet file whose column types do not depend on the rows.

    Raises:
        OrchError: pyarrow, which pandas writes it with, is not installed.
    """
    stream = io.BytesIO()
    try:
        data_frame(kinds, rows).to_parquet(stream, engine="pyarrow", index=False)
    except ImportError as error:
        raise OrchError(
            "Parquet needs pyarrow: pip install -e '.[parquet]' in the checkout"
        ) from error
    return stream.getvalue()


def shown(value: Cell) -> str:
    """A cell for a person."""
    rounded = four_digits(value)
    if rounded is None:
        return ""
    if isinstance(rounded, float):
        return f"{rounded:.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"
    line = " ".join(str(rounded).split())
    return "".join(sign for sign in line if sign.isprintable())


def four_digits(value: Cell) -> Cell:
    """Numbers with a fraction to four significant digits, above 1000 to whole ones."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}")


def _csv_cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    text = str(value)
    mark = "'" if isinstance(value, str) and _FORMULA.match(text) else ""
    # A lone carriage return ends the row for some readers, quoted or not.
    return mark + text.replace("\r\n", "\n").replace("\r", "\n")


def _markdown_cell(value: Cell) -> str:
    text = _MARKDOWN.sub(r"\\\1", shown(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _latex_cell(value: Cell) -> str:
    return "".join(
        _LATEX.get(sign, sign) for sign in shown(value) if sign.isprintable()
    )


def _side(rows: Rows, column: str) -> str:
    numbers = any(isinstance(row[column], int | float) for row in rows)
    return "r" if numbers else "l"
