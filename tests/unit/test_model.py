"""The U-Net: any size, weights from the seed alone, stochastic depth by image, fused attention, naive twins."""

import json
import math
import re

import numpy as np
import pytest
import torch
from helpers import TINY_CHANNELS, save_state, seal, tiny_config
from test_weights import put_into_cache
from torch import nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.model.decoder import BilinearDecoder, DecoderBlock, make_norm
from glioma_dist.model.encoders.any_timm import find_segments
from glioma_dist.model.encoders.mit import MitEncoder
from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.pretrained.mit_weights import HUB_NAMES
from glioma_dist.model.pretrained.transformers_mit import segformer_config
from glioma_dist.model.pretrained.weights import initialise
from glioma_dist.model.unet import IMAGENET_MEAN, IMAGENET_STD, UNet, build_model, load_model, normalise
from glioma_dist.training.state import TrainState

TINY = ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS)
TINY_GROUP = ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS, norm="group")


def build(config: ModelConfig = TINY, seed: int = 0) -> UNet:
    """In fp64, with norms and buffers that are not at rest."""
    model = build_model(config, seed)[0].double()
    generator = torch.Generator().manual_seed(99)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
    return model


def draw_images(num_images: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normalising_is_imagenets():
    images = torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, deviation = np.reshape(IMAGENET_MEAN, (3, 1, 1)), np.reshape(IMAGENET_STD, (3, 1, 1))
    expected = (images.double().numpy() / 255 - mean) / deviation
    assert normalise(images).dtype == torch.float32
    np.testing.assert_allclose(normalise(images), expected, atol=1e-6)
    grey = images[:, :1]
    assert torch.equal(normalise(grey), normalise(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(("height", "width"), [(389, 517), (47, 33), (1, 1), (32, 64), (31, 96), (65, 32)])
def test_any_size_gives_one_logit_a_pixel(height, width):
    model = build().eval()
    with torch.no_grad():
        logits = model(draw_images(2 if height < 100 else 1, height, width))
    assert logits.shape[1:] == (1, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(47, 33), (64, 50), (31, 96)])
def test_padding_is_zeros_at_the_right_and_bottom(height, width):
    model, images = build().eval(), draw_images(2, height, width)
    padded = torch.zeros(2, 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32, dtype=torch.float64)
    padded[:, :, :height, :width] = images
    with torch.no_grad():
        assert torch.equal(model(images), model(padded)[:, :, :height, :width])


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    one = build_model(TINY, 5)[0].state_dict()
    torch.manual_seed(2)
    two, other = build_model(TINY, 5)[0].state_dict(), build_model(TINY, 6)[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = [name for name, tensor in one.items() if tensor.ndim > 1]
    assert all(not torch.equal(one[name], other[name]) for name in drawn)


@pytest.mark.parametrize("encoder", ["mit_tiny", "mobilenet_v2", "timm/convnext_atto"])
def test_building_disturbs_no_global_generator(encoder):
    find_segments.cache_clear()
    torch.manual_seed(1)
    before, of_gpus = torch.get_rng_state(), torch.cuda._lazy_seed_tracker.get_calls()
    assert any(of_gpus), "without a GPU, PyTorch notes what to seed it with later"
    build_model(ModelConfig(encoder=encoder, decoder_channels=TINY_CHANNELS), 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.cuda._lazy_seed_tracker.get_calls() == of_gpus


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_weight_is_drawn(norm):
    model = UNet(ModelConfig(encoder="mit_tiny", decoder_channels=TINY_CHANNELS, norm=norm))
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    initialise(model, torch.Generator().manual_seed(0))
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


def test_starting_weights_are_of_the_size_that_is_written():
    model = build_model(ModelConfig(encoder="mit_b0"), 0)[0]
    for name, module in model.named_modules():
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any(), name
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
        elif isinstance(module, nn.Linear | nn.Conv2d) and module.weight.numel() > 2000:
            area = math.prod(module.weight.shape[2:])
            fan_in, fan_out = module.weight.shape[1] * area, module.weight.shape[0] * area
            if isinstance(module, nn.Linear):
                expected = 0.02
            elif name.startswith("encoder"):
                expected = math.sqrt(2 / (fan_out / module.groups))
            else:
                expected = math.sqrt(2 / fan_in)
                assert module.weight.abs().max() <= math.sqrt(6 / fan_in)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(module.weight.mean().item()) < expected / 10


@pytest.mark.parametrize("name", ["mit_b0", "mit_b3"])
def test_encoders_have_the_papers_shapes(name):
    """Millions of parameters: table 6 of SegFormer says 3.7 (b0) and 45.2 (b3) with the classifier, 1000 x (C + 1). The
    weights that its authors published have 3.6 and 44.6; hence the tolerance."""
    with torch.device("meta"):
        encoder = MitEncoder(name)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    classifier = 1000 * (encoder.channels[-1] + 1)
    assert (count + classifier) / 1e6 == pytest.approx({"mit_b0": 3.7, "mit_b3": 45.2}[name], rel=0.04)
    stages = encoder.segformer.stages
    assert [stage.blocks[0].attention.num_heads for stage in stages] == [1, 2, 5, 8]
    reductions = [stage.blocks[0].attention.sequence_reduction for stage in stages]
    sides = [1 if each is None else each.sequence_reduction.stride[0] for each in reductions]
    assert sides == [8, 4, 2, 1]


def transformers_twin(encoder: MitEncoder, name: str) -> SegformerModel:
    """transformers' network with the weights of `encoder`, the epsilon of SegFormer's released code in the norms of
    layers and stages, and nothing that is dropped."""
    config = segformer_config(name)
    config.drop_path_rate = 0.0
    twin = SegformerModel(config).to(next(encoder.parameters()).dtype)
    for place, module in twin.named_modules():
        if isinstance(module, nn.LayerNorm) and not ("patch_embeddings" in place or "sequence_reduction" in place):
            module.eps = 1e-6
    twin.load_state_dict(encoder.segformer.state_dict())
    return twin


def maps_and_gradients(
    maps: list[torch.Tensor], images: torch.Tensor, module: nn.Module
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The maps, and the gradients of a sum over all of them by the images and by each weight's name."""
    sum(each.square().sum() for each in maps).backward()
    gradients = {name: each.grad for name, each in module.named_parameters()}
    return [each.detach() for each in maps], gradients | {"images": images.grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mit_tiny", "mit_b0", "mit_b2"])
@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_is_transformers_own_to_the_last_bit(name, dtype, training):
    """Maps and gradients; in bf16 under autocast, where transformers' norms widen their output and ours do not, as near
    as bf16 is."""
    encoder = build(ModelConfig(encoder=name, decoder_channels=TINY_CHANNELS)).encoder.train(training)
    encoder = encoder.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    twin = transformers_twin(encoder, name).train(training)
    found_and_wanted = []
    for module in (encoder, twin):
        images = draw_images(2, 64, 96).to(next(encoder.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            maps = module(images) if module is encoder else module(images, output_hidden_states=True).hidden_states
        inside = encoder.segformer if module is encoder else twin
        found_and_wanted.append(maps_and_gradients(list(maps), images, inside))
    (maps, gradients), (expected, expected_gradients) = found_and_wanted
    for number, (found, wanted) in enumerate(zip(maps, expected, strict=True)):
        assert found.shape == (
            2,
            encoder.channels[number],
            64 // encoder.strides[number],
            96 // encoder.strides[number],
        )
        if dtype == torch.bfloat16:
            assert (found.float() - wanted.float()).norm() < 0.03 * wanted.float().norm()
        else:
            assert torch.equal(found, wanted), number
    assert list(gradients) == list(expected_gradients)
    if dtype == torch.bfloat16:
        difference, norm = (
            torch.stack([each.float().norm() for each in tensors]).norm()
            for tensors in (
                [gradients[each] - wanted for each, wanted in expected_gradients.items()],
                expected_gradients.values(),
            )
        )
        assert difference < 0.2 * norm
    else:
        assert [each for each in gradients if not torch.equal(gradients[each], expected_gradients[each])] == []


@pytest.mark.parametrize("name", MIT_SHAPES)
def test_weights_have_transformers_names_shapes_and_order(name):
    with torch.device("meta"):
        encoder, twin = MitEncoder(name), SegformerModel(segformer_config(name))
    found, expected = ([(key, each.shape) for key, each in m.state_dict().items()] for m in (encoder.segformer, twin))
    assert found == expected
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm)  # what `initialise` draws, in its order
    orders = [
        [place for place, part in m.named_modules() if isinstance(part, kinds)] for m in (encoder.segformer, twin)
    ]
    assert orders[0] == orders[1]


def attend_slowly(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    assert attn_mask is None
    assert dropout_p == 0
    assert not is_causal
    scale = scale or query.shape[-1] ** -0.5
    return torch.softmax(query @ key.transpose(-2, -1) * scale, -1) @ value


def test_attention_is_pytorchs_fused_one(monkeypatch):
    """It equals the written-out softmax to 1e-9 with its gradients, and holds no attention matrix."""
    model, images = build(), draw_images(1, 128, 128)
    seeds = torch.tensor([3])
    results, calls = [], []
    for function in (functional.scaled_dot_product_attention, attend_slowly):

        def counted(*arguments, function=function, **named):
            calls.append(function)
            return function(*arguments, **named)

        monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
        model.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: saved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
        ):
            logits = model(images, seeds)
        logits.square().sum().backward()
        matrices = [shape for shape in saved if shape[-2:] == (1024, 16)]  # 32x32 queries, 4x4 keys, of stage 1
        results.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()], matrices))
    assert len(calls) == 8
    (logits, gradients, matrices), (expected, expected_gradients, expected_matrices) = results
    assert matrices == []
    assert expected_matrices  # so that the search is known to find them
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max() + 1))


def test_an_image_is_treated_alike_whatever_stands_beside_it():
    model = build(TINY_GROUP).train()
    images, seeds = draw_images(6, 32, 64), torch.tensor([11, 12, 2**63 - 1, 0, 77, 12345678901])
    with torch.no_grad():
        together = model(images, seeds)
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        torch.testing.assert_close(model(images[order], seeds[order]), together[order], rtol=1e-10, atol=1e-10)
        alone = torch.cat([model(images[row : row + 1], seeds[row : row + 1]) for row in range(6)])
        torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)
        torch.manual_seed(4)
        assert torch.equal(model(images, seeds), together)
        assert torch.equal(model(images, model.encoder.draw(seeds)), together), "drawn before the forward pass"


def test_stochastic_depth_drops_whole_branches_as_often_as_its_rate_says():
    """Against a forward pass written out, with the kept branches scaled by 1 / (1 - rate)."""
    encoder = build().encoder.train()
    seeds = torch.arange(64)
    images = draw_images(64, 32, 32)
    with torch.no_grad():
        maps = encoder(images, seeds)
        scales = encoder.stochastic_depth.draw(seeds, images.device)
        features, branch = images, 0
        for stage, found in zip(encoder.segformer.stages, maps, strict=True):
            tokens, height, width = stage.patch_embeddings(features)
            for layer in stage.blocks:
                for norm, part in ((layer.layernorm_before, layer.attention), (layer.layernorm_after, layer.mlp)):
                    output = part(norm(tokens), height, width)
                    tokens = tokens + scales[:, branch, None, None] * output
                    branch += 1
            tokens = stage.layer_norm(tokens)
            features = tokens.transpose(1, 2).reshape(64, -1, height, width)
            torch.testing.assert_close(found, features, rtol=1e-10, atol=1e-10)
    assert branch == scales.shape[1] == 8
    assert (scales == 0).any()


def test_the_share_of_kept_branches_is_that_of_the_rate():
    """Rates grow evenly from 0 to 0.1 with depth (SegFormer, section 4.1); 20,000 images, five deviations."""
    encoder = MitEncoder("mit_b0")
    scales = encoder.stochastic_depth.draw(torch.arange(20_000), torch.device("cpu")).numpy()
    rates = np.repeat(np.linspace(0, 0.1, 8), 2)
    for column, rate in zip(scales.T, rates, strict=True):
        assert set(np.unique(column)) <= {0.0, 1 / (1 - rate)}
        assert abs((column == 0).mean() - rate) <= 5 * math.sqrt(rate * (1 - rate) / 20_000)
    dropped = (scales[:, 2:] == 0).astype(float)
    between = np.corrcoef(dropped.T) - np.eye(14)
    assert np.abs(between).max() < 5 / math.sqrt(20_000)


def test_evaluation_drops_nothing_and_draws_nothing():
    model, images = build(TINY_GROUP), draw_images(2, 32, 32)
    with torch.no_grad():
        model.train()(images, torch.tensor([1, 2]))
        before = torch.get_rng_state()
        model.eval()
        assert torch.equal(model(images), model(images, torch.tensor([5, 6])))
        assert model.encoder.draw(torch.tensor([5, 6])) is None
        assert torch.equal(torch.get_rng_state(), before)
        rates, model.encoder.stochastic_depth.rates = model.encoder.stochastic_depth.rates, np.zeros(8)
        undropped = model.train()(images, torch.tensor([5, 6]))
        model.encoder.stochastic_depth.rates = rates
        torch.testing.assert_close(model.eval()(images), undropped, rtol=1e-12, atol=1e-12)


def test_training_draws_nothing_from_the_global_random_state():
    model = build()
    before = torch.get_rng_state()
    model(draw_images(2, 32, 32), torch.tensor([1, 2])).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def double_slowly(features: np.ndarray) -> np.ndarray:
    """(B, C, H, W) to (B, C, 2H, 2W), bilinear, by hand: 3/4 of the nearer and 1/4 of the farther pixel."""
    for axis in (2, 3):
        length = features.shape[axis]
        near = np.repeat(np.arange(length), 2)
        far = (near + np.tile([-1, 1], length)).clip(0, length - 1)
        features = 0.75 * features.take(near, axis) + 0.25 * features.take(far, axis)
    return features


def norm_slowly(norm: nn.Module, features: np.ndarray, training: bool) -> np.ndarray:
    if isinstance(norm, nn.GroupNorm):
        grouped = features.reshape(len(features), norm.num_groups, -1)
        normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + norm.eps)
        normal = normal.reshape(features.shape)
    else:
        axes = {"axis": (0, 2, 3), "keepdims": True}
        mean, variance = features.mean(**axes), features.var(**axes)
        if not training:
            mean, variance = (buffer.numpy().reshape(1, -1, 1, 1) for buffer in (norm.running_mean, norm.running_var))
        normal = (features - mean) / np.sqrt(variance + norm.eps)
    return normal * norm.weight.detach().numpy().reshape(1, -1, 1, 1) + norm.bias.detach().numpy().reshape(1, -1, 1, 1)


def convolve_slowly(convolution: nn.Conv2d, features: np.ndarray) -> np.ndarray:
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, convolution.weight.detach().numpy())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("skip_channels", [0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_block_is_upsampling_joining_and_twice_convolution_norm_relu(norm, skip_channels, training):
    torch.manual_seed(0)
    block = DecoderBlock(4, skip_channels, 6, norm).double().train(training)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    skip = torch.randn(2, 3, 10, 14, dtype=torch.float64) if skip_channels else None
    expected = double_slowly(features.numpy())
    if skip is not None:
        expected = np.concatenate([expected, skip.numpy()], axis=1)
    for convolution, normalisation in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
        convolved = convolve_slowly(convolution, expected)
        expected = np.maximum(norm_slowly(normalisation, convolved, training), 0)
    np.testing.assert_allclose(block(features, skip).detach(), expected, rtol=1e-10, atol=1e-10)


def test_the_decoder_joins_each_map_at_its_own_size():
    """A map that is not used, or used twice, would leave its block's gradient at 0 or its channels wrong."""
    decoder = BilinearDecoder((8, 16, 24, 32), (4, 8, 16, 32), (7, 6, 5, 4, 3), "batch")
    assert [block.conv1.in_channels for block in decoder.blocks] == [32 + 24, 7 + 16, 6 + 8, 5, 4]
    maps = [
        torch.randn(2, channels, 64 // stride, 96 // stride, requires_grad=True)
        for channels, stride in ((8, 4), (16, 8), (24, 16), (32, 32))
    ]
    output = decoder(maps)
    assert output.shape == (2, 1, 64, 96)
    output.square().sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in maps)


@pytest.mark.parametrize(("channels", "groups"), [(256, 16), (64, 4), (16, 1), (8, 1), (40, 2), (1, 1)])
def test_group_norm_has_about_16_channels_a_group(channels, groups):
    assert make_norm("group", channels).num_groups == groups


def test_imagenet_weights_without_a_network_are_one_clear_line():
    with pytest.raises(InputError) as error:
        build_model(ModelConfig(encoder="mit_b0", init="imagenet"), 0)
    message = str(error.value)
    assert "\n" not in message
    for part in ("--model.init imagenet", "nvidia/mit-b0", "hf download nvidia/mit-b0", "--model.weights FILE"):
        assert part in message


def test_imagenet_weights_of_an_encoder_that_has_none_are_refused():
    with pytest.raises(InputError, match=r"no ImageNet weights of mit_tiny.*mit_b0"):
        build_model(ModelConfig(encoder="mit_tiny", init="imagenet"), 0)


NAME = "nobody/mit-tiny"
"""Of a repository on the hub, which only the local cache has."""


def save_classifier(folder, **shapes) -> SegformerForImageClassification:
    """What the hub has: the encoder below a classifier."""
    torch.manual_seed(3)
    classifier = SegformerForImageClassification(SegformerConfig(**MIT_SHAPES["mit_tiny"] | shapes, num_labels=7))
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    classifier.save_pretrained(folder)
    return classifier


def test_imagenet_weights_reach_the_encoder_and_nothing_else(tmp_path, monkeypatch):
    classifier = save_classifier(tmp_path / "saved")
    put_into_cache(NAME, (tmp_path / "saved" / "model.safetensors").read_bytes(), monkeypatch, tmp_path / "hub")
    monkeypatch.setitem(HUB_NAMES, "mit_tiny", NAME)
    model, lineage = build_model(ModelConfig("mit_tiny", "imagenet", decoder_channels=TINY_CHANNELS), 0)
    plain = build_model(TINY, 0)[0].state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder.segformer."):
            assert torch.equal(tensor, classifier.segformer.state_dict()[name.removeprefix("encoder.segformer.")]), name
        else:
            assert torch.equal(tensor, plain[name]), name
    assert len(lineage) == 1
    assert "non-commercial" in lineage[0]["licence"]


def test_imagenet_weights_of_other_shapes_are_refused(tmp_path, monkeypatch):
    save_classifier(tmp_path / "saved", depths=(1, 1, 1, 1), hidden_sizes=(8, 16, 24, 40))
    put_into_cache(NAME, (tmp_path / "saved" / "model.safetensors").read_bytes(), monkeypatch, tmp_path / "hub")
    monkeypatch.setitem(HUB_NAMES, "mit_tiny", NAME)
    with pytest.raises(InputError, match="does not fit mit_tiny") as error:
        build_model(ModelConfig("mit_tiny", "imagenet", decoder_channels=TINY_CHANNELS), 0)
    assert "\n" not in str(error.value)


@pytest.fixture
def checkpoint(shards, tmp_path):
    """A checkpoint of mit_tiny with odd weights, and the model that it holds."""
    model = build_model(TINY, 8)[0]
    save_state(
        tmp_path / "best",
        tiny_config(shards, tmp_path),
        TrainState(step=1),
        model,
        None,
        {"lineage": [{"data": "drawn", "licence": "CC0"}]},
    )
    return tmp_path / "best", model


def test_a_model_starts_from_a_checkpoint_and_carries_its_lineage(checkpoint):
    folder, expected = checkpoint
    model, lineage = build_model(ModelConfig("mit_tiny", str(folder), decoder_channels=TINY_CHANNELS), 0)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert lineage == [{"data": "drawn", "licence": "CC0"}]
    loaded, read = load_model(folder)
    assert not loaded.training
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert read.metadata["position"]["step"] == 1


def test_a_checkpoint_of_another_encoder_is_refused_with_both_names(checkpoint):
    with pytest.raises(InputError, match=r"its encoder is mit_tiny, asked for is mit_b0.*--model\.encoder mit_tiny"):
        build_model(ModelConfig("mit_b0", str(checkpoint[0])), 0)


@pytest.mark.parametrize("changes", [{"decoder_channels": (16, 16, 8, 8, 9)}, {"norm": "group"}])
def test_a_checkpoint_of_another_decoder_is_refused(checkpoint, changes):
    same = {"encoder": "mit_tiny", "init": str(checkpoint[0]), "decoder_channels": TINY_CHANNELS}
    config = ModelConfig(**same | changes)
    with pytest.raises(InputError, match=r"tensors do not fit this model, the first is (decoder|head)"):
        build_model(config, 0)


def test_an_init_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"--model.init {tmp_path / 'x'}: no such file or folder; give ran")):
        build_model(ModelConfig("mit_tiny", str(tmp_path / "x")), 0)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: no checkpoint there")):
        build_model(ModelConfig("mit_tiny", str(tmp_path)), 0)


def test_a_state_that_names_an_unknown_encoder_is_one_line(checkpoint):
    file = checkpoint[0] / "state.json"
    state = json.loads(file.read_text())
    state["config"]["model"]["encoder"] = "mit_b9"
    file.write_text(json.dumps(state))
    seal(checkpoint[0])
    with pytest.raises(InputError, match="mit_b9"):
        load_model(checkpoint[0])
