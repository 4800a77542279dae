"""Exact moments of a run, from outside it: the system calls with which it opens, writes, syncs and renames files.

The kernel holds each such call of a run until this module answers (seccomp's user notification, Linux 5.5 and later),
so that a test can send a signal, fill the disk, remove a folder, or answer with an error instead of the call, at the
n-th write of a certain file, whatever library makes the call. The run's code is not touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import platform
import select
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

OPEN_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Numbers of the system calls, from Linux's arch/x86/entry/syscalls/syscall_64.tbl: what it is called here, and where
# its path is: the number of the argument, and of that of the folder that it is relative to.
BY_PATH = {
    257: ("open", 1, 0),
    2: ("open", 0, None),
    82: ("rename", 1, None),
    264: ("rename", 3, 2),
    316: ("rename", 3, 2),
    83: ("mkdir", 0, None),
    258: ("mkdir", 1, 0),
    87: ("remove", 0, None),
    263: ("remove", 1, 0),
    84: ("remove", 0, None),
    86: ("link", 1, None),
    265: ("link", 3, 2),
}
BY_DESCRIPTOR = {
    1: ("write", 0),
    18: ("write", 0),
    20: ("write", 0),
    40: ("write", 0),
    326: ("write", 2),
    74: ("sync", 0),
    75: ("sync", 0),
    77: ("truncate", 0),
    285: ("allocate", 0),
}
OPEN_FLAGS_ARGUMENT = {257: 2, 2: 1}
AUDIT_ARCH_X86_64 = 0xC000003E
SYS_SECCOMP, SECCOMP_SET_MODE_FILTER = 317, 1
FILTER_FLAG_NEW_LISTENER, FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
RET_ALLOW, RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
NOTIF_BYTES, FLAG_CONTINUE = 80, 1
AT_FDCWD = -100
LD_W_ABS, JEQ_K, RET_K = 0x20, 0x15, 0x06
PR_SET_NO_NEW_PRIVS = 38
WRITES = frozenset({"write", "rename", "mkdir", "sync", "truncate", "allocate", "link"})
"""Calls that a full disk can fail; an `open` that makes a file is one too."""


def install_filter() -> int:
    """Have the kernel hold this process's file calls, and its children's. Returns the listener's descriptor."""
    numbers = [*BY_PATH, *BY_DESCRIPTOR]
    program = [(LD_W_ABS, 0, 0, 4), (JEQ_K, 1, 0, AUDIT_ARCH_X86_64), (RET_K, 0, 0, RET_ALLOW), (LD_W_ABS, 0, 0, 0)]
    program += [(JEQ_K, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(RET_K, 0, 0, RET_ALLOW), (RET_K, 0, 0, RET_USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    flags = FILTER_FLAG_NEW_LISTENER | FILTER_FLAG_WAIT_KILLABLE_RECV
    libc.syscall.restype = ctypes.c_long
    listener = libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, ctypes.c_ulong(flags), whole)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def can_be_held() -> bool:
    """Whether this machine's kernel and processor are those that the numbers above are of."""
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            return platform.machine() == "x86_64" and "user_notif" in file.read()
    except OSError:
        return False


@dataclass(frozen=True)
class FileCall:
    """A call that a run is about to make. kind: open, write, rename, mkdir, remove, link, sync, truncate or allocate.
    path: the file's, of a rename the new name's. makes: whether it writes."""

    kind: str
    path: str
    pid: int
    makes: bool


@dataclass
class Moment:
    """The `number`-th call, from 1, of a kind on a path, and what happens instead of it or before it.

    then: an errno, with which the call fails; a signal, sent to the process that calls; or a function of the call.
    again: also at every later such call.
    after: a call that comes first; those before it are not counted. Nothing happens at it.
    """

    kind: str
    path: str
    """A pattern of shell kind, as */val/*.tar."""
    then: int | signal.Signals | Callable[[FileCall], int | None]
    number: int = 1
    again: bool = False
    after: Moment | None = None
    seen: int = 0
    happened: threading.Event = field(default_factory=threading.Event)

    def meets(self, call: FileCall) -> bool:
        if self.after is not None:
            if self.after.meets(call):
                self.after = None
            return False
        if self.kind not in (call.kind, "any") and not (self.kind == "makes" and call.makes):
            return False
        if not fnmatch.fnmatch(call.path, self.path):
            return False
        self.seen += 1
        return self.seen == self.number or (self.again and self.seen > self.number)

    def act(self, call: FileCall) -> int:
        """Returns the errno to fail the call with, or 0."""
        try:
            if isinstance(self.then, signal.Signals):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(call.pid, self.then)
                return 0
            return self.then if isinstance(self.then, int) else self.then(call) or 0
        finally:
            self.happened.set()


class Supervisor(threading.Thread):
    """Answers a run's file calls. `calls` lists those below `folder` in their order."""

    def __init__(self, listener: int, moments: list[Moment], folder: str) -> None:
        super().__init__(daemon=True)
        self.listener, self.moments, self.folder = listener, moments, folder
        self.calls: list[FileCall] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        try:
            while True:
                ((_, event),) = poll.poll()
                if not event & select.POLLIN:
                    return  # nobody is left who could call
                self._answer()
        except BaseException as error:
            self.failure = error
        finally:
            os.close(self.listener)  # calls that wait are answered with ENOSYS

    def _answer(self) -> None:
        buffer = bytearray(NOTIF_BYTES)
        try:
            fcntl.ioctl(self.listener, NOTIF_RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # it was killed meanwhile
            raise
        number, pid, _, syscall, _, _, *arguments = struct.unpack("=QIIiIQ6Q", buffer)
        code = 0
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            code = self._decide(_describe(pid, syscall, arguments))
        reply = bytearray(struct.pack("=QqiI", number, 0, -code, 0 if code else FLAG_CONTINUE))
        try:
            fcntl.ioctl(self.listener, NOTIF_SEND, reply)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _decide(self, call: FileCall) -> int:
        if call.path.startswith(self.folder):
            self.calls.append(call)
        for moment in self.moments:
            if moment.meets(call):
                return moment.act(call)
        return 0


def _describe(pid: int, syscall: int, arguments: list[int]) -> FileCall:
    if syscall in BY_DESCRIPTOR:
        kind, place = BY_DESCRIPTOR[syscall]
        path = os.readlink(f"/proc/{pid}/fd/{arguments[place] & 0xFFFFFFFF}")
        return FileCall(kind, path, pid, path.startswith("/"))
    kind, place, folder = BY_PATH[syscall]
    path = _read_text(pid, arguments[place])
    if not path.startswith("/"):
        number = AT_FDCWD if folder is None else ctypes.c_int32(arguments[folder] & 0xFFFFFFFF).value
        base = os.readlink(f"/proc/{pid}/cwd" if number == AT_FDCWD else f"/proc/{pid}/fd/{number}")
        path = os.path.join(base, path)
    makes = kind in WRITES
    if kind == "open":
        makes = bool(arguments[OPEN_FLAGS_ARGUMENT[syscall]] & OPEN_WRITE_FLAGS)
    return FileCall(kind, os.path.normpath(path), pid, makes)


def _read_text(pid: int, address: int) -> str:
    """The zero-terminated text at an address of another process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            # Page by page: the next may not be there.
            part = os.pread(memory.fileno(), 4096 - (address + len(text)) % 4096, address + len(text))
            if not part:
                break
            text += part
    return os.fsdecode(text.split(b"\0")[0])
