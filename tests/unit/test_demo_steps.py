"""The demo's commands are this program's, they stop where one fails, and a child ends with its parent."""

import shlex
import signal
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from glioma_dist.cli.arguments import parse
from glioma_dist.cli.demo import DEMO, DemoConfig, drawing_flags
from glioma_dist.cli.program import COMMANDS
from glioma_dist.demo.steps import choose_launch_file, demo_steps, run_steps
from glioma_dist.distributed.children import run_child
from glioma_dist.errors import InputError


def steps(config: DemoConfig, out: Path) -> list[list[str]]:
    return demo_steps(out, drawing_flags(config), [], choose_launch_file())


@pytest.mark.parametrize("config", [DemoConfig(), DemoConfig(seed=3, glioma=(4, 2, 2))])
def test_every_step_can_be_typed(config, tmp_path):
    names = []
    for typed in steps(config, tmp_path / "de mo"):
        assert shlex.split(shlex.join(typed)) == typed
        if typed[0] == "accelerate":
            assert (REPOSITORY / typed[typed.index("--config_file") + 1]).is_file()
            typed = ["glioma-dist", *typed[typed.index("glioma_dist") + 1 :]]
        name = next(name for name in COMMANDS if typed[1 : 1 + len(name.split())] == name.split())
        parsed = parse(COMMANDS[name].load().config, typed[1 + len(name.split()) :])
        if name == "demo":
            assert parsed.draw_only
            assert (parsed.seed, parsed.livecell, parsed.glioma) == (config.seed, config.livecell, config.glioma)
        names.append(name)
    assert names == ["demo", "convert livecell", "convert glioma-c6", "train", "evaluate", "predict"]


def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path, capfd):
    failing = ["glioma-dist", "merge", "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]
    never = ["glioma-dist", "configs"]
    with pytest.raises(InputError, match=r"merge --checkpoint .* ended with exit code 2"):
        run_steps([failing, never])
    printed = capfd.readouterr()
    assert printed.out == f"\n$ {shlex.join(failing)}\n"
    assert printed.err.startswith("error: --checkpoint ")


def test_the_demo_without_a_flag_is_that_of_the_makefile():
    assert parse(DEMO.config, []) == DemoConfig(out=Path("runs/demo"))
    assert "glioma-dist demo --out $(DEMO)" in (REPOSITORY / "Makefile").read_text()


CHILD = """
import signal, sys, time
def save(*_):
    open(sys.argv[1], "w").write("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


def test_a_child_is_asked_to_stop_and_may_save_its_work(tmp_path):
    """Where this process is interrupted while it waits."""

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        if (tmp_path / "x.ready").exists():
            raise StopError
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(StopError):
            run_child([sys.executable, "-c", CHILD, str(tmp_path / "x")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "x").read_text() == "saved"


def test_the_exit_code_and_the_words_of_a_child(tmp_path):
    with (tmp_path / "log").open("w") as log:
        code = run_child([sys.executable, "-c", "import sys; print('said'); sys.exit(4)"], output=log)
    assert code == 4
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.mark.parametrize("num_images", [1, 3])
def test_fewer_images_than_a_batch_are_refused_before_anything_is_drawn(num_images):
    words = ["--glioma", str(num_images), "1", "1"]
    with pytest.raises(InputError, match="a batch has 4 images; give 4 or more"):
        parse(DEMO.config, words)
    assert parse(DEMO.config, [*words, "--draw-only"]).glioma == (num_images, 1, 1)
    training = next(each for each in steps(DemoConfig(), Path("x")) if "train" in each)
    assert training[training.index("--batch-size") + 1] == "4"


@pytest.mark.parametrize("draw_only", [True, False])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_drawn(draw_only, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"^--out {out}: "):
            DEMO.check(DemoConfig(out=out, draw_only=draw_only))
