"""Text tables: comma, tab or blank separated rows of text, each known by the line it begins in.

Columns are found by name in any letter case; `ALIASES` has what else people call them.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from vtamiq.utils.configs import did_you_mean
from vtamiq.utils.files import check_regular, is_utf8

ALIASES = {
    "reference": ("ref", "reference_path", "ref_path", "reference_image", "ref_image", "reference_img", "ref_img"),
    "distorted": ("dist", "distorted_path", "dist_path", "distorted_image", "dist_image", "distorted_img", "dist_img"),
    "score": ("mos", "dmos"),
}
MAX_BYTES = 2**29  # four times the largest label file of any database, that of KADIS-700k
_SPAN = 50  # lines of one row at most: a quotation mark that is never closed is to spoil its own line only
_BLOCK = 5_000  # rows at a time: as Python strings they take ten times the room of the table


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    others: bool = False,
    separator: str | None = ",",
    header: Literal["named", "foreign", "none"] = "named",
    name: str | None = None,
) -> tuple[pd.DataFrame, dict[int, str]]:
    r"""Read a table of text in UTF-8, with or without byte-order mark, with LF, CRLF or CR at the ends of lines.

    Fields may be quoted, and then have line ends. Blank rows, blank columns at the end and columns without a name are
    skipped. Backslashes in the columns `reference` and `distorted` become "/".

    Args:
        columns: must be there; they get these names, whatever their letter case or alias in the file.
        optional: columns to keep as well if the file has them.
        others: keep all other columns, too.
        separator: one character; None splits at any white space.
        header: "named": the first line names the columns; "foreign": in unknown words, so that `columns` are the names of
            all; "none": there is no such line, and `columns` are likewise all.
        name: what errors call the file; None for its path.

    Returns:
        The table, every field as text without surrounding blanks, its index `line` counting from 1; and line → what is
        wrong with it, for rows of too few or too many fields, which are blank in the table.

    Raises:
        ValueError: not a regular file, too large, empty, not UTF-8, a column missing or there twice, no rows.
        FileNotFoundError: no such file.
    """
    name = str(path) if name is None else name
    lines = read_lines(path, name)
    at = next((n for n, line in enumerate(lines) if line.strip()), None)
    if at is None:
        raise ValueError(f"{name} is empty; is the copy complete?")
    names = dict(enumerate(columns))  # position → column
    width = len(columns)
    if header != "none":
        words, source = _row(lines, at, separator)[0] or [], f"{name}:{at + 1}"
        at += 1
        if header == "named":
            words = _trimmed(words)
            names, width = _find_columns(words, columns, optional, others, source), len(words)
        elif pd.to_numeric(pd.Series(words, dtype="str"), errors="coerce").notna().any():
            raise ValueError(f"{source}: a header was expected, found numbers")
    table, problems = _read_rows(lines, at, separator, names, width)
    if not len(table):
        raise ValueError(f"{name} has no rows below its header; is the copy complete?")
    for column in ("reference", "distorted"):
        if column in table:
            table[column] = table[column].str.replace("\\", "/", regex=False)
    return table, problems


def read_lines(path: str | Path, name: str | None = None) -> list[str]:
    """Lines of a file of text, without their ends; errors as for `read_table`."""
    path, name = Path(path), str(path) if name is None else name
    status = check_regular(path, name)
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{name} has {status.st_size:,} bytes; tables of more than {MAX_BYTES:,} are not read")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.removesuffix("\n") for line in file]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not is_utf8(line) or "\0" in line:
            raise ValueError(f"{name}:{number}: not UTF-8; save the file as UTF-8 text")
    return lines


def numbers_where_exact(column: pd.Series) -> pd.Series:
    """Numbers of a column of text, if all of it is written as numbers are (007 is not); else the text."""
    try:
        numbers = pd.to_numeric(column)
    except ValueError:
        return column
    exact = all(str(number) == text for number, text in zip(numbers.tolist(), column, strict=True))
    return numbers if exact else column


def _read_rows(
    lines: list[str], at: int, separator: str | None, names: dict[int, str], width: int
) -> tuple[pd.DataFrame, dict[int, str]]:
    rows, numbers, problems, blocks = [], [], {}, []
    while at < len(lines):
        number = at + 1
        fields, at = _row(lines, at, separator)
        fields = fields and _trimmed(fields, width)
        if fields is None or (at > number and len(fields) != width):  # a mark that is not closed swallows other rows
            problems[number], at = "a quotation mark is not closed", number
        elif not any(fields):
            continue
        elif len(fields) != width:
            problems[number] = f"{width} fields expected, found {len(fields)}"
        rows.append([""] * width if number in problems else fields)
        numbers.append(number)
        if len(rows) == _BLOCK:
            blocks.append(_as_frame(rows, names))
            rows = []
    table = pd.concat([*blocks, _as_frame(rows, names)], ignore_index=True)
    return table.set_axis(pd.Index(numbers, name="line", dtype="int64")), problems


def _as_frame(rows: list[list[str]], names: dict[int, str]) -> pd.DataFrame:
    values = list(zip(*rows, strict=True)) if rows else [()] * (max(names) + 1)
    return pd.DataFrame({column: values[k] for k, column in names.items()}, dtype="str")


def _row(lines: list[str], at: int, separator: str | None) -> tuple[list[str] | None, int]:
    """Fields of the row that begins at a line, None if a quotation mark is not closed; and where the next row begins."""
    if separator is None or '"' not in lines[at]:
        return [field.strip() for field in lines[at].split(separator)], at + 1
    for end in range(at + 1, min(at + _SPAN, len(lines)) + 1):
        if end > at + 1 and '"' not in lines[end - 1]:
            continue
        try:
            *row, last = csv.reader([*(f"{line}\n" for line in lines[at:end]), "end"], delimiter=separator)
        except csv.Error:  # a field of too many characters
            break
        if last == ["end"]:
            return [field.strip() for field in row[0]], end
    return None, at + 1


def _trimmed(fields: list[str], width: int = 0) -> list[str]:
    """Fields without blank ones at the end, but at least `width` of them."""
    while len(fields) > width and not fields[-1]:
        fields.pop()
    return fields


def _find_columns(
    words: list[str], columns: Sequence[str], optional: Sequence[str], others: bool, source: str
) -> dict[int, str]:
    """Position → name of the columns to keep, in the order of `columns`, `optional` and the header."""
    shown = ", ".join(words[:20]) + (f" and {len(words) - 20} more" if len(words) > 20 else "")
    twice = next((word for word, count in Counter(words).items() if word and count > 1), None)
    if twice is not None:
        raise ValueError(f"{source}: more than one column {twice}; the header is {shown}")
    places: dict[str, list[int]] = {}
    for k, word in enumerate(words):
        places.setdefault(word.lower(), []).append(k)
    found: dict[int, str] = {}
    for column in (*columns, *optional):
        possible = places.get(column.lower()) or [k for word in ALIASES.get(column, ()) for k in places.get(word, [])]
        if len(possible) > 1:
            called = " and ".join(words[k] for k in possible)
            raise ValueError(f"{source}: more than one column {column} ({called}); the header is {shown}")
        if not possible and column in columns:
            hint = did_you_mean(column, words[:1000])
            raise ValueError(f"{source}: no column {column}{hint}; the header is {shown}")
        if possible and found.setdefault(possible[0], column) != column:
            raise ValueError(f"{source}: {words[possible[0]]} cannot be both {found[possible[0]]} and {column}")
    if others:
        found |= {k: word for k, word in enumerate(words) if word and k not in found}
    return found
