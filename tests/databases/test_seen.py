"""What a model has seen is known by name, by file, and by the photograph that a reference was made from."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import vtamiq.databases.seen
from tests.small import small_database
from vtamiq.databases.seen import pictures_of, reference_digests, unseen
from vtamiq.databases.synthesis import synthesize
from vtamiq.images.reading import write_png

QUICK = {"types": [11], "levels": [5], "metrics": ["gmsd"], "workers": 0, "progress": False}


@pytest.fixture
def database(tmp_path):
    return small_database(tmp_path / "small")


def test_contents_go_by_name(database):
    seen = pictures_of(database.subset(["r1", "r3"]))
    assert (seen["database"], seen["contents"]) == ("small", ["r1", "r3"])
    nameless = {**seen, "pictures": []}
    assert unseen(database, [nameless]).references == ["r0", "r2", "r4"]
    assert unseen(database, [{**nameless, "database": "other"}]).references == database.references
    assert unseen(database, []).references == database.references
    assert unseen(database, [pictures_of(database)]) is None


def test_a_content_is_seen_though_its_seen_reference_is_not_here(database):
    views = database.pairs.assign(content=database.pairs["ref_id"].replace({"r1": "r0"}).astype("str"))
    seen = pictures_of(replace(database, pairs=views).subset(["r0"]))
    rest = replace(database, pairs=views).subset(["r1", "r2"])
    assert unseen(rest, [seen | {"pictures": []}]).references == ["r2"]


def test_files_are_known_under_other_names(database, tmp_path):
    shutil.copytree(database.root, tmp_path / "mine")
    pairs = database.pairs.assign(database="mine", ref_id="x" + database.pairs["ref_id"])
    pairs = pairs.astype({"database": "str", "ref_id": "str"})
    mine = replace(database, name="mine", root=tmp_path / "mine", pairs=pairs)
    assert unseen(mine, [pictures_of(database.subset(["r0", "r4"]))]).references == ["xr1", "xr2", "xr3"]


def test_large_databases_go_by_name_only(database, monkeypatch):
    monkeypatch.setattr(vtamiq.databases.seen, "MAX_READ", 4)
    assert reference_digests(database) == {}
    assert pictures_of(database)["pictures"] == []


@pytest.mark.parametrize("first", ["images", "recipes"])
def test_crops_and_recipes_of_the_same_photographs_are_the_same_pictures(tmp_path, first):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(3):
        image = np.random.default_rng(k).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        write_png(folder / f"p{k}.png", image)
    made = {
        "images": synthesize(folder, tmp_path / "images", **QUICK, size=(16, 16)),
        "recipes": synthesize(folder, tmp_path / "recipes", **QUICK, recipes_only=True),
    }
    second = "recipes" if first == "images" else "images"
    seen = pictures_of(made[first].subset(["I02"]))
    assert unseen(made[second], [seen]).references == ["I01", "I03"]
    assert unseen(made[first], [seen]).references == ["I01", "I03"]
