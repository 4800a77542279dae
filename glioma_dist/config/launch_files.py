"""The files that come with the package: for `accelerate launch --config_file`, in jobs/ for schedulers, and in recipes/
settings of a training for `--config`."""

from __future__ import annotations

from pathlib import Path

import glioma_dist

FOLDER = Path(glioma_dist.__file__).parent / "accelerate_configs"
RECIPES = Path(glioma_dist.__file__).parent / "recipes"
CLONE = Path("accelerate_configs")
"""A short path of the same folder, in a clone of the repository."""


def launch_file(name: str) -> Path:
    """Return the path of the file `name`: the short one if the current folder is a clone, else the one in the
    package."""
    return CLONE / name if (CLONE / name).is_file() else FOLDER / name


def launch_command(file: str, command: str, flags: str = "") -> str:
    """Return what a user types to start a command of this program with `accelerate launch`: in a clone by its short
    paths, elsewhere by what an installed package has.

    file: a name, such as gpu.yaml. command: such as train. flags: of accelerate launch, such as --num_processes 4.
    """
    if (CLONE / file).is_file() and Path(f"{command}.py").is_file():
        path, program = str(CLONE / file), f"{command}.py"
    else:
        path, program = f'"$(glioma-dist configs {file})"', f"-m glioma_dist {command}"
    return " ".join(filter(None, ("accelerate launch --quiet --config_file", path, flags, program)))


def purposes() -> dict[str, str]:
    """Return for each file name what the file is for: the first sentence of its comment. Names in jobs/ and recipes/
    begin so."""
    found = {}
    for name, path in files().items():
        lines = path.read_text().splitlines()
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#") and not line.startswith("#!"))
        purpose = comment.partition(". ")[0].partition(": `")[0].rstrip(".:") + "."
        found[name] = purpose
    return found


def files() -> dict[str, Path]:
    """Return the path of each file by its name."""
    launch = [*sorted(FOLDER.glob("*.yaml")), *sorted((FOLDER / "jobs").iterdir())]
    found = {path.relative_to(FOLDER).as_posix(): path for path in launch}
    return found | {f"{RECIPES.name}/{path.name}": path for path in sorted(RECIPES.glob("*.yaml"))}
