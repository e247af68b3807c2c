"""Jobs that do not wait for each other, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Job = TypeVar("Job")
Listen = Callable[[Any], None]
_listeners: list[Listen] = []  # of this process, where it has work that tells something


def tell(news: Any) -> None:
    """Say something short in the middle of a job: whoever started it hears it. What nobody listens to is lost."""
    for listener in _listeners:
        listener(news)


def run_jobs(
    work: Callable[[Job], None],
    jobs: Sequence[Job],
    processes: int,
    report: Callable[[Job, int], None],
    listen: Listen = lambda news: None,
) -> None:
    """work(job) for each job, in `processes` processes or, with 1, in this one; after each report(job, number done).

    listen: gets what a job says by `tell`. After an error no other job is begun, and no process outlives this one.
    Raises what `work` raises, and RuntimeError with a sentence when a process dies.
    """
    if processes == 1 or len(jobs) < 2:
        _listeners.append(listen)
        try:
            for done, job in enumerate(jobs, 1):
                work(job)
                report(job, done)
        finally:
            _listeners.remove(listen)
        return
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(
        duplex=False
    )  # what is said is short, so that it is written at once and needs no lock
    pool = ProcessPoolExecutor(processes, context, _begin, (sender,))
    try:
        running = {pool.submit(work, job): job for job in jobs}
        for done, future in enumerate(_as_completed(running, receiver, listen), 1):
            future.result()
            report(running[future], done)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process of this command died, perhaps for want of memory; run the same command again to go on, "
            "with processes=1 if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _as_completed(running: Iterable[Future[None]], receiver: Connection, listen: Listen) -> Iterator[Future[None]]:
    """The futures as they are done; what the jobs say in the meantime is passed on."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        while receiver.poll():
            listen(receiver.recv())
        yield from done


def _begin(sender: Connection) -> None:
    _listeners.append(sender.send)
    end_with_the_caller()


def end_with_the_caller() -> None:
    """End this process when the one that started it is killed: its folder may be another run's by then."""
    caller = multiprocessing.parent_process()
    assert caller is not None, "run_jobs starts it"

    def leave() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
