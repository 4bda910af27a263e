"""A DataFrame as CSV, Markdown, LaTeX, JSON or Parquet, each text escaped for where it goes.

CSV and JSON have all digits, Markdown and LaTeX four. In CSV, text that a spreadsheet would take
for a formula gets a ' before it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence

from pandas import DataFrame

from orchestrator.errors import OrchError
from orchestrator.tables.columns import Cell

Rows = Sequence[Sequence[Cell]]

_FORMULA = re.compile(r"^[=+\-@\t\r]")
_MARKDOWN = re.compile(r"([\\|`*\[\]])")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def text_of(frame: DataFrame, kind: str) -> str:
    """Return the table in one of the text formats: csv, markdown, latex, json."""
    return _WRITERS[kind](list(frame.columns), _rows(frame))


def _rows(frame: DataFrame) -> list[tuple[Cell, ...]]:
    """Return the rows as plain values; absent is None."""
    cells = frame.astype(object)
    return list(cells.where(cells.notna(), None).itertuples(index=False, name=None))


def _csv_text(columns: Sequence[str], rows: Rows) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _markdown_text(columns: Sequence[str], rows: Rows) -> str:
    rule = ["---:" if side == "r" else "---" for side in _sides(columns, rows)]
    body = [[_markdown_cell(cell) for cell in row] for row in rows]
    lines = [[_markdown_cell(column) for column in columns], rule, *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex_text(columns: Sequence[str], rows: Rows) -> str:
    # A tabular that needs no package.
    body = [[_latex_cell(cell) for cell in row] for row in rows]
    head = " & ".join(map(_latex_cell, columns))
    sides = "".join(_sides(columns, rows))
    lines = [f"\\begin{{tabular}}{{{sides}}}", "\\hline", f"{head} \\\\", "\\hline"]
    lines += [f"{' & '.join(line)} \\\\" for line in body]
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _json_text(columns: Sequence[str], rows: Rows) -> str:
    whole = [dict(zip(columns, row, strict=True)) for row in rows]
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


_WRITERS: dict[str, Callable[[Sequence[str], Rows], str]] = {
    "csv": _csv_text, "markdown": _markdown_text, "latex": _latex_text, "json": _json_text,
}  # fmt: skip


def parquet_bytes(frame: DataFrame) -> bytes:
    """Return the table as a Parquet file.

    Raises:
        OrchError: pyarrow, which pandas writes it with, is not installed.
    """
    stream = io.BytesIO()
    try:
        frame.to_parquet(stream, engine="pyarrow", index=False)
    except ImportError as error:
        raise OrchError(
            "Parquet needs pyarrow: pip install -e '.[parquet]' in the checkout"
        ) from error
    return stream.getvalue()


def shown(value: Cell) -> str:
    """Return a cell for a person."""
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


def _sides(columns: Sequence[str], rows: Rows) -> list[str]:
    """Return the alignment of each column: numbers to the right."""
    return [
        "r" if any(isinstance(row[index], int | float) for row in rows) else "l"
        for index in range(len(columns))
    ]
