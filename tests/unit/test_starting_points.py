"""Starting weights by what a user has: a repository of the hub, in the cache or behind a server; a file; its URL.

What is loaded is compared with the network that was saved. Without a network, one line comes in time."""

import functools
import gc
import hashlib
import http.server
import json
import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoder_helpers import narrow
from helpers import TINY_CHANNELS
from huggingface_hub import constants
from safetensors.torch import save_file
from test_weights import DeadServer

from glioma_dist.cli.inputs import check_init
from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.config.networks import hub_name
from glioma_dist.data import remote_weights
from glioma_dist.errors import InputError, RunError
from glioma_dist.model.checkpoint_writer import write_checkpoint
from glioma_dist.model.hub import PretrainedUNet
from glioma_dist.model.pretrained import download, starting_points
from glioma_dist.model.pretrained.weight_files import read_weights
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.training.launch_and_data import with_local_weights

COMMIT = "c" * 40


class Hub(http.server.SimpleHTTPRequestHandler):
    """A hub of one machine: /ORG/NAME/resolve/REVISION/FILE, and whatever else lies in its folder."""

    def send_head(self):
        self.path = re.sub(r"/resolve/[^/]+/", "/", self.path)
        self.server.asked.append((self.command, self.path))
        if not Path(self.translate_path(self.path)).is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return super().send_head()

    def end_headers(self):
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:40]}"')
            self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder that a server of this machine shows."""
    root = tmp_path / "served"
    root.mkdir()
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, directory=str(root)))
    found.root, found.asked, found.url = root, [], f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def use_hub(monkeypatch, url: str, cache: Path | None = None) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if cache is not None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        load = functools.partial(download.hf_hub_download, cache_dir=cache)
        monkeypatch.setattr(download, "hf_hub_download", load)
        seek = functools.partial(download.try_to_load_from_cache, cache_dir=cache)
        monkeypatch.setattr(download, "try_to_load_from_cache", seek)


def config_of(encoder: str = "mit_tiny", init: object = "random", **others) -> ModelConfig:
    return ModelConfig(encoder=encoder, init=str(init), decoder_channels=TINY_CHANNELS, **others)


def same_weights(a: UNet, b: UNet, prefix: str = "") -> bool:
    ours = b.state_dict()
    return all(torch.equal(tensor, ours[name]) for name, tensor in a.state_dict().items() if name.startswith(prefix))


CARD = "---\nlicense: cc-by-4.0\ntags:\n- x\n---\n# Network\nlicense: another\n"
LINEAGE = [{"data": "drawn", "licence": "CC0-1.0"}]


def save(kind: str, folder: Path) -> tuple[UNet, list[dict[str, str]], str]:
    """Save a network as others publish it. Returns it, the lineage that a start from it has, and which of its tensors
    are in what was saved."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    if kind == "checkpoint":
        model = build_model(config_of(), 5)[0]
        PretrainedUNet(model, TrainConfig(model=config_of()), {"lineage": LINEAGE}).save_pretrained(folder)
        return model, LINEAGE, ""
    model = build_model(config_of("resnet50"), 5)[0]
    source = f"org/{kind} of the Hugging Face hub, commit {COMMIT[:12]}"
    if kind == "encoder":
        save_file(
            {name.removeprefix("body."): each for name, each in model.encoder.state_dict().items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
        return model, [{"weights": f"encoder weights, {source}", "licence": "cc-by-4.0"}], "encoder."
    save_file(smp_names(model), folder / "model.safetensors")
    settings = {"encoder_name": "resnet50", "decoder_interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps(settings))
    text = f"segmentation_models.pytorch checkpoint model.safetensors, {source}"
    return model, [{"weights": text, "licence": "cc-by-4.0"}], ""


def smp_names(model: UNet) -> dict[str, torch.Tensor]:
    """A network's weights by the names of segmentation_models.pytorch's U-Net."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("encoder.body.", "encoder.").replace("decoder.head.", "segmentation_head.0.")
        name = re.sub(
            r"(blocks\.\d+)\.(conv|norm)([12])\.", lambda m: f"{m[1]}.conv{m[3]}.{int(m[2] == 'norm')}.", name
        )
        name = re.sub(r"center\.(conv|norm)([12])\.", lambda m: f"center.{int(m[2]) - 1}.{int(m[1] == 'norm')}.", name)
        renamed[name] = tensor.contiguous()
    return renamed


@pytest.mark.parametrize("kind", ["checkpoint", "smp", "encoder"])
def test_a_repository_of_the_hub_gives_what_it_holds_and_then_needs_no_network(kind, server, tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50")
    use_hub(monkeypatch, server.url)
    saved, lineage, prefix = save(kind, server.root / "org" / kind)
    encoder = "mit_tiny" if kind == "checkpoint" else "resnet50"
    for init in (f"org/{kind}", f"hf://org/{kind}"):
        model, told = build_model(config_of(encoder, init), 1)
        assert same_weights(saved, model, prefix)
        assert told == lineage
        assert not same_weights(saved, build_model(config_of(encoder), 1)[0], prefix)
    number = len(server.asked)
    use_hub(monkeypatch, "http://127.0.0.1:9")  # where nobody listens
    started = time.monotonic()
    model, told = build_model(config_of(encoder, f"org/{kind}"), 1)
    assert same_weights(saved, model, prefix)
    assert told == lineage
    assert len(server.asked) == number
    assert time.monotonic() - started < 60  # and not the minutes of the client's retries


@pytest.mark.parametrize("kind", ["checkpoint", "smp", "encoder"])
def test_all_files_are_of_one_commit_also_if_another_comes_meanwhile(kind, tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50")
    for commit in ("first", "second"):
        save(kind, tmp_path / commit)
    asked = []

    def get(name: str, file: str, commit: str | None) -> Path | None:
        path = tmp_path / (commit or ("second" if asked else "first")) / file
        if path.is_file():
            asked.append(commit)
        return path if path.is_file() else None

    path, is_checkpoint = starting_points._weights("org/network", get)
    assert path.relative_to(tmp_path).parts[0] == "first"
    assert is_checkpoint == (kind == "checkpoint")
    assert asked[0] is None
    assert len(asked) > 1
    assert set(asked[1:]) == {"first"}


def test_a_checkpoint_that_was_uploaded_as_it_is_gives_the_average_of_its_weights(server, monkeypatch):
    use_hub(monkeypatch, server.url)
    (server.root / "org").mkdir()
    raw, average = (build_model(config_of(), seed)[0] for seed in (5, 6))
    metadata, tensors = {"lineage": LINEAGE}, raw.state_dict()
    write_checkpoint(
        server.root / "org" / "run", TrainConfig(model=config_of()), metadata, tensors, average=average.state_dict()
    )
    assert same_weights(average, build_model(config_of(init="org/run"), 1)[0])
    use_hub(monkeypatch, "http://127.0.0.1:9")  # where nobody listens
    assert same_weights(average, build_model(config_of(init="org/run"), 1)[0])


def test_a_repository_of_a_network_of_other_outputs_gives_all_but_its_head(server, monkeypatch):
    narrow(monkeypatch, "resnet50")
    use_hub(monkeypatch, server.url)
    for kind, encoder in (("checkpoint", "mit_tiny"), ("smp", "resnet50")):
        saved, told = save(kind, server.root / "org" / kind)[0], []
        wanted = config_of(encoder, f"org/{kind}", classes=("live", "dead"))
        model = build_model(wanted, 1, told.append)[0]
        assert len(told) == 1
        assert "its head is not taken, all else is" in told[0]
        assert same_weights(saved, model, "encoder.")
        assert same_weights(saved, model, "decoder.blocks.")


def test_a_manifest_of_another_program_beside_an_encoder_is_in_nobodys_way(server, monkeypatch):
    narrow(monkeypatch, "resnet50")
    use_hub(monkeypatch, server.url)
    saved = save("encoder", server.root / "org" / "encoder")[0]
    (server.root / "org" / "encoder" / "manifest.json").write_text('{"name": "a web page"}')
    assert same_weights(saved, build_model(config_of("resnet50", "org/encoder"), 1)[0], "encoder.")


def test_a_damaged_or_another_repository_is_one_line(server, monkeypatch):
    use_hub(monkeypatch, server.url)
    save("checkpoint", server.root / "org" / "broken")
    weights = server.root / "org" / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"SHA-256|damaged"):
        build_model(config_of(init="org/broken"), 1)
    (server.root / "org" / "empty").mkdir()
    with pytest.raises(InputError, match=r"org/empty: this repository of the hub has none of manifest\.json"):
        build_model(config_of(init="org/empty"), 1)
    narrow(monkeypatch, "resnet50", "vgg19")
    save("encoder", server.root / "org" / "encoder")
    with pytest.raises(InputError, match=r"--model\.init org/encoder of the Hugging Face hub.*does not fit vgg19"):
        build_model(config_of("vgg19", "org/encoder"), 1)


@pytest.mark.parametrize("kind", ["smp", "encoder"])
def test_a_file_of_weights_and_its_url_give_the_same(kind, server, tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50")
    saved, _, prefix = save(kind, server.root / kind)
    file, url = server.root / kind / "model.safetensors", f"{server.url}/{kind}/model.safetensors"
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    for digest in ("", right):
        local, told = build_model(config_of("resnet50", file, init_sha256=digest), 1)
        assert same_weights(saved, local, prefix)
        assert "model.safetensors" in told[0]["weights"]
        assert told[0]["licence"] == "not stated"
        pytest.importorskip("aiohttp", reason="the extra cloud is not installed")
        config = with_local_weights(config_of("resnet50", url, init_sha256=digest))
        assert Path(config.init).is_relative_to(tmp_path / "cache")
        assert same_weights(saved, build_model(config, 1)[0], prefix)
    wrong = replace(config_of("resnet50"), init_sha256="0" * 64)
    with pytest.raises(InputError, match=f"its SHA-256 is {right}"):
        build_model(replace(wrong, init=str(file)), 1)
    with pytest.raises(InputError, match=f"its SHA-256 is {right}.*nothing is used"):
        with_local_weights(replace(wrong, init=url))
    number = len(server.asked)
    with_local_weights(config_of("resnet50", url, init_sha256=right))
    assert len(server.asked) == number  # it is here


def test_a_file_that_runs_something_is_refused_from_everywhere(server, tmp_path, monkeypatch):
    from test_weights import Program

    use_hub(monkeypatch, server.url)
    (server.root / "org" / "bad").mkdir(parents=True)
    file = server.root / "org" / "bad" / "pytorch_model.bin"
    torch.save({"a": torch.ones(1), "b": Program(tmp_path / "trace")}, file)
    for config in (config_of("mit_b0", "org/bad"), config_of("mit_b0", file)):
        with pytest.raises(InputError, match="what a pickle holds may be a program; nothing of it was run"):
            build_model(config, 0)
    assert not (tmp_path / "trace").exists()


HOSTS = {"has no address": "nowhere.invalid", "has no route": "192.0.2.1", "name server is silent": "hub.example"}
DEAD = {
    "hub": ("is silent", "has no route", "name server is silent"),  # and all others in test_weights.py
    "file": ("refuses", "is silent", "answers 503", "stops in mid-file", *HOSTS),
    "folder": ("is silent", "has no address", "name server is silent"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of what was given up
@pytest.mark.parametrize(("what", "kind"), [(what, kind) for what, kinds in DEAD.items() for kind in kinds])
def test_without_a_network_one_line_says_in_time_how_to_get_it_by_hand(what, kind, monkeypatch):
    if what != "hub":
        pytest.importorskip("aiohttp", reason="the extra cloud is not installed")
    monkeypatch.setattr(download, "SECONDS_WITHOUT_A_BYTE", 1.0)  # of 8
    server, ended = DeadServer(kind), threading.Event()
    if kind == "name server is silent":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (ended.wait(60) and None) or [])
    url = f"http://{HOSTS.get(kind, '127.0.0.1')}:{server.port}"
    use_hub(monkeypatch, url)
    init = {"hub": "org/name", "file": f"{url}/x.safetensors", "folder": f"{url}/run/best"}[what]
    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        build_model(with_local_weights(config_of(init=init)), 1)
    seconds = time.monotonic() - started
    server.close()
    ended.set()
    for thread in threading.enumerate():
        if thread.name == download.THREAD:
            thread.join(2)
    gc.collect()
    message = str(caught.value)
    assert message.startswith(f"--model.init {init}: ")
    assert "\n" not in message
    assert len(message) <= 500
    hints = {"hub": "`hf download org/name`", "file": "give the file with", "folder": "give the folder with"}
    assert hints[what] in message
    # The bound is one second from the last byte; the rest is for a machine that has much else to do.
    assert seconds < 30, message


def test_what_is_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_name("org/name") == hub_name("hf://org/name") == "org/name"
    assert hub_name("timm/resnet50.a1_in1k") == "timm/resnet50.a1_in1k"
    for path in (
        "runs/x",
        "runs",
        "a/b/c",
        "/org/name",
        "./name",
        "../name",
        "hf://datasets/org/name",
        "org/na me",
        "s3://a/b",
    ):
        assert hub_name(path) is None, path
    for init in ("random", "imagenet", "timm", "org/name", "https://host/x.pth"):
        check_init("--model.init", init)
    with pytest.raises(InputError, match=r"runs/x: no such file or folder.*ORG/NAME of the Hugging Face hub"):
        check_init("--model.init", "runs/x")


@pytest.mark.parametrize("name", ["a--b/c", "a/b--c", "a/b..c", "a/b.git", "a/b.", "a/b-", "a/" + 97 * "b"])
def test_what_the_hub_takes_for_no_name_is_asked_of_nobody(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(name) is hub_name(f"hf://{name}") is None
    for init in (name, f"hf://{name}"):
        with pytest.raises(InputError, match=f"^--model.init {init}: no such file or folder"):
            build_model(config_of(init=init), 1)


def test_settings_that_do_not_belong_together_are_refused():
    for wrong, words in (
        ({"init_sha256": "x"}, "--model.init-sha256 x: give 64 digits"),
        ({"init_sha256": "0" * 64}, "--model.init random is no file of weights"),
        ({"init_sha256": "0" * 64, "init": "org/name"}, "--model.init org/name is no file of weights"),
        ({"init": "timm"}, "--model.init timm: is for encoders timm/NAME, not for mit_b3"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            ModelConfig(**wrong).validate()
    ModelConfig(encoder="timm/resnet18", init="timm").validate()


def test_a_half_fetched_file_leaves_nothing_behind(server, tmp_path):
    pytest.importorskip("aiohttp", reason="the extra cloud is not installed")
    (server.root / "x.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="nothing is used"):
        with_local_weights(config_of(init=f"{server.url}/x.pth", init_sha256="0" * 64))
    assert not [path for path in remote_weights.weights_folder().rglob("*") if path.is_file()]
    assert remote_weights.weights_folder() == tmp_path / "cache" / "glioma-dist" / "weights"


@pytest.mark.parametrize("content", [b"hello" * 100, b"a.", b"(lt.", b"0", b"}]s.", b"N.", b"\x80\x02h\x07.", b"u" * 9])
def test_bytes_of_another_file_are_one_line(content, tmp_path):
    """Many texts begin a pickle by chance; its reader ends in errors of any kind."""
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pth: ") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
