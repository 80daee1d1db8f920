"""What every database becomes: a table of image pairs, split by reference content, with scores of known direction.

A loader turns the layout of a database on disk into such a table (`vtamiq.databases.reading` has what loaders share).
This
file has the schema, the database with its splits, and the one place where the direction of scores is handled.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "EXTRA_COLUMNS",
    "PAIR_COLUMNS",
    "PREFERENCE_COLUMNS",
    "SUBSETS",
    "Database",
    "DatabaseError",
    "LabelScale",
    "pair_table",
    "path_parts",
    "preference_table",
    "validate_pairs",
    "validate_preferences",
]

SUBSETS = ("train", "val", "test")

# One row per (reference, distorted) pair. Paths are relative to the root, with "/" and in the letter case on disk.
PAIR_COLUMNS = {
    "database": "str",
    "subset": "str",  # train, val or test as distributed, or none
    "ref_id": "str",  # the reference image; splits go by it, or by the optional column `content`
    "ref_path": "str",
    "dist_path": "str",
    "dist_type": "Int16",  # code of the database, <NA> if it has none
    "dist_name": "str",
    "level": "Int16",  # <NA> if the database has no levels
    "score": "float64",  # as published, NaN if there is none
    "score_name": "str",
    "higher_better": "bool",
    "score_std": "float64",  # NaN if not published
    "score_lo": "float64",  # nominal range of the scale, NaN on an open side
    "score_hi": "float64",
    "label_source": "str",  # file:line
}

# One row per question "which of A and B is closer to the reference?".
PREFERENCE_COLUMNS = {
    "database": "str",
    "subset": "str",
    "ref_id": "str",
    "ref_path": "str",
    "a_path": "str",
    "b_path": "str",
    "a_is_ref": "bool",
    "p_a": "float64",  # share that prefers A, processed
    "p_a_raw": "float64",  # NaN where nobody was asked
    "kind": "str",
    "label_source": "str",
}

# A table may have these too. A row with a recipe has no file for its distorted image: the reference is distorted by
# `vtamiq.images.distortions` as `dist_type`, `level` and the seed say, and `dist_path` is only its name.
EXTRA_COLUMNS = {
    "content": "str",  # splits keep the references of one content together
    "recipe_seed": "uint64",
}

_OPTIONAL = {  # what `pair_table` fills in
    "subset": "none",
    "dist_type": pd.NA,
    "dist_name": "",
    "level": pd.NA,
    "score": math.nan,
    "score_std": math.nan,
    "score_lo": math.nan,
    "score_hi": math.nan,
}
_UNSAFE_PATH = r"^/|^[A-Za-z]:|\\|\x00|(?:^|/)\.\.(?:/|$)"


class DatabaseError(ValueError):
    """A database that cannot be found, read or used; the message says what is wrong, where, and what to do."""


# ---- the table --------------------------------------------------------------------------------------------------


def pair_table(**columns: Any) -> pd.DataFrame:
    """A valid pair table from columns (arrays, or one value for all rows), sorted by `ref_id`, then in the given order.

    Columns that a database does not have may be left out: `subset` ("none"), `dist_type`, `dist_name`, `level`,
    `score`, `score_std`, `score_lo`, `score_hi`. Columns beyond the schema are kept, after it.

    Raises DatabaseError as `validate_pairs` does.
    """
    values = {name: column.array if isinstance(column, pd.Series) else column for name, column in columns.items()}
    table = pd.DataFrame(_OPTIONAL | values)
    missing = [name for name in PAIR_COLUMNS if name not in table]
    if missing:
        raise DatabaseError(f"a pair table needs the columns {', '.join(missing)}")
    extra = [name for name in table if name not in PAIR_COLUMNS]
    extra_types = {name: EXTRA_COLUMNS[name] for name in extra if name in EXTRA_COLUMNS}
    table = table[[*PAIR_COLUMNS, *extra]].astype(PAIR_COLUMNS | extra_types)
    if not table["ref_id"].is_monotonic_increasing:
        table = table.sort_values("ref_id", kind="stable", ignore_index=True)
    return validate_pairs(table)


def preference_table(**columns: Any) -> pd.DataFrame:
    """A valid preference table from columns (arrays, or one value for all rows), in the given order.

    May be left out: `subset` ("none"), `a_is_ref` (False), `p_a_raw` (NaN), `kind` ("").

    Raises DatabaseError as `validate_preferences` does.
    """
    values = {name: column.array if isinstance(column, pd.Series) else column for name, column in columns.items()}
    table = pd.DataFrame({"subset": "none", "a_is_ref": False, "p_a_raw": math.nan, "kind": ""} | values)
    missing = [name for name in PREFERENCE_COLUMNS if name not in table]
    if missing:
        raise DatabaseError(f"a preference table needs the columns {', '.join(missing)}")
    extra = [name for name in table if name not in PREFERENCE_COLUMNS]
    return validate_preferences(table[[*PREFERENCE_COLUMNS, *extra]].astype(PREFERENCE_COLUMNS))


def validate_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return `pairs` itself if it follows the schema `PAIR_COLUMNS`; columns after those of the schema are free, but
    for those of `EXTRA_COLUMNS`.

    Raises DatabaseError naming the first bad row and its label: a column is missing or of another type, a name is empty,
    a subset unknown, a path absolute or leading upwards, a score infinite, a pair listed twice, a `ref_id` with two
    reference images or contents, a reference image with two contents, a recipe without type and level, rows not sorted by
    `ref_id`, or `database`, `score_name`, `higher_better` not the same throughout.
    """
    _check_columns(pairs, PAIR_COLUMNS | {name: EXTRA_COLUMNS[name] for name in EXTRA_COLUMNS if name in pairs})
    _check_rows(pairs, ("ref_path", "dist_path"))
    for name in ("score", "score_std", "score_lo", "score_hi"):
        _refuse(pairs, np.isinf(pairs[name]), f"infinite {name}")
    for name in ("database", "score_name", "higher_better"):
        _refuse(pairs, pairs[name] != pairs[name].iloc[0], f"a table must have one {name}, a second one is")
    twice = pairs["dist_path"].duplicated(keep=False)  # few, if any: pairs need to be compared among these only
    twice[twice] = pairs.loc[twice, ["ref_path", "dist_path"]].duplicated()
    _refuse(pairs, twice, "pair listed twice")
    _refuse(
        pairs, pairs["ref_id"] < pairs["ref_id"].shift(fill_value=""), "rows must be sorted by ref_id, out of order is"
    )
    first = pairs.groupby("ref_id", sort=False)["ref_path"].transform("first")
    _refuse(pairs, pairs["ref_path"] != first, "second reference image of one ref_id")
    if "content" in pairs:
        _refuse(pairs, pairs["content"].isna(), "empty content")
        first = pairs.groupby("ref_id", sort=False)["content"].transform("first")
        _refuse(pairs, pairs["content"] != first, "second content of one ref_id")
    shown = pairs["content"] if "content" in pairs else pairs["ref_id"]
    first = shown.groupby(pairs["ref_path"], sort=False).transform("first")
    _refuse(pairs, shown != first, "one reference image is two contents (splits would part them), the second is")
    if "recipe_seed" in pairs:
        _refuse(pairs, pairs[["dist_type", "level"]].isna().any(axis=1), "a recipe needs a type and a level")
    return pairs


def validate_preferences(preferences: pd.DataFrame) -> pd.DataFrame:
    """Return `preferences` itself if it follows the schema `PREFERENCE_COLUMNS`; DatabaseError if not."""
    _check_columns(preferences, PREFERENCE_COLUMNS)
    _check_rows(preferences, ("ref_path", "a_path", "b_path"))
    _refuse(preferences, ~preferences["p_a"].between(0, 1), "preference p_a outside 0..1")
    raw = preferences["p_a_raw"]
    _refuse(preferences, raw.notna() & ~raw.between(0, 1), "preference p_a_raw outside 0..1")
    return preferences


def _check_columns(table: pd.DataFrame, schema: Mapping[str, str]) -> None:
    missing = [name for name in schema if name not in table]
    if missing:
        raise DatabaseError(f"the table lacks the columns {', '.join(missing)}")
    expected = pd.DataFrame({name: [] for name in schema}).astype(dict(schema)).dtypes
    for name in schema:
        if table[name].dtype != expected[name]:
            raise DatabaseError(f"column {name} must have the type {expected[name]}, not {table[name].dtype}")
    if not len(table):
        raise DatabaseError("the table has no rows")


def _check_rows(table: pd.DataFrame, paths: Sequence[str]) -> None:
    for name in ("database", "ref_id", "label_source", *paths):
        _refuse(table, table[name].isna() | (table[name] == ""), f"empty {name}")
    _refuse(table, ~table["subset"].isin([*SUBSETS, "none"]), "subset must be train, val, test or none, not so")
    for name in paths:
        _refuse(table, table[name].str.contains(_UNSAFE_PATH), f"{name} must be relative to the root, with '/'")


def _refuse(table: pd.DataFrame, bad: pd.Series, what: str) -> None:
    if bad.any():
        at = int(np.argmax(bad.to_numpy()))
        row = table.iloc[at]
        image = row.get("dist_path", row.get("a_path"))
        raise DatabaseError(f"{what}: row {at} ({row['label_source']}, reference {row['ref_id']!r}, image {image!r})")


# ---- the database -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Database:
    """Image pairs with scores.

    Attributes:
        name: what the database is called in tables and titles.
        root: folder that all paths are relative to.
        pairs: one row per pair, schema `PAIR_COLUMNS`, numbered from 0.
        score_name: what the scores are, for example "MOS".
        higher_better: whether a higher score is a better image.
        synthetic: whether the scores come from other metrics rather than from people.
        preferences: pairwise preferences about references of the pairs, schema `PREFERENCE_COLUMNS`, or None.
        omissions: what was left out on loading or is not as published, one sentence each.
        crop: (width, height) to which the centre of every reference is cropped before it is used; None for no crop.
            Only for pairs with recipes.
        cache: folder, of this database alone, where an image that was made from its recipe is kept for the next time;
            None for none. Only for pairs with recipes.

    Raises:
        DatabaseError: a table breaks its schema or contradicts the attributes.
    """

    name: str
    root: Path
    pairs: pd.DataFrame
    score_name: str
    higher_better: bool
    synthetic: bool
    preferences: pd.DataFrame | None = None
    omissions: tuple[str, ...] = ()
    crop: tuple[int, int] | None = None
    cache: Path | None = None

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "cache", None if self.cache is None else Path(self.cache))
        validate_pairs(self.pairs)
        if self.preferences is not None:
            validate_preferences(self.preferences)
            known = self.preferences["ref_id"].isin(self.pairs["ref_id"])
            _refuse(self.preferences, ~known, "a preference about a reference that has no pairs")
        if self.crop is not None and "recipe_seed" not in self.pairs:
            raise DatabaseError(f"{self.name}: only pairs with recipes can be cropped on reading")
        if self.cache is not None and "recipe_seed" not in self.pairs:
            raise DatabaseError(f"{self.name}: only pairs with recipes need a cache")
        for column, value in (
            ("database", self.name),
            ("score_name", self.score_name),
            ("higher_better", self.higher_better),
        ):
            if self.pairs[column].iloc[0] != value:
                raise DatabaseError(
                    f"{column} is {self.pairs[column].iloc[0]!r} in the table, but {value!r} was stated"
                )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __repr__(self) -> str:
        better = "higher" if self.higher_better else "lower"
        parts = [f"{len(self)} pairs of {len(self.references)} references", f"{self.score_name} ({better} is better)"]
        if self.preferences is not None:
            parts.append(f"{len(self.preferences)} preferences")
        if self.omissions:
            parts.append(f"{len(self.omissions)} omissions")
        return f"<Database {self.name}: {', '.join(parts)}>"

    @property
    def references(self) -> list[str]:
        """All `ref_id`, in plain character order."""
        return self.pairs["ref_id"].unique().tolist()  # the table is sorted by it

    @property
    def contents(self) -> dict[str, str]:
        """ref_id → content, which splits keep together: two views of one scene are two references of one content. They
        are told by an optional column `content` of the pairs; without it, every reference is a content of its own."""
        column = "content" if "content" in self.pairs else "ref_id"
        return dict(zip(self.pairs["ref_id"], self.pairs[column], strict=True))

    def path(self, relative: str) -> Path:
        """Absolute path of one of the table's paths; DatabaseError if it leads out of the root."""
        return self.root.joinpath(*path_parts(relative)).absolute()

    def subset(self, selection: Iterable[str] | np.ndarray | pd.Series) -> "Database":
        """The rows of a boolean mask (length `len(self)`), or all rows of the given `ref_id`; rows are renumbered.

        Preferences stay for the contents that stay, but for those about an image whose row goes.

        Raises DatabaseError for an unknown `ref_id`, a mask of another length, or a selection of nothing.
        """
        chosen = np.asarray(selection if isinstance(selection, np.ndarray | pd.Series) else list(selection))
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise DatabaseError(f"{self.name}: a mask needs {len(self)} values, got shape {chosen.shape}")
            kept = set(self.pairs["ref_id"].to_numpy()[chosen])
        else:
            kept = set(chosen.tolist())
            unknown = sorted(map(str, kept - set(self.references)))
            if unknown:
                raise DatabaseError(f"{self.name} has no reference {', '.join(unknown[:5])}")
            chosen = self.pairs["ref_id"].isin(kept).to_numpy()
        if not chosen.any():
            raise DatabaseError(f"{self.name}: the selection has no pairs")
        preferences = self.preferences
        if preferences is not None:
            gone = set(self.pairs["dist_path"].to_numpy()[~chosen]) - set(self.pairs["dist_path"].to_numpy()[chosen])
            about_gone = preferences["a_path"].isin(gone) | preferences["b_path"].isin(gone)
            preferences = preferences[preferences["ref_id"].isin(kept) & ~about_gone].reset_index(drop=True)
        return replace(
            self,
            pairs=self.pairs[chosen].reset_index(drop=True),
            preferences=preferences if preferences is not None and len(preferences) else None,
        )

    def split(self, ratios: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> tuple["Database", ...]:
        """Random parts without a content in common: (train, val, test), or (train, test) for two ratios.

        The later parts get the floor of their share of the contents, the first part gets the rest. The contents, in
        plain character order, are shuffled by `numpy.random.default_rng(seed)`.

        Raises DatabaseError if the ratios are not two or three positive numbers with sum 1, or a part would be empty.
        """
        ratios = tuple(float(ratio) for ratio in ratios)
        if len(ratios) not in (2, 3) or not all(ratio > 0 for ratio in ratios) or abs(sum(ratios) - 1) > 1e-9:
            raise DatabaseError(f"a split needs two or three positive ratios with sum 1, got {ratios}")
        of = self.contents
        contents = np.array(sorted(set(of.values())), dtype=object)
        counts = [math.floor(ratio * len(contents) + 1e-9) for ratio in ratios[1:]]  # 0.29 * 100 is below 29
        counts.insert(0, len(contents) - sum(counts))
        if min(counts) < 1:
            raise DatabaseError(f"{self.name} has {len(contents)} contents, too few for a split by {ratios}")
        shuffled = contents[np.random.default_rng(seed).permutation(len(contents))]
        parts = (set(part) for part in np.split(shuffled, np.cumsum(counts)[:-1]))
        return tuple(self.subset([reference for reference in of if of[reference] in part]) for part in parts)

    def distributed_split(self) -> tuple["Database", ...]:
        """The split that the database comes with: (train, val, test), or (train, test) if it has no val.

        Raises DatabaseError if there is no such split, it does not cover all rows, or a content is in two parts.
        """
        subset = self.pairs["subset"]
        present = [name for name in SUBSETS if (subset == name).any()]
        if present not in (["train", "test"], list(SUBSETS)) or (subset == "none").any():
            raise DatabaseError(
                f"{self.name} is not distributed with a train and a test part (found: {', '.join(subset.unique())}); "
                "use split() for a random one"
            )
        parts = self.pairs.groupby(self.pairs["ref_id"].map(self.contents))["subset"].nunique()
        if (parts > 1).any():
            raise DatabaseError(f"{self.name}: content {parts.idxmax()!r} is in more than one part")
        return tuple(self.subset((subset == name).to_numpy()) for name in present)


@dataclass(frozen=True)
class LabelScale:
    """Published scores as distortions: 0 is the best score that was seen in training, 1 the worst.

    This is the one place where the direction of scores is handled: it is that of best and worst.
    Scores beyond those seen in training leave [0, 1]; nothing is clipped.
    """

    best: float
    worst: float

    def __post_init__(self):
        if not (math.isfinite(self.best) and math.isfinite(self.worst) and self.best != self.worst):
            raise DatabaseError(f"a label scale needs two different finite scores, got {self.best} and {self.worst}")

    @classmethod
    def fit(cls, train: Database) -> "LabelScale":
        """Minimum and maximum over the training part only: test labels are not looked at.

        Raises DatabaseError if a row has no score or all scores are the same.
        """
        scores = train.pairs["score"].to_numpy(dtype=np.float64)
        missing = np.isnan(scores)
        if missing.any():
            source = train.pairs["label_source"].iloc[int(np.argmax(missing))]
            raise DatabaseError(f"{train.name}: {missing.sum()} of {len(scores)} rows have no score, first {source}")
        low, high = float(scores.min()), float(scores.max())
        if low == high:
            raise DatabaseError(f"{train.name}: all {len(scores)} scores are {low}; nothing can be learnt from them")
        return cls(best=high, worst=low) if train.higher_better else cls(best=low, worst=high)

    def to_distortion(self, score: Any) -> np.ndarray:
        """Scores of any shape to distortions, float64; NaN stays NaN."""
        return (np.asarray(score, dtype=np.float64) - self.best) / (self.worst - self.best)

    def to_score(self, q: Any) -> np.ndarray:
        """The inverse of `to_distortion`, for display."""
        return self.best + np.asarray(q, dtype=np.float64) * (self.worst - self.best)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "LabelScale":
        if not isinstance(values, Mapping) or set(values) != {"best", "worst"}:
            raise DatabaseError(f"a label scale has the entries 'best' and 'worst', got {values!r}")
        return cls(best=float(values["best"]), worst=float(values["worst"]))


def path_parts(name: str) -> list[str]:
    """Components of a relative path; DatabaseError if it is absolute, leads upwards or is empty."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if re.search(_UNSAFE_PATH, name.replace("\\", "/")) or not all(parts) or not parts:
        raise DatabaseError(
            f"{name!r} is no path within the database: absolute names, '..' and empty parts are refused"
        )
    return parts
