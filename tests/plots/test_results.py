"""Figures of ablations and repeated runs show the numbers of their tables, each where it belongs."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from vtamiq.plots.results import ablation_curve, repeated_runs, variants


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def lines_of(ax) -> dict[str, np.ndarray]:
    """Lines that bear a name, as (n, 2) points."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


@pytest.fixture
def curve():
    n = np.array([256, 8, 64, 16, 32, 128, 512])
    tables = [
        pd.DataFrame(
            {"num_patches": n, "srocc": b - 1 / n, "srocc_low": b - 2 / n, "srocc_high": b, "seconds": n / 100}
        )
        for b in (0.9, 0.8)
    ]
    return pd.concat([table.assign(database=name) for table, name in zip(tables, ("photos", "textures"), strict=True)])


class TestAblationCurve:
    def test_lines_bands_and_costs(self, curve):
        figure = ablation_curve(curve, series="database", title="synthetic labels")
        left, right = figure.axes
        for name, part in curve.groupby("database"):
            part = part.sort_values("num_patches")
            np.testing.assert_array_equal(lines_of(left)[name], part[["num_patches", "srocc"]])
            np.testing.assert_array_equal(lines_of(right)[name], part[["num_patches", "seconds"]])
        for band, (_, part) in zip(left.collections, curve.groupby("database"), strict=True):
            x, y = band.get_paths()[0].vertices.T
            for row in part.itertuples():
                assert {row.srocc_low, row.srocc_high} <= set(y[x == row.num_patches])
        assert {"SROCC", "patches per image", "seconds per pair", "photos", "textures", "synthetic labels"} <= set(
            texts(figure)
        )
        assert left.get_xscale() == right.get_xscale() == right.get_yscale() == "log"
        assert [label.get_text() for label in left.get_xticklabels()] == ["8", "16", "32", "64", "128", "256", "512"]

    def test_lines_differ_by_more_than_colour(self, curve):
        lines = list(ablation_curve(curve, series="database").axes[0].lines)
        assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2

    def test_one_panel_without_cost_interval_and_series(self, curve):
        one = curve[curve["database"] == "photos"].drop(columns=["seconds", "srocc_low", "srocc_high"])
        figure = ablation_curve(one, cost=None, interval=None, logarithmic=False, labels={"srocc": "correlation"})
        (ax,) = figure.axes
        assert not ax.collections
        assert ax.get_xscale() == "linear"
        assert ax.get_ylabel() == "correlation"
        assert figure.legends == []

    def test_unknown_costs_are_left_out(self, curve):
        curve.loc[curve["num_patches"] == 8, "seconds"] = np.nan
        left, right = ablation_curve(curve, series="database").axes
        assert all(len(points) == 7 for points in lines_of(left).values())
        assert all(len(points) == 6 for points in lines_of(right).values())

    @pytest.mark.parametrize("blocks", [[1, 2], [1, 2, 3], [1, 6, 12]])
    def test_whole_numbers_have_no_fractions_on_their_axis(self, blocks):
        table = pd.DataFrame({"blocks": blocks, "srocc": 0.5, "gflops": 1.0})
        for ax in ablation_curve(table, x="blocks", interval=None, cost="gflops", logarithmic=False).axes:
            assert all(tick == round(tick) for tick in ax.get_xticks())

    def test_many_settings_have_fewer_names(self):
        n = 2 ** np.arange(20)
        table = pd.DataFrame({"num_patches": n, "srocc": 0.5})
        (ax,) = ablation_curve(table, interval=None, cost=None).axes
        assert len(ax.get_xticks()) <= 10

    def test_refusals(self, curve):
        with pytest.raises(ValueError, match="no column `srocc_low`"):
            ablation_curve(curve.drop(columns="srocc_low"))
        with pytest.raises(ValueError, match="the table is empty"):
            ablation_curve(curve.head(0))
        with pytest.raises(ValueError, match="two rows for num_patches 256"):
            ablation_curve(curve)  # of two databases


@pytest.fixture
def parts():
    names = ["as trained", "no difference map", "one scale"]
    rows = [(v, d, 0.9 - 0.1 * k - 0.05 * j) for k, v in enumerate(names) for j, d in enumerate(("photos", "textures"))]
    table = pd.DataFrame(rows, columns=["variant", "database", "srocc"])
    return table.assign(srocc_low=table["srocc"] - 0.02, srocc_high=table["srocc"] + 0.01)


class TestVariants:
    def test_points_and_intervals(self, parts):
        figure = variants(parts, group="database", baseline="as trained")
        (ax,) = figure.axes
        assert [label.get_text() for label in ax.get_yticklabels()] == list(parts["variant"].unique())
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top
        for name, points in lines_of(ax).items():
            part = parts[parts["database"] == name]
            np.testing.assert_array_equal(points[:, 0], part["srocc"])
            np.testing.assert_array_equal(np.round(points[:, 1]), [0, 1, 2])
        for bars, (_, part) in zip(ax.collections, parts.groupby("database"), strict=True):
            ends = np.array(bars.get_segments())[..., 0]
            np.testing.assert_allclose(ends, part[["srocc_low", "srocc_high"]])
        levels = {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"}
        assert levels == set(parts.loc[parts["variant"] == "as trained", "srocc"])

    def test_points_of_one_row_stay_apart(self, parts):
        one, two = lines_of(variants(parts, group="database").axes[0]).values()
        assert (two[:, 1] - one[:, 1] > 0.2).all()

    def test_without_group_and_interval(self, parts):
        one = parts[parts["database"] == "photos"].drop(columns=["srocc_low", "srocc_high"])
        figure = variants(one, interval=None, label="SROCC on photos")
        (ax,) = figure.axes
        assert not ax.collections
        assert ax.get_xlabel() == "SROCC on photos"
        assert figure.legends == []

    def test_refusals(self, parts):
        with pytest.raises(
            ValueError, match="the baseline 'all' is none of the variants as trained, no difference map"
        ):
            variants(parts, group="database", baseline="all")
        with pytest.raises(ValueError, match="two rows for variant as trained"):
            variants(parts)
        with pytest.raises(ValueError, match="no column `datebase`; did you mean `database`"):
            variants(parts, group="datebase")


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    rows = [
        (m, d, s, *rng.uniform(size=2)) for m in ("VTAMIQ", "PSNR") for d in ("photos", "textures") for s in range(7)
    ]
    return pd.DataFrame(rows, columns=["method", "database", "seed", "srocc", "plcc"])


class TestRepeatedRuns:
    def test_every_run_and_the_quartiles(self, runs):
        figure = repeated_runs(runs, values=["srocc", "plcc"])
        assert [ax.get_ylabel() for ax in figure.axes] == ["SROCC", "PLCC"]
        for ax, value in zip(figure.axes, ("srocc", "plcc"), strict=True):
            assert [label.get_text() for label in ax.get_xticklabels()] == ["photos", "textures"]
            heights = [line.get_ydata() for line in ax.lines]
            for (_, database), part in runs.groupby(["method", "database"]):
                assert any(np.array_equal(y, part[value]) for y in heights)
                low, median, high = part[value].quantile([0.25, 0.5, 0.75])
                assert any(len(y) == 5 and np.allclose([y.min(), y.max()], [low, high]) for y in heights)
                assert any(len(y) == 2 and np.allclose(y, median) for y in heights)
                for end, quartile in ((part[value].min(), low), (part[value].max(), high)):
                    assert any(len(y) == 2 and np.allclose(sorted(y), sorted([end, quartile])) for y in heights)
                points = next(line for line in ax.lines if np.array_equal(line.get_ydata(), part[value]))
                assert set(np.round(points.get_xdata())) == {["photos", "textures"].index(database)}
        assert {"VTAMIQ", "PSNR"} <= set(texts(figure))

    def test_series_differ_by_colour_and_marker(self, runs):
        (ax,) = repeated_runs(runs).axes
        points = [line for line in ax.lines if len(line.get_xdata()) == 7]
        assert len({(to_hex(line.get_color()), line.get_marker()) for line in points}) == 2
        assert len({line.get_marker() for line in points}) == 2

    def test_runs_that_are_missing(self, runs):
        runs.loc[(runs["database"] == "textures") & (runs["method"] == "PSNR"), "srocc"] = np.nan
        runs.loc[0, "srocc"] = np.nan
        (ax,) = repeated_runs(runs).axes
        assert sorted(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None") == [0, 0, 6, 7, 7]

    def test_runs_are_joined_within_a_group(self, runs):
        runs = runs[(runs["method"] == "VTAMIQ") | (runs["seed"] != 3)]  # one run is missing in one series
        plain, joined = (repeated_runs(runs, joined=column).axes[0] for column in (None, "seed"))
        lines = [line for line in joined.lines if line.get_color() == "0.7"]
        assert len(joined.lines) - len(plain.lines) == len(lines) == 2 * 7
        expected = [part["srocc"].tolist() for _, part in runs.groupby(["database", "seed"])]
        assert sorted(line.get_ydata().tolist() for line in lines) == sorted(expected)
        assert all(round(x) == round(line.get_xdata()[0]) for line in lines for x in line.get_xdata())
        assert repeated_runs(runs.assign(srocc=np.nan), joined="seed").axes[0].lines  # its legend: nothing to join
        with pytest.raises(ValueError, match="no column `run`"):
            repeated_runs(runs, joined="run")

    def test_without_series(self, runs):
        figure = repeated_runs(runs[runs["method"] == "PSNR"], series=None)
        assert figure.legends == []
        assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == 7]) == 2

    def test_refusals(self, runs):
        with pytest.raises(ValueError, match="values must be names of columns, got 'srocc'"):
            repeated_runs(runs, values="srocc")
        with pytest.raises(ValueError, match="no column `krocc`"):
            repeated_runs(runs, values=["krocc"])
        with pytest.raises(ValueError, match="the table is empty"):
            repeated_runs(runs.head(0))
