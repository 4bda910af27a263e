"""Submits jobs to Slurm: submitit's executor with our script.

submitit makes the call of sbatch and lays out its folder. Four private methods of submitit's are
overridden, since it has no public way to use a script of one's own: so setup.cfg caps its version.
What is submitted is a `CommandFunction`, hence text: nothing is pickled that is run.
"""

import contextlib
import io
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import helpers
from submitit.core import core, utils
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from orchestrator.causes.slurm_states import is_uncertain, way_out
from orchestrator.errors import OrchError
from orchestrator.runner import Unanswered

_INHERITED = re.compile(r"(SLURM|SBATCH|SRUN|SQUEUE|SACCT|SALLOC|SCANCEL|SINFO)_")
_KEPT = frozenset(
    {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_CLUSTER_NAME"}
)
UNANSWERED = 124
"""Exit code of `timeout` when it had to end sbatch."""


def inherited(environment: dict[str, str]) -> list[str]:
    """Variables of an allocation or a user's profile that would change what we ask for."""
    return sorted(
        name for name in environment if _INHERITED.match(name) and name not in _KEPT
    )


def clean_environment() -> dict[str, str]:
    """Return the environment of Slurm's commands: nothing inherited, and output as we parse it."""
    environment = dict(os.environ)
    for name in inherited(environment):
        del environment[name]
    return environment | {
        "SLURM_TIME_FORMAT": "standard",
        "SLURM_BITSTR_LEN": "0",
        "LC_ALL": "C",
    }


class ScriptExecutor(SlurmExecutor):
    """Submits one script for all jobs: a single job, or one array.

    Args:
        folder: of job specs, script and logs; sbatch runs there.
        script: its text.
        timeout_s: after which sbatch is ended.
    """

    def __init__(self, folder: Path, script: str, timeout_s: int) -> None:
        super().__init__(folder)
        self._script = script
        self._timeout_s = timeout_s

    def _internal_process_submissions(
        self, delayed_submissions: list[utils.DelayedSubmission]
    ) -> list[core.Job[Any]]:
        # submitit's own array path builds a plain SlurmExecutor, which would drop our script.
        count = len(delayed_submissions)
        first = self._submit_command(self._submitit_command_str)
        if count == 1:
            return [first]
        return [
            SlurmJob(folder=self.folder, job_id=f"{first.job_id}_{index}", tasks=[0])
            for index in range(count)
        ]

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        # submitit takes the first "job N" of all that is printed; a site's wrapper prints more.
        text = string if isinstance(string, str) else string.decode(errors="replace")
        found = re.search(r"^Submitted batch job (\d+)", text, re.MULTILINE)
        if found is None:
            raise utils.FailedSubmissionError(f"its output was {text!r}")
        return found[1]

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [word for name in inherited(dict(os.environ)) for word in ("-u", name)]
        return [
            "env", *unset, "-C", str(submission_file_path.parent),
            "timeout", "-k", "5", str(self._timeout_s),
            "sbatch", submission_file_path.name,
        ]  # fmt: skip


def submit_jobs(
    folder: Path, specs: Sequence[Path], python: str, script: str, timeout_s: int
) -> list[str]:
    """Submit one job for each job spec by one call of sbatch. Return their ids, in order.

    Raises:
        OrchError: Slurm refused, and accepted none.
        Unanswered: it may or may not have accepted them.
    """
    executor = ScriptExecutor(folder, script, timeout_s)
    launch = helpers.CommandFunction([python, "-m", "jobs.launch"])
    said = io.StringIO()
    try:
        # submitit prints what sbatch says; our own message has it.
        with contextlib.redirect_stderr(said):
            jobs = executor.map_array(launch, [spec.name for spec in specs])
    except utils.FailedJobError as error:
        raise _refusal(error) from error
    except utils.FailedSubmissionError as error:
        raise Unanswered(f"sbatch gave no job id: {error}") from error
    return [job.job_id for job in jobs]


def _refusal(error: utils.FailedJobError) -> OrchError:
    cause = error.__cause__
    code = cause.returncode if isinstance(cause, subprocess.CalledProcessError) else 0
    said = " ".join(str(error).replace("sbatch: error: ", "").split())
    if code == UNANSWERED or code < 0 or is_uncertain(said):
        said = said or "it had to be ended"
        return Unanswered(
            f"sbatch got no answer ({said}): the jobs may or may not have been accepted; "
            f"run `orch submit` again, it finds out first"
        )
    return OrchError(f"Slurm refused: {said}; {way_out(said)}")
