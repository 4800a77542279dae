"""README's commands, run as they stand but for the paths, the sizes and the length of the training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def run(script: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "source"
    run(f"python -m glioma_dist demo --draw-only --out {folder.parent} --livecell 4 2 2 --glioma 4 2 2")
    return folder


def smaller(script: str, source: Path) -> str:
    """The script on drawn data, with a tiny network and few steps. Each thing replaced must be there."""
    folder = source.parent
    wanted = {
        # It needs a network; tests/unit/test_download.py runs it with a server of its own.
        "glioma-dist download livecell --out ~/data/LIVECell": ":",
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
        assert old in "".join(blocks()), f"README no longer has {old}: bring this test up to date"
        script = script.replace(old, new)
    return script


def test_the_workflow_of_readme_runs_from_the_first_command_to_the_last(source):
    workflow = [block for block in blocks() if not block.startswith("make")]
    assert len(workflow) == 8
    for block in workflow:
        run(smaller(block, source))
    folder = source.parent
    assert (folder / "runs" / "glioma" / "scores.json").is_file()
    assert (folder / "runs" / "glioma" / "model.onnx").is_file()
    assert len(list((folder / "preds").glob("*.overlay.png"))) == 2
    assert (folder / "sheets" / "shards.png").is_file()
    lineage = (folder / "runs" / "glioma" / "best" / "state.json").read_text()
    assert "livecell" in lineage, "what a model was pretrained on must be in its lineage"


def test_ci_runs_the_make_targets_that_readme_names():
    named = set(re.findall(r"make ([a-z]+)(?: {2,}#|$)", "\n".join(blocks()), re.MULTILINE))
    assert named == {"demo", "test"}
    ci = (REPOSITORY / ".ci" / "run").read_text()
    for target in named | {"lint"}:
        assert f"make {target}" in ci
