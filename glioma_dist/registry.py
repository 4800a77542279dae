"""Encoders by name, and by what others call them."""

from __future__ import annotations

import re

ENCODER_NAMES = (
    "mit_tiny",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mit_b3",
    "mit_b4",
    "mit_b5",
    "densenet169",
    "dpn92",
    "efficientnet_b5",
    "efficientnet_lite0",
    "gernet_l",
    "inceptionv4",
    "mobilenet_v2",
    "regnetx_064",
    "res2net50_26w_4s",
    "resnest50d",
    "resnet50",
    "resnext50_32x4d",
    "se_resnet50",
    "se_resnext50_32x4d",
    "vgg19",
    "xception",
)
ENCODER_ALIASES = {
    "efficientnetb5": "efficientnet_b5",
    "inception_v4": "inceptionv4",
    "legacy_seresnet50": "se_resnet50",
    "legacy_seresnext50_32x4d": "se_resnext50_32x4d",
    "legacy_xception": "xception",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv2_100": "mobilenet_v2",
    "se_resnext50": "se_resnext50_32x4d",
    "resnext50": "resnext50_32x4d",
    "res2net50": "res2net50_26w_4s",
    "resnest50": "resnest50d",
    "tf_efficientnet_lite0": "efficientnet_lite0",
    "timm_gernet_l": "gernet_l",
    "timm_regnetx_064": "regnetx_064",
    "timm_res2net50_26w_4s": "res2net50_26w_4s",
    "timm_resnest50d": "resnest50d",
    "tu_gernet_l": "gernet_l",
    "tu_regnetx_064": "regnetx_064",
    "tu_res2net50_26w_4s": "res2net50_26w_4s",
    "tu_resnest50d": "resnest50d",
    "tu_resnet50": "resnet50",
    "tu_resnext50_32x4d": "resnext50_32x4d",
    "tu_tf_efficientnet_lite0": "efficientnet_lite0",
    "tf_efficientnet_b5": "efficientnet_b5",
}
"""Other names of the same networks: the article's, segmentation_models.pytorch's and timm's, in small letters, with `_`
for spaces and hyphens."""


SMP_NAMES = {
    "efficientnet_b5": "efficientnet-b5",
    "gernet_l": "tu-gernet_l",
    "regnetx_064": "tu-regnetx_064",
    "res2net50_26w_4s": "tu-res2net50_26w_4s",
    "resnest50d": "tu-resnest50d",
    "efficientnet_lite0": "tu-tf_efficientnet_lite0",
}
"""What segmentation_models.pytorch 0.6 calls the same networks, where it has another name for them."""


def known_encoder(name: str) -> str:
    """Our name of an encoder that is written as others write it, as MiT-B3 or ResNet-50; others stay as they are."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    for each in (plain, re.sub(r"(?<=[a-z])_(?=\d)", "", plain)):
        ours = ENCODER_ALIASES.get(each, each)
        if ours in ENCODER_NAMES:
            return ours
    return name
