"""Charts show the numbers of their tables, each where it belongs, and read well."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from vtamiq import plots
from vtamiq.evaluation.correlation import correlations
from vtamiq.plots import ablation_curve, repeated_runs, variants


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(1)
    q = rng.uniform(0, 1, 120)
    score = 5 - 4 / (1 + np.exp(-8 * (q - 0.5))) + rng.normal(0, 0.2, 120)
    return q, score, correlations(q, score, higher_better=True)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def lines_of(ax) -> dict[str, np.ndarray]:
    """Lines that bear a name, as (n, 2) points."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


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
        names = {"srocc": "SROCC", "krocc": "KROCC", "plcc": "PLCC"}
        names |= {"plcc_fitted": "PLCC fitted", "rmse_fitted": "RMSE fitted"}
        assert box == {label: f"{statistics[name]:.3f}" for name, label in names.items()} | {"n": "120"}

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
        with pytest.raises(ValueError, match="no column `val_srocc`; did you mean `val_scorr`"):
            plots.learning_curves(self.history.rename(columns={"val_srocc": "val_scorr"}))
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
        assert [tick.get_text() for tick in ax.get_yticklabels()] == ["noise", "blur", "jpeg"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # from top to bottom
        bars = sorted(ax.patches, key=lambda bar: bar.get_y())
        assert [bar.get_width() for bar in bars] == [0.9, 0.5, -0.2]
        (intervals,) = ax.collections
        np.testing.assert_array_equal(
            [s[:, 0] for s in intervals.get_segments()], [[0.8, 0.95], [0.4, 0.6], [-0.3, 0.1]]
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
        table = {"num_patches": [256, 64], "mean": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.3]}
        (ax,) = plots.draws_spread(pd.DataFrame(table)).axes
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[64, 0.2], [256, 0.1]])
        band = ax.collections[0].get_paths()[0].vertices
        assert {tuple(v) for v in band} == {(64, 0.1), (64, 0.3), (256, 0.05), (256, 0.2)}
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "256"]


# ----------------------------------------------------------------------------------------------------- synthetic labels


class TestHeatmap:
    matrix = pd.DataFrame([[0.5, np.nan], [0.25, 1]], ["a", "b"], ["c", "d"])

    def test_numbers_marks_and_limits(self):
        marks = pd.DataFrame([["*", "*"], ["", "†"]], ["a", "b"], ["c", "d"])
        ax, bar = plots.heatmap(self.matrix, labels=("method", "tested on"), marked=marks, title="synthetic").axes
        assert [text.get_text() for text in ax.texts if text.get_text()] == ["0.500*", "0.250", "1.000†"]
        assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title()) == ("method", "tested on", "synthetic")
        assert ax.collections[0].get_clim() == (0.25, 1)
        assert bar.get_ylabel() == "SROCC"
        (cells,) = plots.heatmap(self.matrix, limits=(0, 2)).axes[0].collections
        assert cells.get_clim() == (0, 2)

    def test_refusals(self):
        with pytest.raises(ValueError, match="the matrix is empty"):
            plots.heatmap(self.matrix.iloc[:0])
        with pytest.raises(ValueError, match="marked must have the shape"):
            plots.heatmap(self.matrix, marked=self.matrix.iloc[:1])


class TestAgreement:
    matrix = pd.DataFrame([[1, 0.5, -0.25], [0.5, 1, 0.061], [-0.25, 0.061, 1]], ["a", "b", "c"], ["a", "b", "c"])

    def test_numbers_and_colours_are_the_matrix(self):
        figure = plots.agreement_matrix(self.matrix, title="synthetic labels")
        ax, bar = figure.axes
        np.testing.assert_array_equal(np.reshape(ax.collections[0].get_array(), (3, 3)), self.matrix)
        assert [text.get_text() for text in ax.texts] == ["1", ".50", "-.25", ".50", "1", ".06", "-.25", ".06", "1"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
        assert ax.collections[0].get_clim() == (-0.3, 1)
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
        (cells,) = plots.agreement_matrix(pd.DataFrame(np.ones((2, 2)))).axes[0].collections
        assert cells.get_clim() == (0.9, 1)

    def test_bad_input(self):
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


# ----------------------------------------------------------------------------------------------- results over settings


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
    table = pd.DataFrame({"variant": ["as trained", "no difference map", "one scale"], "srocc": [0.9, 0.8, 0.7]})
    return table.assign(srocc_low=table["srocc"] - 0.02, srocc_high=table["srocc"] + 0.01)


class TestVariants:
    def test_points_and_intervals(self, parts):
        (ax,) = variants(parts, baseline="no difference map", label="SROCC on photos").axes
        assert [label.get_text() for label in ax.get_yticklabels()] == list(parts["variant"])
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first at the top
        assert ax.get_xlabel() == "SROCC on photos"
        points = next(line for line in ax.lines if line.get_marker() == "o")
        np.testing.assert_array_equal(points.get_xydata(), np.transpose([parts["srocc"], [0, 1, 2]]))
        (intervals,) = ax.collections
        ends = np.array(intervals.get_segments())[..., 0]
        np.testing.assert_allclose(ends, parts[["srocc_low", "srocc_high"]])
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.8]

    def test_without_interval(self, parts):
        (ax,) = variants(parts[["variant", "srocc"]], interval=None).axes
        assert not ax.collections
        assert ax.get_xlabel() == "SROCC"

    def test_refusals(self, parts):
        named = "the baseline 'all' is none of the variants as trained, no difference map"
        with pytest.raises(ValueError, match=named):
            variants(parts, baseline="all")
        with pytest.raises(ValueError, match="two rows for variant as trained"):
            variants(pd.concat([parts, parts]))
        with pytest.raises(ValueError, match="no column `scrocc`; did you mean `srocc`"):
            variants(parts, value="scrocc")


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    rows = [
        (m, d, s, *rng.uniform(size=2)) for m in ("VTAMIQ", "PSNR") for d in ("photos", "textures") for s in range(7)
    ]
    return pd.DataFrame(rows, columns=["method", "database", "seed", "srocc", "plcc"])


class TestRepeatedRuns:
    def test_every_run_and_the_quartiles(self, runs):
        figure = repeated_runs(runs)
        (ax,) = figure.axes
        assert ax.get_ylabel() == "SROCC"
        assert [label.get_text() for label in ax.get_xticklabels()] == ["photos", "textures"]
        heights = [line.get_ydata() for line in ax.lines]
        for (_, database), part in runs.groupby(["method", "database"])["srocc"]:
            low, median, high = part.quantile([0.25, 0.5, 0.75])
            assert any(len(y) == 5 and np.allclose([y.min(), y.max()], [low, high]) for y in heights)
            assert any(len(y) == 2 and np.allclose(y, median) for y in heights)
            for end, quartile in ((part.min(), low), (part.max(), high)):
                assert any(len(y) == 2 and np.allclose(sorted(y), sorted([end, quartile])) for y in heights)
            points = next(line for line in ax.lines if np.array_equal(line.get_ydata(), part))
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

    def test_refusals(self, runs):
        with pytest.raises(ValueError, match="no column `srocc`"):
            repeated_runs(runs.drop(columns="srocc"))
        with pytest.raises(ValueError, match="the table is empty"):
            repeated_runs(runs.head(0))
