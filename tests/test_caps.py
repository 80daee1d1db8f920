"""CAPS: places agree with the reference vectors, densities with the map, patches with the images."""

import tracemalloc
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import chi2
from skimage.metrics import structural_similarity

from vtamiq.caps import (
    CAPS,
    DIFFERENCE_METRICS,
    PatchSample,
    WeightMap,
    block_difference,
    blocks_of,
    cut_patches,
    difference_map,
    draw_multinomial,
    draw_stratified,
    effective_scales,
    gaussian_centre,
    patch_uv,
    patches_per_scale,
    pool,
    pyramid,
    regular_grid,
)
from vtamiq.images.reading import ImageError

DATA = Path(__file__).parent / "data"


def noise(height, width, num_images=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)


def local_pair(height=40, width=52):
    """A smooth reference and a copy that differs strongly in one corner, weakly elsewhere."""
    row, column = np.mgrid[:height, :width]
    reference = np.stack([row * 3, column * 2, row + column], axis=-1).astype(np.uint8)
    distorted = reference + np.uint8(4)
    distorted[5:15, 8:20] += 90
    return np.stack([reference, distorted])


# ---- reference vectors: scales, positions, patches, difference ------------------------------------------------------


def test_scales_and_their_patches_equal_reference():
    vectors = np.load(DATA / "patches_per_scale.npz")
    for (count, scales, ratio), expected in zip(vectors["query"], vectors["counts_coarse_to_fine"], strict=True):
        counts = patches_per_scale(int(count), int(scales), ratio)
        assert counts.tolist() == expected[: int(scales)].tolist(), (count, scales, ratio)
        assert counts.sum() == count
    for (wanted, height, width, patch), expected in zip(
        vectors["scales_query"].tolist(), vectors["scales_effective"].tolist(), strict=True
    ):
        assert effective_scales(height, width, patch, wanted) == expected, (wanted, height, width, patch)


def test_extraction_equals_reference():
    vectors = np.load(DATA / "patch_extraction.npz")
    top_left = [vectors[f"top_left_scale{scale}"].T for scale in range(3)]
    position, scale = (
        np.concatenate(top_left).astype(int),
        np.repeat(np.arange(3), [len(places) for places in top_left]),
    )
    for k, image in enumerate((vectors["img_ref"], vectors["img_dist"])):
        levels = pyramid(image, 3)
        for s, level in enumerate(levels):
            assert level.shape[:2] == tuple(vectors[f"size_scale{s}"])
        patches = cut_patches(levels, position, scale, 16)
        assert patches.dtype == np.uint8
        expected = vectors["patches"][k]  # (value / 255 - 0.5) / 0.5, means of pixels not rounded
        normalised = (patches.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
        np.testing.assert_array_equal(normalised[scale == 0], expected[scale == 0])
        np.testing.assert_allclose(patches, (expected + 1) * 127.5, rtol=0, atol=0.5 + 1e-4)
        uv = [patch_uv(top_left[s], *level.shape[:2], 16) for s, level in enumerate(levels)]
        np.testing.assert_allclose(np.concatenate(uv), vectors["pos"][k], atol=1e-7)
        assert scale.tolist() == vectors["scales"][k].tolist()


def test_absolute_difference_equals_reference():
    vectors = np.load(DATA / "patch_extraction.npz")
    difference = difference_map(vectors["img_ref"], vectors["img_dist"], "absolute")
    np.testing.assert_allclose(difference, vectors["diff_map"], atol=1e-6)


# ---- scales and places by hand ---------------------------------------------------------------------------------------


def test_pool_means_blocks_and_drops_the_odd_border():
    image = np.array([[0, 255, 9], [255, 255, 9], [9, 9, 9]], dtype=np.uint8)
    pooled = pool(image)
    assert pooled.dtype == np.float32
    assert pooled.tolist() == [[191.25]]
    assert pool(image.astype(np.float64)).dtype == np.float64


def test_uv_by_hand():
    top_left = np.array([[0, 0], [32, 48], [16, 8]])
    centre = patch_uv(top_left, 48, 64, 16)
    np.testing.assert_allclose(centre, [[8 / 40, 8 / 56], [1 - 1e-6, 1 - 1e-6], [24 / 40, 16 / 56]])
    corner = patch_uv(top_left, 48, 64, 16, "corner")
    relative = 2 * top_left / np.array([32, 48]) - 1  # the convention of 2021: [-1, 1]
    np.testing.assert_allclose(corner, (relative + 1) / (2 + 1e-6), atol=1e-6)
    assert corner.max() < 1
    assert patch_uv(np.zeros((1, 2)), 16, 16, 16, "corner").tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="'middle'"):
        patch_uv(top_left, 48, 64, 16, "middle")


# ---- maps ------------------------------------------------------------------------------------------------------------


def test_difference_of_flat_images_in_closed_form():
    bright, dark = np.full((12, 9, 3), 250, np.uint8), np.full((12, 9, 3), 5, np.uint8)  # 5 - 250 wraps to 11 in uint8
    c1 = (0.01 * 255) ** 2
    similarity = (2 * 250 * 5 + c1) / (250**2 + 5**2 + c1)
    expected = {"mse": (245 / 255) ** 2, "absolute": 3**0.5 * 245 / 255, "ssim": 1 - similarity}
    for metric, value in expected.items():
        np.testing.assert_allclose(difference_map(bright, dark, metric), value, rtol=1e-4)
        np.testing.assert_allclose(difference_map(dark, bright, metric), value, rtol=1e-4)
        assert not difference_map(dark, dark, metric).any()
    with pytest.raises(ValueError, match="'psnr'"):
        difference_map(bright, dark, "psnr")


def test_ssim_difference_equals_scikit_image():
    reference, distorted = noise(20, 24)
    expected = structural_similarity(
        reference, distorted, win_size=7, channel_axis=-1, data_range=255, use_sample_covariance=False, full=True
    )[1]
    np.testing.assert_allclose(difference_map(reference, distorted, "ssim"), 1 - expected.mean(axis=-1), atol=1e-4)


def test_gaussian_centre_by_hand():
    centre = gaussian_centre(4, 5, 0.5)
    assert centre.shape == (4, 5)
    np.testing.assert_allclose(centre[1:3, 2], 1, rtol=1e-6)  # the two middle rows share the peak
    np.testing.assert_allclose(centre[0, 2], np.exp(-0.5 * (0.75**2 - 0.25**2) / 0.5**2), rtol=1e-6)
    np.testing.assert_allclose(centre[1, 0], np.exp(-0.5 * 0.8**2 / 0.5**2), rtol=1e-6)
    np.testing.assert_array_equal(centre, centre[::-1, ::-1])


def test_difference_is_averaged_smoothed_and_rescaled():
    images = noise(30, 34, num_images=3)
    mean = (difference_map(images[0], images[1]) + difference_map(images[0], images[2])) / 2
    for smoothing, sigma in ((None, (2 * 8**2) ** 0.25), (2.0, 2.0)):
        smoothed = gaussian_filter(mean.astype(np.float64), sigma, mode="nearest")
        components = CAPS(patch_size=8, smoothing=smoothing).components(images)
        np.testing.assert_allclose(components["difference"], smoothed / smoothed.max(), atol=1e-5)
    components = CAPS(patch_size=8, smoothing=0).components(images)
    np.testing.assert_allclose(components["difference"], mean / mean.max(), atol=1e-6)


@pytest.mark.parametrize("metric", ["mse", "absolute", "ssim"])
def test_components_without_a_difference(metric):
    sampler = CAPS(patch_size=4, difference_metric=metric)
    grey = np.full((1, 9, 11, 3), 128, np.uint8)
    for images in (grey, np.repeat(grey, 2, axis=0), np.repeat(noise(9, 11, 1), 3, axis=0)):  # also the reference alone
        components = sampler.components(images)
        assert list(components) == ["difference", "centre", "uniform"]
        assert not components["difference"].any()
        assert (components["uniform"] == 1).all()
        assert all(x.shape == (9, 11) and x.min() >= 0 and x.max() <= 1 for x in components.values())
    shifted = np.concatenate([grey, grey + np.uint8(9)])
    np.testing.assert_allclose(sampler.components(shifted)["difference"], 1, rtol=1e-5)


def test_centre_map_is_resized_to_nearest_and_exponentiated(tmp_path):
    path = tmp_path / "centre.npy"
    np.save(path, np.log([[1.0, 2.0], [0.5, 4.0]]))
    sampler = CAPS(num_patches=5, patch_size=1, centre_map=str(path), difference=0, uniform=0)
    expected = np.repeat(np.repeat([[0.25, 0.5], [0.125, 1.0]], 2, axis=0), 3, axis=1)
    np.testing.assert_allclose(sampler.components(noise(4, 6))["centre"], expected, rtol=1e-6)
    np.testing.assert_allclose(sampler.probability(noise(4, 6)), expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (np.zeros(5), r"2-D floats, got float64 \(5,\)"),
        (np.zeros((2, 2), int), "2-D floats, got int64"),
        (np.array([[0.0, np.nan]]), "maximum is nan"),
        (np.array([[0.0, np.inf]]), "maximum is inf"),
        (np.full((2, 2), -np.inf), "maximum is -inf"),
        (np.array([[{}]]), "cannot be read"),  # pickled
    ],
)
def test_bad_centre_maps_are_refused(tmp_path, content, message):
    path = tmp_path / "centre.npy"
    if content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        CAPS(centre_map=str(path))(noise(20, 20), seed=0)


def test_probability_is_the_weighted_mean_where_a_patch_fits():
    images, patch = noise(21, 26), 6
    sampler = CAPS(patch_size=patch, difference=3, centre=2, uniform=0.5)
    maps = sampler.components(images)
    mean = (3 * maps["difference"] + 2 * maps["centre"] + 0.5 * maps["uniform"]) / 5.5
    expected = np.zeros((21, 26))
    for y in range(21 - patch + 1):
        for x in range(26 - patch + 1):
            expected[y + 3, x + 3] = mean[y + 3, x + 3]
    probability = sampler.probability(images)
    assert probability.dtype == np.float64
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(probability, expected / expected.sum(), rtol=1e-5)


def test_the_map_of_2021():
    images = local_pair()
    caps = CAPS.paper_2021(num_patches=9, patch_size=8)
    assert (caps.stratified, caps.uv_anchor, caps.num_patches) == (False, "corner", 9)
    squared = np.square(images[0] / 255.0 - images[1] / 255.0).sum(axis=-1)
    blurred = gaussian_filter(squared, (2 * 8**2) ** 0.25, mode="nearest")
    centre = gaussian_centre(*squared.shape, caps.centre_sigma)
    expected = (5 * blurred / blurred.max() + 2 * centre + 0.25)[4:-3, 4:-3]  # where a patch of 8 is centred
    np.testing.assert_allclose(caps.probability(images)[4:-3, 4:-3], expected / expected.sum(), rtol=1e-4)


def test_probability_of_a_coarser_scale_is_the_pooled_mean():
    images = noise(61, 80)
    sampler = CAPS(patch_size=7, num_scales=2)
    maps = sampler.components(images)
    mean = maps["difference"] + 0.5 * maps["centre"] + 0.25 * maps["uniform"]
    pooled = mean[:60].reshape(30, 2, 40, 2).mean(axis=(1, 3))
    pooled[:3], pooled[-3:], pooled[:, :3], pooled[:, -3:] = 0, 0, 0, 0
    np.testing.assert_allclose(sampler.probability(images, scale=1), pooled / pooled.sum(), rtol=1e-4)
    for scale in (2, -1, 0.5):
        with pytest.raises(ValueError, match=f"from 0 to 1 for these images, got {scale}"):
            sampler.probability(images, scale)


def test_no_weight_anywhere_falls_back_to_uniform():
    identical = np.repeat(noise(12, 13, 1), 2, axis=0)
    sampler = CAPS(num_patches=40, patch_size=4, difference=1, centre=0, uniform=0)
    probability = sampler.probability(identical)
    assert np.unique(probability).tolist() == [0, pytest.approx(1 / (9 * 10))]
    assert sampler(identical, seed=0).patches.shape == (2, 40, 3, 4, 4)
    only_a_corner = identical.copy()
    only_a_corner[1, 0, 0] ^= 255  # no patch can be centred here
    unsmoothed = CAPS(num_patches=40, patch_size=4, difference=1, centre=0, uniform=0, smoothing=0)
    np.testing.assert_array_equal(unsmoothed.probability(only_a_corner), probability)


# ---- densities -------------------------------------------------------------------------------------------------------


def assert_density(sampler, images, seeds):
    """χ² of where patches are centred against the map, scale by scale. Stratified draws scatter less than the χ²
    distribution says, so that only the upper tail speaks against them."""
    half = sampler.patch_size // 2
    samples = [sampler(images, seed) for seed in range(seeds)]
    scale = torch.cat([sample.scale for sample in samples]).numpy()
    centre = torch.cat([sample.position for sample in samples]).numpy() + half
    for s in range(scale.max() + 1):
        probability = sampler.probability(images, s)
        observed = np.zeros(probability.shape)
        np.add.at(observed, tuple(centre[scale == s].T), 1)
        expected = probability * observed.sum()
        assert not observed[expected == 0].any()
        fits = expected > 0
        assert expected[fits].min() > 5
        statistic = ((observed - expected)[fits] ** 2 / expected[fits]).sum()
        assert statistic < chi2.isf(1e-4, fits.sum() - 1)
        if not sampler.stratified:
            assert statistic > chi2.ppf(1e-4, fits.sum() - 1)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(("num_patches", "seeds"), [(50, 2000), (1000, 100)])
def test_density_equals_the_map(stratified, num_patches, seeds):
    sampler = CAPS(num_patches=num_patches, patch_size=9, stratified=stratified, smoothing=1.0)
    assert_density(sampler, local_pair(), seeds)


@pytest.mark.parametrize("stratified", [True, False])
def test_density_equals_the_map_at_every_scale(stratified):
    sampler = CAPS(num_patches=300, patch_size=5, num_scales=3, patch_ratio=1.0, stratified=stratified)
    assert effective_scales(40, 52, 5, 3) == 2
    assert_density(sampler, local_pair(), 500)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("map_pixels", [1, 40, 600])  # blocks of 64, 8 and 2 pixels
def test_density_equals_the_map_of_blocks_at_every_scale(stratified, map_pixels):
    options = {"num_patches": 300, "patch_size": 5, "num_scales": 2, "patch_ratio": 1.0, "map_pixels": map_pixels}
    assert_density(CAPS(stratified=stratified, **options), local_pair(41, 51), 500)


def test_a_constant_map_of_blocks_is_uniform_over_all_places():
    images = noise(21, 30, 1)
    sampler = CAPS(num_patches=200, patch_size=6, difference=0, centre=0, map_pixels=30)  # centres in parts of blocks
    np.testing.assert_allclose(sampler.probability(images)[3:-2, 3:-2], 1 / (16 * 25), rtol=1e-12)
    assert_density(sampler, images, 200)


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_every_place_is_drawn_as_often_as_its_weight_says(count):
    """Place by place, against the scatter that the draws themselves show: χ² would not notice a small bias of draws that
    scatter less than independent ones."""
    rng = np.random.default_rng(count)
    weights = rng.random((5, 7)) ** 2
    expected = count * weights / weights.sum()

    def largest_deviation(drawn_from):
        counts = np.zeros((4000 if count > 1 else 20_000, weights.size))
        for row in counts:
            r, c = draw_stratified(drawn_from, count, rng).T
            np.add.at(row, r * 7 + c, 1)
        error = np.maximum(counts.std(axis=0, ddof=1), 1e-2) / np.sqrt(len(counts))
        return np.abs((counts.mean(axis=0) - expected.ravel()) / error).max()

    assert largest_deviation(weights) < 5
    assert largest_deviation(weights**0.8) > 5  # the test would see it


def test_stratified_counts_scatter_less():
    """The number of patches in a block varies less between seeds than it does for independent draws."""
    images = local_pair()

    def variance(stratified):
        sampler = CAPS(num_patches=100, patch_size=8, stratified=stratified)
        positions = np.stack([sampler(images, seed).position.numpy() for seed in range(200)])  # (seeds, N, 2)
        blocks = positions // 11  # 3 x 5 blocks
        return np.var([np.bincount(r * 5 + c, minlength=15) for r, c in blocks.transpose(0, 2, 1)], axis=0).mean()

    assert variance(stratified=True) < 0.4 * variance(stratified=False)


def cell_side(rows, columns, count):
    """As many cells as draws, about."""
    return int(np.clip(round(np.sqrt(rows * columns / count)), 1, max(rows, columns)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    count=st.integers(1, 300),
    sharpness=st.floats(0, 12),
    seed=st.integers(0, 2**32),
)
def test_cells_get_floor_or_ceiling_of_their_share(rows, columns, count, sharpness, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((rows, columns)) ** sharpness
    weights[rng.random((rows, columns)) < 0.3] = 0
    weights[rng.integers(rows), rng.integers(columns)] = 1
    places = draw_stratified(weights, count, rng)
    assert places.shape == (count, 2)
    assert (weights[tuple(places.T)] > 0).all()

    side = cell_side(rows, columns, count)
    cells = -(-rows // side), -(-columns // side)
    cell_of_pixel = np.ravel_multi_index(np.mgrid[:rows, :columns] // side, cells)
    expected = count * np.bincount(cell_of_pixel.ravel(), weights.ravel() / weights.sum(), np.prod(cells))
    observed = np.bincount(cell_of_pixel[tuple(places.T)], minlength=np.prod(cells))
    assert (observed >= np.floor(expected - 1e-9)).all()
    assert (observed <= np.ceil(expected + 1e-9)).all()


def test_a_cell_is_stratified_too():
    rng = np.random.default_rng(0)
    everywhere = draw_stratified(np.ones((6, 7)), 42, rng)
    assert sorted(map(tuple, everywhere.tolist())) == [(r, c) for r in range(6) for c in range(7)]
    assert cell_side(16, 16, 16) == 4
    one_cell = np.zeros((16, 16))
    one_cell[4:8, 8:12] = 0.3
    places = draw_stratified(one_cell, 16, rng)  # 16 draws for 16 pixels of equal weight
    assert sorted(map(tuple, places.tolist())) == [(r, c) for r in range(4, 8) for c in range(8, 12)]


class Constant:
    """A generator that always draws the same number."""

    def __init__(self, value):
        self.value = value

    def random(self, count=None):
        return self.value if count is None else np.full(count, self.value)


@pytest.mark.parametrize("extreme", [0.0, np.nextafter(1, 0)])
@pytest.mark.parametrize("draw", [draw_multinomial, draw_stratified])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_places_without_weight_are_never_drawn(draw, count, extreme):
    weights = np.zeros((6, 7))
    weights[2:4, 3:5] = 0.1, 0.7
    places = draw(weights, count, Constant(extreme))
    assert places.shape == (count, 2)
    assert (weights[tuple(places.T)] > 0).all()


def test_patches_prefer_where_the_images_differ():
    images = local_pair(64, 64)
    position = CAPS(num_patches=200, patch_size=8, difference=1, centre=0, uniform=0)(images, seed=0).position + 4
    inside = (position >= torch.tensor([5, 8])).all(1) & (position < torch.tensor([15, 20])).all(1)
    assert inside.float().mean() > 0.6  # 3% of the area; the rest is the tail of the Gaussian


# ---- one weight per block of pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "most", "side"),
    [
        (1024, 2048, 2**21, 1),
        (1024, 2049, 2**21, 2),
        (2160, 3840, 2**21, 2),
        (3000, 4000, 2**21, 4),
        (5, 7, 6, 4),
        (3, 9, 1, 16),
    ],
)
def test_side_of_the_blocks(height, width, most, side):
    assert blocks_of(height, width, most) == ((-(-height // side), -(-width // side)), side)


@pytest.mark.parametrize("metric", DIFFERENCE_METRICS)
@pytest.mark.parametrize("block", [1, 2, 8, 64])
@pytest.mark.parametrize("size", [(64, 40), (33, 70), (101, 9), (6, 131)])  # whole strips, a low one, parts of blocks
def test_difference_of_blocks_is_the_mean_of_their_pixels(size, block, metric):
    reference, distorted = noise(*size)
    difference = difference_map(reference, reference // 2 + distorted // 4, metric)
    padded = np.pad(difference, [(0, -side % block) for side in size], mode="edge")
    height, width = (side // block for side in padded.shape)
    expected = padded.reshape(height, block, width, block).mean(axis=(1, 3))
    found = block_difference(reference, reference // 2 + distorted // 4, metric, block)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(9, 60), st.integers(9, 60)),
    patch_size=st.integers(1, 9),
    block=st.sampled_from([2, 4, 8, 64]),
    seed=st.integers(0, 1000),
)
def test_every_place_belongs_to_the_block_of_its_centre(size, patch_size, block, seed):
    rng = np.random.default_rng(seed)
    height, width = size
    blocks = rng.integers(1, 9, (-(-height // block), -(-width // block))).astype(np.float32)
    weights = WeightMap(blocks, size, block)
    rows, columns = (np.arange(side - patch_size + 1) + patch_size // 2 for side in size)  # centres of patches that fit
    of_places = blocks[np.ix_(rows // block, columns // block)]
    np.testing.assert_array_equal(weights.of_pixels().fitting(patch_size), of_places)

    fitting = weights.fitting(patch_size)
    first = patch_size // 2 // block
    expected = np.zeros_like(blocks)
    np.add.at(expected, tuple(np.meshgrid(rows // block, columns // block, indexing="ij")), of_places)
    np.testing.assert_array_equal(fitting, expected[first:, first:][: fitting.shape[0], : fitting.shape[1]])
    assert fitting.sum() == expected.sum()

    entries = np.argwhere(fitting).repeat(4, axis=0)
    centres = weights.places(entries, patch_size, rng) + patch_size // 2
    np.testing.assert_array_equal(centres // block, entries + first)
    assert ((centres >= patch_size // 2) & (centres < np.array(size) - patch_size + 1 + patch_size // 2)).all()


@pytest.mark.parametrize("size", [(64, 48), (45, 51)])
def test_blocks_of_a_coarser_scale_are_its_pixels_weights(size):
    blocks = np.random.default_rng(0).random([-(-side // 8) for side in size], dtype=np.float32)
    weights = WeightMap(blocks, size, block=8)
    pixels = weights.of_pixels()
    for _ in range(4):
        weights, pixels = weights.pooled(), pixels.pooled()
        assert weights.size == pixels.size == pixels.weights.shape
        np.testing.assert_allclose(weights.of_pixels().weights, pixels.weights, rtol=1e-6)


def test_all_pixels_of_a_block_are_drawn():
    weights = WeightMap(np.ones((3, 4), np.float32), (10, 15), block=4)
    entries = np.zeros((500, 2), int)  # the block of the first centres, (2, 2) to (3, 3)
    drawn = weights.places(entries, 4, np.random.default_rng(0))
    assert {tuple(place) for place in drawn.tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("options", [{}, {"num_scales": 3, "aligned": False, "shuffle": True}, {"stratified": False}])
def test_an_image_within_the_bound_has_a_weight_for_each_pixel(options):
    images = local_pair(60, 70)
    unbounded, exactly, below = (CAPS(64, 8, map_pixels=n, **options) for n in (10**12, 60 * 70, 60 * 70 - 1))
    assert torch.equal(unbounded(images, 0).position, exactly(images, 0).position)
    assert not torch.equal(unbounded(images, 0).position, below(images, 0).position)
    assert (unbounded.probability(images) == exactly.probability(images)).all()
    assert (unbounded.probability(images) != below.probability(images)).any()


def test_places_of_small_images_are_those_of_every_version():
    """Scores that were published stay what they were: the map of pixels, its draw and the order of random numbers."""
    sample = CAPS(num_patches=8, patch_size=8)(local_pair(), seed=7)
    assert sample.position.tolist() == [[6, 5], [11, 0], [3, 14], [5, 41], [25, 29], [14, 14], [24, 13], [31, 1]]
    several = CAPS(num_patches=6, patch_size=5, num_scales=2, stratified=False, aligned=False)(local_pair(), seed=7)
    assert several.position.tolist() == [
        [[19, 38], [30, 21], [25, 13], [8, 0], [11, 13], [6, 8]],
        [[10, 0], [29, 17], [0, 12], [27, 3], [4, 4], [3, 19]],
    ]


def test_the_map_of_blocks_is_nearly_that_of_pixels():
    images = np.repeat(local_pair(300, 400)[:1], 2, axis=0)
    images[1, 100:120, 250:270] += 60
    sampler = CAPS(num_patches=100)
    exact = sampler.probability(images)
    for block, moved in {2: 0.002, 4: 0.005, 8: 0.01}.items():
        coarse = replace(sampler, map_pixels=-(-300 // block) * -(-400 // block)).probability(images)
        assert 0 < abs(coarse - exact).sum() / 2 < moved
        spot = np.s_[80:140, 230:290]
        assert coarse[spot].sum() == pytest.approx(exact[spot].sum(), rel=0.02)


def test_components_of_blocks_have_one_value_in_each():
    images = local_pair(43, 50)
    maps = CAPS(patch_size=8, map_pixels=150).components(images)  # blocks of 4 x 4
    for values in maps.values():
        assert values.shape == (43, 50)
        np.testing.assert_array_equal(values, values[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)[:43, :50])
    assert maps["difference"].max() == maps["centre"].max() == 1


@pytest.mark.parametrize("metric", ["mse", "absolute"])
@pytest.mark.parametrize("spot", [(1234, 567), (0, 0), (2000, 1502)])  # the last one in a part of a block
def test_a_tiny_difference_in_a_huge_picture_is_found_with_little_memory(spot, metric):
    images = np.zeros((2, 2001, 1503, 3), np.uint8)
    images[(1, *spot)] = 200
    sampler = CAPS(num_patches=100, difference=1, centre=0, uniform=0, difference_metric=metric)
    assert blocks_of(2001, 1503, sampler.map_pixels)[1] == 8
    tracemalloc.start()
    position = sampler(images, seed=0).position.numpy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nearest = np.clip(np.array(spot) - 8, 0, [2001 - 16, 1503 - 16])
    assert np.abs(position - nearest).max() <= 4 * 4.76 + 8  # the reach of the Gaussian, and a block
    assert peak < 8 * images[0, ..., 0].size  # bytes; a map of pixels takes three times as much


# ---- the sample ------------------------------------------------------------------------------------------------------


def reference_level(image, scale):
    """Image pooled `scale` times in one step, rounded to uint8: independent of `pool`."""
    block = 2**scale
    height, width = image.shape[0] // block, image.shape[1] // block
    blocks = image[: height * block, : width * block].reshape(height, block, width, block, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(9, 70), st.integers(9, 70)),
    patch_size=st.integers(1, 9),
    num_images=st.integers(1, 3),
    num_patches=st.integers(1, 60),
    num_scales=st.integers(1, 5),
    stratified=st.booleans(),
    aligned=st.booleans(),
    shuffle=st.booleans(),
    map_pixels=st.sampled_from([1, 30, 500, 2**21]),
    seed=st.integers(0, 1000),
)
def test_patches_are_the_image_at_their_position(
    size, patch_size, num_images, num_patches, num_scales, stratified, aligned, shuffle, map_pixels, seed
):
    images = noise(*size, num_images, seed)
    drawn = {"stratified": stratified, "aligned": aligned, "shuffle": shuffle, "map_pixels": map_pixels}
    sampler = CAPS(num_patches, patch_size, num_scales, smoothing=1.0, **drawn)
    sample = sampler(images, seed)
    leading = () if aligned else (num_images,)
    assert sample.patches.shape == (num_images, num_patches, 3, patch_size, patch_size)
    assert sample.patches.dtype == torch.uint8
    assert sample.uv.shape == (*leading, num_patches, 2)
    assert sample.uv.dtype == torch.float32
    assert sample.uv.min() >= 0
    assert sample.uv.max() < 1
    assert sample.scale.shape == (*leading, num_patches)
    assert sample.position.shape == (*leading, num_patches, 2)
    assert sample.scale.dtype == sample.position.dtype == torch.int64

    scales = effective_scales(*size, patch_size, num_scales)
    expected_counts = patches_per_scale(num_patches, scales, 1.75)[::-1].tolist()
    for k in range(num_images):
        scale, position, uv = ((x if aligned else x[k]).numpy() for x in (sample.scale, sample.position, sample.uv))
        assert np.bincount(scale, minlength=scales).tolist() == expected_counts
        assert shuffle or (np.diff(scale) >= 0).all()
        for n, (s, (y, x)) in enumerate(zip(scale, position, strict=True)):
            level = reference_level(images[k], s)
            patch = level[y : y + patch_size, x : x + patch_size].transpose(2, 0, 1)
            np.testing.assert_array_equal(sample.patches[k, n].numpy(), patch)
            centre = (position[n] + patch_size / 2) / (np.array(level.shape[:2]) - patch_size / 2)
            np.testing.assert_allclose(uv[n], centre, atol=2e-6)


def test_aligned_images_share_places_and_others_do_not():
    images = np.repeat(noise(40, 50, 1), 3, axis=0)  # identical images: same place, same patch
    aligned = CAPS(num_patches=30, patch_size=8)(images, seed=5)
    assert (aligned.patches == aligned.patches[:1]).all()
    own = CAPS(num_patches=30, patch_size=8, aligned=False)(images, seed=5)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (own.position[a] != own.position[b]).any()
        assert (own.patches[a] != own.patches[b]).any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stratified": False},
        {"num_scales": 2, "shuffle": True, "aligned": False},
        {"num_scales": 2, "map_pixels": 99},
    ],
)
def test_same_seed_same_sample_and_other_seed_another(options):
    sampler, images = CAPS(num_patches=64, patch_size=8, **options), local_pair()
    first, again, other = sampler(images, 7), sampler(list(images), np.random.default_rng(7)), sampler(images, 8)
    for name in PatchSample.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.position, other.position)
    rng = np.random.default_rng(7)
    assert not torch.equal(sampler(images, rng).position, sampler(images, rng).position)


def test_draws_follow_from_seed_number_and_reference():
    """Whatever the distorted image, the draws before, and the memory that holds the reference."""
    sampler, images = CAPS(num_patches=9, patch_size=8, num_scales=2, difference=0), local_pair()
    first, second = (sample.position for sample in sampler.draws(images, 7, range(2)))
    assert not torch.equal(first, second)
    other = np.stack([images[0], 255 - images[1]])
    (alone,) = sampler.draws(np.asfortranarray(other), 7, [1])
    assert torch.equal(alone.position, second)
    for changed, seed in ((images, 8), (images[::-1], 7)):
        (sample,) = sampler.draws(changed, seed, [1])
        assert not torch.equal(sample.position, second)
    with pytest.raises(ImageError, match="no image"):
        next(sampler.draws([], 7, [0]))


@pytest.mark.parametrize("seed", [None, -1, 0.5, "seven"])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be .* got {seed!r}"):
        CAPS(num_patches=4)(noise(20, 20), seed)


@pytest.mark.parametrize(
    "option",
    [
        {"num_patches": 65},
        {"patch_size": 9},
        {"num_scales": 1},
        {"difference": 5.0},
        {"centre": 3.0},
        {"uniform": 9.0},
        {"difference_metric": "absolute"},
        {"difference_metric": "ssim"},
        {"smoothing": 0},
        {"smoothing": 9.0},
        {"centre_sigma": 0.1},
        {"centre_map": "centre.npy"},
        {"stratified": False},
        {"aligned": False},
        {"patch_ratio": 0.0},
        {"shuffle": True},
        {"uv_anchor": "corner"},
        {"map_pixels": 1000},
    ],
    ids=str,
)
def test_every_option_acts(option, tmp_path):
    if "centre_map" in option:
        option = {"centre_map": str(tmp_path / option["centre_map"])}
        np.save(option["centre_map"], np.eye(5) * 4)
    base = {"num_patches": 64, "patch_size": 8, "num_scales": 2}
    images = local_pair(60, 60)
    default, changed = CAPS(**base)(images, 0), CAPS(**base | option)(images, 0)
    assert default.uv.shape != changed.uv.shape or not torch.equal(default.uv, changed.uv)


def test_samples_stay_uint8_and_images_untouched():
    images = local_pair()
    images.flags.writeable = False
    sample = CAPS(num_patches=20, patch_size=8, num_scales=2)(images[:, :, ::-1], seed=0)  # mirrored: negative strides
    assert sample.patches.dtype == torch.uint8
    assert all(getattr(sample, name).is_contiguous() for name in PatchSample.__dataclass_fields__)
    np.testing.assert_array_equal(images, local_pair())


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (16, 40), (40, 16)])
def test_an_image_that_just_fits(size, stratified):
    images = noise(*size)
    sampler = CAPS(num_patches=50, num_scales=3, stratified=stratified)
    height, width = size
    fits = np.zeros(size, bool)
    fits[8 : height - 7, 8 : width - 7] = True
    np.testing.assert_array_equal(sampler.probability(images) > 0, fits)
    sample = sampler(images, seed=0)  # more patches than places: places repeat
    assert (sample.scale == 0).all()
    assert (sample.position.amax(0) <= torch.tensor([height - 16, width - 16])).all()
    if size == (16, 16):
        assert not sample.position.any()
        assert (sample.patches == torch.from_numpy(images).permute(0, 3, 1, 2)[:, None]).all()


def test_more_patches_than_places_repeat_evenly():
    identical = np.repeat(noise(10, 9, 1), 2, axis=0)
    sampler = CAPS(num_patches=3 * 12, patch_size=7, difference=0, centre=0, uniform=1)
    _, repeats = np.unique(sampler(identical, seed=1).position.numpy(), axis=0, return_counts=True)
    assert repeats.tolist() == [3] * 12


def test_one_patch_and_the_reference_alone():
    sample = CAPS(num_patches=1, num_scales=3)(noise(200, 200, 1), seed=0)
    assert sample.patches.shape == (1, 1, 3, 16, 16)
    assert sample.scale.tolist() == [2]  # counts are rounded up from the coarsest scale on


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(15, 40), r"40 x 15 \(width x height\) is smaller than a patch of 16"),
        (noise(40, 15), r"15 x 40 \(width x height\) is smaller than a patch of 16"),
        (noise(20, 20).astype(np.float32), "uint8.*got float32"),
        (noise(20, 20)[0], r"\(K, H, W, 3\), got uint8 of shape \(20, 20, 3\)"),
        (noise(20, 20)[..., :1], r"got uint8 of shape \(20, 20, 1\)"),
        ([noise(20, 20)[0], noise(20, 21)[0]], "image 0 is 20 x 20 and image 1 is 21 x 20"),
        ([noise(20, 20)[0], None], "image 1 must be .* got NoneType"),
        ([], "no image"),
        (noise(20, 20, 0), "no image"),
        (None, "got NoneType"),
        (torch.zeros(2, 20, 20, 3, dtype=torch.uint8), "got Tensor"),
    ],
)
def test_bad_images_are_refused(images, message):
    sampler = CAPS(num_patches=4)
    for call in (lambda: sampler(images, 0), lambda: sampler.probability(images), lambda: sampler.components(images)):
        with pytest.raises(ImageError, match=message):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_patches", 0),
        ("num_patches", 2.0),
        ("patch_size", 0),
        ("patch_size", True),
        ("num_scales", 0),
        ("num_scales", 6),
        ("difference", -0.1),
        ("centre", float("nan")),
        ("uniform", float("inf")),
        ("uniform", "much"),
        ("difference_metric", "lpips"),
        ("smoothing", -1),
        ("centre_sigma", 0),
        ("centre_map", "bias.mat"),
        ("centre_map", Path("bias.npy")),
        ("stratified", 1),
        ("aligned", None),
        ("patch_ratio", -1),
        ("patch_ratio", 1e9),
        ("shuffle", "no"),
        ("uv_anchor", "center"),
        ("map_pixels", 0),
        ("map_pixels", 1e6),
    ],
)
def test_bad_options_are_refused(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        CAPS(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("anchor", ["centre", "corner"])
@pytest.mark.parametrize("cells", [1, 4, 14, 24])
def test_regular_grid_meets_every_cell_of_the_position_table_once_and_in_order(cells, anchor):
    images = noise(8 * cells, 8 * cells)
    sample = regular_grid(images, patch_size=8, uv_anchor=anchor)
    cell = (sample.uv * cells).long()
    assert (cell[:, 0] * cells + cell[:, 1]).tolist() == list(range(cells**2))
    unfolded = images.reshape(2, cells, 8, cells, 8, 3).transpose(0, 1, 3, 5, 2, 4).reshape(2, -1, 3, 8, 8)
    np.testing.assert_array_equal(sample.patches.numpy(), unfolded)
    assert not sample.scale.any()


def test_regular_grid_leaves_the_remainder_out():
    sample = regular_grid(noise(39, 50, num_images=1), patch_size=16)
    assert sample.position.tolist() == [[0, 0], [0, 16], [0, 32], [16, 0], [16, 16], [16, 32]]
    with pytest.raises(ImageError, match="smaller than a patch"):
        regular_grid(noise(15, 50), patch_size=16)


def test_configuration():
    caps = CAPS(num_patches=np.int64(5), centre=np.float32(0.5), difference=2)
    assert caps == CAPS(num_patches=5, centre=0.5, difference=2.0)
    assert [type(caps.num_patches), type(caps.centre), type(caps.difference)] == [int, float, float]
    with pytest.raises(ValueError, match="finite sum, got inf"):
        CAPS(difference=1e308, centre=1e308)
    with pytest.raises(ValueError, match="positive, finite sum, got 0"):
        CAPS(difference=0, centre=0, uniform=0)
    with pytest.raises(TypeError, match="num_patch"):
        CAPS(num_patch=3)
    with pytest.raises(FrozenInstanceError):
        CAPS().num_patches = 3
    assert CAPS(**asdict(CAPS(num_patches=7))) == CAPS(num_patches=7)
    same = CAPS(difference=4, centre=2, uniform=1).probability(local_pair())
    np.testing.assert_allclose(CAPS().probability(local_pair()), same, rtol=1e-6)
