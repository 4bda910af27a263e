"""Where and with what a record was made: machines, software, code and job, as typed fields.

Numbers of different environments are not comparable as they stand; tables show what differs.
`jobs.environment` fills these in.
"""

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Gpu(_Strict):
    """One GPU, as nvidia-smi describes it. Absent facts are None."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None = None
    driver: str | None = None
    mig: str | None = None
    """Multi-instance mode: Enabled or Disabled."""
    ecc: str | None = None
    """Error correction: Enabled or Disabled. It costs memory and bandwidth."""
    max_sm_mhz: int | None = None
    max_memory_mhz: int | None = None
    power_limit_w: float | None = None


class Host(_Strict):
    """One machine."""

    name: str
    cpu: str
    """Model name of its processor."""
    cores: int | None = None
    """Physical ones."""
    processors: int | None = None
    """Logical ones."""
    allowed_processors: int
    """Those that this job may use."""
    memory_bytes: int
    system: str
    """Operating system, kernel and architecture."""
    gpus: list[Gpu] = []
    """Those that this job sees."""
    topology: str | None = None
    """How GPUs, network cards and processors are connected: nvidia-smi's matrix."""


class Software(_Strict):
    """Versions and settings."""

    python: str
    packages: dict[str, str]
    """Installed package → version, of those that a number depends on."""
    cuda: str | None = None
    """That torch was built with."""
    nccl: str | None = None
    cudnn: str | None = None
    threads: int | None = None
    """Of one rank's CPU computations."""
    matmul_precision: str | None = None
    cpu_capability: str | None = None
    """Vector instructions that torch uses."""

    @property
    def torch(self) -> str | None:
        """Version of torch, with its build."""
        return self.packages.get("torch")


class Code(_Strict):
    """Which code ran."""

    commit: str | None = None
    """None without git."""
    changes: str | None = None
    """SHA-256 of everything that differs from the commit; None if nothing does."""
    source: str
    """SHA-256 of the Python files of kernels and jobs, which needs no git."""


class Environment(_Strict):
    """Everything that must be the same to repeat a number."""

    hosts: list[Host]
    """Rank 0's first."""
    software: Software
    code: Code
    variables: dict[str, str] = {}
    """Variables that change how fast a model runs."""
    slurm: dict[str, str] = {}
    """Numbers and share of the job, by Slurm's names in lower case; empty outside a job."""

    @property
    def driver(self) -> str | None:
        """NVIDIA's driver; several are joined."""
        drivers = {gpu.driver for host in self.hosts for gpu in host.gpus if gpu.driver}
        return ", ".join(sorted(drivers)) or None


class Bandwidths(_Strict):
    """What the machine was measured to do, beside the case: the ceiling of its numbers."""

    memory_bytes_per_s: float | None = None
    """Reading the device's own memory."""
    host_to_device_bytes_per_s: float | None = None
    """Copying from page-locked host memory to one GPU."""
    peer_bytes_per_s: float | None = None
    """Between two devices of the case, per direction."""
    disk_bytes_per_s: float | None = None
    """Reading the files that weights wait in."""
    matmul_flop_per_s: float | None = None
    """Floating-point operations of a large matrix product in the case's dtype."""
