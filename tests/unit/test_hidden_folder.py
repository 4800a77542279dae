"""Files and folders that take the place of older ones, while others do the same."""

import os

import pytest

from glioma_dist.hidden_folder import replace_by


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
