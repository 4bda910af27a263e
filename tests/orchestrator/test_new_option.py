"""An option of a strategy is defined once: a field added to its dataclass reaches everything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

FIELD = '''
    interleave: Count | None = field(default=None, metadata={"label": "interleaved {}"})
    """Layer groups of each stage."""
'''
ASK = """
import json
from pydantic import TypeAdapter
from kernels.shapes import KNOWN
from orchestrator.case import Case
from orchestrator.grids.schema import json_schema
from orchestrator.grids.strategies import Written, label_of, resolve
from orchestrator.study.case_status import CaseStatus
from orchestrator.tables.columns import COLUMNS, long_row

def case(options):
    written = TypeAdapter(Written).validate_json(json.dumps({"pipeline": options}))
    return Case(
        model="m", random=KNOWN["llama-2-7b"], label=label_of(written), gpus=2,
        strategy=resolve(written, 2, batch_size=4),
    )

plain, new = case({}), case({"interleave": 2})
again = Case.model_validate_json(new.model_dump_json())
row = long_row(CaseStatus(case_id=new.case_id, status="new", case=new))
print(json.dumps({
    "labels": [plain.label, new.label], "ids": [plain.case_id, new.case_id, again.case_id],
    "cell": row["interleave"], "kind": COLUMNS["interleave"],
    "schema": json_schema()["$defs"]["PipelineParallel"]["properties"]["interleave"],
}))
"""


def said_by(checkout: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=checkout, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("orchestrator", "kernels", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=ignored)
    return tmp_path


def test_a_new_option_is_written_in_one_place(copy: Path) -> None:
    file = copy / "kernels/strategies.py"
    head, mark, tail = file.read_text().partition("    in_flight: Count | None")
    file.write_text(head + FIELD.lstrip("\n") + mark + tail)
    answer = said_by(copy)
    assert answer["labels"] == ["pipeline", "pipeline interleaved 2"]
    plain, new, again = answer["ids"]
    assert plain != new == again
    assert (answer["cell"], answer["kind"]) == (2, "int")
    assert answer["schema"]["description"] == "Layer groups of each stage."


def test_a_new_option_renames_no_case_that_leaves_it_out(copy: Path) -> None:
    code = "from tests.orchestrator.made import a_case; print(a_case('pipeline', 2).case_id)"
    shutil.copytree(CHECKOUT / "tests/orchestrator", copy / "tests/orchestrator")
    ask = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    before = subprocess.check_output(ask, cwd=copy, env=environment)
    file = copy / "kernels/strategies.py"
    head, mark, tail = file.read_text().partition("    in_flight: Count | None")
    file.write_text(head + FIELD.lstrip("\n") + mark + tail)
    assert subprocess.check_output(ask, cwd=copy, env=environment) == before
