"""Against segmentation_models.pytorch: with its weights, our U-Net gives its logits and its gradients."""

import json

import pytest
import torch
from torch import Tensor, nn

from glioma_dist.config import ModelConfig
from glioma_dist.errors import InputError
from glioma_dist.model.pretrained.state_dict_adapter import rename_network
from glioma_dist.model.unet import UNet, build_model
from glioma_dist.registry import encoders

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models.pytorch is not installed: pip install -e '.[bench]'"
)

NAMES = (
    *(
        "mit_b3",
        "vgg19",
        "resnet50",
        "mobilenet_v2",
        "efficientnet_b5",
        "mit_b0",
        "densenet169",
        "dpn92",
        "inceptionv4",
    ),
    *("resnext50_32x4d", "se_resnet50", "se_resnext50_32x4d", "gernet_l", "regnetx_064", "res2net50_26w_4s"),
    *("resnest50d", "xception"),
)
QUICK = 5
IN_TRAINING = sorted(set(NAMES) - {"mit_b0", "mit_b3", "efficientnet_b5"})
"""The others drop branches at random in segmentation_models.pytorch."""


def build_smp(name: str) -> nn.Module:
    """With norms that are not at rest and running statistics that were moved by steps."""
    torch.manual_seed(0)
    theirs = smp.Unet(encoders.find(name).smp_name, encoder_weights=None, decoder_interpolation="bilinear")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            theirs.train()(torch.randn(2, 3, 64, 96))
    return theirs.eval()


def as_smp_wants(model: UNet, images: Tensor) -> Tensor:
    """Normalised as the encoder's ImageNet weights were, which our encoders see to themselves."""
    if getattr(model.encoder, "colours", None) is None:
        return images
    scale, shift = (torch.tensor(values).view(1, 3, 1, 1) for values in model.encoder.colours)
    return images * scale + shift


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(images)
    logits.square().mean().backward()
    return logits.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("name", [*NAMES[:QUICK], *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[QUICK:])])
def test_logits_and_gradients_are_smps(tmp_path, name):
    theirs = build_smp(name)
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours, lineage = build_model(ModelConfig(encoder=name, init=str(tmp_path / "smp.pth")), 0)
    assert "smp.pth" in lineage[0]["weights"]
    assert ("6 tensors that are not used" in lineage[0]["weights"]) == (name == "efficientnet_b5")
    images = torch.randn(2, 3, 64, 96)
    for training in (False, True) if name in IN_TRAINING else (False,):
        logits, found = gradients(ours.train(training), images)
        expected_logits, expected = gradients(theirs.train(training), as_smp_wants(ours, images))
        assert (logits - expected_logits).abs().max() < 1e-4
        expected = rename_network(expected, ours.encoder)
        assert found.keys() == expected.keys()
        largest = max(float(each.abs().max()) for each in expected.values())
        for each, wanted in expected.items():
            torch.testing.assert_close(found[each], wanted, rtol=1e-3, atol=1e-5 * largest, msg=each)


def test_what_save_pretrained_writes_is_taken_and_its_settings_are_looked_at(tmp_path):
    theirs = build_smp("mobilenet_v2")
    theirs.save_pretrained(tmp_path)
    config = ModelConfig(encoder="mobilenet_v2", init=str(tmp_path))
    ours = build_model(config, 0)[0].eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    with pytest.raises(InputError, match=r"its encoder is mobilenet_v2, asked for is resnet50"):
        build_model(ModelConfig(encoder="resnet50", init=str(tmp_path)), 0)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"decoder_interpolation": "nearest"}))
    with pytest.raises(InputError, match=r"config\.json: has decoder_interpolation 'nearest'; only") as error:
        build_model(config, 0)
    assert "\n" not in str(error.value)


def test_what_does_not_map_is_listed(tmp_path):
    tensors = build_smp("mobilenet_v2").state_dict()
    del tensors["decoder.blocks.0.conv1.0.weight"]
    tensors["aux.weight"] = torch.ones(2)
    torch.save(tensors, tmp_path / "smp.pth")
    with pytest.raises(InputError) as error:
        build_model(ModelConfig(encoder="mobilenet_v2", init=str(tmp_path / "smp.pth")), 0)
    message = str(error.value)
    assert "\n" not in message
    for part in ("smp.pth", "1 without a place in it: aux.weight", "1 missing: decoder.blocks.0.conv1.weight"):
        assert part in message


def test_a_grey_first_convolution_becomes_one_of_three_channels(tmp_path):
    """Grey images are repeated over the channels: the logits stay."""
    torch.manual_seed(0)
    theirs = smp.Unet("mobilenet_v2", encoder_weights=None, decoder_interpolation="bilinear", in_channels=1).eval()
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours = build_model(ModelConfig(encoder="mobilenet_v2", init=str(tmp_path / "smp.pth")), 0)[0].eval()
    grey = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(grey.expand(-1, 3, -1, -1)), theirs(grey), rtol=1e-4, atol=1e-5)
