"""From the files of a database to its table: what all loaders share.

A loader reads its label file into `LabelRows`, says how names become paths, types and levels, and calls
`LabelRows.database`. Whatever is wrong with a row is an error that names file and line; with `strict=False` the row is
left
out, and listed. A row is never dropped in silence.
"""

import codecs
import csv
import io
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from vtamiq.databases.schema import PAIR_COLUMNS, Database, DatabaseError, pair_table, path_parts
from vtamiq.images.reading import ImageError, image_size
from vtamiq.utils.files import is_utf8

__all__ = ["Facts", "FolderIndex", "LabelRows", "list_folder", "read_lines"]

log = logging.getLogger(__name__)

_CLUTTER = re.compile(r"\._.*|\.ds_store|thumbs\.db|desktop\.ini", re.IGNORECASE)
_BLOCK = 5_000  # lines split at a time: as Python strings they take ten times the room of the table
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
        header: bool | None = True,
        separator: str | None = ",",
        optional: Sequence[str] = (),
        strict: bool = True,
    ) -> "LabelRows":
        """Read a text file of labels: UTF-8 with or without byte-order mark, with LF or CRLF; blank lines are skipped.

        Args:
            index: of the database.
            name: the file, relative to the root.
            columns: the columns to keep, as stripped strings. With a header they are looked up in it, without regard to
                case and surrounding blanks; without one, they are the names of all columns.
            header: whether the first line names the columns. None if it does, but in words that are not known: then
                `columns` are the names of all columns as well.
            separator: None splits at any white space.
            optional: columns to keep as well if the header has them.

        Raises:
            DatabaseError: file missing, empty or in another encoding, a column missing, or (if strict) a line with too
            few
                or too many fields.
        """
        name = index.find(name)
        lines = _lines(index.root / name, name)
        names = [column.lower() for column in columns]
        if header is not False:
            number, first = next(lines)
            words = _split_fields([first], separator)[0]
            names = _header(words, columns, f"{name}:{number}") if header else names
            if header is None and any(map(_is_number, words)):
                raise DatabaseError(f"{name}:{number}: a header was expected, found numbers")
            columns = [*columns, *(column for column in optional if column.lower() in names)]
        blocks = []
        while block := list(islice(lines, _BLOCK)):
            fields = _split_fields([line for _, line in block], separator)
            whole = (row if len(row) == len(names) else [""] * len(names) for row in fields)
            values = dict(zip(names, zip(*whole, strict=True), strict=True))
            block_table = pd.DataFrame({column: values[column.lower()] for column in columns}, dtype="str")
            block_table["label_source"] = pd.Series([f"{name}:{number}" for number, _ in block], dtype="str")
            blocks.append(block_table.assign(fields=[len(row) for row in fields]))
        if not blocks:
            raise DatabaseError(f"{name} has no rows below its header; is the copy complete?")
        rows = cls(index, pd.concat(blocks, ignore_index=True), strict=strict)
        rows.refuse(rows.table["fields"] != len(names), f"{len(names)} fields expected, found {{fields}}")
        rows.table = rows.table.drop(columns="fields")
        return rows

    def refuse(self, bad: Any, why: str) -> None:
        """Refuse the rows of a boolean mask: an error that names the first, or (if not strict) an omission each.

        Args:
            bad: mask, one value per row of the table.
            why: the reason; "{column}" stands for the row's value.

        Raises:
            DatabaseError: a row is bad; if not strict, only if no other row is left.
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

        Args:
            expected: how the error message describes the pattern.
            numeric: groups that become Int16.
        """
        rows, values = pd.factorize(self.table[column])  # large tables have few different ones
        groups = pd.Series(values, dtype="str").str.extract(f"^(?:{pattern})$", flags=re.IGNORECASE)
        bad = groups.isna().all(axis=1).to_numpy()[rows]
        self.refuse(bad, f"expected {expected}, found {{{column}!r}}")
        for name in groups:
            values = pd.to_numeric(groups[name]).astype("Int16") if name in numeric else groups[name]
            self.table[name] = values.take(rows[~bad]).set_axis(self.table.index)

    def locate(self, column: str, *folders: str) -> None:
        """Turn a column of names into paths as they are on disk, relative to the root.

        Args:
            folders: that the names are relative to, the first that has the file counts; "" is the root. A template
            such as
                "{folder}" is filled in with the row's values.
        """
        folders = folders or ("",)
        keys = list(dict.fromkeys([column, *(name for folder in folders for name in _fields(folder))]))
        rows = self.table.groupby(keys, sort=False, dropna=False).ngroup()  # large tables name an image many times
        found = []
        for values in zip(*(key for _, key in self.table[keys].drop_duplicates().items()), strict=True):
            row = dict(zip(keys, values, strict=True))
            found.append(self._locate(row[column], [folder.format_map(row) for folder in folders]))
        for name, values in zip((column, "problem"), zip(*found, strict=True), strict=True):
            self.table[name] = pd.Series(values, dtype="str").take(rows).set_axis(self.table.index)
        self.refuse(self.table["problem"] != "", "{problem}")
        self.table = self.table.drop(columns="problem")

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
        sizes: dict[str, tuple[int, int] | str] = {}
        for column in ("ref_path", "dist_path"):
            for path in self.table[column].unique():
                sizes.setdefault(path, self._size(path))
        for column in ("ref_path", "dist_path"):
            self.table["problem"] = [s if isinstance(s := sizes[path], str) else "" for path in self.table[column]]
            self.refuse(self.table["problem"] != "", "{problem}")
        for column, name in (("ref_path", "ref_size"), ("dist_path", "dist_size")):
            self.table[name] = ["{} x {}".format(*sizes[path]) for path in self.table[column]]
        self.refuse(
            self.table["ref_size"] != self.table["dist_size"],
            "{ref_path} is {ref_size} and {dist_path} is {dist_size} (width x height)",
        )
        self.table = self.table.drop(columns=["problem", "ref_size", "dist_size"])

    def _size(self, path: str) -> tuple[int, int] | str:
        try:
            return image_size(self.index.root / path)
        except ImageError as error:
            return str(error).replace(str(self.index.root / path), path)

    def database(
        self, facts: Facts, *, check_images: bool = True, extra: Sequence[str] = (), **fields: Any
    ) -> Database:
        """The finished database from the columns of the table that the schema knows.

        Args:
            check_images: open every image once, see the method of that name.
            extra: further columns that the pairs shall have.
            fields: further attributes of `Database`.

        Raises:
            DatabaseError: as `refuse`, or (if strict) the counts are not those of a complete copy.
        """
        if check_images:
            self.check_images()
        self._refuse_repeats()
        self._sort()
        pairs = pair_table(
            **{name: self.table[name] for name in self.table if name in {*PAIR_COLUMNS, *extra, "content"}},
            database=facts.name,
            score_name=facts.score_name,
            higher_better=facts.higher_better,
            score_lo=facts.score_lo,
            score_hi=facts.score_hi,
        )
        self.check_counts(facts, pairs)
        return Database(
            **{"synthetic": False} | fields,
            name=facts.name,
            root=self.index.root,
            pairs=pairs,
            score_name=facts.score_name,
            higher_better=facts.higher_better,
            omissions=tuple(self.omissions),
        )

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
        self.refuse(self.table["problem"] != "", "{problem}")
        self.table = self.table.drop(columns="problem")

    def _sort(self) -> None:
        """By reference, column by column: a table of 700,000 rows is not to lie in the memory twice."""
        if not self.table["ref_id"].is_monotonic_increasing:
            order = self.table["ref_id"].argsort(kind="stable").to_numpy()
            for name in self.table:
                self.table[name] = self.table[name].array.take(order)

    def check_counts(self, facts: Facts, pairs: pd.DataFrame) -> None:
        """Compare the counts, or if they are right the mean score, with the facts. Other counts are an error, or (if not
        strict) an omission; another mean is a warning and an omission."""
        found = {"pairs": len(pairs), "references": pairs["ref_id"].nunique()}
        wrong = [f"{n} of {getattr(facts, what)} {what}" for what, n in found.items() if getattr(facts, what) != n]
        wrong = [text for text in wrong if " of None " not in text]
        if wrong:
            message = f"{facts.name}: a complete copy has more or others, this one has {' and '.join(wrong)}"
            if self.strict:
                raise DatabaseError(f"{message}; complete the copy in {self.index.root}, or load it with strict=False")
            self.omissions.append(message)
        elif facts.score_mean is not None:
            mean = float(pairs["score"].mean())
            if not abs(mean - facts.score_mean) <= _MEAN_TOLERANCE * max(1.0, abs(facts.score_mean)):
                message = (
                    f"{facts.name}: the mean {facts.score_name} is {mean:.5f}, of the published labels it is "
                    f"{facts.score_mean:.5f}; are these the original labels?"
                )
                log.warning("%s", message)
                self.omissions.append(message)


class FolderIndex:
    """Look-up of files below a root without regard to letter case; each folder is listed once.

    Names use "/" or "\\". Absolute names and ".." are refused before the disk is touched. What `list_folder` leaves out
    does not exist. Two entries that differ only by case are an error when asked for.
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
            matches = self._listing(found).get(part.lower(), [])
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

    def files(self, folder: str = "", suffixes: Iterable[str] = ()) -> list[str]:
        """Paths of the files in a folder, in plain character order; only those with one of the suffixes, if given."""
        found = self.find(folder) if folder else ""
        prefix = f"{found}/" if found else ""
        endings = tuple(suffix.lower() for suffix in suffixes)
        names = sorted(name for matches in self._listing(found).values() for name in matches)
        names = [name for name in names if not endings or name.lower().endswith(endings)]
        return [prefix + name for name in names if (self.root / prefix / name).is_file()]

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """Lower-cased name → names on disk."""
        if folder not in self._listings:
            path = self.root / folder
            listing: dict[str, list[str]] = {}
            for name in sorted(list_folder(path)) if path.is_dir() else ():
                listing.setdefault(name.lower(), []).append(name)
            self._listings[folder] = listing
        return self._listings[folder]


def list_folder(path: Path) -> list[str]:
    """Names in a folder, but for clutter that operating systems leave (.DS_Store, Thumbs.db, ._*), and for names that are
    not UTF-8: no label can mention those, and no table can keep them."""
    return [name for name in os.listdir(path) if not _CLUTTER.fullmatch(name) and is_utf8(name)]


def read_lines(path: Path, name: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    return list(_lines(path, name))


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """`read_lines` one by one, for files that are large."""
    empty = True
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = _decode(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, f"{name}:{number}")
                if line.strip():
                    empty = False
                    yield number, line
    except OSError as error:
        raise DatabaseError(f"cannot read {path}: {error.strerror}") from error
    if empty:
        raise DatabaseError(f"{name} is empty; is the copy complete?")


def _decode(raw: bytes, source: str) -> str:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatabaseError(f"{source}: not UTF-8; save the file as UTF-8 text") from error
    line = line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")
    if "\r" in line or "\0" in line:
        raise DatabaseError(f"{source}: not UTF-8 text with LF or CRLF line ends; save it so")
    return line


def _header(words: list[str], columns: Sequence[str], source: str) -> list[str]:
    """Words of a header in lower case; DatabaseError if a column is not among them, or twice."""
    names = [word.lower() for word in words]
    missing = [column for column in columns if column.lower() not in names]
    if missing:
        raise DatabaseError(f"{source}: no column {', '.join(missing)}; the header is {', '.join(words)}")
    twice = [column for column in columns if names.count(column.lower()) > 1]
    if twice:
        raise DatabaseError(f"{source}: more than one column {', '.join(twice)}; the header is {', '.join(words)}")
    return names


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _fields(template: str) -> list[str]:
    """Names that a format string refers to."""
    return [name for _, name, _, _ in Formatter().parse(template) if name]


def _split_fields(lines: list[str], separator: str | None) -> list[list[str]]:
    """Fields of each line; a line in which a quotation mark is not closed is one empty field, which is of no row."""
    if separator is None:
        return [line.split() for line in lines]
    rows = _parse(lines, separator)
    if rows is None:  # such a mark has swallowed the lines that follow it
        rows = [(_parse([line], separator) or [[""]])[0] for line in lines]
    if not any(" " in line or "\t" in line for line in lines):
        return rows  # most large files: half the time
    return [[field.strip() for field in row] for row in rows]


def _parse(lines: list[str], separator: str) -> list[list[str]] | None:
    """Fields of each line of a CSV; None if a quotation mark is not closed in one of them."""
    try:
        *rows, end = csv.reader(io.StringIO("\n".join([*lines, "end"]), newline=""), delimiter=separator)
    except csv.Error:  # one field of many lines is too long
        return None
    return [row or [""] for row in rows] if len(rows) == len(lines) and end == ["end"] else None
