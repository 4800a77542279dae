"""The commands of README and of docs/first_training.md, run as they stand but for the paths, the sizes and the length
of the training."""

import json
import re
from pathlib import Path

import pytest
from helpers import REPOSITORY, type_in

PAGES = {name: (REPOSITORY / name).read_text() for name in ("README.md", "docs/first_training.md")}


def blocks(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)


def workflow() -> list[str]:
    return blocks("docs/first_training.md")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "source"
    type_in(f"glioma-dist demo --draw-only --out {folder.parent} --livecell 4 2 2 --glioma 4 2 2", REPOSITORY)
    return folder


def smaller(script: str, source: Path) -> str:
    """The script on drawn data, with a tiny network and few steps. Each thing replaced must be there."""
    folder = source.parent
    wanted = {
        # It needs a network; tests/unit/test_download.py runs it with a server of its own.
        "glioma-dist download livecell --out ~/data/LIVECell": "#",
        "~/data/LIVECell": str(source / "livecell"),
        "~/data/glioma_c6": str(source / "glioma_c6"),
        "~/data/new_plate": str(source / "glioma_c6" / "dataset" / "spec" / "test" / "images"),
        "shards/": f"{folder}/shards/",
        "runs/": f"{folder}/runs/",
        "--out preds": f"--out {folder}/preds",
        "--sheet preds/": f"--sheet {folder}/sheets/",
        "gpu.yaml": "cpu.yaml",
        "--model.init imagenet": "--model.init random",
        "mit_b3": "mit_tiny",
        "1472x1120": "96x64",
        "2592x1952": "96x64",
        "--batch-size 4": "--batch-size 2",
        "--epochs 60": "--max-steps 2",
        "--epochs 300": "--max-steps 2",
    }
    for old, new in wanted.items():
        assert old in "".join(workflow()), f"docs/first_training.md no longer has {old}: bring this test up to date"
        script = script.replace(old, new)
    return script


def test_the_workflow_of_readme_runs_from_the_first_command_to_the_last(source):
    assert len(workflow()) == 8
    for number, block in enumerate(workflow()):
        type_in(smaller(block, source), REPOSITORY, real_launcher=number == 1)  # the block of two trainings
    folder = source.parent
    assert (folder / "runs" / "glioma" / "scores.json").is_file()
    assert (folder / "runs" / "glioma" / "model.onnx").is_file()
    assert len(list((folder / "preds").glob("*.overlay.png"))) == 2
    assert (folder / "sheets" / "shards.png").is_file()
    lineage = (folder / "runs" / "glioma" / "best" / "state.json").read_text()
    assert "livecell" in lineage, "what a model was pretrained on must be in its lineage"


def test_ci_runs_the_make_targets_that_readme_names():
    named = set(re.findall(r"make ([a-z]+)(?: {2,}#|$)", "\n".join(blocks("README.md")), re.MULTILINE))
    assert named == {"demo", "test"}
    ci = (REPOSITORY / ".ci" / "run").read_text()
    for target in named | {"lint"}:
        assert f"make {target}" in ci


def measured_on(gpu: str) -> dict[tuple[str, str], dict]:
    """Rows of 2592x1952, by network and level; of two layouts the last."""
    rows = json.loads((REPOSITORY / f"docs/benchmarks/{gpu}/resolution.json").read_text())
    return {(row["network"], row["level"]): row for row in rows if row["size"] == "2592x1952"}


def test_the_figures_of_gpus_are_the_committed_ones():
    h100, h200 = measured_on("nvidia_h100_80gb_hbm3"), measured_on("nvidia_h200")
    levels = [h200["glioma-dist", level] for level in ("none", "selective", "full")]
    assert all(row["layout"] == "channels_last" for row in levels)
    readme = PAGES["README.md"].replace("\n", " ")
    memory = "{:.2f}, {:.2f} and {:.2f} GiB for the last three rows".format(*(row["peak_gib"] for row in levels))
    speed = "{:.1f}, {:.1f} and {:.1f} images per second".format(*(row["images_per_second"] for row in levels))
    assert f"{memory}, at {speed}" in readme
    smp = h200["segmentation_models.pytorch", "none"]
    assert f"takes {smp['peak_gib']:.2f} GiB, at {smp['images_per_second']:.1f} images per second" in readme
    assert f"takes as little as {h100['glioma-dist', 'full']['peak_gib']:.2f} GiB on an H100" in readme
    assert h100["segmentation_models.pytorch", "none"]["status"] == "out of memory"


def test_the_page_of_memory_gives_the_times_that_were_measured():
    rows = json.loads((REPOSITORY / "docs/benchmarks/nvidia_h200/resolution.json").read_text())
    for label, network, layout in (
        *((level, "glioma-dist", "channels_last") for level in ("none", "selective", "full")),
        ("segmentation_models.pytorch", "segmentation_models.pytorch", "contiguous"),
    ):
        level = label if network == "glioma-dist" else "none"
        cells = [label]
        for size in ("1472x1120", "2592x1952"):
            of_size = [row for row in rows if row["size"] == size]
            base = next(row for row in of_size if (row["level"], row["layout"]) == ("none", "channels_last"))
            (row,) = [
                each for each in of_size if (each["network"], each["level"], each["layout"]) == (network, level, layout)
            ]
            seconds = row["median_seconds"]
            cells += [f"{row['peak_gib']:.2f}", f"{seconds:.3f}", f"{seconds / base['median_seconds']:.2f}"]
        assert f"| {' | '.join(cells)} |" in (REPOSITORY / "docs/memory.md").read_text()


def test_readme_names_source_and_licence_of_its_picture_which_is_small():
    (picture,) = re.findall(r"!\[.+?\]\((.+?)\)\n\n\*.+?MIT licence", PAGES["README.md"], re.DOTALL)
    assert all(each.stat().st_size < 300_000 for each in (REPOSITORY / picture).parent.iterdir())
    assert "10.1016/j.softx.2019.02.007" in PAGES["README.md"]
    assert len(PAGES["README.md"].splitlines()) <= 90
