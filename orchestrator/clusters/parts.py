"""The parts of a cluster profile: devices, routes, mail, rendezvous, how the site is detected."""

import fnmatch
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from orchestrator.schema_errors import LINE
from orchestrator.units import seconds


def _in_seconds(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


Line = Annotated[str, Field(pattern=LINE)]
Duration = Annotated[
    PositiveInt,
    BeforeValidator(_in_seconds, json_schema_input_type=str | int),
]
"""Seconds; a profile writes `30min`, `4h`, `7d`, or as Slurm does `1-00:00:00`."""
# At least a MiB: pydantic reads "1,5 GiB" as one byte.
Size = Annotated[
    ByteSize, Field(ge=2**20), WithJsonSchema({"type": ["string", "integer"]})
]
"""Bytes; a profile writes `79GiB`."""


def size_bytes(text: str) -> int:
    """Return the bytes of `79GiB` or `500 GB`.

    Raises:
        ValueError: no size of at least a MiB.
    """
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError:
        raise ValueError(
            f"must be a size of at least 1MiB, such as '16GiB', got {text!r}"
        ) from None


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Device(Strict):
    """One kind of accelerator a rank can sit on; `cpu` ranks are plain worker processes."""

    about: Line | None = None
    request: Line | None = None
    """The type in the GPU flag (`a100` in `-G a100:2`); null asks for any GPU."""
    is_gpu: bool = True
    memory_bytes: Size | None = Field(default=None, alias="memory")
    """What a program can use of the device's own memory; null: not known."""
    per_node: PositiveInt
    """Devices of one node."""
    cpus: PositiveInt
    """CPU cores that go with one device."""
    host_memory_bytes: Size = Field(alias="host_memory")
    """Main memory that goes with one device."""
    constraint: Line | None = None
    peers: bool = True
    """Whether devices can talk to each other; MIG slices cannot."""


class Route(Strict):
    """A partition and QOS, and which jobs may go there. The first that fits a job is taken."""

    partition: Line | None = None
    qos: Line | None = None
    max_time_s: Duration = Field(alias="max_time")
    devices: list[Line] | None = None
    """Null: all."""
    max_nodes: PositiveInt | None = None
    on_request: bool = False
    """Taken only where a person names its partition or QOS."""


class Mail(Strict):
    """Whom Slurm mails, and about which events."""

    user: Line
    events: list[Line] = ["END", "FAIL"]


class Rendezvous(Strict):
    """How the nodes of one job find each other."""

    host_suffix: str = Field(default="", pattern=r"[A-Za-z0-9.-]*")
    """Appended to the first host's name (JUWELS: `i`, its InfiniBand name)."""
    interface: Line | None = None
    """For NCCL and gloo (`ib0`)."""


class Detect(Strict):
    """How the site is detected: any one match suffices. Patterns as in a shell."""

    cluster_names: list[str] = []
    """Slurm's ClusterName."""
    environment: dict[str, str] = {}
    """Variable → pattern of its value."""
    hosts: list[str] = []

    def matches(
        self, cluster_name: str | None, environment: dict[str, str], host: str
    ) -> bool:
        """Return whether this environment is the site's."""
        return (
            cluster_name in self.cluster_names
            or any(fnmatch.fnmatch(host, pattern) for pattern in self.hosts)
            or any(
                name in environment and fnmatch.fnmatch(environment[name], pattern)
                for name, pattern in self.environment.items()
            )
        )
