"""Jobs in several processes: what is left of them after an error, and after the death of who started them."""

import multiprocessing
import os
import time
from functools import partial

import pytest

from t2l.data.workers import run_jobs, tell


def no_room(folder, number):
    (folder / str(number)).touch()
    time.sleep(0.2)
    raise OSError("no room")


def leave_pid(folder, number):
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def run(work, folder):
    run_jobs(partial(work, folder), range(40), 2, lambda job, done: None)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_after_a_job_that_fails_those_that_wait_are_not_tried(tmp_path):
    with pytest.raises(OSError, match="no room"):
        run(no_room, tmp_path)
    assert 1 <= len(os.listdir(tmp_path)) <= 20


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    """Else they would go on and write into a folder that another run has begun."""
    started = multiprocessing.get_context("spawn").Process(target=run, args=(leave_pid, tmp_path))
    started.start()
    assert wait_until(lambda: len(os.listdir(tmp_path)) == 2)
    pids = [int(name) for name in os.listdir(tmp_path)]
    started.kill()
    started.join()
    assert wait_until(lambda: not any(map(alive, pids)))


def say_number(number):
    tell(("at", number))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_job_says_is_heard_from_every_process(processes):
    heard = []
    run_jobs(say_number, range(3), processes, lambda job, done: None, heard.append)
    assert sorted(heard) == [("at", number) for number in range(3)]
    tell("nobody listens any more")
