"""The JSON files of a run with values that no run writes: each is usable or refused in one short line, never a
traceback. Every value of every file is replaced by each of a table of others, removed, and given a neighbour."""

import copy
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows, save_state, tiny_config

from glioma_dist.config import TrainConfig
from glioma_dist.config.file import read_config, to_dict
from glioma_dist.errors import InputError, one_line
from glioma_dist.limits import MAX_CLASS_CHARACTERS, MAX_CLASSES
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.checkpoint_writer import file_entry
from glioma_dist.model.hub import model_card
from glioma_dist.model.manifest import MANIFEST, STATE
from glioma_dist.model.unet import build_model
from glioma_dist.training.metrics_file import MetricsFile, read_rows
from glioma_dist.training.resume import look
from glioma_dist.training.state import TrainState, read_scaler, read_train_state

DEEP = ("deep", "deeper", "deepest")
OTHERS: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**63, 10**30, 10**400, -0.5, 1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        "x",
        "x" * 100_000,
        "a\nb",
        "\0",
        "\ud800",
        "../../x",
        "é",
        [],
        [None],
        [[]],
        {},
        {"": None},
        {"a": {"b": 1}},
    ),
    *DEEP,
]
TEXTS = [
    *(b"", b"\n", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe\x00", bytes(1000), b"\xef\xbb\xbf{}", b"NaN"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500, b"9" * 5000, b'{"a": 1}{"a": 1}', b"\x1f\x8b\x08"),
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value in a document, from outside in."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutations(document: Any) -> Iterator[tuple[str, bytes]]:
    """Every change of one value, as text; and texts that are no document at all."""
    for number, text in enumerate(TEXTS):
        yield f"text {number}", text
    for path in places(document):
        for other in OTHERS:
            changed = copy.deepcopy(document)
            if path:
                parent = changed
                for key in path[:-1]:
                    parent = parent[key]
                parent[path[-1]] = other
            else:
                changed = other
            yield f"{path} = {str(other)[:20]!r}", encode(changed)
        if path:
            changed = copy.deepcopy(document)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            del parent[path[-1]]
            yield f"{path} removed", encode(changed)
            if isinstance(parent, dict):
                parent["x" * 1000] = 1
                yield f"a neighbour of {path}", encode(changed)


def encode(document: Any) -> bytes:
    text = json.dumps(document)
    for name, depth in zip(DEEP, (200, 950, 50_000), strict=True):
        text = text.replace(f'"{name}"', "[" * depth + "]" * depth)
    return text.encode()


def outcome(use, path: Path) -> str | None:
    """None where the file could be used; else the one line."""
    try:
        use()
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) <= 500, message[:200]
        assert str(path) in message, message
        assert not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", message), repr(message)
        return message
    return None


def check_settings(config: TrainConfig, path: Path) -> None:
    """Whether they could be trained with; what is wrong names the setting, and on the screen stands in one line."""
    assert isinstance(config, TrainConfig)
    try:
        config.validate()
    except InputError as error:
        raise InputError(f"{path}: {one_line(error, 300)}") from None


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """A run with one checkpoint of a network that is as small as can be."""
    out = tmp_path_factory.mktemp("made") / "run"
    out.mkdir()
    config = tiny_config(shards, out, decoder_channels=(2, 2, 2, 2, 2), clip_norm=1.0)
    model, _ = build_model(config.model, 0)
    optimizer = torch.optim.Adam(model.parameters())
    metadata = {"lineage": [{"data": "x", "licence": "CC0"}], "fingerprints": {"train": "a", "val": "b"}}
    scaler = {"scale": 65536.0, "_growth_tracker": 3}
    save_state(out / "last", config, TrainState(2, 0.5, 0.25, 1), model, optimizer, metadata, scaler=scaler)
    return replace(config, out=out)


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.out, tmp_path / "run")
    return replace(made, out=tmp_path / "run")


def test_every_change_of_state_json_is_usable_or_one_line(run):
    """With a manifest that fits, as a program would have written it."""
    last = run.out / "last"
    manifest, path = json.loads((last / MANIFEST).read_text()), last / STATE
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name != "optimizer.safetensors"}

    def use() -> None:
        checkpoint = Checkpoint.read(last)
        position = read_train_state(checkpoint)
        assert 0 <= position.step <= 10**12
        assert type(position.step) is type(position.evaluations_since_best) is int
        assert not math.isnan(position.best_loss)
        read_scaler(checkpoint)
        check_settings(checkpoint.config, path)
        assert model_card(checkpoint.config, checkpoint.metadata)

    refused = 0
    changes = list(mutations(json.loads(path.read_text())))
    assert len(changes) > 1000
    for name, text in changes:
        path.write_bytes(text)
        manifest["files"][STATE] = file_entry(path)
        (last / MANIFEST).write_text(json.dumps(manifest))
        try:
            refused += outcome(use, last) is not None
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error
    assert refused > len(changes) / 2


@pytest.mark.parametrize("step", [None, -1, 1.5, "2", True, 10**13, 10**400, [2]])
def test_a_step_that_is_none_is_named(run, step):
    last = run.out / "last"
    state = json.loads((last / STATE).read_text())
    state["position"]["step"] = step
    (last / STATE).write_text(json.dumps(state))
    manifest = json.loads((last / MANIFEST).read_text())
    manifest["files"][STATE] = file_entry(last / STATE)
    (last / MANIFEST).write_text(json.dumps(manifest))
    assert "position" in outcome(lambda: look(run), last / STATE)


def test_every_change_of_a_manifest_is_usable_or_one_line(run):
    path = run.out / "last" / MANIFEST
    content = json.loads(path.read_text())
    for entry in content["files"].values():  # a few tensors stand for all
        if "tensors" in entry:
            entry["tensors"] = dict(list(entry["tensors"].items())[:1])
    for name, text in mutations(content):
        path.write_bytes(text)
        try:
            outcome(lambda: Checkpoint.read(run.out / "last").check(), run.out / "last")
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error


def test_every_change_of_config_json_is_usable_or_one_line(run, tmp_path):
    path = tmp_path / "config.json"

    def use() -> None:
        check_settings(read_config(TrainConfig, path), path)

    for name, text in mutations(to_dict(run)):
        path.write_bytes(text)
        try:
            outcome(use, path)
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error


def test_every_change_of_a_row_of_metrics_is_usable_or_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [b'{"step": 1, "loss": 0.5}\n', b'{"step": 1, "split": "val", "epoch": 0, "dice": 0.5}\n']
    for name, text in mutations({"step": 1, "epoch": 0, "loss": 0.5, "dice": 0.5}):
        for lines in ([*rows, text + b"\n", *rows], [text + b"\n", *rows], [*rows, text]):
            path.write_bytes(b"".join(lines))
            try:
                message = outcome(lambda: MetricsFile(path, 1)._file.close(), path)
            except Exception as error:
                raise AssertionError(f"{name}: {error!r}") from error
            if message is not None:
                assert "is no row of metrics" in message
                assert "line 3" in message or "line 1" in message
                assert path.read_bytes() == b"".join(lines), "what is refused is left as it is"
            else:
                assert all(row["step"] <= 1 for _, row in read_rows(path))


def test_a_validation_with_the_most_and_longest_classes_is_read_again(tmp_path):
    names = [f"{number:03d}{'𓀀' * (MAX_CLASS_CHARACTERS - 3)}" for number in range(MAX_CLASSES)]
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as file:
        file.write(step=1, split="val", loss=1 / 3, dice_by_class=dict.fromkeys(names, 1 / 3))
        (row,) = file.unwritten or [row for _, row in read_rows(tmp_path / "metrics.jsonl")]
    assert list(row["dice_by_class"]) == names


def test_a_line_of_300_kb_is_refused_shortly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": "' + b"x" * 300_000 + b'"}\n')
    message = outcome(lambda: MetricsFile(path, 1), path)
    assert message.startswith(f"{path}: line 1 is no row of metrics")
    path.unlink()
    MetricsFile(path, 1)._file.close()  # the advice, to move the file away, works
    assert path.read_bytes() == b""


def test_a_run_without_its_metrics_can_be_told_so(run):
    (run.out / "metrics.jsonl").write_text('{"step": 2, "split": "val"}\n')
    assert look(run).checkpoint.step == 2


def test_tests_read_the_metrics_of_a_run_while_it_writes_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]
