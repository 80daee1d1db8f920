"""Work spread over processes, so that it can be interrupted and does not depend on how many there are."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

__all__ = ["count_workers", "executor", "one_thread_per_process", "run_jobs"]

T = TypeVar("T")


def count_workers(workers: int | None) -> int:
    """A number of processes: as given, or one per core that this process may use. ValueError for anything else."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be None or an integer from 0, got {workers!r}")
    return workers


@contextlib.contextmanager
def one_thread_per_process() -> Iterator[None]:
    """Sums over several threads differ in their last bits: the number of threads must not show in the result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def executor(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of processes with one thread each; None for fewer than two, the work is then done in this process.

    Raises RuntimeError where a process died.
    """
    if workers < 2:
        yield None
        return
    # Spawned, not forked: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            'a worker process died: out of memory, or the script lacks its `if __name__ == "__main__":`. '
            "What is finished is kept; call again to go on, with workers=0 to do without processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def run_jobs(
    pool: ProcessPoolExecutor | None, function: Callable[[Any], T], jobs: list[Any]
) -> Iterator[tuple[Any, T]]:
    """(job, result) of each job, as they finish."""
    if pool is None:
        yield from ((job, function(job)) for job in jobs)
        return
    futures = {pool.submit(function, job): job for job in jobs}
    yield from ((futures[future], future.result()) for future in as_completed(futures))


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets us finish our unit
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a parent that was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
