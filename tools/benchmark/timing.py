"""How the benchmark measures: what is compared runs in turns (A B A B …), and ratios are taken within each turn.

Times are processor times of this process, so that neighbours and clock frequency do harm to all alike; wall time only
where
other processes or a GPU do the work. Medians and ranges are over the turns.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtamiq.model.accelerate import OneDNNLinear, onednn_works
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.training.losses import combined_loss
from vtamiq.utils.configs import conform, require

__all__ = [
    "COLUMNS", "SIZES", "Benchmark", "Row", "compare", "curve", "inputs", "interleaved", "pictures", "product_rates", "row",
    "training_step", "wall_clock", "without_gradient",
]  # fmt: skip

SIDE = 1024  # of the square products that the best rate is measured with
SMALL = (384, 512)  # height and width of the pictures where size does not matter
COLUMNS = (
    "part", "what", "x", "against", "ratio", "lowest", "highest", "goal", "seconds", "fastest", "slowest", "error",
    "score_range", "mebibytes",
)  # fmt: skip

Row = dict[str, Any]  # some of the columns; the others are NaN
Clock = Callable[[], float]


@dataclass(frozen=True)
class Benchmark:
    """What is measured. The defaults are the paper's network at its usual size.

    Args:
        backbone, blocks: of the network, with random weights.
        width, num_heads: instead of the backbone's, for a quick look.
        model: folder of a trained model (`save_pretrained`) to measure instead, with the four above at their defaults.
        patches, batch: patches per image, and pairs at once. The network is also measured with half the pairs of twice
        the
            patches; costs for a quarter to four times the patches, for one to four times the pairs, and for 1 … `blocks`.
        versions: distorted images of one reference.
        megapixels: sizes of the images that decoding and sampling are measured with.
        rows: of the long table that is compared with a short one.
        compile: measure torch.compile as well, which takes minutes to compile.
        rounds: turns that medians and ranges are taken over, after one to warm up.
    """

    backbone: str = "vit_base_patch16_384"
    blocks: int = 6
    width: int | None = None
    num_heads: int | None = None
    model: str = ""
    patches: int = 256
    batch: int = 4
    versions: int = 100
    megapixels: tuple[float, ...] = (0.2, 12.0)
    rows: int = 700_000
    compile: bool = True
    rounds: int = 5

    def __post_init__(self):
        conform(self)
        for name in ("blocks", "patches", "versions", "rounds"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "batch", self.batch >= 2, "must be at least 2")
        require(self, "rows", self.rows >= 100, "must be at least 100")
        sizes = self.megapixels and all(0.01 <= size <= 100 for size in self.megapixels)
        require(self, "megapixels", bool(sizes), "must lie in 0.01 … 100")
        if self.model:
            for name in ("backbone", "blocks", "width", "num_heads"):
                same = getattr(self, name) == type(self).__dataclass_fields__[name].default
                require(self, name, same, "is the model's own; leave it at its default")

    def network(self) -> VTAMIQ:
        """The network in evaluation mode on the CPU; the same weights every time."""
        if self.model:
            return VTAMIQ.from_pretrained(self.model)
        names = {"backbone": "backbone", "blocks": "num_blocks", "width": "width", "num_heads": "num_heads"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            changes = {theirs: getattr(self, ours) for ours, theirs in names.items()}
            return VTAMIQ(VTAMIQConfig(**changes, zero_anchor=True)).eval()


SIZES = {  # by preset of the notebooks
    "smoke": Benchmark(
        backbone="vit_tiny_patch16_384",
        blocks=2,
        width=32,
        num_heads=2,
        patches=8,
        batch=2,
        versions=2,
        megapixels=(0.02, 0.05),
        rows=2000,
        compile=False,
        rounds=1,
    ),
    "demo": Benchmark(patches=48, batch=2, versions=8, megapixels=(0.2, 3.0), compile=False, rounds=2),  # two minutes
    "full": Benchmark(),
}


# ----------------------------------------------------------------------------------------------------------------- turns


def interleaved(
    functions: Sequence[Callable[[], Any]], rounds: int, *, warm_up: bool = True, clock: Clock | None = None
) -> tuple[np.ndarray, list[Any]]:
    """Seconds (rounds, functions) of calls in turns, by default of this process's processor, and what the last
    returned."""
    clock = clock or time.process_time
    seconds, results = np.empty((rounds + warm_up, len(functions))), [None] * len(functions)
    for turn in seconds:
        for k, function in enumerate(functions):
            start = clock()
            results[k] = function()
            turn[k] = clock() - start
    return seconds[int(warm_up) :], results


def wall_clock(device: torch.device | None = None) -> Clock:
    """A clock of wall time that waits until a GPU has done its work."""

    def now() -> float:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def row(what: str, seconds: np.ndarray, against: str = "", base: np.ndarray | None = None, **more: Any) -> Row:
    """Median and range of seconds over rounds, and of the ratio base / seconds of each round: more is faster."""
    found: Row = {"what": what, "against": against, **more}
    found |= {"seconds": np.median(seconds), "fastest": seconds.min(), "slowest": seconds.max()}
    return found if base is None else found | ratio_of(base / seconds)


def ratio_of(ratios: np.ndarray) -> Row:
    """Median and range of a ratio over rounds."""
    return {"ratio": np.median(ratios), "lowest": ratios.min(), "highest": ratios.max()}


def compare(
    what: str,
    base: tuple[str, Callable[[], Any]],
    others: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    goals: Mapping[str, float] | None = None,
    flops: float | None = None,
    share: float = math.nan,
    **options: Any,
) -> list[Row]:
    """Rows of each of `others` (by what is added to the name) against the base, and given its floating-point operations,
    against this machine's best rate in any of these rounds; `goals` are of the first, `share` is that of the last."""
    functions = [base[1], *others.values(), *(squares() if flops else [])]
    seconds, results = interleaved(functions, rounds, **options)
    rows, goals = [], goals or {}
    for k, name in enumerate(others, start=1):
        found = {"error": difference(results[k], results[0]), "goal": goals.get(name, math.nan)}
        rows.append(row(what + name, seconds[:, k], base[0], seconds[:, 0], **found))
    if flops:
        best = SQUARE_FLOPS / seconds[:, 1 + len(others) :].min()  # of all rounds: noise only ever slows a product down
        for k, name in enumerate(others, start=1):
            goal = share if k == len(others) else math.nan
            rows.append(row(what + name, seconds[:, k], "best float32 rate", flops / best, goal=goal))
    return rows


def curve(
    what: str, unit: str, functions: Mapping[float, Callable[[], Any]], rounds: int, per: Mapping[float, int] | int = 1
) -> list[Row]:
    """Rows of a cost against a setting: for each x of `functions`, seconds for one of the `per` items of a call, and how
    many times faster that is than with the first x."""
    seconds, _ = interleaved(list(functions.values()), rounds)
    seconds = seconds / np.array([per if isinstance(per, int) else per[x] for x in functions])
    first = f"{next(iter(functions)):g} {unit}"
    return [row(what, seconds[:, k], first, seconds[:, 0], x=float(x)) for k, x in enumerate(functions)]


def difference(result: Any, expected: Any) -> float:
    """Largest absolute difference; NaN where there is nothing to compare."""
    if result is None or expected is None:
        return math.nan
    return float(np.abs(np.asarray(result) - np.asarray(expected)).max())


# -------------------------------------------------------------------------------------------------- rates of this machine

SQUARE_FLOPS = 2 * SIDE**3


def squares() -> list[Callable[[], Any]]:
    """A square product by PyTorch's default, and by oneDNN if there is one."""
    generator = torch.Generator().manual_seed(0)
    default, x = nn.Linear(SIDE, SIDE, bias=False), torch.randn(SIDE, SIDE, generator=generator)
    routes = [default] + ([OneDNNLinear(default)] if onednn_works() else [])
    return [lambda route=route: without_gradient(route, x) for route in routes]


def product_rates(rounds: int = 3) -> list[float]:
    """Floating-point operations per processor second of a float32 product: by PyTorch's default, and by oneDNN if there
    is one."""
    return [SQUARE_FLOPS / seconds for seconds in interleaved(squares(), rounds)[0].min(axis=0)]


# ------------------------------------------------------------------------------------------------------- what is measured


@torch.inference_mode()
def without_gradient(function: Callable[..., Tensor], *given: Any) -> Tensor:
    return function(*given)


def training_step(
    network: nn.Module, predict: Callable[[], Tensor], batch: int, dtype: torch.dtype | None = None
) -> Callable[[], None]:
    """Forward, loss, backward and AdamW, in training mode; with a dtype, under autocast to it."""
    optimiser = torch.optim.AdamW(network.train().parameters(), lr=1e-5)
    device = next(network.parameters()).device
    target = torch.linspace(0, 1, batch, device=device)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            q = predict()
        combined_loss(q.float(), target)[0].backward()
        optimiser.step()

    return run


def inputs(
    batch: int, images: int, patches: int, patch_size: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Normalised patches (B, K, N, 3, P, P) and uv (B, N, 2)."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, images, patches, 3, patch_size, patch_size)
    values = torch.rand(shape, generator=generator) * 2 - 1, torch.rand(batch, patches, 2, generator=generator)
    return tuple(value.to(device) for value in values)


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Something like a photograph and a noisier version, (H, W, 3) uint8: smooth shapes of many sizes, and sensor
    noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.zeros(1, 3, height, width)
    for octave in range(2, 8):
        coarse = torch.randn(1, 3, 2**octave, 2**octave, generator=generator) / 2**octave
        smooth += F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    smooth = 128 + 45 * smooth / smooth.std()
    noise = torch.randn(1, 3, height, width, generator=generator)
    return tuple(
        (smooth + amount * noise).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()
        for amount in (1, 4)
    )


def versions_of(reference: np.ndarray, noisy: np.ndarray, count: int) -> list[np.ndarray]:
    """Between a picture and its noisier version: `count` steps, the last one being that version."""
    steps = np.linspace(0, 1, count + 1)[1:]
    return [np.rint(reference + step * (noisy.astype(float) - reference)).astype(np.uint8) for step in steps]
