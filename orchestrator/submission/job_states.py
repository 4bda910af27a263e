"""Ask the runners about a study's jobs: once per cluster, however many jobs there are."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from orchestrator.clusters.cluster import Cluster, load_cluster
from orchestrator.errors import OrchError
from orchestrator.runner import JobState, Runner
from orchestrator.study.case_status import Ask, CaseStatus, case_statuses
from orchestrator.study.files import Study
from orchestrator.study.ledger import Asked, read_ledger
from orchestrator.study.lock import holder_of


def runner_for(cluster: Cluster) -> Runner:
    """Return the runner of a cluster."""
    if cluster.kind == "local":
        from orchestrator.local.runner import LocalRunner

        return LocalRunner(cluster)
    from orchestrator.slurm.runner import SlurmRunner

    return SlurmRunner(cluster)


RunnerOf = Callable[[str], Runner]


def runner_of(cluster: str) -> Runner:
    """Return the runner of the cluster that the ledger names."""
    return runner_for(load_cluster(cluster))


def study_statuses(study: Study) -> list[CaseStatus]:
    """Return the status of every case of the study."""
    return case_statuses(study, read_ledger(study.ledger_file), asker(study))


def asker(study: Study, runner_of: RunnerOf = runner_of) -> Ask:
    """Return the function by which `case_statuses` asks about the study's jobs."""

    def ask(submitted: Iterable[Asked]) -> dict[str, JobState]:
        by_cluster: defaultdict[str, list[Asked]] = defaultdict(list)
        for asked in submitted:
            by_cluster[asked.submission.cluster].append(asked)
        states: dict[str, JobState] = {}
        for cluster, group in by_cluster.items():
            states |= _ask_one(study, cluster, group, runner_of)
        return states

    return ask


def _ask_one(
    study: Study, cluster: str, group: list[Asked], runner_of: RunnerOf
) -> dict[str, JobState]:
    try:
        runner = runner_of(cluster)
        ids = _job_ids(study, runner, group)
    except OrchError as error:
        unknown = JobState(state="unknown", reason=str(error))
        return {asked.entry.case_id: unknown for asked in group}
    jobs = {
        job_id: asked.submission
        for asked in group
        if (job_id := ids[asked.entry.case_id])
    }
    states = runner.states(study, jobs)
    answers = {case_id: states[job_id] for case_id, job_id in ids.items() if job_id}
    holder = holder_of(study.lock_file) if len(answers) < len(ids) else None
    if holder is not None:
        waits = JobState(state="pending", reason=f"being submitted by {holder}")
        answers |= {case_id: waits for case_id in ids if case_id not in answers}
    return answers


def _job_ids(study: Study, runner: Runner, group: list[Asked]) -> dict[str, str | None]:
    """Map case id → its job; None if no runner has it."""
    still_open = {
        each.submission.key: each.submission
        for each in group
        if each.submission.is_open
    }
    found = runner.find(study, list(still_open.values())) if still_open else {}
    ids: dict[str, str | None] = {}
    for asked in group:
        accepted = found.get(asked.submission.key)
        ids[asked.entry.case_id] = accepted[asked.index] if accepted else asked.job_id
    return ids
