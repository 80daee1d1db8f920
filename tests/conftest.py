"""Every test runs headless, on its share of the cores and away from the user's cache.

`make test` shares the files of the tests out among processes (pytest-xdist, `-n auto --dist loadfile`). All tests of a
file run in one of them, so that what a module's fixtures make is made once; no two have a cache or temporary folder in
common.
"""

import gc
import os
import signal
import tempfile

import pytest

# What takes longest begins first, lest one process still works when the others have nothing left to do.
LONGEST = (
    "test_notebooks", "training/test_resume", "training/test_distributed", "databases/test_synthesis",
    "training/test_repeats",
    "test_jupyterlab", "scoring/test_table", "training/test_chain", "training/test_run", "lab/test_pipeline",
    "plots/test_style", "evaluation/test_baselines", "lab/test_ablation", "training/test_stage_options", "test_main",
)  # fmt: skip
WORKERS = 8  # at most: each takes up to 1 GB, and the longest file does not end earlier with more of them

os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait for one another leave the core to other processes
_cache = tempfile.TemporaryDirectory(prefix="vtamiq-tests-", ignore_cleanup_errors=True)
os.environ["VTAMIQ_CACHE"] = _cache.name


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n auto`; with one core none but this one."""
    asked = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    workers = int(asked) if asked else min(WORKERS, count_cores())
    return workers if workers > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script; some tests interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):
        return  # this process only hands tests out to others, which come here as well
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    # Read on import of NumPy and torch, and inherited by worker processes and notebook kernels.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(4, count_cores() // processes))))
    import torch  # only now, after the thread limit

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.nodeid.partition(".py")[0].removeprefix("tests/"), len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The imported packages stay; looking through all they consist of would take each training a third of a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    _cache.cleanup()
