"""What all tests share: no network, and small shards drawn once a session. Heavy imports wait until a test asks."""

import atexit
import logging
import os
import shutil
import signal
import tempfile
from collections import defaultdict

import pytest
from equality.rows import note_rows, write_row
from tiers import COLLECTED, begins_at, tiers_of

# Before any test imports them, so that what fails in them says why.
pytest.register_assert_rewrite("contract", "disk", "forks", "inputs", "run_contents", "stage", "streams", "sweeps")


def pytest_configure() -> None:
    """Signals that a shell had this process ignore (`nohup`, `&` in a script) are noticed again: tests send them."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _signals_stay_as_they_are():
    """A test that lets a command end in this process would leave signals ignored, in all tests after it."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    changed = [number.name for number in numbers if signal.getsignal(number) is not before[number]]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not changed, f"the test leaves {', '.join(changed)} with another handler"


@pytest.fixture(autouse=True)
def _logging_stays_free():
    """A test that leaves the lock of Python's logging taken would stop a later one that logs in a thread, for ever."""
    yield
    assert not logging._lock._is_owned(), "the test leaves the lock of Python's logging taken"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files; mark the tests that `make test` and `make test-all` leave to others."""
    config.stash[COLLECTED] = [item.nodeid for item in items]
    ids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            ids[item.nodeid.partition("[")[0]].append(item.nodeid)
    tiers = {name: tiers_of(name, each) for name, each in ids.items()}
    for item in items:
        long, slow = tiers.get(item.nodeid.partition("[")[0], ((), ()))
        if item.nodeid in slow:
            item.add_marker("slow")
        elif item.nodeid in long:
            item.add_marker("long")
    items.sort(key=lambda item: begins_at(item.nodeid))
    note_rows(items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write rows of docs/equality.md, where the environment asks for them."""
    write_row(report)


def empty_folder() -> str:
    """Removed when the tests end."""
    folder = tempfile.mkdtemp(prefix="glioma-dist-empty-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# Before anything imports the hub's client or albumentations, both of which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = empty_folder()
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["XDG_CACHE_HOME"] = empty_folder()
# Tiny tensors gain nothing from threads, and a sum's last bit depends on their number.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder with `train` (10 grey images of 96x80 in shards of 3) and `val` (3 images)."""
    from helpers import draw_shards

    folder = tmp_path_factory.mktemp("shards")
    draw_shards(folder / "train", range(10))
    draw_shards(folder / "val", range(100, 103))
    return folder


@pytest.fixture(scope="session")
def runtime():
    """The one process that the tests run in, as the package sees it."""
    from glioma_dist.distributed.context import DistributedContext

    return DistributedContext.start()


@pytest.fixture(scope="session")
def quick_python():
    """The path of an interpreter that starts within milliseconds (quick_python.py)."""
    import multiprocessing.process
    from pathlib import Path

    import quick_python
    from forks import wait_until
    from helpers import start

    # A socket's address has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="glioma-dist-quick-") as folder:
        address, script = Path(folder, "socket"), Path(folder, "python")
        (server,) = start(quick_python.serve, str(address)).processes
        # Tests of other processes take all children of this one for theirs.
        multiprocessing.process._children.discard(server)
        quick_python.write_script(str(script), str(address))
        wait_until(address.exists)
        yield script
        server.kill()
        server.join()


@pytest.fixture(scope="module")
def bucket_server():
    """An S3 store with one bucket, behind a proxy that fails as it is told to (bucket.py)."""
    from bucket import bucket

    with bucket() as proxy:
        yield proxy


@pytest.fixture
def empty_bucket(bucket_server):
    """The same, with nothing in it and no faults."""
    bucket_server.reset()
    bucket_server.clear()
    return bucket_server


@pytest.fixture
def no_url_becomes_a_folder(tmp_path, monkeypatch):
    """Of the folder that a test works in."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("s3:*"))
