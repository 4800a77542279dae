"""What a study found, as plain JSON values: scores with their spread, rows compared, and the runs behind them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from glioma_dist.errors import InputError
from glioma_dist.evaluation.comparison import (
    LEVEL,
    PairedTest,
    bootstrap_interval,
    dice_score_av,
    holm,
    paired_test,
    repetition_means,
    standard_deviation,
)
from glioma_dist.files import read_json
from glioma_dist.reproduction.execute import command_of, failure, is_finished
from glioma_dist.reproduction.plan import Job, Plan, RowPlan, Settings
from glioma_dist.reproduction.protocol import ENCODERS, Claim
from glioma_dist.training.metrics_file import read_rows

Scores = list[dict[str, float]]
SIGNIFICANT = 0.05


def collect(
    plan: Plan, settings: Settings, launch_file: Path, groups: dict[str, str] | None, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the report shows, from whatever is finished. metadata: of the machine and the command."""
    study = plan.study
    scores = [read_scores(row) for row in plan.rows]
    rows = [describe_row(row, found, settings, groups) for row, found in zip(plan.rows, scores, strict=True)]
    by_folder = {job.folder: job for job in plan.jobs if job.command == "train"}
    for row, planned in zip(rows, plan.rows, strict=True):
        reasons = [failure(by_folder[folder]) for folder in planned.training]
        row["status"] = planned.impossible or next((reason for reason in reasons if reason), row["status"])
    add_comparisons(rows, plan.rows, scores, settings)
    preset = settings.preset
    return {
        "study": study.name,
        "title": study.title,
        "shows": study.shows,
        "preset": preset.name,
        "protocol": {
            "sizes": {name: str(size) for name, size in preset.sizes.items()},
            "target_size": "as taken" if preset.target_size is None else str(preset.target_size),
            "counts": list(settings.counts),
            "num_repetitions": preset.num_repetitions,
            "pretraining": asdict(preset.pretraining),
            "fine_tuning": asdict(preset.fine_tuning),
            "lr": preset.lr,
            "seed": settings.seed,
            "level": LEVEL,
        },
        "data": describe_data(settings),
        "metadata": metadata,
        "notes": [*plan.notes, *stand_ins(plan, settings)],
        "rows": rows,
        "claims": [judge(claim, plan.rows, scores, settings) for claim in study.claims],
        "curves": [curve(row, settings) for row in plan.rows] if study.shows == "epochs" else [],
        "pictures": [
            {
                "start": row.start_title,
                "model": model_title(row.encoder, settings),
                "image": job.config["images"],
                "folder": job.config["out"],
            }
            for row, job in plan.pictures
        ],
        "runs": [describe_run(job, launch_file) for job in plan.jobs],
    }


def read_scores(row: RowPlan) -> Scores:
    """Of the repetitions, in their order, those that are finished."""
    found = []
    for path in row.scores:
        if (path.parent / path.name.replace("scores_", "evaluate_").replace(".json", ".finished.json")).exists():
            found.append({image["key"]: image["dice"] for image in read_json(path)["images"]})
    return found


def describe_row(planned: RowPlan, scores: Scores, settings: Settings, groups: dict[str, str] | None) -> dict[str, Any]:
    row = planned.row
    spread: dict[str, Any] = {"mean": None, "standard_deviation": None, "interval": None, "repetitions": []}
    if scores:
        own = groups if row.comparison.data != "source" else None
        generator = np.random.default_rng(settings.seed)
        spread = {
            "mean": dice_score_av(scores),
            "standard_deviation": standard_deviation(scores),
            "interval": list(bootstrap_interval(scores, generator, own)),
            "repetitions": repetition_means(scores).tolist(),
        }
    return {
        "model": model_title(row.encoder, settings),
        "start": row.start_title,
        "fine_tuning": row.fine_tuning.title if row.fine_tuning else "none",
        "num_train": num_train(planned, settings),
        "compared": row.comparison.title,
        "article": list(row.article),
        "article_says": row.remark,
        **spread,
        "status": "ok" if len(scores) == len(planned.scores) else f"{len(scores)} of {len(planned.scores)} finished",
    }


def num_train(planned: RowPlan, settings: Settings) -> int:
    tuning = planned.row.fine_tuning
    return (tuning.num_train if tuning else None) or settings.counts[0]


def model_title(encoder: str, settings: Settings) -> str:
    name = settings.preset.encoders.get(encoder)
    return ENCODERS[encoder] if name is None else f"{name} (for {ENCODERS[encoder]})"


def stand_ins(plan: Plan, settings: Settings) -> list[str]:
    used = dict.fromkeys(row.row.encoder for row in plan.rows)
    names = settings.preset.encoders
    return [f"{names[encoder]} stands for {ENCODERS[encoder]}" for encoder in used if encoder in names]


def compare(first: tuple[RowPlan, Scores], second: tuple[RowPlan, Scores], settings: Settings) -> PairedTest | None:
    """None where either is not finished, or they were not tested on the same images."""
    (one, scores), (other, others) = first, second
    whole = scores and len(scores) == len(one.scores) and len(others) == len(other.scores)
    if not whole or [set(images) for images in scores] != [set(images) for images in others]:
        return None
    return paired_test(scores, others, min(num_train(one, settings), num_train(other, settings)))


def add_comparisons(rows: list[dict], plans: tuple[RowPlan, ...], scores: list[Scores], settings: Settings) -> None:
    """To each row what it has against the best one that was tested on the same images: `below_best`, and `p_best`,
    corrected for their number."""
    for row in rows:
        row |= {"best": False, "below_best": None, "p_best": None}
    pairs = list(zip(plans, scores, strict=True))
    left = {number for number, (plan, found) in enumerate(pairs) if found and len(found) == len(plan.scores)}
    while left:
        best = max(left, key=lambda number: (rows[number]["mean"], -number))
        found = {number: compare(pairs[best], pairs[number], settings) for number in sorted(left - {best})}
        alike = {number: test for number, test in found.items() if test is not None}
        rows[best]["best"] = bool(alike)
        tested = [number for number, test in alike.items() if test.p_value is not None]
        corrected = dict(zip(tested, holm([alike[number].p_value for number in tested]), strict=True))
        for number, test in alike.items():
            rows[number] |= {"below_best": test.mean, "p_best": corrected.get(number)}
        left -= {best, *alike}


def judge(claim: Claim, plans: tuple[RowPlan, ...], scores: list[Scores], settings: Settings) -> dict[str, Any]:
    """What these runs say of something that the article says."""
    better, worse = ((plans[number], scores[number]) for number in (claim.better, claim.worse))
    test = compare(better, worse, settings)
    said = {"text": claim.text, "better": claim.better, "worse": claim.worse}
    if test is None:
        return said | {"verdict": "not run", "difference": None, "p_value": None}
    if test.p_value is None:
        verdict = "cannot be told from one repetition"
    elif test.p_value >= SIGNIFICANT:
        verdict = "not told apart"
    else:
        verdict = "agrees" if test.mean > 0 else "disagrees"
    return said | {"verdict": verdict, "difference": test.mean, "p_value": test.p_value}


def curve(planned: RowPlan, settings: Settings) -> dict[str, Any]:
    """For each repetition 1 - Dice of the validation images after each epoch."""
    row, repetitions = planned.row, []
    for folder in planned.training:
        path = folder / "run" / "metrics.jsonl"
        rows = [row for _, row in read_rows(path) if row.get("split") == "val"] if path.exists() else []
        if not all(type(row.get(name)) in (int, float) for row in rows for name in ("epoch", "dice")):
            raise InputError(f"{path}: a validation has no epoch or no dice; remove its row")
        repetitions.append([[row["epoch"] + 1, 1 - row["dice"]] for row in rows])
    return {"model": model_title(row.encoder, settings), "start": row.start_title, "repetitions": repetitions}


def describe_data(settings: Settings) -> dict[str, Any]:
    """What the indexes of source and target say of themselves; nothing where they are not here."""
    folders = {"source": settings.source / settings.source_splits[0], "target": settings.target}
    found = {}
    for name, folder in folders.items():
        if (folder / "index.json").is_file():
            index = read_json(folder / "index.json")
            found[name] = {key: index[key] for key in ("dataset", "num_samples", "licence")}
    return found


def describe_run(job: Job, launch_file: Path) -> dict[str, Any]:
    took = read_json(job.marker) if is_finished(job) else {}
    if not isinstance(took, dict):
        raise InputError(f"{job.marker}: does not record the run's time; remove the file to repeat the run")
    steps = None
    metrics = job.folder / "run" / "metrics.jsonl"
    if job.command == "train" and metrics.exists():
        steps = max((row["step"] for _, row in read_rows(metrics)), default=0)
    return {
        "name": job.command,
        "folder": str(job.folder),
        "command": command_of(job, launch_file),
        "config": job.config,
        "seconds": took.get("seconds"),
        "device": took.get("device"),
        "commit": took.get("commit"),
        "steps": steps,
        "status": "finished" if took else failure(job) or "not run",
    }
