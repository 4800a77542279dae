"""A SLURM of this machine for tests: munged, slurmctld and a slurmd for each node, all in one folder."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from helpers import free_port

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
PLACES = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
SECONDS_TO_RUN_AGAIN = 5
"""After a requeue; SLURM's own are 120. It is how long a credential is valid."""
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={again}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=30
InactiveLimit=0
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can be one."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
    return f"no {lacking[0]}: apt-get install slurmctld slurmd slurm-client munge" if lacking else None


class Cluster:
    """Use as a context. `nodes`: names of this machine, each a node of two cores and two GPUs that are not there."""

    def __init__(self, folder: Path, nodes: tuple[str, ...] = ("localhost",)) -> None:
        self.folder, self.nodes, self.daemons = folder, nodes, []
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{PLACES}",
        }
        self.environment = {name: text for name, text in self.environment.items() if not name.startswith("SBATCH_")}

    def __enter__(self) -> "Cluster":
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        lines = [
            f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={node} Port={free_port()} CPUs=2 Gres=gpu:2 State=UNKNOWN"
            for node in self.nodes
        ]
        text = CONF.format(
            host=socket.gethostname(),
            port=free_port(),
            folder=self.folder,
            again=SECONDS_TO_RUN_AGAIN,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(text)
        for number in range(2):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        key = self.folder / "munge.key"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], env=self.environment, check=True)
        names = {"key-file": key, **{f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}}
        words = [f"--{name}={path}" for name, path in {**names, "socket": self.folder / "munge.socket"}.items()]
        try:
            self._start("munged", "--foreground", "--force", *words)
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            for node in self.nodes:
                self._start("slurmd", "-D", "-N", node)
            self._wait(lambda: self.ask("sinfo", "--noheader", "--format=%T %D") == f"idle {len(self.nodes)}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for job in re.findall(r"\d+", self.ask("squeue", "--noheader", "--format=%A")):
            self.ask("scancel", job)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, *command: str) -> None:
        log = open(self.folder / f"{command[0]}.out", "ab")  # noqa: SIM115 (the daemon's)
        self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))
        log.close()

    def _wait(self, condition, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.logs()
            assert all(each.poll() is None for each in self.daemons), self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.[lo][ou][gt]"))
        )

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints; nothing where it fails."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        ).stdout.strip()

    def submit(self, folder: Path, *words: str, **variables: str) -> str:
        """The number of a new job, submitted in `folder`."""
        command = ["sbatch", "--parsable", *words]
        ended = subprocess.run(
            command, cwd=folder, env={**self.environment, **variables}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def wait_for(self, number: str, what: str, condition, seconds: float = 400) -> dict[str, str]:
        """Until `condition(job)` holds."""
        until = time.monotonic() + seconds
        while not condition(job := self.job(number)):
            assert time.monotonic() < until, f"{what}: {job}\n{self.logs()}"
            time.sleep(0.3)
        return job
