"""Work spread over processes that end with the process that asked, and whose number does not show in the result."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

J, T = TypeVar("J"), TypeVar("T")
AHEAD = 256  # jobs that are handed over and wait: a hundred thousand of them would fill the memory


def count_workers(workers: int | None) -> int:
    """Number of processes: `workers`, or one for each core that this process may use; ValueError for what is no
    number."""
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be None or an integer from 0, got {workers!r}")
    return workers


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one of its processes (torchrun, SLURM, Lightning) that writes."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name):
            return int(os.environ[name]) == 0
    return all(int(os.environ.get(name) or 0) == 0 for name in ("NODE_RANK", "GROUP_RANK", "LOCAL_RANK"))


@contextlib.contextmanager
def one_thread_per_process() -> Iterator[None]:
    """Sums over several threads differ in their last bits: the number of threads must not show in the result."""
    import torch  # only here: listing databases starts no torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def executor(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of so many processes, None for fewer than two: then `run_jobs` works in this one.

    An interruption lets every worker finish its job. Workers of a parent that is killed end with it.

    Raises:
        RuntimeError: a worker died.
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


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets us finish our unit
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a parent that was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_jobs(pool: ProcessPoolExecutor | None, function: Callable[[J], T], jobs: Iterable[J]) -> Iterator[tuple[J, T]]:
    """(job, result) of each job, as they finish."""
    if pool is None:
        yield from ((job, function(job)) for job in jobs)
        return
    jobs = iter(jobs)
    pending = {pool.submit(function, job): job for job in islice(jobs, AHEAD)}
    while pending:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()
            pending |= {pool.submit(function, job): job for job in islice(jobs, 1)}
