"""Which process a launch waits for: told by signs of life in the launch's store."""

import json
import threading
import time
from dataclasses import astuple
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from glioma_dist.distributed import whereabouts as module
from glioma_dist.distributed.lost_processes import Loss
from glioma_dist.distributed.whereabouts import KEY, Sign, Whereabouts

HOSTS = ("a", "a", "b", "b", "c")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_LISTEN", 0.3)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.05)


class Others:
    """Other ranks, whose signs a test writes: `living` give a new sign at each look."""

    def __init__(self, here: Whereabouts, store: HashStore, signs: dict[int, Sign], living: set[int]) -> None:
        self.here, self.store, self.signs, self.living = here, store, signs, living
        self.write(0)

    def write(self, more: int) -> None:
        for rank, sign in self.signs.items():
            number = sign.number + (more if rank in self.living else 0)
            told = Sign(number, *astuple(sign)[1:])
            self.store.set(f"{KEY}/{rank}", json.dumps(astuple(told)))

    def find(self, loss: Loss = Loss.SILENT) -> str | None:
        """What a process says that waited 30 s for the others."""
        count = 0

        def look() -> bool:
            nonlocal count
            count += 1
            self.write(count)
            return False

        return self.here.find_missing(loss, 30, look)


def others(signs: dict[int, Sign], living: set[int], doing: str = "computing step 41", meetings: int = 41) -> Others:
    """This process is rank 0 of those on `HOSTS`."""
    store = HashStore()
    here = Whereabouts(0, HOSTS, store)
    for _ in range(meetings):
        here.wait_for_data("step 41")
        here.meet()
    if doing:
        here.at(doing)
    signs = {0: Sign(9, doing or "waiting at the agreement before step 41", meetings, 30.0)} | signs
    return Others(here, store, signs, living | {0})


HERE = Sign(9, "computing step 41", 41, 30.0, True)


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        ({2}, "rank 2 on b did not answer for 30 s (last seen computing step 41)"),
        ({2, 3}, "b (ranks 2 and 3) did not answer for 30 s (last seen computing step 41)"),
        ({1, 4}, "rank 1 on a, c (rank 4) did not answer for 30 s (last seen computing step 41)"),
        (
            {1, 2, 3, 4},
            "rank 1 on a, b (ranks 2 and 3), c (rank 4) did not answer for 30 s (last seen computing step 41)",
        ),
    ],
)
def test_silent_processes_are_named_with_their_machines(silent, said):
    ranks = dict.fromkeys(range(1, 5), HERE)
    assert others(ranks, set(ranks) - silent).find() == said


def test_a_machine_that_ended_is_named():
    ranks = dict.fromkeys(range(1, 5), HERE)
    assert others(ranks, {1, 2}).find(Loss.ENDED) == "rank 3 on b, c (rank 4) ended (last seen computing step 41)"


def test_a_process_that_waits_for_its_data_is_told_from_one_that_is_silent():
    ranks = dict.fromkeys(range(1, 5), Sign(9, "waiting at the agreement before step 41", 41, 30.0, True))
    ranks[3] = Sign(9, "waiting for the data of step 41", 40, 34.6)
    assert others(ranks, set(ranks), doing="").find() == (
        "rank 3 on b did not reach the agreement before step 41 within 30 s (waiting for the data of step 41, for 35 s)"
    )


def test_a_process_that_hangs_in_the_same_step_is_the_one_whose_communication_has_not_failed():
    ranks = dict.fromkeys(range(1, 5), HERE)
    ranks[1] = Sign(9, "computing step 41", 41, 31.0)
    assert others(ranks, set(ranks)).find() == (
        "rank 1 on a did not come to where the others wait within 30 s (computing step 41, for 31 s)"
    )


def test_where_nobody_stands_out_nobody_is_named():
    ranks = dict.fromkeys(range(1, 5), HERE)
    assert others(ranks, set(ranks)).find() is None
    assert others(ranks, set(ranks)).find(Loss.ENDED) is None


def test_a_reason_that_another_process_gives_ends_the_listening(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_LISTEN", 60)
    began = time.monotonic()
    assert others(dict.fromkeys(range(1, 5), HERE), set()).here.find_missing(Loss.SILENT, 30, lambda: True) is None
    assert time.monotonic() - began < 30


def test_names_of_any_length_and_number_make_a_message_of_one_line():
    store = HashStore()
    here = Whereabouts(0, ["here", *(f"{'x' * 300}\n{rank}" for rank in range(1, 1000))], store)
    others = Others(here, store, dict.fromkeys(range(1000), HERE), living=set())
    assert others.find() is None, "without own signs, silence says nothing"
    others.living = {0}
    said = others.find()
    assert "and 996 more" in said
    assert len(said) < 500
    assert "\n" not in said


def test_a_thread_gives_signs_of_what_the_process_does(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIGNS", 0.02)
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    one, other = (Whereabouts(rank, ("a", "b"), store) for rank in (0, 1))
    before = set(threading.enumerate())
    for each in (one, other):
        each.tell()
    for each in (one, other):
        each.start()
    assert len(set(threading.enumerate()) - before) == 2
    other.at("computing step 3")
    one.at("computing step 3")
    for _ in range(3000):
        if "step 3" in store.get(f"{KEY}/1").decode():
            break
        time.sleep(0.02)
    assert one.find_missing(Loss.ENDED, 30, lambda: False) is None, "both give signs"
