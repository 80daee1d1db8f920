"""Splits that are repeated or fixed; pictures in common."""

import numpy as np
import pytest

from tests.databases.test_schema import database, preferences, table
from vtamiq.databases.schema import DatabaseError
from vtamiq.databases.splits import original_split, repeated_splits, shared_pictures


def named(name, references, **changes):
    return database(table(references, 2, database=name), name=name, **changes)


class TestRepeated:
    @pytest.mark.parametrize("ratios", [(0.6, 0.2, 0.2), (0.8, 0.2)])
    def test_each_is_the_split_of_its_seed(self, ratios):
        data = named("toy", 10)
        splits = list(repeated_splits(data, 4, ratios, seed=7))
        assert len(splits) == 4
        for repeat, parts in enumerate(splits):
            expected = data.split(ratios, 7 + repeat)
            assert [part.references for part in parts] == [part.references for part in expected]
        assert len({tuple(parts[-1].references) for parts in splits}) > 1

    def test_none_is_refused(self):
        with pytest.raises(DatabaseError, match="at least one"):
            repeated_splits(named("toy", 10), 0)


class TestOriginal:
    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("live", (17, 6, 6)),
            ("csiq", (18, 6, 6)),
            ("tid2008", (15, 5, 5)),
            ("tid2013", (15, 5, 5)),
            ("kadid10k", (49, 16, 16)),
        ],
    )
    def test_parts_are_ranges_of_the_sorted_references(self, name, sizes):
        data = named(name, sum(sizes))
        parts = original_split(data)
        assert tuple(len(part.references) for part in parts) == sizes
        assert [reference for part in parts for reference in part.references] == data.references

    def test_pipal_has_two_parts(self):
        assert [len(part.references) for part in original_split(named("pipal", 200))] == [160, 40]

    def test_of_pieapp_the_train_part_is_split_in_the_order_of_its_label_files(self):
        pairs = table(143, 2, database="pieapp")
        number = pairs["ref_id"].str[1:].astype(int) + 1
        ref_id = ("ref_" + number.astype(str)).astype("str")
        pairs = pairs.assign(ref_id=ref_id, subset=np.where(number <= 140, "train", "test"))
        pairs = pairs.astype({"subset": "str"}).sort_values("ref_id", kind="stable", ignore_index=True)
        parts = original_split(database(pairs, name="pieapp"))
        assert [len(part.references) for part in parts] == [130, 5, 5]
        assert all((part.pairs["subset"] == "train").all() for part in parts)
        names = sorted(f"ref_{n}_pairwise_labels.csv" for n in range(1, 141))
        assert names[:3] == [
            "ref_100_pairwise_labels.csv",
            "ref_101_pairwise_labels.csv",
            "ref_102_pairwise_labels.csv",
        ]
        for part, expected in zip(parts, (names[:130], names[130:135], names[135:]), strict=True):
            assert part.references == sorted(name.removesuffix("_pairwise_labels.csv") for name in expected)

    def test_partial_copies_and_other_databases_are_refused(self):
        with pytest.raises(DatabaseError, match="28 references here; the fixed split counts 29"):
            original_split(named("live", 28))
        with pytest.raises(DatabaseError, match="no fixed split of 'kadis700k'"):
            original_split(named("kadis700k", 3))


class TestAcross:
    @pytest.mark.parametrize(
        ("first", "second", "source"),
        [
            ("live", "tid2013", "Kodak"),
            ("tid2008", "tid2013", "Kodak"),
            ("kadid10k", "kadis700k", "Pixabay"),
            ("pipal", "ntire2022_val", "PIPAL"),
            ("csiq", "csiq", "itself"),
        ],
    )
    def test_known_sources(self, first, second, source):
        assert source in shared_pictures(first, second)
        assert shared_pictures(second, first) == shared_pictures(first, second)

    @pytest.mark.parametrize(("first", "second"), [("live", "csiq"), ("kadid10k", "tid2013"), ("photos", "textures")])
    def test_nothing_in_common(self, first, second):
        assert shared_pictures(first, second) is None


def test_preferences_of_references_without_pairs_are_refused():
    with pytest.raises(DatabaseError, match="reference that has no pairs"):
        database(preferences=preferences(references=5))
