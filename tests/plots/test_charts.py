"""Figures say what their data say, read well, leave nothing behind and are written the same every time."""

import itertools
import json
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
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
from vtamiq.caps import CAPS, regular_grid
from vtamiq.evaluation.correlation import correlations
from vtamiq.images.reading import ImageError
from vtamiq.model.network import VTAMIQ
from vtamiq.plots import charts as plots


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(1)
    q = rng.uniform(0, 1, 120)
    score = 5 - 4 / (1 + np.exp(-8 * (q - 0.5))) + rng.normal(0, 0.2, 120)
    return q, score, correlations(q, score, higher_better=True)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def shown(ax) -> np.ndarray:
    (picture,) = ax.get_images()
    return np.asarray(picture.get_array())


# ---------------------------------------------------------------------------------------------------------------- saving


class TestSaving:
    def draw(self, images):
        sample = CAPS(num_patches=40)(images, 0)
        return plots.patch_sampling(images[0], {40: sample})

    def test_same_bytes_for_the_same_figure(self, images, tmp_path):
        table = pd.DataFrame({"name": ["a", "b"], "value": [0.1 + 0.2, 1e-17]})
        first = plots.save_figure(self.draw(images), tmp_path / "new" / "one", "fig", table)
        second = plots.save_figure(self.draw(images), tmp_path / "two", "fig", table)
        assert [path.name for path in first] == ["fig.svg", "fig.png", "fig.csv"]
        for a, b in zip(first, second, strict=True):
            assert a.read_bytes() == b.read_bytes()

    def test_saving_twice_changes_nothing(self, images, tmp_path):
        figure = self.draw(images)
        first = [path.read_bytes() for path in plots.save_figure(figure, tmp_path, "a")]
        assert [path.read_bytes() for path in plots.save_figure(figure, tmp_path, "a")] == first

    def test_no_date_and_no_version(self, images, tmp_path):
        svg, png = plots.save_figure(self.draw(images), tmp_path, "fig")
        assert "dc:date" not in svg.read_text()
        assert "Matplotlib v" not in svg.read_text()
        assert b"Software" not in png.read_bytes()

    def test_data_round_trip(self, images, tmp_path):
        figure = self.draw(images)
        table = pd.DataFrame({"n": [1, 2], "name": ["ä, b", '"c"'], "value": [1 / 3, np.nan]})
        csv = plots.save_figure(figure, tmp_path, "table", table)[-1]
        pd.testing.assert_frame_equal(pd.read_csv(csv), table)
        assert "0.3333333333333333" in csv.read_text(encoding="utf-8")
        values = {"a": np.float32(0.5), "b": np.arange(3), "c": {"d": (True, None, "ü")}, "e": float("nan")}
        path = plots.save_figure(figure, tmp_path, "values", values)[-1]
        expected = {"a": 0.5, "b": [0, 1, 2], "c": {"d": [True, None, "ü"]}, "e": None}
        assert json.loads(path.read_text(encoding="utf-8")) == expected

    def test_png_resolution(self, tmp_path):
        _, path = plots.save_figure(plots.draws_spread(SPREAD), tmp_path, "fig")
        assert plt.imread(path).shape[:2] == (500, 700)  # 2.5 by 3.5 inches at 200 dpi

    def test_files_stay_small(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "MAX_BYTES", {"svg": 450_000, "png": 300_000})
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        svg, png = plots.save_figure(plots.pair_scores([noise, noise], [0.5]), tmp_path, "noise")
        assert svg.stat().st_size <= 450_000
        assert png.stat().st_size <= 300_000

    def test_ten_thousand_patches_stay_small(self, tmp_path):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (384, 512, 3), dtype=np.uint8)
        sample = CAPS(num_patches=10_000)(image[None], 0)
        svg, png = plots.save_figure(plots.patch_sampling(image, {10_000: sample}), tmp_path, "many")
        assert svg.stat().st_size < 1_500_000
        assert png.stat().st_size < 1_000_000

    def test_pdf_with_its_fonts_and_without_a_date(self, tmp_path):
        one, two = (plots.save_figure(plots.draws_spread(SPREAD), tmp_path / n, "fig", kinds=["pdf"]) for n in "ab")
        assert [path.name for path in one] == ["fig.pdf"]
        content = one[0].read_bytes()
        assert content == two[0].read_bytes()
        assert content.startswith(b"%PDF-1.4")
        assert b"/FontFile2" in content  # TrueType, as publishers ask for; type 3 is what they refuse
        assert b"/Type3" not in content
        for word in (b"CreationDate", b"Producer", b"Creator", b"atplotlib"):
            assert word not in content

    def test_kinds_do_not_depend_on_each_other(self, images, tmp_path, monkeypatch):
        """The resolution is that which keeps SVG and PNG small, whichever of them are written."""
        monkeypatch.setattr(plots, "MAX_BYTES", {"svg": 60_000, "png": 1_000_000})
        figure = plots.pair_scores(images, [0.5])
        both = plots.save_figure(figure, tmp_path / "both", "fig")
        (alone,) = plots.save_figure(figure, tmp_path / "alone", "fig", kinds=["png"])
        assert alone.read_bytes() == both[1].read_bytes()
        assert plt.imread(alone).shape[1] < 1400

    def test_resolution_that_is_asked_for(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "MAX_BYTES", {"svg": 60_000, "png": 1000})
        (path,) = plots.save_figure(plots.pair_scores(images, [0.5]), tmp_path, "fig", kinds=["png"], dpi=300)
        assert plt.imread(path).shape[1] == 2100

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"kinds": ["jpg"]}, "kinds must be"), ({"kinds": "svg"}, "kinds must be"), ({"dpi": np.nan}, "dpi must lie")],
    )
    def test_bad_output_leaves_no_file(self, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            plots.save_figure(Figure(), tmp_path, "a", **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["", "a/b", "fig.svg", "../fig", "fig.pdf"])
    def test_bad_name(self, name, tmp_path):
        with pytest.raises(ValueError, match="name must be"):
            plots.save_figure(Figure(), tmp_path, name)

    def test_bad_data_leaves_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="data must be a DataFrame or a mapping, got list"):
            plots.save_figure(Figure(), tmp_path, "a", [1, 2])
        assert not list(tmp_path.iterdir())


# Machado, Oliveira and Fernandes (2009), severity 1: what the eyes of the colour-blind make of linear RGB.
SEEN_BY = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red cones": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green cones": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "no blue cones": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def as_seen(colours: list[str], eyes: str) -> np.ndarray:
    """Colours in CIELAB (n, 3), where a distance of 2.3 is just noticed."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.clip(linear @ np.transpose(SEEN_BY[eyes]), 0, 1) @ np.transpose(to_xyz) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


class TestStyle:
    @pytest.mark.parametrize("eyes", SEEN_BY)
    def test_colours_stay_apart_for_everybody(self, eyes):
        with plots.common_style():
            colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        seen = as_seen(colours, eyes)
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert len(set(colours)) == 7
        assert min(apart) > 9
        assert min(np.linalg.norm(seen - as_seen(["#ffffff"], eyes), axis=1)) > 25

    def test_the_check_above_sees_bad_colours(self):
        red, green = as_seen(["#d62728", "#8a6a00"], "no red cones"), as_seen(["#d62728", "#8a6a00"], "all cones")
        assert np.linalg.norm(red[0] - red[1]) < np.linalg.norm(green[0] - green[1]) / 2

    def test_as_many_markers_as_colours(self):
        """So that no group is told from another by its colour alone."""
        with plots.common_style():
            assert len(set(plots.MARKERS)) == len(matplotlib.rcParams["axes.prop_cycle"])

    def test_no_text_is_small(self):
        with plots.common_style():
            sizes = {
                key: value for key, value in matplotlib.rcParams.items() if key.endswith(("labelsize", "font.size"))
            }
        assert min(value for value in sizes.values() if isinstance(value, float)) >= 7

    def test_changes_last_no_longer_than_the_block(self, tmp_path):
        (tmp_path / "mine.mplstyle").write_text("font.size: 11\n")
        changes = plots.read_style(tmp_path / "mine.mplstyle")
        before = dict(matplotlib.rcParams)
        with plots.common_style(changes):
            assert matplotlib.rcParams["font.size"] == 11
            assert matplotlib.rcParams["axes.titlesize"] == 8  # all else as ever
        assert dict(matplotlib.rcParams) == before


def test_figures_belong_to_nobody(images, predictions):
    before = dict(matplotlib.rcParams)
    figure = plots.pair_scores(images, [0.5])
    plots.prediction_scatter(*predictions[:2])
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------------- patches


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
        figure = plots.patch_sampling(images[0], {20: few, 1000: many, "stratified": few}, columns=2)
        assert [ax.get_title() for ax in figure.axes] == ["20 patches", "1,000 patches", "stratified", ""]
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

    @pytest.mark.parametrize(
        "change",
        [{}, {"class_token_position": False, "uv_anchor": "corner"}, {"num_scales": 3, "image_size": 160}],
        ids=["tiny", "2021", "larger"],
    )
    def test_uv_indexing_agrees_with_the_model(self, images, change):
        encoder = VTAMIQ(replace(TINY, **change)).encoder
        sample = CAPS(num_patches=9)(images, 0)
        options = {"class_token_position": encoder.class_token_position}
        figure = plots.uv_indexing(images[0], sample, encoder.grid, **options)
        rows = encoder.position_rows(sample.uv).tolist()
        assert {f"{n}: row {row}" for n, row in enumerate(rows, 1)} <= set(texts(figure))
        left, right = figure.axes
        shaded = shown(right)[..., 0] == 210
        first = int(encoder.class_token_position)
        assert set(np.flatnonzero(shaded) + first) == set(rows)
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

    def test_uv_indexing_without_a_grid(self, images):
        with pytest.raises(ValueError, match="at least 1 cell, got 0"):
            plots.uv_indexing(images[0], CAPS(num_patches=3)(images, 0), 0)


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
        figure = plots.seen_patches(images, sample, [0.25], titles=["a", "b"], errors=[0.02])
        assert [(ax.get_title(), ax.get_xlabel()) for ax in figure.axes] == [("a", ""), ("b", "q = 0.250 ± 0.020")]
        for k, ax in enumerate(figure.axes):
            canvas = plots.patch_canvas(images[k], sample, index=k)
            seen = canvas[..., 3] > 0
            np.testing.assert_array_equal(shown(ax)[seen], canvas[seen][:, :3])
            assert shown(ax)[~seen].min() >= 232
            (outlines,) = ax.findobj(PolyCollection)
            assert len(outlines.get_paths()) == 20

    def test_seen_patches_without_scores(self, images):
        figure = plots.seen_patches(images, CAPS(num_patches=20)(images, 0))
        assert [(ax.get_title(), ax.get_xlabel()) for ax in figure.axes] == [("reference", ""), ("distorted 1", "")]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scores": [1, 2, 3]}, "need 1 or 2 scores, got 3"),
            ({"errors": [1]}, "errors: 0 are needed, got 1"),
            ({"titles": ["a"]}, "titles: 2 are needed, got 1"),
        ],
    )
    def test_bad_seen_patches(self, images, arguments, message):
        sample = CAPS(num_patches=5)(images, 0)
        with pytest.raises(ValueError, match=message):
            plots.seen_patches(images, sample, **arguments)
        with pytest.raises(ValueError, match="images: 2 are needed, got 1"):
            plots.seen_patches(images[:1], sample)
        with pytest.raises(ValueError, match="beyond the image"):
            plots.seen_patches(images[:, :20, :20], sample)

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


# ----------------------------------------------------------------------------------------------------------------- charts

SPREAD = pd.DataFrame({"num_patches": [256, 64], "mean": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.3]})


class TestScatter:
    def test_points_curve_and_numbers(self, predictions):
        q, score, statistics = predictions
        figure = plots.prediction_scatter(
            q, score, statistics["fit"], title="demo (synthetic labels)", labels=("q", "MOS"), statistics=statistics
        )
        (ax,) = figure.axes
        np.testing.assert_allclose(ax.collections[0].get_offsets(), np.stack([q, score], axis=1))
        (line,) = ax.lines
        assert (line.get_xdata().min(), line.get_xdata().max()) == (q.min(), q.max())
        np.testing.assert_allclose(line.get_ydata(), statistics["fit"](line.get_xdata()))
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("demo (synthetic labels)", "q", "MOS")
        box = dict(row.rsplit(maxsplit=1) for row in figure.legends[-1].get_title().get_text().split("\n"))
        names = ("srocc", "krocc", "plcc", "plcc_fitted", "rmse_fitted")
        assert box == {plots.STATISTICS[name]: f"{statistics[name]:.3f}" for name in names} | {"n": "120"}

    def test_failed_fit_is_left_out(self):
        statistics = correlations([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], higher_better=True)
        assert not statistics["fit"].success
        figure = plots.prediction_scatter([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], statistics["fit"])
        assert not figure.axes[0].lines

    def test_25_groups_are_told_apart(self, predictions):
        q, score, _ = predictions
        groups = pd.Series([f"type {k % 25}" for k in range(120)], index=range(1000, 1120))  # as cut from a table
        figure = plots.prediction_scatter(q, score, groups=groups)
        clouds = figure.axes[0].collections
        looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in clouds}
        assert len(clouds) == len(looks) == 25
        np.testing.assert_allclose(clouds[3].get_offsets()[:, 0], q[3::25])
        assert [text.get_text() for text in figure.legends[0].texts] == [f"type {k}" for k in range(25)]

    def test_colours_come_back_with_open_markers(self, predictions):
        q, score, _ = predictions
        clouds = plots.prediction_scatter(q, score, groups=np.arange(120) % 12).axes[0].collections
        faces, edges = (np.array([getattr(c, f"get_{what}color")()[0] for c in clouds]) for what in ("face", "edge"))
        np.testing.assert_array_equal(faces[:, 3] > 0, [True] * 7 + [False] * 5)
        np.testing.assert_array_equal(edges[7:, :3], edges[:5, :3])

    @pytest.mark.parametrize("kinds", [1, 2, 12, 25])
    def test_legend_and_numbers_stand_beside_the_axes(self, predictions, kinds):
        q, score, statistics = predictions
        figure = plots.prediction_scatter(q, score, groups=np.arange(120) % kinds, statistics=statistics)
        figure.draw_without_rendering()
        legends = [legend.get_window_extent() for legend in figure.legends]
        assert len(legends) == (1 if kinds == 1 else 2)
        assert figure.axes[0].bbox.x1 < min(box.x0 for box in legends)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(legends, 2))
        assert all(figure.bbox.containsx(x) for box in legends for x in (box.x0, box.x1))
        assert all(figure.bbox.containsy(y) for box in legends for y in (box.y0, box.y1))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1, 2], [1]), "alike"),
            (([], []), "not empty"),
            (([1, np.nan], [1, 2]), "1 of 2 pairs are not finite, the first at 1"),
        ],
    )
    def test_bad_pairs(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plots.prediction_scatter(*arguments)

    def test_bad_groups_and_statistics(self):
        with pytest.raises(ValueError, match="groups: 2 are needed, got 1"):
            plots.prediction_scatter([1, 2], [1, 2], groups=["a"])
        with pytest.raises(ValueError, match="none of srocc"):
            plots.prediction_scatter([1, 2], [1, 2], statistics={"accuracy": 1})


class TestLearningCurves:
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 2, 3],
            "train_loss": [4.0, 3, 2, 1],
            "val_mae": [np.nan, 0.2, np.nan, 0.1],
            "val_srocc": [0.1, 0.9, 0.5, 0.4],
            "lr": [1e-3] * 4,
        }
    )

    def test_curves_and_best_epoch(self):
        figure = plots.learning_curves(self.history, title="run")
        curves = {line.get_label(): line for ax in figure.axes for line in ax.lines if line.get_label()[0] != "_"}
        assert list(curves) == ["training loss", "validation MAE", "validation SROCC"]
        np.testing.assert_array_equal(curves["validation MAE"].get_xydata(), [[1, 0.2], [3, 0.1]])
        np.testing.assert_array_equal(curves["training loss"].get_ydata(), [4, 3, 2, 1])
        assert figure.axes[1].get_title() == "best epoch 1: validation SROCC 0.900"
        star = next(line for line in figure.axes[1].lines if line.get_marker() == "*")
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (1, 0.9)
        assert "run" in texts(figure)

    @pytest.mark.parametrize(("epochs", "marker"), [(25, "o"), (26, "None")])
    def test_long_curves_have_no_markers_and_legends_cover_none(self, epochs, marker):
        history = pd.DataFrame({"epoch": range(epochs), "train_loss": 1.0, "val_mae": 2.0, "val_srocc": 0.5})
        figure = plots.learning_curves(history)
        figure.draw_without_rendering()
        for ax in figure.axes:
            curves = [line for line in ax.lines if line.get_label()[0] != "_"]
            assert {line.get_marker() for line in curves} == {marker}
            legend = ax.get_legend().get_window_extent()
            assert legend.y1 < ax.xaxis.label.get_window_extent().y0
            assert legend.y0 >= 0

    def test_without_any_correlation(self):
        figure = plots.learning_curves(self.history.assign(val_srocc=np.nan))
        assert len(figure.axes) == 1
        assert not any("best" in text for text in texts(figure))

    def test_missing_column(self):
        with pytest.raises(ValueError, match="no column `val_scorr`; did you mean `val_srocc`"):
            plots.learning_curves(self.history, best="val_scorr")
        with pytest.raises(ValueError, match="empty"):
            plots.learning_curves(self.history.head(0))


class TestBarsAndSpread:
    table = pd.DataFrame(
        {
            "dist_name": ["blur", "noise", "jpeg", "few"],
            "srocc": [0.5, 0.9, -0.2, np.nan],
            "low": [0.4, 0.8, -0.3, np.nan],
            "high": [0.6, 0.95, 0.1, np.nan],
            "group": ["b", "n", "c", "c"],
        }
    )

    def test_bars_are_sorted_and_numbered(self):
        figure = plots.bars(self.table, interval=("low", "high"), group="group", title="SROCC, synthetic labels")
        (ax,) = figure.axes
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["jpeg", "blur", "noise"]  # upwards
        bars = sorted(ax.patches, key=lambda bar: bar.get_y())
        assert [bar.get_width() for bar in bars] == [-0.2, 0.5, 0.9]
        (intervals,) = ax.collections
        np.testing.assert_array_equal(
            [s[:, 0] for s in intervals.get_segments()], [[-0.3, 0.1], [0.4, 0.6], [0.8, 0.95]]
        )
        assert {"-0.200", "0.500", "0.900", "SROCC, synthetic labels"} <= set(texts(figure))
        assert [text.get_text() for text in figure.legends[0].texts] == ["c", "b", "n"]
        assert len({bar.get_facecolor() for bar in bars}) == 3

    def test_bad_tables(self):
        with pytest.raises(ValueError, match="no column `sroc`; did you mean `srocc`"):
            plots.bars(self.table, value="sroc")
        with pytest.raises(ValueError, match="no column `upper`"):
            plots.bars(self.table, interval=("low", "upper"))
        with pytest.raises(ValueError, match="no column `num_patches`"):
            plots.draws_spread(self.table)

    def test_spread_is_a_line_with_a_band(self):
        (ax,) = plots.draws_spread(SPREAD).axes
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[64, 0.2], [256, 0.1]])
        band = ax.collections[0].get_paths()[0].vertices
        assert {tuple(v) for v in band} == {(64, 0.1), (64, 0.3), (256, 0.05), (256, 0.2)}
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "256"]

    def test_spread_by_group(self):
        table = pd.concat([SPREAD.assign(kind="a"), SPREAD.assign(kind="b", mean=0.15)])
        (ax,) = plots.draws_spread(table, group="kind").axes
        assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == {
            "a": [0.2, 0.1],
            "b": [0.15, 0.15],
        }


# ----------------------------------------------------------------------------------------------------- synthetic labels


class TestAgreement:
    matrix = pd.DataFrame([[1, 0.5, -0.25], [0.5, 1, 0.061], [-0.25, 0.061, 1]], ["a", "b", "c"], ["a", "b", "c"])

    def test_numbers_and_colours_are_the_matrix(self):
        figure = plots.agreement_matrix(self.matrix, title="synthetic labels")
        ax, bar = figure.axes
        np.testing.assert_array_equal(shown(ax), self.matrix)
        assert [text.get_text() for text in ax.texts] == ["1", ".50", "-.25", ".50", "1", ".06", "-.25", ".06", "1"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
        assert ax.get_images()[0].get_clim() == (-0.3, 1)
        assert bar.get_ylabel() == "Spearman correlation"
        assert "synthetic labels" in texts(figure)

    @pytest.mark.parametrize("size", [2, 5, 12])
    def test_names_are_not_cut_off(self, size):
        names = [f"metric {n}" for n in range(size)]
        figure = plots.agreement_matrix(pd.DataFrame(np.eye(size), names, names), title="synthetic")
        figure.draw_without_rendering()
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert min(box.min) >= 0, text
                assert (box.max <= figure.bbox.max).all(), text

    def test_scale_is_never_empty(self):
        (picture,) = plots.agreement_matrix(pd.DataFrame(np.ones((2, 2)))).axes[0].get_images()
        assert picture.get_clim() == (0.9, 1)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="same names"):
            plots.agreement_matrix(self.matrix.loc[["b", "a", "c"]])
        with pytest.raises(ValueError, match="same names"):
            plots.agreement_matrix(self.matrix.iloc[:0, :0])
        for value in (1.5, np.nan):
            with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
                plots.agreement_matrix(self.matrix.replace(0.061, value))


class TestLabelHistograms:
    counts = pd.DataFrame(
        {
            "label": ["a"] * 2 + ["b"] * 2 + ["consensus"] * 2,
            "low": [0, 0.5] * 3,
            "high": [0.5, 1] * 3,
            "before": [3, 1, 4, 0, np.nan, np.nan],
            "after": [2, 2, 3, 1, 1, 3],
        }
    )

    def test_steps_are_those_of_the_data(self):
        figure = plots.label_histograms(self.counts, title="synthetic labels")
        panels = [ax for ax in figure.axes if ax.get_title()]
        assert [ax.get_title() for ax in panels] == ["a", "b", "consensus"]
        steps = [[step.get_data().values.tolist() for step in ax.patches] for ax in panels]
        assert steps == [[[2, 2], [3, 1]], [[3, 1], [4, 0]], [[1, 3]]]
        assert panels[0].patches[0].get_data().edges.tolist() == [0, 0.5, 1]
        assert {"synthetic labels", "rank"} <= set(texts(figure))

    @pytest.mark.parametrize("count", [1, 5, 12])
    def test_panels_have_room_and_an_axis_below(self, count):
        table = pd.concat([self.counts[:2].assign(label=f"IQM {n}") for n in range(count)])
        figure = plots.label_histograms(table)
        panels = [ax for ax in figure.axes if ax.get_title()]
        assert len(panels) == count
        figure.draw_without_rendering()
        boxes = [ax.get_tightbbox() for ax in panels]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        labelled = [any(label.get_visible() for label in ax.get_xticklabels()) for ax in panels]
        assert labelled == [n + 4 >= count for n in range(count)]

    def test_bad_input(self):
        with pytest.raises(ValueError, match="no column `before`"):
            plots.label_histograms(self.counts.drop(columns="before"))
        with pytest.raises(ValueError, match="empty"):
            plots.label_histograms(self.counts[:0])
