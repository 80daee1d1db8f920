"""What costs how much: scoring and training against their settings, loading, memory, precisions, and work on a GPU.

Each part of `COSTS` is a list of steps, and each step gives rows for the table of `benchmark`.
"""

import copy
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.benchmark.timing import (
    SMALL,
    Benchmark,
    Row,
    curve,
    difference,
    inputs,
    interleaved,
    pictures,
    ratio_of,
    row,
    training_step,
    versions_of,
    wall_clock,
    without_gradient,
)
from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.patches import PairPatches, PatchLoader
from vtamiq.databases.schema import Database, pair_table
from vtamiq.images.reading import read_image, write_png
from vtamiq.model.accelerate import accelerate, compile_blocks
from vtamiq.model.complexity import cost_table
from vtamiq.model.inference import choose_device, half_precision
from vtamiq.model.network import VTAMIQ

__all__ = ["COSTS", "gpu_throughput", "pair_files"]

Steps = list[Callable[[], list[Row]]]

PLAIN, ANEW = "training step", "training step, gradient checkpointing"
REAL = 16  # pairs that there are files for, in a table of any length
ON_GPU = 16  # times as many pairs at once as on a CPU
TRAINING = 3  # times the operations of scoring: gradients cost as much as two passes
GPU_GOALS = {"scoring": 0.45, "training": 0.35}  # of the best bfloat16 rate


# --------------------------------------------------------------------------------------------------- cost against settings


def patch_costs(settings: Benchmark) -> Steps:
    """One pair of a quarter to four times the patches, optimised; and a training step of two pairs."""
    counts = sorted({max(1, settings.patches * quarters // 4) for quarters in (1, 2, 4, 8, 16)})

    def scoring() -> list[Row]:
        model = accelerate(settings.network())
        given = {count: inputs(1, 2, count, model.encoder.patch_size) for count in counts}
        calls = {count: partial(without_gradient, model, *given[count]) for count in counts}
        return curve("scoring", "patches", calls, settings.rounds)

    def training() -> list[Row]:
        model = accelerate(settings.network(), training=True)
        given = {count: inputs(2, 2, count, model.encoder.patch_size) for count in counts}
        calls = {count: _training_call(model, *given[count]) for count in counts}
        return curve("training step", "patches", calls, settings.rounds, per=2)

    return [scoring, training]


def image_costs(settings: Benchmark) -> Steps:
    """One pair of images of several sizes: decoded, sampled, and scored by the network, optimised."""
    low, high = min(settings.megapixels), max(settings.megapixels)
    sizes = [low] if low == high else [float(size) for size in np.geomspace(low, high, 4).round(2)]

    def step() -> list[Row]:
        model = accelerate(settings.network())
        caps = caps_for(model, CAPS(num_patches=settings.patches))
        images = {size: pictures(*size_of(size, caps.patch_size)) for size in sizes}
        samples = {size: caps(images[size], 0) for size in sizes}

        def scored(size: float) -> Tensor:
            sample = samples[size]
            return without_gradient(model, sample.patches[None], sample.uv[None], sample.scale[None])

        with ExitStack() as files:
            databases = {size: files.enter_context(pair_files(images[size])) for size in sizes}
            works = {
                "decoding two PNG files": lambda size: [
                    read_image(path) for path in databases[size].root.glob("*.png")
                ],
                f"{caps.num_patches} patches sampled": lambda size: caps(images[size], 0),
                "network": scored,
            }
            rows = []
            for what, work in works.items():
                calls = {size: partial(work, size) for size in sizes}
                rows += curve(what, "megapixels", calls, settings.rounds)
        return rows

    return [step]


def batch_costs(settings: Benchmark) -> Steps:
    """One pair out of 1, 2, 4 … four times the usual number at once, optimised."""

    def step() -> list[Row]:
        model = accelerate(settings.network())
        counts = [2**k for k in range(1 + int(math.log2(4 * settings.batch)))]
        given = {count: inputs(count, 2, settings.patches, model.encoder.patch_size) for count in counts}
        calls = {count: partial(without_gradient, model, *given[count]) for count in counts}
        return curve("scoring", "pairs at once", calls, settings.rounds, per={count: count for count in counts})

    return [step]


def block_costs(settings: Benchmark) -> Steps:
    """One pair with the first block of the network, up to all, optimised; and a training step of two pairs."""

    def step(training: bool) -> list[Row]:
        model = accelerate(settings.network(), training=training)
        blocks, batch = model.encoder.blocks, 2 if training else 1
        given = inputs(batch, 2, settings.patches, model.encoder.patch_size)
        work = _training_call(model, *given) if training else partial(without_gradient, model, *given)

        def kept(count: int) -> None:
            model.encoder.blocks = blocks[:count]
            work()

        counts = np.unique(np.linspace(1, len(blocks), 4).round().astype(int)).tolist()
        calls = {count: partial(kept, count) for count in counts}
        return curve("training step" if training else "scoring", "block", calls, settings.rounds, per=batch)

    return [partial(step, False), partial(step, True)]


def _training_call(model: VTAMIQ, images: Tensor, uv: Tensor) -> Callable[[], None]:
    return training_step(model, lambda: model(images, uv)[:, 0], len(images))


# ---------------------------------------------------------------------------------------------------------------- loading


def worker_costs(settings: Benchmark) -> Steps:
    """Wall time of an item, read, sampled and cut, with 0, 1, 2, 4 … loading workers, up to the cores there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = [0, *(2**k for k in range(cores.bit_length()) if 2**k <= cores)]
    return [lambda: _loading(settings, workers)]


def _loading(settings: Benchmark, workers: Sequence[int], patches: int | None = None) -> list[Row]:
    caps, items = CAPS(num_patches=patches or settings.patches), 8 * settings.batch
    with pair_files(pictures(*SMALL), rows=items) as database:
        loaders = [
            PatchLoader(PairPatches(database, caps), batch_size=settings.batch, workers=count) for count in workers
        ]

        def epoch(loader: torch.utils.data.DataLoader) -> None:
            for _ in loader:
                pass

        seconds, _ = interleaved([partial(epoch, one) for one in loaders], settings.rounds, clock=time.perf_counter)
        del loaders  # and with them their workers, which read the files
    base = f"{workers[0]} workers"
    what = f"an item of {caps.num_patches} patches"
    columns = zip(workers, seconds.T / items, strict=True)
    return [row(what, taken, base, seconds[:, 0] / items, x=float(count)) for count, taken in columns]


def table_costs(settings: Benchmark) -> Steps:
    """An item of a long table of pairs against one of a short table; both read copies of the same two images."""
    caps = CAPS(num_patches=settings.patches)

    def step() -> list[Row]:
        images = pictures(*SMALL)
        with pair_files(images, rows=REAL) as short, pair_files(images, rows=settings.rows) as long:
            patches = {
                len(database): (PairPatches(database, caps), _real_rows(len(database))) for database in (short, long)
            }

            def items(dataset: PairPatches, rows: Sequence[int]) -> None:
                for index in rows:
                    dataset[index]

            calls = {length: partial(items, *patches[length]) for length in patches}
            return curve("an item", "rows of the table", calls, settings.rounds, per=REAL)

    return [step]


@contextmanager
def pair_files(images: Sequence[np.ndarray], rows: int = 1) -> Iterator[Database]:
    """A database of `rows` pairs for as long as the block lasts; there are files for 16 of them, evenly spread, or for
    all
    if they are fewer or as many as a multiple of 16 below 1000. They are copies of one pair of images, as PNG."""
    reals, numbers = _real_rows(rows), np.arange(rows)
    refs = np.char.add("r", np.char.zfill(numbers.astype(str), 7))
    with tempfile.TemporaryDirectory() as folder:
        for image, kind in zip(images, ("r", "d"), strict=True):
            first, *others = (Path(folder) / f"{kind}{number:07}.png" for number in reals)
            write_png(first, image)
            for other in others:
                shutil.copy(first, other)
        pairs = pair_table(
            database="benchmark", ref_id=refs, ref_path=np.char.add(refs, ".png"),
            dist_path=np.char.add(np.char.replace(refs, "r", "d"), ".png"), dist_type=1, dist_name="noise", level=1,
            score=np.zeros(rows), score_name="DMOS", higher_better=False, label_source="none",
        )  # fmt: skip
        yield Database(
            name="benchmark", root=Path(folder), pairs=pairs, score_name="DMOS", higher_better=False, synthetic=True
        )


def _real_rows(rows: int) -> list[int]:
    """Rows of a table of `pair_files` that there are files for."""
    return list(range(rows)) if rows <= 1000 else np.linspace(0, rows - 1, REAL).astype(int).tolist()


def size_of(megapixels: float, least: int) -> tuple[int, int]:
    """Height and width of an image of 3 : 4."""
    height = max(least, round(math.sqrt(megapixels * 1e6 * 3 / 4)))
    return height, height * 4 // 3


# ----------------------------------------------------------------------------------------------------------------- memory


def memory_costs(settings: Benchmark) -> Steps:
    """Peak memory of a fresh process (on a GPU, of what PyTorch allocates there) before all work, with the usual batch
    and with four times as much; and what gradient checkpointing costs in time."""
    batches = [settings.batch, 4 * settings.batch]
    kinds = ("scoring", PLAIN, ANEW)

    def peaks() -> list[Row]:
        threads = torch.get_num_threads()
        found = {kind: _in_a_fresh_process(_peaks, settings, kind, batches, threads) for kind in kinds}
        rows = []
        for k, batch in enumerate([0, *batches]):
            rows += [{"what": kind, "x": float(batch), "mebibytes": found[kind][k]} for kind in kinds]
            rows[-1] |= {"against": PLAIN} | ratio_of(np.array([found[PLAIN][k] / found[ANEW][k]]))
        return rows

    def times() -> list[Row]:
        device = choose_device(None)
        models = {kind: settings.network().to(device) for kind in (PLAIN, ANEW)}
        calls = {kind: _memory_call(models[kind], settings, kind, settings.batch) for kind in models}
        clock = wall_clock(device) if device.type == "cuda" else None
        seconds, _ = interleaved(list(calls.values()), settings.rounds, clock=clock)
        return [row(f"time of a {ANEW}", seconds[:, 1], PLAIN, seconds[:, 0], x=float(settings.batch))]

    return [peaks, times]


def _memory_call(model: VTAMIQ, settings: Benchmark, kind: str, batch: int) -> Callable[[], object]:
    device = next(model.parameters()).device
    images, uv = inputs(batch, 2, settings.patches, model.encoder.patch_size, device)
    if kind == "scoring":
        return partial(without_gradient, model, images, uv)
    model.encoder.recompute = kind == ANEW
    return _training_call(model, images, uv)


def _peaks(settings: Benchmark, kind: str, batches: Sequence[int], threads: int) -> list[float]:
    """MiB at the peak so far: before all work, with the network loaded, and after each of the rising batches."""
    torch.set_num_threads(threads)
    model = settings.network().to(choose_device(None))
    found = [_peak(model)]
    for batch in batches:
        call = _memory_call(model, settings, kind, batch)
        for _ in range(2):  # the second one has the optimiser's averages
            call()
        found.append(_peak(model))
    return found


def _peak(model: VTAMIQ) -> float:
    device = next(model.parameters()).device
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()) / 2**20


def _in_a_fresh_process(function: Callable[..., list[float]], *arguments: object) -> list[float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_resident() -> float:
    """Bytes of the most memory that this process ever had; NaN on systems that do not say."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux counts what the parent had when it started this process
        lines = (line.split() for line in status.read_text().splitlines())
        return next(1024 * float(line[1]) for line in lines if line[0] == "VmHWM:")
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------------------------------------- precisions and compilation


def precision_costs(settings: Benchmark) -> Steps:
    """Scoring in half precision, by oneDNN and compiled, against float32 as it comes: gain, and error of the score."""
    devices = [torch.device("cpu"), *([choose_device(None)] if torch.cuda.is_available() else [])]
    return [partial(_precisions, settings, device) for device in devices]


def _precisions(settings: Benchmark, device: torch.device) -> list[Row]:
    model = settings.network().to(device)
    given = _picture_patches(model, settings, device)

    def scored(network: VTAMIQ, precision: str) -> np.ndarray:
        with half_precision(device, precision):
            return without_gradient(network, *given).float().cpu().numpy()

    routes = {"float32": partial(scored, model, "float32")}
    if device.type == "cpu":
        routes["float32, oneDNN"] = partial(scored, accelerate(copy.deepcopy(model)), "float32")
    halves = ("bfloat16", "float16")
    routes |= {half: partial(scored, model, half) for half in halves}
    rows = []
    if settings.compile:
        compiled, start = copy.deepcopy(model), time.perf_counter()
        if compile_blocks(compiled.encoder.blocks, compiled.encoder.class_token.shape[-1]):
            names = ("float32", *(halves if device.type == "cuda" else ()))
            routes |= {f"{name}, compiled": partial(scored, compiled, name) for name in names}
            for name in names:  # the first one for these inputs, in this precision
                scored(compiled, name)
            taken = np.array([time.perf_counter() - start])
            rows = [row(f"{_short(device)}: compiling once", taken)]
    clock = wall_clock(device) if device.type == "cuda" else None
    seconds, results = interleaved(list(routes.values()), settings.rounds, clock=clock)
    seconds = seconds / settings.batch
    for k, name in enumerate(routes):
        found = {"error": difference(results[k], results[0]), "score_range": float(np.ptp(results[0]))}
        rows.append(row(f"{_short(device)}: {name}", seconds[:, k], "float32", seconds[:, 0], **found))
    return rows


def _picture_patches(model: VTAMIQ, settings: Benchmark, device: torch.device) -> list[Tensor]:
    """Patches, uv and scale of a picture and its noisy versions, one item each."""
    reference, noisy = pictures(*SMALL)
    caps = caps_for(model, CAPS(num_patches=settings.patches))
    versions = versions_of(reference, noisy, settings.batch)
    samples = [caps([reference, version], seed) for seed, version in enumerate(versions)]
    return [torch.stack([getattr(one, name) for one in samples]).to(device) for name in ("patches", "uv", "scale")]


def _short(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


# -------------------------------------------------------------------------------------------------------------------- GPU


def gpu_costs(settings: Benchmark) -> Steps:
    """Scoring and training in bfloat16 on a GPU, as shares of its own best rate, and the workers that keep it busy.

    Raises:
        ValueError: there is no CUDA GPU here.
    """
    if not torch.cuda.is_available():
        raise ValueError('the part "gpu" needs a CUDA GPU, and PyTorch sees none here')
    device, pairs = choose_device(None), ON_GPU * settings.batch
    sizes = [(pairs, settings.patches), (pairs // 2, 2 * settings.patches)]
    return [partial(gpu_throughput, settings, device, *size) for size in sizes]


def gpu_throughput(
    settings: Benchmark,
    device: torch.device,
    batch: int,
    patches: int,
    dtype: torch.dtype = torch.bfloat16,
    side: int = 8192,
) -> list[Row]:
    """Rows of scoring and training `batch` pairs under autocast to `dtype` on a device, by wall time: the share of the
    device's own rate of a square product of that type, with `seconds` of one pair; and how many loading workers it
    takes to
    supply it."""
    model = settings.network().to(device)
    networks = {"": (model, copy.deepcopy(model))}  # that scores, and that trains: which compiles other code
    if settings.compile:
        compiled = copy.deepcopy(model), copy.deepcopy(model)
        width = model.encoder.class_token.shape[-1]
        if all(compile_blocks(one.encoder.blocks, width, training=one is compiled[1]) for one in compiled):
            networks[", compiled"] = compiled
    images, uv = inputs(batch, 2, patches, model.encoder.patch_size, device)
    square = torch.randn(side, side, device=device, dtype=dtype)

    def scored(network: VTAMIQ) -> Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return without_gradient(network, images, uv)

    works = {"best": lambda: square @ square}
    for name, (scoring, training) in networks.items():
        works[f"scoring{name}"] = partial(scored, scoring)
        predict = partial(lambda network: network(images, uv)[:, 0], training)
        works[f"training{name}"] = training_step(training, predict, batch, dtype)
    seconds, _ = interleaved(list(works.values()), settings.rounds, clock=wall_clock(device))
    best = 2 * side**3 / seconds[:, 0]
    flops = batch * 1e9 * float(cost_table(settings.network(), patches)["gflops"].iloc[-1])
    loading = _loading(settings, [1], patches)[0]["seconds"]  # of an item, by one worker
    rows, kind = [], str(dtype).removeprefix("torch.")
    for name, taken in list(zip(works, seconds.T, strict=True))[1:]:
        work = name.partition(",")[0]
        needed = flops * (TRAINING if work == "training" else 1)
        what = f"{name}, {batch} × {patches} patches, {kind}"
        found = {"x": float(patches), "goal": GPU_GOALS[work]}
        rows.append(row(what, taken / batch, f"best {kind} rate", needed / best / batch, **found))
        workers = ratio_of(loading * batch / taken)
        rows.append(
            {"what": f"{what}: workers that keep it busy", "against": "one worker", "x": float(patches)} | workers
        )
    return rows


COSTS: dict[str, Callable[[Benchmark], Steps]] = {
    "patches": patch_costs,
    "images": image_costs,
    "batch": batch_costs,
    "blocks": block_costs,
    "workers": worker_costs,
    "table": table_costs,
    "memory": memory_costs,
    "precision": precision_costs,
    "gpu": gpu_costs,
}
