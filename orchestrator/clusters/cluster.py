"""One site's facts as data: what a job asks of Slurm there.

A profile is a YAML file in jobs/clusters/ or anywhere else; `extends:` names the profile that
it changes. Nothing here asks Slurm; `orchestrator.clusters.detect` finds out which site this is.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, PositiveInt, model_validator

from orchestrator.case import Case
from orchestrator.checkout import ROOT
from orchestrator.clusters.parts import (
    Detect,
    Device,
    Duration,
    Line,
    Mail,
    Rendezvous,
    Route,
    Strict,
)
from orchestrator.errors import InputError, nearest
from orchestrator.schema_errors import validated
from orchestrator.yaml_document import Document, read_marked

PROFILES = ROOT / "jobs" / "clusters"
_SYNONYMS = {
    "base": "extends",
    "host_mem": "host_memory",
    "mem": "host_memory",
    "modules": "setup",
    "time": "case_time",
}
"""Key that people try → the one that is meant."""


class Cluster(BaseModel):
    """One site."""

    model_config = Strict.model_config

    name: Line
    about: Line
    kind: Literal["local", "slurm"] = "slurm"
    confidence: Literal["tested", "documented", "unverified"]
    """tested: run by us; documented: from the site's own pages; unverified: from other sources."""
    sources: list[Line] = []
    notes: list[Line] = []
    """What to know before using it."""
    detect: Detect = Detect()

    devices: dict[Line, Device] = {}
    device: Line | None = None
    """The device cases run on, of `devices`."""
    routes: list[Route] = []
    partition: Line | None = None
    """Take only routes of this partition."""
    qos: Line | None = None
    """Take only routes of this QOS."""
    account: Line | None = None
    account_required: bool = False

    gpu_flag: Literal["--gpus", "--gpus-per-node", "--gres", "none"] = "--gpus-per-node"
    give_memory: bool = True
    """False where the site refuses --mem."""
    give_cpus: bool = True
    """False where the site refuses --cpus-per-task."""
    whole_node: bool = False
    """--exclusive: jobs get, and are charged for, whole nodes."""
    arrays: bool = True
    max_array: PositiveInt = 1000
    """Cases of one array; more go out as several."""
    throttle: PositiveInt = 16
    """Array tasks that run at once."""
    export_none: bool = True
    """--export=NONE: the script sets every variable itself."""
    requeue: bool | None = None
    """--requeue or --no-requeue; null: as the site has it."""
    options: list[Line] = []
    """Further sbatch options, such as `--gpu-bind=none`."""
    srun_options: list[Line] = []
    """Further options of srun, such as `--mpi=pmi2`."""
    exclude_nodes: list[Line] = []
    """Nodes that jobs must not get."""
    mail: Mail | None = None

    case_time_s: Duration = Field(default=1800, alias="case_time")
    """How long one case may take, loading included, unless it says otherwise."""
    cases_per_job: PositiveInt = 1
    """Cases of one job."""
    setup: list[str] = []
    """Shell lines before the workers start; the profile's author is trusted."""
    environment: dict[Line, Line] = {}
    """Variables of every job."""
    python: Line | None = None
    """Interpreter on the compute nodes; null: the one that runs `orch`."""
    rendezvous: Rendezvous = Rendezvous()
    poll_s: Duration = Field(default=30, alias="poll")
    """Seconds between two questions to Slurm, at least."""
    submit_s: Duration = Field(default=60, alias="submit_timeout")
    """How long sbatch may take."""
    scratch: Line | None = None
    scratch_note: Line | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "local":
            if self.cases_per_job > 1:
                raise ValueError(
                    f"cases_per_job is for Slurm, got {self.cases_per_job}: on this machine one "
                    f"job runs all cases in turn; leave it out"
                )
            return self
        if not self.devices or not self.routes:
            raise ValueError("a slurm cluster needs devices and routes")
        if self.device not in self.devices:
            raise ValueError(
                f"device must be one of devices, got {self.device!r}; "
                f"{nearest(str(self.device), self.devices)}"
            )
        for route in self.routes:
            for name in route.devices or []:
                if name not in self.devices:
                    raise ValueError(
                        f"routes name devices, got {name!r}; {nearest(name, self.devices)}"
                    )
        return self

    # For Slurm; a local profile names no devices, `orchestrator.local` looks at the machine.

    def nodes(self, gpus: int) -> int:
        """Return the nodes that so many ranks take: the fewest that hold them in equal numbers."""
        per_node = self.devices[self.device or ""].per_node
        fewest = -(-gpus // per_node)
        return next(nodes for nodes in range(fewest, gpus + 1) if gpus % nodes == 0)

    @property
    def device_memory_bytes(self) -> int | None:
        """Memory that one rank has for weights, cache and activations."""
        device = self.devices[self.device or ""]
        return device.memory_bytes if device.is_gpu else device.host_memory_bytes

    def host_memory_bytes(self, case: Case) -> int | None:
        """Most main memory of one node that the job of `case` can have.

        A job asks for its ranks' share; for all of the node's where weights wait there.
        """
        device = self.devices[self.device or ""]
        ranks = device.per_node if device.is_gpu else min(case.gpus, device.per_node)
        return device.host_memory_bytes * ranks

    def unsuitable(self, case: Case) -> str | None:
        """Return why `case` cannot run on this cluster's device at all, or None."""
        device = self.devices[self.device or ""]
        if case.gpus > 1 and not device.peers:
            return (
                f"devices of type {self.device} cannot talk to each other: {case.gpus} ranks "
                f"cannot use several of them; take another device or gpus: 1"
            )
        return None


def cluster_names() -> list[str]:
    """Return the names of the profiles that ship, `local` first."""
    return sorted(
        (file.stem for file in PROFILES.glob("*.yaml")),
        key=lambda name: (name != "local", name),
    )


def load_cluster(name: str | Path, changes: dict[str, Any] | None = None) -> Cluster:
    """Load the profile of that name, or in that file.

    Args:
        name: of `cluster_names()`, or a path (with a slash, or ending in .yaml).
        changes: further keys, as if written in a file that extends the profile.

    Raises:
        InputError: there is none, or every schema error that it has.
    """
    document = read_marked(_file(name))
    described = _merged(_with_bases(document, ()), changes or {})
    return validated(Cluster, described, document, json_schema, _SYNONYMS)


def _file(name: str | Path) -> Path:
    text = str(name)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return Path(text).expanduser()
    if text not in cluster_names():
        raise InputError(
            f"no cluster {text!r}; {nearest(text, cluster_names())}; or give a profile's path"
        )
    return PROFILES / f"{text}.yaml"


def _with_bases(document: Document, via: tuple[Path, ...]) -> dict[str, Any]:
    """Return the profile's values over those of the profiles that it extends."""
    file = Path(document.name)
    if not isinstance(document.data, dict):
        document.problem((), "a profile must be a mapping of names to values")
        document.data = {}
    base = document.data.pop("extends", None)
    if base is not None and not isinstance(base, str):
        document.problem(
            ("extends",), f"must be the name or path of a profile, got {base!r}"
        )
        base = None
    document.raise_problems()
    if base is None:
        return document.data
    # A relative path means: beside the file that says so.
    target = _file(base if "/" not in base else file.parent / Path(base).expanduser())
    if target in (*via, file):
        document.problem(
            ("extends",), f"{base!r} leads back to this profile; take one away"
        )
        document.raise_problems()
    return _merged(_with_bases(read_marked(target), (*via, file)), document.data)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def json_schema() -> dict[str, Any]:
    """JSON Schema of a profile, for editors; `extends` may stand for any required key."""
    schema = Cluster.model_json_schema()
    schema.pop("required", None)
    schema["title"] = "orch cluster profile"
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Name or path of the profile that this one changes.",
    }
    return schema
