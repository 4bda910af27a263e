"""The command line as a shell sees it: streams, exit codes, pipes, completion, start-up."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import get_args

import click
import pytest

from orchestrator.cli import VERBS
from orchestrator.cli import orch as program
from orchestrator.commands.retry import CAUSES
from orchestrator.errors import explained
from orchestrator.record import Cause
from tests.benchmarks.start_up import median_ratio
from tests.orchestrator.made import (
    a_case,
    a_failure,
    a_record,
    a_study,
    big_study,
    file,
)
from tests.orchestrator.sandbox import CHECKOUT, GRID

DEMO = "jobs/grids/demo.yaml"
ORCH = [sys.executable, "-m", "orchestrator.cli"]


def orch(
    *arguments: str, results: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    where = {"ORCH_RESULTS": str(results)} if results else {}
    return subprocess.run(
        [*ORCH, *arguments], cwd=CHECKOUT, text=True, capture_output=True,
        env=os.environ | where | environment, timeout=120,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A study of four cases: measured, failed, pruned, new."""
    cases = [
        a_case(strategy, gpus) for strategy in ("model", "tensor") for gpus in (1, 2)
    ]
    study = a_study(tmp_path, cases, "four")
    file(study, a_record(cases[0]))
    file(study, a_failure(cases[1]))
    study.prune(cases[2].case_id, "needs 9 GiB, has 1")
    return tmp_path


def test_help_names_the_verbs_and_loads_nothing_heavy() -> None:
    run = orch("--help")
    assert run.returncode == 0
    assert {"submit", "status", "collect"} <= set(run.stdout.split())
    code = "import orchestrator.cli, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "numpy", "pandas", "pydantic", "rich", "yaml"} & set(loaded)


@pytest.mark.alone
def test_help_takes_at_most_three_times_the_import_of_click() -> None:
    assert median_ratio(rounds=7) <= 3


def test_help_lists_the_commands_in_the_order_of_work_on_80_columns() -> None:
    lines = orch("--help", COLUMNS="80").stdout.splitlines()
    first = lines.index("Commands:") + 1
    listed = [line.split(maxsplit=1) for line in lines[first : first + len(VERBS)]]
    assert listed == [[name, verb.summary] for name, verb in VERBS.items()]
    assert [name for name, _ in listed][:3] == ["submit", "status", "collect"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_explains_itself_with_an_example_that_can_be_typed(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    example = VERBS[verb].example
    command = program.get_command(click.Context(program), verb)
    assert command is not None
    command.make_context(verb, shlex.split(example)[2:])
    shown = orch(verb, "-h", COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert f"\n  {VERBS[verb].summary}\n" in shown
    assert shown.endswith(f"  Example:\n    {example}\n")
    assert f"\n  {example}\n" in orch("--help").stdout


def test_retry_knows_every_cause_that_a_record_can_give() -> None:
    assert get_args(Cause) == CAUSES


@pytest.mark.parametrize("verb", ["submit", "status", "collect"])
def test_every_verb_of_a_study_takes_its_name_and_folder(verb: str) -> None:
    run = orch(verb, "-h")
    assert run.returncode == 0
    assert "--study" in run.stdout
    assert "ORCH_RESULTS" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sumbit"], "No such command"),
        (["submit"], "--grid"),
        (["submit", "--grid", "nowhere.yaml"], "does not exist"),
        (["status", "--study", "fuor"], "did you mean 'four'"),
        (["status", "--study", "../four"], "letters, digits"),
        (
            ["submit", "--grid", "jobs/grids/report.yaml", "--study", "", "--dry-run"],
            "letters",
        ),
        (["status", "--watch", "--json"], "not both"),
        (["collect", "--metric", "tfft_s"], "did you mean 'ttft_s'"),
        (["collect", "--format", "xml"], "'xml'"),
        (["collect", "--long", "--metric", "ttft_s"], "leave --metric or --long"),
        (["submit", "--grid", DEMO, "--dry-run", "--wait"], "--wait"),
        (["submit", "--grid", DEMO, "--test-only", "--wait"], "--wait"),
        (["cancel", "--all", "toy"], "not both"),
        (["cancel", "nosuch"], "`orch status` lists all"),
        (["retry", "--case-time", "5"], "'--case-time': must be a number and a unit"),
        (["retry", "--host-memory", "5 min"], "'--host-memory': must be a size"),
        (["trace", "--tokens", "1"], "give both"),
        (["clusters", "sol", "--schema"], "give it alone"),
    ],
)
def test_misuse_exits_2_and_says_the_way_out(
    results: Path, arguments: list[str], said: str
) -> None:
    run = orch(*arguments, results=results)
    assert run.returncode == 2
    assert said in run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


def test_a_grid_with_errors_exits_2_with_file_and_line(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        GRID.replace("dtype:", "dtpye:").replace("gpus: [1, 2]", "gpus: [1, 3]")
    )
    run = orch("submit", "--grid", str(grid), results=tmp_path)
    assert run.returncode == 2
    assert f"{grid}:6" in run.stderr
    assert "did you mean 'dtype'" in run.stderr
    assert "Traceback" not in run.stderr
    assert os.listdir(tmp_path) == ["grid.yaml"]


def test_results_that_cannot_be_written_exit_1_in_a_line(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID)
    run = orch("submit", "--grid", str(grid), "--results", str(grid / "results"))
    assert run.returncode in (1, 2)
    assert "Traceback" not in run.stderr
    run = orch("submit", "--grid", str(grid), results=Path("/proc/nowhere"))
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


def test_what_the_system_refuses_is_said_with_file_and_way_out() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "a.json")
    assert explained(full) == (
        "a.json: No space left on device; make room, then give the same command again"
    )
    assert explained(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    assert explained(OSError("odd")) == "odd"


def test_closed_streams_are_no_error_and_catch_no_file(
    results: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        line = f"{sys.executable} -m orchestrator.cli status {closed}"
        where = os.environ | {"ORCH_RESULTS": str(results)}
        run = subprocess.run(
            line, shell=True, cwd=CHECKOUT, env=where, capture_output=True, text=True
        )
        assert (run.returncode, run.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_terminal_without_a_sign_gets_its_code(tmp_path: Path) -> None:
    cases = [a_case(seed=seed) for seed in range(30)]
    a_study(tmp_path, cases)
    run = orch("status", results=tmp_path, PYTHONIOENCODING="ascii")
    assert run.returncode == 0
    assert "\\u2026 and 5 more" in run.stdout


def test_status_groups_counts_and_gives_reasons(results: Path) -> None:
    run = orch("status", results=results)
    assert run.returncode == 0
    assert "timeout: still running after 60 s" in run.stdout
    assert "needs 9 GiB, has 1" in run.stdout
    assert run.stdout.endswith("four: 4 cases: 1 failed, 1 pruned, 1 new, 1 ok\n")
    assert all(line == line.rstrip() for line in run.stdout.splitlines())


def test_status_as_json_is_a_list_of_rows(results: Path) -> None:
    rows = json.loads(orch("status", "--json", results=results).stdout)
    assert [row["status"] for row in rows] == ["ok", "failed", "pruned", "new"]
    assert rows[1]["cause"] == "timeout"
    assert rows[1]["evidence"] == ["still running after 60 s"]
    assert rows[1]["remedy"] == "give it more time"
    assert rows[0]["model"] == "toy"


def test_collect_prints_the_table_and_talks_elsewhere(results: Path) -> None:
    run = orch("collect", results=results)
    assert run.stdout == (
        "model,strategy,1 GPU,2 GPUs\ntoy,model,1.567,timeout\ntoy,tensor,#,new\n"
    )
    assert "output_tok_per_s in tokens/s" in run.stderr


def test_collect_long_has_every_case(results: Path) -> None:
    rows = json.loads(
        orch("collect", "--long", "--format", "json", results=results).stdout
    )
    assert [row["status"] for row in rows] == ["ok", "failed", "pruned", "new"]


@pytest.mark.parametrize("how", [[], ["--long"]], ids=["table", "long"])
@pytest.mark.parametrize("kind", ["csv", "markdown", "latex", "json", "parquet"])
def test_every_format_works_both_ways(results: Path, kind: str, how: list[str]) -> None:
    run = subprocess.run(
        [*ORCH, "collect", "--format", kind, *how], cwd=CHECKOUT, capture_output=True,
        env=os.environ | {"ORCH_RESULTS": str(results)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(b"PAR1") == (kind == "parquet")
    assert run.stdout


def test_the_results_option_outweighs_the_variable(
    results: Path, tmp_path: Path
) -> None:
    run = orch("status", "--results", str(results), results=tmp_path / "empty")
    assert run.returncode == 0


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    big_study(tmp_path, 300)
    for verb in ("status --json", "collect --long", "collect --long --format json"):
        pipe = f"{sys.executable} -m orchestrator.cli {verb} | head -c 10"
        run = subprocess.run(
            pipe, shell=True, cwd=CHECKOUT, capture_output=True, text=True,
            env=os.environ | {"ORCH_RESULTS": str(tmp_path)},
        )  # fmt: skip
        assert len(run.stdout) == 10
        assert run.stderr == "", verb


def on_a_terminal(results: Path, *arguments: str) -> list[str]:
    """What `orch` writes to a terminal of 80 columns and 24 lines, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"ORCH_RESULTS": str(results), "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [*ORCH, *arguments], cwd=CHECKOUT, env=environment,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end was closed
        while read := os.read(ours, 4096):
            written += read
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).splitlines()


def test_a_terminal_of_80_columns_shows_status_time_cause_and_a_name_that_can_be_typed(
    tmp_path: Path,
) -> None:
    cases = [
        a_case(
            "tensor", gpus, model="llama-2-13b-chat-of-somebody", batch_size=16,
            dtype="bfloat16",
        )
        for gpus in (1, 2)
    ]  # fmt: skip
    study = a_study(tmp_path, cases, "narrow")
    why = "the scheduler ended it long before it had loaded its weights from the disk"
    for case in cases:
        file(study, a_failure(case, evidence=[why]))
    lines = on_a_terminal(tmp_path, "status")
    assert max(map(len, lines)) <= 80
    for gpus in (1, 2):
        name = f"llama-2-13b-chat-of-somebody_tensor_{gpus}x_b16_bf16"
        row = next(index for index, line in enumerate(lines) if name in line)
        assert lines[row].split() == ["failed", name, "1", "min", "00", "s"]
        assert " ".join(" ".join(lines[row + 1 : row + 3]).split()) == f"timeout: {why}"
        assert orch("logs", name, results=tmp_path).returncode == 0


def test_orch_from_anything_but_a_checkout_says_so(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "orchestrator", tmp_path / "orchestrator")
    run = subprocess.run(
        [*ORCH, "status"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "works from its checkout only" in run.stderr
    assert run.stderr.count("\n") == 1


def test_another_package_called_kernels_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = (
        f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "import kernels\nfrom orchestrator.cli import main\nsys.argv = ['orch', 'status']\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert "kernels" in run.stderr
    assert str(tmp_path) in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_kernels_package_further_down_the_path_is_no_trouble(
    results: Path, tmp_path: Path
) -> None:
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text(
        "raise SystemExit('theirs')"
    )
    run = orch("status", results=results, PYTHONPATH=f"{CHECKOUT}:{tmp_path / 'site'}")
    assert run.returncode == 0, run.stderr
    run = orch("status", results=results, PYTHONPATH=f"{tmp_path / 'site'}")
    assert run.returncode == 0, run.stderr


def test_watch_ends_when_nothing_is_under_way(results: Path) -> None:
    run = orch("status", "--watch", results=results)
    assert run.returncode == 0
    assert "4 cases" in run.stdout
