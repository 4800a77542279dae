"""An interpreter that starts within milliseconds: `python -m MODULE …` or `python SCRIPT …`, in a process that is
forked from one that has imported the libraries.

For tests of programs that start others (benchmarks, launchers), where what the others do is tested and not that they
are new interpreters. What starts them is given the path of a small script as its `sys.executable` (the fixture
`quick_python`). It sends its arguments, environment, folder and streams to a server, passes signals on, and ends as the
forked process ends. If it is killed, so is the forked process with all of its group. For `-c` and any other flag it
becomes a new interpreter.
"""

import json
import os
import signal
import socket
import sys

MOST_BYTES = 2**17
"""Of a request: a packet."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def write_script(path: str, address: str) -> None:
    """Write the program that asks the server at a socket's address."""
    tests = os.path.dirname(os.path.abspath(__file__))
    lines = (
        f"#!{sys.executable} -IS",
        "import sys",
        f"sys.path.insert(0, {tests!r})",
        "import quick_python",
        f"quick_python.ask({address!r}, {sys.executable!r}, sys.argv)",
    )
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    os.chmod(path, 0o755)


def ask(address: str, python: str, argv: list[str]) -> None:
    """Be the process that was started: have the work done, and end as it ends."""
    words = argv[2:] if argv[1:2] == ["-u"] else argv[1:]
    if not words or (words[0].startswith("-") and words[0] != "-m"):
        os.execv(python, [python, *argv[1:]])
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    request = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "executable": argv[0]}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(server.recv(64))
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(server.recv(64) or 1)  # nothing: the server was lost
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str) -> None:
    """Fork for each request, until this process is killed, or the tests' own is lost. Call it in a process that has
    imported the libraries."""
    import multiprocessing
    import select
    from contextlib import suppress

    tests = multiprocessing.parent_process().sentinel

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    poll, running, clients = select.poll(), {}, {}
    poll.register(listener, select.POLLIN)
    poll.register(tests, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == tests:
                for pid, _ in running.values():
                    _kill_group(pid)
                return
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                data, streams, _, _ = socket.recv_fds(client, MOST_BYTES, 3)
                if not data:  # it was killed before it asked
                    client.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for other in (listener, client, *(each for each, _ in clients.values())):
                        other.close()
                    for other in running:
                        os.close(other)
                    _become(json.loads(data), streams)
                for stream in streams:
                    os.close(stream)
                client.send(str(pid).encode())
                running[end := os.pidfd_open(pid)] = (pid, client)
                clients[client.fileno()] = (client, pid)
                poll.register(end, select.POLLIN)
                poll.register(client, select.POLLIN)
            elif descriptor in clients:  # it says nothing, so it has ended
                poll.unregister(descriptor)
                _kill_group(clients[descriptor][1])
            elif descriptor in running:
                pid, client = running.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):  # it has ended before
                    client.send(str(code).encode())
                del clients[client.fileno()]
                with suppress(KeyError):
                    poll.unregister(client)
                client.close()


def _kill_group(pid: int) -> None:
    from contextlib import suppress

    for kill in (os.killpg, os.kill):  # the group may not be there yet
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _become(request: dict, streams: list[int]) -> None:
    """Do what a new interpreter would do, and end as it would."""
    import runpy
    import tempfile

    from fork_server import end_after

    os.setsid()
    for number in PASSED_ON:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    os.chdir(request["folder"])
    sys.executable = request["executable"]
    words = request["words"]
    paths = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]

    def work() -> None:
        if words[0] == "-m":
            sys.path[:0] = [request["folder"], *paths]
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:0] = [os.path.dirname(os.path.abspath(words[0])), *paths]
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")

    end_after(work)
