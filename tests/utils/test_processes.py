"""Work over processes: every job once, few at a time, errors and deaths are told."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vtamiq.utils.processes import AHEAD, count_workers, executor, is_first_process, one_thread_per_process, run_jobs


def test_without_a_pool_jobs_run_here_and_in_order():
    with executor(1) as pool:
        assert pool is None
        assert list(run_jobs(pool, abs, [-1, -2, 3])) == [(-1, 1), (-2, 2), (3, 3)]


def test_many_jobs_are_handed_over_a_few_at_a_time_and_errors_come_back():
    taken = []

    def jobs():
        for job in range(-2 * AHEAD, 0):
            taken.append(job)
            yield job

    with executor(2) as pool:
        done = run_jobs(pool, abs, jobs())
        first = next(done)
        assert len(taken) <= AHEAD + 1
        assert dict([first, *done]) == {job: -job for job in range(-2 * AHEAD, 0)}
        with pytest.raises(ZeroDivisionError):
            list(run_jobs(pool, (1).__truediv__, [1, 0]))


def test_a_worker_that_dies_is_told():
    with pytest.raises(RuntimeError, match="a worker process died"), executor(2) as pool:
        list(run_jobs(pool, os._exit, [1]))


def tell(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # one that ended, but that nobody has asked for its status, is a zombie
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")
def test_workers_of_a_process_that_was_killed_end(tmp_path):
    path = tmp_path / "workers"
    (tmp_path / "parent.py").write_text(f"""
from tests.utils.test_processes import tell
from vtamiq.utils.processes import executor, run_jobs
if __name__ == "__main__":
    with executor(2) as pool:
        list(run_jobs(pool, tell, [{str(path)!r}] * 2))
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=environment) as parent:
        until = time.monotonic() + 60
        while (not path.exists() or len(path.read_text().split()) < 2) and time.monotonic() < until:
            time.sleep(0.05)
        parent.kill()
    workers = [int(number) for number in path.read_text().split()]
    assert len(workers) == 2
    while any(is_running(worker) for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def test_number_of_workers():
    assert count_workers(None) >= 1
    assert [count_workers(n) for n in (0, 3)] == [0, 3]
    for bad in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="workers must be None or an integer"):
            count_workers(bad)


def test_one_thread_within_the_block_only():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread_per_process():
        1 / (torch.get_num_threads() - 1)  # and so the number of threads is 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # torchrun, second machine
        ({"SLURM_PROCID": "1"}, False),
        ({"NODE_RANK": "1"}, False),  # Lightning, second machine
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": ""}, True),
    ],
)
def test_the_first_process(environment, first, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
