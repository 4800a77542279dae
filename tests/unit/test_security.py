"""docs/security.md: every test that a promise names is there, and what no other file tests."""

import re
import socket
import sys
from pathlib import Path

import cv2
import pytest
from helpers import REPOSITORY, draw_sample, run, tiny_config

from glioma_dist.distributed.launcher import check_launch_file
from glioma_dist.errors import InputError

PAGE = REPOSITORY / "docs" / "security.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ADDRESSES = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
"""What Python tells an audit hook before a program reaches another machine."""


def test_every_promise_names_tests_and_each_of_them_is_there():
    text = PAGE.read_text()
    named = TEST.findall(text)
    assert len(named) > 20
    gone = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(
            rf"^def {name}\(", (REPOSITORY / path).read_text() if (REPOSITORY / path).is_file() else "", re.M
        )
    ]
    assert gone == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| From strangers |")]
    assert len(rows) > 8
    assert [row for row in rows if not TEST.search(row)] == []


def test_a_launch_file_runs_no_program(tmp_path):
    file, trap = tmp_path / "launch.yaml", tmp_path / "trap"
    file.write_text(f"compute_environment: !!python/object/apply:os.system ['touch {trap}']\n")
    with pytest.raises(InputError, match="no file of accelerate's settings"):
        check_launch_file("--launch", file)
    assert not trap.exists()


def note_connections() -> list[str]:
    """A list to which each address is added that anything in this process asks for from now on."""
    asked = []

    def note(event: str, arguments: tuple) -> None:
        if event not in ADDRESSES:
            return
        address = arguments[0] if event.startswith("socket.get") else arguments[-1]
        if event.startswith("socket.get") or not isinstance(address, str | bytes):  # else: a socket that is a file
            asked.append(f"{event} {address}")

    sys.addaudithook(note)
    return asked


def train_and_predict(config, images: str, out: Path) -> list[str]:
    """Train and predict in this process. Returns the addresses that anything in it asked for."""
    asked = note_connections()
    from glioma_dist.config import PredictConfig
    from glioma_dist.inference.predict import predict
    from glioma_dist.training.loop import train

    train(config)
    predict(PredictConfig(checkpoint=config.out / "last", images=images, out=out))
    return asked


def test_training_and_prediction_open_no_connection(shards, tmp_path):
    """What names no URL: in one process, because several connect to each other."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), draw_sample(0).image)
    config = tiny_config(shards, tmp_path / "run", max_steps=1)
    environment = {"HF_HUB_OFFLINE": "0"}
    (asked,) = run(train_and_predict, config, str(tmp_path / "images"), tmp_path / "masks", environment=environment)
    assert asked == []


def connect_to_nobody() -> list[str]:
    """As a library does that looks for a newer version."""
    asked = note_connections()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", 9), timeout=5):
        pass
    return asked


def test_a_connection_would_be_noticed():
    (asked,) = run(connect_to_nobody)
    assert [each for each in asked if "127.0.0.1" in each]
