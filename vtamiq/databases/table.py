"""Your own pairs of images, from a CSV whose paths are relative to the root.

    pairs.csv    reference,distorted,score
                 photos/a.png,out/a_q10.jpg,0.31

Optional columns, whose fields may be blank: `ref_id` (by default the reference's path), `content` (splits keep the
references of one content together), `type` and `level` (whole numbers), `dist_name`, `subset` (train, val, test or none)
and `std` (standard deviation of the score). Other columns are ignored.
"""

from pathlib import Path

import pandas as pd

from vtamiq.databases.reading import Facts, FolderIndex, LabelRows
from vtamiq.databases.schema import SUBSETS, Database, DatabaseError

_OPTIONAL = ("ref_id", "content", "type", "dist_name", "level", "subset", "std")


def load_table(
    root: str | Path,
    *,
    strict: bool = True,
    check_images: bool = True,
    labels: str = "pairs.csv",
    separator: str = ",",
    reference: str = "reference",
    distorted: str = "distorted",
    score: str | None = "score",
    higher_better: bool | None = None,
    score_name: str = "score",
    name: str | None = None,
    synthetic: bool = False,
) -> Database:
    """Load a csv of pairs; other arguments and errors as for `load_database`.

    Args:
        labels: the CSV, relative to the root; UTF-8, with a header.
        reference, distorted, score: names of its columns, the defaults also by `vtamiq.utils.tables.ALIASES`;
            `score=None` if there are no scores.
        higher_better: whether a higher score is a better image. Must be given if there are scores.
        name: of the database; by default that of the folder.
        score_name, synthetic: see `Database`.
    """
    if score is not None and not isinstance(higher_better, bool):
        raise DatabaseError(
            "the direction of scores cannot be guessed: give higher_better=True if a higher score is a better image, "
            f"higher_better=False if it is a worse one (got {higher_better!r})"
        )
    columns = {reference: "ref_path", distorted: "dist_path"} | ({} if score is None else {score: "score"})
    if len({column.lower() for column in columns}) < 2 + (score is not None):
        raise DatabaseError(f"reference, distorted and score must be different columns, got {', '.join(columns)}")
    optional = [column for column in _OPTIONAL if column not in {key.lower() for key in columns}]
    index = FolderIndex(root)
    rows = LabelRows.read(index, labels, tuple(columns), separator=separator, optional=optional, strict=strict)
    rows.table = rows.table.rename(columns=columns | {"type": "dist_type", "std": "score_std"})
    if score is not None:
        rows.number("score")
    _read_optional(rows)
    rows.locate("ref_path")
    rows.locate("dist_path")
    _fill(rows, "ref_id", rows.table["ref_path"])
    if "content" in rows.table:
        _fill(rows, "content", rows.table["ref_id"])
    facts = Facts(
        name=rows.index.root.resolve().name if name is None else name,
        score_name="none" if score is None else score_name,
        higher_better=True if higher_better is None else higher_better,
    )
    return rows.database(facts, check_images=check_images, synthetic=synthetic)


def _read_optional(rows: LabelRows) -> None:
    """Numbers and words of the optional columns that are there."""
    for column in [name for name in ("dist_type", "level") if name in rows.table]:
        rows.number(column, blank=True)
        whole = rows.table[column].isna() | (rows.table[column] % 1 == 0) & (rows.table[column].abs() < 2**15)
        rows.refuse(~whole, f"{column} must be a whole number below 32768, found {{{column}}}")
        rows.table[column] = rows.table[column].astype("Int16")
    if "score_std" in rows.table:
        rows.number("score_std", blank=True)
        rows.refuse(rows.table["score_std"] < 0, "a standard deviation cannot be {score_std}")
    if "subset" in rows.table:
        rows.table["subset"] = rows.table["subset"].str.lower().replace("", "none")
        known = rows.table["subset"].isin([*SUBSETS, "none"])
        rows.refuse(~known, "subset must be train, val, test or none, found {subset!r}")


def _fill(rows: LabelRows, column: str, default: pd.Series) -> None:
    """The column with the default where it is blank or absent."""
    values = rows.table.get(column, default)
    rows.table[column] = values.mask(values == "", default)
