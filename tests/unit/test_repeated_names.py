"""A name twice in one object of a JSON file: parsers keep one of the two values and say nothing. Every file that a user
can hand in is refused instead, whichever of its objects it is in."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_helpers import HEIGHT, WIDTH, annotation, image_record, square, write_coco
from helpers import draw_shards

from glioma_dist.data.convert.coco import load_coco
from glioma_dist.data.shards.index import read_metadata
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.splits import read_splits, write_splits
from glioma_dist.errors import InputError
from glioma_dist.files import read_json
from glioma_dist.report.data_sections import _audit

PACKAGE = Path(__file__).resolve().parents[2] / "glioma_dist"
NOT_HANDED_IN = {
    "benchmark": "what the processes of a benchmark tell each other, and its own files",
    "data/images/row_worker.py": "what this process tells the one that decodes",
    "data/images/worker.py": "the same",
    "inference/large/reading.py": "the same, the other way round",
    "distributed/launcher.py": "what processes of a launch tell each other",
    "distributed/environment.py": "pip's record of an installation",
    "distributed/whereabouts.py": "what processes of a launch tell each other",
    "reproduction/execute.py": "a copy of a value",
    "reproduction/folder.py": "a copy of a value",
    "scale/counted_steps.py": "a file of the package",
    "training/lease.py": "a run's own note about itself",
    "training/metrics_file.py": "lines that a run appends, up to millions: the check doubles the time of a line",
}


def test_every_reader_of_json_looks_for_repeated_names():
    found = set()
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)) if "json.load" in text else ():
            is_reader = isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")
            if is_reader and "object_pairs_hook" not in [keyword.arg for keyword in node.keywords]:
                name = path.relative_to(PACKAGE).as_posix()
                found.add("benchmark" if name.startswith("benchmark/") else name)
    assert found == set(NOT_HANDED_IN)


def repeated(value: object) -> Iterator[tuple[str, str]]:
    """For each object within a JSON value: its first name, and the text of the whole with that name twice."""
    if isinstance(value, dict):
        members = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in value.items()]
        if members:
            name = next(iter(value))
            yield name, "{" + ", ".join([*members, f"{json.dumps(name)}: 7"]) + "}"
        for place, (outer, each) in enumerate(value.items()):
            for name, text in repeated(each):
                yield (
                    name,
                    "{" + ", ".join([*members[:place], f"{json.dumps(outer)}: {text}", *members[place + 1 :]]) + "}",
                )
    elif isinstance(value, list):
        for place, each in enumerate(value):
            for name, text in repeated(each):
                yield (
                    name,
                    f"[{', '.join([*map(json.dumps, value[:place]), text, *map(json.dumps, value[place + 1 :])])}]",
                )


def coco(folder: Path) -> tuple[Path, Callable]:
    runs = {"size": [HEIGHT, WIDTH], "counts": [5, 10, HEIGHT * WIDTH - 15]}
    cells = [annotation(1, 1, square(2, 2, 9), attributes={"occluded": False}), annotation(2, 1, runs)]
    return write_coco(folder / "a.json", [image_record(1, "a.tif")], cells), load_coco


def by_id(folder: Path) -> tuple[Path, Callable]:
    """As LIVECell has its annotations: an object keyed by id."""
    return write_coco(
        folder / "a.json", [image_record(1, "a.tif")], {"7": annotation(7, 1, square(2, 2, 9))}
    ), load_coco


def index(folder: Path) -> tuple[Path, Callable]:
    return draw_shards(folder / "shards", range(2), 1, width=40, height=32) / "index.json", lambda _: ShardReader(
        folder / "shards"
    )


def members(folder: Path) -> tuple[Path, Callable]:
    path, _ = index(folder)
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        del shard["members_sha256"]  # which would refuse any change
    path.write_text(json.dumps(content))
    return path.with_name("00000.members.json"), lambda _: ShardReader(path.parent).keys()


def metadata(folder: Path) -> tuple[Path, Callable]:
    (folder / "a.json").write_text(json.dumps({"group": "w1", "pixel_size": {"um": 0.5}, "hours": 3}))
    return folder / "a.json", lambda path: read_metadata(path.read_bytes(), str(path))


def splits(folder: Path) -> tuple[Path, Callable]:
    drawn = [{"train": ["a"], "val": ["b"], "test": ["c"]}]
    write_splits(folder / "splits.json", drawn, {"groups": {"a": "1", "b": "2", "c": "3"}})
    return folder / "splits.json", read_splits


def settings(folder: Path) -> tuple[Path, Callable]:
    (folder / "config.json").write_text('{"lr": 0.1, "data": {"size": "64x64"}}')
    return folder / "config.json", read_json


@pytest.mark.parametrize("make", [coco, by_id, index, members, metadata, splits, settings])
def test_a_name_twice_in_any_object_is_one_line(tmp_path, make):
    path, read = make(tmp_path)
    read(path)
    texts = list(repeated(json.loads(path.read_text())))
    assert len(texts) > 1 or make is members
    for name, text in texts:
        path.write_text(text)
        with pytest.raises(InputError) as error:
            read(path)
        line = str(error.value)
        assert path.name in line
        assert f"'{name}' is there twice in one object" in line
        assert len(line) <= 500
        assert "\n" not in line


def test_an_audit_with_a_name_twice_is_none(tmp_path):
    defect = {"where": "a.tif", "kind": "empty", "detail": "nothing", "left_out": True}
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({"defects": [defect]}))
    assert _audit(path) == ([("a.tif", "empty", "nothing")], 1)
    for _, text in repeated({"defects": [defect]}):
        path.write_text(text)
        assert _audit(path) == ([], 0)


def test_a_repeated_name_among_very_many_is_found_at_once(tmp_path):
    """Comparing all with all would take hours."""
    names = [f'"{number}": 0' for number in range(200_000)]
    (tmp_path / "a.json").write_text("{" + ", ".join([*names, names[-1]]) + "}")
    with pytest.raises(InputError, match=re.escape("'199999' is there twice")):
        read_json(tmp_path / "a.json")
