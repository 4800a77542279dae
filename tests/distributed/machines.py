"""Machines for tests: network namespaces with addresses and host names, on one switch whose ports can fail.

Needs root, Linux and iproute2. `Network.skip_reason` says what is missing.
"""

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
from pathlib import Path

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
"""From Linux's sched.h."""
MACHINES = A, B = ("machine-a", "machine-b")
PORT = 29500
"""All ports of a machine that was made for a test are free."""
_numbers = itertools.count()
IN_MACHINE = 'echo "$1" > /proc/sys/kernel/hostname && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def ip(*words: object) -> str:
    """Run iproute2's `ip`. Raises CalledProcessError with what it said."""
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"ip {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """A switch and the machines on it. Use as a context; folder: for the machines' /etc/hosts."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = names
        self._prefix = f"gd{os.getpid():x}-{next(_numbers)}"
        self._hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in names)]
        self._hosts.write_text("\n".join(lines) + "\n")

    @staticmethod
    def skip_reason() -> str | None:
        """Why this system can have no such machines; None where it can."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
        if missing:
            return f"not on PATH: {', '.join(missing)} (Debian's iproute2 and util-linux)"
        name = f"gd{os.getpid():x}-probe"
        try:
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "br0", "type", "bridge")
        except OSError as error:
            return f"network namespaces cannot be made: {error}"
        finally:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        return None

    def __enter__(self) -> "Network":
        try:
            self._make(self._switch)
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            for number, name in enumerate(self.names):
                self._make(self._namespace(name))
                port, end = ("name", f"port{number}", "netns", self._switch), ("name", "eth0", "netns")
                ip("link", "add", *port, "type", "veth", "peer", *end, self._namespace(name))
                ip("-n", self._namespace(name), "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
                ip("-n", self._namespace(name), "link", "set", "eth0", "up")
                ip("-n", self._switch, "link", "set", f"port{number}", "master", "br0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*map(self._namespace, self.names), self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _make(self, namespace: str) -> None:
        ip("netns", "add", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def address(self, name: str) -> str:
        """The machine's address, the first one's 10.77.0.1."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def add_router(self, name: str) -> None:
        """Give a machine a way to all other addresses."""
        ip("-n", self._namespace(name), "route", "add", "default", "via", "10.77.0.254")

    def enter(self, name: str) -> None:
        """Move this process into a machine: its network and its host name."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self._namespace(name)}", "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
                raise OSError(ctypes.get_errno(), "cannot enter the namespace")
        socket.sethostname(name)

    def start(self, name: str, command: list[str], output: Path, **how: object) -> subprocess.Popen:
        """Start a command on a machine, as its first process: if the returned one is killed, all of the machine's are.

        output: a file for what it says.
        """
        spaces = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        start = ["ip", "netns", "exec", self._namespace(name), *spaces, "sh", "-c", IN_MACHINE, "sh", name]
        with output.open("a") as file:
            return subprocess.Popen([*start, str(self._hosts), *command], stdout=file, stderr=file, **how)

    def unplug(self, name: str) -> None:
        """Drop everything from and to a machine. Nobody is told: both sides still have a carrier."""
        ip("-n", self._switch, "link", "set", f"port{self.names.index(name)}", "nomaster")

    def plug(self, name: str) -> None:
        """Undo `unplug`."""
        ip("-n", self._switch, "link", "set", f"port{self.names.index(name)}", "master", "br0")

    def set_link(self, name: str, state: str) -> None:
        """Switch a machine's own link "down", which its system notices, or "up"."""
        ip("-n", self._namespace(name), "link", "set", "eth0", state)
