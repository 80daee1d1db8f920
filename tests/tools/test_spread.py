"""How far a draw moves a score: the table of spreads in closed form, and ladders that get worse."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tools.spread import CODECS, compressed, ordered_share, pairs_of, small, spread_table
from vtamiq.images.distortions import DISTORTIONS
from vtamiq.images.iqms import psnr

ROWS = pd.DataFrame(
    [
        ("a", kind, step, 40.0 - 2 * step, seed, step + 0.1 * seed * (step if kind == "JPEG" else 0))
        for kind in ("JPEG", "WebP")
        for step in range(3)
        for seed in range(2)
    ],
    columns=["reference", "kind", "step", "psnr", "seed", "q"],
)


def test_spread_of_each_kind():
    table = spread_table(ROWS).set_index("kind")
    assert table["pairs"].tolist() == [3, 3]
    assert table["range"].tolist() == pytest.approx([2.1, 2.1])  # mean scores from 0 to 2.1
    assert table.loc["JPEG", "worst_std"] == pytest.approx(np.std([2, 2.2], ddof=1))
    assert table.loc["JPEG", "median_share"] == pytest.approx(np.std([1, 1.1], ddof=1) / 2.1)
    assert table.loc["WebP", "worst_std"] == 0
    assert table["in_order"].tolist() == [1, 1]


def test_steps_below_half_a_decibel_do_not_count():
    rows = ROWS[(ROWS["kind"] == "WebP") & (ROWS["seed"] == 0)].assign(q=[0.0, 2.0, 1.0])
    assert ordered_share(rows) == 0.5
    assert ordered_share(rows.assign(psnr=[40.0, 38.0, 37.6])) == 1
    assert np.isnan(ordered_share(rows.assign(psnr=40.0)))


def test_ladders_get_worse_and_every_type_is_there():
    coarse = np.kron(np.random.default_rng(0).integers(40, 200, (6, 6, 3)), np.ones((16, 16, 1)))
    reference = np.clip(coarse + np.random.default_rng(1).normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
    for codec in CODECS:
        values = [psnr(reference, image) for image in compressed(reference, codec)]
        assert values[0] > values[-1] + 3
    kinds = {kind for kind, _, _ in pairs_of(reference)}
    assert kinds == {*CODECS, *(distortion.name for distortion in DISTORTIONS.values())}
    assert small(np.zeros((1025, 400, 3), np.uint8)).shape == (342, 134, 3)


def test_docs_say_what_was_measured():
    root = Path(__file__).parents[2]
    words = " ".join((root / "docs" / "scoring.md").read_text(encoding="utf-8").split())
    table = pd.read_csv(root / "figures" / "spread_by_kind.csv").set_index("kind")
    of = {codec: table.loc[codec] for codec in CODECS}
    assert (
        "{AVIF[median_share]:.3f} for AVIF and {WebP[median_share]:.3f} for WebP (median over pairs; "
        "{AVIF[worst_share]:.3f} and {WebP[worst_share]:.3f} at worst), {JPEG[median_share]:.3f} for JPEG "
        "({JPEG[worst_share]:.3f}) and {JPEG 2000[median_share]:.3f} for JPEG 2000 ({JPEG 2000[worst_share]:.3f})"
    ).format(**of) in words
    assert (
        "{AVIF[in_order]:.0%} (AVIF), {WebP[in_order]:.0%} (WebP), {JPEG[in_order]:.0%} (JPEG) and "
        "{JPEG 2000[in_order]:.0%} (JPEG 2000)"
    ).format(**of).replace("%", " %") in words
    types = table.drop(index=list(CODECS))["median_share"]
    assert f"between {types.min():.4f} (Gaussian blur) and {types.max():.3f} (non-eccentricity patch)" in words
    assert (types.idxmin(), types.idxmax()) == ("Gaussian blur", "non-eccentricity patch")
