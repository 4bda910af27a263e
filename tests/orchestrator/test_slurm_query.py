"""What squeue and sacct print, in all the shapes seen, and what is made of it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.causes.slurm_states import STATES, is_uncertain, plain_reason, way_out
from orchestrator.clusters.parts import size_bytes
from orchestrator.runner import JobState
from orchestrator.slurm.answers import LastAnswer, job_state
from orchestrator.slurm.query import Answer, expand, parse_sacct, parse_squeue
from orchestrator.slurm.submit import inherited
from orchestrator.units import seconds, slurm_seconds, slurm_time


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("123", ["123"]),
        ("123_7", ["123_7"]),
        ("123_[1-3]", ["123_1", "123_2", "123_3"]),
        ("123_[0-9:4%2]", ["123_0", "123_4", "123_8"]),
        ("123_[1,5-6,9%4]", ["123_1", "123_5", "123_6", "123_9"]),
        ("123_[7]", ["123_7"]),
        ("123_[1-2,...]", ["123_1", "123_2"]),
    ],
)
def test_an_array_id_stands_for_its_jobs(written: str, meant: list[str]) -> None:
    assert expand(written) == meant


SQUEUE = """\
7_[2-999%16]|PENDING|0:00|30:00||orch-k|JobArrayTaskLimit
7_0|RUNNING|12:05|30:00|sg001|orch-k|None
7_1|COMPLETING|1-00:12:05|2-00:00:00|sg[001-002]|orch-k|None
8|PENDING|0:00|UNLIMITED||orch-k|(ReqNodeNotAvail, UnavailableNodes:a|b)
9|OUT_OF_MEMORY|0:03|30:00|sg001|orch-k|OutOfMemory
"""


def test_squeue_is_read_line_by_line() -> None:
    told = parse_squeue(SQUEUE)
    assert len(told) == 1000 + 2
    assert told["7_999"].state == "PENDING"
    assert (told["7_0"].elapsed_s, told["7_0"].limit_s) == (725, 1800)
    assert told["7_1"].elapsed_s == 86400 + 725
    assert told["8"].limit_s is None
    assert told["8"].reason.endswith("a|b)")


SACCT = """\
7_0|COMPLETED|00:01:00|00:30:00|sg001|orch-k|0:0
7_0.batch|COMPLETED|00:01:00||sg001|batch|0:0
7_1|CANCELLED by 1234|00:01:00|00:30:00|sg001|orch-k|0:15
7_2|COMPLETED|00:01:00|00:30:00|sg001|orch-k|0:0
7_2.0|OUT_OF_MEMORY|00:01:00||sg001|python|0:125
7_3|OUT_OF_ME+|00:01:00|00:30:00|sg001|orch-k|0:125
7_[4-6]|PENDING|00:00:00|00:30:00|None assigned|orch-k|0:0
"""


def test_sacct_is_read_with_what_steps_suffered() -> None:
    told = parse_sacct(SACCT)
    assert sorted(told) == ["7_0", "7_1", "7_2", "7_3", "7_4", "7_5", "7_6"]
    assert told["7_1"].state == "CANCELLED"
    assert told["7_2"].out_of_memory
    assert not told["7_0"].out_of_memory
    assert told["7_3"].state == "OUT_OF_MEMORY"
    assert told["7_5"].nodes == ""


OFF = Answer(None, "sacct: Slurm accounting storage is disabled")
DOWN = Answer(None, "squeue: Unable to contact slurm controller")


def state_of(
    tmp_path: Path, job_id: str, queued: Answer, known: Answer, name: str = "orch-k"
) -> JobState:
    return job_state(job_id, name, queued, known, LastAnswer(tmp_path / "answers.json"))


def test_a_job_that_squeue_has_is_what_squeue_says(tmp_path: Path) -> None:
    queued = Answer(parse_squeue(SQUEUE))
    state = state_of(tmp_path, "7_3", queued, OFF)
    assert (state.state, state.reason) == (
        "pending",
        "the array's own limit of jobs at once",
    )
    assert state_of(tmp_path, "7_0", queued, OFF).state == "running"


def test_an_end_that_only_a_step_tells_of_is_out_of_memory(tmp_path: Path) -> None:
    state = state_of(tmp_path, "7_2", Answer({}), Answer(parse_sacct(SACCT)))
    assert (state.state, state.cause) == ("ended", "oom_host")


def test_an_array_cancelled_before_it_began_is_one_line_for_all(tmp_path: Path) -> None:
    queued = Answer(parse_squeue("1|CANCELLED|0:00|5:00||orch-k|None"))
    assert state_of(tmp_path, "1_0", queued, OFF).cause == "cancelled"
    assert state_of(tmp_path, "1_7", queued, OFF).cause == "cancelled"


def test_a_job_that_neither_has_has_ended_where_squeue_answered(tmp_path: Path) -> None:
    state = state_of(tmp_path, "55", Answer({}), OFF)
    assert (state.state, state.cause) == ("ended", None)
    assert "accounting storage is disabled" in state.reason


def test_nobody_answering_leaves_the_state_unknown(tmp_path: Path) -> None:
    state = state_of(tmp_path, "55", DOWN, OFF)
    assert (state.state, state.reason) == ("unknown", DOWN.problem)


def test_nobody_answering_shows_what_was_last_known_and_when(tmp_path: Path) -> None:
    before = LastAnswer(tmp_path / "answers.json")
    before.keep({"55": JobState(state="running", elapsed_s=3.0)})
    state = state_of(tmp_path, "55", DOWN, OFF)
    assert (state.state, state.reason) == ("running", DOWN.problem)
    assert state.as_of is not None
    assert datetime.now(UTC) - state.as_of < timedelta(minutes=1)


def test_an_end_that_was_known_stays_one_when_nobody_answers(tmp_path: Path) -> None:
    ended = JobState(state="ended", slurm_state="TIMEOUT", cause="timeout")
    LastAnswer(tmp_path / "answers.json").keep({"55": ended})
    assert state_of(tmp_path, "55", DOWN, OFF) == ended


def test_the_accountings_word_of_an_end_counts_without_squeue(tmp_path: Path) -> None:
    known = Answer(parse_sacct(SACCT))
    assert state_of(tmp_path, "7_1", DOWN, known).cause == "cancelled"
    assert state_of(tmp_path, "7_4", DOWN, known).state == "pending"


def test_the_accounting_lagging_behind_makes_no_job_alive(tmp_path: Path) -> None:
    known = Answer(parse_sacct(SACCT))
    state = state_of(tmp_path, "7_4", Answer({}), known)
    assert (state.state, state.cause) == ("ended", None)


def test_a_job_id_given_out_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    queued = Answer(parse_squeue("55|RUNNING|0:01|1:00|n1|somebody-elses|None"))
    state = state_of(tmp_path, "55", queued, OFF)
    assert state.state == "ended"


def test_a_state_that_is_not_known_is_no_end(tmp_path: Path) -> None:
    queued = Answer(parse_squeue("55|BEWITCHED|0:01|1:00|n1|orch-k|None"))
    assert state_of(tmp_path, "55", queued, OFF).state == "running"


def test_slurm_is_not_asked_again_too_soon(tmp_path: Path) -> None:
    memory = LastAnswer(tmp_path / "answers.json")
    memory.keep({"1": JobState(state="running")})
    again = LastAnswer(tmp_path / "answers.json")
    assert again.fresh(["1"], 60) == {"1": JobState(state="running")}
    assert again.fresh(["1", "2"], 60) is None
    assert again.fresh(["1"], 0) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"states": 3}', '{"asked_at": "x"}'])
def test_a_damaged_memory_only_costs_a_question(tmp_path: Path, text: str) -> None:
    (tmp_path / "answers.json").write_text(text)
    memory = LastAnswer(tmp_path / "answers.json")
    assert memory.fresh(["1"], 60) is None
    assert memory.last_known("1", "no answer").state == "unknown"


def test_a_memory_from_the_future_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    LastAnswer(file).keep({"1": JobState(state="running")})
    kept = json.loads(file.read_text())
    kept["asked_at"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    file.write_text(json.dumps(kept))
    assert LastAnswer(file).fresh(["1"], 60) is None


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("Resources", "it is next"),
        ("(Priority)", "higher priority"),
        ("QOSMaxGRESPerUser", "your limit of this QOS is used up (QOSMaxGRESPerUser)"),
        ("ReqNodeNotAvail, Reserved for maintenance", "not available"),
        ("SomethingNew", "SomethingNew"),
        ("None", ""),
    ],
)
def test_reasons_are_told_in_plain_words(word: str, says: str) -> None:
    assert says in plain_reason(word)


@pytest.mark.parametrize(
    ("said", "uncertain"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Batch job submission failed: Zero Bytes were transmitted or received", True),
        ("Batch job submission failed: Invalid qos specification", False),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)  # fmt: skip
def test_only_some_errors_leave_open_whether_slurm_accepted(
    said: str, uncertain: bool
) -> None:
    assert is_uncertain(said) is uncertain


def test_a_refusal_has_a_way_out() -> None:
    assert "case_time" in way_out(
        "Requested time limit is invalid (missing or exceeds some limit)"
    )
    assert "sinfo -s" in way_out("invalid partition specified: gpuu")
    assert "another QOS" in way_out(
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    )
    assert "orch doctor" in way_out("something nobody has seen")


def test_an_allocations_variables_are_not_inherited_but_the_configuration_is() -> None:
    names = inherited(
        {"SLURM_JOB_ID": "1", "SBATCH_QOS": "x", "SLURM_CONF": "f", "HOME": "/"}
    )
    assert names == ["SBATCH_QOS", "SLURM_JOB_ID"]


def test_every_way_to_end_has_plain_words() -> None:
    from orchestrator.causes.slurm_states import plain_state

    assert all(
        plain_state(state)
        for state in [name for name, state in STATES.items() if state.phase == "ended"]
    )


@pytest.mark.parametrize(
    ("text", "total_s"),
    [
        ("30min", 1800),
        ("5m", 300),
        ("4 h", 14400),
        ("1.5d", 129600),
        ("90s", 90),
        ("02:00:00", 7200),
        ("1-00:00:00", 86400),
    ],
)
def test_durations_are_read(text: str, total_s: int) -> None:
    assert seconds(text) == total_s
    assert slurm_seconds(slurm_time(total_s)) == total_s


@pytest.mark.parametrize("text", ["", "30", "30 weeks", "-1h", "h", "1e3s", "1-2"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number and a unit"):
        seconds(text)


def test_sizes_are_read() -> None:
    assert (size_bytes("79GiB"), size_bytes("1.5 GB")) == (79 * 2**30, 1_500_000_000)
