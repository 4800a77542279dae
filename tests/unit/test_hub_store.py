"""Reading from and writing to a repository of the Hugging Face hub, as a stand-in of it answers (hub_server.py)."""

import threading

import pytest
from helpers import draw_shards
from hub_server import LARGE_BYTES, REPOSITORY, serve_hub

from glioma_dist import InputError, ShardReader
from glioma_dist.config.networks import network_folder
from glioma_dist.config.paths import Url
from glioma_dist.data import remote_checkpoint
from glioma_dist.data.remote_checkpoint import MANIFEST, CheckpointIndex, fetch_checkpoint, find_remote
from glioma_dist.data.shards.storage import Patience
from glioma_dist.data.shards.store import Store
from glioma_dist.errors import UnavailableError
from glioma_dist.training.lease import Lease
from glioma_dist.training.resume import LAST, METRICS
from glioma_dist.training.status import STATUS
from glioma_dist.training.uploader import Uploader

MIB = 2**20
URL = f"hf://{REPOSITORY}"


@pytest.fixture
def hub(monkeypatch):
    with serve_hub(monkeypatch) as hub:
        yield hub


def open_store(folder: str = "run") -> Store:
    return Store(f"{URL}/{folder}", Patience(2, 30.0, 0.01))


def test_several_files_are_one_commit(hub, tmp_path, capfd):
    """The hub allows a number of commits an hour."""
    large = tmp_path / "large"
    large.write_bytes(b"0123456789" * LARGE_BYTES)
    store = open_store()
    store.put_files({"a/1.json": b"one", "a/2.bin": large, "empty": b""})
    assert hub.commits == [["run/a/1.json", "run/a/2.bin", "run/empty"]]
    assert hub.files == {"run/a/1.json": b"one", "run/a/2.bin": large.read_bytes(), "run/empty": b""}
    store.remove(["a/1.json", "missing", "empty"])
    assert hub.commits[1:] == [["run/a/1.json", "run/empty"]]
    store.put_files({})
    store.remove([])
    store.remove(["missing"])
    store.put("a/2.bin", large.read_bytes())
    assert len(hub.commits) == 2
    assert capfd.readouterr() == ("", "")


def test_the_whole_repository_can_be_the_folder(hub):
    store = Store(URL)
    store.check()
    store.put("a.txt", b"1")
    assert store.names("") == store.entries() == ["a.txt"]
    assert store.read_all("a.txt", 10) == b"1"


def test_commits_of_a_checkpoint(hub, tmp_path):
    """docs/guides/buckets.md says how many."""
    store, run = open_store(), tmp_path / "run"
    (run / LAST).mkdir(parents=True)
    uploader = Uploader(
        store, run, tmp_path / "links", CheckpointIndex("a run"), None, 1, Lease(store, "a holder", print)
    )
    for step in (1, 2, 3):
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", MANIFEST):
            (run / LAST / name).write_text(f"{name} of step {step}")
        for name in (METRICS, STATUS):
            (run / name).write_text("".join(f"row {number}\n" for number in range(step)))
        uploader.checkpoint_complete(LAST, step)
        uploader.wait()
    assert [len(each) for each in hub.commits[:4]] == [4, 1, 1, 1], "files, metrics, the list of checkpoints, status"
    assert len(hub.commits) == 4 + 2 * 5, "and what the list no longer names is removed"


def test_more_entries_than_one_answer_holds_are_listed(hub):
    store = open_store()
    names = [f"{number}.txt" for number in range(8)]
    store.put_files({name: name.encode() for name in names})
    assert sorted(store.names("")) == sorted(store.entries()) == names


def test_what_another_thread_has_written_since_a_listing_is_read(hub):
    """The hub's client keeps listings, one set for each thread."""
    store = open_store()
    store.put("a.txt", b"1")
    assert store.entries() == ["a.txt"]

    def change():
        other = open_store()
        other.put("b.txt", b"new")
        other.put("a.txt", b"longer than before")

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    assert store.read_optional("b.txt", MIB) == b"new"
    assert store.read_all("a.txt", MIB) == b"longer than before"
    thread = threading.Thread(target=lambda: open_store().remove(["a.txt"]))
    thread.start()
    thread.join()
    assert store.read_optional("a.txt", MIB) is None
    with pytest.raises(InputError, match=r"a.txt cannot be read \(FileNotFoundError"):
        store.read_all("a.txt", MIB)


def test_a_file_of_too_many_bytes_is_not_read(hub):
    store = open_store()
    store.put("a.txt", b"12345")
    with pytest.raises(InputError, match="has 5 bytes, at most 4 are read"):
        store.read_all("a.txt", 4)
    assert store.read_start("a.txt", 3) == b"123"


@pytest.mark.parametrize("change", ["put", "remove"])
def test_a_missing_right_is_said_at_once(hub, monkeypatch, change):
    open_store().put("a.txt", b"1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(InputError, match="do your credentials allow it") as caught:
        open_store().put("a.txt", b"2") if change == "put" else open_store().remove(["a.txt"])
    assert "\n" not in str(caught.value)
    assert "hf_of" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_limit_of_the_hour_ends_in_one_line(hub, status):
    hub.refused = status
    with pytest.raises(UnavailableError, match=f"^{URL}/run/a.txt cannot be written after 2 tries.*{status}") as caught:
        open_store().put("a.txt", b"1")
    assert "\n" not in str(caught.value)


def test_a_missing_repository_is_said_in_one_line(hub):
    store = Store("hf://lab/others/run", Patience(2, 30.0, 0.01))
    with pytest.raises(InputError, match=r"hf://lab/others/run.*does the bucket exist") as caught:
        store.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["lab/others", "lab/others/run", "lab/others/best", "lab/cells@v9", "a--b/c", "a/b.git"]
)
def test_a_checkpoint_of_a_repository_that_is_not_there_is_one_line_without_a_second_try(hub, name):
    repository = name.removesuffix("/best")  # of whose run the list of checkpoints is asked for first
    with pytest.raises(InputError, match=f"^hf://{repository}/.*is the URL right, and may") as caught:
        fetch_checkpoint(Url(f"hf://{name}"), Patience(2, 30.0, 1e6))
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [REPOSITORY, f"{REPOSITORY}/best", f"{REPOSITORY}/some/last"])
def test_a_network_of_a_repository_is_found_whatever_its_folder_is_called(hub, name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = network_folder("t98g-small")
    inside = name.removeprefix(REPOSITORY).lstrip("/")
    hub.files = {f"{inside}/{path.name}".lstrip("/"): path.read_bytes() for path in network.iterdir()}
    found = fetch_checkpoint(Url(f"hf://{name}"))
    assert (found / MANIFEST).read_bytes() == (network / MANIFEST).read_bytes()


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_repository_may_be_called_as_the_checkpoint_of_a_run(hub, name, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(remote_checkpoint, "read_index", lambda folder: asked.append(str(folder)))
    for place in (f"hf://lab/{name}", f"hf://datasets/lab/{name}", f"hf://{name}"):
        with pytest.raises(InputError):
            find_remote(Url(place), Patience(1))
    assert not asked
    with pytest.raises(InputError):
        find_remote(Url(f"{URL}/{name}"), Patience(1))
    assert asked == [URL]


def test_shards_are_read_as_from_a_folder(hub, tmp_path):
    folder = draw_shards(tmp_path / "train", range(5))
    Store(f"{URL}/train").put_files({path.name: path for path in sorted(folder.iterdir())})
    local, remote = ShardReader(folder), ShardReader(f"{URL}/train")
    assert len(remote) == len(local) == 5
    for shard, place in ((0, 0), (0, 2), (1, 1)):
        there, here = remote.read(shard, place), local.read(shard, place)
        assert (there.image == here.image).all()
        assert (there.mask == here.mask).all()
