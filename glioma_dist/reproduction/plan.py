"""From a study to the runs of the commands train, evaluate and predict that it takes, each with a config of its own.

A run's name says all that decides its numbers, so that rows and studies that need the same run share it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from glioma_dist.config import DataConfig, EvaluateConfig, ModelConfig, PredictConfig, ScaleConfig, TrainConfig
from glioma_dist.config.file import to_dict
from glioma_dist.reproduction.presets import Preset, Schedule
from glioma_dist.reproduction.protocol import Comparison, Pretraining, Row, Study
from glioma_dist.size import Size

FIGURE6_REPETITION = 0


TRANSFORMS = {"resize": "resize", "crop": "random-crop"}
"""--data.transform for the ways of the article's tables."""


@dataclass(frozen=True)
class Settings:
    """What a study runs on, beside its protocol."""

    preset: Preset
    source: Path
    out: Path
    """Everything the study makes."""
    source_splits: tuple[str, str, str] = ("train", "val", "test")
    """Which folders of the source to pretrain on, validate and test with."""
    seed: int = 0
    """Of the splits and the starting weights: repetition k takes seed + k for both."""
    counts: tuple[int, int, int] = (15, 5, 10)
    imagenet: tuple[str, ...] = ("hub",)
    """Where ImageNet weights come from: hub, and encoder=FILE for those of files; none where there are none."""
    activation_checkpointing: Literal["none", "selective", "full", "offload", "auto"] = "auto"
    workers: int = 2

    def imagenet_file(self, encoder: str) -> str | None:
        return dict(each.split("=", 1) for each in self.imagenet if "=" in each).get(encoder)

    def has_imagenet(self, encoder: str) -> bool:
        return self.imagenet_file(encoder) is not None or "hub" in self.imagenet

    def encoder(self, row: Row) -> str:
        """That which is run where the article has `row.encoder`."""
        return self.preset.encoders.get(row.encoder, row.encoder)

    @property
    def target(self) -> Path:
        """All of the target's images, each in a shard of its own."""
        return self.out / "target" / "all"

    def split(self, repetition: int, name: str) -> Path:
        return self.out / "target" / f"{repetition:02d}" / name

    @property
    def splits_file(self) -> Path:
        return self.out / "splits.json"


@dataclass(frozen=True)
class Job:
    """One run of a command."""

    command: Literal["train", "evaluate", "predict"]
    folder: Path
    """Where the run's config, log and results are."""
    stem: str
    """Of the names of its config and log in that folder."""
    encoder: str
    config: dict[str, Any]
    needs: tuple[Path, ...] = ()
    """Folders of the trainings that must be finished before."""
    num_passes: tuple[tuple[int, int, Size], ...] = ()
    """For the estimate: images at most, passes through the network each (backward counts two), and the size."""

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def marker(self) -> Path:
        """Is there when the run is finished, and says what it took."""
        return self.folder / f"{self.stem}.finished.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.stem}.log"


@dataclass(frozen=True)
class RowPlan:
    """What a row takes: for each repetition the scoring run, or why it cannot be run at all."""

    row: Row
    scores: tuple[Path, ...]
    """The files of scores, a repetition each."""
    training: tuple[Path, ...]
    """The folders of the trainings that are scored."""
    impossible: str | None = None


@dataclass(frozen=True)
class Plan:
    """jobs: in an order in which they can be run, each once."""

    study: Study
    rows: tuple[RowPlan, ...]
    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()
    pictures: tuple[tuple[Row, Job], ...] = ()
    """For figure 6: the runs of predict."""


def make_plan(study: Study, settings: Settings, num_source: tuple[int, int], picture: Path | None = None) -> Plan:
    """num_source: images of the source to train and validate with, for the estimate. picture: for figure 6."""
    jobs: dict[Path, Job] = {}
    rows, without_imagenet, pictures = [], [], []

    def add(job: Job) -> Job:
        return jobs.setdefault(job.config_file, job)

    for row in study.rows:
        encoder = settings.encoder(row)
        if row.start == "imagenet" and not settings.has_imagenet(encoder):
            rows.append(RowPlan(row, (), (), f"no ImageNet weights of {encoder} were given"))
            continue
        base = None
        if isinstance(row.start, Pretraining):
            base = add(pretraining_job(settings, encoder, row.start, num_source))
            if not settings.has_imagenet(encoder):
                without_imagenet.append(encoder)
        repetitions = range(settings.preset.num_repetitions if row.comparison.data == "test" else 1)
        trainings = [
            add(fine_tuning_job(settings, encoder, row, base, number)) if row.fine_tuning else base
            for number in repetitions
        ]
        scorings = [
            add(scoring_job(settings, training, row.comparison, number))
            for training, number in zip(trainings, repetitions, strict=True)
        ]
        rows.append(
            RowPlan(
                row,
                tuple(Path(job.config["out"]) for job in scorings),
                tuple(job.folder for job in trainings),
            )
        )
        if study.shows == "pictures":
            pictures.append((row, add(picture_job(settings, trainings[FIGURE6_REPETITION], row, picture))))
    names = ", ".join(dict.fromkeys(without_imagenet))
    notes = (
        (f"Pretraining of {names} began from random weights, because no ImageNet weights were given",) if names else ()
    )
    return Plan(study, tuple(rows), tuple(jobs.values()), notes, tuple(pictures))


def pretraining_job(settings: Settings, encoder: str, start: Pretraining, num_source: tuple[int, int]) -> Job:
    """Shared by all rows that start from it: trained once."""
    preset = settings.preset
    train, val, _ = (settings.source / name for name in settings.source_splits)
    data = DataConfig(
        train=train,
        val=val,
        size=preset.sizes[start.size],
        transform="resize" if start.crop_side is None else "random-resized-crop",
        crop_side=start.crop_side or DataConfig.crop_side,
        augment=start.augment,
        workers=settings.workers,
    )
    init = "imagenet" if settings.has_imagenet(encoder) else "random"
    folder = settings.out / "runs" / f"{encoder}-{start.slug}"
    return training_job(settings, folder, encoder, init, data, preset.pretraining, settings.seed, num_source)


def fine_tuning_job(settings: Settings, encoder: str, row: Row, base: Job | None, number: int) -> Job:
    tuning, preset = row.fine_tuning, settings.preset
    num_train = tuning.num_train or settings.counts[0]
    data = DataConfig(
        train=settings.split(number, "train" if tuning.num_train is None else f"train-{num_train:02d}"),
        val=settings.split(number, "val"),
        size=preset.sizes[tuning.size],
        transform=TRANSFORMS[tuning.fit],
        augment=tuning.augment,
        workers=settings.workers,
    )
    init = str(base.folder / "run" / "best") if base else str(row.start)
    start = row.start.slug if base else init
    folder = settings.out / "runs" / f"{encoder}-{start}-{tuning.slug}" / f"{number:02d}"
    num_images = (num_train, settings.counts[1])
    # A batch is never larger than what there is to train on.
    schedule = replace(preset.fine_tuning, batch_size=min(preset.fine_tuning.batch_size, num_train))
    job = training_job(settings, folder, encoder, init, data, schedule, settings.seed + number, num_images)
    return replace(job, needs=(base.folder,) if base else ())


def training_job(
    settings: Settings,
    folder: Path,
    encoder: str,
    init: str,
    data: DataConfig,
    schedule: Schedule,
    seed: int,
    num_images: tuple[int, int],
) -> Job:
    """num_images: to train and to validate on."""
    config = to_dict(
        TrainConfig(
            data=data,
            model=ModelConfig(encoder=encoder, init=init),
            scale=ScaleConfig(activation_checkpointing=settings.activation_checkpointing),
            batch_size=schedule.batch_size,
            lr=settings.preset.lr,
            seed=seed,
            epochs=schedule.epochs,
            max_steps=schedule.max_steps,
            eval_every=schedule.eval_every,
            patience=schedule.patience,
            out=folder / "run",
        )
    )
    if init == "imagenet" and settings.imagenet_file(encoder):
        config["model"]["weights"] = settings.imagenet_file(encoder)
    steps_per_epoch = max(1, num_images[0] // schedule.batch_size)
    num_steps = min(schedule.epochs * steps_per_epoch, schedule.max_steps or schedule.epochs * steps_per_epoch)
    full = settings.preset.sizes["2592p"] if data.transform == "random-crop" else data.size
    num_validated = -(-num_steps // (schedule.eval_every or steps_per_epoch)) * num_images[1]
    passes = ((num_steps * schedule.batch_size, 3, data.size), (num_validated, 1, full))
    return Job("train", folder, "train", encoder, config, num_passes=passes)


def scoring_job(settings: Settings, training: Job, comparison: Comparison, number: int) -> Job:
    places = {
        "test": settings.split(number, "test"),
        "target": settings.target,
        "source": settings.source / settings.source_splits[2],
    }
    name = f"scores_{comparison.slug}"
    sizes = settings.preset.sizes
    config = EvaluateConfig(
        checkpoint=training.folder / "run" / "best",
        data=str(places[comparison.data]),
        input_size=sizes[comparison.input_size],
        metric_size=sizes[comparison.metric_size],
        out=training.folder / f"{name}.json",
        workers=settings.workers,
    )
    passes = ((settings.counts[2], 1, sizes[comparison.input_size]),)
    stem, needs = f"evaluate_{comparison.slug}", (training.folder,)
    return Job("evaluate", training.folder, stem, training.encoder, to_dict(config), needs, passes)


def picture_job(settings: Settings, training: Job, row: Row, picture: Path | None) -> Job:
    config = PredictConfig(
        checkpoint=training.folder / "run" / "best",
        images=str(picture or default_picture(settings)),
        out=training.folder / "picture",
        input_size=settings.preset.sizes[row.comparison.input_size],
    )
    return Job("predict", training.folder, "predict", training.encoder, to_dict(config), (training.folder,))


def default_picture(settings: Settings) -> Path:
    """A test image of the repetition that figure 6 shows."""
    return settings.out / "target" / "picture.png"


def share(jobs: tuple[Job, ...], costs: dict[Path, float], number: int, count: int) -> tuple[Job, ...]:
    """Those of the jobs that task `number` of `count`, from 0, runs: no task waits for another.

    All that starts from one pretraining stays together with it. The costliest first, each lot goes to the task that
    has the least to do. costs: of each job, by its config's file.
    """
    lots: dict[Path, list[Job]] = {}
    lot_of: dict[Path, Path] = {}
    for job in jobs:
        roots = [lot_of[folder] for folder in job.needs]
        root = roots[0] if roots else job.folder
        if job.command == "train":
            lot_of[job.folder] = root
        lots.setdefault(root, []).append(job)
    loads, own = [0.0] * count, set()
    totals = {root: sum(costs[job.config_file] for job in lot) for root, lot in lots.items()}
    for root in sorted(lots, key=lambda root: (-totals[root], str(root))):
        task = min(range(count), key=lambda place: (loads[place], place))
        loads[task] += totals[root]
        if task == number:
            own.add(root)
    chosen = {job.config_file for root in own for job in lots[root]}
    return tuple(job for job in jobs if job.config_file in chosen)
