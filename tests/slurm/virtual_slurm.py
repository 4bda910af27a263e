"""A real Slurm on one machine: slurmctld, slurmd on virtual nodes with fake GPUs, slurmdbd.

    python tests/slurm/up.py      # start one, print how to use it, Ctrl-C stops it

Needs root on Debian or Ubuntu and installs what is missing. Everything lies in one folder and
listens on free ports, so it disturbs no other Slurm of the machine. Each node is a PID, mount
and host name namespace of its own: killing its first process is pulling its plug. All daemons
are children with a death signal: they end with the process that started them, however it ends.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from machine import (
    ACCOUNTING_COMMANDS,
    COMMANDS,
    PATH,
    NoSlurm,
    free_ports,
    install,
    remove_cgroups,
    why_not,
)
from slurm_conf import (
    ACCOUNTING,
    ACCOUNTS,
    BOOT,
    CGROUPS,
    NO_CGROUPS,
    SLURM_CONF,
    SLURMDBD_CONF,
    SMALL_DATABASE,
    cgroup_conf,
)


class VirtualSlurm:
    """One cluster in `folder`. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        gpus: int = 4,
        cpus: int = 16,
        accounting: bool = True,
        enforce_memory: bool = False,
    ) -> None:
        self.folder = folder
        # Slurm names control groups after nodes, and clusters must not meet there.
        name = f"memory{os.getpid()}n" if enforce_memory else "node"
        self.nodes = [f"{name}{number}" for number in range(1, nodes + 1)]
        self.gpus = gpus
        self.cpus = cpus
        self.accounting = accounting
        self.enforce_memory = enforce_memory
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._disturbed = False

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return os.environ | {
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.folder / "run/database.sock"),
            "PATH": PATH,
        }

    def __enter__(self) -> "VirtualSlurm":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Install, configure, start everything and wait until all nodes are idle."""
        if reason := why_not():
            raise NoSlurm(reason)
        install(COMMANDS | (ACCOUNTING_COMMANDS if self.accounting else {}))
        self._configure()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_daemon("slurmctld")
        for node in self.nodes:
            self.start_daemon(node)
        self.wait(lambda: self.idle() == set(self.nodes), "nodes to be idle")

    def stop(self) -> None:
        """End every process of this cluster."""
        for node in self.nodes:
            self.kill(node)
        if controller := self._daemons.get("slurmctld"):
            controller.terminate()  # it has a helper process that only it reaps
            with contextlib.suppress(subprocess.TimeoutExpired):
                controller.wait(10)
        for name in list(self._daemons):
            self.kill(name)
        if self.enforce_memory:
            for node in self.nodes:
                remove_cgroups(node)

    def command(self, *words: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def idle(self) -> set[str]:
        """Names of the nodes that wait for work."""
        shown = "sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"
        said = self.command(*shown, check=False)
        return {line.split()[0] for line in said.splitlines() if line.endswith(" idle")}

    def wait(self, done: Callable[[], object], what: str, timeout: float = 60) -> None:
        """Until `done()`; RuntimeError after `timeout` seconds, with the logs' ends."""
        end = time.monotonic() + timeout
        while not done():
            if time.monotonic() > end:
                raise RuntimeError(f"waited {timeout} s for {what}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self, lines: int = 8) -> str:
        """The end of every daemon's log."""
        return "\n".join(
            "\n".join(
                [
                    f"== {file.name}",
                    *file.read_text(errors="replace").splitlines()[-lines:],
                ]
            )
            for file in sorted((self.folder / "log").glob("*.log"))
        )

    def kill(self, name: str) -> None:
        """Pull a daemon's plug; a node's processes all go with it."""
        self._disturbed = True
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.kill()
            daemon.wait()

    def runs(self, name: str) -> bool:
        """Whether that daemon or node is up."""
        daemon = self._daemons.get(name)
        return daemon is not None and daemon.poll() is None

    def refresh(self) -> None:
        """Bring back whatever is down; after a disturbance with nodes that know of no job.

        A controller that was killed may give out ids again that a node still works on.
        """
        if self._disturbed:
            for node in self.nodes:
                self.kill(node)
        self.repair()
        self._disturbed = False

    def repair(self) -> None:
        """Bring back whatever is down, and end all jobs."""
        wanted = [*(["slurmdbd"] if self.accounting else []), "slurmctld", *self.nodes]
        for name in wanted:
            if not self.runs(name):
                self.start_daemon(name)
        self.wait(lambda: self._says("scancel", "-u", "root", "--full"), "slurmctld")
        self.command("scontrol", "update", "partitionname=main", "state=up")
        for node in self.nodes:
            state = f"nodename={node}", "state=resume"
            self.command("scontrol", "update", *state, check=False)
        self.wait(lambda: self.idle() == set(self.nodes), "nodes to be idle")

    def forget(self) -> None:
        """Lose the controller's state: jobs are gone, ids begin anew."""
        self.kill("slurmctld")
        shutil.rmtree(self.folder / "state/ctld")
        (self.folder / "state/ctld").mkdir()
        self.start_daemon("slurmctld")
        self.wait(lambda: self._says("scontrol", "ping"), "slurmctld")
        self.wait(lambda: self.idle() == set(self.nodes), "nodes to be idle")

    def start_daemon(self, name: str) -> None:
        """Start slurmctld, slurmdbd or a node."""
        hosts = str(self.folder / "etc/hosts")
        if name in self.nodes:
            unshare = [
                "unshare",
                "--uts",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
            ]
            self._spawn(name, *unshare, "sh", "-c", BOOT, "sh", name, hosts,
                        "slurmd", "-D", "-N", name)  # fmt: skip
        elif name == "slurmctld":  # since 24.11 it looks the nodes' names up
            self._spawn(name, "unshare", "--mount", "sh", "-c",
                        'mount --bind "$1" /etc/hosts; exec slurmctld -D', "sh", hosts)  # fmt: skip
        else:
            self._spawn(name, name, "-D")

    def _spawn(self, name: str, *words: str) -> None:
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _configure(self) -> None:
        for name in ("etc", "run", "log", "dev", "state/ctld"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        ctld_port, dbd_port, *node_ports = free_ports(2 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        words = {
            "host": host,
            "run": self.folder / "run",
            "state": self.folder / "state",
            "ctld_port": ctld_port,
            "dbd_port": dbd_port,
            "plugins": CGROUPS if self.enforce_memory else NO_CGROUPS,
        }
        gres = f" Gres=gpu:fake:{self.gpus}" if self.gpus else ""
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self.cpus} RealMemory=64000{gres} State=UNKNOWN"
            for node, port in zip(self.nodes, node_ports, strict=True)
        )
        accounting = ACCOUNTING.format(**words) if self.accounting else ""
        self._write(
            "slurm.conf", SLURM_CONF.format(nodes=nodes, accounting=accounting, **words)
        )
        self._write("slurmdbd.conf", SLURMDBD_CONF.format(**words))
        self._write("gres.conf", "\n".join(self._fake_gpus()))
        version = self.command("slurmd", "-V").split()[1]
        self._write("cgroup.conf", cgroup_conf(self.enforce_memory, version))
        machine = Path("/etc/hosts").read_text()
        self._write(
            "hosts", machine + "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        )

    def _fake_gpus(self) -> list[str]:
        for number in range(self.gpus):
            device = self.folder / "dev" / f"gpu{number}"
            if not device.is_symlink():
                device.symlink_to("/dev/null")
        files = f"{self.folder}/dev/gpu[0-{self.gpus - 1}]"
        return [
            f"NodeName={node} Name=gpu Type=fake File={files}" for node in self.nodes
        ]

    def _write(self, name: str, text: str) -> None:
        file = self.folder / "etc" / name
        file.write_text(text)
        file.chmod(0o600)

    def _start_munge(self) -> None:
        run = self.folder / "run"
        key = self.folder / "etc/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._spawn("munged", "munged", "--foreground", "--force", f"--key-file={key}",
                    f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
                    f"--log-file={self.folder}/log/munged.log",
                    f"--seed-file={run}/seed")  # fmt: skip
        self.wait((run / "munge.socket").exists, "munged")

    def _start_accounting(self) -> None:
        data, run = self.folder / "state/database", self.folder / "run"
        self.command("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
                     "--skip-test-db", "--auth-root-authentication-method=normal",
                     *SMALL_DATABASE)  # fmt: skip
        self._spawn("mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
                    f"--socket={run}/database.sock", f"--pid-file={run}/mariadbd.pid",
                    "--skip-networking", "--skip-name-resolve", "--skip-grant-tables",
                    "--performance-schema=OFF", "--innodb-buffer-pool-size=64M",
                    "--innodb-lock-wait-timeout=900", *SMALL_DATABASE)  # fmt: skip
        self.wait((run / "database.sock").exists, "mariadbd")
        # slurmdbd creates it by itself, but not with MariaDB 11.8.
        self.command("mariadb", "--no-defaults", f"--socket={run}/database.sock",
                     "-e", "CREATE DATABASE IF NOT EXISTS slurm_acct_db")  # fmt: skip
        self.start_daemon("slurmdbd")
        self.wait(lambda: self._says("sacctmgr", "-n", "show", "cluster"), "slurmdbd")
        for words in ACCOUNTS:
            self.command("sacctmgr", "-i", *words.split(), check=False)

    def _says(self, *words: str) -> bool:
        done = subprocess.run(words, env=self.environment, capture_output=True)
        return done.returncode == 0
