"""The probes of compare_commits.py in the words of the package since `glioma_dist/cli` exists.

Names of results are those of probes_old.py, whatever the package calls them.

Never change a result's value to make it equal.
"""

from __future__ import annotations

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from probing import (
    NUM_EPOCHS,
    NUM_STEPS,
    SHOWN,
    TRAINED,
    CannotRunError,
    Results,
    Shown,
    Work,
    command,
    draw,
    drawn_sets,
    flatten,
    hash_array,
    hash_file,
    hash_shards,
    hash_tensor_file,
    hash_tensors,
    main,
    read_metrics,
    write_images,
)

HAS_PROGRAM = find_spec("glioma_dist.__main__") is not None
"""The commits between have tools/ in its place."""
TRANSFORMS = ("resize", "random-crop", "random-resized-crop")
TRANSFORMER = "mit_tiny"
"""Which scores and masks are made with."""
DECODER = (16, 16, 8, 8, 8)


def initial_weights(_: Work) -> Results:
    """Of every encoder in its U-Net, and of the decoder's other norm."""
    from glioma_dist.registry import encoders

    results = {name: _initial(encoder=name) for name in encoders.names()}
    return results | {"group norm": _initial(encoder="mit_tiny", norm="group")}


def _initial(**settings: str) -> Results:
    """Weights in the order of the modules, and what the network makes of two images: the second tells two layers of
    one shape apart, which the first does not."""
    import torch

    from glioma_dist.config import ModelConfig
    from glioma_dist.model.unet import build_model, normalise

    model = build_model(ModelConfig(**settings), 0)[0]
    weights = hash_tensors(model.state_dict().values())
    images = torch.from_numpy(np.stack([draw(number, 64, 64)[0] for number in (300, 301)]))[:, None]
    with torch.no_grad():
        return {"weights": weights, "logits": hash_array(model(normalise(images)).numpy())}


def batches(work: Work) -> Results:
    """Three epochs of batches of 4 for each way of making them."""
    write_sets(work)
    return {"validation": _validation(work)} | {shown.name: _batches(work, shown) for shown in SHOWN}


def _validation(work: Work) -> Results:
    """Samples as validation shows them to the network."""
    from glioma_dist.config import DataConfig
    from glioma_dist.data.loader import evaluation_samples, prepare_evaluation_sample
    from glioma_dist.data.shards.reader import ShardReader
    from glioma_dist.size import Size

    results = {}
    for transform in TRANSFORMS:
        config = DataConfig(size=Size(64, 48), transform=transform)
        samples = evaluation_samples(ShardReader(str(work.folder / "val")), 0, 1, workers=1)
        results[transform] = {s.key: "".join(map(hash_array, prepare_evaluation_sample(s, config))) for s in samples}
    return results


def _batches(work: Work, shown: Shown) -> Results:
    from glioma_dist.config import DataConfig
    from glioma_dist.data.loader import training_batches
    from glioma_dist.data.mixture import open_training_data
    from glioma_dist.size import Size

    config = DataConfig(
        train=tuple(str(work.folder / name) for name in shown.sources),
        weights=shown.weights,
        size=Size(64, 48),
        transform=shown.transform,
        augment=shown.augment,
        num_ops=shown.num_ops,
        magnitude=shown.magnitude,
        intensity_normalization=shown.intensity_normalization,
        cache_in_memory=shown.cache_in_memory,
        workers=shown.workers,
    )
    reader, order = open_training_data(config, batch_size=4, seed=7)
    found = training_batches(reader, order, config, 0, shown.rank, shown.num_processes)
    parts = [next(found) for _ in range(NUM_EPOCHS * order.steps_per_epoch)]
    found.close()
    return {
        "pixels": hash_tensors(part.images for part in parts),
        "masks": hash_tensors(part.masks for part in parts),
        "seeds": hash_tensors(part.seeds for part in parts),
        "keys": " ".join(key for part in parts for key in part.keys),
    }


def program(name: str, tool: str) -> list[str]:
    """The words that run a command: of the program, or of the commits that had tools/ in its place."""
    return [sys.executable, "-m", "glioma_dist", *name.split()] if HAS_PROGRAM else [sys.executable, f"tools/{tool}.py"]


def shards(work: Work) -> Results:
    """Bytes of shards: of samples as they are, and of drawn LIVECell-like images; and those images' own bytes."""
    write_sets(work)
    demo, out = work.folder / "demo", work.folder / "shards" / "livecell"
    sizes = ("--livecell", 3, 2, 2, "--glioma", 1, 1, 1)
    drawing = program("demo", "make_demo_data") + (["--draw-only"] if HAS_PROGRAM else [])
    command(work, "demo", [*drawing, "--out", demo, *sizes])
    demo = demo / "source" if HAS_PROGRAM else demo
    flags = ("--source", demo / "livecell", "--out", out)
    command(work, "livecell", [*program("convert livecell", "convert_livecell"), *flags])
    images = {path.name: hash_file(path) for path in sorted(demo.rglob("*.tif"))}
    samples = {name: hash_shards(work.folder / name) for name in drawn_sets()}
    return {"demo": images, "samples": samples, "livecell": _splits(out)}


def real_shards(work: Work) -> Results:
    """Bytes of shards of real images, a CVAT export that is split at random."""
    source, out = work.data / "t98g", work.folder / "shards" / "t98g"
    if not source.is_dir():
        raise CannotRunError(f"no real images in {source}")
    flags = ("--source", source, "--out", out, "--split-seed", 3)
    command(work, "t98g", [*program("convert glioma-c6", "convert_glioma_c6"), *flags])
    return _splits(out)


def _splits(folder: Path) -> Results:
    return {name: hash_shards(folder / name) for name in ("train", "val", "test")}


def training(work: Work) -> Results:
    """Losses and weights of 20 steps: on one process, on two, and with each image split over two."""
    results = {}
    for encoder in TRAINED:
        for launch in ("cpu", "cpu_2_processes"):
            results[f"{encoder}, {launch}"] = _outcome(train(work, encoder, launch))
    spread = ("--scale.spatial-parallel", 2, "--scale.activation-checkpointing", "full")
    run = train(work, TRANSFORMER, "cpu_2_processes", *spread)
    return results | {f"{TRANSFORMER}, spatial parallel": _outcome(run)}


def train(work: Work, encoder: str, launch: str, *flags: object) -> Path:
    """The folder of a run of 20 steps."""
    write_sets(work)
    out = work.folder / "-".join(("run", encoder, launch, *(str(flag).strip("-") for flag in flags)))
    if (out / "best").exists():
        return out
    data = ("--data.train", work.folder / "grey", "--data.val", work.folder / "val", "--data.size", "64x64")
    how = (
        "--data.transform",
        "random-resized-crop",
        "--data.augment",
        "flips",
        "sharpen",
        "contrast",
        "--data.workers",
        1,
    )
    model = ("--model.encoder", encoder, "--model.decoder-channels", *DECODER)
    steps = ("--batch-size", 4, "--lr", 1e-3, "--max-steps", NUM_STEPS, "--eval-every", NUM_STEPS // 2, "--out", out)
    file = f"accelerate_configs/{launch}.yaml"
    start = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", file, "train.py"]
    command(work, out.name, [*start, *data, *how, *model, *steps, *TRAINED[encoder], *flags])
    return out


def _outcome(run: Path) -> Results:
    files = {"weights": "last/model", "optimizer": "last/optimizer", "best weights": "best/model"}
    hashes = {name: hash_tensor_file(run / f"{file}.safetensors") for name, file in files.items()}
    return {"metrics": read_metrics(run), **hashes}


def scores(work: Work) -> Results:
    """Dice of each image, at its own size and at others."""
    checkpoint = train(work, TRANSFORMER, "cpu") / "best"
    results = {}
    for name, flags in (("own size", ()), ("scaled", ("--input-size", "64x64", "--metric-size", "120x90"))):
        out = work.folder / f"{name}.json"
        where = ("--checkpoint", checkpoint, "--data", work.folder / "grey", "--out", out)
        command(work, f"evaluate-{name}", [sys.executable, "evaluate.py", *where, *flags])
        found = json.loads(out.read_text())
        results[name] = {"mean": found["dice_mean"], **{image["key"]: image["dice"] for image in found["images"]}}
    return results


def masks(work: Work) -> Results:
    """Bytes of masks and overlays, and the table."""
    out = work.folder / "masks"
    where = ("--images", write_images(work.folder / "images"), "--out", out)
    checkpoint = train(work, TRANSFORMER, "cpu") / "best"
    command(work, "predict", [sys.executable, "predict.py", "--checkpoint", checkpoint, *where])
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        Path(row["image"]).name: {
            "mask": hash_file(out / row["mask"]),
            "overlay": hash_file(out / row["overlay"]),
            "size": f"{row['width']}x{row['height']}",
            "confluence": row["confluence"],
        }
        for row in rows
    }


def onnx(work: Work) -> Results:
    """Logits of the exported graph, by onnxruntime on one thread."""
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise CannotRunError(f"{', '.join(missing)} not installed (the extra `export`)")
    import onnxruntime

    results = {}
    for encoder in TRAINED:
        graph = work.folder / f"{encoder}.onnx"
        flags = ("--checkpoint", train(work, encoder, "cpu") / "best", "--out", graph)
        name = "export onnx" if find_spec("glioma_dist.inference.bioimageio") else "export"  # before there were two
        command(work, f"export-{encoder}", [*program(name, "export_onnx"), *flags])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        image = np.repeat(draw(200, 75, 70)[0][None, None], 3, axis=1)
        (logits,) = session.run(None, {session.get_inputs()[0].name: image})
        results[encoder] = hash_array(logits)
    return results


def study(work: Work) -> Results:
    """What `reproduce --dry-run` prints, and the config of every run that it plans, in the words of results."""
    out = work.folder / "study"
    results = {}
    for preset in ("full", "small"):
        flags = ("all", "--dry-run", "--native", "--preset", preset, "--out", out)
        printed = command(work, f"study-{preset}", [*program("reproduce", "reproduce_article"), *flags])
        lines = printed.replace(str(out), "OUT").splitlines()
        results[preset] = {f"line {number:03d}": " ".join(line.split()) for number, line in enumerate(lines, 1)}
    return results | {"runs": _planned(out)}


def _planned(out: Path) -> Results:
    from glioma_dist.reproduction.plan import Settings, make_plan
    from glioma_dist.reproduction.presets import PRESETS
    from glioma_dist.reproduction.protocol import find_studies

    settings = Settings(PRESETS["full"], source=Path("shards/livecell"), out=out)
    plans = [make_plan(each, settings, (3253, 570)) for each in find_studies("all", True)]
    jobs = [job for plan in plans for job in plan.jobs]
    return {
        str(job.config_file.relative_to(out)): {
            "command": job.command if hasattr(job, "command") else job.script.removesuffix(".py"),
            "needs": " ".join(str(folder.relative_to(out)) for folder in job.needs),
            **flatten(json.loads(json.dumps(job.config).replace(str(out), "OUT"))),
        }
        for job in jobs
    }


def write_sets(work: Work) -> None:
    """Write the drawn shards into the probes' folder, once."""
    from glioma_dist.data.sample import Sample
    from glioma_dist.data.shards.reader import ShardWriter

    for name, samples in drawn_sets().items():
        if not (work.folder / name).exists():
            with ShardWriter(work.folder / name, "drawn", name, "CC0", samples_per_shard=3) as writer:
                for key, image, mask in samples:
                    writer.write(Sample(key, image, mask, {"num_cells": 5}))


if __name__ == "__main__":
    main(training, scores, masks, onnx, initial_weights, batches, shards, real_shards, study)
