"""The long table: a DataFrame with one tidy row per case and every metric."""

from collections.abc import Mapping, Sequence

import pandas

from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.agreement import void
from orchestrator.tables.columns import COLUMNS, Kind, long_row

_PANDAS_TYPES: dict[Kind, str] = {
    "text": "string", "int": "Int64", "float": "Float64", "bool": "boolean",
}  # fmt: skip
"""Those that have a value for "absent" and leave the other values as they are."""


def long_frame(
    statuses: Sequence[CaseStatus], agrees: Mapping[str, bool]
) -> pandas.DataFrame:
    """Return a row for each case, in order. Column types do not depend on the cases.

    Args:
        agrees: from `tables.agreement.ids_agree`.
    """
    wrong = void(statuses, agrees)
    rows = [
        long_row(each, agrees.get(each.case_id), counts=each.case_id not in wrong)
        for each in statuses
    ]
    return pandas.DataFrame(
        {
            name: pandas.Series([row[name] for row in rows], dtype=_PANDAS_TYPES[kind])
            for name, kind in COLUMNS.items()
        }
    )
