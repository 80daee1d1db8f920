"""Figures of images: the patches drawn from them, their positions in the network's table, and their scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vtamiq.caps import PatchSample
from vtamiq.images.reading import check_uint8_rgb
from vtamiq.plots.style import (
    PAGE,
    USUAL_DPI,
    add_colour_bar,
    check_images,
    check_length,
    cycle_colours,
    make_bare,
    new_figure,
    picture_panels,
    styled,
    text_width,
    tile,
    usual_columns,
)

MAX_OUTLINES = 500  # more patches than this are told apart without outlines
MAX_NUMBERS = 25  # and more than this without numbers
SHEET_PIXELS = 300_000  # of all pictures on a contact sheet; more would exceed the size limit at the usual resolution


def patch_canvas(image: np.ndarray, sample: PatchSample, *, index: int = 0, scale: int | None = None) -> np.ndarray:
    """Put the patches back in their places, (H, W, 4) uint8: RGB, and alpha 255 where a patch lies and 0 elsewhere.

    Args:
        image: the image that the patches were cut from, (H, W, 3) uint8.
        index: which of the sample's K images.
        scale: only patches of this scale. A pixel of scale s covers 2^s × 2^s pixels; fine scales lie on top.

    Raises:
        ValueError: the patches reach beyond the image, or the sample has no such image.
    """
    check_uint8_rgb(image, "image")
    top_left, _ = _footprints(image, sample, index)
    patches, _, scales = patches_of_image(sample, index)
    canvas = np.zeros((*image.shape[:2], 4), np.uint8)
    for s in sorted(set(scales.tolist()) if scale is None else {scale}, reverse=True):
        chosen = scales == s
        cut = patches[chosen].repeat(2**s, axis=1).repeat(2**s, axis=2)  # (n, side, side, 3)
        rows, columns = top_left[chosen].T[..., None] + np.arange(cut.shape[1])  # (n, side) each
        canvas[rows[:, :, None], columns[:, None, :], :3] = cut
        canvas[rows[:, :, None], columns[:, None, :], 3] = 255
    return canvas


def patch_coverage(image: np.ndarray, sample: PatchSample, *, index: int = 0) -> np.ndarray:
    """Count the patches that see each pixel, (H, W) int; arguments and errors as for `patch_canvas`."""
    top_left, side = _footprints(image, sample, index)
    edges = np.zeros((image.shape[0] + 1, image.shape[1] + 1), np.int64)  # running sums turn corners into squares
    for corner, sign in (((0, 0), 1), ((0, 1), -1), ((1, 0), -1), ((1, 1), 1)):
        np.add.at(edges, tuple((top_left + side * corner).T), sign)
    return edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]


def _footprints(image: np.ndarray, sample: PatchSample, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Top left corners (N, 2) and sides (N, 1) of the patches in pixels of the full image."""
    _, position, scales = patches_of_image(sample, index)
    top_left, side = position * 2 ** scales[:, None], sample.patches.shape[-1] * 2 ** scales[:, None]
    if (top_left + side > image.shape[:2]).any():
        raise ValueError(f"patches reach beyond the image of {image.shape[:2]}: the sample is of another one")
    return top_left, side


def patches_of_image(sample: PatchSample, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches (N, P, P, 3), position (N, 2) and scale (N,) of one image, shared with the others or not."""
    if not 0 <= index < len(sample.patches):
        raise ValueError(f"the sample has {len(sample.patches)} images, index {index} is none of them")
    aligned = sample.scale.ndim == 1
    position, scale = (sample.position, sample.scale) if aligned else (sample.position[index], sample.scale[index])
    return sample.patches[index].permute(0, 2, 3, 1).numpy(), position.numpy(), scale.numpy()


def see_through_patches(image: np.ndarray, sample: PatchSample, **options: int) -> np.ndarray:
    """The patches over a pale ghost of the image, (H, W, 3) uint8; arguments as for `patch_canvas`."""
    canvas = patch_canvas(image, sample, **options)
    ghost = (232 + 0.07 * (image @ np.array([0.299, 0.587, 0.114]))).astype(np.uint8)[..., None]
    return np.where(canvas[..., 3:] > 0, canvas[..., :3], ghost)


def _outline(
    ax: Axes, sample: PatchSample, scale: int, *, index: int = 0, colour: str = "#404040", width: float = 0.4
) -> None:
    """Frame the patches of one scale at their footprint on the full image, if they are few."""
    _, position, scales = patches_of_image(sample, index)
    chosen = position[scales == scale] * 2**scale
    if 0 < len(chosen) <= MAX_OUTLINES:
        side = sample.patches.shape[-1] * 2**scale
        ax.add_collection(_squares(chosen, side, edgecolor=colour, facecolor="none", linewidth=width))


def _squares(top_left: np.ndarray, side: float | np.ndarray, **look: Any) -> PolyCollection:
    """Squares around whole pixels, (n, 2) rows and columns, of one side or of (n, 1, 1); one artist however many."""
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * side - 0.5
    return PolyCollection((top_left[:, None, :] + corners)[..., ::-1], **look)  # vertices (n, 4, 2) as x, y


@styled
def sampling_components(
    images: Sequence[np.ndarray],
    components: Mapping[str, np.ndarray],
    probability: np.ndarray,
    *,
    weights: Mapping[str, float] | None = None,
) -> Figure:
    """Show where CAPS looks and why: both images, the three maps, and the probability that they add up to.

    Args:
        images: reference and distorted, (H, W, 3) uint8; further ones are not shown.
        components: `CAPS.components(images)`, three maps (H, W) in [0, 1].
        probability: `CAPS.probability(images)`, (H, W), shown in multiples of the uniform probability.
        weights: of the components, for their titles.
    """
    reference, distorted, *_ = check_images(images, least=2)
    check_length("components", components, 3)
    for name, values in {**components, "probability": probability}.items():
        if values.shape != reference.shape[:2]:
            raise ValueError(f"map {name!r} must be {reference.shape[:2]} like the images, got {values.shape}")
    figure, axes = picture_panels(6, 3, _aspect(reference))
    axes[0].imshow(reference)
    axes[0].set_title("reference")
    axes[1].imshow(distorted)
    axes[1].set_title("distorted")
    density = axes[2].imshow(probability * probability.size, vmin=0, cmap="magma")
    axes[2].set_title("probability of a patch (1 = uniform)")
    for ax, (name, values) in zip(axes[3:], components.items(), strict=True):
        component = ax.imshow(values, vmin=0, vmax=1)
        ax.set_title(name if weights is None else f"{name}, weight {weights[name]:g}")
    add_colour_bar(density, beside=axes[2])
    add_colour_bar(component, beside=axes[5])
    return figure


@styled
def patch_sampling(image: np.ndarray, samples: Mapping[str, PatchSample], *, columns: int | None = None) -> Figure:
    """Show the image through the drawn patches alone, one panel per sample.

    Args:
        image: (H, W, 3) uint8, the first image of every sample.
        samples: title → sample.
    """
    if not samples:
        raise ValueError("there is no sample to draw")
    figure, axes = picture_panels(len(samples), columns or usual_columns(len(samples)), _aspect(image))
    for ax, (title, sample) in zip(axes, samples.items(), strict=False):
        ax.imshow(see_through_patches(image, sample))
        for scale in sample.scale.unique().tolist():
            _outline(ax, sample, scale)
        ax.set_title(title)
    return figure


@styled
def patch_density(image: np.ndarray, sample: PatchSample) -> Figure:
    """Show a sample so dense that patches hide each other, and how many of them see each pixel."""
    figure, (left, right) = picture_panels(2, 2, _aspect(image))
    left.imshow(see_through_patches(image, sample))
    left.set_title(f"{sample.patches.shape[1]:,} patches")
    counts = right.imshow(patch_coverage(image, sample), vmin=0, cmap="magma")
    right.set_title("patches that see a pixel")
    add_colour_bar(counts, beside=right, ticks=MaxNLocator(5, integer=True))
    return figure


@styled
def patch_sampling_multiscale(image: np.ndarray, sample: PatchSample) -> Figure:
    """Show one panel per scale, patches at their footprint of P·2^s pixels on the full image, and one with all scales.

    There the coarser the scale the thicker its frames, and the finest has none: it would hide the others.
    """
    scales, counts = (part.tolist() for part in sample.scale.unique(return_counts=True))
    side = sample.patches.shape[-1]
    figure, axes = picture_panels(len(scales) + 1, usual_columns(len(scales) + 1), _aspect(image))
    both, colours = axes[len(scales)], cycle_colours(len(scales))
    both.imshow(see_through_patches(image, sample))
    both.set_title(f"all scales: {sum(counts):,} patches")
    for rank, (ax, scale, count, colour) in enumerate(zip(axes, scales, counts, colours, strict=False)):
        ax.imshow(see_through_patches(image, sample, scale=scale))
        ax.set_title(f"scale {scale}: {count:,} patches of {side * 2**scale} px", color=colour)
        _outline(ax, sample, scale, colour=colour)
        if rank:
            _outline(both, sample, scale, colour=colour, width=0.4 * (rank + 1))
    return figure


@styled
def uv_indexing(image: np.ndarray, sample: PatchSample, grid: int) -> Figure:
    """Show how (u, v) picks the row of the position table: patches on the image, and their cells in the regular grid.

    Up to 25 patches are numbered in the order of the sample; more are told apart by the colour of their row.

    Args:
        image: (H, W, 3) uint8, the first image of the sample.
        grid: G, cells per side of the position table (`model.encoder.grid`).
    """
    corners, sides = _footprints(image, sample, 0)
    uv = (sample.uv if sample.uv.ndim == 2 else sample.uv[0]).numpy()
    cell = np.minimum((uv * grid).astype(int), grid - 1) @ (grid, 1)  # (N,), row by row
    numbered = len(uv) <= MAX_NUMBERS
    of_cell = colormaps[rcParams["image.cmap"]](np.linspace(0, 1, grid**2), bytes=True)[:, :3]  # (G·G, 3)
    colours = cycle_colours(len(uv)) if numbered else [to_hex(colour / 255) for colour in of_cell[cell]]
    shade = np.full((grid**2, 3), 250, np.uint8)
    shade[cell] = 210 if numbered else of_cell[cell]

    wide = 1 / _aspect(check_uint8_rgb(image, "image"))
    figure = new_figure(PAGE, (PAGE - 1.0) / (wide + 1) + 0.5)
    left, right = figure.subplots(1, 2, width_ratios=(wide, 1))
    make_bare(left)
    make_bare(right)
    left.imshow(255 - (255 - image) // 2)
    faces = [f"{colour}{'59' if numbered else '8C'}" for colour in colours]
    look = {"edgecolor": colours, "facecolor": faces, "linewidth": 1 if numbered else 0.3}
    squares = left.add_collection(_squares(corners, sides[:, None], **look))
    _draw_table(right, shade.reshape(grid, grid, 3))
    if numbered:
        squares.set_path_effects([withStroke(linewidth=2.6, foreground="white")])  # seen on grounds of their colour
        right.scatter(uv[:, 1], uv[:, 0], s=12, c=colours, zorder=3, clip_on=False)
        colours = [to_hex(np.multiply(to_rgb(colour), 0.68)) for colour in colours]  # yellow text is hard to read
        for n, (row, colour) in enumerate(zip(1 + cell, colours, strict=True)):
            height = 0.02 + 0.07 * min(1, 14 / len(uv)) * n
            right.text(1.04, height, f"{n + 1}: row {row}", size=7, color=colour, va="top")
        _number_points(left, corners + sides / 2, sides[:, 0] / 2, colours)
        _number_points(right, uv, np.full(len(uv), 0.012), colours)
        left.set_title("patches at any place of the image")
        right.set_title(f"row 1 + {grid}⌊{grid}u⌋ + ⌊{grid}v⌋ of the table")
    else:
        left.set_title(f"{len(uv):,} patches")
        right.set_title(f"they pick {len(set(cell.tolist())):,} of {grid**2:,} rows of the position table")
    return figure


def _draw_table(ax: Axes, shade: np.ndarray) -> None:
    """The cells of the position table over (v, u), with their rows' numbers where they are few."""
    grid = len(shade)
    ax.imshow(shade, extent=(0, 1, 1, 0), interpolation="nearest")
    lines = np.arange(grid + 1) / grid
    ax.hlines(lines, 0, 1, color="#C8C8C8", linewidth=0.4)
    ax.vlines(lines, 0, 1, color="#C8C8C8", linewidth=0.4)
    ax.set(xlabel="v →", ylabel="← u")
    for k in range(grid**2 if grid <= 10 else 0):
        at = (k % grid + 0.95) / grid, (k // grid + 0.95) / grid
        ax.text(*at, k + 1, size=7, color="#777777", ha="right", va="bottom")


def _number_points(ax: Axes, points: np.ndarray, offsets: np.ndarray, colours: Sequence[str]) -> None:
    """A number beside each point (row, column): right of it, or left of it near the right edge."""
    middle = sum(ax.get_xlim()) / 2
    halo = [withStroke(linewidth=1.8, foreground="white")]
    for n, ((y, x), offset, colour) in enumerate(zip(points, offsets, colours, strict=True), 1):
        side = 1 if x < 1.5 * middle else -1
        look = {"size": 7, "weight": "bold", "color": colour, "va": "center", "zorder": 4, "path_effects": halo}
        shift = {"xytext": (2 * side, 0), "textcoords": "offset points", "ha": "left" if side > 0 else "right"}
        ax.annotate(str(n), (x + side * offset, y), **shift, **look)


@styled
def pair_scores(
    images: Sequence[np.ndarray],
    scores: Sequence[float],
    *,
    titles: Sequence[str] | None = None,
    errors: Sequence[float] | None = None,
    columns: int | None = None,
) -> Figure:
    """Show a reference and distorted images of it, with the predicted score q below each.

    Args:
        images: K images (H, W, 3) uint8, the reference first.
        scores: K−1 of them, or K with that of the reference compared with itself.
        titles: of the K images; default "reference", "distorted 1" and so on.
        errors: standard errors of the scores.
    """
    images = check_images(images, least=2)
    return _scored(images, scores, titles, errors, columns or min(5, len(images)))


@styled
def seen_patches(
    images: Sequence[np.ndarray], sample: PatchSample, scores: Sequence[float], *, titles: Sequence[str] | None = None
) -> Figure:
    """Show what the network sees of every image: its own patches alone, at the same places in all or not.

    Args:
        images: K images (H, W, 3) uint8 that the sample was drawn from, the reference first.
        scores, titles: as for `pair_scores`.

    Raises:
        ValueError: the sample has another number of images, or patches beyond them, or a list has another length.
    """
    images = check_images(images)
    check_length("images", images, len(sample.patches))
    seen = [see_through_patches(image, sample, index=k) for k, image in enumerate(images)]
    figure = _scored(seen, scores, titles, None, usual_columns(len(images)))
    for k, ax in enumerate(figure.axes[: len(images)]):
        for scale in sample.scale.unique().tolist():
            _outline(ax, sample, scale, index=k)
    return figure


def _scored(
    images: Sequence[np.ndarray],
    scores: Sequence[float],
    titles: Sequence[str] | None,
    errors: Sequence[float] | None,
    columns: int,
) -> Figure:
    """Images with a title above and, where there is one, a score below; the reference may go without."""
    count = len(images)
    if len(scores) not in (count - 1, count):
        raise ValueError(f"{count} images need {count - 1} or {count} scores, got {len(scores)}")
    texts = [f"q = {q:.3f}" for q in scores]
    if errors is not None:
        check_length("errors", errors, len(texts))
        texts = [f"{text} ± {error:.3f}" for text, error in zip(texts, errors, strict=True)]
    texts = [""] * (count - len(texts)) + texts
    titles = titles or ["reference", *(f"distorted {k}" for k in range(1, count))]
    check_length("titles", titles, count)
    figure, axes = picture_panels(count, columns, _aspect(images[0]), captions=0.4)
    for ax, image, title, text in zip(axes, images, titles, texts, strict=False):
        ax.imshow(image)
        ax.set(title=title, xlabel=text)
    return figure


@styled
def contact_sheet(
    cells: Sequence[Sequence[np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    reference: np.ndarray | None = None,
    crop: int | None = None,
    blocks: int = 1,
    title: str | None = None,
) -> Figure:
    """Show a table of pictures, such as distortions × levels.

    Pictures are averaged down to keep the file small; a small crop shows fine distortions whole.

    Args:
        cells: rows of images (H, W, 3) uint8 of one size.
        rows, columns: names of the rows (at the left) and columns (at the top).
        reference: image (H, W, 3) uint8 to compare with, shown as the first column.
        crop: side in pixels of the central square that is shown instead of the whole picture.
        blocks: parts that stand side by side, for a table of many rows.

    Raises:
        ValueError: names and cells, or the sizes of the images, differ, or the crop does not fit.
    """
    check_length("rows of cells", cells, len(rows))
    for name, row in zip(rows, cells, strict=True):
        check_length(f"images of row {name!r}", row, len(columns))
    if reference is not None:
        columns, cells = ["ref.", *columns], [[reference, *row] for row in cells]
    images = check_images([image for row in cells for image in row])
    if len({image.shape for image in images}) != 1:
        raise ValueError(f"the images of a contact sheet have one size, got {sorted({i.shape for i in images})}")
    per_block = -(-len(rows) // blocks)
    parts = [slice(k, k + per_block) for k in range(0, len(rows), per_block)]
    margin = max(text_width(name, rcParams["ytick.labelsize"]) for name in rows) + 0.1
    inches = (PAGE / len(parts) - margin) / len(columns)
    images = _shrink(images if crop is None else [_cut_centre(image, crop) for image in images], inches)

    table = np.stack(images).reshape(len(rows), len(columns), *images[0].shape)
    gap = max(1, table.shape[3] // 25)
    pitch = np.array(table.shape[2:4]) + gap
    figure = new_figure(PAGE, per_block * pitch[0] * inches / pitch[1] + 0.28, title)
    for ax, part in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        sheet = tile(table[part], gap)
        sheet = np.pad(sheet, ((0, per_block * pitch[0] - len(sheet)), (0, 0), (0, 0)), constant_values=255)
        ax.imshow(sheet, interpolation="nearest")  # smooth enlargement would need four times the bytes
        make_bare(ax)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_xticks((np.arange(len(columns)) + 0.5) * pitch[1] - 0.5, labels=columns)
        ax.set_yticks((np.arange(len(rows[part])) + 0.5) * pitch[0] - 0.5, labels=rows[part])
    return figure


def _shrink(images: Sequence[np.ndarray], inches: float) -> Sequence[np.ndarray]:
    """Average images down to a width of `inches` at the usual resolution, or less to keep all below `SHEET_PIXELS`."""
    height, side = images[0].shape[:2]
    wide = int(min(USUAL_DPI * inches, math.sqrt(SHEET_PIXELS / len(images) * side / height)))
    if wide >= side:
        return images
    size = wide, max(1, round(wide * height / side))
    return [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.HAMMING)) for image in images]


def _cut_centre(image: np.ndarray, side: int) -> np.ndarray:
    if not 1 <= side <= min(image.shape[:2]):
        raise ValueError(f"crop must be from 1 to {min(image.shape[:2])} pixels, got {side}")
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _aspect(image: np.ndarray) -> float:
    return image.shape[0] / image.shape[1]
