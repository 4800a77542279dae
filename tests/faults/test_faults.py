"""What a run survives: every fault of the tables by name, and the same command afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from contract import FINISHED, Fault, check_end, check_run_folder
from file_calls import can_be_held
from run_contents import check_same
from stage import Shared, Stage
from sweeps import STEP_BETWEEN, SWEEPS, sweep, temporary_stage
from tables import ALL_FAULTS

pytestmark = pytest.mark.timeout(600)


def _param(fault: Fault) -> object:
    return pytest.param(fault, id=fault.name, marks=[] if fault.ci else [pytest.mark.slow])


@pytest.fixture
def stage(shared: Shared) -> Iterator[Stage]:
    with temporary_stage(shared) as stage:
        yield stage


HELD = pytest.mark.skipif(not can_be_held(), reason="the kernel cannot hold a process's system calls for another")


@HELD
@pytest.mark.parametrize("fault", [_param(fault) for fault in ALL_FAULTS])
def test_a_fault_ends_as_promised_and_the_same_command_resumes(fault: Fault, stage: Stage, record) -> None:
    if fault.needs_root and os.geteuid() != 0:
        pytest.skip("mounts a file system: needs root")
    ended = fault.inflict(stage)
    record(fault, ended)
    check_end(fault, stage, ended)
    if not fault.trains:
        return
    check_run_folder(fault, stage, ended)
    if fault.repair is not None:
        fault.repair(stage)
    if not fault.resumes:
        return
    if ended[0].code != FINISHED:
        again = stage.resume()
        assert [end.code for end in again] == [FINISHED] * len(again), [end.stderr[-2000:] for end in again]
        assert all("Traceback" not in end.stderr and "error:" not in end.stderr for end in again)
    check_same(stage.out, getattr(stage.shared, fault.reference))
    assert stage.strangers() == []


@HELD
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_fault_at_every_file_operation_leaves_a_run_that_resumes(name: str, shared: Shared, record_sweep) -> None:
    count, wrong = sweep(shared, *SWEEPS[name])
    record_sweep(name, count, len(wrong), STEP_BETWEEN)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)


def test_the_names_of_faults_are_unique_and_every_kind_has_one_in_ci() -> None:
    names = [fault.name for fault in ALL_FAULTS]
    assert len(set(names)) == len(names)
    kinds = {fault.kind for fault in ALL_FAULTS}
    assert {fault.kind for fault in ALL_FAULTS if fault.ci} == kinds
