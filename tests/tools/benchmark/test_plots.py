"""Figures of costs show what the table says."""

import numpy as np
import pandas as pd
import pytest

from tools.benchmark.plots import cost_panels, precision_gains, speed_ups
from tools.benchmark.timing import COLUMNS


def made():
    """A table of every part with numbers that are easy to tell apart."""
    rows = []
    for part, what, settings in (
        ("patches", "scoring", (64, 128, 256)), ("patches", "training step", (64, 128, 256)),
        ("images", "decoding two PNG files", (0.2, 12)), ("images", "network", (0.2, 12)), ("batch", "scoring", (1, 2)),
        ("blocks", "scoring", (1, 2, 3)), ("workers", "an item", (0, 1, 2)),
    ):  # fmt: skip
        rows += [{"part": part, "what": what, "x": x, "ratio": 1, "seconds": 2 * x + 1, "fastest": x + 1,
                  "slowest": 4 * x + 1} for x in settings]  # fmt: skip
    for what in ("scoring", "training step"):
        rows += [{"part": "memory", "what": what, "x": x, "mebibytes": 512 * (x + 1)} for x in (0, 4)]
    rows.append({"part": "memory", "what": "time of a training step", "x": 4, "seconds": 1, "ratio": 0.7})
    for k, what in enumerate(("CPU: float32", "CPU: bfloat16", "CPU: float16")):
        rows.append({"part": "precision", "what": what, "ratio": k + 1, "lowest": k, "highest": k + 2, "error": k / 100,
                     "score_range": 0.5})  # fmt: skip
    for k, against in enumerate(("plain twin", "plain twin", "best float32 rate")):
        rows.append({"part": "network", "what": f"scoring {k}", "against": against, "ratio": k + 1, "lowest": k,
                     "highest": k + 2, "goal": 1.5})  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def lines(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}


def test_a_panel_for_each_part():
    figure = cost_panels(made(), title="t")
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in panels] == [
        "patches per image", "megapixels per image", "pairs at once", "blocks kept", "loading workers", "pairs at once",
    ]  # fmt: skip
    assert lines(panels[0])["scoring"] == [[64, 129], [128, 257], [256, 513]]
    assert lines(panels[4])["an item"] == [[0, 1], [1, 1 / 3], [2, 1 / 5]]
    assert lines(panels[5]) == {"scoring": [[0, 0.5], [4, 2.5]], "training step": [[0, 0.5], [4, 2.5]]}
    band = panels[4].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1 / 9, 1)
    colours = [ax.lines[0].get_color() for ax in (panels[0], panels[2], panels[3], panels[5])]
    assert len(set(colours)) == 1  # scoring, everywhere
    assert {line.get_label(): line.get_color() for line in panels[1].lines}["network"] == colours[0]
    assert figure.get_suptitle() == "t"


def test_some_parts():
    figure = cost_panels(made(), parts=["workers"])
    assert [ax.get_ylabel() for ax in figure.axes] == ["items per second"]
    for parts in (["disk"], ["network"], []):
        with pytest.raises(ValueError, match=r"parts must be among patches, images, batch, .* and measured"):
            cost_panels(made(), parts=parts)
    with pytest.raises(ValueError, match="and measured, got none"):
        cost_panels(made().query("part == 'network'"))
    with pytest.raises(ValueError, match="no column `seconds`"):
        cost_panels(made().drop(columns="seconds"))


def test_gains_and_errors():
    gain, error = precision_gains(made()).axes
    assert [text.get_text() for text in gain.get_yticklabels()] == ["CPU: bfloat16", "CPU: float16"]
    assert gain.lines[0].get_xdata().tolist() == [2, 3]
    assert np.array(gain.collections[0].get_segments())[:, :, 0].tolist() == [[1, 3], [2, 4]]
    assert error.lines[0].get_xdata().tolist() == [0.01, 0.02]
    assert error.lines[1].get_xdata() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no measurement of the part precision"):
        precision_gains(made().query("part == 'network'"))


def test_ratios_and_goals():
    figure = speed_ups(made())
    twin, best = figure.axes
    assert (twin.get_xlabel(), best.get_xlabel()) == ("times the speed of plain twin", "share of the best float32 rate")
    assert twin.lines[0].get_xdata().tolist() == [1, 2]
    ranges, goals = (np.array(drawn.get_segments())[:, :, 0].tolist() for drawn in twin.collections)
    assert ranges == [[0, 2], [1, 3]]
    assert goals == [[1.5, 1.5], [1.5, 1.5]]
    assert [text.get_text() for text in best.get_yticklabels()] == ["scoring 2"]
    with pytest.raises(ValueError, match="no row with a goal"):
        speed_ups(made().assign(goal=np.nan))
