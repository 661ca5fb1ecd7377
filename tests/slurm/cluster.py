"""A real Slurm of three nodes on this machine, for root: `python cluster.py start|stop FOLDER`.

Everything lies in FOLDER: configuration, keys, sockets, logs and process ids; ports are free ones,
so that it meets no other Slurm. Each node is a slurmd with a host name of its own (UTS namespace)
and a hosts file that names all of them, so ranks see three hosts. Its CPUs and GPUs are declared,
not there.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2", "n3")
CPUS_PER_NODE, GPUS_PER_NODE = 64, 4
START_S = 120.0
INSTALL = "FEDGMR_INSTALL_SLURM"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

CONFIG = """\
ClusterName=fedgmr_test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=3600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running Slurm; `env` is what its commands need."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of this process, pointing to this Slurm and free of any other's."""
        own = {key: value for key, value in os.environ.items() if not _is_scheduler(key)}
        return {**own, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, env: Mapping[str, str] | None = None, cwd: Path) -> str:
        """The output of a Slurm command.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, cwd=cwd, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()


def why_not() -> str:
    """Why no Slurm can be started here; "" where it can.

    With FEDGMR_INSTALL_SLURM=1 in the environment it is installed where it is missing.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root to start a Slurm"
    if not _can_unshare():
        return "needs unshare, to give each node a host name"
    missing, said = _missing(), f"{INSTALL}=1 lets apt install them"
    if missing and os.environ.get(INSTALL) == "1" and shutil.which("apt-get"):
        said = _install()
        missing = _missing()
    return f"no Slurm here: {', '.join(missing)} not found; {said}" if missing else ""


def start(folder: Path) -> Cluster:
    """Starts the daemons and waits until all nodes are idle.

    Raises:
        RuntimeError: not within `START_S`; with the logs' ends.
    """
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    os.chmod(folder, 0o755)  # munged's socket is for everybody, and it insists
    _write_files(folder)
    cluster = Cluster(folder)
    log = folder / "daemons.log"
    with log.open("wb") as output:
        slurmds = [_slurmd(folder, node) for node in NODES]
        for command in [_munged(folder), ["slurmctld", "-c"], *slurmds]:
            subprocess.run(command, env=cluster.env, stdout=output, stderr=output, check=True)
    _await_nodes(cluster)
    return cluster


def stop(folder: Path) -> None:
    """Ends the jobs and the daemons of `folder`; fine where some are gone already."""
    cluster = Cluster(folder)
    with suppress(RuntimeError):
        cluster.run("scancel", "--user=root", cwd=folder)
        wait_until(lambda: not cluster.run("squeue", "--noheader", cwd=folder), 10.0)
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    for number, limit_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 1.0)):
        for pid in filter(_is_alive, pids):
            os.kill(pid, number)
        if wait_until(lambda: not any(map(_is_alive, pids)), limit_s):
            return


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _is_scheduler(key: str) -> bool:
    return key.startswith(("SLURM", "SBATCH_", "PMI", "FEDGMR_", "MASTER_"))


def _can_unshare() -> bool:
    command = ["unshare", "--uts", "--mount", "hostname", "probe"]
    return bool(shutil.which("unshare")) and not subprocess.run(command).returncode


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _install() -> str:
    """What apt said last."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]
    apt += ["-o", "DPkg::Lock::Timeout=120"]  # tests/browser may be installing, too
    install = [*apt, "install", "-y", "--no-install-recommends", *PACKAGES]
    last = ""
    for command in (install, [*apt, "update"], install):
        if _missing():
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            last = f"{done.stdout}{done.stderr}".strip().rpartition("\n")[2]
    return last


def _write_files(folder: Path) -> None:
    ctld_port, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_PER_NODE}"
        f" Gres=gpu:{GPUS_PER_NODE}"
        for name, port in zip(NODES, ports, strict=True)
    )
    names = ",".join(NODES)
    host = socket.gethostname()
    first_job = 1000 + secrets.randbelow(60_000_000)  # MPICH's shared memory is named after jobs
    values = {"host": host, "ctld_port": ctld_port, "first_job": first_job, "names": names}
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, nodes=nodes, **values))
    gpus = f"{folder}/gpu[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text(f"NodeName={names} Name=gpu File={gpus}\n")
    for index in range(GPUS_PER_NODE):
        os.mknod(folder / f"gpu{index}", stat.S_IFCHR | 0o600, os.makedev(1, 3 + 2 * index))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _munged(folder: Path) -> list[str]:
    places = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "log-file": "munged.log",
        "pid-file": "munged.pid",
        "seed-file": "munged.seed",
    }
    return ["munged", "--force", *(f"--{key}={folder / name}" for key, name in places.items())]


def _slurmd(folder: Path, node: str) -> list[str]:
    """Starts the slurmd of a node with that node's host name."""
    inside = f"mount --bind {shlex.quote(str(folder / 'hosts'))} /etc/hosts"
    inside += f" && hostname {node} && exec slurmd -N {node}"
    return ["unshare", "--uts", "--mount", "sh", "-c", inside]


def _await_nodes(cluster: Cluster) -> None:
    def are_idle() -> bool:
        with suppress(RuntimeError):
            states = cluster.run("sinfo", "-h", "-N", "-o", "%t", cwd=cluster.folder).split()
            return states == ["idle"] * len(NODES)
        return False

    if not wait_until(are_idle, START_S):
        logs = "\n".join(path.read_text()[-2000:] for path in cluster.folder.glob("*.log"))
        stop(cluster.folder)
        raise RuntimeError(f"Slurm's nodes are not idle after {START_S:g} s\n{logs}")


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether `condition` came true within `limit_s`."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit("usage: python cluster.py start|stop FOLDER")
    if sys.argv[1] == "stop":
        stop(Path(sys.argv[2]).resolve())
    elif reason := why_not():
        sys.exit(reason)
    else:
        made = start(Path(sys.argv[2]).resolve())
        print(f"export SLURM_CONF={made.env['SLURM_CONF']}")
