"""Every test runs headless, on few threads and away from the user's cache."""

import os
import tempfile

import pytest

# Read on import of NumPy, torch and Matplotlib, and inherited by worker processes and notebook kernels.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
os.environ["MPLBACKEND"] = "Agg"

_cache = tempfile.TemporaryDirectory(prefix="vtamiq-tests-", ignore_cleanup_errors=True)
os.environ["VTAMIQ_CACHE"] = _cache.name


def pytest_configure(config: pytest.Config) -> None:
    import torch  # only now, after the thread limit

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_unconfigure(config: pytest.Config) -> None:
    _cache.cleanup()
