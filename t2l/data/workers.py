"""Jobs that do not wait for each other, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")


def run_jobs(
    work: Callable[[Job], None], jobs: Sequence[Job], processes: int, report: Callable[[Job, int], None]
) -> None:
    """work(job) for each job, in `processes` processes or, with 1, in this one; report(job, how many are done) after each.

    After an error no other job is begun, and no process outlives this one. Raises what `work` raises, and RuntimeError with
    a sentence when a process dies.
    """
    if processes == 1 or len(jobs) < 2:
        for done, job in enumerate(jobs, 1):
            work(job)
            report(job, done)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_the_caller)
    try:
        running = {pool.submit(work, job): job for job in jobs}
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            report(running[future], done)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that writes shards died, perhaps for want of memory; run the same command again to go on, "
            "with processes=1 if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_the_caller() -> None:
    """End this process when the one that started it is killed: the folder it writes into may be another run's by then."""
    caller = multiprocessing.parent_process()
    assert caller is not None, "run_jobs starts it"

    def wait() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
