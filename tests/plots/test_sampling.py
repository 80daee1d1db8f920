"""Figures of images and patches show exactly the pixels, places and rows that they were given."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.small import TINY
from vtamiq import plots
from vtamiq.caps import CAPS, regular_grid
from vtamiq.images.reading import ImageError
from vtamiq.model.network import VTAMIQ


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def shown(ax) -> np.ndarray:
    (picture,) = ax.get_images()
    return np.asarray(picture.get_array())


class TestPatches:
    @given(seed=st.integers(0, 1000), num_scales=st.integers(1, 3), aligned=st.booleans(), index=st.integers(0, 1))
    @settings(max_examples=15, deadline=None)
    def test_canvas_shows_exactly_the_patches(self, seed, num_scales, aligned, index):
        images = np.random.default_rng(seed).integers(0, 256, (2, 97, 120, 3), dtype=np.uint8)
        sample = CAPS(num_patches=30, num_scales=num_scales, aligned=aligned)(images, seed)
        canvas = plots.patch_canvas(images[index], sample, index=index)
        expected = np.zeros((97, 120, 4), np.uint8)
        position, scale = (sample.position, sample.scale) if aligned else (sample.position[index], sample.scale[index])
        for n in sorted(range(30), key=lambda n: (-int(scale[n]), n)):  # one by one, the finest last
            side = 2 ** int(scale[n])
            row, column = (position[n] * side).tolist()
            patch = np.kron(sample.patches[index, n].permute(1, 2, 0).numpy(), np.ones((side, side, 1), np.uint8))
            expected[row : row + 16 * side, column : column + 16 * side] = np.dstack(
                [patch, np.full(patch.shape[:2], 255)]
            )
        np.testing.assert_array_equal(canvas, expected)

    @given(seed=st.integers(0, 1000), num_scales=st.integers(1, 3), aligned=st.booleans(), index=st.integers(0, 1))
    @settings(max_examples=15, deadline=None)
    def test_coverage_counts_the_patches_of_every_pixel(self, seed, num_scales, aligned, index):
        images = np.random.default_rng(seed).integers(0, 256, (2, 97, 120, 3), dtype=np.uint8)
        sample = CAPS(num_patches=30, num_scales=num_scales, aligned=aligned)(images, seed)
        position, scale = (sample.position, sample.scale) if aligned else (sample.position[index], sample.scale[index])
        expected = np.zeros((97, 120), int)
        for (row, column), s in zip(position.tolist(), scale.tolist(), strict=True):  # one by one
            expected[row * 2**s : (row + 16) * 2**s, column * 2**s : (column + 16) * 2**s] += 1
        np.testing.assert_array_equal(plots.patch_coverage(images[index], sample, index=index), expected)

    def test_density_shows_the_coverage(self, images):
        sample = CAPS(num_patches=3000)(images, 0)
        left, right = plots.patch_density(images[0], sample).axes
        assert left.get_title() == "3,000 patches"
        np.testing.assert_array_equal(shown(right), plots.patch_coverage(images[0], sample))
        assert shown(right).sum() == 3000 * 16**2

    def test_full_size_patches_are_the_image(self, images):
        canvas = plots.patch_canvas(images[1], CAPS(num_patches=50)(images, 3), index=1)
        seen = canvas[..., 3] == 255
        assert 0.2 < seen.mean() < 1
        np.testing.assert_array_equal(canvas[seen][:, :3], images[1][seen])

    def test_panels(self, images):
        few, many = (CAPS(num_patches=n)(images, 0) for n in (20, 1000))
        figure = plots.patch_sampling(images[0], {"20 patches": few, "many": many, "stratified": few}, columns=2)
        assert [ax.get_title() for ax in figure.axes] == ["20 patches", "many", "stratified", ""]
        canvas = plots.patch_canvas(images[0], few)
        seen = canvas[..., 3] > 0
        picture = shown(figure.axes[0])
        np.testing.assert_array_equal(picture[seen], canvas[seen][:, :3])
        assert picture[~seen].min() >= 232  # nothing of the image but a ghost
        (outlines,) = figure.axes[0].findobj(PolyCollection)
        top_left = np.array([path.vertices.min(axis=0) for path in outlines.get_paths()])[:, ::-1]
        np.testing.assert_array_equal(top_left + 0.5, few.position.numpy())
        assert not figure.axes[1].findobj(PolyCollection)

    def test_scales(self, images):
        sample = CAPS(num_patches=60, num_scales=3)(images, 0)
        counts = torch.bincount(sample.scale).tolist()
        assert len(counts) > 1
        figure = plots.patch_sampling_multiscale(images[0], sample)
        titles = [f"scale {s}: {n} patches of {16 * 2**s} px" for s, n in enumerate(counts)]
        assert [ax.get_title() for ax in figure.axes] == [*titles, "all scales: 60 patches"]
        for s, ax in enumerate(figure.axes[:-1]):
            seen = plots.patch_canvas(images[0], sample, scale=s)[..., 3] > 0
            assert ((shown(ax) < 232).any(axis=-1) <= seen).all()
            (outlines,) = ax.findobj(PolyCollection)
            sides = [np.ptp(path.vertices, axis=0) for path in outlines.get_paths()]
            np.testing.assert_array_equal(sides, np.full((counts[s], 2), 16 * 2**s))
        assert len({str(ax.title.get_color()) for ax in figure.axes}) == len(figure.axes)

    def test_frames_of_coarser_scales_are_thicker(self, images):
        image = np.tile(images[0], (2, 2, 1))
        sample = CAPS(num_patches=100, num_scales=3)(image[None], 0)
        figure = plots.patch_sampling_multiscale(image, sample)
        frames = figure.axes[-1].findobj(PolyCollection)
        counts = torch.bincount(sample.scale).tolist()
        assert len(counts) == 3
        assert [len(part.get_paths()) for part in frames] == counts[1:]  # those of the finest would hide them
        assert 0.4 < frames[0].get_linewidth()[0] < frames[1].get_linewidth()[0]

    def test_bad_input(self, images):
        sample = CAPS(num_patches=5)(images, 0)
        with pytest.raises(ValueError, match="beyond the image"):
            plots.patch_canvas(images[0, :20, :20], sample)
        with pytest.raises(ValueError, match="beyond the image"):
            plots.patch_coverage(images[0, :20, :20], sample)
        with pytest.raises(ValueError, match="index 2"):
            plots.patch_canvas(images[0], sample, index=2)
        with pytest.raises(ImageError, match="image"):
            plots.patch_canvas(images[0] / 255, sample)
        with pytest.raises(ValueError, match="no sample"):
            plots.patch_sampling(images[0], {})

    def test_components(self, images):
        caps = CAPS()
        probability = caps.probability(images)
        weights = {"difference": 1, "centre": 0.5, "uniform": 0.25}
        figure = plots.sampling_components(images, caps.components(images), probability, weights=weights)
        pictures = [ax for ax in figure.axes if ax.get_images()]
        np.testing.assert_array_equal(shown(pictures[0]), images[0])
        np.testing.assert_array_equal(shown(pictures[1]), images[1])
        np.testing.assert_allclose(shown(pictures[2]).mean(), 1)
        for ax, (name, values) in zip(pictures[3:], caps.components(images).items(), strict=True):
            np.testing.assert_array_equal(shown(ax), values)
            assert ax.get_title() == f"{name}, weight {weights[name]:g}"

    def test_components_of_another_size(self, images):
        components = CAPS().components(images)
        with pytest.raises(ValueError, match="'probability' must be"):
            plots.sampling_components(images, components, np.ones((4, 4)))
        with pytest.raises(ValueError, match="2 images"):
            plots.sampling_components(images[:1], components, np.ones((96, 128)))

    @pytest.mark.parametrize("change", [{}, {"num_scales": 3, "image_size": 160}], ids=["tiny", "larger"])
    def test_uv_indexing_agrees_with_the_model(self, images, change):
        encoder = VTAMIQ(replace(TINY, **change)).encoder
        sample = CAPS(num_patches=9)(images, 0)
        figure = plots.uv_indexing(images[0], sample, encoder.grid)
        rows = encoder.position_rows(sample.uv).tolist()
        assert {f"{n}: row {row}" for n, row in enumerate(rows, 1)} <= set(texts(figure))
        left, right = figure.axes
        shaded = shown(right)[..., 0] == 210
        assert set(np.flatnonzero(shaded) + 1) == set(rows)
        np.testing.assert_allclose(right.collections[-1].get_offsets()[:, ::-1], sample.uv, atol=1e-6)
        (squares,) = left.findobj(PolyCollection)
        top_left = [path.vertices.min(axis=0)[::-1] + 0.5 for path in squares.get_paths()]
        np.testing.assert_array_equal(top_left, sample.position * 2 ** sample.scale[:, None])

    def test_uv_indexing_reads_well(self, images):
        figure = plots.uv_indexing(images[0], CAPS(num_patches=14)(images, 0), 24)
        figure.draw_without_rendering()
        left, right = figure.axes
        assert right.title.get_text() == "row 1 + 24⌊24u⌋ + ⌊24v⌋ of the table"
        assert right.title.get_window_extent().width < right.bbox.width
        (squares,) = left.findobj(PolyCollection)
        assert squares.get_path_effects()  # a halo
        numbers = [text for text in figure.findobj(Text) if text.get_text().split(":")[0].isdigit()]
        luminance = [np.dot(to_rgb(text.get_color()), (0.2126, 0.7152, 0.0722)) for text in numbers]
        assert len(numbers) == 3 * 14
        assert max(luminance) < 0.5

    def test_uv_indexing_of_many_colours_them_by_row(self, images):
        sample = regular_grid(images[:1, :56, :56], 8)
        figure = plots.uv_indexing(images[0, :56, :56], sample, 7)
        left, right = figure.axes
        assert (left.get_title(), right.get_title()) == ("49 patches", "they pick 49 of 49 rows of the position table")
        (squares,) = left.findobj(PolyCollection)
        assert len(np.unique(shown(right).reshape(-1, 3), axis=0)) == 49
        np.testing.assert_allclose(squares.get_edgecolor()[:, :3], shown(right).reshape(-1, 3) / 255)
        sparse = plots.uv_indexing(images[0], CAPS(num_patches=26)(images, 0), 64)
        assert (shown(sparse.axes[1]) == 250).all(axis=-1).sum() == 64**2 - 26
        assert not [text for text in texts(sparse) if ": row" in text]


# ----------------------------------------------------------------------------------------------------- images and numbers


class TestImages:
    def test_pair_scores(self, images):
        four = [*images, *images]
        figure = plots.pair_scores(four, [0.1, 0.25, 1.5], titles=["ref", "a", "b", "c"], errors=[0.01, 0.02, 0.03])
        assert [ax.get_title() for ax in figure.axes] == ["ref", "a", "b", "c"]
        labels = ["", "q = 0.100 ± 0.010", "q = 0.250 ± 0.020", "q = 1.500 ± 0.030"]
        assert [ax.get_xlabel() for ax in figure.axes] == labels
        for ax, image in zip(figure.axes, four, strict=True):
            np.testing.assert_array_equal(shown(ax), image)

    def test_score_of_the_reference(self, images):
        figure = plots.pair_scores(images, [0.0, 0.5])
        assert [ax.get_xlabel() for ax in figure.axes] == ["q = 0.000", "q = 0.500"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scores": [1, 2, 3]}, "need 1 or 2 scores, got 3"),
            ({"scores": [1], "titles": ["a"]}, "titles: 2 are needed, got 1"),
            ({"scores": [1], "errors": [1, 2]}, "errors: 1 are needed, got 2"),
        ],
    )
    def test_bad_pair_scores(self, images, arguments, message):
        with pytest.raises(ValueError, match=message):
            plots.pair_scores(images, **arguments)

    @pytest.mark.parametrize("aligned", [True, False])
    def test_seen_patches(self, images, aligned):
        sample = CAPS(num_patches=20, aligned=aligned)(images, 0)
        figure = plots.seen_patches(images, sample, [0.25], titles=["a", "b"])
        assert [(ax.get_title(), ax.get_xlabel()) for ax in figure.axes] == [("a", ""), ("b", "q = 0.250")]
        for k, ax in enumerate(figure.axes):
            canvas = plots.patch_canvas(images[k], sample, index=k)
            seen = canvas[..., 3] > 0
            np.testing.assert_array_equal(shown(ax)[seen], canvas[seen][:, :3])
            assert shown(ax)[~seen].min() >= 232
            (outlines,) = ax.findobj(PolyCollection)
            assert len(outlines.get_paths()) == 20

    def test_bad_seen_patches(self, images):
        sample = CAPS(num_patches=5)(images, 0)
        with pytest.raises(ValueError, match="need 1 or 2 scores, got 3"):
            plots.seen_patches(images, sample, [1, 2, 3])
        with pytest.raises(ValueError, match="images: 2 are needed, got 1"):
            plots.seen_patches(images[:1], sample, [1])
        with pytest.raises(ValueError, match="beyond the image"):
            plots.seen_patches(images[:, :20, :20], sample, [1])

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_contact_sheet(self, images, blocks):
        cells = [[images[0] // (r + c + 1) for c in range(2)] for r in range(3)]
        figure = plots.contact_sheet(cells, ["one", "two", "three"], ["l1", "l2"], blocks=blocks, title="sheet")
        assert len(figure.axes) == blocks
        assert {"one", "two", "three", "l1", "l2", "sheet"} <= set(texts(figure))
        per_block = 3 if blocks == 1 else 2
        for r, c in itertools.product(range(3), range(2)):
            ax = figure.axes[r // per_block]
            centre = [int(ticks[k] + 0.5) for ticks, k in ((ax.get_yticks(), r % per_block), (ax.get_xticks(), c))]
            top, left = centre[0] - 48, centre[1] - 64
            np.testing.assert_array_equal(shown(ax)[top : top + 96, left : left + 128], cells[r][c])

    def test_contact_sheet_of_crops_beside_the_reference(self, images):
        figure = plots.contact_sheet([[images[1]]], ["row"], ["level"], reference=images[0], crop=32)
        (ax,) = figure.axes
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["ref.", "level"]
        for x, image in zip(ax.get_xticks(), images, strict=True):
            left = int(x + 0.5) - 16
            np.testing.assert_array_equal(shown(ax)[:32, left : left + 32], image[32:64, 48:80])

    def test_many_pictures_leave_the_text_sharp(self, tmp_path):
        y, x = np.mgrid[0:288, 0:384]
        noise = np.random.default_rng(0).normal(0, 12, (12, 288, 384, 3))
        rows = np.clip(128 + 60 * np.sin(x / 25 + y**2 / 2000)[..., None] + noise, 0, 255).astype(np.uint8)
        figure = plots.contact_sheet([[row] * 5 for row in rows], ["name"] * 12, list("12345"), reference=rows[0])
        _, path = plots.save_figure(figure, tmp_path, "sheet")
        assert plt.imread(path).shape[1] == 1400  # 7 inches at 200 dpi
        assert path.stat().st_size < 1_000_000
        assert abs(shown(figure.axes[0]).mean() - rows.mean()) < 10  # with white gaps

    def test_bad_contact_sheet(self, images):
        with pytest.raises(ValueError, match="crop must be from 1 to 96 pixels, got 97"):
            plots.contact_sheet([[images[0]]], ["a"], ["l"], crop=97)
        with pytest.raises(ValueError, match="one size"):
            plots.contact_sheet([[images[0]]], ["a"], ["l"], reference=images[0, 1:])
        with pytest.raises(ValueError, match="rows of cells: 2 are needed, got 1"):
            plots.contact_sheet([[images[0]]], ["a", "b"], ["l"])
        with pytest.raises(ValueError, match="images of row 'a': 2 are needed, got 1"):
            plots.contact_sheet([[images[0]]], ["a"], ["l", "m"])
        with pytest.raises(ValueError, match="one size"):
            plots.contact_sheet([[images[0], images[0, 1:]]], ["a"], ["l", "m"])
