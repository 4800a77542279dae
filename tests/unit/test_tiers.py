"""The table of the long tests names tests that are there, and leaves some of each kind to `make test`."""

import re
from itertools import groupby

import pytest
from helpers import REPOSITORY
from tiers import FIRST_IN_CI, LONG, LONGEST_FILES, WHOLE_IN_SLOW, begins_at, is_long, is_slow


@pytest.mark.parametrize("name", [*LONG, *WHOLE_IN_SLOW, *FIRST_IN_CI])
def test_each_long_test_is_there(name):
    path, _, test = name.partition("::")
    assert (REPOSITORY / path).exists()
    if test:
        assert re.search(rf"^def {test.partition('[')[0]}\(", (REPOSITORY / path).read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", LONGEST_FILES)
def test_each_of_the_longest_files_is_there(file):
    assert (REPOSITORY / file).is_file()


def test_the_longest_files_are_begun_first_and_their_tests_stay_together(request):
    """The order of this run's tests, as the processes of a parallel run are given them."""
    files = [item.nodeid.partition("::")[0] for item in request.session.items]
    places = [begins_at(file) for file in files]
    assert places == sorted(places)
    assert len([file for file, _ in groupby(files)]) == len(set(files))


def test_a_name_is_not_taken_for_a_longer_one():
    assert is_long("tests/unit/test_planner.py::test_counted_is_what_a_process_grows_by[704x512-full]")
    assert is_long("tests/faults/test_faults.py::test_any")
    assert is_long("tests/end_to_end/test_study.py::test_any[1]")
    assert not is_long("tests/end_to_end/test_study.py.old::test_any")
    assert not is_long("tests/end_to_end/test_study_plans.py::test_any")
    assert not is_long("tests/unit/test_planner.py::test_counted_is_what_a_process_grows_by_and_more")


def test_parameters_decide_what_is_slow():
    name = "tests/unit/test_micro_batches.py::test_the_planner_foretells_what_is_counted"
    assert is_slow(f"{name}[selective-4]")
    assert not is_slow(f"{name}[none-2]")
    assert not is_slow(f"{name}_and_more[selective-4]")
    assert is_slow("tests/end_to_end/test_bench_gpu.py::test_a_kernel_that_overflows_fails")


def test_each_beginning_of_parameters_is_one_of_a_test_that_runs(request):
    """Else a parameter that was renamed would have left `make test-all`."""
    running = [item.nodeid for item in request.session.items]
    for name, beginnings in WHOLE_IN_SLOW.items():
        of_test = [node.partition("[")[2] for node in running if node.partition("[")[0] == name]
        for beginning in beginnings if of_test else ():
            assert any(each.startswith(beginning) for each in of_test), (name, beginning)


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
