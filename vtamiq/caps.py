"""Context-aware patch sampling (CAPS): look more often where an observer would look and where the images differ.

A weight map – the mean of perceptual difference, centre bias and a constant, each in [0, 1] – says how likely a patch is
*centred* at each pixel, or block of pixels. Each scale of a 2x2 mean pyramid is sampled on its own.

Shapes: K images, N patches, P patch side, H W image, h w image at a scale, R C = h-P+1, w-P+1 places that fit a patch, b
side of a block in pixels.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from vtamiq.images.reading import ImageError, check_same_size, check_uint8_rgb
from vtamiq.utils.configs import conform, require

if TYPE_CHECKING:
    from vtamiq.model.network import VTAMIQ

DIFFERENCE_METRICS = ("mse", "absolute", "ssim")
UV_ANCHORS = ("centre", "corner")
MAX_SCALES = 5
STRIP = 32  # rows that `block_difference` compares at a time
SSIM_WINDOW = 7  # pixels

Images: TypeAlias = np.ndarray | Sequence[np.ndarray]


def pool(image: np.ndarray) -> np.ndarray:
    """Mean of 2x2 blocks, (h, w, ...) -> (h // 2, w // 2, ...); drops an odd border, uint8 becomes float32."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    dtype = np.result_type(image.dtype, np.float32)
    pairs = np.add(image[0:height:2, :width], image[1:height:2, :width], dtype=dtype)
    means = pairs[:, 0::2] + pairs[:, 1::2]
    means /= 4
    return means


def effective_scales(height: int, width: int, patch_size: int, num_scales: int) -> int:
    """How many of `num_scales` scales an image has room for, at least 1."""
    room, halvings = min(height, width), 0
    while room > 1:
        room, halvings = (room - patch_size) / 2, halvings + 1
    return max(1, min(num_scales, halvings - 1))


def patches_per_scale(num_patches: int, num_scales: int, ratio: float) -> np.ndarray:
    """Split `num_patches` over the scales, (num_scales,), COARSEST first: each finer one gets 2^ratio times as many."""
    growth = 2.0 ** (ratio * np.arange(num_scales))
    wanted = np.ceil(num_patches * growth / growth.sum()).astype(np.int64)
    return np.diff(np.minimum(np.cumsum(wanted), num_patches), prepend=0)


def patch_uv(top_left: np.ndarray, height: int, width: int, patch_size: int, anchor: str = "centre") -> np.ndarray:
    """Positions (..., 2) float64 in [0, 1 - 1e-6] of patches with their top-left pixel at (..., 2) rows and columns.

    "centre": (y + P/2) / (h - P/2); "corner" (2021): the corner as p in [-1, 1], mapped to (p + 1) / (2 + 1e-6).
    """
    size, half = np.array([height, width]), patch_size / 2
    if anchor == "centre":
        uv = (top_left + half) / (size - half)
    elif anchor == "corner":
        uv = 2 * top_left / np.maximum(size - patch_size, 1) / (2 + 1e-6)  # a side of exactly P has y = 0 only
    else:
        raise ValueError(f"anchor must be one of {UV_ANCHORS}, got {anchor!r}")
    return np.clip(uv, 0.0, 1.0 - 1e-6)


def pyramid(image: np.ndarray, scales: int) -> list[np.ndarray]:
    """The image (H, W, 3) and the same pooled once, twice, …"""
    levels = [image]
    while len(levels) < scales:
        levels.append(pool(levels[-1]))
    return levels


def cut_patches(levels: Sequence[np.ndarray], position: np.ndarray, scale: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut patches (N, 3, P, P) uint8 out of a `pyramid`, means of pixels rounded; `position` (N, 2) has rows and
    columns of their top-left pixels in the level of their `scale` (N,)."""
    patches = np.empty((len(scale), 3, patch_size, patch_size), np.uint8)
    for s, level in enumerate(levels):
        here = scale == s
        if here.any():
            row, column = position[here].T
            cut = sliding_window_view(level, (patch_size, patch_size), axis=(0, 1))[row, column]  # (n, 3, P, P)
            patches[here] = cut if cut.dtype == np.uint8 else np.rint(cut)
    return patches


def difference_map(reference: np.ndarray, distorted: np.ndarray, metric: str = "mse") -> np.ndarray:
    """Difference of two (H, W, 3) uint8 images at each pixel, (H, W) float32 >= 0, exactly 0 where equal.

    "mse": mean squared difference of the channels, "absolute": Euclidean length of the colour difference, both for
    colours in [0, 1]; "ssim": 1 - SSIM, mean of the channels (Wang et al. 2004).
    """
    if metric == "ssim":
        side = min(SSIM_WINDOW, *reference.shape[:2])
        images = reference.astype(np.float32), distorted.astype(np.float32)
        options = {"channel_axis": -1, "data_range": 255, "use_sample_covariance": False, "full": True}
        similarity = structural_similarity(*images, win_size=side - 1 + side % 2, **options)[1]
        return np.maximum(1 - similarity.mean(axis=-1), 0)
    absolute = np.maximum(reference, distorted)
    absolute -= np.minimum(reference, distorted)  # in uint8, where this order alone does not wrap around
    squared = absolute.astype(np.float32)
    np.square(squared, out=squared)
    energy = squared @ np.full(3, 1 / 255**2, np.float32)  # sum over the channels
    if metric == "mse":
        energy /= 3
        return energy
    if metric == "absolute":
        return np.sqrt(energy, out=energy)
    raise ValueError(f"metric must be one of {DIFFERENCE_METRICS}, got {metric!r}")


def block_difference(reference: np.ndarray, distorted: np.ndarray, metric: str, block: int) -> np.ndarray:
    """Mean of `difference_map` over blocks of b x b pixels, b a power of two, (⌈H/b⌉, ⌈W/b⌉) float32.

    Strip by strip to save memory. Where the image ends within a block, its last row and column are repeated.
    """
    if block == 1:
        return difference_map(reference, distorted, metric)
    height = len(reference)
    rows = -(-STRIP // block) * block
    halo = SSIM_WINDOW // 2 if metric == "ssim" else 0  # rows around a strip that it depends on
    strips = []
    for top in range(0, height, rows):
        begin = max(0, min(top, height - rows) - halo)  # so that the last strip has room for a window too
        seen = slice(begin, top + rows + halo)
        difference = difference_map(reference[seen], distorted[seen], metric)[top - begin :][:rows]
        difference = np.pad(difference, [(0, -length % block) for length in difference.shape], mode="edge")
        for _ in range(block.bit_length() - 1):
            difference = pool(difference)
        strips.append(difference)
    return np.concatenate(strips)


def gaussian_centre(height: int, width: int, sigma: float) -> np.ndarray:
    """Gaussian around the image centre, (H, W) float32, peak 1; its standard deviation is `sigma` half sides."""

    def profile(length: int) -> np.ndarray:
        x = (np.arange(length) + 0.5) * 2 / length - 1  # pixel centres in (-1, 1)
        exponent = np.square(x / sigma) / 2
        return np.exp(exponent.min() - exponent).astype(np.float32)  # peak 1

    return np.outer(profile(height), profile(width))


def centre_template(path: str) -> np.ndarray:
    """The 2-D log-density of a `.npy` file, memory-mapped; ValueError if it holds none."""
    try:
        template = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"centre_map {path!r} cannot be read as a .npy array: {error}") from error
    if template.ndim != 2 or template.size == 0 or not np.issubdtype(template.dtype, np.floating):
        raise ValueError(f"centre_map {path!r} must hold 2-D floats, got {template.dtype} {template.shape}")
    return template


def load_centre(path: str, height: int, width: int) -> np.ndarray:
    """Centre bias from a log-density, (H, W) float32, peak 1: nearest neighbours, exponentiated. Errors are ValueErrors."""
    template = centre_template(path)
    row = ((np.arange(height) + 0.5) * template.shape[0] / height).astype(int)
    column = ((np.arange(width) + 0.5) * template.shape[1] / width).astype(int)
    log_density = np.asarray(template[np.ix_(row, column)], dtype=np.float32)
    peak = log_density.max()
    if not np.isfinite(peak):  # a single -inf may mean "never here"
        raise ValueError(f"centre_map {path!r} is not a log-density: its maximum is {peak}")
    return np.exp(log_density - peak)


def blocks_of(height: int, width: int, most: int) -> tuple[tuple[int, int], int]:
    """Rows and columns of blocks of b x b pixels over an image, b the least power of two with at most `most`; and b."""
    side = 1
    while -(-height // side) * -(-width // side) > most:
        side *= 2
    return (-(-height // side), -(-width // side)), side


@dataclass(frozen=True)
class WeightMap:
    """Weights of patches by their centre, (y + P // 2, x + P // 2); one for each block of pixels."""

    weights: np.ndarray  # (⌈h/b⌉, ⌈w/b⌉) or larger, float >= 0
    size: tuple[int, int]  # of the image, (h, w)
    block: int = 1  # b, a power of two

    def pooled(self) -> "WeightMap":
        """The map of the image pooled once more."""
        size = self.size[0] // 2, self.size[1] // 2
        if self.block > 1:  # these are its weights already
            return WeightMap(self.weights, size, self.block // 2)
        return WeightMap(pool(self.weights), size)

    def of_pixels(self) -> "WeightMap":
        """The same with a weight for each pixel, (h, w)."""
        weights = self.weights.repeat(self.block, axis=0).repeat(self.block, axis=1)
        return WeightMap(weights[: self.size[0], : self.size[1]], self.size)

    def fitting(self, patch_size: int) -> np.ndarray:
        """Weights of the blocks in which fitting patches are centred, times their number; uniform if none has weight."""
        first = patch_size // 2 // self.block
        rows, columns = (np.diff(edges) for edges in self._edges(patch_size))
        inside = self.weights[first : first + len(rows), first : first + len(columns)]
        if not inside.any():
            inside = np.ones_like(inside)
        return inside if self.block == 1 else inside * np.outer(rows, columns).astype(inside.dtype)

    def places(self, entries: np.ndarray, patch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Entries (N, 2) of `fitting` -> top-left pixels (N, 2) of patches centred anywhere in those blocks."""
        if self.block == 1:
            return entries
        (rows, columns), (i, j) = self._edges(patch_size), entries.T
        begin = np.stack([rows[i], columns[j]], axis=-1)
        end = np.stack([rows[i + 1], columns[j + 1]], axis=-1)
        return rng.integers(begin, end)

    def _edges(self, patch_size: int) -> list[np.ndarray]:
        """Rows, and columns, of the first patch centred in each block, and after the last one: (blocks + 1,)."""
        half, edges = patch_size // 2, []
        for length in self.size:
            count = length - patch_size + 1
            blocks = np.arange(half // self.block, (half + count - 1) // self.block + 2)
            edges.append((blocks * self.block - half).clip(0, count))
        return edges


def draw_multinomial(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` independent draws of (row, column), each with probability `weights` (R, C) over its sum; (count, 2)."""
    cumulative = _cumulative(weights, 1.0)
    index = np.searchsorted(cumulative, rng.random(count), side="right")  # right: entries of weight 0 are never met
    return np.stack(np.unravel_index(index, weights.shape), axis=-1)


def draw_stratified(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` draws of (row, column) of the same density as `draw_multinomial`, but evenly spread; (count, 2), by cell.

    Systematic sampling gives every square cell the floor or the ceiling of its expected count. The n-th draw of a cell
    comes from the n-th part of equal weight along a boustrophedon through its pixels.
    """
    side = int(np.clip(round(np.sqrt(weights.size / count)), 1, max(weights.shape)))  # about as many cells as draws
    cells = _to_cells(weights, side)  # (cell rows, cell columns, side, side)
    cumulative = _cumulative(cells, count)  # expected number of draws up to and with each pixel

    upper = cumulative[side * side - 1 :: side * side]  # … with each cell
    lower = np.concatenate([[0.0], upper[:-1]])
    reached = np.minimum(np.floor(upper + rng.random()), count)  # the sum could round up to count + 1
    quota = np.diff(reached, prepend=0).astype(np.int64)  # draws per cell, sums to count

    cell = np.repeat(np.arange(len(quota)), quota)  # (count,)
    rank = np.arange(count) - (np.cumsum(quota) - quota)[cell]  # 0 .. quota - 1 within each cell
    share = (rank + rng.random(count)) / quota[cell]
    target = lower[cell] + share * (upper - lower)[cell]
    target = np.minimum(target, np.nextafter(upper[cell], 0))  # rounding must not push a draw into the next cell
    return _from_cells(np.searchsorted(cumulative, target, side="right"), cells.shape)


def _cumulative(weights: np.ndarray, total: float) -> np.ndarray:
    """Running sum of all weights, (size,) float64, ending at exactly `total`."""
    flat = torch.from_numpy(np.ascontiguousarray(weights).ravel())
    cumulative = flat.cumsum(0, dtype=torch.float64).numpy()  # as NumPy's to the last bit, in a quarter of its time
    cumulative /= cumulative[-1]
    cumulative *= total
    return cumulative


def _to_cells(weights: np.ndarray, side: int) -> np.ndarray:
    """(R, C) -> (cell rows, cell columns, side, side), zero-padded; cells, and pixels in a cell, in boustrophedon."""
    rows, columns = (-(-n // side) for n in weights.shape)
    padded = np.zeros((rows * side, columns * side), weights.dtype)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    cells = padded.reshape(rows, side, columns, side).swapaxes(1, 2)
    cells[1::2] = cells[1::2, ::-1]
    cells[:, :, 1::2] = cells[:, :, 1::2, ::-1]
    return cells


def _from_cells(index: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Flat indices (N,) into the array of `_to_cells` -> rows and columns of the map (N, 2)."""
    cell_row, cell_column, row, column = np.unravel_index(index, shape)
    _, columns, side, _ = shape
    cell_column = np.where(cell_row % 2, columns - 1 - cell_column, cell_column)
    column = np.where(row % 2, side - 1 - column, column)
    return np.stack([cell_row * side + row, cell_column * side + column], axis=-1)


@dataclass(frozen=True)
class PatchSample:
    """N patches of K images, the reference first; unless aligned, `uv`, `scale` and `position` have a leading K."""

    patches: torch.Tensor  # (K, N, 3, P, P) uint8
    uv: torch.Tensor  # (N, 2) float32 in [0, 1), the position for the model
    scale: torch.Tensor  # (N,) int64, 0 = full size, s = pooled s times
    position: torch.Tensor  # (N, 2) int64, top-left (row, column) in the image at that scale


@dataclass(frozen=True)
class CAPS:
    """Context-aware patch sampler, `CAPS(...)(images, seed) -> PatchSample`; ValueError for an option out of range.

    >>> images = np.stack([reference, distorted])            # (K, H, W, 3) uint8
    >>> sample = CAPS(num_patches=512, num_scales=3)(images, seed=0)
    >>> sample.patches.shape                                  # K, N, 3, P, P
    torch.Size([2, 512, 3, 16, 16])

    Args:
        num_patches, patch_size: N over all scales, and P in pixels.
        num_scales: scales of the pyramid, 1 to 5; small images use fewer (`effective_scales`).
        difference, centre, uniform: weights of the three maps; only their ratios count.
        difference_metric: "mse", "absolute" or "ssim" (`difference_map`).
        smoothing: standard deviation in pixels of a Gaussian over the difference; None: (2 P^2)^(1/4), 0: none.
        centre_sigma: standard deviation of the centre bias, in half sides of the image.
        centre_map: `.npy` file with a log-density that replaces the Gaussian centre bias.
        stratified: evenly spread draws; False: independent ones, of the same expected density.
        aligned: all images are cut at the same places; False: each image gets its own.
        patch_ratio: every scale has 2^patch_ratio times the patches of the next coarser one.
        shuffle: patches in random order; False: scale 0 first.
        uv_anchor: "centre" or "corner", the convention of `uv` (`patch_uv`).
        map_pixels: most weights of a map; larger images have one per block of pixels (moves < 1 % of draws up to 8 x 8).
    """

    num_patches: int = 256
    patch_size: int = 16
    num_scales: int = 1
    difference: float = 1.0
    centre: float = 0.5
    uniform: float = 0.25
    difference_metric: str = "mse"
    smoothing: float | None = None
    centre_sigma: float = 0.5
    centre_map: str | None = None
    stratified: bool = True
    aligned: bool = True
    patch_ratio: float = 1.75
    shuffle: bool = False
    uv_anchor: str = "centre"
    map_pixels: int = 2**17

    def __post_init__(self):
        conform(self)
        for name in ("num_patches", "patch_size", "map_pixels"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "num_scales", 1 <= self.num_scales <= MAX_SCALES, f"must be from 1 to {MAX_SCALES}")
        for name in ("difference", "centre", "uniform"):
            require(self, name, 0 <= getattr(self, name) < np.inf, "must be finite and not negative")
        require(self, "smoothing", 0 <= (self.smoothing or 0) < np.inf, "must be None, or finite and not negative")
        require(self, "centre_sigma", 0.01 <= self.centre_sigma < np.inf, "must be finite and at least 0.01")
        require(self, "patch_ratio", 0 <= self.patch_ratio <= 10, "must be from 0 to 10")
        for name, known in (("difference_metric", DIFFERENCE_METRICS), ("uv_anchor", UV_ANCHORS)):
            require(self, name, getattr(self, name) in known, f"must be one of {known}")
        require(self, "centre_map", (self.centre_map or ".npy").endswith(".npy"), "must be the path of a .npy file")
        total = self.difference + self.centre + self.uniform
        if not 0 < total < np.inf:
            raise ValueError(f"CAPS: difference, centre and uniform must have a positive, finite sum, got {total}")

    @classmethod
    def paper_2021(cls, **changes: Any) -> "CAPS":
        """How the authors' first public code (October 2021) draws, but for its centre bias: give that as `centre_map`."""
        published = cls(difference=5.0, centre=2.0, uniform=0.25, stratified=False, uv_anchor="corner")
        return replace(published, **changes)

    def __call__(self, images: Images, seed: int | Sequence[int] | np.random.Generator) -> PatchSample:
        """Draw N places from the weight map and cut the patches of all images.

        `images` are (K, H, W, 3) uint8 or K arrays (H, W, 3), the reference first; ImageError if they are not that, differ
        in size, or are smaller than a patch. `seed`: integer, integers or a Generator, else ValueError.
        """
        try:
            rng = np.random.default_rng("none" if seed is None else seed)  # NumPy's None is another sample each time
        except (TypeError, ValueError) as error:
            raise ValueError(f"seed must be an integer >= 0 or a Generator, got {seed!r}") from error
        return self._sample(*self._prepare(images), rng)

    def draws(self, images: Images, seed: int, numbers: Iterable[int]) -> Iterator[PatchSample]:
        """The draws of these numbers, from which scores and maps are made.

        Random numbers come from the seed, the draw's number and the reference's pixels: a pair has the same draws wherever
        it is scored.
        """
        levels, maps = self._prepare(images)
        pixels = zlib.crc32(np.ascontiguousarray(levels[0][0]))
        for number in numbers:
            yield self._sample(levels, maps, np.random.default_rng([seed, number, pixels]))

    def _prepare(self, images: Images) -> tuple[list[list[np.ndarray]], list[WeightMap]]:
        """Images (K, then scales) and maps (scales), which all draws of an item share."""
        images = _check_images(images, self.patch_size)
        maps = self._maps(images)
        return [pyramid(image, len(maps)) for image in images], maps

    def _sample(self, levels: list[list[np.ndarray]], maps: list[WeightMap], rng: np.random.Generator) -> PatchSample:
        counts, uv, position = self._counts(*maps[0].size), [], []
        draw, draws = draw_stratified if self.stratified else draw_multinomial, 1 if self.aligned else len(levels)
        for weights, count in zip(maps, counts, strict=True):
            if count > 0:
                fitting = weights.fitting(self.patch_size)
                places = [weights.places(draw(fitting, count, rng), self.patch_size, rng) for _ in range(draws)]
                position.append(np.stack(places))
                uv.append(patch_uv(position[-1], *weights.size, self.patch_size, self.uv_anchor))
        uv, position = np.concatenate(uv, axis=1), np.concatenate(position, axis=1)  # (1 or K, N, 2)
        scale = np.repeat(np.arange(len(counts)), counts)
        if self.shuffle:
            order = rng.permutation(self.num_patches)
            uv, position, scale = uv[:, order], position[:, order], scale[order]
        places = np.broadcast_to(position, (len(levels), *position.shape[1:]))
        patches = [cut_patches(image, places[k], scale, self.patch_size) for k, image in enumerate(levels)]
        if self.aligned:
            uv, position = uv[0], position[0]
        else:
            scale = np.tile(scale, (len(levels), 1))
        arrays = (np.stack(patches), uv.astype(np.float32), scale, position)
        return PatchSample(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))

    def probability(self, images: Images, scale: int = 0) -> np.ndarray:
        """Probability that a patch of this scale is centred at a pixel, (h, w) float64, sums to 1; 0 where none fits.

        ValueError if a sample of these images has no such `scale`.
        """
        maps = self._maps(_check_images(images, self.patch_size))
        if scale not in range(len(maps)):
            raise ValueError(f"scale must be an integer from 0 to {len(maps) - 1} for these images, got {scale!r}")
        weights = maps[scale]
        places = weights.of_pixels().fitting(self.patch_size)
        (rows, columns), half = places.shape, self.patch_size // 2
        probability = np.zeros(weights.size)
        probability[half : half + rows, half : half + columns] = places
        return probability / probability.sum()

    def components(self, images: Images) -> dict[str, np.ndarray]:
        """The maps "difference", "centre" and "uniform" before weighting, each (H, W) float32 in [0, 1]."""
        images = _check_images(images, self.patch_size)
        size = images[0].shape[:2]
        shape, block = blocks_of(*size, self.map_pixels)
        maps = {"difference": self._difference(images, shape, block), "centre": self._centre(*shape)}
        maps["uniform"] = np.ones(shape, np.float32)
        return {name: WeightMap(values, size, block).of_pixels().weights for name, values in maps.items()}

    def _counts(self, height: int, width: int) -> np.ndarray:  # finest scale first
        num_scales = effective_scales(height, width, self.patch_size, self.num_scales)
        return patches_per_scale(self.num_patches, num_scales, self.patch_ratio)[::-1]

    def _maps(self, images: list[np.ndarray]) -> list[WeightMap]:
        """A map for each scale, finest first."""
        maps = [self._weights(images)]
        for _ in self._counts(*maps[0].size)[1:]:
            maps.append(maps[-1].pooled())
        return maps

    def _weights(self, images: list[np.ndarray]) -> WeightMap:
        """Weighted mean of the components; those without weight are not computed."""
        size, total = images[0].shape[:2], self.difference + self.centre + self.uniform
        shape, block = blocks_of(*size, self.map_pixels)
        weights = np.full(shape, self.uniform / total, np.float32)
        if self.centre > 0:
            weights += self.centre / total * self._centre(*shape)
        if self.difference > 0:
            weights += self.difference / total * self._difference(images, shape, block)
        return WeightMap(weights, size, block)

    def _difference(self, images: list[np.ndarray], shape: tuple[int, int], block: int) -> np.ndarray:
        reference, *distorted = images
        difference = np.zeros(shape, np.float32)
        for image in distorted:
            difference += block_difference(reference, image, self.difference_metric, block)  # a mean, once rescaled
        sigma = (2 * self.patch_size**2) ** 0.25 if self.smoothing is None else self.smoothing
        if sigma > 0:
            difference = gaussian_filter(difference, sigma / block, mode="nearest")
        peak = difference.max()
        return difference / peak if peak > 0 else difference

    def _centre(self, height: int, width: int) -> np.ndarray:
        if self.centre_map is not None:
            return load_centre(self.centre_map, height, width)
        return gaussian_centre(height, width, self.centre_sigma)


def caps_for(model: "VTAMIQ", caps: CAPS | None = None, **changes: Any) -> CAPS:
    """`caps` with the model's patch size, position convention and (if it embeds scales) number of scales."""
    fitting = {"patch_size": model.encoder.patch_size, "uv_anchor": model.config.uv_anchor}
    if model.config.num_scales > 1:
        fitting["num_scales"] = model.config.num_scales
    return replace(caps or CAPS(), **(fitting | changes))


def regular_grid(images: Images, patch_size: int = 16, uv_anchor: str = "centre") -> PatchSample:
    """All N = (H // P) (W // P) patches of the regular grid, row by row; the rest at the right and bottom is left out."""
    images = _check_images(images, patch_size)
    size = images[0].shape[:2]
    rows, columns = (np.arange(side // patch_size) * patch_size for side in size)
    position = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    scale = np.zeros(len(position), np.int64)
    patches = [cut_patches([image], position, scale, patch_size) for image in images]
    uv = patch_uv(position, *size, patch_size, uv_anchor).astype(np.float32)
    return PatchSample(*(torch.from_numpy(array) for array in (np.stack(patches), uv, scale, position)))


def _check_images(images: Images, patch_size: int) -> list[np.ndarray]:
    """K images as a list, all uint8 RGB, of one size, with room for a patch."""
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise ImageError(f"images must be a uint8 array (K, H, W, 3), got {images.dtype} of shape {images.shape}")
    if not isinstance(images, np.ndarray | Sequence):
        raise ImageError(f"images must be a uint8 array (K, H, W, 3) or a list of arrays, got {type(images).__name__}")
    images = [check_uint8_rgb(image, f"image {k}") for k, image in enumerate(images)]
    if not images:
        raise ImageError("there is no image to sample patches from, the reference at least is needed")
    height, width = images[0].shape[:2]
    for k, image in enumerate(images):
        check_same_size("image 0", images[0], f"image {k}", image)
    if min(height, width) < patch_size:
        raise ImageError(f"an image of {width} x {height} (width x height) is smaller than a patch of {patch_size} px")
    return images
