"""From the files of a database to its table: what all loaders share.

A loader reads its label file into `LabelRows`, says how names become paths, types and levels, and calls
`LabelRows.database`. A row that is wrong is an error that names file and line; with `strict=False` it is left out, and
listed.
"""

import logging
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from vtamiq.databases.schema import PAIR_COLUMNS, Database, DatabaseError, pair_table, path_parts
from vtamiq.images.reading import ImageError, image_size
from vtamiq.utils.files import is_utf8, list_folder
from vtamiq.utils.tables import read_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is published of a database (or of one distributed part or kind of score of it)."""

    name: str
    score_name: str
    higher_better: bool
    references: int | None = None  # in a complete copy; None if that varies
    pairs: int | None = None
    score_mean: float | None = None  # None if there are no scores
    score_lo: float = math.nan  # nominal range of the scale, NaN on an open side
    score_hi: float = math.nan


class LabelRows:
    """Rows of labels on their way to a table of pairs; the column `label_source` ("file:line") names each."""

    def __init__(self, index: "FolderIndex", table: pd.DataFrame, *, strict: bool = True):
        self.index, self.table, self.strict = index, table.reset_index(drop=True), strict
        self.omissions: list[str] = []  # what was left out so far, one sentence per row; stays empty if strict

    @classmethod
    def read(
        cls, index: "FolderIndex", name: str, columns: Sequence[str], *, strict: bool = True, **options: Any
    ) -> "LabelRows":
        """Read the label file `name`, relative to the root; options and errors (as DatabaseErrors) of `read_table`."""
        name = index.find(name)
        try:
            table, problems = read_table(index.root / name, columns, name=name, **options)
        except ValueError as error:
            raise DatabaseError(str(error)) from error
        rows = cls(index, table.assign(label_source=f"{name}:" + table.index.astype("str")), strict=strict)
        rows._refuse_each([problems.get(line, "") for line in table.index])
        return rows

    @classmethod
    def read_all(
        cls, index: "FolderIndex", names: Sequence[str], columns: Sequence[str], *, strict: bool = True, **options: Any
    ) -> "LabelRows":
        """Read several files into one table, with the name of each in the column `file`. If not strict, a file that cannot
        be used is an omission, unless none can."""
        rows = cls(index, pd.DataFrame(columns=[*columns, "label_source", "file"], dtype="str"), strict=strict)
        parts = [rows.table]
        for name in names:
            try:
                part = cls.read(index, name, columns, strict=strict, **options)
            except DatabaseError as error:
                if strict or len(names) == 1:
                    raise
                rows.omissions.append(str(error))
            else:
                parts.append(part.table.assign(file=name))
                rows.omissions += part.omissions
        if names and len(parts) == 1:
            raise DatabaseError(f"none of the {len(names)} files can be used. {rows.omissions[0]}")
        rows.table = pd.concat(parts, ignore_index=True).astype({"file": "str"})
        return rows

    def refuse(self, bad: Any, why: str) -> None:
        """Refuse the rows of a boolean mask for a reason in which "{column}" stands for the row's value: an error for the
        first or, if not strict, an omission each, unless no row would be left."""
        bad = np.asarray(bad, dtype=bool)
        if not bad.any():
            return
        rows = self.table.loc[bad, list(dict.fromkeys(["label_source", *_fields(why)]))]
        shown = rows.iloc[: 1 if self.strict or bad.all() else None].to_dict("records")
        said = [f"{row['label_source']}: {why.format_map(row)}" for row in shown]
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        if self.strict:
            raise DatabaseError(f"{said[0]}{more}; mend the copy, or leave such rows out with strict=False")
        if bad.all():
            raise DatabaseError(f"no row of {len(bad)} can be used. {said[0]}{more}")
        self.omissions += said
        self.table = self.table[~bad].reset_index(drop=True)

    def _refuse_each(self, problems: Sequence[str]) -> None:
        """Refuse the rows whose problem is not ""."""
        self.table["problem"] = pd.Series(problems, index=self.table.index, dtype="str")
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
        """Add the named groups of a pattern (`expected` in errors) that the column must match, in any letter case. The
        groups `numeric` become Int16."""
        rows, values = pd.factorize(self.table[column])  # large tables have few different ones
        groups = pd.Series(values, dtype="str").str.extract(f"^(?:{pattern})$", flags=re.IGNORECASE)
        bad = groups.isna().all(axis=1).to_numpy()[rows]
        self.refuse(bad, f"expected {expected}, found {{{column}!r}}")
        for name in groups:
            values = pd.to_numeric(groups[name]).astype("Int16") if name in numeric else groups[name]
            self.table[name] = values.take(rows[~bad]).set_axis(self.table.index)

    def locate(self, column: str, *folders: str) -> None:
        """Turn a column of names into paths as they are on disk, relative to the root; missing files are refused. Names are
        relative to the first of `folders` (by default the root) that has the file; "{column}" in these is filled in."""
        folders = folders or ("",)
        keys = list(dict.fromkeys([column, *(name for folder in folders for name in _fields(folder))]))
        rows = self.table.groupby(keys, sort=False, dropna=False).ngroup()  # large tables name an image many times
        distinct = self.table[keys].drop_duplicates().to_dict("records")
        found = [self._locate(row[column], [folder.format_map(row) for folder in folders]) for row in distinct]
        self.table[column] = pd.Series([found[row][0] for row in rows], index=self.table.index, dtype="str")
        self._refuse_each([found[row][1] for row in rows])

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

    def check_images(self) -> None:
        """Refuse rows whose images are damaged, as far as their header and their end tell, or differ in size."""
        sizes, problems = {}, {}
        for path in pd.unique(self.table[["ref_path", "dist_path"]].to_numpy().ravel("F")):
            try:
                sizes[path] = "{} x {}".format(*image_size(self.index.root / path))
            except ImageError as error:
                problems[path] = str(error).replace(str(self.index.root / path), path)
        for column in ("ref_path", "dist_path"):
            self._refuse_each([problems.get(path, "") for path in self.table[column]])
        self.table["ref_size"] = self.table["ref_path"].map(sizes)
        self.table["dist_size"] = self.table["dist_path"].map(sizes)
        said = "{ref_path} is {ref_size} and {dist_path} is {dist_size} (width x height)"
        self.refuse(self.table["ref_size"] != self.table["dist_size"], said)
        self.table = self.table.drop(columns=["ref_size", "dist_size"])

    def database(
        self, facts: Facts, *, check_images: bool = True, extra: Sequence[str] = (), **fields: Any
    ) -> Database:
        """The finished database, with the columns of the schema and `extra` ones; `fields` are attributes of `Database`."""
        if check_images:
            self.check_images()
        self._refuse_repeats()
        stated = {"score_name": facts.score_name, "higher_better": facts.higher_better}
        columns = {name: self.table[name] for name in self.table if name in {*PAIR_COLUMNS, *extra, "content"}}
        scale = {"score_lo": facts.score_lo, "score_hi": facts.score_hi}
        pairs = pair_table(**columns, database=facts.name, **scale, **stated)
        self._check_counts(facts, pairs)
        attributes = {"synthetic": False, "omissions": tuple(self.omissions), **stated, **fields}
        return Database(name=facts.name, root=self.index.root, pairs=pairs, **attributes)

    def _refuse_repeats(self) -> None:
        """Of a pair that is listed more than once, the first row stays; if its scores differ, none does."""
        keys = ["ref_path", "dist_path"]
        rows = self.table[self.table.duplicated(keys, keep=False)]
        if rows.empty:
            return
        groups = rows.groupby(keys, sort=False)
        problem = "pair listed twice, first in " + groups["label_source"].transform("first")
        problem = problem.where(rows.duplicated(keys), "")
        if "score" in rows:
            scores = groups["score"].transform("nunique", dropna=False)
            said = "pair listed twice, with " + scores.astype("str") + " scores; give it one"
            problem = problem.mask(scores > 1, said)
        self._refuse_each(problem.reindex(self.table.index, fill_value=""))

    def _check_counts(self, facts: Facts, pairs: pd.DataFrame) -> None:
        """Compare the counts with the facts or, if they are right, the mean score: another one is only a warning and an
        omission, and published means have five digits."""
        counts = (("pairs", facts.pairs, len(pairs)), ("references", facts.references, pairs["ref_id"].nunique()))
        if not self.check_complete(facts.name, *counts) or facts.score_mean is None:
            return
        mean = float(pairs["score"].mean())
        if not abs(mean - facts.score_mean) <= 1e-4 * max(1.0, abs(facts.score_mean)):
            message = (
                f"{facts.name}: the mean {facts.score_name} is {mean:.5f}, of the published labels it is "
                f"{facts.score_mean:.5f}; are these the original labels?"
            )
            log.warning("%s", message)
            self.omissions.append(message)

    def check_complete(self, name: str, *counts: tuple[str, int | None, int]) -> bool:
        """Whether all counts (what, published, found) are those published; if not, an error or omission, see `tell`."""
        differ = [count for count in counts if count[1] not in (None, count[2])]
        wrong = [f"{found} of {published} {what}" for what, published, found in differ]
        if wrong:
            message = f"{name}: a complete copy has more or others, this one has {' and '.join(wrong)}"
            self.tell(message, f"complete the copy in {self.index.root}, or load it with strict=False")
        return not wrong


class FolderIndex:
    """Look-up of files below a root without regard to letter case and Unicode form; each folder is listed once.

    Absolute names and ".." are refused, as are two entries that differ only by case when asked for. What `list_folder`
    leaves out and names that are not UTF-8 do not exist.
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

    def find(self, *names: str) -> str:
        """The first of the names in circulation that exists, as by `get`; DatabaseError listing them if none does."""
        for name in names:
            if (found := self.get(name)) is not None:
                return found
        none = f"none of {', '.join(names)}" if len(names) > 1 else f"no {names[0]}"
        raise DatabaseError(f"{self.root} has {none} (letter case does not matter); is the copy complete?")

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
            listing = self._listings[folder] = {}
            for entry in list_folder(path) if path.is_dir() else ():
                if is_utf8(entry.name):
                    listing.setdefault(_key(entry.name), []).append(entry.name)
        return self._listings[folder]


def _key(name: str) -> str:
    """A name as it is compared: macOS decomposes accented letters, Windows does not tell case apart."""
    return unicodedata.normalize("NFC", name).lower()


def _fields(template: str) -> list[str]:
    """Names that a format string refers to."""
    return [name for _, name, _, _ in Formatter().parse(template) if name]
