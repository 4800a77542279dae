"""The article's convolutional networks, and any other of timm's, by name. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glioma_dist.registry import EncoderEntry


@dataclass(frozen=True)
class TimmModel:
    """Where an encoder of ours is found in timm."""

    name: str
    out_modules: tuple[str, ...] = ()
    """Modules after which maps are taken, finest first; by default those that timm names."""
    options: dict[str, Any] = field(default_factory=dict)
    """For `timm.create_model`."""
    pad: bool = False
    """Whether 3x3 convolutions and poolings are to be padded, so that each stride divides the image exactly."""
    centred: tuple[str, ...] = ()
    """Convolutions with TensorFlow's padding that are to be padded alike on all sides."""
    linear: tuple[str, ...] = ()
    """Norms whose activation is omitted."""
    rectified: bool = False
    """Whether the maps, not what the network itself computes with, pass a ReLU."""
    center: bool = False
    """Whether the decoder convolves the coarsest map first, as segmentation_models.pytorch does for VGG."""
    aliases: tuple[str, ...] = ()
    """Names of the article, of segmentation_models.pytorch and of timm, as `Entry.aliases`."""
    smp_name: str | None = None
    """In segmentation_models.pytorch; by default its name is ours."""
    has_spatial_layers: bool = False
    """As `Encoder.has_spatial_layers`."""


_UNUSED_CLASSIFIER = {"mlp_ratio": 2**-12}

TIMM_MODELS: dict[str, TimmModel] = {
    "densenet169": TimmModel(
        "densenet169",
        out_modules=(
            "features.norm0",
            "features.transition1.norm",
            "features.transition2.norm",
            "features.transition3.norm",
            "features.norm5",
        ),
        linear=("features.norm5",),
    ),
    "dpn92": TimmModel(
        "dpn92",
        out_modules=(
            "features.conv1_1",
            "features.conv2_3",
            "features.conv3_4",
            "features.conv4_20",
            "features.conv5_bn_ac",
        ),
        options={"fc_act_layer": "relu"},
        rectified=True,
    ),
    "efficientnet_b5": TimmModel(
        "tf_efficientnet_b5",
        out_modules=("bn1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
        # At the 456 pixels that it was trained with, these two see maps of odd sides, and TensorFlow centres them.
        centred=("blocks.3.0.conv_dw", "blocks.5.0.conv_dw"),
        aliases=("efficientnetb5", "tf_efficientnet_b5"),
        smp_name="efficientnet-b5",
    ),
    # TensorFlow's momentum, 0.01, takes hundreds of steps until running statistics fit new weights.
    "efficientnet_lite0": TimmModel(
        "tf_efficientnet_lite0",
        options={"bn_momentum": 0.1},
        aliases=("tf_efficientnet_lite0", "tu_tf_efficientnet_lite0"),
        smp_name="tu-tf_efficientnet_lite0",
    ),
    "gernet_l": TimmModel(
        "gernet_l",
        aliases=("timm_gernet_l", "tu_gernet_l"),
        smp_name="tu-gernet_l",
    ),
    "inceptionv4": TimmModel(
        "inception_v4",
        out_modules=("features.2", "features.4", "features.8", "features.14", "features.21"),
        pad=True,
        aliases=("inception_v4",),
    ),
    "mobilenet_v2": TimmModel(
        "mobilenetv2_100",
        out_modules=("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"),
        aliases=("mobilenetv2", "mobilenetv2_100"),
    ),
    "regnetx_064": TimmModel(
        "regnetx_064",
        aliases=("timm_regnetx_064", "tu_regnetx_064"),
        smp_name="tu-regnetx_064",
    ),
    "res2net50_26w_4s": TimmModel(
        "res2net50_26w_4s",
        aliases=("res2net50", "timm_res2net50_26w_4s", "tu_res2net50_26w_4s"),
        smp_name="tu-res2net50_26w_4s",
    ),
    "resnest50d": TimmModel(
        "resnest50d",
        aliases=("resnest50", "timm_resnest50d", "tu_resnest50d"),
        smp_name="tu-resnest50d",
    ),
    "resnet50": TimmModel(
        "resnet50",
        aliases=("tu_resnet50",),
        has_spatial_layers=True,
    ),
    "resnext50_32x4d": TimmModel(
        "resnext50_32x4d",
        aliases=("resnext50", "tu_resnext50_32x4d"),
    ),
    "se_resnet50": TimmModel(
        "legacy_seresnet50",
        aliases=("legacy_seresnet50",),
    ),
    "se_resnext50_32x4d": TimmModel(
        "legacy_seresnext50_32x4d",
        aliases=("legacy_seresnext50_32x4d", "se_resnext50"),
    ),
    "vgg19": TimmModel(
        "vgg19",
        options=_UNUSED_CLASSIFIER,
        has_spatial_layers=True,
        center=True,
    ),
    "xception": TimmModel(
        "legacy_xception",
        out_modules=("act2", "block1", "block2", "block11", "bn4"),
        pad=True,
        aliases=("legacy_xception",),
    ),
}
"""Our names and timm's. Where segmentation_models.pytorch, of which the article's networks are, has other maps or
paddings than timm, this table does the same; with equal weights all of them give what that library's give."""

DECLARED = (
    *(
        EncoderEntry(
            name,
            "glioma_dist.model.encoders.timm_models:TimmEncoder",
            aliases=model.aliases,
            family="timm",
            smp_name=model.smp_name or name,
            has_spatial_layers=model.has_spatial_layers,
        )
        for name, model in TIMM_MODELS.items()
    ),
    EncoderEntry("timm/", "glioma_dist.model.encoders.any_timm:AnyTimmEncoder", family="timm"),
)
