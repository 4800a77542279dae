"""Every block of commands and of Python on the pages is run by a test, at tiny size, or listed here with the reason."""

import re
import shlex
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import cv2
import pytest
from helpers import REPOSITORY, command, draw_sample, draw_shards, run, tiny_config, train_here

sys.path.insert(0, str(REPOSITORY / "website"))
from site_pages import page_places

RUN_ELSEWHERE = {
    "README.md": "tests/end_to_end/test_readme.py",
    "docs/first_training.md": "tests/end_to_end/test_readme.py",
    "docs/own_images.md": "tests/end_to_end/test_own_images.py",
    "docs/guides/report.md": "tests/end_to_end/test_prediction_report.py",
    "docs/guides/data_report.md": "tests/end_to_end/test_data_report.py",
    "docs/api.md": "tests/end_to_end/test_examples.py",
    "docs/guides/own_parts.md python": "tests/end_to_end/test_examples.py",
    "glioma_dist/networks/t98g-small/README.md": "tests/unit/test_networks.py",
    "docs/guides/growth.md": "tests/unit/test_growth.py",
    "docs/metrics.md": "tests/end_to_end/test_reference_pages.py",
    "docs/checkpoint_format.md": "tests/end_to_end/test_reference_pages.py",
}
"""Page, or page and language -> the test that runs all its blocks."""
ON_GPUS = (
    "accelerate launch --config_file accelerate_configs/multi_gpu.yaml train.py --data.train shards/livecell/train"
)
NOT_RUN = {
    "group = gd.SpatialGroup.over()": "needs several processes; test_spatial_encoders.py has them",
    "git clone <address": "README's test runs the same targets; CI runs them on a clean machine",
    "python benchmarks/starting_weights.py": "22 CPU minutes, on data that are not in the repository",
    "pip install --constraint": "installs 6 GB; CI's job `wheel` installs the package",
    "pip wheel --wheel-dir": "downloads 6 GB",
    "pip install 'glioma-dist[tensorboard]'": "changes the environment; test_extras.py has pip take such commands",
    "glioma-dist train --data.train shards/livecell/train --data.val shards/livecell/val --track tensorboard": (
        "a whole training; test_trackers.py trains with TensorBoard at tiny size"
    ),
    "glioma-dist train --data.train shards/glioma_c6/train --keep-every 200": (
        "a whole training; test_verify.py trains and verifies at tiny size"
    ),
    f"{ON_GPUS} \\\n  --model.encoder mit_b3 --model.norm group --reproducible": (
        "a launch on GPUs; test_reproducible.py launches such trainings at tiny size"
    ),
    f"{ON_GPUS} \\\n  --model.encoder resnet50 --model.init imagenet": (
        "a launch on GPUs, and a download; test_frozen_norms.py trains such a network"
    ),
    'glioma-dist train --config "$(glioma-dist configs recipes/quick.yaml)"': (
        "a whole training; test_recipes.py trains by each recipe at tiny size"
    ),
    "    glioma-dist convert coco --annotations cells.json": "a file of labels; test_convert_labels.py converts so",
    "    accelerate launch --config_file accelerate_configs/gpu.yaml train.py --data.train shards/cells/train": (
        "a whole training; test_outputs.py trains with a second target at tiny size"
    ),
    "    glioma-dist evaluate --checkpoint runs/cells/best": "its network; test_evaluate_classes.py scores cells",
    "    glioma-dist predict --checkpoint runs/cells/best": "its network; test_class_writers.py writes these formats",
    "glioma-dist convert coco --annotations livecell_1pct/livecell_coco_val.json": (
        "five CPU minutes, on data that are not in the repository; benchmarks/touching_cells.py"
    ),
    "tensorboard --logdir": "a server, until it is stopped",
    "accelerate launch --config_file accelerate_configs/gpu.yaml -m glioma_dist bench": "hours; test_bench_resolution",
    "glioma-dist app": "a server, until it is stopped; test_app.py has one",
    "glioma-dist export bioimageio": "the extra `bioimageio`; test_bioimageio.py writes packages",
    "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "machines that come and go; test_machine_launchers.py has two",
    "torchrun --nnodes 2": "several machines; test_machine_launchers.py has two",
    "accelerate launch --config_file accelerate_configs/multi_node.yaml": "several machines; test_machines.py has two",
    "pip install 'glioma-dist[cloud]'\nglioma-dist train": "an object store; test_bucket_runs.py has one",
    "glioma-dist predict --checkpoint t98g-small --images slide.tif": "a picture of gigabytes; test_large_images.py",
    "glioma-dist predict --checkpoint s3://": "an object store; test_remote_files.py has one",
    "export GLIOMA_DIST_EXIT_CODES=": "tests/jobs/test_exit_codes.py launches real processes so",
    "sbatch --nodes=2": "a cluster; tests/jobs/test_slurm.py runs the file in one of this machine",
    "sbatch --array=1-8": "a cluster; tests/jobs/test_job_files.py parses the command",
    "kubectl apply": "a cluster; tests/jobs/test_kubernetes.py validates the files",
    'cp "$(glioma-dist configs jobs/skypilot.yaml)"': "a cloud; tests/jobs/test_skypilot.py parses the file",
    "docker build": "Docker; tests/jobs/test_docker.py checks the Dockerfile",
    "docker run": "Docker; tests/jobs/test_job_files.py parses the commands",
    "from glioma_dist.model.hub": "uploads a network; tests/unit/test_hub.py makes these calls",
    "train.py --data.train s3://": "an object store; test_object_store.py has one",
    "glioma-dist reproduce table3 --task": "122 runs; test_study_tasks.py shares a study between tasks",
    "glioma-dist reproduce table1": "122 runs; test_study.py runs a study at tiny size",
    "glioma-dist convert livecell --source livecell_1pct": "hours, on data that are not in the repository; test_study",
    "glioma-dist convert glioma-c6 --source T98G": "14 minutes, on data that are not in the repository; test_readme.py",
}
"""The first words of a block -> why no test runs it as it stands, and which test is nearest."""
SMALLER = {"mit_b3": "mit_tiny"}
"""In commands that only count."""
SLOW = {"glioma-dist plan --model.encoder mit_b3 --size 2592x1952 --gpus 4": "counts the steps of several GPUs"}
"""The first words of a block -> why `make test-slow` runs it."""


def blocks() -> list[tuple[str, str, str]]:
    """Page, language and text of each block of commands or of Python on all pages of the site."""
    return [
        (page.relative_to(REPOSITORY).as_posix(), language, text)
        for page in page_places()
        if page.is_file()
        for language, text in re.findall(
            r"^ *```(bash|python)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE
        )
    ]


def is_elsewhere(page: str, language: str) -> bool:
    return page in RUN_ELSEWHERE or f"{page} {language}" in RUN_ELSEWHERE


def reason(text: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), None)


HERE = [each for each in blocks() if not is_elsewhere(*each[:2]) and reason(each[2]) is None]


def make_material(folder: Path) -> None:
    """What the blocks name: shards, tars of others, a run."""
    draw_shards(folder / "shards/livecell/train", range(6))
    draw_shards(folder / "shards/livecell/val", range(6, 12), samples_per_shard=4)
    train_here(tiny_config(folder / "shards/livecell", folder / "runs/x", max_steps=1, eval_every=1))
    (folder / "data/plate_8").mkdir(parents=True)
    cv2.imwrite(str(folder / "data/plate_8/a.png"), draw_sample(20).image)
    (folder / "data/their_tars").mkdir(parents=True)
    with tarfile.open(folder / "data/their_tars/a.tar", "w") as tar:
        for number in range(2):
            sample = draw_sample(number)
            for name, pixels in (("input", sample.image), ("target", sample.mask * 255)):
                data = cv2.imencode(".png", pixels)[1].tobytes()
                member = tarfile.TarInfo(f"cell{number}.{name}.png")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    run(make_material, folder)
    return folder


def run_python(text: str) -> None:
    exec(compile(text, "block", "exec"), {"__name__": "notebook"})


def marks(text: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if text.startswith(tuple(SLOW)) else []


@pytest.mark.parametrize(
    ("page", "language", "text"),
    [pytest.param(*each, marks=marks(each[2]), id=f"{each[0]}-{number}") for number, each in enumerate(HERE)],
)
def test_a_block_runs(page, language, text, material, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(material / "cache"))
    text = re.sub(r"(?<![\w/])(shards/livecell|runs/x|sheet\.png|data/plate_8|preds)", rf"{material}/\1", text)
    text = text.replace("~/data", f"{material}/data")
    if language == "python":
        run(run_python, text)
        return
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line.partition(">")[0], comments=True)
        assert program == "glioma-dist", line
        if arguments[0] == "plan":
            arguments = [SMALLER.get(word, word) for word in arguments]
        ended = command(arguments[0], *arguments[1:], timeout=600)
        assert (ended.exit_code, ended.stderr) == (0, ""), f"{line}\n{ended.stderr}"
        assert ended.stdout.strip()


def test_every_reason_and_every_other_test_is_of_a_block_that_is_there():
    found = blocks()
    assert len(HERE) >= 5
    assert [start for start in (*NOT_RUN, *SLOW) if not any(text.startswith(start) for _, _, text in found)] == []
    pages = {name.split()[0]: test for name, test in RUN_ELSEWHERE.items()}
    for page, test in pages.items():
        assert Path(page).name.partition(".")[0] in (REPOSITORY / test).read_text() or not (REPOSITORY / page).exists()
