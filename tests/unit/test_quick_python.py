"""The interpreter of the tests' own that starts within milliseconds ends, prints and is killed as a new one is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import wait_until

SCRIPT = """
import json, os, signal, sys
what, *rest = sys.argv[1:]
print(json.dumps([rest, os.getcwd(), os.environ["ONLY_HERE"], sys.stdin.read(), "torch" in sys.modules]), flush=True)
if what == "exits":
    sys.exit(int(rest[0]))
elif what == "says":
    sys.exit("a last word")
elif what == "raises":
    raise ValueError("odd")
elif what == "kills itself":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "hears":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
    open("ready", "w").write(str(os.getpid()))
    signal.pause()
"""


def start(python: Path | str, folder: Path, *words: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(SCRIPT)
    return subprocess.Popen(
        [str(python), *words],
        cwd=folder,
        env={**os.environ, "ONLY_HERE": "x", "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("way", [("program.py",), ("-u", "program.py"), ("-m", "program")], ids=" ".join)
@pytest.mark.parametrize(
    "what", [("ends",), ("exits", "3"), ("exits", "0"), ("says",), ("raises",), ("kills itself",)], ids=" ".join
)
def test_it_ends_and_prints_as_a_new_interpreter(quick_python, tmp_path, way, what):
    found, expected = [], []
    for python, told in ((quick_python, found), (sys.executable, expected)):
        with start(python, tmp_path / "folder", *way, *what) as process:
            out, err = process.communicate("given", timeout=60)
        told += [process.returncode, out.replace("true]", "false]"), err.strip().splitlines()[-1:]]
        assert ("true]" in out) == (python is quick_python)  # one of them has imported torch before
    assert found == expected


def test_any_other_flag_is_a_new_interpreter_s(quick_python, tmp_path):
    with start(quick_python, tmp_path, "-c", "import sys; print('torch' in sys.modules)") as process:
        assert process.communicate(timeout=60)[0] == "False\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 7), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_are_passed_on(quick_python, tmp_path, number, code):
    with start(quick_python, tmp_path, "program.py", "hears") as process:
        process.stdin.close()
        wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text())
        process.send_signal(number)
        assert process.wait(60) == code


def test_what_is_killed_leaves_nothing_behind(quick_python, tmp_path):
    with start(quick_python, tmp_path, "program.py", "hears") as process:
        process.stdin.close()
        wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text())
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    wait_until(lambda: not Path("/proc", (tmp_path / "ready").read_text()).exists())
