"""How fast is this machine, and how much faster are we than a plain implementation? Ratios, which hold on a busy machine.

Speed is measured against `TwinNetwork`, the same network written the obvious way, and against this machine's own best
rate
of a matrix product; what costs how much is in `tools.benchmark.costs`.
"""

import copy
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tools.benchmark.costs import COSTS, pair_files, size_of
from tools.benchmark.plain import TwinNetwork
from tools.benchmark.timing import (
    COLUMNS,
    SMALL,
    Benchmark,
    Row,
    compare,
    inputs,
    pictures,
    product_rates,
    training_step,
    versions_of,
    without_gradient,
)
from vtamiq.caps import CAPS, caps_for
from vtamiq.databases.patches import PairPatches
from vtamiq.images.reading import read_image
from vtamiq.model.accelerate import accelerate
from vtamiq.model.complexity import cost_table
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import ReferenceEmbedding, score

__all__ = ["PARTS", "Benchmark", "benchmark", "described", "measurable"]

USUAL = ("network", "data")
# How many times faster than the plain twin we want to be: as the model comes, on any CPU; and optimised, where oneDNN is
# twice as fast as the default products.
GOALS = {"scoring": (1.2, 2.3), "triplets": (1.6, 3.0), "training": (1.2, 1.8)}
SHARE = 0.85  # of the best float32 rate, in scoring
MANY_VERSIONS = 1.8  # of one reference, against pairs
SAMPLING, ITEM = 1.0, 1 / 1.5  # against decoding two PNG files


def benchmark(
    settings: Benchmark = Benchmark(),  # noqa: B008 - frozen
    *,
    parts: Sequence[str] = USUAL,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure, with the threads that PyTorch has now; some minutes of one core with the defaults.

    Args:
        parts: "network": scoring, triplets, a training step and many versions of one reference, against the plain twin;
            "data": sampling, and a whole item of a dataset, against decoding its two PNG files; and those of
            `COSTS`, such as "patches" or "memory".
        progress: show a bar.

    Returns:
        A row per measurement, with NaN where there is no such thing: `part`; `what`; `x`, the setting that it is a cost
        of; `against`, what it is compared with; `ratio`, the median over rounds of the time of `against` over that of
        `what`, so that more is faster; `lowest` and `highest` of the rounds; `goal` of that ratio; `seconds`, the median
        time of `what` (of a cost, for one item), `fastest` and `slowest`; `error`, the largest difference of the two
        results; `score_range`, from the lowest to the highest of those scores; `mebibytes`, peak memory, of which `ratio`
        is then.
        Against "best … rate", `ratio` is the share that is reached of this machine's own best rate of a matrix product,
        counting only operations that are needed.
        `attrs` has the settings, and of the machine `threads`, `cores`, `cpu`, `gpu`, `system`, `torch`, `gflops` (the
        best
        rate of a product) and `onednn_gain` (how many times faster oneDNN's product is than the default).

    Raises:
        ValueError: an unknown part, or "gpu" where there is none.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    rows = []
    with torch.random.fork_rng(devices=[]):
        steps = [(part, step) for part in PARTS if part in parts for step in PARTS[part](settings)]
        for part, step in tqdm(steps, disable=not progress, desc="benchmark"):
            rows += [{"part": part} | found for found in step()]
        machine = _machine()
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = asdict(settings) | machine
    return table


def measurable() -> list[str]:
    """The parts that this machine can measure: all but "gpu" where there is none."""
    return [part for part in PARTS if part != "gpu" or torch.cuda.is_available()]


def described(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `benchmark` with its settings and the machine in every row, for a file that explains itself."""
    texts = {name: " ".join(map(str, value)) for name, value in table.attrs.items() if isinstance(value, tuple)}
    return table.assign(**{name: value for name, value in (table.attrs | texts).items() if value is not None})


def _machine() -> dict[str, object]:
    """What numbers depend on; no name of the machine or of a person."""
    rates = product_rates()
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "gflops": float(max(rates)) / 1e9,
        "onednn_gain": float(rates[-1] / rates[0]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


# ---------------------------------------------------------------------------------------------------------------- network


def _network_steps(settings: Benchmark) -> list[Callable[[], list[Row]]]:
    ours = settings.network()
    twin, fast = TwinNetwork(ours), accelerate(copy.deepcopy(ours))
    networks = (twin, {"": ours, ", optimised": fast})
    batch, patches, rounds = settings.batch, settings.patches, settings.rounds
    goals = _goals()
    return [
        lambda: _scoring(*networks, batch, patches, rounds, goals["scoring"]),
        lambda: _scoring(*networks, batch // 2, 2 * patches, rounds, goals["scoring"]),
        lambda: _triplets(*networks, batch // 2, patches, rounds, goals["triplets"]),
        lambda: _training(settings, goals["training"]),
        lambda: _versions(fast, settings),
    ]


def _goals() -> dict[str, dict[str, float]]:
    rates = product_rates()
    twice = rates[-1] >= 2 * rates[0]
    return {what: {"": least, ", optimised": most if twice else least} for what, (least, most) in GOALS.items()}


def _scoring(
    twin: TwinNetwork, ours: dict[str, VTAMIQ], batch: int, patches: int, rounds: int, goals: dict[str, float]
) -> list[Row]:
    images, uv = inputs(batch, 2, patches, twin.patch_size)
    return compare(
        f"scoring {batch} × {patches} patches",
        ("plain twin", lambda: without_gradient(twin, images[:, 0], images[:, 1], uv)),
        {name: partial(lambda model: without_gradient(model, images, uv)[:, 0], model) for name, model in ours.items()},
        rounds,
        goals=goals,
        flops=1e9 * batch * float(cost_table(ours[""], patches)["gflops"].iloc[-1]),
        share=SHARE,
    )


def _triplets(
    twin: TwinNetwork, ours: dict[str, VTAMIQ], batch: int, patches: int, rounds: int, goals: dict[str, float]
) -> list[Row]:
    """A reference with two versions: two pairs for the twin, one item for us."""
    images, uv = inputs(batch, 3, patches, twin.patch_size)

    def pairs() -> Tensor:
        return torch.stack([without_gradient(twin, images[:, 0], images[:, k], uv) for k in (1, 2)], dim=1)

    return compare(
        f"{batch} triplets × {patches} patches, reference shared",
        ("plain twin", pairs),
        {name: partial(lambda model: without_gradient(model, images, uv), model) for name, model in ours.items()},
        rounds,
        goals=goals,
    )


def _training(settings: Benchmark, goals: dict[str, float]) -> list[Row]:
    """Forward, loss, backward and AdamW, in training mode."""
    ours, batch = settings.network(), settings.batch
    fast, twin = accelerate(copy.deepcopy(ours), training=True), TwinNetwork(ours)
    images, uv = inputs(batch, 2, settings.patches, twin.patch_size)
    return compare(
        f"training step of {batch} × {settings.patches} patches",
        ("plain twin", training_step(twin, lambda: twin(images[:, 0], images[:, 1], uv), batch)),
        {
            "": training_step(ours, lambda: ours(images, uv)[:, 0], batch),
            ", optimised": training_step(fast, lambda: fast(images, uv)[:, 0], batch),
        },
        settings.rounds,
        goals=goals,
    )


def _versions(model: VTAMIQ, settings: Benchmark) -> list[Row]:
    """One reference with many versions, places found and patches cut included. Once: it is long."""
    reference, noisy = pictures(*SMALL)
    versions = versions_of(reference, noisy, settings.versions)
    caps = caps_for(model, num_patches=settings.patches)

    def embedded() -> None:
        ReferenceEmbedding(reference, model=model, caps=caps, guides=versions[:1]).score(versions, batch_size=4)

    def pairs() -> None:
        score(reference, versions, model=model, caps=caps, batch_size=2)  # as many images at once

    what = f"{settings.versions} versions × {settings.patches} patches, ReferenceEmbedding, optimised"
    base = ("score, optimised", pairs)
    return compare(what, base, {"": embedded}, 1, goals={"": MANY_VERSIONS}, warm_up=False)


# ------------------------------------------------------------------------------------------------------------------- data


def _data_steps(settings: Benchmark) -> list[Callable[[], list[Row]]]:
    caps = CAPS(num_patches=2 * settings.patches)
    return [partial(_items, size, caps, settings.rounds) for size in settings.megapixels]


def _items(megapixels: float, caps: CAPS, rounds: int) -> list[Row]:
    images = pictures(*size_of(megapixels, caps.patch_size))
    with pair_files(images) as database:
        paths = [database.root / database.pairs[name].iloc[0] for name in ("ref_path", "dist_path")]

        def decode() -> None:
            for path in paths:
                read_image(path)

        def sample() -> None:
            caps(images, 0)

        def item() -> None:
            PairPatches(database, caps)[0]  # a new one, for it remembers references

        sampled = f"{caps.num_patches} patches sampled"
        what, goals = {sampled: sample, "a whole item": item}, {sampled: SAMPLING, "a whole item": ITEM}
        height, width = images[0].shape[:2]
        return compare(f"{width} × {height}: ", ("decoding two PNG files", decode), what, rounds, goals=goals)


PARTS = {"network": _network_steps, "data": _data_steps, **COSTS}
