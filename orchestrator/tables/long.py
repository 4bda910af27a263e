"""The long table: one tidy row per case with every metric, as rows and as a DataFrame."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.agreement import void
from orchestrator.tables.columns import Cell, Kind, long_row

if TYPE_CHECKING:
    import pandas

_PANDAS_TYPES = {
    "text": "string", "int": "Int64", "float": "Float64", "bool": "boolean",
}  # fmt: skip
"""Those that have a value for "absent" and leave the other values as they are."""


def long_rows(
    statuses: Sequence[CaseStatus], agrees: Mapping[str, bool]
) -> list[dict[str, Cell]]:
    """A row for each case, in order.

    Args:
        agrees: from `tables.agreement.ids_agree`.
    """
    wrong = void(statuses, agrees)
    return [
        long_row(each, agrees.get(each.case_id), counts=each.case_id not in wrong)
        for each in statuses
    ]


def data_frame(
    kinds: Mapping[str, Kind], rows: Sequence[Mapping[str, Cell]]
) -> "pandas.DataFrame":
    """Rows as a DataFrame whose column types do not depend on the rows."""
    import pandas  # half a second that only those who need a DataFrame should pay

    return pandas.DataFrame(
        {
            name: pandas.Series([row[name] for row in rows], dtype=_PANDAS_TYPES[kind])
            for name, kind in kinds.items()
        }
    )
