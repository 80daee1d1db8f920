"""Figures of a run are drawn again from its files: same bytes, other formats, and never by code that a file names."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.small import TINY
from tests.tools.benchmark.test_plots import made
from tools.benchmark import plots as cost_plots
from vtamiq.caps import CAPS
from vtamiq.evaluation.correlation import correlations
from vtamiq.lab.redraw import DATA_FOLDER, FUNCTIONS, RedrawError, figures_folder, keep_figure, redraw
from vtamiq.model.network import VTAMIQ
from vtamiq.plots import attention as attention_plots
from vtamiq.plots import charts as plots
from vtamiq.plots import diagrams
from vtamiq.plots import results as result_plots
from vtamiq.plots.recipes import find_recipes

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
HISTORY = pd.DataFrame({"epoch": [0, 1], "train_loss": [1.0, 0.5], "val_srocc": [np.nan, 0.3]})


def draw_all() -> dict[str, Figure]:
    """A figure by every function there is, drawn from the kinds of things that notebooks draw from."""
    rng = np.random.default_rng(1)
    caps = CAPS(num_patches=60, num_scales=2)
    sample, q = caps(IMAGES, 0), rng.uniform(size=40)
    rows = pd.DataFrame({"q": q, "score": 5 - 4 * q, "dist_name": ["a", "b"] * 20}, index=range(3, 83, 2))
    found = correlations(rows["q"], rows["score"], higher_better=True)
    maps = {"rollout": rng.uniform(size=(64, 80)), "gradient": rng.normal(size=(64, 80))}
    table = pd.DataFrame(
        {"dist_name": ["a", "b"], "srocc": [0.5, 0.7], "srocc_low": [0.4, 0.6], "srocc_high": [0.6, 0.8]}
    )
    square = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["x", "y"], columns=["x", "y"])
    counts = table.assign(num_patches=[8, 16], seconds=[0.1, 0.2], variant=["a", "b"], database="d", method="m")
    channels = pd.DataFrame(
        {"group": 0, "block": 0, "channel": range(8), "gate": rng.uniform(size=8), "before": 1.0, "after": 0.5}
    )
    model = VTAMIQ(TINY)
    histogram = pd.DataFrame({"label": "l", "low": [0, 0.5], "high": [0.5, 1.0], "before": [1, 2], "after": [2, 1]})
    spread = pd.DataFrame({"num_patches": [8, 16], "mean": [2.0, 1.0], "low": 0.5, "high": 3.0})
    measured = made()
    scatter = {"groups": rows["dist_name"], "statistics": found, "title": "t"}
    cells = [list(IMAGES), list(IMAGES)]
    return {
        "agreement": plots.agreement_matrix(square, title="t"),
        "bars": plots.bars(table, interval=("srocc_low", "srocc_high")),
        "sheet": plots.contact_sheet(cells, ["r", "s"], ["c", "d"], reference=IMAGES[0], crop=32),
        "sheet-whole": plots.contact_sheet(cells, ["r", "s"], ["c", "d"]),
        "spread": plots.draws_spread(spread),
        "heatmap": plots.heatmap(square.rename_axis("rows"), marked=square == 1, limits=(0.0, 1.0)),
        "heatmap-marks": plots.heatmap(
            square, marked=pd.DataFrame([["†", ""], ["*", ""]], square.index, square.columns)
        ),
        "histograms": plots.label_histograms(histogram),
        "curves": plots.learning_curves(HISTORY),
        "scores": plots.pair_scores(IMAGES, np.array([0.5]), errors=[np.float64(0.25)]),
        "density": plots.patch_density(IMAGES[0], sample),
        "sampling": plots.patch_sampling(IMAGES[0], {60: sample, "one": sample}, columns=2),
        "multiscale": plots.patch_sampling_multiscale(IMAGES[1], sample, index=1),
        "scatter": plots.prediction_scatter(rows["q"], rows["score"], found["fit"], **scatter),
        "components": plots.sampling_components(IMAGES, caps.components(IMAGES), caps.probability(IMAGES)),
        "seen": plots.seen_patches(IMAGES, sample, [0.5]),
        "uv": plots.uv_indexing(IMAGES[0], sample, np.int64(6)),
        "gates": attention_plots.channel_gates(channels),
        "grid": attention_plots.map_grid([[maps["rollout"]]], ["r"], ["c"], notes=[["n"]]),
        "pair": attention_plots.pair_maps(IMAGES, maps, region=maps["rollout"] > 0.99, notes={"rollout": "AUC"}),
        "vit": diagrams.vit_diagram(model),
        "vtamiq": diagrams.vtamiq_diagram(model, images=IMAGES),
        "ablation": result_plots.ablation_curve(counts),
        "runs": result_plots.repeated_runs(counts),
        "variants": result_plots.variants(counts),
        "costs": cost_plots.cost_panels(measured),
        "precisions": cost_plots.precision_gains(measured),
        "speed": cost_plots.speed_ups(measured),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a figure of every kind."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    for name, figure in draw_all().items():
        keep_figure(figure, run, name, HISTORY if name == "curves" else {"n": np.float32(0.5), "nan": np.nan})
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    keep_figure(plots.learning_curves(HISTORY), run, "curves", HISTORY)
    keep_figure(plots.pair_scores(IMAGES, [0.5]), run, "scores")
    return run


@pytest.fixture
def small(whole, tmp_path):
    """A run with two figures, to be damaged."""
    return shutil.copytree(whole, tmp_path / "runs" / "small")


def contents(paths) -> dict[str, bytes]:
    return {Path(path).name: Path(path).read_bytes() for path in paths}


class TestRedraw:
    def test_every_function_is_known(self, run):
        names = {json.loads(path.read_text())["function"] for path in (run / DATA_FOLDER).glob("*.json")}
        assert names == set(FUNCTIONS)
        for module in (plots, attention_plots, diagrams, result_plots, cost_plots):
            annotated = [
                name for name in module.__all__ if getattr(module, name).__annotations__.get("return") is Figure
            ]
            assert {f"{module.__name__.removeprefix('vtamiq.')}.{name}" for name in annotated} <= set(FUNCTIONS)

    def test_the_same_bytes(self, run, tmp_path):
        paths = redraw(run, tmp_path / "again")
        before, after = contents((run / "figures").iterdir()), contents(paths)
        assert sorted(before) == sorted(after) == sorted(path.name for path in (tmp_path / "again").iterdir())
        assert [name for name in before if before[name] != after[name]] == []
        assert {"curves.csv", "scores.json", "scores.png", "scores.svg"} <= set(after)

    def test_in_their_place_with_their_recipes_untouched(self, small):
        before = contents([*(small / "figures").iterdir(), *(small / DATA_FOLDER).iterdir()])
        (small / "figures" / "curves.png").unlink()
        assert {path.parent for path in redraw(small)} == {small / "figures"}
        assert contents([*(small / "figures").iterdir(), *(small / DATA_FOLDER).iterdir()]) == before

    def test_pdf_by_another_process_has_the_same_bytes(self, run, tmp_path):
        """Where sets of text have another order."""
        names = ["curves", "scatter", "sheet", "vit"]
        ours = contents(redraw(run, tmp_path / "ours", only=names, kinds=["pdf"]))
        assert sorted(ours) == sorted([f"{n}.pdf" for n in names] + ["curves.csv", *(f"{n}.json" for n in names[1:])])
        command = [sys.executable, "-m", "vtamiq", "figures", str(run), "--out", str(tmp_path / "theirs"), "--only"]
        environment = os.environ | {"PYTHONHASHSEED": "7"}
        subprocess.run([*command, *names, "--format", "pdf"], check=True, env=environment, capture_output=True)
        assert contents((tmp_path / "theirs").iterdir()) == ours

    def test_dpi(self, small, tmp_path):
        (path,) = redraw(small, tmp_path, only=["scores"], kinds=["png"], dpi=100)
        assert Image.open(path).width == 700
        keep_figure(plots.learning_curves(HISTORY), small, "curves", dpi=60)
        (path,) = redraw(small, tmp_path, only=["curves"], kinds=["png"])
        assert path.read_bytes() == (small / "figures" / "curves.png").read_bytes()

    def test_style(self, small, tmp_path):
        (tmp_path / "mine.mplstyle").write_text(
            'axes.prop_cycle: cycler("color", ["123456"])\nfont.family: DejaVu Serif\n'
        )
        svg, _ = redraw(small, tmp_path / "out", only="curves", kinds=["svg"], style=tmp_path / "mine.mplstyle")
        assert "#123456" in svg.read_text()
        assert "#0072b2" not in svg.read_text()
        assert "DejaVuSerif" in svg.read_text()
        svg, _ = redraw(small, tmp_path / "out", only="curves", kinds=["svg"])  # nothing of it stays
        assert svg.read_bytes() == (small / "figures" / "curves.svg").read_bytes()

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            (None, FileNotFoundError, "no.mplstyle"),
            (b"", ValueError, "has no setting in it"),
            (b"\xff\xff", ValueError, "no Matplotlib style file"),
            (b"font.size: large", ValueError, "no Matplotlib style file"),
        ],
    )
    def test_bad_style(self, text, error, message, small, tmp_path):
        if text is not None:
            (tmp_path / "no.mplstyle").write_bytes(text)
        with pytest.raises(error, match=message):
            redraw(small, style=tmp_path / "no.mplstyle")

    def test_only(self, run, tmp_path):
        drawn = redraw(run, tmp_path, only=["sheet*", "bars"], kinds=["png"])
        assert sorted(path.name for path in drawn if path.suffix == ".png") == [
            "bars.png",
            "sheet-whole.png",
            "sheet.png",
        ]
        with pytest.raises(ValueError, match=r"no figure 'sheets'; did you mean `sheet`\?; there are ablation, "):
            redraw(run, tmp_path, only=["bars", "sheets"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kinds": ["gif"]}, "kinds must be some of svg, png, pdf, got"),
            ({"kinds": "png"}, "kinds must be"),
            ({"kinds": []}, "kinds must be"),
            ({"dpi": 7}, "dpi must lie between 50 and 2400, got 7"),
        ],
    )
    def test_bad_output(self, options, message, small, tmp_path):
        with pytest.raises(ValueError, match=message):
            redraw(small, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    def test_no_run_and_a_run_without_recipes(self, tmp_path):
        with pytest.raises(ValueError, match="no such run; `make reproduce` makes one in runs/demo"):
            redraw(tmp_path / "runs")
        with pytest.raises(ValueError, match="no figures in figure_data; run its notebooks again"):
            redraw(tmp_path)


class TestTrouble:
    def edit(self, run, name, **changes):
        path = run / DATA_FOLDER / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"function": "plots.save_figure"}, "no figure function 'plots.save_figure' here"),
            ({"function": "plots.pair_score"}, r"'plots.pair_score' here; did you mean `plots.pair_scores`\?"),
            ({"function": "os.system", "arguments": {"command": "touch here"}}, "no figure function 'os.system' here"),
            ({"arguments": {"images": 3, "colour": 1}}, "TypeError: pair_scores.. got an unexpected keyword"),
            ({"arguments": {"images": [], "scores": []}}, "at least 2 images are needed"),
            ({"data": 3}, "data must be a DataFrame or a mapping, got int"),
            ({"dpi": 1e9}, "dpi must lie between"),
            ({"format": 0}, "scores.json has format 0"),
        ],
    )
    def test_the_others_are_drawn(self, changes, message, small, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.edit(small, "scores", **changes)
        with pytest.raises(RedrawError, match=message) as caught:
            redraw(small, tmp_path / "out")
        assert list(caught.value.failed) == ["scores"]
        assert sorted(path.name for path in caught.value.drawn) == ["curves.csv", "curves.png", "curves.svg"]
        assert sorted((tmp_path / "out").iterdir()) == sorted(caught.value.drawn)
        assert not (tmp_path / "here").exists()

    def test_a_disk_without_room_is_not_blamed_on_a_figure(self, small, monkeypatch):
        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(plots, "save_figure", full)
        with pytest.raises(OSError, match="No space left"):
            redraw(small)


class TestKeep:
    def test_a_figure_of_ones_own_is_saved_with_a_warning(self, small, caplog):
        paths = keep_figure(Figure(), small, "scores")
        assert [path.name for path in paths] == ["scores.svg", "scores.png"]
        assert "figure scores cannot be drawn again" in caplog.text
        assert "no figure function of this package drew it" in caplog.text
        assert find_recipes(small / DATA_FOLDER) == ["curves"]  # that of the former figure is gone

    def test_what_cannot_be_kept_is_named(self, small, caplog):
        figure = plots.prediction_scatter([0.1, 0.2], [1.0, 2.0], lambda q: 10 * q)
        keep_figure(figure, small, "scatter")
        assert (small / "figures" / "scatter.png").is_file()
        assert "plots.prediction_scatter: fit is a function, which cannot be kept" in caplog.text

    def test_no_warning_otherwise(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            keep_figure(plots.learning_curves(HISTORY), tmp_path, "curves")
        assert caplog.text == ""

    def test_of_a_contact_sheet_only_what_it_shows(self, tmp_path):
        cells = [[np.random.default_rng(k).integers(0, 256, (400, 400, 3), dtype=np.uint8) for k in range(2)]]
        keep_figure(plots.contact_sheet(cells, ["r"], ["a", "b"], reference=cells[0][0], crop=20), tmp_path, "sheet")
        assert (tmp_path / DATA_FOLDER / "sheet.npz").stat().st_size < 3 * 20 * 20 * 3 + 1000
        assert cells[0][0].shape == (400, 400, 3)

    def test_folder_of_figures(self, tmp_path):
        usual = tmp_path / "runs" / "demo"
        assert figures_folder(usual) == usual / "figures"  # no repository here
        (tmp_path / "notebooks").mkdir()
        assert figures_folder(usual) == tmp_path / "figures"
        assert figures_folder(tmp_path / "runs" / "smoke") == tmp_path / "runs" / "smoke" / "figures"
        assert figures_folder(tmp_path / "demo") == tmp_path / "demo" / "figures"
