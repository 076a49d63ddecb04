"""How many threads read and write beside the network, where nobody says it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from monai_vit3d.data.errors import UsageError
from monai_vit3d.pipeline import jobs
from monai_vit3d.pipeline.case_runner import _ahead
from monai_vit3d.pipeline.jobs import MOST, Jobs, usable_cores


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(jobs, "usable_cores", lambda: 4)


def after_waits(chosen, waits=20):
    for _ in range(waits):
        chosen.network_waited()
    return chosen.count


def read_by(chosen, reading_s, network_s, cases=12):
    """Read cases ahead of a network that takes so long; returns the order in which it got them."""
    found = []
    with ThreadPoolExecutor(chosen.most) as pool:
        for case in _ahead(pool, lambda case: (time.sleep(reading_s), case)[1], range(cases), chosen):
            time.sleep(network_s)
            found.append(case)
    return found


@pytest.mark.parametrize("given", [1, 3, 20])
def test_a_number_that_was_given_stays(given):
    chosen = Jobs(given)
    assert (chosen.most, chosen.count, after_waits(chosen)) == (given, given, given)


def test_it_grows_up_to_the_cores(four_cores):
    chosen = Jobs()
    assert (chosen.count, after_waits(chosen)) == (1, 4)


def test_it_grows_no_further_than_the_most(monkeypatch):
    monkeypatch.setattr(jobs, "usable_cores", lambda: 128)
    assert after_waits(Jobs()) == MOST


def test_it_grows_while_half_of_the_memory_is_left(four_cores, monkeypatch):
    free = iter([100, 80, 51, 50, 50])
    monkeypatch.setattr(jobs, "available_bytes", lambda: next(free))
    assert after_waits(Jobs(), 4) == 3


def test_cores_are_those_that_the_process_may_use():
    process = psutil.Process()
    assert usable_cores() == (len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken from a process here")
def test_cores_that_were_taken_away_do_not_count():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_are_added_where_reading_is_the_slower(four_cores):
    chosen = Jobs()
    assert read_by(chosen, reading_s=0.02, network_s=0) == [*range(12)]
    assert chosen.count == 4


def test_one_thread_is_enough_where_the_network_is_the_slower(four_cores):
    chosen = Jobs()
    assert read_by(chosen, reading_s=0, network_s=0.02) == [*range(12)]
    assert chosen.count == 1


@pytest.mark.parametrize("given", [0, -2])
def test_fewer_than_one_are_refused(given):
    with pytest.raises(UsageError, match=f"jobs={given}; expected 1 or more, or nothing"):
        Jobs(given)
