"""How fast is this machine, and how much faster are we than a plain implementation? Ratios, which hold on a busy machine.

`TwinNetwork` is the same network written the obvious way, as the original computes: one pass per image, separate query,
key and value layers, explicit softmax, every token through every block. What is compared runs in turns (A B A B …) and is
timed by the processor time of this process, so that neighbours and clock frequency do harm to both alike.
"""

import copy
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from tqdm.auto import tqdm

from vtamiq.caps import CAPS
from vtamiq.complexity import cost_table
from vtamiq.configs import conform, require
from vtamiq.databases import Database
from vtamiq.databases.base import pair_table
from vtamiq.fast import OneDNNLinear, accelerate, onednn_works
from vtamiq.images import read_image, write_png
from vtamiq.losses import combined_loss
from vtamiq.model import VTAMIQ, VTAMIQConfig
from vtamiq.patches import PairPatches
from vtamiq.predictions import caps_for
from vtamiq.scoring import ReferenceEmbedding, score

__all__ = ["Benchmark", "TwinNetwork", "benchmark", "best_rate", "interleaved"]

SIDE = 1024  # of the square products that the best rate is measured with
SMALL = (384, 512)  # height and width of the images of "many versions"
COLUMNS = ("what", "against", "ratio", "lowest", "highest", "seconds", "error")
PARTS = ("network", "data")


@dataclass(frozen=True)
class Benchmark:
    """What is measured. The defaults are the paper's network at its usual size.

    Args:
        backbone, blocks: of the network, with random weights.
        width, num_heads: instead of the backbone's, for a quick look.
        patches, batch: patches per image, and pairs at once; also measured with half the pairs of twice the patches.
        versions: distorted images of one reference.
        megapixels: sizes of the images that decoding and sampling are measured with.
        rounds: turns that medians and ranges are taken over, after one to warm up.
    """

    backbone: str = "vit_base_patch16_384"
    blocks: int = 6
    width: int | None = None
    num_heads: int | None = None
    patches: int = 256
    batch: int = 4
    versions: int = 100
    megapixels: tuple[float, ...] = (0.2, 12.0)
    rounds: int = 5

    def __post_init__(self):
        conform(self)
        for name in ("blocks", "patches", "versions", "rounds"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "batch", self.batch >= 2, "must be at least 2")
        require(self, "megapixels", all(0.01 <= size <= 100 for size in self.megapixels), "must lie in 0.01 … 100")

    def network(self) -> VTAMIQ:
        changes = {
            "backbone": self.backbone,
            "num_blocks": self.blocks,
            "width": self.width,
            "num_heads": self.num_heads,
        }
        torch.manual_seed(0)
        return VTAMIQ(VTAMIQConfig(**changes, zero_anchor=True)).eval()


def benchmark(
    settings: Benchmark = Benchmark(), *, parts: Sequence[str] = PARTS, progress: bool = False
) -> pd.DataFrame:
    """Measure on the CPU, with the threads that PyTorch has now; some minutes of one core with the defaults.

    Args:
        parts: "network": scoring, triplets, a training step and many versions of one reference; "data": sampling, and a
            whole item of a dataset, against decoding its two PNG files.
        progress: show a bar.

    Returns:
        A row per measurement: `what`; `against`, what it is compared with; `ratio`, the median over rounds of the time of
        `against` over that of `what`, so that more is faster; `lowest` and `highest` of the rounds; `seconds`, the median
        processor time of `what`; `error`, the largest difference of the two results, NaN where they are not comparable.
        Against "best float32 rate", `ratio` is the share that is reached of this machine's own best rate of a matrix
        product, counting only operations that scoring needs.
        `attrs` has the settings, threads, the best rate in GFLOP/s and versions.

    Raises:
        ValueError: an unknown part.
    """
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"parts must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    known = {"network": _network_steps, "data": _data_steps}
    with torch.random.fork_rng(devices=[]):
        steps = [step for part in PARTS if part in parts for step in known[part](settings)]
        rows = [row for step in tqdm(steps, disable=not progress, desc="benchmark") for row in step()]
        rate = best_rate()
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = {
        **asdict(settings),
        "threads": torch.get_num_threads(),
        "gflops": float(rate / 1e9),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    return table


def interleaved(
    functions: Sequence[Callable[[], Any]], rounds: int, *, warm_up: bool = True
) -> tuple[np.ndarray, list[Any]]:
    """Processor seconds (rounds, functions) of calls in turns, and what the last calls returned."""
    seconds, results = np.empty((rounds + warm_up, len(functions))), [None] * len(functions)
    for row in seconds:
        for k, function in enumerate(functions):
            start = time.process_time()
            results[k] = function()
            row[k] = time.process_time() - start
    return seconds[int(warm_up) :], results


def best_rate(rounds: int = 3) -> float:
    """Floating-point operations per processor second of a float32 product, the best of this machine's routes."""
    return _SQUARE_FLOPS / interleaved(_squares(), rounds)[0].min()


def _compare(
    what: str,
    base: tuple[str, Callable[[], Any]],
    others: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    flops: float | None = None,
    **options: bool,
) -> list[tuple]:
    """Rows of each of `others` against the base, and with `flops`, against the best rate in the same rounds."""
    functions = [base[1], *others.values(), *(_squares() if flops else [])]
    seconds, results = interleaved(functions, rounds, **options)
    rows = []
    for k, name in enumerate(others, start=1):
        error = _difference(results[k], results[0])
        rows.append(_row(what + name, base[0], seconds[:, 0] / seconds[:, k], seconds[:, k], error))
    if flops:
        best = _SQUARE_FLOPS / seconds[:, 1 + len(others) :].min(axis=1)
        for k, name in enumerate(others, start=1):
            rows.append(_row(what + name, "best float32 rate", flops / seconds[:, k] / best, seconds[:, k], math.nan))
    return rows


def _row(what: str, against: str, ratio: np.ndarray, seconds: np.ndarray, error: float) -> tuple:
    return what, against, np.median(ratio), ratio.min(), ratio.max(), np.median(seconds), error


def _difference(result: Any, expected: Any) -> float:
    if result is None or expected is None:
        return math.nan
    return float(np.abs(np.asarray(result) - np.asarray(expected)).max())


_SQUARE_FLOPS = 2 * SIDE**3


def _squares() -> list[Callable[[], Any]]:
    """A square product by PyTorch's default, and by oneDNN if there is one."""
    torch.manual_seed(0)
    default, x = nn.Linear(SIDE, SIDE, bias=False), torch.randn(SIDE, SIDE)
    routes = [default] + ([OneDNNLinear(default)] if onednn_works() else [])
    return [lambda route=route: _without_gradient(route, x) for route in routes]


@torch.inference_mode()
def _without_gradient(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return function(*inputs)


# ---------------------------------------------------------------------------------------------------------------- network


class TwinNetwork(nn.Module):
    """The plain twin of a VTAMIQ with timm's usual blocks, in evaluation or training mode; shares its weights, copied.

    Raises:
        ValueError: the model has adapters, blocks of another kind, or is in training with dropout in its encoder.
    """

    def __init__(self, model: VTAMIQ):
        super().__init__()
        config = model.config
        random = config.mlp_dropout or config.embedding_dropout or config.encoder_drop_path
        if config.adapters or (random and model.training):
            raise ValueError("the plain twin has neither adapters nor, in training, randomness in its encoder")
        if not all(type(b) is Block and type(b.attn) is Attention and b.attn.gate is None and type(b.mlp) is Mlp
                   and isinstance(b.attn.q_norm, nn.Identity) for b in model.encoder.blocks):  # fmt: skip
            raise ValueError(f"the plain twin has timm's usual blocks only, `{config.backbone}` has others")
        encoder = model.encoder
        self.zero_anchor, self.grid, self.patch_size = config.zero_anchor, encoder.grid, encoder.patch_size
        self.first_row = int(config.class_token_position)
        width = encoder.class_token.shape[-1]
        self.projection = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size)
        self.projection.weight.data = encoder.patch_projection.weight.detach().clone().view_as(self.projection.weight)
        self.projection.bias.data = encoder.patch_projection.bias.detach().clone()
        for name in ("class_token", "registers", "position_table", "scale_table"):
            table = getattr(encoder, name)
            setattr(self, name, None if table is None else nn.Parameter(table.detach().clone()))
        self.blocks = nn.ModuleList(_TwinBlock(block) for block in encoder.blocks)
        self.norm = _copied_norm(encoder.norm)
        scale = model.difference_scale
        self.difference_scale = None if scale is None else nn.Parameter(scale.detach().clone())
        self.gate = None if model.difference_gate is None else _TwinGroup(model.difference_gate)
        self.groups = nn.ModuleList(_TwinGroup(group) for group in getattr(model.diffnet, "groups", ()))
        self.last = _copied_linear(model.diffnet.linear) if config.num_groups else nn.Identity()
        self.hidden, self.output = _copied_linear(model.head.hidden), _copied_linear(model.head.output)
        self.activation = _copied_prelu(model.head.activation)
        self.dropout = nn.Dropout(config.head_dropout)
        self.register_buffer("mean", model._mean.clone(), persistent=False)
        self.register_buffer("std", model._std.clone(), persistent=False)
        self.train(model.training)

    def forward(self, reference: Tensor, distorted: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """q (B,) of patches (B, N, 3, P, P) of each image, float normalised or uint8; uv (B, N, 2), scale (B, N)."""
        reference, distorted = self.encode(reference, uv, scale), self.encode(distorted, uv, scale)
        q = self.decode(reference - distorted, reference)
        return q - self.decode(torch.zeros_like(reference), reference) if self.zero_anchor else q

    def encode(self, patches: Tensor, uv: Tensor, scale: Tensor | None = None) -> Tensor:
        """Class tokens (B, D) of one image of each item."""
        if patches.dtype == torch.uint8:
            patches = (patches.float() / 255 - self.mean) / self.std
        B, N = patches.shape[:2]
        tokens = self.projection(patches.flatten(0, 1)).view(B, N, -1)
        row = torch.floor(uv[..., 0] * self.grid) * self.grid + torch.floor(uv[..., 1] * self.grid)
        tokens = tokens + self.position_table[row.long() + self.first_row]
        if self.scale_table is not None:
            tokens = tokens + self.scale_table[scale.long().clamp(0, len(self.scale_table) - 1)]
        first = self.class_token + self.position_table[0] if self.first_row else self.class_token
        parts = [first.expand(B, -1, -1)]
        if self.registers is not None:
            parts.append(self.registers.expand(B, -1, -1))
        x = torch.cat([*parts, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def decode(self, difference: Tensor, reference: Tensor) -> Tensor:
        """q (B,) of differences (B, D) and class tokens of the references (B, D)."""
        x = difference if self.difference_scale is None else difference * self.difference_scale
        if self.gate is not None:
            x = x * self.gate.body(reference)
        for group in self.groups:
            x = group(x)
        x = self.activation(self.hidden(self.dropout(self.last(x))))
        return self.output(self.dropout(x))[:, 0]


class _TwinBlock(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.heads = block.attn.num_heads
        self.norm1, self.norm2 = _copied_norm(block.norm1), _copied_norm(block.norm2)
        width = block.attn.qkv.in_features
        self.query, self.key, self.value = (
            _copied_linear(block.attn.qkv, slice(start, start + width)) for start in (0, width, 2 * width)
        )
        self.out = _copied_linear(block.attn.proj)
        self.fc1, self.fc2 = _copied_linear(block.mlp.fc1), _copied_linear(block.mlp.fc2)
        for name in ("ls1", "ls2"):
            gain = getattr(getattr(block, name), "gamma", None)
            setattr(self, name, None if gain is None else nn.Parameter(gain.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        a = self.attend(self.norm1(x))
        x = x + (a if self.ls1 is None else self.ls1 * a)
        f = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + (f if self.ls2 is None else self.ls2 * f)

    def attend(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        query, key, value = (
            layer(x).view(B, T, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # (B, A, T, D/A)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(D // self.heads), dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(B, T, D))


class _TwinGroup(nn.Module):
    def __init__(self, group: nn.Module):
        super().__init__()
        self.linear, self.drop = _copied_linear(group.linear), group.drop_path.drop_prob
        self.activations = nn.ModuleList(_copied_prelu(block.activation) for block in group.blocks)
        self.linears = nn.ModuleList(_copied_linear(block.linear) for block in group.blocks)
        self.squeezes = nn.ModuleList(_copied_linear(block.attention.squeeze) for block in group.blocks)
        self.gates = nn.ModuleList(_copied_prelu(block.attention.activation) for block in group.blocks)
        self.expands = nn.ModuleList(_copied_linear(block.attention.expand) for block in group.blocks)

    def forward(self, x: Tensor) -> Tensor:
        body = self.body(x)
        if self.training and self.drop:
            kept = torch.rand(len(body), 1, device=body.device) >= self.drop
            body = body * kept / (1 - self.drop)
        return x + body

    def body(self, x: Tensor) -> Tensor:
        parts = (self.activations, self.linears, self.squeezes, self.gates, self.expands)
        for activation, linear, squeeze, gate, expand in zip(*parts, strict=True):
            u = linear(activation(x))
            x = x + u * torch.sigmoid(expand(gate(squeeze(u))))
        return self.linear(x)


def _copied_linear(linear: nn.Linear, rows: slice = slice(None)) -> nn.Linear:
    weight = linear.weight.detach()[rows]
    copy = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None)
    copy.weight.data = weight.clone()
    if linear.bias is not None:
        copy.bias.data = linear.bias.detach()[rows].clone()
    return copy


def _copied_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    copy.load_state_dict(norm.state_dict())
    return copy


def _copied_prelu(activation: nn.Module) -> nn.Module:
    if not isinstance(activation, nn.PReLU):
        return nn.ReLU()
    copy = nn.PReLU()
    copy.load_state_dict(activation.state_dict())
    return copy


def _network_steps(settings: Benchmark) -> list[Callable[[], list[tuple]]]:
    ours = settings.network()
    twin, fast = TwinNetwork(ours), accelerate(copy.deepcopy(ours))
    networks = (twin, {"": ours, ", optimised": fast})
    batch, patches, rounds = settings.batch, settings.patches, settings.rounds
    return [
        lambda: _scoring(*networks, batch, patches, rounds),
        lambda: _scoring(*networks, batch // 2, 2 * patches, rounds),
        lambda: _triplets(*networks, batch // 2, patches, rounds),
        lambda: _training(settings),
        lambda: _versions(fast, settings),
    ]


def _scoring(twin: TwinNetwork, ours: dict[str, VTAMIQ], batch: int, patches: int, rounds: int) -> list[tuple]:
    images, uv = _inputs(batch, 2, patches, twin.patch_size)
    return _compare(
        f"scoring {batch} × {patches} patches",
        ("plain twin", lambda: _without_gradient(twin, images[:, 0], images[:, 1], uv)),
        {
            name: partial(lambda model: _without_gradient(model, images, uv)[:, 0], model)
            for name, model in ours.items()
        },
        rounds,
        flops=1e9 * batch * float(cost_table(ours[""], patches)["gflops"].iloc[-1]),
    )


def _triplets(twin: TwinNetwork, ours: dict[str, VTAMIQ], batch: int, patches: int, rounds: int) -> list[tuple]:
    """A reference with two versions: two pairs for the twin, one item for us."""
    images, uv = _inputs(batch, 3, patches, twin.patch_size)

    def pairs() -> Tensor:
        return torch.stack([_without_gradient(twin, images[:, 0], images[:, k], uv) for k in (1, 2)], dim=1)

    return _compare(
        f"{batch} triplets × {patches} patches, reference shared",
        ("plain twin", pairs),
        {name: partial(lambda model: _without_gradient(model, images, uv), model) for name, model in ours.items()},
        rounds,
    )


def _training(settings: Benchmark) -> list[tuple]:
    """Forward, loss, backward and AdamW, in training mode."""
    ours = settings.network()
    fast, twin = accelerate(copy.deepcopy(ours), training=True), TwinNetwork(ours)
    images, uv = _inputs(settings.batch, 2, settings.patches, twin.patch_size)
    target = torch.linspace(0, 1, settings.batch)

    def step(network: nn.Module, predict: Callable[[], Tensor]) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(network.train().parameters(), lr=1e-5)

        def run() -> None:
            optimiser.zero_grad()
            combined_loss(predict(), target)[0].backward()
            optimiser.step()

        return run

    return _compare(
        f"training step of {settings.batch} × {settings.patches} patches",
        ("plain twin", step(twin, lambda: twin(images[:, 0], images[:, 1], uv))),
        {
            "": step(ours, lambda: ours(images, uv)[:, 0]),
            ", optimised": step(fast, lambda: fast(images, uv)[:, 0]),
        },
        settings.rounds,
    )


def _versions(model: VTAMIQ, settings: Benchmark) -> list[tuple]:
    """One reference with many versions, places found and patches cut included. Once: it is long."""
    reference, noisy = pictures(*SMALL)
    steps = np.linspace(0, 1, settings.versions + 1)[1:, None, None, None]
    versions = [np.rint(reference + step * (noisy.astype(float) - reference)).astype(np.uint8) for step in steps]
    caps = caps_for(model, num_patches=settings.patches)

    def embedded() -> None:
        ReferenceEmbedding(reference, model=model, caps=caps, guides=versions[:1]).score(versions, batch_size=4)

    def pairs() -> None:
        score(reference, versions, model=model, caps=caps, batch_size=2)  # as many images at once

    what = f"{settings.versions} versions × {settings.patches} patches, ReferenceEmbedding, optimised"
    return _compare(what, ("score, optimised", pairs), {"": embedded}, 1, warm_up=False)


def _inputs(batch: int, images: int, patches: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """Normalised patches (B, K, N, 3, P, P) and uv (B, N, 2)."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, images, patches, 3, patch_size, patch_size)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.rand(batch, patches, 2, generator=generator)


# ------------------------------------------------------------------------------------------------------------------- data


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Something like a photograph and a noisier version, (H, W, 3) uint8: smooth shapes of many sizes, and sensor noise."""
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


def _data_steps(settings: Benchmark) -> list[Callable[[], list[tuple]]]:
    caps = CAPS(num_patches=2 * settings.patches)
    return [partial(_items, size, caps, settings.rounds) for size in settings.megapixels]


def _items(megapixels: float, caps: CAPS, rounds: int) -> list[tuple]:
    height = max(caps.patch_size, round(math.sqrt(megapixels * 1e6 * 3 / 4)))
    images = pictures(height, height * 4 // 3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("reference.png", "distorted.png")]
        for path, image in zip(paths, images, strict=True):
            write_png(path, image)
        database = _one_pair(Path(folder), *(path.name for path in paths))

        def decode() -> None:
            for path in paths:
                read_image(path)

        def sample() -> None:
            caps(images, 0)

        def item() -> None:
            PairPatches(database, caps)[0]  # a new one, for it remembers references

        what = {f"{caps.num_patches} patches sampled": sample, "a whole item": item}
        size = f"{images[0].shape[1]} × {height}: "
        return _compare(size, ("decoding two PNG files", decode), what, rounds)


def _one_pair(folder: Path, reference: str, distorted: str) -> Database:
    pairs = pair_table(
        database="benchmark", ref_id=["reference"], ref_path=[reference], dist_path=[distorted], dist_type=1,
        dist_name="noise", level=1, score=np.zeros(1), score_name="DMOS", higher_better=False, label_source=["none"],
    )  # fmt: skip
    return Database(name="benchmark", root=folder, pairs=pairs, score_name="DMOS", higher_better=False, synthetic=True)
