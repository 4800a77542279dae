"""Results that are to lie below a folder which this user may not enter, and checkpoints that do: refused by a line that
names it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import run

from glioma_dist.cli.inputs import check_init
from glioma_dist.cli.merge import MergeConfig
from glioma_dist.config import EvaluateConfig
from glioma_dist.config.data_report import DataReportConfig
from glioma_dist.errors import InputError
from glioma_dist.files import check_new_file, check_new_folder, make_folder
from glioma_dist.inference.images import find_images
from glioma_dist.inference.record import Place
from glioma_dist.model.checkpoint import Checkpoint, find_checkpoint
from glioma_dist.report.data_page import report_data
from glioma_dist.report.prediction_growth import read_curves
from glioma_dist.report.prediction_results import ResultFolder
from glioma_dist.reproduction.folder import one_at_a_time

NOBODY = 65534


def begin_study(out: Path) -> None:
    with one_at_a_time(out):
        pass


def report(shards: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report_data(DataReportConfig((shards,), Path(folder) / "report.html"))


CHECKS = {
    "check_new_folder": lambda out: check_new_folder("--out", out),
    "check_new_file": lambda out: check_new_file("--out", out),
    "make_folder": make_folder,
    "evaluate": lambda out: EvaluateConfig("t98g-small", "shards", out=out).validate(),
    "merge": lambda out: MergeConfig(Path("t98g-small"), out).validate(),
    "reproduce": begin_study,
    "images": lambda out: find_images(f"{out}/**/*.tif"),
    "predict": lambda out: Place(out).read(),
    "report": lambda out: ResultFolder(out).images(),
    "curves": read_curves,
    "data": report,
    "find_checkpoint": find_checkpoint,
}
WITHOUT_COMPLAINT = ("evaluate", "merge")
"""Whose command looks at the folder later."""


def refusals_of_nobody(folder: Path) -> dict[str, str]:
    """What each check says of paths below `folder` to a user who is not root."""
    is_root = os.geteuid() == 0
    if is_root:  # who may enter everything
        os.setresuid(NOBODY, NOBODY, 0)  # os.access asks for the real one
    said = {}
    try:
        for name, check in CHECKS.items():
            for end in ("there", "new/deep"):
                try:
                    check(folder / end)
                except Exception as error:
                    said[f"{name} {end}"] = f"{type(error).__name__}: {error}"
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
    return said


@contextlib.contextmanager
def closed_folder() -> Iterator[Path]:
    """A folder that nobody but root may enter, with a folder in it."""
    # Not below tmp_path, whose parents are root's alone.
    with tempfile.TemporaryDirectory(prefix="glioma-dist-") as given:
        Path(given).chmod(0o755)
        folder = Path(given) / "closed"
        (folder / "there").mkdir(parents=True)
        folder.chmod(0)
        try:
            yield folder
        finally:
            folder.chmod(0o755)


def refusal_of_starting_weights(folder: Path) -> str:
    """What is said of a name that could be one of the hub, to a user who is not root."""
    os.chdir(folder.parent)
    if os.geteuid() == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        check_init("--model.init", f"{folder.name}/there")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if os.getresuid()[2] == 0:
            os.setresuid(0, 0, 0)
    return ""


def test_starting_weights_in_a_folder_that_may_not_be_entered_are_no_name_of_the_hub():
    with closed_folder() as folder:
        (said,) = run(refusal_of_starting_weights, folder)
    assert said == "InputError: --model.init closed/there: is there, but this user may not read it"


def test_a_folder_that_may_not_be_entered_is_an_input_error_that_names_it():
    with closed_folder() as folder:
        (said,) = run(refusals_of_nobody, folder)
    assert {name.split()[0] for name in said} == set(CHECKS) - set(WITHOUT_COMPLAINT)
    assert len(said) == 2 * (len(CHECKS) - len(WITHOUT_COMPLAINT))
    for name, line in said.items():
        assert line.startswith(f"{InputError.__name__}: "), name
        assert str(folder) in line, name
        assert "\n" not in line, name
        if name.startswith("check"):
            assert f"may not write to {folder};" in line


def test_the_root_of_all_folders_is_no_checkpoint():
    with pytest.raises(InputError, match=r"^/: no checkpoint there"):
        Checkpoint.read(Path("/"))


def test_a_checkpoint_whose_name_is_too_long_is_an_input_error():
    with pytest.raises(InputError, match="the name is too long"):
        Checkpoint.read(Path("x" * 300))
