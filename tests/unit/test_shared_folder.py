"""Whether machines share a run's folder: two threads with folders of their own, or with one, stand for two machines."""

import socket
import threading
from pathlib import Path

import pytest

from glioma_dist.errors import InputError
from glioma_dist.training import shared_folder
from glioma_dist.training.shared_folder import describe_blind_hosts, find_blind_hosts


class Gather:
    """Joins the lists of two threads in the order of their ranks."""

    def __init__(self) -> None:
        self._barrier, self._lists = threading.Barrier(2, timeout=30), [[], []]

    def of(self, rank: int):
        def gather(items: list) -> list:
            self._lists[rank] = items
            self._barrier.wait()
            joined = [*self._lists[0], *self._lists[1]]
            self._barrier.wait()
            return joined

        return gather


def find_on(first: Path, second: Path, is_private: bool = False) -> list:
    gather, found = Gather(), [None, None]

    def be(rank: int, folder: Path) -> None:
        try:
            found[rank] = find_blind_hosts(folder, rank == 0, gather.of(rank), is_private and rank == 0)
        except InputError as error:
            found[rank] = error

    threads = [threading.Thread(target=be, args=each) for each in ((0, first), (1, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(shared_folder, "SECONDS_TO_APPEAR", 0.3)


def test_machines_that_share_the_folder_are_told_nothing(tmp_path):
    assert find_on(tmp_path, tmp_path) == [[], []]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_machine_with_a_disk_of_its_own_is_named_on_all(tmp_path, is_there):
    (tmp_path / "a").mkdir()
    if is_there:
        (tmp_path / "b").mkdir()
    assert find_on(tmp_path / "a", tmp_path / "b") == [[socket.gethostname()]] * 2
    assert list((tmp_path / "a").iterdir()) == []
    assert find_on(tmp_path / "a", tmp_path / "b", is_private=True) == [[], []]


def test_a_folder_that_the_first_machine_cannot_write_to_ends_both(tmp_path):
    one, other = find_on(tmp_path / "gone", tmp_path)
    assert str(one) == str(other)
    assert one.is_shared
    assert "its folder is gone" in str(one)


def test_it_is_a_warning_unless_each_machine_writes_there(tmp_path):
    line = describe_blind_hosts(tmp_path, ["b"], is_needed=False)
    assert line.startswith(f"--out {tmp_path}: b does not see what the first machine, {socket.gethostname()}, writes")
    with pytest.raises(InputError, match=r"b, c do not see .* with FSDP2 each machine writes a part") as refused:
        describe_blind_hosts(tmp_path, ["b", "c"], is_needed=True)
    assert refused.value.is_shared
