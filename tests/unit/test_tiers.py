"""The table of the long tests names tests that are there, and leaves some of each kind to `make test-all`."""

import re
from itertools import groupby

import pytest
from helpers import REPOSITORY
from tiers import COLLECTED, LONGEST_FILES, begins_at, chosen, share_of, shares, tiers_of


def test_each_test_of_the_table_is_there():
    for name in shares():
        path, _, test = name.partition("::")
        assert (REPOSITORY / path).exists(), name
        if test:
            assert re.search(rf"^def {test}\(", (REPOSITORY / path).read_text(), re.MULTILINE), name


def test_the_table_is_in_order():
    assert list(shares()) == sorted(shares())


@pytest.mark.parametrize("file", LONGEST_FILES)
def test_each_of_the_longest_files_is_there(file):
    assert (REPOSITORY / file).is_file()


def test_the_longest_files_are_begun_first_and_their_tests_stay_together(request):
    """The order of this run's tests, as the processes of a parallel run are given them."""
    files = [item.nodeid.partition("::")[0] for item in request.session.items]
    places = [begins_at(file) for file in files]
    assert places == sorted(places)
    assert len([file for file, _ in groupby(files)]) == len(set(files))


def test_a_row_is_of_a_test_a_file_or_a_folder_and_no_longer_name(monkeypatch):
    rows = {"tests/a.py::test_one": ("1", "2"), "tests/b.py": ("0", ""), "tests/faults": ("0", "3")}
    monkeypatch.setattr("tiers.shares", lambda: rows)
    assert share_of("tests/a.py::test_one") == ("1", "2")
    assert share_of("tests/b.py::test_any") == ("0", "")
    assert share_of("tests/faults/test_any.py::test_any") == ("0", "3")
    assert share_of("tests/a.py::test_one_and_more") == ("", "")
    assert share_of("tests/b.py.old::test_any") == ("", "")


def test_a_cell_takes_all_a_number_or_what_begins_so():
    ids = [f"t[{name}]" for name in ("mit_tiny-1", "mit_tiny-2", "vgg19-1", "vgg19-2", "xception")]
    assert chosen("", ids) == ids
    assert chosen("0", ids) == []
    assert chosen("1", ids) == ids[:1]
    assert chosen("2", ids) == [ids[0], ids[2]]
    assert chosen("9", ids) == ids
    assert chosen("mit_tiny|xc", ids) == [ids[0], ids[1], ids[4]]


def test_make_test_takes_its_share_of_what_make_test_all_runs(monkeypatch):
    monkeypatch.setattr("tiers.shares", lambda: {"t": ("1", "b|c")})
    assert tiers_of("t", ["t[a]", "t[b]", "t[c]"]) == ({"t[c]"}, {"t[a]"})
    assert tiers_of("other", ["other"]) == (set(), set())


def test_each_beginning_of_parameters_is_one_of_a_test(request):
    """Else a parameter that was renamed would have left a tier. Of the tests that were collected."""
    every = request.config.stash[COLLECTED]
    for name, (in_test, in_test_all) in shares().items():
        ids = [each for each in every if each.partition("[")[0] == name]
        for cell, those in ((in_test_all, ids), (in_test, chosen(in_test_all, ids))):
            for beginning in cell.split("|") if ids and cell and not cell.isdecimal() else ():
                assert chosen(beginning, those), (name, beginning)


def test_no_tier_drops_a_test():
    """`make test-all` takes all that is neither slow nor needs a GPU, CI runs it, and `make test` is a part of it."""
    makefile, ci = ((REPOSITORY / name).read_text() for name in ("Makefile", ".ci/run"))
    told = dict(re.findall(r"^(test[a-z-]*): setup\n\t.*-m \"?([a-z ]+)\"?$", makefile, re.MULTILINE))
    assert told == {
        "test": "not long and not slow and not gpu",
        "test-all": "not slow and not gpu",
        "test-slow": "slow",
    }
    assert re.search(r"^make test-all$", ci, re.MULTILINE)
