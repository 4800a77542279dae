"""A request to stop is not lost where Python drops exceptions."""

import os
import signal
import sys
import time
import weakref

import pytest
from helpers import run

from glioma_dist.distributed.signals import STOP_SIGNALS, StopSignal
from glioma_dist.errors import Interrupted


class HalfMade:
    """Interrupted while it was made: its end misses an attribute."""

    def __del__(self):
        raise AttributeError("half made")


def in_finalizer(number: int) -> None:
    class Thing:
        def __del__(self):
            signal.raise_signal(number)

    Thing()


def in_weak_reference(number: int) -> None:
    thing = type("Thing", (), {})()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


def at_fork(number: int) -> None:
    here = [True]
    os.register_at_fork(before=lambda: here and here.pop() and signal.raise_signal(number))
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@pytest.fixture
def told(monkeypatch) -> list[type]:
    """The kinds of the errors that Python tells of because it drops them."""
    kinds: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: kinds.append(what.exc_type))
    return kinds


def arrive_and_wait(arrive, number: int) -> None:
    arrive(number)
    time.sleep(20)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("arrive", [in_finalizer, in_weak_reference])
def test_a_signal_where_no_exception_can_leave_interrupts_afterwards(told, arrive, number):
    with StopSignal():
        with pytest.raises(Interrupted, match=number.name):
            arrive_and_wait(arrive, number)
        HalfMade()  # what an interrupted program leaves behind
    assert told == [], "a requested stop prints no traceback"


def stop_at_fork(number: int) -> tuple[str, list[str]]:
    """What interrupts this process, and the kinds of errors that Python tells of."""
    told: list[str] = []
    sys.unraisablehook = lambda what: told.append(what.exc_type.__name__)
    with StopSignal(), pytest.raises(Interrupted) as caught:
        arrive_and_wait(at_fork, number)
    return str(caught.value), told


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_at_a_fork_interrupts_afterwards(number):
    """In a process of its own: if the fork takes so long that the signal comes again within it, Python drops the
    interrupt of another module's function, which should have freed a lock."""
    ((said, told),) = run(stop_at_fork, number)
    assert number.name in said
    assert told == [], "a requested stop prints no traceback"


def test_other_errors_of_finalizers_are_told(told):
    with StopSignal():
        HalfMade()
    HalfMade()
    assert told == [AttributeError] * 2


def test_a_signal_that_a_program_in_c_handles_stays_with_it(monkeypatch):
    """R, for example, handles SIGUSR1: Python tells of no handler, and could not put it back."""
    find = signal.getsignal
    before = find(signal.SIGUSR1)
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else find(number))
    with StopSignal() as stop, stop.deferred():
        assert find(signal.SIGUSR1) is before
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == "SIGTERM"
    assert find(signal.SIGUSR1) is before
