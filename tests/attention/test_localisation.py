"""Whether a map finds a place is measured as it should be: known maps have known numbers."""

import numpy as np
import pytest
import torch

from tests.small import TINY
from vtamiq.attention.localisation import BASELINES, compare_localisation, distorted_region, localise, localised_maps
from vtamiq.attention.maps import attention_maps
from vtamiq.caps import CAPS, caps_for, difference_map
from vtamiq.images.reading import ImageError
from vtamiq.model.network import VTAMIQ

PLACE = (slice(4, 12), slice(20, 30))


@pytest.fixture(scope="module")
def pair():
    reference = np.random.default_rng(0).integers(0, 200, (48, 64, 3), dtype=np.uint8)
    distorted = reference.copy()
    distorted[PLACE] += 40
    return reference, distorted


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY)


class TestRegion:
    def test_pixels_that_differ_in_any_channel(self, pair):
        reference, distorted = pair[0], pair[1].copy()
        distorted[40, 3, 2] ^= 1
        expected = np.zeros((48, 64), bool)
        expected[PLACE] = expected[40, 3] = True
        np.testing.assert_array_equal(distorted_region(reference, distorted), expected)

    def test_sizes_that_differ(self, pair):
        with pytest.raises(ImageError, match="differ in size"):
            distorted_region(pair[0], pair[1][1:])


class TestMeasures:
    region = np.array([[True, True, False, False, False, False]])

    @pytest.mark.parametrize(
        ("values", "auc", "pointing"),
        [
            ([6, 5, 4, 3, 2, 1], 1.0, 1.0),
            ([1, 2, 3, 4, 5, 6], 0.0, 0.0),
            ([5, 1, 4, 3, 2, 0], 5 / 8, 1.0),  # 4 and 1 of the 4 undistorted are lower
            ([2, 2, 2, 2, 2, 2], 0.5, 2 / 6),  # by guessing
            ([3, 0, 3, 3, 0, 0], (2 + 2 / 2 + 2 / 2) / 8, 1 / 3),  # ties count half
        ],
    )
    def test_by_hand(self, values, auc, pointing):
        measured = localise(np.array([values], float), self.region)
        assert measured == {"auc": pytest.approx(auc), "pointing": pytest.approx(pointing), "area": 2 / 6, "seen": 1}

    def test_scale_of_a_map_does_not_matter(self):
        values = np.random.default_rng(0).normal(size=(9, 9))
        region = np.random.default_rng(1).random((9, 9)) < 0.3
        assert localise(values, region) == localise(np.exp(3 * values) - 7, region)

    def test_unseen_pixels_do_not_count(self):
        measured = localise(np.array([[np.nan, 5, 4, np.nan, np.nan, 6]]), self.region)
        assert measured == {"auc": 0.5, "pointing": 0.0, "area": 1 / 3, "seen": 0.5}

    @pytest.mark.parametrize(
        ("values", "region", "message"),
        [
            (np.ones((2, 3)), np.ones((2, 3), bool), "6 of 6 pixels with a value are in the region"),
            (np.ones((2, 3)), np.zeros((2, 3), bool), "0 of 6 pixels"),
            (np.full((2, 3), np.nan), np.eye(2, 3, dtype=bool), "0 of 0 pixels"),
            (np.ones((2, 3)), np.ones((3, 2), bool), r"alike are needed, got \(2, 3\) and bool \(3, 2\)"),
            (np.ones((2, 3)), np.ones((2, 3)), "float64"),
            (np.ones(6), np.ones(6, bool), "alike are needed"),
            (np.array([[0.0, np.inf]]), np.array([[True, False]]), "infinite values"),
        ],
    )
    def test_bad_arguments(self, values, region, message):
        with pytest.raises(ValueError, match=message):
            localise(values, region)


FEW = CAPS(num_patches=10)


@pytest.fixture(scope="module")
def maps(model, pair):
    return localised_maps(model, *pair, draws={"occlusion": 2, "rollout": 3}, caps=FEW, seed=1)


class TestComparison:
    def test_every_method_and_baseline(self, maps):
        per_image = [f"{m} ({i})" for m in ("attention", "rollout", "gradient") for i in ("reference", "distorted")]
        assert set(maps) == {*per_image, "occlusion", "quality", *BASELINES}
        assert all(values.shape == (48, 64) for values, _ in maps.values())

    def test_maps_are_those_of_attention_maps(self, maps, model, pair):
        for method, draws, image, name in [
            ("rollout", 3, 0, "rollout (reference)"), ("rollout", 3, 1, "rollout (distorted)"),
            ("occlusion", 2, 1, "occlusion"), ("quality", 8, 1, "quality"), ("difference", 8, 1, "patch difference"),
        ]:  # fmt: skip
            values, stability = attention_maps(
                model, *pair, method=method, draws=draws, caps=FEW, seed=1, return_stability=True
            )
            np.testing.assert_array_equal(maps[name][0], values[image])
            assert maps[name][1] == stability[image]

    def test_baselines_without_draws(self, maps, model, pair):
        np.testing.assert_array_equal(maps["pixel difference"][0], difference_map(*pair, "absolute"))
        np.testing.assert_array_equal(maps["CAPS map"][0], caps_for(model, FEW).probability(np.stack(pair)))
        assert np.isnan([maps["pixel difference"][1], maps["CAPS map"][1]]).all()

    def test_table_measures_all_maps_on_the_same_pixels(self, maps, pair):
        region = distorted_region(*pair)
        table = compare_localisation({"one": maps}, {"one": region}).set_index("method")
        assert list(table.index) == list(maps)
        common = np.all([np.isfinite(values) for values, _ in maps.values()], axis=0)
        assert 0 < common.mean() < 1
        assert (table["area"] == region[common].mean()).all()
        assert table.loc["pixel difference", ["auc", "pointing", "seen"]].tolist() == [1, 1, 1]
        for method, (values, stability) in maps.items():
            expected = localise(np.where(common, values, np.nan), region)
            assert table.loc[method, "auc"] == expected["auc"]
            assert table.loc[method, "seen"] == np.isfinite(values).mean()
            np.testing.assert_equal(table.loc[method, "stability"], stability)
        assert table.loc["patch difference", "auc"] > 0.8

    def test_refusals(self, model, pair, maps):
        with pytest.raises(ValueError, match="draws names rolout, which is none of attention, rollout"):
            localised_maps(model, *pair, draws={"rolout": 2}, caps=FEW)
        with pytest.raises(ValueError, match="nothing to tell apart"):
            compare_localisation({"one": maps}, {"one": np.ones((48, 64), bool)})
