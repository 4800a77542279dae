"""Every file is written under a temporary name and renamed, by files.py: a scan of the package and the benchmarks."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(REPOSITORY / "glioma_dist").rglob("*.py"), *(REPOSITORY / "benchmarks").glob("*.py")])
SOURCES += [REPOSITORY / name for name in ("train.py", "evaluate.py", "predict.py")]
METHODS = {
    *("write_text", "write_bytes", "savefig", "imwrite", "imsave", "to_csv", "to_json", "tofile", "save_file"),
    *("savez", "savez_compressed", "savetxt", "NamedTemporaryFile", "mkstemp", "copyfile", "copy2"),
}
"""That write to a file themselves, whatever they belong to."""
WRITING_MODES = set("wax+")
WRITING_FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC"}
ALLOWED = {
    "glioma_dist/files.py: write_atomically": "the function that all others call",
    "glioma_dist/model/tensor_files.py: write_tensors": "in a checkpoint's folder, which is renamed as a whole",
    "glioma_dist/training/telemetry.py: MetricsFile.__init__": "rows are appended; a torn last one is taken out",
    "glioma_dist/distributed/run_command.py: drop_closed_output": "the null device",
    "glioma_dist/training/folder_lock.py: folder_lock": "a lock file, which has no content",
    "glioma_dist/reproduction/folder.py: one_at_a_time": "a lock file, which has no content",
    "glioma_dist/reproduction/execute.py: launcher.launch": "a log that the entry points append to",
    "glioma_dist/benchmark/cell.py: measure_or_say_why_not": "/proc",
    "glioma_dist/benchmark/cell.py: measure": "/proc",
    "glioma_dist/benchmark/spatial_parallel.py: measure_spatial_parallel": "/proc",
    "glioma_dist/data/shards/reader.py: ShardWriter._start_shard": "in a folder of shards, which is renamed as a whole",
    "glioma_dist/data/shards/index.py: write_json": "in a folder of shards, which is renamed as a whole",
    "glioma_dist/data/shards/subsets.py: link": "in a folder of shards, which is renamed as a whole",
    "glioma_dist/data/convert/audit.py: Audit.write": "under a temporary name, and renamed",
    "glioma_dist/data/splits.py: write_splits": "under a temporary name, and renamed",
    "glioma_dist/data/shards/file_locks.py: clear_away": "the lock of a shard that is being fetched",
    "glioma_dist/data/shards/file_locks.py: held": "the lock of a shard that is being fetched",
    "glioma_dist/inference/predict.py: write_result": "masks and overlays",
    "glioma_dist/inference/predict.py: write_summary": "the summary",
    "glioma_dist/scale/planner.py: _write_answers": "under a name of each process's own, and renamed",
    "glioma_dist/report/resolution.py: write_report": "a figure into memory",
    "glioma_dist/report/study_plots.py: draw_plot": "a figure into memory",
    "glioma_dist/demo/drawing.py: draw_split": "a TIFF into memory",
    "benchmarks/loader.py: write_data": "scratch data of a benchmark, in a temporary folder",
    "benchmarks/convert.py: write_json": "scratch data of a benchmark, in a temporary folder",
    "benchmarks/convert.py: bench_speed": "scratch data of a benchmark, in a temporary folder",
}
"""Module and function of each direct write, and why it is none of files.py."""


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


def writes_of(source: str) -> list[str]:
    """The functions of a module that write a file, each as often as it does."""
    found = []

    def walk(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                walk(child, f"{inside}.{child.name}".lstrip("."))
                continue
            if isinstance(child, ast.Call) and is_write(child):
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
        assert writes_of(f"class A:\n def f(self):\n  {line}") == ["A.f"], line
    for line in ("open(p)", 'open(p, "rb")', "p.open()", "os.open(p, os.O_RDONLY)", "p.read_text()", "tarfile.open(p)"):
        assert writes_of(f"def f():\n {line}") == [], line


def test_every_file_is_written_by_files_py():
    found = {
        f"{path.relative_to(REPOSITORY)}: {function}" for path in SOURCES for function in writes_of(path.read_text())
    }
    assert sorted(found - ALLOWED.keys()) == []
