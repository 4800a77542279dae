"""Images are read ahead and written behind: in order, one at a time, with each error where its item is due."""

import gc
import threading
import time
import weakref
from functools import partial

import pytest

from glioma_dist.errors import DiskFullError, InputError
from glioma_dist.inference.overlap import WriteBehind, read_ahead

SECONDS = 20


class Picture:
    """Something that a weak reference can follow."""


@pytest.mark.parametrize("in_thread", [True, False])
def test_items_come_in_order_with_their_results_and_errors(in_thread):
    def read(number: int) -> int:
        if number % 3 == 1:
            raise InputError(f"{number} cannot be read")
        return 10 * number

    found = list(read_ahead(range(7), read, in_thread))
    assert [each.item for each in found] == list(range(7))
    assert [each.result for each in found] == [0, None, 20, 30, None, 50, 60]
    assert [str(each.error) if each.error else None for each in found][1] == "1 cannot be read"
    assert [each.error is not None for each in found] == [number % 3 == 1 for number in range(7)]
    assert list(read_ahead([], read, in_thread)) == []


def test_the_next_item_is_read_meanwhile_and_no_more_than_that():
    started = [threading.Event() for _ in range(5)]

    def read(number: int) -> int:
        started[number].set()
        return number

    outcomes = read_ahead(range(5), read)
    assert next(outcomes).result == 0
    assert started[1].wait(SECONDS), "while the caller has the first one"
    time.sleep(0.05)
    assert not started[2].is_set()
    assert next(outcomes).result == 1
    assert started[2].wait(SECONDS)
    outcomes.close()
    assert not started[3].is_set()


def test_without_a_thread_nothing_is_read_before_it_is_asked_for():
    asked = []
    outcomes = read_ahead(range(3), asked.append, in_thread=False)
    next(outcomes)
    assert asked == [0]


@pytest.mark.parametrize("in_thread", [True, False])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, MemoryError])
def test_other_errors_are_raised_where_the_item_is_due(kind, in_thread):
    def read(number: int) -> int:
        if number == 2:
            raise kind("broken")
        return number

    outcomes = read_ahead(range(5), read, in_thread)
    assert [next(outcomes).result, next(outcomes).result] == [0, 1]
    with pytest.raises(kind, match="broken"):
        next(outcomes)


@pytest.mark.parametrize("in_thread", [True, False])
def test_writes_end_in_order_with_each_error_at_its_item(in_thread):
    written, outcomes = [], []

    def write(number: int) -> int:
        if number == 1:
            raise DiskFullError("no space left")
        written.append(number)
        return number

    with WriteBehind(in_thread) as writer:
        for number in range(4):
            outcomes += writer.put(number, partial(write, number))
        outcomes += writer.finish()
        assert writer.finish() == []
    assert written == [0, 2, 3]
    assert [(each.item, each.result) for each in outcomes] == [(0, 0), (1, None), (2, 2), (3, 3)]
    assert isinstance(outcomes[1].error, DiskFullError)


def test_one_write_is_under_way_at_a_time_beside_the_caller():
    gate, running = threading.Event(), []

    def write() -> None:
        running.append(1)
        assert gate.wait(SECONDS)
        running.pop()

    with WriteBehind() as writer:
        assert writer.put("a", write) == []  # returns at once, while it waits
        threading.Timer(0.2, gate.set).start()
        (first,) = writer.put("b", lambda: len(running))
        assert first.item == "a"
        (second,) = writer.finish()
        assert second.result == 0


def test_an_unexpected_error_of_a_write_is_raised_and_the_end_waits_for_the_write_under_way():
    finished = []

    def slow() -> None:
        time.sleep(0.2)
        finished.append(1)

    with WriteBehind() as writer:
        writer.put("a", partial(int, "x"))
        with pytest.raises(ValueError, match="invalid literal"):
            writer.finish()
    with WriteBehind() as writer:
        writer.put("b", slow)
    assert finished == [1]


def test_an_image_that_is_done_is_let_go_of():
    alive = []

    def read(_: int) -> Picture:
        picture = Picture()
        alive.append(weakref.ref(picture))
        return picture

    with WriteBehind() as writer:
        for outcome in read_ahead(range(6), read):
            writer.put(outcome.item, partial(id, outcome.result))
            del outcome
            gc.collect()
            assert sum(each() is not None for each in alive) <= 3
        writer.finish()


def test_no_thread_is_left():
    before = set(threading.enumerate())
    list(read_ahead(range(3), str))
    outcomes = read_ahead(range(3), str)
    next(outcomes)
    outcomes.close()
    with WriteBehind() as writer:
        writer.put(1, dict)
    assert set(threading.enumerate()) <= before  # one of another test may have ended meanwhile
