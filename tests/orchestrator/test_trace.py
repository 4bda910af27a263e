"""`orch trace` and the heat map: from trace files to rows and a picture."""

import gzip
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.text import Text

from kernels.spans import Span, as_events
from orchestrator.cli import orch
from orchestrator.commands.console import fits, listing
from orchestrator.errors import InputError
from orchestrator.figures.heat_map import Panel, draw, shares_by_rank, stretches
from orchestrator.figures.traced import read_spans, tokens_of
from orchestrator.record import TraceFacts
from orchestrator.study.files import Study
from tests.orchestrator.made import a_case, a_record, a_study, file

CASE = a_case("model", 2, trace=True)
FACTS = TraceFacts(
    window_s=4.0,
    idle_share=0.5,
    idle_share_of_ranks=[0.5, 0.5],
    schedule_idle_share=0.25,
)
PNG = b"\x89PNG\r\n\x1a\n"


def span(rank: int, token: int, start_s: float, **more: object) -> Span:
    values = {"kind": "compute", "name": "layer", "end_s": start_s + 1.0}
    return Span(rank=rank, token=token, start_s=start_s, **(values | more))  # type: ignore[arg-type]


# Two stages that take turns: the prefill, then two tokens.
TURNS = [span(rank, token, 2.0 * token + rank) for token in range(3) for rank in (0, 1)]


def a_traced_study(results: Path) -> Study:
    study = a_study(results, [CASE, a_case("tensor", 2)], "pictures")
    file(study, a_record(CASE, trace=FACTS))
    attempt = study.attempts(CASE.case_id)[-1]
    text = json.dumps(as_events(TURNS, {"case_id": CASE.case_id}))
    attempt.trace_file.write_bytes(gzip.compress(text.encode()))
    return study


def run(results: Path, *words: str) -> Result:
    return CliRunner().invoke(orch, ["trace", "--results", str(results), *words])


def test_a_heat_map_is_dark_where_a_rank_computes() -> None:
    assert shares_by_rank(TURNS, 2, (0.0, 6.0), 6) == [
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1],
    ]


def test_a_rank_that_never_computes_has_a_light_row() -> None:
    assert shares_by_rank(TURNS, 3, (0.0, 6.0), 2)[2] == [0, 0]


@pytest.mark.parametrize("tokens", [range(1), range(2), range(1, 2)])
def test_a_faster_case_shows_no_other_tokens_than_a_slower_one(
    tokens: range, tmp_path: Path
) -> None:
    faster = [
        span(rank, token, token + rank / 2, end_s=token + rank / 2 + 0.5)
        for token in range(3)
        for rank in (0, 1)
    ]
    picture = tmp_path / "x.svg"
    panels = [Panel(title=title, spans=spans) for title, spans in
              (("slower", TURNS), ("faster", faster))]  # fmt: skip
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(panels, tokens, picture)
    texts = re.findall(r"<text[^>]*>(\d+)</text>", picture.read_text())
    below_the_axis = {"0"}
    assert set(texts) & {"0", "1", "2"} - below_the_axis == {
        str(token) for token in tokens if token
    }


def test_all_layers_of_one_micro_batch_and_token_are_one_stretch() -> None:
    layers = [span(0, 1, 0.0), span(0, 1, 1.0), span(0, 1, 2.0, micro_batch=1)]
    said = span(0, 1, 9.0, kind="communication")
    assert stretches([*layers, said]) == {(0, 1, 0): (0.0, 2.0), (0, 1, 1): (2.0, 3.0)}


@pytest.mark.parametrize(
    ("ending", "begins"), [("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_heat_map_is_drawn_as_its_file_is_called(
    ending: str, begins: bytes, tmp_path: Path
) -> None:
    picture = tmp_path / f"heat.{ending}"
    several = [span(0, 0, 0.0), span(1, 0, 1.0, micro_batch=1)]
    panels = [Panel(title="turns $x_", spans=TURNS), Panel(title="", spans=several)]
    draw(panels, range(1), picture)
    assert picture.read_bytes().startswith(begins)


def test_tokens_that_no_panel_has_are_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has tokens 0 to 2"):
        draw([Panel(title="turns", spans=TURNS)], range(5, 9), tmp_path / "x.png")


def test_tokens_are_one_a_range_or_all() -> None:
    assert tokens_of("3") == range(3, 4)
    assert tokens_of("0-3") == range(4)
    assert 10_000 in tokens_of("all")
    for wrong in ("", "3-1", "-1", "a", "1,2", "1-", "٣"):
        with pytest.raises(InputError, match="tokens are given as"):
            tokens_of(wrong)


def test_traced_cases_are_listed_with_their_idle_shares(tmp_path: Path) -> None:
    study = a_traced_study(tmp_path)
    rows = json.loads(run(tmp_path, "--json").stdout)
    attempt = study.attempts(CASE.case_id)[-1]
    assert rows == [
        {
            "case_id": CASE.case_id,
            **FACTS.model_dump(),
            "trace": str(attempt.trace_file),
            "flame": None,
        }
    ]
    shown = run(tmp_path).stdout
    assert CASE.case_id in shown
    assert "50.0%" in shown
    assert "25.0%" in shown


def test_a_narrow_terminal_shows_the_whole_path_of_a_trace(tmp_path: Path) -> None:
    study = a_traced_study(tmp_path)
    trace_file = study.attempts(CASE.case_id)[-1].trace_file
    columns = ("case", "idle", "files")
    row = [Text(CASE.case_id), Text("50.0%"), Text(str(trace_file))]
    assert not fits(columns, [row], 60)
    console = Console(width=60, file=io.StringIO())
    with console.capture() as captured:
        console.print(listing(columns, [row], below=0))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 60
    assert "50.0%" in lines[1]
    assert str(trace_file) in "".join(line.strip() for line in lines[2:])


def test_a_heat_map_is_drawn_from_the_trace_files(tmp_path: Path) -> None:
    a_traced_study(tmp_path)
    picture = tmp_path / "heat.png"
    result = run(tmp_path, CASE.case_id[:8], "--heat-map", str(picture))
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"\x1f\x8b\x08", gzip.compress(b"{}"), gzip.compress(b"[")]
)
def test_a_damaged_trace_is_named(text: bytes, tmp_path: Path) -> None:
    study = a_traced_study(tmp_path)
    study.attempts(CASE.case_id)[-1].trace_file.write_bytes(text)
    result = run(tmp_path, "--heat-map", str(tmp_path / "heat.png"))
    assert "trace.json.gz cannot be read as a trace" in str(result.exception)


def test_a_study_without_traces_says_how_to_get_them(tmp_path: Path) -> None:
    a_study(tmp_path, [a_case("tensor", 2)])
    result = run(tmp_path)
    assert isinstance(result.exception, InputError)
    assert "trace: true" in str(result.exception)


def test_a_trace_whose_record_is_lost_can_still_be_drawn(tmp_path: Path) -> None:
    study = a_traced_study(tmp_path)
    attempt = study.attempts(CASE.case_id)[-1]
    attempt.record_file.write_text("{")
    assert len(read_spans(attempt.trace_file)) == len(TURNS)
    picture = tmp_path / "heat.png"
    assert run(tmp_path, "--heat-map", str(picture)).exit_code == 0
    assert json.loads(run(tmp_path, "--json").stdout)[0]["idle_share"] is None
