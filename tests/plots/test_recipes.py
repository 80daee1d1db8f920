"""A recipe gives back exactly what went into it, and never anything else."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from hypothesis.extra import pandas as st_pandas

from tests.small import TINY
from vtamiq.caps import CAPS, PatchSample
from vtamiq.evaluation.correlation import LogisticFit, logistic_fit
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.recipes import Recipe, RecipeError, find_recipes, forget_recipe, read_recipe, write_recipe


def round_trip(value, folder):
    write_recipe(Recipe("plots.bars", {"value": value}), folder, "fig")
    return read_recipe(folder, "fig").arguments["value"]


def same(a, b) -> bool:
    """Equal in type, order and every bit; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(x) is type(y) for x, y in zip(a, b, strict=True)) and all(
            same(a[key], b[key]) for key in a
        )  # fmt: skip
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic) and a.dtype != object:
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text("$ab", max_size=2) | st.integers() | st.booleans() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


class TestValues:
    @given(value=PLAIN)
    @settings(max_examples=60, deadline=None)
    def test_plain(self, value, folder):
        assert same(round_trip(value, folder), value)

    @given(
        value=st_numpy.arrays(
            st.sampled_from(["u1", "i8", "f4", "f8", "?", "U3", "M8[ns]", ">i2"]),
            st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4),
        )
    )
    @settings(max_examples=40, deadline=None)
    def test_arrays(self, value, folder):
        assert same(round_trip(value, folder), value)

    @pytest.mark.parametrize(
        "value",
        [
            np.float32(0.1), np.float64("nan"), np.float64("-inf"), np.int8(-3), np.bool_(True), np.str_("ü"),
            np.datetime64("2021-10-05"), np.longdouble(1) / 3, np.array(0.5), -0.0, 5e-324, 2**80,
        ],
    )  # fmt: skip
    def test_numbers(self, value, folder):
        assert same(round_trip(value, folder), value)

    def test_arrays_of_objects(self, folder):
        value = np.empty((2, 2), dtype=object)
        value[0, 0], value[0, 1], value[1, 0], value[1, 1] = [1, 2], "a", None, 0.5
        found = round_trip(value, folder)
        assert found.shape == (2, 2)
        assert found.tolist() == value.tolist()

    def test_arrays_that_are_views(self, folder):
        value = np.arange(24).reshape(2, 3, 4)[:, ::-1].T
        np.testing.assert_array_equal(round_trip(value, folder), value)

    def test_tensors(self, folder):
        value = torch.arange(6, dtype=torch.int16).reshape(2, 3).requires_grad_(False)
        found = round_trip(value, folder)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)

    @given(
        table=st_pandas.data_frames(
            [
                st_pandas.column("a", dtype=float),
                st_pandas.column("b", dtype=np.uint8),
                st_pandas.column("c", elements=st.sampled_from(["x", "ä", None, ""]), dtype=object),
            ],
            index=st_pandas.indexes(dtype=np.int64, max_size=6, unique=False),
        )
    )
    @settings(max_examples=30, deadline=None)
    def test_tables(self, table, folder):
        pd.testing.assert_frame_equal(round_trip(table, folder), table, check_exact=True)

    @pytest.mark.parametrize(
        "table",
        [
            pd.DataFrame({"name": ["a", "b", np.nan], "n": pd.array([1, None, 3], dtype="Int64")}, index=[2, 2, 0]),
            pd.DataFrame({16: [0.1], 32: [0.2]}).rename_axis(index="row", columns="num_patches"),
            pd.DataFrame([[1, "x"], [2, "y"]], columns=["same", "same"]),
            pd.DataFrame({"t": pd.to_datetime(["2021-10-05", None]), "b": [True, False]}, index=pd.RangeIndex(4, 8, 2)),
            pd.DataFrame({"c": pd.Categorical(["b", "a", None], categories=["b", "a", "unused"], ordered=True)}),
            pd.DataFrame({"v": [1.0, 2.0]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["k", None])),
            pd.DataFrame({"m": ["a", "b"], "k": ["x", "y"], "auc": [0.5, 0.6]}).pivot(
                index="m", columns="k", values="auc"
            ),
            pd.DataFrame({("a", "b"): [1]}),
            pd.DataFrame(),
        ],
    )
    def test_tables_of_many_kinds(self, table, folder):
        found = round_trip(table, folder)
        pd.testing.assert_frame_equal(found, table, check_exact=True, check_column_type="exact")
        assert found.index.names == table.index.names
        assert found.columns.names == table.columns.names

    def test_series_and_index(self, folder):
        series = pd.DataFrame({"dist_name": ["a", "b", "c"]}, index=[5, 3, 9]).query("dist_name != 'b'")["dist_name"]
        pd.testing.assert_series_equal(round_trip(series, folder), series)
        index = pd.Index(["x", "y"], name="part")
        pd.testing.assert_index_equal(round_trip(index, folder), index, exact=True)

    def test_logistic_fit(self, folder):
        q = np.random.default_rng(0).uniform(size=30)
        fit = logistic_fit(q, 1 / (1 + np.exp(5 * q - 2)))
        assert fit.success
        found = round_trip(fit, folder)
        assert isinstance(found, LogisticFit)
        assert found == fit
        assert found(q).tobytes() == fit(q).tobytes()
        failed = round_trip(logistic_fit(np.zeros(5), np.arange(5.0)), folder)
        assert not failed.success
        assert np.isnan(failed.params).all()

    def test_network_as_it_is_built(self, folder):
        model = VTAMIQ(TINY)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        found = round_trip(model, folder)
        assert torch.equal(torch.get_rng_state(), before)
        assert found.config == TINY
        assert [(n, p.shape) for n, p in found.named_parameters()] == [
            (n, p.shape) for n, p in model.named_parameters()
        ]

    @pytest.mark.parametrize("value", [open, {1, 2}, object(), iter([1]), Path("a"), 1j])
    def test_what_cannot_be_kept(self, value, tmp_path):
        kind = type(value).__name__
        with pytest.raises(RecipeError, match=rf"plots\.bars: x\[1\]\['k'\] is a {kind}, which cannot be kept"):
            write_recipe(Recipe("plots.bars", {"x": [0, {"k": value}]}), tmp_path, "fig")
        assert not list(tmp_path.iterdir())


class TestSamples:
    @pytest.mark.parametrize("aligned", [True, False])
    @pytest.mark.parametrize(("num_patches", "scales"), [(3, 1), (400, 1), (300, 2)])
    def test_exact(self, aligned, num_patches, scales, folder):
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
        sample = CAPS(num_patches=num_patches, num_scales=scales, aligned=aligned)(images, 0)
        found = round_trip(sample, folder)
        for name in ("patches", "uv", "scale", "position"):
            one, other = getattr(sample, name), getattr(found, name)
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name

    def test_overlapping_patches_share_their_pixels(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
        sample = CAPS(num_patches=2000)(images, 0)
        _, arrays = write_recipe(Recipe("plots.bars", {"sample": sample}), tmp_path, "fig")
        assert arrays.stat().st_size < 2 * images.nbytes < sample.patches.numel() / 10

    def test_patches_that_contradict_each_other(self, folder):
        patches = torch.randint(0, 256, (1, 500, 3, 4, 4), dtype=torch.uint8)  # of no image
        position, scale = torch.randint(0, 8, (500, 2)), torch.zeros(500, dtype=torch.int64)
        found = round_trip(PatchSample(patches, torch.rand(500, 2), scale, position), folder)
        assert torch.equal(found.patches, patches)


class TestFiles:
    def recipe(self, **changes):
        arguments = {"table": pd.DataFrame({"a": [1.5, 2.5]}), "title": "t"}
        return Recipe(**{"function": "plots.bars", "arguments": arguments, "data": {"k": 1}, "dpi": 300.0} | changes)

    def test_everything_comes_back(self, tmp_path):
        write_recipe(self.recipe(), tmp_path / "new", "fig")
        found = read_recipe(tmp_path / "new", "fig")
        assert (found.function, found.data, found.dpi) == ("plots.bars", {"k": 1}, 300.0)
        assert list(found.arguments) == ["table", "title"]
        assert found.gallery is True
        write_recipe(self.recipe(gallery=False), tmp_path / "other", "fig")
        assert read_recipe(tmp_path / "other", "fig").gallery is False
        assert find_recipes(tmp_path / "new") == ["fig"]
        assert find_recipes(tmp_path / "none") == []

    def test_same_bytes(self, tmp_path):
        one, two = (write_recipe(self.recipe(), tmp_path / name, "fig") for name in "ab")
        assert [path.name for path in one] == ["fig.json", "fig.npz"]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]

    def test_written_anew_leaves_nothing_of_the_old(self, tmp_path):
        write_recipe(self.recipe(), tmp_path, "fig")
        (only,) = write_recipe(self.recipe(arguments={"title": "other"}), tmp_path, "fig")
        assert [path.name for path in tmp_path.iterdir()] == [only.name]
        forget_recipe(tmp_path, "fig")
        forget_recipe(tmp_path, "fig")
        assert not list(tmp_path.iterdir())

    def test_text_may_be_edited(self, tmp_path):
        path, _ = write_recipe(self.recipe(), tmp_path, "fig")
        path.write_text(path.read_text().replace('"title": "t"', '"title": "another"'))
        assert read_recipe(tmp_path, "fig").arguments["title"] == "another"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda text, arrays: text.unlink(), "fig.json is missing"),
            (lambda text, arrays: arrays.unlink(), "fig.npz is missing"),
            (lambda text, arrays: text.write_bytes(text.read_bytes()[:-9]), "fig.json is damaged .JSONDecodeError"),
            (lambda text, arrays: text.write_bytes(b"\xff\xfe"), "fig.json is damaged .UnicodeDecodeError"),
            (lambda text, arrays: text.write_text("[]"), "fig.json is damaged .TypeError"),
            (lambda text, arrays: text.write_text("{}"), "fig.json is damaged .KeyError"),
            (lambda text, arrays: arrays.write_bytes(arrays.read_bytes()[:-9]), "fig.npz is damaged, or not the one"),
        ],
    )
    def test_damage_is_named(self, damage, message, tmp_path):
        damage(*write_recipe(self.recipe(), tmp_path, "fig"))
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path, "fig")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": 2}, "has format 2, this version reads 1"),
            ({"data": {"$": "pickle"}}, "value of unknown kind 'pickle'"),
            ({"data": {"$": "array", "key": "a7"}}, "damaged .KeyError: 'a7'"),
            ({"data": {"$": "network", "config": {"widht": 3}}}, "no field `widht`"),
            ({"data": {"$": "frame"}}, "damaged .KeyError"),
        ],
    )
    def test_odd_content_is_named(self, changes, message, tmp_path):
        path, _ = write_recipe(self.recipe(), tmp_path, "fig")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path, "fig")

    def test_no_pickle_is_read(self, tmp_path):
        import hashlib

        path, arrays = write_recipe(self.recipe(), tmp_path, "fig")
        np.savez(arrays, a0=np.array([{"code": 1}], dtype=object), allow_pickle=True)
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"arrays": hashlib.sha256(arrays.read_bytes()).hexdigest()}))
        with pytest.raises(RecipeError, match="allow_pickle=False"):
            read_recipe(tmp_path, "fig")
