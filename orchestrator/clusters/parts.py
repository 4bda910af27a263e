"""What a cluster profile is made of: devices, routes and small things."""

import fnmatch
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
)

from orchestrator.units import num_bytes, seconds


def _one_line(text: str) -> str:
    if any(ord(letter) < 32 for letter in text):
        raise ValueError(f"must be one line, got {text!r}")
    return text


def _in_seconds(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


def _in_bytes(value: Any) -> Any:
    return num_bytes(value) if isinstance(value, str) else value


Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Duration = Annotated[
    PositiveInt,
    BeforeValidator(_in_seconds, json_schema_input_type=str),
]
"""Seconds; a profile writes `30min`, `4h`, `7d`."""
Size = Annotated[PositiveInt, BeforeValidator(_in_bytes, json_schema_input_type=str)]
"""Bytes; a profile writes `79GiB`."""


class Strict(BaseModel):
    """Frozen; a key it does not know is an error."""

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
    """A partition and QOS, and what may go there. The first that fits a job is taken."""

    partition: Line | None = None
    qos: Line | None = None
    max_time_s: Duration = Field(alias="max_time")
    devices: list[Line] | None = None
    """Null: all."""
    max_nodes: PositiveInt | None = None
    account_suffix: str = ""
    """Appended to the account (Anvil, Delta)."""
    on_request: bool = False
    """Taken only where a person names its partition or QOS."""


class Mail(Strict):
    """Who is told of what."""

    user: Line
    events: list[Line] = ["END", "FAIL"]


class Rendezvous(Strict):
    """How the nodes of one job find each other."""

    host_suffix: str = Field(default="", pattern=r"[A-Za-z0-9.-]*")
    """Appended to the first host's name (JUWELS: `i`, its InfiniBand name)."""
    interface: Line | None = None
    """For NCCL and gloo (`ib0`)."""


class Detect(Strict):
    """Marks of the site; any one suffices. Patterns as of a shell."""

    cluster_names: list[str] = []
    """Slurm's ClusterName."""
    environment: dict[str, str] = {}
    """Variable → pattern of its value."""
    hosts: list[str] = []

    def matches(
        self, cluster_name: str | None, environment: dict[str, str], host: str
    ) -> bool:
        """Whether these are the marks of this site."""
        return (
            cluster_name in self.cluster_names
            or any(fnmatch.fnmatch(host, pattern) for pattern in self.hosts)
            or any(
                name in environment and fnmatch.fnmatch(environment[name], pattern)
                for name, pattern in self.environment.items()
            )
        )
