"""What the virtual cluster needs of this machine: rights, packages, ports."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

COMMANDS = {"sbatch": "slurm-client", "slurmctld": "slurmctld", "slurmd": "slurmd",
            "munged": "munge"}  # fmt: skip
ACCOUNTING_COMMANDS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
}
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])


class NoSlurm(Exception):
    """A real Slurm cannot be started here; the message says why."""


def why_not() -> str | None:
    """Why this machine cannot run one, or None if it can."""
    if os.geteuid() != 0:
        return "a real Slurm needs root"
    if shutil.which("apt-get") is None and shutil.which("slurmctld", path=PATH) is None:
        return "a real Slurm needs Debian or Ubuntu, or Slurm installed"
    namespaces = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(namespaces, capture_output=True).returncode:
        return "virtual nodes need the right to make namespaces (CAP_SYS_ADMIN)"
    return None


def install(commands: dict[str, str]) -> None:
    """Install the Debian packages of the commands that are missing, asking nothing."""
    lock = Path(tempfile.gettempdir()) / "virtual-slurm-install.lock"
    with lock.open("w") as file:  # several runs of the tests may start at once
        fcntl.flock(file, fcntl.LOCK_EX)
        missing = {
            package
            for command, package in commands.items()
            if shutil.which(command, path=PATH) is None
        }
        if missing:
            _apt_get(sorted(missing))


def _apt_get(packages: list[str]) -> None:
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:  # the packages shall not start their services
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": PATH}
    get = [
        "apt-get",
        "-q",
        "-y",
        "--no-install-recommends",
        "-oDPkg::Lock::Timeout=300",
    ]
    try:
        for command in ([*get, "update"], [*get, "install", *packages]):
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise NoSlurm(f"{' '.join(command)} failed: {done.stderr[-800:]}")
    finally:
        if ours:
            policy.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def remove_cgroups(node: str) -> None:
    """Take away the control groups that Slurm leaves behind for a node."""
    for top in Path("/sys/fs/cgroup").glob(f"*/*{node}*"):
        below = [each for each in top.rglob("*") if each.is_dir()]
        for folder in [*sorted(below, reverse=True), top]:
            with contextlib.suppress(OSError):
                folder.rmdir()
