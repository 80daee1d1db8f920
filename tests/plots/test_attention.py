"""Figures of attention show the maps that they were given, in colours that say what they mean."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from vtamiq.plots.attention import channel_gates, map_grid, pair_maps
from vtamiq.plots.style import PAGE, save_figure


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def maps():
    values = np.random.default_rng(1).random((30, 40))
    values[:3] = np.nan
    return {"rollout": values, "quality": values - 0.3}


@pytest.fixture(scope="module")
def table():
    index = pd.MultiIndex.from_product([range(2), range(3), range(8)], names=["group", "block", "channel"])
    rng = np.random.default_rng(2)
    columns = {"gate": rng.random(48), "before": rng.normal(size=48), "after": rng.normal(size=48)}
    return pd.DataFrame(columns, index=index).reset_index()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


class TestPair:
    def test_panels(self, images, maps):
        figure = pair_maps(images, maps, notes={"quality": "AUC 0.9"}, title="synthetic labels")
        panels = [ax for ax in figure.axes if ax.get_images()]
        assert [ax.get_title() for ax in panels] == ["reference", "distorted", "rollout", "quality"]
        assert [ax.get_xlabel() for ax in panels] == ["", "", "", "AUC 0.9"]
        for ax, image in zip(panels[:2], images, strict=True):
            np.testing.assert_array_equal(ax.get_images()[0].get_array(), image)
        for ax, values in zip(panels[2:], maps.values(), strict=True):
            drawn = ax.get_images()[0].get_array()
            np.testing.assert_array_equal(np.ma.filled(drawn.astype(float), np.nan), values)
        assert "synthetic labels" in texts(figure)

    def test_colours(self, images, maps):
        figure = pair_maps(images, maps)
        unsigned, signed = (ax.get_images()[0] for ax in figure.axes[2:4])
        assert unsigned.get_clim() == (0, pytest.approx(np.nanpercentile(maps["rollout"], 99)))
        high = np.nanpercentile(np.abs(maps["quality"]), 99)
        assert signed.get_clim() == (pytest.approx(-high), pytest.approx(high))
        for drawn in (unsigned, signed):
            assert drawn.to_rgba(np.ma.masked_invalid([np.nan]))[0, :3] == pytest.approx(
                [0.789, 0.789, 0.789], abs=0.01
            )
        assert signed.to_rgba(np.array([0.0]))[0, :3].min() > 0.95  # white where nothing is said

    def test_a_map_of_zeros_is_drawn(self, images):
        figure = pair_maps(images, {"quality": np.zeros((30, 40))})
        low, high = figure.axes[2].get_images()[0].get_clim()
        assert low < high

    def test_outline_of_a_region(self, images, maps):
        region = np.zeros((30, 40), bool)
        region[5:10, 8:13] = True
        figure = pair_maps(images, maps, region=region)
        assert [len(ax.collections) for ax in figure.axes[:4]] == [0, 1, 1, 1]
        outline = np.concatenate([path.vertices for path in figure.axes[2].collections[0].get_paths()])
        assert outline.min(axis=0) == pytest.approx([7.5, 4.5])
        assert outline.max(axis=0) == pytest.approx([12.5, 9.5])

    def test_a_ragged_region_hides_nothing(self, images, maps):
        region = np.indices((30, 40)).sum(axis=0) % 2 == 0
        for none in (region, np.zeros((30, 40), bool)):
            assert not any(ax.collections for ax in pair_maps(images, maps, region=none).axes)

    def test_refusals(self, images, maps):
        with pytest.raises(ValueError, match=r"map 'a' must be \(30, 40\) like the images, got \(40, 30\)"):
            pair_maps(images, {"a": np.ones((40, 30))})
        with pytest.raises(ValueError, match="map 'a' has no value anywhere"):
            pair_maps(images, {"a": np.full((30, 40), np.nan)})
        with pytest.raises(ValueError, match="notes has b, which is none of the maps"):
            pair_maps(images, maps, notes={"b": "?"})
        with pytest.raises(ValueError, match="region must be bool"):
            pair_maps(images, maps, region=np.ones((30, 40)))
        with pytest.raises(ValueError, match="at least 2 images"):
            pair_maps(images[:1], maps)


class TestGrid:
    def test_one_scale_for_all(self, maps):
        a, b = maps["rollout"], 5 * maps["rollout"]
        figure = map_grid(
            [[a, b], [b, a]], ["r1", "r2"], ["c1", "c2"], notes=[["n1", "n2"], ["n3", "n4"]], label="share"
        )
        panels = figure.axes[:4]
        assert len({ax.get_images()[0].get_clim() for ax in panels}) == 1
        assert [ax.get_title() for ax in panels] == ["c1", "c2", "", ""]
        assert [ax.get_ylabel() for ax in panels] == ["r1", "", "r2", ""]
        assert [ax.get_xlabel() for ax in panels] == ["n1", "n2", "n3", "n4"]
        np.testing.assert_array_equal(np.ma.filled(panels[2].get_images()[0].get_array(), np.nan), b)
        assert figure.axes[4].get_ylabel() == "share"

    @pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (2, 5), (6, 12)])
    def test_text_stays_inside_and_little_is_empty(self, maps, rows, columns):
        table = [[maps["rollout"]] * columns] * rows
        notes = [["82%"] * columns] * rows
        names = [f"block {r}" for r in range(rows)], [f"head {c}" for c in range(columns)]
        figure = map_grid(table, *names, notes=notes, title="(synthetic labels)")
        figure.draw_without_rendering()
        assert figure.get_figwidth() <= PAGE
        boxes = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        assert all(box.x0 > -2 and box.x1 < figure.bbox.x1 + 2 for box in boxes)
        panels = [ax.get_images()[0].get_window_extent() for ax in figure.axes[: rows * columns]]
        assert sum(p.width * p.height for p in panels) > 0.4 * figure.bbox.width * figure.bbox.height

    def test_refusals(self, maps):
        values = maps["rollout"]
        with pytest.raises(ValueError, match="rows of maps: 2 are needed, got 1"):
            map_grid([[values]], ["a", "b"], ["c"])
        with pytest.raises(ValueError, match="maps of row 'a': 2 are needed, got 1"):
            map_grid([[values]], ["a"], ["c", "d"])
        with pytest.raises(ValueError, match="no map to draw"):
            map_grid([], [], [])
        with pytest.raises(ValueError, match="must be"):
            map_grid([[values, values[1:]]], ["a"], ["c", "d"])


class TestChannels:
    def test_gates_and_sizes_in_the_order_of_the_difference(self, table):
        figure = channel_gates(table, title="synthetic labels")
        upper, lower = figure.axes[:2]
        first = table.query("group == 0 and block == 0").set_index("channel")["before"].abs()
        order = first.sort_values(ascending=False).index
        expected = table.pivot_table(index=["group", "block"], columns="channel", values="gate")[order]
        np.testing.assert_array_equal(upper.get_images()[0].get_array(), expected)
        assert [label.get_text() for label in upper.get_yticklabels()][3] == "group 2, block 1"
        np.testing.assert_array_equal([bar.get_height() for bar in lower.patches], first[order])
        for group, line in enumerate(lower.lines):
            last = table[(table["group"] == group) & (table["block"] == 2)]
            after = last.set_index("channel")["after"].abs()
            np.testing.assert_array_equal(line.get_ydata(), after[order])
        assert len(lower.lines) == 2

    def test_refusals(self, table):
        with pytest.raises(ValueError, match="no column `gate`"):
            channel_gates(table.drop(columns="gate"))
        with pytest.raises(ValueError, match="the table is empty"):
            channel_gates(table.head(0))


def test_saved_the_same_every_time(images, maps, table, tmp_path):
    figures = {
        "pair": lambda: pair_maps(images, maps, title="t"),
        "grid": lambda: map_grid([[maps["rollout"]]], ["a"], ["b"]),
        "channels": lambda: channel_gates(table),
    }
    for name, draw in figures.items():
        one, two = (save_figure(draw(), tmp_path / folder, name, {"a": 1}) for folder in ("1", "2"))
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert plt.get_fignums() == []
