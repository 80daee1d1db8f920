"""A chain in a process of its own: spread over several devices from a notebook, or one of several at once on given GPUs.

The process ends when the one that started it is gone, whatever became of that.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vtamiq.training.chain import Chain, run_chain
from vtamiq.training.run import Run

log = logging.getLogger(__name__)

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def launch(
    chain: Chain, out: str | Path, *, root: str | Path = ".", report: Callable[[str], Any] = log.info
) -> list[Run]:
    """`run_chain` in a process of its own, from where a training in a notebook can be spread over several devices.

    `report` gets each line that the process writes, kept in `log.txt` in `out`; RuntimeError with the last if it failed.
    """
    with lifeline() as line:
        run_apart(chain, Path(out), line, root=root, report=report)
    return [Run.load(Path(out) / name) for name in chain.folders]


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """The end of a pipe to read from; processes of `run_apart` end when this block, or this process, ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


def run_apart(
    chain: Chain,
    out: Path,
    line: int,
    *,
    root: str | Path = ".",
    gpu: int | None = None,
    threads: int | None = None,
    report: Callable[[str], Any] = lambda text: None,
) -> None:
    """Wait for `run_chain` in a process of its own; RuntimeError if it failed or was ended.

    `line` is of `lifeline`; `gpu` the number of the only visible GPU that it sees (ValueError if there is none such).
    """
    environment = _environment(gpu, threads)
    chain.save(out / "asked.yaml")
    command = [sys.executable, "-m", "vtamiq.training.apart", *(str(Path(path).absolute()) for path in (out, root))]
    last = ""
    with (
        (out / "log.txt").open("a", encoding="utf-8") as kept,
        subprocess.Popen(
            command, env=environment, stdin=line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace",
        ) as process,
    ):  # fmt: skip
        try:
            for text in process.stdout:
                kept.write(text)
                kept.flush()
                last = text.strip() or last
                report(text.rstrip())
        except BaseException:
            process.terminate()  # what the run has reached is kept
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RuntimeError(f"its process was ended by {name}; is there memory for so many runs at once?")
    if process.returncode:
        raise RuntimeError(last or f"its process ended with status {process.returncode}")


def _environment(gpu: int | None, threads: int | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _RANKS}
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if gpu is not None:
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        if gpu < 0 or (visible and gpu >= len(visible)):
            raise ValueError(f"there is no GPU {gpu}: CUDA_VISIBLE_DEVICES names {len(visible)}")
        environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    return environment


def _end_with_parent() -> None:
    # Not `sys.stdin.read`: it holds a lock that a loader's process, forked meanwhile, would wait for without end.
    while os.read(0, 1):
        pass
    os._exit(1)


def _main(out: str, root: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, the parent tells us
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chain = Chain.load(Path(out) / "asked.yaml")
    if not chain.places.main:  # the first process says it
        logging.getLogger("vtamiq").setLevel(logging.ERROR)
    run_chain(chain, out, root=root, progress=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
