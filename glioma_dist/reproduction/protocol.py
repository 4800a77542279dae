"""The article's tables and figures as data: which models, trained how, compared at which sizes, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

NARROW, WIDE = (0.52, 0.62), (0.27, 0.87)
"""The article's ranges of the side of random resized crops: 57 +- 5 % and 57 +- 30 %."""
ENCODERS = {
    "mit_b3": "MiT-B3",
    "vgg19": "VGG19",
    "densenet169": "DenseNet169",
    "dpn92": "DPN92",
    "efficientnet_b5": "EfficientNet-b5",
    "inceptionv4": "InceptionV4",
    "mobilenet_v2": "MobileNetV2",
    "resnet50": "ResNet50",
    "resnext50_32x4d": "ResNeXt50 32x4d",
    "se_resnet50": "SE-ResNet50",
    "se_resnext50_32x4d": "SE-ResNeXt50 32x4d",
    "gernet_l": "GERNet-L",
    "regnetx_064": "RegNetX-064",
    "res2net50_26w_4s": "Res2Net50 26w 4s",
    "resnest50d": "ResNeSt50d",
    "xception": "Xception",
}
"""The sixteen that the article compares, and what it calls them."""


@dataclass(frozen=True)
class Pretraining:
    """The whole model trained on the source's images, itself from the ImageNet encoder."""

    size: str
    crop_side: tuple[float, float] | None = None
    """Of random resized crops; None: the whole image is scaled to the size."""
    augment: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        if self.crop_side is None:
            return ", ".join([f"LIVECell ({self.size})", *self.augment])
        low, high = self.crop_side
        return ", ".join(
            [f"LIVECell ({self.size}), RRC {(low + high) * 50:.0f}±{(high - low) * 50:.0f}", *self.augment]
        )

    @property
    def slug(self) -> str:
        way = "resize" if self.crop_side is None else f"rrc{100 * self.crop_side[0]:.0f}to{100 * self.crop_side[1]:.0f}"
        return "_".join(["livecell", way, self.size, *self.augment])


Start = Literal["random", "imagenet"] | Pretraining


@dataclass(frozen=True)
class FineTuning:
    """Training on the target's images."""

    fit: Literal["resize", "crop"]
    """In the words of the article's tables."""
    size: str
    augment: tuple[str, ...] = ()
    num_train: int | None = None
    """Of the training images only so many; None: all."""

    @property
    def title(self) -> str:
        count = [] if self.num_train is None else [f"{self.num_train} images"]
        return ", ".join([f"{self.fit} {self.size}", *self.augment, *count])

    @property
    def slug(self) -> str:
        count = [] if self.num_train is None else [f"{self.num_train}images"]
        return "_".join([self.fit, self.size, *self.augment, *count])


@dataclass(frozen=True)
class Comparison:
    """DS(x, y, R1, R2) on which images: those that a repetition tests, all of the target, or the test split of the
    source."""

    input_size: str
    metric_size: str
    data: Literal["test", "target", "source"] = "test"

    @property
    def title(self) -> str:
        place = {"test": "", "target": ", zero-shot", "source": ", LIVECell test"}[self.data]
        return f"({self.input_size}, {self.metric_size}){place}"

    @property
    def slug(self) -> str:
        return f"{self.data}_{self.input_size}_{self.metric_size}"


@dataclass(frozen=True)
class Row:
    """A score: of a model (encoder, starting weights, fine-tuning) at a pair of sizes."""

    encoder: str
    start: Start
    fine_tuning: FineTuning | None
    """None: the pretrained model as it is."""
    comparison: Comparison
    article: tuple[float, ...] = ()
    """The article's DiceScoreAV; two where it lists the row twice, none where it gives no number."""
    remark: str = ""

    @property
    def start_title(self) -> str:
        titles = {"random": "random", "imagenet": "ImageNet"}
        return self.start.title if isinstance(self.start, Pretraining) else titles[self.start]


@dataclass(frozen=True)
class Claim:
    """What the article says of two rows: that the first is better."""

    text: str
    better: int
    worse: int
    """Numbers of the rows, from 0."""


@dataclass(frozen=True)
class Study:
    """A table or figure of the article."""

    name: str
    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    shows: Literal["table", "training-set size", "epochs", "pictures"] = "table"


LIVECELL_704, LIVECELL_1472, LIVECELL_2592 = Pretraining("704p"), Pretraining("1472p"), Pretraining("2592p")
LIVECELL_WIDE = Pretraining("1472p", WIDE)
AT_704, FROM_704, AT_2592 = Comparison("704p", "704p"), Comparison("704p", "2592p"), Comparison("2592p", "2592p")
RESIZE_704, CROP_1472 = FineTuning("resize", "704p"), FineTuning("crop", "1472p")
PAIR = ("mit_b3", "vgg19")
STARTS: tuple[Start, ...] = ("random", "imagenet", LIVECELL_704)


def table1() -> Study:
    scores = (0.868, 0.930, 0.940, 0.913, 0.932, 0.940)
    rows = [
        Row(encoder, start, RESIZE_704, AT_704, (score,))
        for (encoder, start), score in zip(product(PAIR, STARTS), scores, strict=True)
    ]
    claims = [
        Claim(f"{ENCODERS[encoder]}: {text}", first + better, first + worse)
        for first, encoder in ((0, "mit_b3"), (3, "vgg19"))
        for text, better, worse in (
            ("pretraining on cells is better than ImageNet at low resolution", 2, 1),
            ("ImageNet is better than random weights", 1, 0),
        )
    ]
    return Study("table1", "Table 1: starting weights at 704p", tuple(rows), tuple(claims))


def table2() -> Study:
    scores = {
        ("mit_b3", "imagenet"): (0.876, 0.696),
        ("vgg19", "imagenet"): (0.878, 0.742),
        ("mit_b3", LIVECELL_704): (0.886, 0.817),
        ("vgg19", LIVECELL_704): (0.887, 0.632),
    }
    rows = [
        Row(encoder, start, RESIZE_704, comparison, (score,))
        for (encoder, start), pair in scores.items()
        for comparison, score in zip((FROM_704, AT_2592), pair, strict=True)
    ]
    claims = [
        Claim(
            f"{ENCODERS[encoder]}, {'ImageNet' if start == 'imagenet' else 'LIVECell'}: the training size is a better "
            "input than full size",
            2 * number,
            2 * number + 1,
        )
        for number, (encoder, start) in enumerate(scores)
    ]
    return Study("table2", "Table 2: models of 704p compared at full size", tuple(rows), tuple(claims))


def table3(native: bool = False) -> Study:
    """native: with the rows that the article could not run."""
    listed: list[tuple[str, Start, str, str, tuple[float, ...]]] = [
        ("vgg19", "imagenet", "resize", "1472p", (0.904,)),
        ("vgg19", LIVECELL_704, "resize", "1472p", (0.901,)),
        ("vgg19", LIVECELL_1472, "resize", "1472p", (0.901,)),
        ("vgg19", "imagenet", "crop", "1472p", (0.903,)),
        ("vgg19", "imagenet", "resize", "2592p", (0.907,)),
        ("vgg19", LIVECELL_704, "resize", "2592p", (0.903,)),
        ("vgg19", LIVECELL_1472, "resize", "2592p", (0.902,)),
        ("vgg19", LIVECELL_2592, "resize", "2592p", (0.900,)),
        ("mit_b3", "imagenet", "resize", "1472p", (0.905,)),
        ("mit_b3", LIVECELL_704, "resize", "1472p", (0.904,)),
        ("mit_b3", LIVECELL_1472, "resize", "1472p", (0.904,)),
        ("mit_b3", "imagenet", "crop", "1472p", (0.905, 0.903)),
        ("mit_b3", LIVECELL_704, "crop", "1472p", (0.899,)),
    ]
    rows = [
        Row(encoder, start, FineTuning(fit, size), input_of(fit, size), scores)
        for encoder, start, fit, size, scores in listed
    ]
    claims = [
        Claim("VGG19: full size is better than 1472p", 4, 0),
        Claim("VGG19: at full size ImageNet is better than LIVECell (704p)", 4, 5),
        Claim("MiT-B3: on crops ImageNet is better than LIVECell (704p)", 11, 12),
    ]
    if native:
        rows += [
            Row("mit_b3", start, FineTuning("resize", "2592p"), AT_2592, (), "out of memory")
            for start in ("imagenet", LIVECELL_704, LIVECELL_1472, LIVECELL_WIDE)
        ]
        claims += [
            Claim("MiT-B3 at full size is better than at 1472p (the article could not run it)", 13, 8),
            Claim("MiT-B3 at full size is better than VGG19 at full size (the article expected it to match)", 13, 4),
        ]
    return Study("table3", "Table 3: high resolution, compared at 2592p", tuple(rows), tuple(claims))


def input_of(fit: str, size: str) -> Comparison:
    """A model of scaled images is tested at its own size, one of crops at full size."""
    return AT_2592 if fit == "crop" else Comparison(size, "2592p")


def table4() -> Study:
    pretrainings = (
        (LIVECELL_704, 0.899, "pretrained at 704p: the article does not say, and this is its table 3's row of 0.899"),
        (Pretraining("1472p", NARROW), 0.903, ""),
        (LIVECELL_WIDE, 0.904, ""),
        (Pretraining("1472p", WIDE, ("flips",)), 0.903, ""),
        (Pretraining("1472p", WIDE, ("flips", "sharpen")), 0.906, ""),
        (Pretraining("1472p", WIDE, ("flips", "contrast")), 0.906, ""),
        (Pretraining("1472p", WIDE, ("flips", "sharpen", "contrast")), 0.903, ""),
    )
    rows = [Row("mit_b3", start, CROP_1472, AT_2592, (score,), remark) for start, score, remark in pretrainings]
    claims = (
        Claim("Crops of wide range in pretraining are better than none", 2, 0),
        Claim("Flips and sharpening in pretraining are better than crops alone", 4, 2),
        Claim("Flips and contrast in pretraining are better than crops alone", 5, 2),
    )
    return Study("table4", "Table 4: augmentation of LIVECell in pretraining", tuple(rows), claims)


def table5() -> Study:
    changes = (((), 0.904), (("flips",), 0.904), (("flips", "sharpen"), 0.903), (("flips", "contrast"), 0.902))
    rows = [
        Row("mit_b3", LIVECELL_WIDE, FineTuning("crop", "1472p", names), AT_2592, (score,)) for names, score in changes
    ]
    claims = (Claim("Flips and contrast in fine-tuning are worse than none", 0, 3),)
    return Study("table5", "Table 5: augmentation in fine-tuning", tuple(rows), claims)


def figure3() -> Study:
    rows = [
        Row(encoder, start, FineTuning("resize", "704p", (), count), AT_704)
        for encoder, start, count in product(PAIR, STARTS, (5, 10, None))
    ]
    claims = [
        Claim(f"{ENCODERS[encoder]}, 5 images: pretraining on cells is better than ImageNet", first + 6, first + 3)
        for first, encoder in ((0, "mit_b3"), (9, "vgg19"))
    ]
    title = "Figure 3: DiceLossAV(704p, 704p) against the size of the training set"
    return Study("figure3", title, tuple(rows), tuple(claims), "training-set size")


def figure4() -> Study:
    title = "Figure 4: DiceLossAV(704p, 704p) of the validation images against the epoch"
    return Study("figure4", title, table1().rows, (), "epochs")


def figure6() -> Study:
    title = "Figure 6: masks from each starting weight"
    return Study("figure6", title, table1().rows, (), "pictures")


def encoders() -> Study:
    rows = [
        Row(encoder, LIVECELL_704, None, Comparison("704p", "704p", data))
        for encoder in ENCODERS
        for data in ("source", "target")
    ]
    return Study("encoders", "Sixteen encoders on LIVECell, and zero-shot on the target", tuple(rows))


def find_studies(name: str, native: bool) -> list[Study]:
    """The study of that name, or all for "all"; native: table 3 with the rows that the article could not run."""
    studies = [table1(), table2(), table3(native), table4(), table5(), figure3(), figure4(), figure6(), encoders()]
    return studies if name == "all" else [next(study for study in studies if study.name == name)]
