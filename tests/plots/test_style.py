"""Figures share one look, leave nothing behind, and are written the same every time."""

import itertools
import json
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vtamiq.caps import CAPS
from vtamiq.plots import draws_spread, pair_scores, patch_sampling, prediction_scatter, style
from vtamiq.plots.style import common_style, figure_settings, read_style, save_figure

SPREAD = pd.DataFrame({"num_patches": [256, 64], "mean": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.3]})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)


@pytest.fixture
def own_style(tmp_path, monkeypatch):
    path = tmp_path / "mine.mplstyle"
    path.write_text("font.size: 11\naxes.prop_cycle: cycler('color', ['FF0000'])\n")
    monkeypatch.setenv("VTAMIQ_FIGURE_STYLE", str(path))
    return path


class TestSaving:
    def draw(self, images):
        return patch_sampling(images[0], {"few": CAPS(num_patches=40)(images, 0)})

    def test_same_bytes_for_the_same_figure(self, images, tmp_path):
        table = pd.DataFrame({"name": ["a", "b"], "value": [0.1 + 0.2, 1e-17]})
        formats = ("svg", "png", "pdf")
        figure = self.draw(images)
        first = save_figure(figure, tmp_path / "new" / "one", "fig", table, formats=formats)
        second = save_figure(self.draw(images), tmp_path / "two", "fig", table, formats=formats)
        again = save_figure(figure, tmp_path / "three", "fig", table, formats=formats)
        assert [path.name for path in first] == ["fig.svg", "fig.png", "fig.pdf", "fig.csv"]
        for paths in zip(first, second, again, strict=True):
            assert len({path.read_bytes() for path in paths}) == 1

    def test_same_bytes_from_another_process(self, tmp_path):
        script = """if True:
            import pandas as pd, sys
            from vtamiq.plots import draws_spread, save_figure
            save_figure(draws_spread(pd.read_csv(sys.argv[1])), sys.argv[2], "fig", formats=["svg"])"""
        SPREAD.to_csv(tmp_path / "table.csv", index=False)
        subprocess.run([sys.executable, "-c", script, tmp_path / "table.csv", tmp_path / "two"], check=True)
        (path,) = save_figure(draws_spread(SPREAD), tmp_path, "fig", formats=["svg"])
        assert path.read_bytes() == (tmp_path / "two" / "fig.svg").read_bytes()

    def test_no_date_and_no_version(self, images, tmp_path):
        svg, png, pdf = save_figure(self.draw(images), tmp_path, "fig", formats=["svg", "png", "pdf"])
        assert "dc:date" not in svg.read_text()
        assert "Matplotlib v" not in svg.read_text()
        assert b"Software" not in png.read_bytes()
        for word in (b"CreationDate", b"Producer", b"Creator", b"atplotlib"):
            assert word not in pdf.read_bytes()

    def test_pdf_has_its_fonts(self, tmp_path):
        (path,) = save_figure(draws_spread(SPREAD), tmp_path, "fig", formats=["pdf"])
        content = path.read_bytes()
        assert content.startswith(b"%PDF-1.4")
        assert b"/FontFile2" in content  # TrueType, as publishers ask for; type 3 is what they refuse
        assert b"/Type3" not in content

    def test_data_round_trip(self, tmp_path):
        figure = draws_spread(SPREAD)
        table = pd.DataFrame({"n": [1, 2], "name": ["ä, b", '"c"'], "value": [1 / 3, np.nan]})
        csv = save_figure(figure, tmp_path, "table", table)[-1]
        pd.testing.assert_frame_equal(pd.read_csv(csv), table)
        assert "0.3333333333333333" in csv.read_text(encoding="utf-8")
        values = {"a": np.float32(0.5), "b": np.arange(3), "c": {"d": (True, None, "ü")}, "e": float("nan")}
        path = save_figure(figure, tmp_path, "values", values)[-1]
        expected = {"a": 0.5, "b": [0, 1, 2], "c": {"d": [True, None, "ü"]}, "e": None}
        assert json.loads(path.read_text(encoding="utf-8")) == expected

    def test_resolution(self, tmp_path, monkeypatch):
        _, path = save_figure(draws_spread(SPREAD), tmp_path, "usual")
        assert plt.imread(path).shape[:2] == (500, 700)  # 2.5 by 3.5 inches at 200 dpi
        monkeypatch.setattr(style, "MAX_BYTES", {"svg": 60_000, "png": 1000})
        (path,) = save_figure(draws_spread(SPREAD), tmp_path, "asked", formats=["png"], dpi=300)
        assert plt.imread(path).shape[1] == 1050

    def test_files_stay_small_whichever_are_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(style, "MAX_BYTES", {"svg": 450_000, "png": 300_000})
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        figure = pair_scores([noise, noise], [0.5])
        svg, png = save_figure(figure, tmp_path, "noise")
        assert svg.stat().st_size <= 450_000
        assert png.stat().st_size <= 300_000
        (alone,) = save_figure(figure, tmp_path / "alone", "noise", formats=["png"])
        assert alone.read_bytes() == png.read_bytes()

    def test_ten_thousand_patches_stay_small(self, tmp_path):
        image = np.random.default_rng(0).integers(0, 256, (384, 512, 3), dtype=np.uint8)
        svg, png = save_figure(patch_sampling(image, {"many": CAPS(num_patches=10_000)(image[None], 0)}), tmp_path, "a")
        assert svg.stat().st_size < 1_500_000
        assert png.stat().st_size < 1_000_000

    @pytest.mark.parametrize(
        ("name", "formats", "message"),
        [
            *((name, None, "name must be") for name in ("", "a/b", "fig.svg", "../fig", "fig.pdf")),
            ("a", ["jpg"], "must be some of svg, png, pdf, got"),
            ("a", "svg", "must be some of svg, png, pdf, got 'svg'"),
        ],
    )
    def test_refusals_leave_no_file(self, name, formats, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            save_figure(Figure(), tmp_path, name, formats=formats)
        assert not list(tmp_path.iterdir())


class TestSettings:
    def test_formats_of_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("VTAMIQ_FIGURE_FORMATS", "pdf png")
        assert figure_settings() == {"formats": ["pdf", "png"], "style": {}}
        assert [path.name for path in save_figure(draws_spread(SPREAD), tmp_path, "a")] == ["a.pdf", "a.png"]
        monkeypatch.setenv("VTAMIQ_FIGURE_FORMATS", "gif")
        with pytest.raises(ValueError, match="must be some of svg, png, pdf"):
            figure_settings()

    def test_own_style_of_the_environment(self, own_style):
        before = dict(matplotlib.rcParams)
        with common_style():
            assert matplotlib.rcParams["font.size"] == 11
            assert matplotlib.rcParams["axes.titlesize"] == 8  # all else as ever
        assert dict(matplotlib.rcParams) == before
        (line,) = draws_spread(SPREAD).axes[0].lines
        assert to_rgb(line.get_color()) == (1, 0, 0)
        changes = figure_settings()["style"]
        assert changes["font.size"] == "11.0"
        own_style.write_text("font.size: 12\n")
        assert figure_settings()["style"] != changes

    @pytest.mark.parametrize(
        ("text", "message"),
        [("", "no setting in it"), ("font.size: big", "is no Matplotlib style file"), (b"\xff", "no")],
    )
    def test_bad_style(self, text, message, tmp_path):
        path = tmp_path / "bad.mplstyle"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            read_style(path)
        with pytest.raises(FileNotFoundError):
            read_style(tmp_path / "absent")


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
        with common_style():
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
        with common_style():
            assert len(set(style.MARKERS)) == len(matplotlib.rcParams["axes.prop_cycle"])

    def test_no_text_is_small(self):
        with common_style():
            sizes = {
                key: value for key, value in matplotlib.rcParams.items() if key.endswith(("labelsize", "font.size"))
            }
        assert min(value for value in sizes.values() if isinstance(value, float)) >= 7


def test_figures_belong_to_nobody(images):
    before = dict(matplotlib.rcParams)
    figure = pair_scores(images, [0.5])
    prediction_scatter([1, 2], [1, 2])
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG")
