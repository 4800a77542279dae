"""The fingerprint of code: the same for the same files, another when any of them changes."""

import importlib.util
import sys
from pathlib import Path

import glioma_dist.fingerprint
from glioma_dist.fingerprint import code_fingerprint


def load(path: Path, monkeypatch) -> type:
    spec = importlib.util.spec_from_file_location("others_encoder", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "others_encoder", module)
    spec.loader.exec_module(module)
    return module.Encoder


def test_it_changes_with_the_file_of_a_class_and_with_its_librarys_version(tmp_path, monkeypatch):
    path = tmp_path / "others_encoder.py"
    found = []
    for text in ("class Encoder: pass", "class Encoder: pass  # other", "__version__ = '2'\nclass Encoder: pass"):
        path.write_text(text)
        found += [
            code_fingerprint([load(path, monkeypatch)]),
            code_fingerprint([sys.modules["others_encoder"].Encoder]),
        ]
    assert found[::2] == found[1::2]
    assert len({*found, code_fingerprint([])}) == 4


def test_it_changes_with_any_file_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(glioma_dist.fingerprint, "PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    found = []
    for text in ("a = 1", "a = 2"):
        (tmp_path / "room" / "module.py").write_text(text)
        found.append(code_fingerprint([]))
    (tmp_path / "room" / "new.py").write_text("")
    assert len({*found, code_fingerprint([])}) == 3


def test_there_is_none_for_a_class_that_is_in_no_file(monkeypatch):
    space = {"__name__": "typed_in"}
    monkeypatch.setitem(sys.modules, "typed_in", type(sys)("typed_in"))
    exec("class Encoder: pass", space)
    assert code_fingerprint([space["Encoder"]]) is None
    assert code_fingerprint([int]) is None
