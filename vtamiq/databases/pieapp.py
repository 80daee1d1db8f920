"""PieAPP: 200 references with 20,280 distorted images of 75 types; people said which of two is closer to the reference.

    {train,val,test}_reference_list.txt        "ref_<n>.png" per line: 140, 20 and 40
    reference_images/<subset>/ref_<n>.png
    distorted_images/<subset>/ref_<n>/distort_<n>_<type>_<inter|intra>_<identifier>.png
    labels/<subset>/ref_<n>_pairwise_labels.csv    reference, A, B, raw preference for A, processed preference for A;
                                                   in test only one preference, from all votes
    labels/test/ref_<n>_per_image_score.csv        reference, image, score

The words of the csv headers carry leading blanks, so columns go by position. The preference is the share of people who
find A closer. In train and val the raw one is blank where nobody was asked; the processed one is there for each of the 483
pairs of a reference and is what to train on. In test, A or B may be the reference itself. Only images of test have a
score: the dissimilarity from the reference, whose own score is 0. The types of test do not occur in train. That labels
name all 123 images of a train or val reference is unchecked: the number of pairs is not insisted upon.

For non-commercial, educational use; to be cited with the source of its references. E. Prashnani, H. Cai, Y. Mostofi,
P. Sen, PieAPP, CVPR 2018. K. Ma et al., Waterloo Exploration Database, IEEE Transactions on Image Processing 26(2), 2017.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import PREFERENCE_COLUMNS, SUBSETS, Database, preference_table

PIEAPP = Facts(name="pieapp", score_name="dissimilarity", higher_better=False, references=200)
_PREFERENCES = 77_280  # of train and val
_SCORES = 600
_PAIRWISE, _PER_IMAGE = "_pairwise_labels.csv", "_per_image_score.csv"
_OF_REFERENCE = ["subset", "ref_id", "stem", "ref_file", "ref_path"]


def load_pieapp(root: str | Path, *, strict: bool = True, check_images: bool = True) -> Database:
    """Load PieAPP; arguments and errors as for `load_database`.

    `pairs` are the distorted images that labels name, with score NaN in train and val; the column `comparison` says whether
    an image is for comparisons between types ("inter") or within one ("intra"). The `kind` of a preference is that word if
    both images have it in common, "mixed" if not, "reference" if one is the reference.
    """
    references = _read_references(FolderIndex(root), strict)
    scores = _read_labels(references, _PER_IMAGE, ("reference", "image", "score"))
    scores.number("score")
    preferences = _read_preferences(references)
    images = _images(scores, preferences)
    images.locate("dist_path", "distorted_images/{subset}/{stem}")
    if check_images:
        images.check_images()  # before preferences: those about damaged images go, too
    table = _preferences(preferences, images)
    images.omissions = references.omissions + scores.omissions + images.omissions + preferences.omissions
    images.check_complete(
        PIEAPP.name,
        ("preferences in train and val", _PREFERENCES, int((table["subset"] != "test").sum())),
        ("scored images in test", _SCORES, int(images.table["score"].notna().sum())),
    )
    return images.database(PIEAPP, check_images=False, extra=["comparison"], preferences=table)


def listing_order(references: Iterable[str]) -> list[str]:
    """`ref_id` in the order of their label files, as in the authors' fixed split: "ref_10_…" is before "ref_1_…"."""
    return sorted(references, key=lambda ref_id: ref_id + _PAIRWISE)


def _read_references(index: FolderIndex, strict: bool) -> LabelRows:
    """One row per reference, with its label files in columns named by their endings."""
    lists = [f"{subset}_reference_list.txt" for subset in SUBSETS]
    rows = LabelRows.read_all(index, lists, ("ref_file",), header="none", separator=None, strict=strict)
    rows.table["subset"] = rows.table["file"].str.partition("_")[0]
    rows.extract("ref_file", r"(?P<stem>ref_\d{1,4})\.\w+", "ref_<n>.png")
    rows.table["stem"] = rows.table["stem"].str.lower()
    rows.refuse(rows.table.duplicated(["subset", "stem"]), "{ref_file} is listed twice")
    again, stem = rows.table.duplicated("stem", keep=False), rows.table["stem"]  # one number in two subsets
    rows.table["ref_id"] = stem.where(~again, stem + " (" + rows.table["subset"] + ")")
    rows.table["ref_path"] = rows.table["ref_file"]
    rows.locate("ref_path", "reference_images/{subset}")
    for ending in (_PAIRWISE, _PER_IMAGE):
        names = "labels/" + rows.table["subset"] + "/" + rows.table["stem"] + ending
        rows.table[ending] = pd.Series([index.get(name) or "" for name in names], dtype="str")
        wanted = (rows.table["subset"] == "test") | (ending == _PAIRWISE)
        rows.refuse((rows.table[ending] == "") & wanted, f"{{ref_file}} has no labels/{{subset}}/{{stem}}{ending}")
    known = {*rows.table[_PAIRWISE], *rows.table[_PER_IMAGE]}
    for folder in [f"labels/{subset}" for subset in SUBSETS if index.get(f"labels/{subset}")]:
        for file in index.files(folder, [_PAIRWISE, _PER_IMAGE]):
            if file not in known:
                message = f"{file}: no such reference in {folder.removeprefix('labels/')}_reference_list.txt"
                rows.tell(message, "mend the copy, or leave such files out with strict=False")
    return rows


def _read_labels(
    references: LabelRows, ending: str, columns: Sequence[str], subsets: Sequence[str] = SUBSETS
) -> LabelRows:
    """All rows of the label files of one kind, with the columns of their reference."""
    chosen = references.table[references.table["subset"].isin(subsets) & (references.table[ending] != "")]
    files = chosen[ending].tolist()
    rows = LabelRows.read_all(references.index, files, columns, header="foreign", strict=references.strict)
    rows.table = rows.table.join(chosen.set_index(ending)[_OF_REFERENCE], on="file")
    foreign = rows.table["reference"].str.lower() != rows.table["ref_file"].str.lower()
    rows.refuse(foreign, "labels of {ref_file} expected, found {reference!r}")
    return rows


def _read_preferences(references: LabelRows) -> LabelRows:
    rows = _read_labels(references, _PAIRWISE, ("reference", "a", "b", "p_a_raw", "p_a"), ("train", "val"))
    test = _read_labels(references, _PAIRWISE, ("reference", "a", "b", "p_a"), ("test",))
    rows.table = pd.concat([rows.table, test.table], ignore_index=True).fillna({"p_a_raw": ""})
    rows.omissions += test.omissions
    for column in ("p_a", "p_a_raw"):
        rows.number(column, blank=column == "p_a_raw")
        outside = rows.table[column].notna() & ~rows.table[column].between(0, 1)
        rows.refuse(outside, f"{column} must lie in 0..1, found {{{column}}}")
    rows.refuse(rows.table["a"].str.lower() == rows.table["b"].str.lower(), "{a!r} is compared with itself")
    return rows


def _images(scores: LabelRows, preferences: LabelRows) -> LabelRows:
    """One row per distorted image that labels name."""
    table = preferences.table
    sides = [table.rename(columns={side: "dist_path"}).drop(columns=other) for side, other in (("a", "b"), ("b", "a"))]
    compared = pd.concat(sides).sort_index(kind="stable")  # A and B of a row, then those of the next
    compared = compared[compared["dist_path"].str.lower() != compared["ref_file"].str.lower()]
    columns = [*_OF_REFERENCE, "dist_path", "score", "label_source"]
    table = pd.concat([scores.table.rename(columns={"image": "dist_path"}), compared], ignore_index=True)[columns]
    table["key"] = table["ref_id"] + "/" + table["dist_path"].str.lower()
    rows = LabelRows(scores.index, table, strict=scores.strict)
    rows.refuse(rows.table["score"].notna() & rows.table.duplicated("key"), "{dist_path!r} has two scores")
    rows.table = rows.table.drop_duplicates("key", ignore_index=True)
    parts = r"distort_(?P<number>\d{1,4})_(?P<dist_name>.+)_(?P<comparison>inter|intra)_.+\.\w+"
    rows.extract("dist_path", parts, "distort_<n>_<type>_<inter|intra>_<identifier>.png", ["number"])
    of = rows.table["stem"].str.removeprefix("ref_").astype("Int16")
    rows.refuse(rows.table["number"] != of, "{dist_path!r} is not of {ref_file}")
    unscored = (rows.table["subset"] == "test") & rows.table["score"].isna()
    rows.refuse(unscored, "{dist_path!r} has no score in the labels of {stem}")
    return rows


def _preferences(rows: LabelRows, images: LabelRows) -> pd.DataFrame:
    """The table of preferences; those about images that cannot be used are refused."""
    paths = dict(zip(images.table["key"], images.table["dist_path"], strict=True))
    words = dict(zip(images.table["key"], images.table["comparison"].str.lower(), strict=True))
    for side in ("a", "b"):
        name = rows.table[side].str.lower()
        is_reference = name == rows.table["ref_file"].str.lower()
        key = rows.table["ref_id"] + "/" + name
        rows.table[f"{side}_path"] = key.map(paths).where(~is_reference, rows.table["ref_path"])
        rows.table[f"{side}_word"] = key.map(words).where(~is_reference, "reference")
        rows.refuse(rows.table[f"{side}_path"].isna(), f"the image {{{side}!r}} cannot be used")
    table = rows.table
    a, b = table["a_word"], table["b_word"]
    return preference_table(
        **{name: table[name] for name in PREFERENCE_COLUMNS if name in table},
        database=PIEAPP.name,
        a_is_ref=a == "reference",
        kind=a.where(a == b, "mixed").where((a != "reference") & (b != "reference"), "reference"),
    )
