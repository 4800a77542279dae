"""Saving for the hub and coming back; what the card says; nothing of the machine is told."""

import json
import re
import shutil
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from helpers import TINY_CHANNELS, save_state, tiny_config
from hub_server import REPOSITORY, serve_hub
from huggingface_hub import HfApi, ModelCard

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.file import to_dict
from glioma_dist.config.paths import Url, path_flags, path_marker, without_folders
from glioma_dist.errors import InputError
from glioma_dist.model import hub
from glioma_dist.model.checkpoint import Checkpoint
from glioma_dist.model.hub import PretrainedUNet, model_card
from glioma_dist.model.unet import build_model, load_model
from glioma_dist.training.state import TrainState

FILES = {"manifest.json", "model.safetensors", "state.json", "config.json", "README.md"}
LINEAGE = [
    {"weights": "ImageNet, nvidia/mit-b3", "licence": "NVIDIA Source Code License for SegFormer (non-commercial)"},
    {"data": "livecell", "licence": "CC BY-NC 4.0"},
    {"data": "ours", "licence": "CC0"},
]


@pytest.fixture
def best(tmp_path) -> Path:
    config = tiny_config(tmp_path / "secret" / "shards", tmp_path / "secret" / "run")
    model = build_model(config.model, 3)[0]
    config = replace(config, stage=tmp_path / "secret" / "stage")
    config = replace(config, model=replace(config.model, init=str(tmp_path / "secret" / "livecell" / "best")))
    save_state(tmp_path / "best", config, TrainState(step=7), model, None, {"lineage": LINEAGE})
    return tmp_path / "best"


def test_a_checkpoint_goes_to_the_hubs_form_and_comes_back(best, tmp_path):
    first = PretrainedUNet.from_pretrained(best)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("kept")
    first.save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "notes.txt"}
    second = PretrainedUNet.from_pretrained(tmp_path / "out")
    images = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))
    assert second.metadata["lineage"] == LINEAGE
    assert not second.training
    model, lineage = build_model(ModelConfig("mit_tiny", str(tmp_path / "out"), decoder_channels=TINY_CHANNELS), 0)
    assert torch.equal(model.decoder.head.weight, first.model.decoder.head.weight)
    assert lineage == LINEAGE


def test_an_older_card_of_ours_does_not_stay_with_another_network(best, tmp_path):
    network = PretrainedUNet.from_pretrained(best)
    card = tmp_path / "out" / "README.md"
    network.save_pretrained(tmp_path / "out")
    card.write_text(card.read_text().replace("livecell", "other cells"))
    network.save_pretrained(tmp_path / "out")
    assert "other cells" not in card.read_text()
    card.write_text("# Written by hand\n")
    network.save_pretrained(tmp_path / "out")
    assert card.read_text() == "# Written by hand\n"


def test_no_path_of_the_machine_goes_along(best, tmp_path):
    PretrainedUNet.from_pretrained(best).save_pretrained(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.*"):
        assert b"secret" not in path.read_bytes(), path
    assert Checkpoint.read(tmp_path / "out").config.data.train == ("train",)


def below(folder: Path, config):
    """A config whose every path lies in `folder`."""
    changes = {}
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, path = getattr(config, name), folder / f"the_{name}"
        if is_dataclass(value):
            changes[name] = below(folder, value)
        elif path_marker(hint) is not None:
            changes[name] = (str(path),) if isinstance(value, tuple) else str(path) if isinstance(value, str) else path
    return replace(config, **changes)


def test_of_every_path_of_a_training_only_the_name_stays(tmp_path):
    config = below(tmp_path / "secret", TrainConfig())
    told = json.dumps(to_dict(without_folders(config)))
    assert json.dumps(to_dict(config)).count("secret") == told.count('"the_') == len(path_flags(TrainConfig))
    assert "secret" not in told
    at_url = replace(config, out=Url("s3://secret/run"), data=replace(config.data, train=("s3://secret/a", "b")))
    bare = without_folders(at_url)
    assert (bare.out, bare.data.train) == (Path("run"), ("a", "b"))
    assert without_folders(bare) == bare
    assert without_folders(TrainConfig()).model.init == "random"


def test_it_is_had_from_the_hub_by_its_three_files(best, tmp_path, monkeypatch):
    asked = []

    def download(repository, name, **how):
        asked.append((repository, name, how["revision"]))
        return str(best / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", None)  # asks for config.json, too
    found = PretrainedUNet.from_pretrained("somebody/network", revision="v1")
    assert asked == [("somebody/network", name, "v1") for name in ("manifest.json", "state.json", "model.safetensors")]
    assert found.metadata["position"]["step"] == 7


def test_all_files_are_of_one_commit_also_if_another_comes_meanwhile(best, tmp_path, monkeypatch):
    commits = [letter * 40 for letter in "ab"]
    for commit in commits:
        shutil.copytree(best, tmp_path / "served" / commit)
    (tmp_path / "served" / commits[1] / "model.safetensors").write_bytes(b"of another network")
    newest = iter((commits[0], *[commits[1]] * 9))

    def download(_repository, name, revision, **_):
        commit = revision if revision in commits else next(newest)
        path = tmp_path / "cache" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "served" / commit / name)  # as the hub's cache does
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert PretrainedUNet.from_pretrained("somebody/network").metadata["position"]["step"] == 7
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {commits[0]}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("manifest.json", "this repository of the hub holds no whole network of glioma-dist"),
        ("state.json", "this repository of the hub holds no whole network of glioma-dist"),
        ("the repository", "the hub does not give it"),
        ("the connection", "is no folder here, is not in the hub's cache, and the hub does not give it"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(best, tmp_path, monkeypatch, missing, message):
    with serve_hub(monkeypatch) as served:
        served.files = {path.name: path.read_bytes() for path in best.iterdir() if path.name != missing}
        name = "lab/none" if missing == "the repository" else REPOSITORY
        options = {"cache_dir": tmp_path / "cache", "local_files_only": missing == "the connection"}
        with pytest.raises(InputError, match=f"^{name}: {message} \\(.+\\)$") as caught:
            PretrainedUNet.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lab/cells", "a--b/c", "lab/none"])
def test_what_the_hub_does_not_take_is_one_line(monkeypatch, name):
    with serve_hub(monkeypatch), pytest.raises(InputError, match=f"^{name}: the hub does not take it") as caught:
        PretrainedUNet.from_pretrained("t98g-small").push_to_hub(name)
    assert "\n" not in str(caught.value)


CONTENTS = ["{", "[]", "3", "null", '{"model": 3, "config": {"a": 1}}', "\xff", "[" * 100_000]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content[:20])
def test_config_json_which_holds_nothing_of_the_network_is_not_read(best, content, caplog):
    (best / "config.json").write_bytes(content.encode("latin1"))
    PretrainedUNet.from_pretrained(best)
    (best / "config.json").unlink()
    PretrainedUNet.from_pretrained(best)
    assert not caplog.records


def test_an_option_that_is_none_is_refused(best):
    with pytest.raises(TypeError, match="raw_weights"):
        PretrainedUNet.from_pretrained(best, raw_weights=True)


def test_a_checkpoint_whose_write_was_killed_between_its_renames_is_found(best):
    best.rename(best.with_name("best.1"))
    assert PretrainedUNet.from_pretrained(best).metadata["position"]["step"] == 7


@pytest.mark.parametrize("name", ["runs/missing/best", "missing", "/missing/best", "../best", "a--b/c", "a/b.git", ""])
def test_what_is_neither_a_folder_nor_a_name_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{name}: no such folder; give .* one of .*t98g-small") as caught:
        PretrainedUNet.from_pretrained(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/", ".", "x" * 300, "a\0b"])
def test_what_can_be_no_checkpoint_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for load in (PretrainedUNet.from_pretrained, load_model):
        with pytest.raises(InputError, match=f"^{name}: ") as caught:
            load(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [".", "below", "x" * 300, "config.json", "README.md", "state.json", "manifest.json"])
def test_where_it_cannot_be_saved_is_one_line_and_nothing_of_it_stays(tmp_path, place):
    out = tmp_path / "out"
    if "." in place[1:]:
        (out / place / "full").mkdir(parents=True)
    else:
        out.write_text("a file")
    target = out if "." in place[1:] else tmp_path / place if place.startswith("x") else out / place
    with pytest.raises(InputError, match=re.escape(str(out if target.parent == out else target))) as caught:
        PretrainedUNet.from_pretrained("t98g-small").save_pretrained(target)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("step", ["write_checkpoint", "write_json_atomically", "write_atomically"])
def test_two_processes_that_save_the_same_network_leave_it_whole(tmp_path, monkeypatch, step):
    """As those of a launch do if nobody tells all but the first not to: one saves it within a step of another."""
    network, original = PretrainedUNet.from_pretrained("t98g-small"), getattr(hub, step)
    within = []

    def step_of_one(*arguments, **how):
        if not within:
            within.append(True)
            network.save_pretrained(tmp_path / "out")
            (tmp_path / "out" / "config.json").unlink()  # as another does when it begins
        original(*arguments, **how)
        if len(within) == 1:
            within.append(True)
            network.save_pretrained(tmp_path / "out")

    monkeypatch.setattr(hub, step, step_of_one)
    network.save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"encoder": "mit_tiny"}
    PretrainedUNet.from_pretrained(tmp_path / "out")


def test_a_network_that_could_not_be_read_again_is_not_written(best, tmp_path):
    network = PretrainedUNet.from_pretrained(best)
    network.model.decoder.head.bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"not finite \(1 tensor, the first is decoder\.head\.bias\)"):
        network.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pushing_sends_the_same_folder(best, monkeypatch):
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, repo_id, **__: type("Made", (), {"repo_id": repo_id}))

    def upload(_self, *, folder_path, repo_id, **_):
        sent[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return "done"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    with pytest.warns(UserWarning, match="not for commercial use"):
        assert PretrainedUNet.from_pretrained(best).push_to_hub("somebody/network") == "done"
    files = sent["somebody/network"]
    assert files.keys() == FILES
    assert json.loads(files["state.json"])["lineage"] == LINEAGE


def test_the_card_prints_the_lineage_and_its_licences(best):
    checkpoint = Checkpoint.read(best)
    card = ModelCard(model_card(checkpoint.config, checkpoint.metadata))
    assert card.data.license == "other"
    assert card.data.pipeline_tag == "image-segmentation"
    for entry in LINEAGE:
        kind = "weights" if "weights" in entry else "data"
        assert f"| {kind} | {entry[kind]} | {entry['licence']} |" in card.text
    assert "**Not for commercial use**: NVIDIA Source Code License" in card.text
    assert "; CC BY-NC 4.0." in card.text
    named = PretrainedUNet(None, checkpoint.config, {"lineage": [{"data": "k\udcf6ln", "licence": "CC0"}]})
    assert "| data | k" in named.generate_model_card().text
    free = model_card(checkpoint.config, {"lineage": LINEAGE[2:]})
    assert "Not for commercial use" not in free
    assert "Not recorded" in model_card(checkpoint.config, {})
    assert r"| data | a\|b | CC0 |" in model_card(checkpoint.config, {"lineage": [{"data": "a|b", "licence": "CC0"}]})


def test_who_uploads_a_network_is_warned_of_non_commercial_data(best, monkeypatch):
    uploaded = []
    monkeypatch.setattr("huggingface_hub.ModelHubMixin.push_to_hub", lambda self, name: uploaded.append(name))
    network = PretrainedUNet.from_pretrained(best)
    with pytest.warns(UserWarning, match=r"not for commercial use.*livecell: CC BY-NC 4\.0\)"):
        network.push_to_hub("lab/network")
    network.metadata["lineage"] = LINEAGE[2:]
    network.push_to_hub("lab/network")  # a warning would be an error here
    assert uploaded == ["lab/network"] * 2
