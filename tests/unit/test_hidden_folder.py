"""Files and folders that take the place of older ones, while others do the same."""

import errno
import os
from types import SimpleNamespace

import pytest

from glioma_dist import files
from glioma_dist.hidden_folder import hidden_folder, replace_by


def made(path, kind, text):
    if kind == "folder":
        path.mkdir()
        (path / "text").write_text(text)
    else:
        path.write_text(text)
    return path


def text_of(path):
    return (path / "text" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_the_new_one_takes_the_place(kind, old, tmp_path):
    path = tmp_path / "result"
    if old != "nothing":
        made(path, old, "old")
    new = made(tmp_path / "new", kind, "new")
    if (kind, old) == ("folder", "file"):
        with pytest.raises(NotADirectoryError):
            replace_by(new, path)
        return
    replace_by(new, path)
    assert text_of(path) == "new"
    assert not new.exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("moment", ["moved away", "moved away and replaced"])
def test_another_process_replaces_a_folder_at_the_same_moment(kind, moment, tmp_path, monkeypatch):
    path = made(tmp_path / "result", "folder", "old")
    new = made(tmp_path / "new", kind, "new")
    others = made(tmp_path / "others", "folder", "others")
    rename = os.rename

    def rename_second(source, target):
        monkeypatch.undo()
        rename(source, tmp_path / "others.old")
        try:
            rename(source, target)
        finally:
            if moment == "moved away and replaced":
                rename(others, path)

    monkeypatch.setattr(os, "rename", rename_second)
    replace_by(new, path)
    assert text_of(path) == "new"


def test_a_folder_that_is_gone_is_no_reason_to_try_again(tmp_path):
    new = made(tmp_path / "new", "file", "new")
    with pytest.raises(FileNotFoundError):
        replace_by(new, tmp_path / "gone" / "result")


def no_locks(*_):
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def test_where_folders_cannot_be_locked_a_killed_process_of_the_same_number_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.setattr("glioma_dist.hidden_folder.fcntl.flock", no_locks)  # as on NFS
    killed = hidden_folder(tmp_path / "a")  # by a container whose only process has the number of the next one's
    left = killed.__enter__()
    (left / "result").touch()
    with hidden_folder(tmp_path / "a") as own:
        assert own != left
        assert list(own.iterdir()) == []
    assert (left / "result").exists()
    assert not own.exists()


def test_machines_that_share_a_folder_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    used = []

    def rename(source, target):
        used.append(source)
        os.rename(source, target)

    monkeypatch.setattr("glioma_dist.files.os.replace", rename)
    for machine in ("pod-0", "pod-1"):  # in both of which the command is process 1
        monkeypatch.setattr("glioma_dist.files.os.uname", lambda machine=machine: SimpleNamespace(nodename=machine))
        files.write_atomically(tmp_path / "predict.json", machine, by_several=True)
    assert len(set(used)) == 2
    assert (tmp_path / "predict.json").read_text() == "pod-1"
