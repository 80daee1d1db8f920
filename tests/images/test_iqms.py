"""The eleven metrics against piq and their own directions; quantile tables and weak labels against hand-computed
cases."""

import json
import math

import numpy as np
import pandas as pd
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage import data

from vtamiq.images import iqms
from vtamiq.images.iqms import (
    CHEAP_IQMS,
    IQMS,
    QuantileTables,
    agreement_weights,
    align,
    iqm_scores,
    label_counts,
    psnr,
    scale_regime,
    weak_labels,
)

PIQ = {
    "ssim": piq.ssim,
    "ms_ssim": piq.multi_scale_ssim,
    "iw_ssim": piq.information_weighted_ssim,
    "fsimc": piq.fsim,
    "sr_sim": piq.srsim,
    "vsi": piq.vsi,
    "mdsi": piq.mdsi,
    "gmsd": piq.gmsd,
    "haarpsi": piq.haarpsi,
    "dss": piq.dss,
    "vifp": piq.vif_p,
}


def photograph():
    return np.ascontiguousarray(data.astronaut()[20:196, 120:296])


def noisy(image, sigma=12.0, seed=0):
    noise = np.random.default_rng(seed).normal(scale=sigma, size=image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def blurred(image, sigma):
    return gaussian_filter(image, (sigma, sigma, 0))


def as_tensor(image):
    return torch.tensor(image).permute(2, 0, 1)[None] / 255


def flat(value, side=176):
    return np.full((side, side, 3), value, np.uint8)


# ----------------------------------------------------------------------------------------------------- the metrics


def test_the_eleven():
    assert list(IQMS) == list(PIQ)
    assert all(name == iqm.name for name, iqm in IQMS.items())
    assert {n for n, iqm in IQMS.items() if not iqm.higher_better} == {"mdsi", "gmsd"}
    assert set(CHEAP_IQMS) < set(IQMS)


@pytest.mark.parametrize("name", IQMS)
def test_each_metric_is_piqs(name):
    reference = photograph()
    distorted = noisy(reference)
    ours = iqm_scores(reference, distorted, [name])
    assert list(ours) == [name]
    assert type(ours[name]) is float
    assert ours[name] == pytest.approx(float(PIQ[name](as_tensor(distorted), as_tensor(reference))), abs=1e-6)


@pytest.mark.parametrize("name", ["mdsi", "iw_ssim", "vifp"])
def test_the_order_of_the_images_matters(name):
    reference, distorted = photograph(), blurred(photograph(), 2)
    right = iqm_scores(reference, distorted, [name])[name]
    swapped = iqm_scores(distorted, reference, [name])[name]
    assert right == pytest.approx(float(PIQ[name](as_tensor(distorted), as_tensor(reference))), abs=1e-6)
    assert abs(right - swapped) > 1e-4


def test_more_distortion_is_worse_in_every_metric():
    reference = photograph()
    noise = [reference, *(noisy(reference, sigma) for sigma in (4, 12, 36))]
    blur = [reference, *(blurred(reference, sigma) for sigma in (0.7, 1.5, 3))]
    for series in (noise, blur):
        distortions = align(pd.DataFrame([iqm_scores(reference, image) for image in series]))
        assert (distortions.iloc[0] == 0).all()
        assert (distortions.diff().iloc[1:] > 0).all().all()


def test_identical_images_are_perfect():
    for image in (photograph(), flat(0), flat(255), np.zeros((1, 1, 3), np.uint8)):
        scores = iqm_scores(image, image.copy())
        assert scores == {name: 0.0 if name in ("mdsi", "gmsd") else 1.0 for name in IQMS}


@pytest.mark.parametrize("name", IQMS)
def test_the_perfect_value_is_what_the_metric_gives(name):
    image = as_tensor(photograph())
    assert float(PIQ[name](image, image)) == pytest.approx(IQMS[name].perfect, abs=1e-5)


def works(name, side):
    reference, distorted = as_tensor(photograph()), as_tensor(noisy(photograph()))
    try:  # too small an image makes some metrics raise one thing or another, others return NaN
        return math.isfinite(PIQ[name](distorted[..., :side, :side], reference[..., :side, :side]))
    except (ValueError, RuntimeError, AssertionError, IndexError):
        return False


@pytest.mark.parametrize("name", IQMS)
def test_the_smallest_side_is_the_smallest(name):
    side = IQMS[name].min_side
    assert works(name, side)
    assert side == 1 or not works(name, side - 1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 5), (40, 300), (1, 200), (161, 17)])
def test_small_images_are_finite(shape):
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    scores = iqm_scores(reference, noisy(reference, 30))
    assert list(scores) == list(IQMS)
    assert np.isfinite(list(scores.values())).all()


def test_small_images_are_mirrored():
    reference = photograph()[:50, :60]
    distorted = noisy(reference)
    wide = [np.pad(image, [(55, 56), (50, 51), (0, 0)], mode="symmetric") for image in (reference, distorted)]
    small, mirrored = iqm_scores(reference, distorted), iqm_scores(*wide, names=["ms_ssim"])
    assert small["ms_ssim"] == mirrored["ms_ssim"]
    assert small["ssim"] == pytest.approx(float(piq.ssim(as_tensor(distorted), as_tensor(reference))), abs=1e-6)


def ramp(side=176):
    return np.repeat(np.linspace(0, 255, side).astype(np.uint8)[None, :, None], side, axis=0).repeat(3, axis=2)


@pytest.mark.parametrize(
    ("reference", "distorted"),
    [
        (flat(128), noisy(flat(128), 30)),
        (flat(0), noisy(flat(0), 90)),
        (flat(128), flat(130)),
        (flat(255), flat(254)),
        (flat(0), flat(255)),
        (flat(255), flat(0)),
        (photograph(), flat(128)),
        (ramp(), noisy(ramp())),
        (np.where(ramp() > 127, 255, 0).astype(np.uint8), flat(90)),
        (photograph()[..., :1].repeat(3, axis=2), noisy(photograph())[..., :1].repeat(3, axis=2)),
    ],
    ids=[
        "flat-noise",
        "black-noise",
        "greys",
        "whites",
        "black-white",
        "white-black",
        "wiped-out",
        "ramp",
        "edge",
        "grey photo",
    ],
)
def test_constant_structured_and_grey_images_are_finite(reference, distorted):
    scores = iqm_scores(reference, distorted)
    assert np.isfinite(list(scores.values())).all()
    assert scores["vifp"] <= 1
    if np.abs(reference.astype(int) - distorted).min() > 200:  # black for white is no perfect copy
        assert all(IQMS[name].distortion(score) > 0 for name, score in scores.items())


def test_fallbacks_where_the_reference_holds_no_information():
    black, noise = flat(0), noisy(flat(0), 90)
    scores = iqm_scores(black, noise)
    assert float(piq.vif_p(as_tensor(noise), as_tensor(black))) == pytest.approx(1)  # called perfect
    assert scores["vifp"] == scores["ssim"] < 0.1
    assert scores["iw_ssim"] == scores["ms_ssim"] < 0.3
    striped = iqm_scores(ramp(), noisy(ramp()))
    assert striped["iw_ssim"] == striped["ms_ssim"]
    assert striped["vifp"] != striped["ssim"]


def test_a_metric_without_a_finite_value_is_an_error(monkeypatch):
    broken = {**IQMS, "gmsd": type(IQMS["gmsd"])("gmsd", "GMSD", lambda d, r: torch.tensor(math.nan))}
    monkeypatch.setattr("vtamiq.images.iqms.IQMS", broken)
    with pytest.raises(ValueError, match=r"GMSD is nan for this pair of shape \(176, 176, 3\); leave 'gmsd' out"):
        iqm_scores(photograph(), noisy(photograph()), ["gmsd"])


def test_vifp_does_not_exceed_a_perfect_copy():
    gain = photograph()
    reference = 64 + gain // 2
    assert float(piq.vif_p(as_tensor(gain), as_tensor(reference))) > 1
    assert iqm_scores(reference, gain, ["vifp"]) == {"vifp": 1.0}


def test_a_pair_scores_the_same_in_any_company():
    reference = photograph()
    first = iqm_scores(reference, noisy(reference), ["sr_sim", "dss"])
    iqm_scores(flat(3), noisy(flat(3)))
    again = iqm_scores(reference, noisy(reference))
    assert first == {"sr_sim": again["sr_sim"], "dss": again["dss"]}
    threads = torch.get_num_threads()
    assert iqm_scores(reference, noisy(reference), "dss") == {"dss": again["dss"]}
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_arguments_are_left_as_they_were():
    reference, distorted = photograph(), noisy(photograph())
    before = reference.copy(), distorted.copy()
    reference.setflags(write=False)
    iqm_scores(reference, distorted, CHEAP_IQMS)
    np.testing.assert_array_equal(reference, before[0])
    np.testing.assert_array_equal(distorted, before[1])


def test_psnr():
    black, image = flat(0, side=4), flat(0, side=4)
    image[0, 0] = (255, 255, 255)  # mean squared error 255² / 16
    assert psnr(black, image) == pytest.approx(10 * math.log10(16))
    assert psnr(black, flat(255, side=4)) == 0
    assert psnr(black, black) == 100
    assert "psnr" not in IQMS


def test_scale_regime_is_where_piq_changes_scale():
    assert [scale_regime((side, 1000)) for side in (1, 383, 384, 639, 641)] == [1, 1, 2, 2, 3]
    assert scale_regime((500, 200, 3)) == 1
    assert {n for n, iqm in IQMS.items() if iqm.pools_by_size} == {"ssim", "fsimc", "sr_sim", "vsi", "mdsi"}
    reference = as_tensor(np.tile(photograph(), (3, 3, 1))[:384, :384])
    distorted = as_tensor(noisy(np.tile(photograph(), (3, 3, 1)))[:384, :384])
    for name in ("ssim", "vsi", "mdsi", "gmsd", "haarpsi"):
        jump = abs(float(PIQ[name](distorted, reference) - PIQ[name](distorted[..., 1:, :], reference[..., 1:, :])))
        assert (jump > 5e-3) == IQMS[name].pools_by_size, name


@pytest.mark.parametrize(
    ("reference", "distorted", "message"),
    [
        (flat(0), flat(0)[..., 0], r"the distorted image must be a uint8 RGB array .* got uint8 of shape \(176, 176\)"),
        (flat(0).astype(float), flat(0), "the reference image must be a uint8 RGB array .* got float64"),
        (flat(0), [[0]], "the distorted image must be a uint8 RGB array .* got list"),
        (flat(0), flat(0, side=175), "differ in size: the reference image is 176 x 176 and the distorted"),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8), "the reference image must be a uint8 RGB array"),
    ],
)
def test_bad_pairs_are_refused(reference, distorted, message):
    for function in (iqm_scores, psnr):
        with pytest.raises(ValueError, match=message):
            function(reference, distorted)


def test_bad_names_are_refused():
    image = flat(0, side=4)
    with pytest.raises(ValueError, match="unknown metric 'MS-SSIM'; did you mean `ms_ssim`"):
        iqm_scores(image, image, ["ssim", "MS-SSIM"])
    with pytest.raises(ValueError, match="unknown metric 'xyz'; choose from ssim"):
        iqm_scores(image, image, "xyz")
    with pytest.raises(ValueError, match="no metric named"):
        iqm_scores(image, image, [])
    with pytest.raises(ValueError, match="named twice"):
        iqm_scores(image, image, ["vsi", "vsi"])


# --------------------------------------------------------------------------------------------------- quantile tables


def test_align_by_hand():
    scores = pd.DataFrame({"pair": ["a", "b"], "ssim": [1.0, 0.75], "gmsd": [0.0, 0.2]}, index=[7, 8])
    pd.testing.assert_frame_equal(align(scores), pd.DataFrame({"ssim": [0.0, 0.25], "gmsd": [0.0, 0.2]}, index=[7, 8]))
    assert list(align(scores, "gmsd")) == ["gmsd"]


def test_a_table_by_hand():
    # Distortions 0, 0.1, 0.1, 0.5: ranks 1, 2.5, 2.5, 4 of 4, but 0 for the perfect copy.
    tables = QuantileTables.fit(pd.DataFrame({"mdsi": [0.1, 0.5, 0.0, 0.1]}))
    assert tables == QuantileTables({"mdsi": (0.0, 0.1, 0.5)}, {"mdsi": (0.0, 0.625, 1.0)})
    ranks = tables.apply(pd.DataFrame({"mdsi": [-1e-9, 0.0, 0.05, 0.1, 0.3, 0.5, 9.0]}, index=range(10, 17)))
    assert ranks.index.tolist() == list(range(10, 17))
    assert ranks["mdsi"].tolist() == pytest.approx([0, 0, 0.3125, 0.625, 0.8125, 1, 1])
    assert ranks["mdsi"].iloc[1] == 0


def test_higher_better_metrics_are_turned_round():
    tables = QuantileTables.fit(pd.DataFrame({"vsi": [0.5, 0.75, 0.25, -1.0]}))
    assert tables.values["vsi"] == (0.0, 0.25, 0.5, 0.75, 2.0)
    assert tables.ranks["vsi"] == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert tables.apply(pd.DataFrame({"vsi": [1.0, 0.75, 0.25, 1.0000001]}))["vsi"].tolist() == [0.0, 0.25, 0.75, 0.0]


def test_a_worst_score_that_occurs_often_stays_in_the_middle_of_its_places():
    tables = QuantileTables.fit(pd.DataFrame({"gmsd": [0.1, 0.3, 0.3, 0.3]}))
    assert tables.apply(pd.DataFrame({"gmsd": [0.3, 0.4]}))["gmsd"].tolist() == [0.75, 0.75]


def test_fitted_scores_come_out_evenly(monkeypatch):
    monkeypatch.setattr(iqms, "KNOTS", 2000)
    scores = pd.DataFrame({"gmsd": np.random.default_rng(0).gamma(0.3, size=999)})
    ranks = np.sort(QuantileTables.fit(scores).apply(scores)["gmsd"])
    np.testing.assert_allclose(ranks, np.arange(1, 1000) / 999, atol=1e-12)


@pytest.mark.parametrize("knots", [3, 11, 101])
def test_few_knots_are_nearly_as_good(knots, monkeypatch):
    scores = pd.DataFrame({"gmsd": np.random.default_rng(0).gamma(0.3, size=3000)})
    monkeypatch.setattr(iqms, "KNOTS", 4000)
    exact = QuantileTables.fit(scores).apply(scores)
    monkeypatch.setattr(iqms, "KNOTS", knots)
    tables = QuantileTables.fit(scores)
    assert len(tables.values["gmsd"]) == knots
    assert (tables.apply(scores) - exact).abs().to_numpy().max() <= 1 / (knots - 2)
    assert tables.ranks["gmsd"][-1] == 1


score_lists = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40)


@given(fitted=score_lists, applied=score_lists, knots=st.sampled_from([3, 5, 1000]))
@settings(max_examples=60, deadline=None)
def test_tables_are_monotonic_bounded_and_survive_json(fitted, applied, knots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iqms, "KNOTS", knots)
        tables = QuantileTables.fit(pd.DataFrame({"gmsd": [*fitted, 0.5]}))
    assert QuantileTables.from_json(tables.to_json()) == tables
    ranks = tables.apply(pd.DataFrame({"gmsd": sorted([0.0, *applied, 1.0])}))["gmsd"].to_numpy()
    assert ranks[0] == 0
    assert ranks.max() <= 1
    assert (np.diff(ranks) >= 0).all()


def test_select():
    tables = QuantileTables.fit(pd.DataFrame({"gmsd": [0.1, 0.2], "vsi": [0.3, 0.4], "dss": [0.5, 0.1]}))
    assert tables.names == ("gmsd", "vsi", "dss")
    assert tables.select(["dss", "gmsd"]).names == ("dss", "gmsd")


def test_bad_scores_are_refused():
    scores = pd.DataFrame({"gmsd": [0.1, 0.2], "vsi": [0.3, np.nan]}, index=["a", "b"])
    with pytest.raises(ValueError, match="the vsi score in row 'b' is nan"):
        QuantileTables.fit(scores)
    tables = QuantileTables.fit(scores, ["gmsd"])
    with pytest.raises(ValueError, match="no scores of gmsd; the table has the columns vsi"):
        tables.apply(scores[["vsi"]])
    with pytest.raises(ValueError, match="every ssim score is that of a perfect copy"):
        QuantileTables.fit(pd.DataFrame({"ssim": [1.0, 1.0]}))
    with pytest.raises(ValueError, match="no metric named"):
        QuantileTables.fit(scores.add_suffix("_"))


@pytest.mark.parametrize(
    ("values", "ranks", "message"),
    [
        ((0.0, 0.2, 0.2), (0.0, 0.5, 1.0), "increase strictly from 0"),
        ((0.1, 0.2), (0.0, 1.0), "increase strictly from 0"),
        ((0.0, math.inf), (0.0, 1.0), "increase strictly from 0"),
        ((0.0, 0.2, 0.3), (0.0, 0.5, 0.4), "ranks of a table must not decrease"),
        ((0.0, 0.2), (0.0, 1.1), "ranks of a table must not decrease"),
        ((0.0, 0.2), (0.0,), "two equal rows"),
    ],
)
def test_bad_tables_are_refused(values, ranks, message):
    with pytest.raises(ValueError, match=message):
        QuantileTables({"vsi": values}, {"vsi": ranks})
    with pytest.raises(ValueError, match=message):
        QuantileTables.from_json(json.dumps({"values": {"vsi": values}, "ranks": {"vsi": ranks}}))


@pytest.mark.parametrize("text", ["{}", "[1]", '{"values": [], "ranks": {}}', "not json"])
def test_json_that_is_no_table_is_refused(text):
    with pytest.raises(ValueError, match=r"quantile table|Expecting value"):
        QuantileTables.from_json(text)
    with pytest.raises(ValueError, match=r"vsi: .* two equal rows are needed"):
        QuantileTables({"vsi": (0.0, 1.0)}, {"gmsd": (0.0, 1.0)})


# ------------------------------------------------------------------------------------------------------- weak labels

# Straight tables, so that a rank is the distortion itself.
STRAIGHT = QuantileTables(dict.fromkeys(IQMS, (0.0, 1.0)), dict.fromkeys(IQMS, (0.0, 1.0)))
TWO = pd.DataFrame({"ssim": [1.0, 0.8, 0.0], "gmsd": [0.0, 0.6, 1.0]}, index=[4, 5, 6])


def test_consensus_by_hand():
    labels = weak_labels(TWO, STRAIGHT, names=["ssim", "gmsd"])
    assert labels.columns.tolist() == ["consensus", "spread", "rank_ssim", "rank_gmsd"]
    assert labels.index.tolist() == [4, 5, 6]
    assert labels["consensus"].tolist() == pytest.approx([0, 0.4, 1])
    assert labels["spread"].tolist() == pytest.approx([0, 0.2, 0])
    assert labels["rank_ssim"].tolist() == pytest.approx([0, 0.2, 1])
    assert labels["rank_gmsd"].tolist() == pytest.approx([0, 0.6, 1])
    assert labels["consensus"].iloc[0] == 0


def test_weights_by_hand():
    labels = weak_labels(TWO, STRAIGHT, weights={"ssim": 3, "gmsd": 1})
    assert labels["consensus"].tolist() == pytest.approx([0, 0.75 * 0.2 + 0.25 * 0.6, 1])
    assert labels["spread"].tolist() == pytest.approx([0, 0.2, 0])
    chosen = weak_labels(TWO, STRAIGHT, names=["gmsd"], weights={"ssim": 3, "gmsd": 1})
    pd.testing.assert_frame_equal(chosen, weak_labels(TWO, STRAIGHT, names=["gmsd"]))
    assert chosen["consensus"].tolist() == pytest.approx([0, 0.6, 1])
    assert (chosen["spread"] == 0).all()


def test_the_metrics_of_the_tables_are_the_default():
    tables = STRAIGHT.select(["gmsd", "ssim"])
    labels = weak_labels(TWO, tables)
    assert labels.columns.tolist() == ["consensus", "spread", "rank_gmsd", "rank_ssim"]


def test_agreement_weights():
    weights = agreement_weights()
    assert set(weights) == set(IQMS) - {"iw_ssim", "dss"}
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=weights.get) == "mdsi"
    assert min(weights, key=weights.get) == "ssim"
    expected = (0.8853 / (1 - 0.8853**2)) / (0.6500 / (1 - 0.6500**2))
    assert weights["mdsi"] / weights["vifp"] == pytest.approx(expected)
    scores = pd.DataFrame([dict.fromkeys(IQMS, 1.0) | {"mdsi": 1.0, "gmsd": 0.0}])
    assert weak_labels(scores, STRAIGHT, weights=weights)["consensus"].tolist() == pytest.approx([weights["mdsi"]])


def test_labels_of_real_pairs_follow_the_distortion():
    reference = photograph()
    images = [reference, *(noisy(reference, sigma) for sigma in (3, 10, 30)), *(blurred(reference, s) for s in (1, 2))]
    scores = pd.DataFrame([iqm_scores(reference, image) for image in images])
    labels = weak_labels(scores, QuantileTables.fit(scores.iloc[1:]))
    assert labels.shape == (6, 13)
    assert labels.iloc[0].tolist() == [0.0] * 13
    assert labels["consensus"].between(0, 1).all()
    assert labels["consensus"].iloc[:4].is_monotonic_increasing
    assert labels["consensus"].iloc[5] > labels["consensus"].iloc[4] > 0


def test_label_counts():
    before = pd.DataFrame({"a": [0, 1, 2, 8.0], "b": [0, 0, 0, 0.2]})
    after = pd.DataFrame({"a": [0.0, 0.4, 0.6, 1.0], "b": [0.0, 0, 0, 1.0], "consensus": [0, 0.2, 0.3, 1.0]})
    counts = label_counts(before, after, bins=4)
    assert list(counts) == ["label", "low", "high", "before", "after"]
    assert counts["low"].tolist() == [0, 0.25, 0.5, 0.75] * 3
    assert counts["high"].tolist() == [0.25, 0.5, 0.75, 1] * 3
    parts = dict(iter(counts.groupby("label")))
    assert parts["a"]["before"].tolist() == [2, 1, 0, 1]  # of 0, 1/8, 1/4 and 1
    assert parts["a"]["after"].tolist() == [1, 1, 1, 1]
    assert parts["b"]["before"].tolist() == parts["b"]["after"].tolist() == [3, 0, 0, 1]
    assert parts["consensus"]["before"].isna().all()
    assert parts["consensus"]["after"].tolist() == [2, 1, 0, 1]
