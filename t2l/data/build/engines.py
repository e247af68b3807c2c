"""Who works on which shard: processes of this machine, or a Ray cluster. Both write the same bytes.

A worker takes a next shard when it has finished one, so nothing piles up in front of a slow one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from ..workers import run_jobs

Engine = Literal["local", "ray"]
Job = TypeVar("Job")
STORE = 100 << 20  # bytes of Ray's object store on this machine: shards go to the disk, not through it


def run_shards(
    engine: Engine,
    work: Callable[[Job], None],
    jobs: Sequence[Job],
    workers: int,
    report: Callable[[Job, int], None],
    cards: float = 0,
    listen: Callable[[str], None] = lambda line: None,
) -> None:
    """work(job) for each job; report(job, how many are done) after each.

    listen: gets what local work says by `tell`. cards: of each worker, for Ray to lend. Raises what `work` raises,
    RuntimeError for a worker that dies, ModuleNotFoundError without Ray.
    """
    if engine == "local":
        run_jobs(work, jobs, workers, report, listen)
    elif jobs:
        _run_on_ray(work, jobs, workers, report, cards)


def _run_on_ray(
    work: Callable[[Job], None], jobs: Sequence[Job], workers: int, report: Callable[[Job, int], None], cards: float
) -> None:
    ray = _start_ray(workers)
    try:
        actor = ray.remote(_Actor).options(num_cpus=1, num_gpus=cards)
        actors = [actor.remote(work) for _ in range(min(workers, len(jobs)))]
        running = {}
        waiting = iter(jobs)
        for free, job in zip(actors, waiting, strict=False):
            running[free.run.remote(job)] = free, job
        done = 0
        while running:
            (finished,), _ = ray.wait(list(running))
            free, job = running.pop(finished)
            _raise_error(ray, finished)
            done += 1
            report(job, done)
            if (following := next(waiting, None)) is not None:
                running[free.run.remote(following)] = free, following
    finally:
        ray.shutdown()


class _Actor:
    """Keeps its models between shards."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        self.work = work

    def run(self, job: Any) -> None:
        self.work(job)


def _start_ray(workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--engine ray needs Ray of the extra `scale`: run `pip install 'text2layer[scale]'`", name="ray"
        ) from error
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    if not os.environ.get("RAY_ADDRESS"):  # else a cluster that runs already
        options |= {"num_cpus": workers, "object_store_memory": STORE, "address": "local"}
    ray.init(**options)
    return ray


def _raise_error(ray: Any, finished: Any) -> None:
    """Raises the error of the work itself, not Ray's story of it."""
    try:
        ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            "a worker that writes shards died, perhaps for want of memory; run the same command again to go on, "
            "with fewer workers if it happens again"
        ) from error
