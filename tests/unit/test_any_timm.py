"""`timm/NAME`: any timm model with feature maps; against timm's own feature network, at every level."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import timm
import torch
from helpers import TINY_CHANNELS, save_state, tiny_config
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.losses import segmentation_loss
from glioma_dist.model.encoders.any_timm import find_segments
from glioma_dist.model.encoders.contract import IMAGENET_MEAN, IMAGENET_STD, build_encoder
from glioma_dist.model.pretrained import timm_weights
from glioma_dist.model.unet import UNet, build_model, load_model
from glioma_dist.scale import step_count
from glioma_dist.scale.activation_checkpointing import checkpoint_activations
from glioma_dist.scale.step import Step
from glioma_dist.scale.tile_size import CPU_TILE
from glioma_dist.size import Size
from glioma_dist.training.state import TrainState

FAMILIES = (
    "resnet18",
    "convnext_atto",
    "regnety_002",
    "efficientnet_b0",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
    "test_resnet",
)
LEVELS = ("selective", "full")
HEIGHT, WIDTH = 64, 96


def config_of(name: str, **changes) -> ModelConfig:
    return ModelConfig(encoder=f"timm/{name}", decoder_channels=TINY_CHANNELS, **changes)


def timms_own(name: str) -> tuple[nn.Module, list[int]]:
    """timm's feature network without stochastic depth, and the strides of its maps."""
    fixed = {"strict_img_size": False} if name.startswith("swin") else {}
    reductions = timm.create_model(name, features_only=True, **fixed).feature_info.reduction()
    return timm.create_model(name, features_only=True, drop_path_rate=0.0, **fixed), reductions


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return images, (torch.rand(2, HEIGHT, WIDTH, generator=generator) > 0.6).to(torch.uint8)


def take_step(model: UNet) -> dict[str, torch.Tensor]:
    """Logits, gradients and buffers after a step in training mode."""
    images, masks = make_batch()
    logits = model.train()(images, torch.arange(2))
    segmentation_loss("dice+bce", logits, masks).sum().backward()
    found = {"logits": logits.detach()} | {f"gradient {name}": each.grad for name, each in model.named_parameters()}
    return found | {f"buffer {name}": each for name, each in model.named_buffers()}


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_timms_feature_network(name):
    encoder = build_encoder(f"timm/{name}").double().eval()
    reference, reductions = timms_own(name)
    reference.double().eval().load_state_dict(encoder.body.state_dict())
    published = timm.get_pretrained_cfg(name)
    images = make_batch()[0]
    ours, theirs = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (published.mean, published.std))
    with torch.no_grad():
        maps = encoder(images)
        expected = reference((images * theirs + ours - mean) / std)
    if name.startswith("swin"):
        expected = [each.permute(0, 3, 1, 2) for each in expected]
    assert encoder.strides == tuple(reductions)
    assert [each.shape[1] for each in maps] == list(encoder.channels)
    for one, other, stride in zip(maps, expected, encoder.strides, strict=True):
        assert one.shape[-2:] == (HEIGHT // stride, WIDTH // stride)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_level_of_checkpointing_gives_what_none_gives(name):
    plain = UNet(config_of(name)).double()
    models = {level: copy.deepcopy(plain) for level in LEVELS}
    expected = take_step(plain)
    for level, model in models.items():
        checkpoint_activations(model, level)
        found = take_step(model)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-11, msg=f"{level}, {key}")


@pytest.mark.parametrize("name", FAMILIES)
def test_its_blocks_hold_nearly_all_weights_and_each_goes_through_run_part(name):
    encoder = build_encoder(f"timm/{name}")
    ran = []

    def run_segment(part, features):
        ran.append(part)
        return part(features)

    encoder.run_segment = run_segment
    encoder(torch.zeros(2, 3, 64, 64))
    assert len(ran) == len(encoder.blocks()) > 3
    within = [parameter for block in encoder.blocks() for parameter in block.parameters()]
    assert len({id(each) for each in within}) == len(within), "no weight is in two blocks"
    whole = sum(each.numel() for each in encoder.parameters())
    assert sum(each.numel() for each in within) > 0.85 * whole


class Products(TorchDispatchMode):
    """Counts convolutions and products of matrices, not the operations that compute their gradients."""

    num = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.num += operation in (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILIES)
def test_its_blocks_are_really_computed_again(name):
    plain = UNet(config_of(name)).train()
    for level in ("none", *LEVELS):
        model = copy.deepcopy(plain)
        checkpoint_activations(model, level)
        with Products() as forward:
            maps = model.encoder(make_batch()[0].float(), torch.arange(2))
        with Products() as backward:
            sum(each.square().sum() for each in maps).backward()
        assert forward.num > 5
        # PyTorch ends a part's second computation where the rest of it is not needed.
        assert (level != "none") * 0.7 * forward.num <= backward.num <= (level != "none") * forward.num


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_all_that_is_random_comes_from_the_seed(name):
    """Also what the library's constructor draws, whatever was built or drawn before."""
    first = build_model(config_of(name), 3)[0].state_dict()
    torch.rand(7)
    second, other = build_model(config_of(name), 3)[0].state_dict(), build_model(config_of(name), 4)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    table = [key for key in first if key.endswith("relative_position_bias_table")]
    assert all(not torch.equal(first[key], other[key]) for key in table)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "resnet18.a1_in1k"])
def test_a_checkpoint_gives_the_same_network(name, tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", encoder=f"timm/{name}")
    model = build_model(config.model, 0)[0].eval()
    save_state(tmp_path / "best", config, TrainState(step=1), model, None, {"lineage": []})
    loaded, checkpoint = load_model(tmp_path / "best")
    images = make_batch()[0].float()
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
    assert checkpoint.config.model.encoder == f"timm/{name}"


REFUSED = {
    "vit_tiny_patch16_224": "its maps are at strides [16]",
    "levit_128s": "cannot compute an image of 96x64",
    "maxvit_nano_rw_256": "cannot compute an image of 96x64",
    "inception_v4": "cannot compute an image of 96x64",
    "gmlp_s16_224": "strides [16]",
    "resnet1": "has no resnet1; did you mean resnet",
    "resnet18.nope": "has no weights nope of resnet18; it has a1_in1k",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_no_encoder_is_one_line_that_says_why(name):
    with pytest.raises(InputError) as error:
        build_model(config_of(name), 0)
    text = str(error.value)
    assert text.startswith(f"--model.encoder timm/{name}: ")
    assert REFUSED[name] in text
    assert "\n" not in text
    assert len(text) <= 500


@contextmanager
def fp64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, fp64_by_default])
def test_a_model_is_tried_alike_wherever_it_is_built(mode):
    find_segments.cache_clear()
    with mode():
        found = build_model(config_of("test_resnet"), 0)[0].encoder._segment_names
    find_segments.cache_clear()
    assert found == find_segments("timm/test_resnet") != ()


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_imagenet_weights_come_through_timms_own_loading(name, tmp_path):
    torch.manual_seed(5)
    whole = timm.create_model(name)  # with its classifier, by the names that timm publishes
    save_file(dict(whole.state_dict()), tmp_path / "model.safetensors")
    model, lineage = build_model(config_of(name, init="imagenet", weights=tmp_path / "model.safetensors"), 0)
    torch.manual_seed(6)
    fixed = {"strict_img_size": False} if name.startswith("swin") else {}
    overlay = {"file": str(tmp_path / "model.safetensors")}
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **fixed)
    found = model.encoder.body.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())
    assert lineage[0]["weights"].startswith("ImageNet, model.safetensors")
    assert lineage[0]["licence"] == (timm.get_pretrained_cfg(name).license or "not stated")  # timm 1.0.10 knows fewer


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "regnety_002"])
@pytest.mark.parametrize("what", ["of another network", "not finite", "incomplete"])
def test_weights_that_do_not_fit_are_one_line(name, what, tmp_path):
    """timm itself raises for some families only."""
    file, whole = tmp_path / "model.safetensors", dict(timm.create_model(name).state_dict())
    first, last = next(iter(whole)), [key for key in whole if "blocks" in key or "layer2" in key or "s2" in key][-2]
    tensors = {
        "of another network": dict(timm.create_model("resnet18").state_dict()),
        "not finite": whole | {first: torch.full_like(whole[first], torch.nan)},
        "incomplete": {key: each for key, each in whole.items() if key != last},
    }[what]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"--model\.init imagenet: .*model\.safetensors") as error:
        build_model(config_of(name, init="imagenet", weights=file), 0)
    assert len(str(error.value)) <= 500
    assert "\n" not in str(error.value)


def test_a_model_without_published_weights_is_one_line(monkeypatch):
    monkeypatch.setattr(timm_weights, "weights_from_hub", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match=r"timm publishes no weights of timm/nf_resnet26; give a file"):
        build_model(config_of("nf_resnet26", init="imagenet"), 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_is_made_once_for_all_counts(monkeypatch, name):
    """And what is counted is what a network of its own takes."""
    loss = partial(segmentation_loss, "dice")
    step = Step(config_of(name), Size(WIDTH, 2 * HEIGHT), 2, bf16=True, tile_size=CPU_TILE, loss=loss)
    made: list[UNet] = []
    monkeypatch.setattr(step_count, "UNet", lambda config: made.append(UNet(config)) or made[-1])
    step_count._made_on_cpu.cache_clear()
    levels = ("full", "none")
    counted = [step_count.count_at_size(step, level) for level in levels]
    assert len(made) == 1
    monkeypatch.setattr(step_count, "_made_on_cpu", UNet)
    assert counted == [step_count.count_at_size(step, level) for level in levels]
