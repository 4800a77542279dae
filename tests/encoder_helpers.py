"""The article's encoders, narrow and shallow enough for tests, the architecture timm's own; and networks without kinks,
for comparisons in fp32."""

from dataclasses import replace
from typing import Any

import pytest
from timm.models import vgg
from torch.nn import functional

from glioma_dist.model.encoders.mit_names import MIT_SHAPES
from glioma_dist.model.encoders.timm_models import TIMM_MODELS

NARROW_VGG = [4, 4, "M", 8, 8, "M", 8, 8, 8, 8, "M", 16, 16, 16, 16, "M", 16, 16, 16, 16, "M"]
SHALLOW = {"layers": (1, 2, 1, 1)}
NARROW = {
    "resnet50": {"options": {**SHALLOW, "channels": (8, 8, 16, 16)}},
    "res2net50_26w_4s": {"options": {**SHALLOW, "channels": (8, 8, 16, 16)}},
    "resnest50d": {"options": {**SHALLOW, "channels": (8, 8, 16, 16), "stem_width": 4}},
    "resnext50_32x4d": {"options": SHALLOW},
    "se_resnet50": {"options": SHALLOW},
    "se_resnext50_32x4d": {"options": SHALLOW},
    "densenet169": {"options": {"growth_rate": 4, "block_config": (2, 2, 2, 2)}},
    "dpn92": {
        "options": {"fc_act_layer": "relu", "k_sec": (1, 2, 1, 1), "inc_sec": (4, 4, 4, 4), "k_r": 32, "groups": 2},
        "out_modules": (
            "features.conv1_1",
            "features.conv2_1",
            "features.conv3_2",
            "features.conv4_1",
            "features.conv5_bn_ac",
        ),
    },
    "mobilenet_v2": {"name": "mobilenetv2_035"},
}
"""By encoder name, what is changed of its row of TIMM_MODELS; vgg19's widths are a table of timm's."""


def narrow(monkeypatch, *names: str) -> None:
    """Have these encoders built narrow within this process, for as long as `monkeypatch` lasts."""
    for name in names:
        if name == "vgg19":
            monkeypatch.setitem(vgg.cfgs, "vgg19", NARROW_VGG)
        else:
            monkeypatch.setitem(TIMM_MODELS, name, replace(TIMM_MODELS[name], **NARROW[name]))


def narrow_transformers(monkeypatch) -> None:
    """Have every MiT but the tiny one built with all its layers, a quarter as wide, a sixteenth of the weights, for as
    long as `monkeypatch` lasts."""
    for name, shape in MIT_SHAPES.items():
        if name != "mit_tiny":
            sizes = tuple(size // 4 for size in shape["hidden_sizes"])
            monkeypatch.setitem(MIT_SHAPES, name, {**shape, "hidden_sizes": sizes})


SMALLER = {"efficientnet_b5": "tf_efficientnet_b0", "gernet_l": "gernet_s", "regnetx_064": "regnetx_002"}
"""timm's smaller models of the same layers."""


def narrow_everything(monkeypatch) -> None:
    """Have every encoder that can be built narrow, or as its family's smallest, for as long as `monkeypatch` lasts."""
    narrow_transformers(monkeypatch)
    narrow(monkeypatch, "vgg19", *NARROW)
    for name, smaller in SMALLER.items():
        monkeypatch.setitem(TIMM_MODELS, name, replace(TIMM_MODELS[name], name=smaller))


def smooth(monkeypatch) -> None:
    """Have the decoders of this process bend smoothly where they have kinks, for as long as `monkeypatch` lasts.

    Of a million inputs of ReLUs one lies so near 0 that rounding decides over its gradient, another one on another
    machine; in fp32 that is 1e-3 of the sum it goes into.
    """
    monkeypatch.setattr(functional, "relu", lambda features, inplace=False: functional.silu(features))


DEEPER = ("mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5")
"""MiT-B0 with more layers of the same kinds."""


def slow_if_deeper(name: str) -> Any:
    """An encoder as a parameter of a test; of those that differ in depth alone, only the first is not slow."""
    return pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ())
