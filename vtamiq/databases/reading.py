"""From the files of a database to its table: what all loaders share.

A loader reads its label file into `LabelRows`, says how names become paths, types and levels, and calls
`LabelRows.database`. Whatever is wrong with a row is an error that names file and line; with `strict=False` the row is
left out, and listed. A row is never dropped in silence.
"""

import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
import pandas as pd

from vtamiq.databases.schema import PAIR_COLUMNS, Database, DatabaseError, pair_table, path_parts
from vtamiq.images.reading import ImageError, image_size
from vtamiq.utils.files import is_utf8, list_folder
from vtamiq.utils.tables import read_table

__all__ = ["Facts", "FolderIndex", "LabelRows"]

log = logging.getLogger(__name__)

_MEAN_TOLERANCE = 1e-4  # of the mean or of 1: published means have five digits


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is published of a database (or of one distributed part or kind of score of it).

    Attributes:
        name: what the database is called in code and tables.
        score_name: what its scores are.
        higher_better: whether a higher score is a better image.
        references, pairs: number of each in a complete copy; None if that varies.
        score_mean: mean score of a complete copy, None if there are no scores.
        score_lo, score_hi: nominal range of the scale, NaN on an open side.
    """

    name: str
    score_name: str
    higher_better: bool
    references: int | None = None
    pairs: int | None = None
    score_mean: float | None = None
    score_lo: float = math.nan
    score_hi: float = math.nan


class LabelRows:
    """Rows of labels on their way to a table of pairs.

    Attributes:
        index: files of the database.
        table: one row per label; `label_source` ("file:line") names it.
        omissions: what was left out so far, one sentence per row; stays empty if strict.
    """

    def __init__(
        self, index: "FolderIndex", table: pd.DataFrame, *, strict: bool = True, omissions: Iterable[str] = ()
    ):
        self.index, self.table, self.strict = index, table.reset_index(drop=True), strict
        self.omissions = list(omissions)

    @classmethod
    def read(
        cls,
        index: "FolderIndex",
        name: str,
        columns: Sequence[str],
        *,
        optional: Sequence[str] = (),
        separator: str | None = ",",
        header: Literal["named", "foreign", "none"] = "named",
        strict: bool = True,
    ) -> "LabelRows":
        """Read the label file `name`, relative to the root, by `vtamiq.utils.tables.read_table`.

        Raises DatabaseError for a missing or damaged file, or (if strict) a line with too few or too many fields.
        """
        name = index.find(name)
        options = {"optional": optional, "separator": separator, "header": header, "name": name}
        try:
            table, problems = read_table(index.root / name, columns, **options)
        except ValueError as error:
            raise DatabaseError(str(error)) from error
        table["label_source"] = f"{name}:" + table.index.astype("str")
        table["problem"] = pd.Series(problems, dtype="str").reindex(table.index, fill_value="")
        rows = cls(index, table, strict=strict)
        rows.refuse_problems()
        return rows

    @classmethod
    def read_all(
        cls, index: "FolderIndex", names: Sequence[str], columns: Sequence[str], *, strict: bool = True, **options: Any
    ) -> "LabelRows":
        """Read several files into one table, with the name of each in the column `file`.

        Raises DatabaseError as `read`; if not strict, a file that cannot be used is an omission, unless none can.
        """
        parts, omissions = [], []
        for name in names:
            try:
                part = cls.read(index, name, columns, strict=strict, **options)
            except DatabaseError as error:
                if strict or len(names) == 1:
                    raise
                omissions.append(str(error))
                continue
            parts.append(part.table.assign(file=name))
            omissions += part.omissions
        if names and not parts:
            raise DatabaseError(f"none of the {len(names)} files can be used. {omissions[0]}")
        empty = pd.DataFrame(columns=[*columns, "label_source", "file"], dtype="str")
        table = pd.concat([empty, *parts], ignore_index=True).astype({"file": "str"})
        return cls(index, table, strict=strict, omissions=omissions)

    def refuse(self, bad: Any, why: str) -> None:
        """Refuse the rows of a boolean mask for a reason in which "{column}" stands for the row's value.

        Raises DatabaseError naming the first; if not strict, each is an omission, unless no row would be left.
        """
        bad = np.asarray(bad, dtype=bool)
        if not bad.any():
            return
        refused = self.table.loc[bad, list(dict.fromkeys(["label_source", *_fields(why)]))]
        said = [
            f"{row['label_source']}: {why.format_map(row)}"
            for row in refused.iloc[: 1 if self.strict or bad.all() else None].to_dict("records")
        ]
        more = f" ({len(refused)} such rows)" if len(refused) > 1 else ""
        if self.strict:
            raise DatabaseError(f"{said[0]}{more}; mend the copy, or leave such rows out with strict=False")
        if bad.all():
            raise DatabaseError(f"no row of {len(bad)} can be used. {said[0]}{more}")
        self.omissions += said
        self.table = self.table[~bad].reset_index(drop=True)

    def refuse_problems(self) -> None:
        """Refuse the rows whose column `problem` is not empty, and drop that column."""
        self.refuse(self.table["problem"] != "", "{problem}")
        self.table = self.table.drop(columns="problem")

    def tell(self, message: str, remedy: str) -> None:
        """Say what is wrong with the copy as a whole: an error with a remedy, or (if not strict) an omission."""
        if self.strict:
            raise DatabaseError(f"{message}; {remedy}")
        self.omissions.append(message)

    def number(self, column: str, *, blank: bool = False) -> None:
        """Turn a column into float64; what is no finite number is refused. With `blank`, an empty field is NaN."""
        values = pd.to_numeric(self.table[column], errors="coerce").astype("float64")
        bad = ~np.isfinite(values)
        if blank:
            bad &= self.table[column] != ""
        self.refuse(bad, f"{column} must be a finite number, found {{{column}!r}}")
        self.table[column] = values[~bad].to_numpy()

    def extract(self, column: str, pattern: str, expected: str, numeric: Sequence[str] = ()) -> None:
        """Add the named groups of a pattern that the whole column must match, without regard to letter case.

        Errors call the pattern `expected`. The groups `numeric` become Int16.
        """
        rows, values = pd.factorize(self.table[column])  # large tables have few different ones
        groups = pd.Series(values, dtype="str").str.extract(f"^(?:{pattern})$", flags=re.IGNORECASE)
        bad = groups.isna().all(axis=1).to_numpy()[rows]
        self.refuse(bad, f"expected {expected}, found {{{column}!r}}")
        for name in groups:
            values = pd.to_numeric(groups[name]).astype("Int16") if name in numeric else groups[name]
            self.table[name] = values.take(rows[~bad]).set_axis(self.table.index)

    def locate(self, column: str, *folders: str) -> None:
        """Turn a column of names into paths as they are on disk, relative to the root; missing files are refused.

        Names are relative to the first of `folders` that has the file (none: the root); "{column}" in these is filled in.
        """
        folders = folders or ("",)
        keys = list(dict.fromkeys([column, *(name for folder in folders for name in _fields(folder))]))
        rows = self.table.groupby(keys, sort=False, dropna=False).ngroup()  # large tables name an image many times
        distinct = self.table[keys].drop_duplicates().to_dict("list")
        found = []
        for values in zip(*distinct.values(), strict=True):
            row = dict(zip(keys, values, strict=True))
            found.append(self._locate(row[column], [folder.format_map(row) for folder in folders]))
        for name, values in zip((column, "problem"), zip(*found, strict=True), strict=True):
            self.table[name] = pd.Series(values, dtype="str").take(rows).set_axis(self.table.index)
        self.refuse_problems()

    def _locate(self, name: str, folders: Sequence[str]) -> tuple[str, str]:
        """Path and "", or "" and what is wrong."""
        try:
            path_parts(name)  # before it is joined: "/name" would otherwise pass
            for folder in folders:
                path = self.index.get(f"{folder}/{name}" if folder else name)
                if path is not None:
                    return path, ""
        except DatabaseError as error:
            return "", str(error)
        where = " or ".join(folder or "the root" for folder in folders)
        return "", f"no image {name} in {where} (letter case does not matter)"

    def check_images(self, *columns: str) -> None:
        """Refuse rows whose images are damaged, as far as their header and their end tell, or differ in size.

        Images of `columns` are opened, by default references and distorted images.
        """
        columns = columns or ("ref_path", "dist_path")
        sizes = {path: self._size(path) for column in columns for path in self.table[column].unique()}
        for column in columns:
            self.table["problem"] = self.table[column].map({path: problem for path, (_, problem) in sizes.items()})
            self.refuse_problems()
        names = [f"{column}_size" for column in columns]
        for column, name in zip(columns, names, strict=True):
            self.table[name] = self.table[column].map({path: size for path, (size, _) in sizes.items()})
        self.refuse(
            self.table[names[0]] != self.table[names[-1]],
            "{ref_path} is {ref_path_size} and {dist_path} is {dist_path_size} (width x height)",
        )
        self.table = self.table.drop(columns=names)

    def _size(self, path: str) -> tuple[str, str]:
        """Size and "", or "" and what is wrong."""
        try:
            return "{} x {}".format(*image_size(self.index.root / path)), ""
        except ImageError as error:
            return "", str(error).replace(str(self.index.root / path), path)

    def database(
        self, facts: Facts, *, check_images: bool = True, extra: Sequence[str] = (), **fields: Any
    ) -> Database:
        """The finished database, with the columns of the schema and `extra` ones; `fields` are attributes of `Database`.

        Raises DatabaseError as `refuse`, or (if strict) if the counts are not those of a complete copy.
        """
        if check_images:
            self.check_images()
        self._refuse_repeats()
        stated = {"score_name": facts.score_name, "higher_better": facts.higher_better}
        pairs = pair_table(
            **{name: self.table[name] for name in self.table if name in {*PAIR_COLUMNS, *extra, "content"}},
            database=facts.name,
            score_lo=facts.score_lo,
            score_hi=facts.score_hi,
            **stated,
        )
        self.check_counts(facts, pairs)
        attributes = {"synthetic": False, "omissions": tuple(self.omissions), **stated, **fields}
        return Database(name=facts.name, root=self.index.root, pairs=pairs, **attributes)

    def _refuse_repeats(self) -> None:
        """Of a pair that is listed more than once, the first row stays; if its scores differ, none does, since nothing
        tells which of them is right."""
        keys = ["ref_path", "dist_path"]
        several = self.table["dist_path"].duplicated(keep=False)  # few, if any: only these need to be compared as pairs
        several[several] = self.table.loc[several, keys].duplicated(keep=False)
        if not several.any():
            return
        rows = self.table[several]
        groups = rows.groupby(keys, sort=False)
        problem = "pair listed twice, first in " + groups["label_source"].transform("first")
        problem = problem.where(rows.duplicated(keys), "")
        if "score" in rows:
            scores = groups["score"].transform("nunique", dropna=False)
            said = "pair listed twice, with " + scores.astype("str") + " scores; give it one"
            problem = problem.mask(scores > 1, said)
        self.table["problem"] = problem.reindex(self.table.index, fill_value="")
        self.refuse_problems()

    def check_counts(self, facts: Facts, pairs: pd.DataFrame) -> None:
        """Compare the counts, or if they are right the mean score, with the facts. Other counts are an error, or (if not
        strict) an omission; another mean is a warning and an omission."""
        counts = (("pairs", facts.pairs, len(pairs)), ("references", facts.references, pairs["ref_id"].nunique()))
        self.check_complete(facts.name, *counts)
        right = all(published in (None, found) for _, published, found in counts)
        if not right or facts.score_mean is None:
            return
        mean = float(pairs["score"].mean())
        if not abs(mean - facts.score_mean) <= _MEAN_TOLERANCE * max(1.0, abs(facts.score_mean)):
            message = (
                f"{facts.name}: the mean {facts.score_name} is {mean:.5f}, of the published labels it is "
                f"{facts.score_mean:.5f}; are these the original labels?"
            )
            log.warning("%s", message)
            self.omissions.append(message)

    def check_complete(self, name: str, *counts: tuple[str, int | None, int]) -> None:
        """Say which counts (what, published, found) are not those published, as `tell` does."""
        wrong = [
            f"{found} of {published} {what}" for what, published, found in counts if published not in (None, found)
        ]
        if wrong:
            message = f"{name}: a complete copy has more or others, this one has {' and '.join(wrong)}"
            self.tell(message, f"complete the copy in {self.index.root}, or load it with strict=False")


class FolderIndex:
    """Look-up of files below a root without regard to letter case and Unicode form; each folder is listed once.

    Names use "/" or "\\". Absolute names and ".." are refused before the disk is touched. What `list_folder` leaves out
    does not exist, nor do names that are not UTF-8, which no label can mention. Two entries that differ only by case are
    an error when asked for.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatabaseError(f"no such folder: {self.root}")
        self._listings: dict[str, dict[str, list[str]]] = {}

    def get(self, name: str) -> str | None:
        """Path relative to the root as it is on disk, or None if there is no such file or folder."""
        found = ""
        for part in path_parts(name):
            matches = self._listing(found).get(_key(part), [])
            if len(matches) > 1:
                folder = self.root / found
                raise DatabaseError(f"{' and '.join(matches)} in {folder} differ only by letter case; remove one")
            if not matches:
                return None
            found = f"{found}/{matches[0]}" if found else matches[0]
        return found

    def find(self, name: str) -> str:
        """Like `get`, but DatabaseError if there is no such file or folder."""
        found = self.get(name)
        if found is None:
            raise DatabaseError(f"{self.root} has no {name} (letter case does not matter); is the copy complete?")
        return found

    def first(self, *names: str) -> str:
        """The first of several names in circulation that exists; DatabaseError listing them if none does."""
        for name in names:
            if (found := self.get(name)) is not None:
                return found
        raise DatabaseError(f"{self.root} has none of {', '.join(names)} (letter case does not matter)")

    def files(self, folder: str, suffixes: Iterable[str] = ("",)) -> list[str]:
        """Paths of the files in a folder that end so, in plain character order; DatabaseError if there is no folder."""
        found = self.find(folder)
        names = sorted(name for matches in self._listing(found).values() for name in matches)
        names = [name for name in names if name.lower().endswith(tuple(suffixes))]
        return [f"{found}/{name}" for name in names if (self.root / found / name).is_file()]

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """Name as it is compared → names on disk."""
        if folder not in self._listings:
            path = self.root / folder
            listing: dict[str, list[str]] = {}
            for entry in list_folder(path) if path.is_dir() else ():
                if is_utf8(entry.name):
                    listing.setdefault(_key(entry.name), []).append(entry.name)
            self._listings[folder] = listing
        return self._listings[folder]


def _key(name: str) -> str:
    """A name as it is compared: macOS decomposes accented letters, Windows does not tell case apart."""
    return unicodedata.normalize("NFC", name).lower()


def _fields(template: str) -> list[str]:
    """Names that a format string refers to."""
    return [name for _, name, _, _ in Formatter().parse(template) if name]
