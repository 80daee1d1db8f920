"""Where VTAMIQ looks, and which places make its score worse: weights of patches, painted on the image.

`attention_maps` spreads weights of patches over the pixels and averages over draws. All work is done on a twin that shares
the model's weights, in evaluation mode with fused attention off: nothing is restored, and threads may share a model.

Shapes: K images (image 0 the reference), N patches, P patch side, L blocks, A heads, T tokens (class token, registers,
patches), R tokens ahead of the patches, D width, H W image.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vtamiq.caps import CAPS, PatchSample, caps_for
from vtamiq.images.reading import ImageError, ImageSource, describe, read_images
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.inference import check_model
from vtamiq.model.network import VTAMIQ
from vtamiq.utils.configs import did_you_mean

METHODS = ("attention", "rollout", "gradient", "occlusion", "quality", "difference")
SIGNED = ("occlusion", "quality")  # in units of q, above 0 where a place makes the score worse; others are >= 0
_TOKENS_AT_ONCE = 16_384  # of a batch of changed samples; bounds memory


@dataclass(frozen=True)
class Capture:
    """What one forward pass computed, on the CPU."""

    attention: tuple[Tensor, ...]  # L × (K, A, T, T) float32: row = a token that looks, sums to 1 over what it looks at
    gradient: tuple[Tensor, ...]  # likewise, of the sum of the scores by the attention; empty if not asked for
    q: Tensor  # (K−1,) float32, the scores
    prefix: int  # R: class token and registers, ahead of the patches


def capture(model: VTAMIQ, sample: PatchSample, *, gradient: bool = False) -> Capture:
    """Keep the attention of every block (timm's unfused one) in one pass of the model, in evaluation mode.

    With `gradient`, the sum of the K−1 scores is also differentiated by every entry of every map. ValueError if the
    sample does not fit the model or a block has no self-attention of timm's; TypeError if the model is no VTAMIQ.
    """
    twin = _twin(check_model(model), {})
    seen: list[list[Tensor]] = []
    for number, block in enumerate(twin.encoder.blocks):
        attention, maps = block.attn, []
        if not (hasattr(attention, "fused_attn") and isinstance(getattr(attention, "attn_drop", None), nn.Module)):
            raise ValueError(f"block {number} has a {type(attention).__name__}, whose attention cannot be read")
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(lambda module, inputs, output, maps=maps: maps.append(output))
        seen.append(maps)
    with torch.inference_mode(False), torch.set_grad_enabled(gradient):
        patches, uv, scale = _inputs(twin, sample)
        # The patches as the leaf of the graph: it is there even if all weights are frozen.
        q = twin(twin.normalise(patches).requires_grad_(gradient), uv, scale)[0]
        for number, (block, maps) in enumerate(zip(twin.encoder.blocks, seen, strict=True)):
            _check_maps(number, block.attn, maps, len(sample.patches))
        attention = [maps[0] for maps in seen]
        gradients = torch.autograd.grad(q.sum(), attention, materialize_grads=True) if gradient else ()
    on_cpu = ([part.detach().float().cpu() for part in parts] for parts in (attention, gradients))
    prefix = attention[0].shape[-1] - sample.patches.shape[1]
    return Capture(*map(tuple, on_cpu), q=q.detach().float().cpu(), prefix=prefix)


def _check_maps(number: int, attention: nn.Module, maps: list[Tensor], images: int) -> None:
    """ValueError unless a block has left one map per image and head whose rows are shares."""
    kind = f"block {number} has a {type(attention).__name__}, whose attention cannot be read"
    if len(maps) != 1:
        raise ValueError(f"{kind}: it left {len(maps)} maps in one pass")
    shape, rows = tuple(maps[0].shape), maps[0].detach().float().sum(-1)
    if shape != (images, attention.num_heads, shape[-1], shape[-1]):
        raise ValueError(f"{kind}: its maps are {shape}, expected {(images, attention.num_heads, 'T', 'T')}")
    if maps[0].min() < 0 or not (rows - 1).abs().max() < 0.01:  # room for half precision
        raise ValueError(f"{kind}: its rows sum to {rows.min():g} … {rows.max():g}, not to 1")


def _twin(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """The same module in evaluation mode, sharing weights and buffers; what is set or hooked on it stays on it."""
    if id(module) not in made:  # a part that has two names is one part in the twin, too
        twin = made[id(module)] = object.__new__(type(module))
        for name, value in vars(module).items():
            if isinstance(value, MethodType) and value.__self__ is module:  # a `forward` that a library has wrapped
                value = MethodType(value.__func__, twin)
            twin.__dict__[name] = value.copy() if isinstance(value, dict) else value
        twin.__dict__["_modules"] = {
            name: None if part is None else _twin(part, made) for name, part in module._modules.items()
        }
        twin.__dict__["training"] = False
        twin.__dict__.pop("_compiled_call_impl", None)  # `model.compile()` has compiled the original
    return made[id(module)]


def _inputs(model: VTAMIQ, sample: PatchSample) -> list[Tensor]:
    """Patches, uv and scale of a sample as a batch of one on the model's device."""
    device = next(model.parameters()).device
    return [part[None].to(device) for part in (sample.patches, sample.uv, sample.scale)]


def token_attention(captured: Capture, *, token: int = 0, block: int = -1, head: int | None = None) -> np.ndarray:
    """Share of one token's attention that goes to each patch, (K, N) float64; the rest goes to the tokens ahead of them.

    Token 0 is the class token, then come registers; head None is the mean. ValueError for an index out of range.
    """
    _check_index("token", token, 0, captured.prefix)
    _check_index("block", block, -len(captured.attention), len(captured.attention))
    maps = captured.attention[block]  # (K, A, T, T)
    if head is not None:
        _check_index("head", head, 0, maps.shape[1])
    rows = maps[:, :, token, captured.prefix :].double()  # (K, A, N)
    return (rows.mean(1) if head is None else rows[:, head]).numpy()


def token_shares(captured: Capture, *, token: int = 0) -> pd.DataFrame:
    """What one token's attention is spent on: a row per block, head and image; the three shares sum to 1."""
    _check_index("token", token, 0, captured.prefix)
    rows = []
    for block, maps in enumerate(captured.attention):
        for head, image in np.ndindex(maps.shape[1], maps.shape[0]):
            row = maps[image, head, token].double()
            shares = [row[:1].sum().item(), row[1 : captured.prefix].sum().item(), row[captured.prefix :].sum().item()]
            rows.append((block, head, image, *shares))
    return pd.DataFrame(rows, columns=["block", "head", "image", "class_token", "registers", "patches"])


def rollout(attention: Sequence[Tensor]) -> np.ndarray:
    """Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928), (K, T, T) float64: how much of each input token is in
    each output token; rows sum to 1. R = Â_L ⋯ Â_1, Â = (A + I)/2, A the mean over heads."""
    steps = [maps.double().mean(1) for maps in attention]
    return _multiply([(step + torch.eye(step.shape[-1], dtype=torch.float64)) / 2 for step in steps])


def gradient_rollout(attention: Sequence[Tensor], gradient: Sequence[Tensor]) -> np.ndarray:
    """Relevance of the tokens for the score, (K, T, T) float64 ≥ 0: which attention has made q larger, that is worse.

    R starts as the identity; each block adds Ā R, where Ā is the mean over heads of the positive part of attention times
    gradient (Chefer, Gur & Wolf 2021, arXiv:2103.15679, section 3, self-attention).
    """
    products = [(a.double() * g.double()).clamp(min=0).mean(1) for a, g in zip(attention, gradient, strict=True)]
    return _multiply([product + torch.eye(product.shape[-1], dtype=torch.float64) for product in products])


def _multiply(steps: list[Tensor]) -> np.ndarray:
    """The last times … times the first, (K, T, T)."""
    return functools.reduce(lambda product, step: step @ product, steps).numpy()


def even_shares(weights: np.ndarray) -> np.ndarray:
    """Weights ≥ 0 in multiples of an even share: their mean over patches (the last axis) becomes 1; all zeros stay."""
    mean = weights.mean(axis=-1, keepdims=True)
    return np.divide(weights, mean, out=np.zeros_like(weights), where=mean > 0)


@torch.no_grad()
def occlusion(model: VTAMIQ, sample: PatchSample) -> np.ndarray:
    """By how much each patch raises the score, (N,) float64: q of all patches − q without this one in both images.

    The patch is left out (Zeiler & Fergus 2014, arXiv:1311.2901, cover it). ValueError if the sample is no aligned pair.
    """
    _check_pair(sample)
    twin, count = _twin(check_model(model), {}), sample.patches.shape[1]
    patches, uv, scale = _inputs(twin, sample)
    whole = twin(patches, uv, scale)[0, 0]
    without = []
    for removed in torch.arange(count).split(max(1, _TOKENS_AT_ONCE // (2 * count))):
        kept = torch.arange(count - 1).expand(len(removed), -1)
        kept = (kept + (kept >= removed[:, None])).to(uv.device)  # (n, N−1)
        variants = patches[0][:, kept].transpose(0, 1)  # (n, 2, N−1, 3, P, P)
        without.append(twin(variants, uv[0][kept], scale[0][kept])[:, 0])
    return (whole - torch.cat(without)).double().cpu().numpy()


@torch.no_grad()
def repair(model: VTAMIQ, sample: PatchSample) -> np.ndarray:
    """By how much repairing each patch lowers the score, (N,) float64: q − q with the reference's patch in its place.

    Exactly 0 where both images have the same patch. Errors as `occlusion`.
    """
    _check_pair(sample)
    twin, count = _twin(check_model(model), {}), sample.patches.shape[1]
    patches, uv, scale = _inputs(twin, sample)
    reference, distorted = twin.encode(patches, uv, scale).split(1, dim=1)  # (1, 1, D) each
    whole = twin.compare(reference, distorted)[0, 0]
    gain = np.zeros(count)
    differ = (sample.patches[0] != sample.patches[1]).flatten(1).any(1).nonzero()[:, 0]
    for chosen in differ.split(max(1, _TOKENS_AT_ONCE // count)):
        variants = patches[:, 1:].repeat(len(chosen), 1, 1, 1, 1, 1)  # (n, 1, N, 3, P, P)
        variants[torch.arange(len(chosen)), 0, chosen] = patches[0, 0, chosen]
        same = (part.expand(len(chosen), *part.shape[1:]) for part in (uv, scale))
        repaired = twin.compare(reference.expand(len(chosen), -1, -1), twin.encode(variants, *same))[:, 0]
        gain[chosen.numpy()] = (whole - repaired).double().cpu().numpy()
    return gain


def patch_difference(sample: PatchSample) -> np.ndarray:
    """Mean absolute difference of each patch from the reference's, (N,) float64 in [0, 1]; errors as `occlusion`."""
    _check_pair(sample)
    reference, distorted = sample.patches.double() / 255
    return (reference - distorted).abs().flatten(1).mean(1).numpy()


def _check_pair(sample: PatchSample) -> None:
    if len(sample.patches) != 2:
        raise ValueError(f"a sample of two images is needed, reference and distorted, got {len(sample.patches)}")
    if sample.position.ndim != 2:
        raise ValueError("both images must be cut at the same places: sample with CAPS(aligned=True)")


def _spread(weights: np.ndarray, sample: PatchSample, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of weights (…, K, N) spread over the pixels, (…, K, H, W), and of weights of 1, (K, H, W).

    Each patch counts 1 / its number of pixels, 4^s times as many at scale s, so equal weights have a flat mean.
    """
    images = len(sample.patches)
    total, coverage = np.zeros((*weights.shape[:-1], *shape)), np.zeros((images, *shape))
    aligned = sample.position.ndim == 2
    for k in (slice(None),) if aligned else (slice(k, k + 1) for k in range(images)):
        position, scale = (sample.position, sample.scale) if aligned else (sample.position[k][0], sample.scale[k][0])
        sides = sample.patches.shape[-1] * 2 ** scale.numpy()  # (N,)
        corners = position.numpy() * 2 ** scale.numpy()[:, None]
        for n, ((row, column), side) in enumerate(zip(corners, sides, strict=True)):
            place = (slice(row, row + side), slice(column, column + side))
            total[(..., k, *place)] += weights[..., k, n, None, None] / side**2
            coverage[(k, *place)] += 1 / side**2
    return total, coverage


def _mean(total: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Mean weights, NaN where no patch lies."""
    seen = np.broadcast_to(coverage > 0, total.shape)
    return np.divide(total, coverage, out=np.full(total.shape, np.nan), where=seen)


@dataclass(frozen=True)
class Maps:
    """Maps on the image grid, averaged over draws of patches."""

    maps: np.ndarray  # (…, K, H, W) float64, NaN where no patch of any draw lies
    stability: np.ndarray  # (…, K) reliability of the mean, 1 = other draws would give the same; NaN for one draw
    draws: int
    coverage: np.ndarray  # (K,) share of pixels that some patch of some draw sees


class _Halves:
    """Running sums over draws, the even and the odd ones apart."""

    def __init__(self) -> None:
        self.total: list[Any] = [0, 0]
        self.coverage: list[Any] = [0, 0]
        self.draws = 0

    def add(self, total: np.ndarray, coverage: np.ndarray) -> None:
        half, self.draws = self.draws % 2, self.draws + 1
        self.total[half] = self.total[half] + total
        self.coverage[half] = self.coverage[half] + coverage

    def stability(self) -> np.ndarray:
        """Correlation r over the pixels between the means of both halves, stepped up to that of the whole, 2r/(1 + r)
        (Spearman 1910, Brown 1910). An r below 0 stays as it is."""
        shape = self.total[0].shape[:-2]
        if self.draws < 2:
            return np.full(shape, np.nan)
        even, odd = (_mean(*half) for half in zip(self.total, self.coverage, strict=True))
        return np.array([_agreement(even[at], odd[at]) for at in np.ndindex(shape)]).reshape(shape)

    def mean(self) -> Maps:
        total, coverage = sum(self.total), sum(self.coverage)
        return Maps(_mean(total, coverage), self.stability(), self.draws, (coverage > 0).mean(axis=(-2, -1)))


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Reliability of the mean of two maps (H, W), 1 if they are equal; 0 if only one of them is flat."""
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    if not both.any() or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float(both.any() and np.array_equal(one, other))
    r = np.corrcoef(one, other)[0, 1]
    return float(2 * r / (1 + r) if r > 0 else r)


def average_maps(
    weigh: Callable[[PatchSample], np.ndarray],
    images: np.ndarray,
    caps: CAPS,
    *,
    draws: int = 8,
    until: float | None = None,
    max_draws: int = 64,
    seed: int = 0,
) -> Maps:
    """Mean weight at each pixel over all patches of all draws that see it.

    Args:
        weigh: sample → weights (…, K, N).
        images: (K, H, W, 3) uint8, the reference first; ImageError if the sampler refuses them.
        draws, seed: the draws of patches are those of `vtamiq.score`; ValueError if out of range.
        until: add draws until every map is as stable as this (`Maps.stability`), or `max_draws` are made.
    """
    least = 1 if until is None else 2
    if draws < least:
        raise ValueError(f"draws must be at least {least}, got {draws!r}")
    if until is not None and not 0 < until < 1:
        raise ValueError(f"until must be a stability between 0 and 1, got {until!r}")
    if until is not None and max_draws < draws:
        raise ValueError(f"max_draws must be at least draws={draws}, got {max_draws!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed!r}")
    sums = _Halves()
    for sample in caps.draws(images, seed, range(draws if until is None else max_draws)):
        sums.add(*_spread(weigh(sample), sample, images.shape[1:3]))
        if until is not None and sums.draws >= draws and (sums.stability() >= until).all():
            break
    return sums.mean()


def attention_maps(
    model: VTAMIQ | None,
    reference: ImageSource,
    distorted: ImageSource,
    *,
    method: str = "rollout",
    token: int | None = None,
    block: int | None = None,
    head: int | None = None,
    draws: int = 8,
    until: float | None = None,
    max_draws: int = 64,
    caps: CAPS | None = None,
    seed: int = 0,
    return_stability: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Maps of the reference and of the distorted image, (2, H, W) float64; NaN where no patch lies.

    Methods, in multiples of an even share among patches, or in units of q with both maps the same:

    - "attention", "rollout", "gradient": see `token_attention`, `rollout`, `gradient_rollout`.
    - "occlusion", "quality" (units of q): q − q without the patch (`occlusion`), or with the patch repaired (`repair`).
    - "difference": mean absolute difference within the patch (`patch_difference`), a baseline without a model.

    Args:
        model: a trained VTAMIQ; None takes the one that ships with the package.
        reference, distorted: anything `read_image` takes, of one size; ImageError if unreadable or smaller than a patch.
        token, block, head: for "attention" only; default the class token, the last block, the mean over heads.
        draws, until, max_draws, seed: as in `average_maps`.
        caps: patch sampling; None takes `CAPS()` with what the model prescribes.
        return_stability: also return how stable each map is, (2,), as in `Maps`.

    Raises:
        ValueError: an unknown method, an option that the method has no use for, or as `average_maps`, `capture`.
    """
    chosen = check_method(method, token=token, block=block, head=head)
    weigh = lambda sample: patch_weights(model, sample, method, **chosen)  # noqa: E731
    options = {"draws": draws, "until": until, "max_draws": max_draws, "seed": seed}
    averaged = _averaged(weigh, model, reference, distorted, caps, **options)
    return (averaged.maps, averaged.stability) if return_stability else averaged.maps


def head_maps(
    model: VTAMIQ | None,
    reference: ImageSource,
    distorted: ImageSource,
    *,
    token: int = 0,
    draws: int = 8,
    caps: CAPS | None = None,
    seed: int = 0,
) -> Maps:
    """Attention of one token in every block and head, maps (L, A, 2, H, W); the rest as in `attention_maps`."""

    def weigh(sample: PatchSample) -> np.ndarray:
        captured = capture(model, sample)
        _check_index("token", token, 0, captured.prefix)
        rows = [maps[:, :, token, captured.prefix :].transpose(0, 1) for maps in captured.attention]  # (A, K, N) each
        return even_shares(torch.stack(rows).double().numpy())

    return _averaged(weigh, model, reference, distorted, caps, draws=draws, seed=seed)


def _averaged(
    weigh: Callable[[PatchSample], np.ndarray],
    model: VTAMIQ,
    reference: ImageSource,
    distorted: ImageSource,
    caps: CAPS | None,
    **options: Any,
) -> Maps:
    pair = read_images([reference, distorted])
    try:
        return average_maps(weigh, pair, caps_for(check_model(model), caps), **options)
    except ImageError as error:  # CAPS does not know where its images come from
        raise ImageError(f"{describe(distorted)}: {error}") from error


def patch_weights(model: VTAMIQ, sample: PatchSample, method: str, **options: int) -> np.ndarray:
    """Weights (2, N) of the patches of a pair by one of `METHODS`; options as for `token_attention`."""
    if method == "occlusion":
        return np.stack([occlusion(model, sample)] * 2)
    if method == "quality":
        return np.stack([repair(model, sample)] * 2)
    if method == "difference":
        return even_shares(np.stack([patch_difference(sample)] * 2))
    captured = capture(model, sample, gradient=method == "gradient")
    if method == "attention":
        return even_shares(token_attention(captured, **options))
    if method == "gradient":
        tokens = gradient_rollout(captured.attention, captured.gradient)  # (K, T, T)
    else:
        tokens = rollout(captured.attention)
    return even_shares(tokens[:, 0, captured.prefix :])


def check_method(method: str, **options: int | None) -> dict[str, int]:
    """The options that are set; ValueError for an unknown method, or one that has no use for them."""
    chosen = {name: value for name, value in options.items() if value is not None}
    if method not in METHODS:
        raise ValueError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    if chosen and method != "attention":
        raise ValueError(f'{", ".join(chosen)} is for method="attention", {method!r} has no use for it')
    return chosen


def _check_index(name: str, index: int, low: int, high: int) -> None:
    if index not in range(low, high):
        raise ValueError(f"{name} must be an integer from {low} to {high - 1}, got {index!r}")


@torch.no_grad()
def channel_attention(model: VTAMIQ, sample: PatchSample) -> pd.DataFrame:
    """What DiffNet's channel attention does to the difference of the class tokens, a row per group, block and channel.

    `gate` in (0, 1) is the attention; `before` and `after` are the channel's values around the block. ValueError if the
    model has no DiffNet or the sample is no pair that fits it.
    """
    twin = _twin(check_model(model), {})
    if not model.config.num_groups:
        raise ValueError("the model has no DiffNet (num_groups=0), so there is no channel attention")
    if len(sample.patches) != 2:
        raise ValueError(f"a sample of two images is needed, reference and distorted, got {len(sample.patches)}")
    reference, distorted = twin.encode(*_inputs(twin, sample)).split(1, dim=1)
    tables = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        gate = module.attention.gate(module.linear(module.activation(inputs[0])))
        columns = {"gate": gate[0], "before": inputs[0][0], "after": output[0]}
        tables.append(pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()}))

    blocks = [(g, b, block) for g, group in enumerate(twin.diffnet.groups) for b, block in enumerate(group.blocks)]
    for _, _, block in blocks:
        block.register_forward_hook(keep)
    twin.modulate((reference - distorted)[:, 0], reference[:, 0])
    parts = {(g, b): table for (g, b, _), table in zip(blocks, tables, strict=True)}
    return pd.concat(parts, names=["group", "block", "channel"]).reset_index()


def kept_models(run: str | Path) -> dict[str, VTAMIQ]:
    """The best and last checkpoint of a finished run, by epoch from 1, in evaluation mode; CheckpointError if damaged."""
    run = Path(run)
    found = {}
    for path in (run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"):
        if not path.is_file():
            continue
        model = VTAMIQ.from_pretrained(run / "model")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            state = checkpoint["state_dict"]  # of the training, which may have auxiliary heads beside the model
            weights = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
            model.load_state_dict(weights)
            epoch = int(checkpoint["epoch"]) + 1
        except Exception as error:  # zip, pickle and torch each have their own way of refusing a bad file
            raise CheckpointError(f"{path}: not a checkpoint of this run ({error})") from error
        found.setdefault(epoch, model)  # the last epoch may be the best one, too
    if not found:
        raise CheckpointError(f"{run}: holds no checkpoints; expected the folder of a finished run")
    return {f"epoch {epoch}": found[epoch] for epoch in sorted(found)}
