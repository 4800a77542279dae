"""Every file is written under a temporary name and renamed, by files.py: a scan of all code but the tests."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("glioma_dist", "benchmarks", "tools")
SOURCES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
SOURCES += [REPOSITORY / name for name in ("train.py", "evaluate.py", "predict.py")]
METHODS = {
    *("write_text", "write_bytes", "savefig", "imwrite", "imsave", "to_csv", "to_json", "tofile", "save_file"),
    *("savez", "savez_compressed", "savetxt", "NamedTemporaryFile", "mkstemp", "copyfile", "copy2"),
}
"""That write to a file themselves, whatever they belong to."""
WRITING_MODES = set("wax+")
WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"}
ALLOWED = {
    "glioma_dist/data/convert/imagej_rois.py: read_rois": "reads a member of a ZIP",
    "glioma_dist/data/remote_weights.py: fetch_weights": "a temporary file, which is renamed",
    "glioma_dist/inference/writers/png.py: write_palette_png": "a path that its caller renames",
    "glioma_dist/files.py: write_atomically": "the function that all others call",
    "glioma_dist/model/tensor_files.py: write_tensors": "in a checkpoint's folder, which is renamed as a whole",
    "glioma_dist/training/metrics_file.py: MetricsFile.__init__": "rows are appended; a torn last one is taken out",
    "glioma_dist/distributed/run_command.py: drop_closed_output": "the null device",
    "glioma_dist/distributed/run_command.py: run_command": "the null device, in place of an output that was closed",
    "glioma_dist/training/folder_lock.py: folder_lock": "a lock file, which has no content",
    "glioma_dist/training/folder_lock.py: is_held": "the same file, which must be there",
    "glioma_dist/training/reporter.py: Reporter.__enter__": "opens trackers, no file",
    "glioma_dist/files.py: link_files": "second names in a folder that is renamed, or removed when it is sent",
    "glioma_dist/data/remote_checkpoint.py: _download_file": "in a new folder, which is renamed as a whole",
    "glioma_dist/data/remote_checkpoint.py: _write": "in a new folder, which is renamed as a whole",
    "glioma_dist/reproduction/execute.py: launcher.launch": "a log that the entry points append to",
    "glioma_dist/benchmark/cell.py: measure_or_say_why_not": "/proc",
    "glioma_dist/benchmark/peak_memory.py: PeakMemory.__init__": "/proc",
    "glioma_dist/benchmark/proof/lines.py: Findings._add": "rows are appended in a temporary folder",
    "glioma_dist/benchmark/proof/ranks.py: main": "rows are appended in a temporary folder",
    "glioma_dist/benchmark/proof/runner.py: _run": "a log that a check's process appends to",
    "glioma_dist/data/shards/writer.py: ShardWriter._start_shard": "in a folder of shards, which is renamed as a whole",
    "glioma_dist/data/shards/subsets.py: link": "in a folder of shards, which is renamed as a whole",
    "glioma_dist/data/shards/file_locks.py: clear_away": "the lock of a shard that is being fetched",
    "glioma_dist/data/shards/file_locks.py: held": "the lock of a shard that is being fetched",
    "glioma_dist/data/download/resumable.py: Resumable._write": "a download is appended to, and renamed when verified",
    "glioma_dist/data/download/unpacking.py: _write_member": "in a temporary folder, which is renamed as a whole",
    "glioma_dist/data/download/unpacking.py: _zip_members": "a member of an archive, for reading",
    "glioma_dist/data/download/unpacking.py: _tar_members": "a compressed archive, for reading",
    "glioma_dist/data/download/web.py: _open": "a request",
    "glioma_dist/data/download/downloading.py: _alone": "a lock file, which has no content",
    "glioma_dist/inference/writers/coco.py: write_coco": "in a hidden folder, whose files are renamed later",
    "glioma_dist/inference/writers/png.py: write_png": "in a hidden folder, whose files are renamed later",
    "glioma_dist/inference/writers/qupath.py: write_qupath": "in a hidden folder, whose files are renamed later",
    "glioma_dist/report/style.py: png_bytes": "a figure into memory",
    "glioma_dist/report/style.py: svg_bytes": "a figure into memory",
    "glioma_dist/growth_curves/writing.py: write_files": "Culture.to_json makes a dictionary",
    "glioma_dist/app/server.py: Handler._receive": "an uploaded file, in a temporary folder until it is segmented",
    "glioma_dist/inference/bioimageio.py: _npy": "an array into memory",
    "glioma_dist/inference/bioimageio.py: _pack": "in a temporary folder; the package is written by write_atomically",
    "glioma_dist/demo/drawing.py: draw_split": "a TIFF into memory",
    "benchmarks/baselines/loaders.py: write_pngs": "scratch data of a benchmark, in a temporary folder",
    "benchmarks/convert.py: write_json": "scratch data of a benchmark, in a temporary folder",
    "benchmarks/convert.py: bench_speed": "scratch data of a benchmark, in a temporary folder",
    "benchmarks/faults/small_disk.py: fill": "what fills a disk",
    "benchmarks/faults/chaos_inflict.py: damage": "damages a checkpoint",
    "benchmarks/faults/chaos_recording.py: record_batches": "lines are appended, a torn last one is left out",
    "benchmarks/faults/chaos_starts.py: Launched.__init__": "what a launcher prints",
    "benchmarks/faults/forks.py: Forks.start": "what a forked process prints",
    "benchmarks/faults/fork_server.py: do": "the process's own standard output",
}
"""Module and function of each direct write, and why it is none of files.py."""
MAY_RENAME = {
    "glioma_dist/files.py: write_atomically": "the function that all others call",
    "glioma_dist/files.py: rename_in_order": "the function that all others call",
    "glioma_dist/hidden_folder.py: replace_by": "of results that are complete and synced",
    "glioma_dist/data/shards/cache.py: ShardCache._rename": "under the cache's lock; a power cut may lose a kept shard",
}


def is_write(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, or writes one."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if name in METHODS or (owner in ("np", "torch", "json", "pickle") and name in ("save", "dump")):
        return not (owner == "json" and name == "dump")  # into a file that is open already
    if name != "open" or owner == "tarfile":
        return False
    if owner == "os":
        return any(isinstance(node, ast.Attribute) and node.attr in WRITING_FLAGS for node in ast.walk(call))
    place = 0 if isinstance(function, ast.Attribute) else 1
    modes = [*call.args[place : place + 1], *(each.value for each in call.keywords if each.arg == "mode")]
    return any(not isinstance(mode, ast.Constant) or bool(WRITING_MODES & set(str(mode.value))) for mode in modes)


def is_rename(call: ast.Call) -> bool:
    """Whether a call renames a file or a folder. Of the methods named replace only a path's takes one argument."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if owner in ("os", "shutil"):
        return function.attr in ("rename", "renames", "replace", "move")
    return function.attr == "rename" or (function.attr == "replace" and len(call.args) == 1 and not call.keywords)


def calls_of(source: str, kind: Callable[[ast.Call], bool]) -> list[str]:
    """The functions of a module with calls of a kind, each as often as it has one."""
    found = []

    def walk(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                walk(child, f"{inside}.{child.name}".lstrip("."))
                continue
            if isinstance(child, ast.Call) and kind(child):
                found.append(inside or "<module>")
            walk(child, inside)

    walk(ast.parse(source), "")
    return found


def test_the_scan_finds_every_way_of_writing():
    lines = [
        'p.write_text("x")',
        'p.write_bytes(b"x")',
        'open(p, "w")',
        'open(p, mode="ab")',
        'p.open("r+b")',
        "open(p, mode)",
        "cv2.imwrite(p, image)",
        "figure.savefig(p)",
        "table.to_csv(p)",
        "np.save(p, array)",
        "torch.save(tensors, p)",
        "save_file(tensors, p)",
        "os.open(p, os.O_WRONLY | os.O_CREAT)",
        "array.tofile(p)",
    ]
    for line in lines:
        assert calls_of(f"class A:\n def f(self):\n  {line}", is_write) == ["A.f"], line
    for line in ("open(p)", 'open(p, "rb")', "p.open()", "os.open(p, os.O_RDONLY)", "p.read_text()", "tarfile.open(p)"):
        assert calls_of(f"def f():\n {line}", is_write) == [], line


def test_the_scan_finds_every_way_of_renaming():
    for line in ("os.rename(p, q)", "os.replace(p, q)", "shutil.move(p, q)", "p.rename(q)", "p.replace(q)"):
        assert calls_of(f"class A:\n def f(self):\n  {line}", is_rename) == ["A.f"], line
    for line in ('text.replace("a", "b")', "replace(config, seed=1)", "found._replace(a=1)", "rename_in_order((p, q))"):
        assert calls_of(f"def f():\n {line}", is_rename) == [], line


@pytest.mark.parametrize(("kind", "allowed"), [(is_write, ALLOWED), (is_rename, MAY_RENAME)])
def test_every_file_is_written_and_renamed_by_files_py(kind, allowed):
    found = {
        f"{path.relative_to(REPOSITORY)}: {place}" for path in SOURCES for place in calls_of(path.read_text(), kind)
    }
    assert sorted(found - allowed.keys()) == []
    assert sorted(allowed.keys() - found) == []  # a reason for what is gone
