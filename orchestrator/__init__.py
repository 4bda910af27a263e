"""The program on the login node; it never imports torch.

It turns a grid into jobs, watches them, and collects their records. Its entry point is
`orchestrator.cli`; in a notebook,

    import orchestrator
    orchestrator.frame("llama-2")

gives a study's results as a pandas DataFrame.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def frame(
    study: str | None = None, results: str | Path | None = None
) -> "pandas.DataFrame":
    """Return the table of `orch collect --long` as a DataFrame: a row per case, failures included.

    Args:
        study: default: the study last submitted to.
        results: folder of the studies; default: `ORCH_RESULTS`, else the checkout's `results`.

    Raises:
        InputError: there is no such study.
    """
    # Imported here, since `import orchestrator` must stay cheap: every command begins with it.
    from orchestrator.checkout import checkout

    root = checkout()
    from orchestrator.study.find import find_study
    from orchestrator.submission.job_states import study_statuses
    from orchestrator.tables.agreement import ids_agree
    from orchestrator.tables.long import long_frame

    folder = Path(results or os.environ.get("ORCH_RESULTS") or root / "results")
    statuses = study_statuses(find_study(folder, study))
    return long_frame(statuses, ids_agree(statuses))
