"""Activations in host memory: the bits of the level full, and what is where and when."""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from encoder_helpers import narrow_everything, slow_if_deeper
from helpers import TINY_CHANNELS
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders
from glioma_dist.scale import offload
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.host_memory import HostMemory, LockedMemory
from glioma_dist.scale.offload import ActivationOffload, offload_of
from glioma_dist.scale.tile_size import TileSize

MANY_TILES = TileSize(5000)


class Stream(HostMemory):
    """Copies as a GPU's stream makes them: in their order, and as late as can be. A source that has gone, or a target
    that is used before, would be seen in the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.log: list[tuple[str, int]] = []
        self.num_on_the_way = 0

    def leave(self, source: Tensor) -> tuple[Tensor, int]:
        self.log.append(("leaves", len(source)))
        memory = self._take(source)
        return memory, self._begin(source, memory[: len(source)])

    def arrive(self, memory: Tensor, target: Tensor) -> int:
        self.log.append(("arrives", len(target)))
        target.fill_(255)  # as floats: not a number
        return self._begin(memory[: len(target)], target)

    def _begin(self, source: Tensor, target: Tensor) -> int:
        self.waiting.append((source, target))
        self.num_on_the_way = max(self.num_on_the_way, len(self.waiting))
        return len(self.log)

    def wait(self, done: int) -> None:
        for source, target in self.waiting:
            target.copy_(source)
        self.waiting.clear()


def gradients(model: UNet, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
    losses = segmentation_loss("dice+bce", logits := model(images, seeds), (images[:, 0] > 0.5).byte())
    losses.sum().backward()
    found = {"logits": logits.detach(), "losses": losses.detach()}
    found |= {f"gradient of {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found | {name: each.clone() for name, each in model.named_buffers()}


def draw(num_images: int = 2, side: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, side, side, generator=generator, dtype=dtype), torch.arange(num_images)


def pair(encoder: str, host: HostMemory, norm: str = "batch") -> tuple[UNet, UNet]:
    """A model at the level full, and its equal at the level offload, which moves all that it can."""
    full = build_model(ModelConfig(encoder, decoder_channels=TINY_CHANNELS, norm=norm), 0)[0]
    ours = copy.deepcopy(full)
    checkpoint_activations(full, "full", MANY_TILES)
    checkpoint_activations(ours, "offload", MANY_TILES)
    offload_of(ours).host, offload_of(ours).min_bytes = host, 1
    return full, ours


def check_equal(ours: dict[str, Tensor], full: dict[str, Tensor]) -> None:
    assert ours.keys() == full.keys()
    assert [name for name, each in full.items() if not torch.equal(each, ours[name])] == []


@pytest.mark.parametrize("name", map(slow_if_deeper, encoders.names()))
def test_the_bits_are_those_of_the_level_full(name, monkeypatch):
    """Two steps, of images of two sizes: memory is given up, too."""
    narrow_everything(monkeypatch)
    host = Stream()
    full, ours = pair(name, host)
    for side in (64, 96):
        given = draw(2, side)
        check_equal(gradients(ours, *given), gradients(full, *given))
    assert {what for what, _ in host.log} == {"leaves", "arrives"}
    assert host.num_on_the_way <= 2


def test_in_bf16_only_the_sums_of_layer_norms_differ(monkeypatch):
    """Layer norms widen some tokens of two images at a time; all else has the same bits."""
    monkeypatch.setattr(offload, "CPU_ELEMENTS", 1000)
    full, ours = pair("mit_tiny", Stream())
    norms = {name for name, module in full.named_modules() if isinstance(module, nn.LayerNorm)}
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (gradients(model, *draw(2, 96)) for model in (ours, full))
    summed = [key for key in expected if key.removeprefix("gradient of ").rpartition(".")[0] in norms]
    assert len(summed) == 2 * len(norms)
    for key in summed:
        torch.testing.assert_close(found.pop(key), expected.pop(key), rtol=1e-5, atol=1e-6)
    check_equal(found, expected)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_model_that_is_copied_and_one_of_two_passes_before_a_backward_pass(norm):
    full, ours = pair("mit_tiny", Stream(), norm)
    copied = copy.deepcopy(ours)
    assert offload_of(copied) is not offload_of(ours)
    images, seeds = draw()
    found = []
    for model in (full, ours, copied):
        sum(
            segmentation_loss("dice", model(images, each), images[:, 0].byte()).sum() for each in (seeds, seeds + 3)
        ).backward()
        found.append({name: each.grad for name, each in model.named_parameters()})
    check_equal(found[1], found[0])
    check_equal(found[2], found[0])


class Twice(nn.Module):
    """Keeps a map for two uses, in two layouts; its weights are as large as its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.register_buffer("constant", torch.randn(1, 4, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        features = (images * 2).to(memory_format=torch.channels_last)
        first = (features.flatten(2).transpose(1, 2) ** 2).sum()
        return first + (features.sin() * self.weight * self.constant).sum() + features[:, :2].exp().sum()


def test_a_map_that_is_kept_twice_leaves_once_and_no_weight_leaves():
    torch.manual_seed(0)
    model, host = Twice(), Stream()
    plain = copy.deepcopy(model)
    ActivationOffload(host, min_bytes=1).attach(model)
    images = torch.randn(1, 4, 8, 8, requires_grad=True)
    found = model(images)
    assert [num_bytes for what, num_bytes in host.log].count(4 * 4 * 64) == len(host.log) - 1
    num_maps = 3  # what is squared and goes into the sine; the sine; the sine times the weight
    assert len(host.log) == num_maps + 1  # the exponential of half the channels
    found.backward()
    expected = torch.autograd.grad(plain(images), [images, plain.weight])
    assert torch.equal(images.grad, expected[0])
    assert torch.equal(model.weight.grad, expected[1])


def test_what_is_small_stays_and_what_leaves_is_let_go_of():
    """Of a chain of maps three are on the device at most: one that is used, one that leaves, one that arrives."""
    host = Stream()
    alive: list[weakref.ref] = []
    most = 0

    class Chain(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            nonlocal most
            features = images * 1
            for _ in range(10):
                features = torch.utils.checkpoint.checkpoint(self.part, features, use_reentrant=False)
                alive.append(weakref.ref(features.untyped_storage()))
                most = max(most, sum(each() is not None for each in alive))
            return features.sum()

        def part(self, features: Tensor) -> Tensor:
            return features.sin().cos()

    model = Chain()
    ActivationOffload(host, min_bytes=4 * 4 * 65).attach(model)
    model(torch.randn(4, 64, requires_grad=True)).backward()
    assert host.log == []
    most, alive[:] = 0, []
    images = torch.randn(4, 65, requires_grad=True)
    loss = model(images)
    gc.collect()
    assert most <= 3
    assert sum(each() is not None for each in alive) <= 1  # the last one
    loss.backward()
    leaves, arrives = ([num for what, num in host.log if what == kind] for kind in ("leaves", "arrives"))
    assert (len(leaves), len(arrives)) == (10, 9)  # the last was still there
    assert [len(each) for each in host.free()].count(4 * 4 * 65) == 10
    before = {id(each) for each in host.free()}
    model(images).backward()
    assert {id(each) for each in host.free()} == before  # the memory of the first step


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_a_forward_pass_that_failed_the_next_one_is_right(error):
    def fail(*_: object) -> None:
        raise error

    full, ours = pair("mit_tiny", Stream())
    images, seeds = draw()
    handle = ours.decoder.register_forward_pre_hook(fail)
    with pytest.raises(error):
        ours(images, seeds)
    handle.remove()
    if error is ZeroDivisionError:
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    for model in (ours, full):
        model.load_state_dict({name: each.clone() for name, each in full.state_dict().items()})
    check_equal(gradients(ours, images, seeds), gradients(full, images, seeds))
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_images_that_are_given_by_name_move_too():
    host = Stream()
    _, ours = pair("mit_tiny", host)
    images, seeds = draw()
    ours(images=images, seeds=seeds)
    assert host.log


def test_without_gradients_nothing_moves():
    host = Stream()
    _, ours = pair("mit_tiny", host)
    with torch.no_grad():
        ours.eval()(draw()[0])
    assert host.log == []
    assert offload.MIN_BYTES == 2**16


class FakeStreams:
    """What `LockedMemory` asks of CUDA, on a machine without one: notes the order of its calls."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[str] = []
        self.registered: set[int] = set()
        cudart = SimpleNamespace(cudaHostRegister=self.register, cudaHostUnregister=self.unregister)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream("main"))
        monkeypatch.setattr(torch.cuda, "stream", self.within)

    def stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.calls.append(f"{name} waits for {other.name}"),
            record_event=lambda: self.calls.append(f"{name} notes") or name,
            wait_event=lambda event: self.calls.append(f"{name} waits for an event of {event}"),
            synchronize=lambda: self.calls.append(f"the CPU waits for {name}"),
        )

    @contextmanager
    def within(self, stream: SimpleNamespace) -> Iterator[None]:
        self.calls.append(f"on {stream.name}")
        yield

    def register(self, place: int, num_bytes: int, flags: int) -> int:
        assert place not in self.registered
        self.registered.add(place)
        return 0

    def unregister(self, place: int) -> None:
        self.registered.remove(place)


def test_beside_a_gpu_copies_wait_for_what_comes_before_and_pages_are_locked_once(monkeypatch):
    cuda = FakeStreams(monkeypatch)
    host = LockedMemory(torch.device("cpu"))
    source = torch.arange(64, dtype=torch.uint8)
    copy = ["side waits for main", "on side", "side notes"]
    for _ in range(2):
        cuda.calls.clear()
        memory, done = host.leave(source)
        host.wait(done)
        back = host.arrive(memory, target := torch.empty_like(source))
        host.wait(back)
        assert cuda.calls == 2 * [*copy, "main waits for an event of side"]
        assert torch.equal(target, source)
        host.release(memory)
    assert len(cuda.registered) == 1
    cuda.calls.clear()
    memory, _ = host.leave(torch.zeros(65, dtype=torch.uint8))  # another size: the first is given up
    assert cuda.calls == ["the CPU waits for side", *copy]
    assert cuda.registered == {memory.data_ptr()}
    del host
    gc.collect()
    assert cuda.registered == set()


def test_memory_that_cannot_be_locked_is_used_as_it_is(monkeypatch):
    FakeStreams(monkeypatch)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: 2))
    host = LockedMemory(torch.device("cpu"))
    memory, _ = host.leave(torch.ones(64, dtype=torch.uint8))
    assert torch.equal(memory, torch.ones(64, dtype=torch.uint8))
