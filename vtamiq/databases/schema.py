"""What every database becomes: a table of image pairs, split by reference content, with scores of known direction."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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

_UNSAFE_PATH = r"^/|^[A-Za-z]:|\\|\x00|(?:^|/)\.\.(?:/|$)"


class DatabaseError(ValueError):
    """A database that cannot be found, read or used; the message says what is wrong, where, and what to do."""


def pair_table(**columns: Any) -> pd.DataFrame:
    """A pair table from columns (arrays, or one value for all rows), sorted by `ref_id`, then in the given order.

    May be left out: `subset` ("none"), `dist_type`, `dist_name`, `level`, `score`, `score_std`, `score_lo`, `score_hi`.
    Columns beyond the schema are kept, after it. DatabaseError for a missing column; rows are checked by `Database`.
    """
    optional = {"subset": "none", "dist_type": pd.NA, "dist_name": "", "level": pd.NA}
    optional |= dict.fromkeys(("score", "score_std", "score_lo", "score_hi"), math.nan)
    return _table(PAIR_COLUMNS, optional | columns).sort_values("ref_id", kind="stable", ignore_index=True)


def preference_table(**columns: Any) -> pd.DataFrame:
    """A preference table from columns (arrays, or one value for all rows), in the given order.

    May be left out: `subset` ("none"), `a_is_ref` (False), `p_a_raw` (NaN), `kind` (""). Errors as for `pair_table`.
    """
    optional = {"subset": "none", "a_is_ref": False, "p_a_raw": math.nan, "kind": ""}
    return _table(PREFERENCE_COLUMNS, optional | columns)


def _table(schema: Mapping[str, str], columns: Mapping[str, Any]) -> pd.DataFrame:
    if missing := [name for name in schema if name not in columns]:
        raise DatabaseError(f"the table needs the columns {', '.join(missing)}")
    order = [*schema, *(name for name in columns if name not in schema)]
    values = {name: column.array if isinstance(column := columns[name], pd.Series) else column for name in order}
    types = {**schema, **EXTRA_COLUMNS}
    return pd.DataFrame(values).astype({name: types[name] for name in order if name in types})


def _check_pairs(pairs: pd.DataFrame, stated: Mapping[str, Any]) -> None:
    """Raise DatabaseError, naming the first bad row and its label, for a table that breaks the schema."""
    _check_columns(pairs, PAIR_COLUMNS | {name: kind for name, kind in EXTRA_COLUMNS.items() if name in pairs})
    _check_rows(pairs, ("ref_path", "dist_path"))
    for name, value in stated.items():
        _refuse(pairs, pairs[name] != value, f"{name} must be {value!r} in all rows, not so")
    for name in ("score", "score_std", "score_lo", "score_hi"):
        _refuse(pairs, np.isinf(pairs[name]), f"infinite {name}")
    _refuse(pairs, pairs.duplicated(["ref_path", "dist_path"]), "pair listed twice")
    unsorted = pairs["ref_id"] < pairs["ref_id"].shift(fill_value="")
    _refuse(pairs, unsorted, "rows must be sorted by ref_id, out of order is")
    content = pairs["content"] if "content" in pairs else pairs["ref_id"]
    _refuse(pairs, content.isna(), "empty content")
    _refuse(pairs, _differs(pairs["ref_path"], pairs["ref_id"]), "second reference image of one ref_id")
    _refuse(pairs, _differs(content, pairs["ref_id"]), "second content of one ref_id")
    said = "one reference image is two contents (splits would part them), the second is"
    _refuse(pairs, _differs(content, pairs["ref_path"]), said)
    if "recipe_seed" in pairs:
        _refuse(pairs, pairs[["dist_type", "level"]].isna().any(axis=1), "a recipe needs a type and a level")


def _differs(values: pd.Series, groups: pd.Series) -> pd.Series:
    """Mask of the rows whose value is not that of the first row of their group."""
    return values != values.groupby(groups, sort=False).transform("first")


def _check_preferences(preferences: pd.DataFrame, pairs: pd.DataFrame) -> None:
    _check_columns(preferences, PREFERENCE_COLUMNS)
    _check_rows(preferences, ("ref_path", "a_path", "b_path"))
    _refuse(preferences, ~preferences["p_a"].between(0, 1), "preference p_a outside 0..1")
    _refuse(preferences, ~preferences["p_a_raw"].fillna(0).between(0, 1), "preference p_a_raw outside 0..1")
    unknown = ~preferences["ref_id"].isin(pairs["ref_id"])
    _refuse(preferences, unknown, "a preference about a reference that has no pairs")


def _check_columns(table: pd.DataFrame, schema: Mapping[str, str]) -> None:
    if missing := [name for name in schema if name not in table]:
        raise DatabaseError(f"the table lacks the columns {', '.join(missing)}")
    expected = pd.DataFrame(columns=list(schema)).astype(dict(schema)).dtypes
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


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Database:
    """Image pairs with scores. DatabaseError if a table breaks its schema or contradicts the attributes."""

    name: str
    root: Path  # folder that all paths are relative to
    pairs: pd.DataFrame  # one row per pair, schema `PAIR_COLUMNS`, numbered from 0
    score_name: str  # for example "MOS"
    higher_better: bool  # whether a higher score is a better image
    synthetic: bool  # whether the scores come from metrics rather than from people
    preferences: pd.DataFrame | None = None  # about references of the pairs, schema `PREFERENCE_COLUMNS`
    omissions: tuple[str, ...] = ()  # what was left out on loading or is not as published, one sentence each
    crop: tuple[int, int] | None = None  # (width, height) of the centre of every reference; for recipes only
    cache: Path | None = None  # folder, of this database alone, that keeps images made from recipes

    def __post_init__(self):
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "cache", None if self.cache is None else Path(self.cache))
        stated = {"database": self.name, "score_name": self.score_name, "higher_better": self.higher_better}
        _check_pairs(self.pairs, stated)
        if self.preferences is not None:
            _check_preferences(self.preferences, self.pairs)
        if (self.crop is not None or self.cache is not None) and "recipe_seed" not in self.pairs:
            raise DatabaseError(f"{self.name}: only pairs with recipes have a crop or a cache")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __repr__(self) -> str:
        better = "higher" if self.higher_better else "lower"
        asked = "" if self.preferences is None else f", {len(self.preferences)} preferences"
        omitted = f", {len(self.omissions)} omissions" if self.omissions else ""
        pairs = f"{len(self)} pairs of {len(self.references)} references"
        return f"<Database {self.name}: {pairs}, {self.score_name} ({better} is better){asked}{omitted}>"

    @property
    def references(self) -> list[str]:
        """All `ref_id`, in plain character order."""
        return self.pairs["ref_id"].unique().tolist()  # the table is sorted by it

    @property
    def contents(self) -> dict[str, str]:
        """ref_id → content, which splits keep together, by the column `content`; without it, each is its own."""
        column = "content" if "content" in self.pairs else "ref_id"
        return dict(zip(self.pairs["ref_id"], self.pairs[column], strict=True))

    def path(self, relative: str) -> Path:
        """Absolute path of one of the table's paths; DatabaseError if it leads out of the root."""
        return self.root.joinpath(*path_parts(relative)).absolute()

    def subset(self, selection: Iterable[str] | np.ndarray | pd.Series) -> "Database":
        """The rows of a boolean mask (length `len(self)`), or all rows of the given `ref_id`; rows are renumbered.

        Preferences about references and images that stay do so, too. DatabaseError for an unknown `ref_id`, a mask of
        another length, or a selection of nothing.
        """
        references, images = self.pairs["ref_id"], self.pairs["dist_path"]
        chosen = np.asarray(selection if isinstance(selection, np.ndarray | pd.Series) else list(selection))
        if chosen.dtype != bool:
            if unknown := sorted(map(str, set(chosen.tolist()) - set(references))):
                raise DatabaseError(f"{self.name} has no reference {', '.join(unknown[:5])}")
            chosen = references.isin(set(chosen.tolist())).to_numpy()
        if chosen.shape != (len(self),):
            raise DatabaseError(f"{self.name}: a mask needs {len(self)} values, got shape {chosen.shape}")
        if not chosen.any():
            raise DatabaseError(f"{self.name}: the selection has no pairs")
        preferences = self.preferences
        if preferences is not None:
            gone = set(images[~chosen]) - set(images[chosen])
            about_gone = preferences[["a_path", "b_path"]].isin(gone).any(axis=1)
            kept = preferences["ref_id"].isin(set(references[chosen]))
            preferences = preferences[kept & ~about_gone].reset_index(drop=True)
        return replace(
            self,
            pairs=self.pairs[chosen].reset_index(drop=True),
            preferences=preferences if preferences is not None and len(preferences) else None,
        )

    def split(self, ratios: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> tuple["Database", ...]:
        """Cut `shuffled_contents` into (train, val, test), or (train, test) for two ratios; the first part gets the rest.

        DatabaseError if the ratios are not two or three positive numbers with sum 1, or a part would be empty.
        """
        ratios = tuple(float(ratio) for ratio in ratios)
        if len(ratios) not in (2, 3) or not all(ratio > 0 for ratio in ratios) or abs(sum(ratios) - 1) > 1e-9:
            raise DatabaseError(f"a split needs two or three positive ratios with sum 1, got {ratios}")
        contents = self.shuffled_contents(seed)
        counts = [math.floor(ratio * len(contents) + 1e-9) for ratio in ratios[1:]]  # 0.29 * 100 is below 29
        counts.insert(0, len(contents) - sum(counts))
        if min(counts) < 1:
            raise DatabaseError(f"{self.name} has {len(contents)} contents, too few for a split by {ratios}")
        return tuple(self.with_contents(set(part)) for part in np.split(contents, np.cumsum(counts)[:-1]))

    def shuffled_contents(self, seed: int) -> np.ndarray:
        """The contents, in plain character order, shuffled by `numpy.random.default_rng(seed)`."""
        contents = np.array(sorted(set(self.contents.values())), dtype=object)
        return contents[np.random.default_rng(seed).permutation(len(contents))]

    def with_contents(self, contents: Collection[str]) -> "Database":
        """The rows of these contents; DatabaseError if there are none."""
        return self.subset([reference for reference, content in self.contents.items() if content in contents])

    def distributed_split(self) -> tuple["Database", ...]:
        """The split that the database comes with: (train, val, test), or (train, test) if it has no val. DatabaseError if
        there is no such split, it does not cover all rows, or a content is in two parts."""
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
    """Published scores as distortions (0 best, 1 worst in training, not clipped): the one place that turns directions."""

    best: float
    worst: float

    def __post_init__(self):
        if not (math.isfinite(self.best) and math.isfinite(self.worst) and self.best != self.worst):
            raise DatabaseError(f"a label scale needs two different finite scores, got {self.best} and {self.worst}")

    @classmethod
    def fit(cls, train: Database) -> "LabelScale":
        """Minimum and maximum over the training part only; DatabaseError for a row without score or equal scores."""
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


def path_parts(name: str) -> list[str]:
    """Components of a relative path; DatabaseError if it is absolute, leads upwards or is empty."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part != "."]
    if re.search(_UNSAFE_PATH, plain) or not all(parts) or not parts:
        raise DatabaseError(
            f"{name!r} is no path within the database: absolute names, '..' and empty parts are refused"
        )
    return parts
