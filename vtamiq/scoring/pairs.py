"""Tables of image pairs to score: read from a file, or matched by name from two folders."""

import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

import pandas as pd

from vtamiq.utils.files import check_regular, is_image_name, is_utf8, list_folder
from vtamiq.utils.tables import numbers_where_exact, read_table

PATHS = ("reference", "distorted")
ADDED = ("q", "standard_error", "error", "repeats", "num_patches", "seed", "weights", "settings", "file_state")


def read_pairs(path: str | Path) -> pd.DataFrame:
    """Read a table of pairs from `.csv` or `.parquet`, with columns `reference` and `distorted`; others are kept.

    The index is called `line` and says where a row begins in the file (parquet: its number from 1). A line of the CSV with
    too many or too few fields is a row without paths, for `score_table` to report.

    Raises:
        ValueError: the file is of another kind or damaged, a column is missing, or there is no row.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table, _ = read_table(path, PATHS, others=True)
        table = table.apply(lambda column: column if column.name in PATHS else numbers_where_exact(column))
    elif path.suffix.lower() == ".parquet":
        check_regular(path)
        try:
            table = pd.read_parquet(io.BytesIO(path.read_bytes()))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as parquet ({error})") from error
        table.index = pd.RangeIndex(1, len(table) + 1, name="line")
    else:
        raise ValueError(f"{path}: pairs are read from .csv or .parquet")
    return check_pairs(table, str(path))


def check_pairs(table: pd.DataFrame | Mapping[str, Any], name: str) -> pd.DataFrame:
    """The table with its paths as text, "" where there is none; ValueError if it is no table of pairs."""
    if not isinstance(table, pd.DataFrame):
        try:
            table = pd.DataFrame(table)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: give a DataFrame or the path of a file ({error})") from error
    for column in PATHS:
        if list(table.columns).count(column) != 1:
            raise ValueError(f"{name}: needs one column `{column}`, has {', '.join(map(str, table.columns)) or 'none'}")
    for column in table.columns.intersection(ADDED):
        raise ValueError(f"{name}: has a column `{column}`, which is one of the result; rename it")
    for column in table.columns[table.columns.duplicated()]:
        raise ValueError(f"{name}: has several columns `{column}`")
    if table.empty:
        raise ValueError(f"{name}: there is no pair to score")
    return table.assign(**{column: [_path(value, column, name) for value in table[column]] for column in PATHS})


def _path(value: Any, column: str, name: str) -> str:
    if isinstance(value, str | os.PathLike):
        return _checked(os.fspath(value))
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    raise ValueError(f"{name}: column `{column}` must hold paths, got {value!r}")


def _checked(path: str) -> str:
    if not is_utf8(path):
        raise ValueError(f"{path!a}: a name that is not UTF-8 cannot be kept in tables; rename that file")
    return path


class _Name(NamedTuple):
    """A file below a folder, with its names in one letter case and Unicode form."""

    path: Path
    folders: tuple[str, ...]  # between the folder and the file
    stem: str


def pair_folders(ref_dir: str | Path, dist_dir: str | Path) -> pd.DataFrame:
    """Pair every file below `dist_dir` with its reference below `ref_dir`, by their names without suffix.

    The reference of `NAME.jpg` is `NAME.*`; failing that, that of `NAME_anything.jpg` is `NAME.*`; of several, the one with
    most folders below `ref_dir` in common with the distorted image. Letter case and Unicode form do not matter. A distorted
    image without a reference is a row with an empty one, and a file that is no image is one too: `score_table` says so.
    Hidden files and folders (".NAME") and links to folders are passed over. One folder may lie in the other.

    Returns:
        DataFrame with columns `reference` and `distorted`, sorted by `distorted`.

    Raises:
        ValueError: no folder, no files, a name that is not UTF-8, or a distorted image with several possible references.
    """
    if Path(ref_dir).resolve() == Path(dist_dir).resolve():
        raise ValueError(f"{ref_dir}: references and distorted images need folders of their own, or a table of pairs")
    references, same = defaultdict(list), defaultdict(list)
    for name in _names_below(ref_dir, dist_dir):
        references[name.stem].append(name)
        same[name[1:]].append(name)
    rows = [(_reference_of(name, references, same), str(name.path)) for name in _names_below(dist_dir, ref_dir)]
    return pd.DataFrame(sorted(rows, key=lambda row: row[1]), columns=list(PATHS))


def _names_below(folder: str | Path, other: str | Path) -> list[_Name]:
    """Files below a folder, without those of the other folder if that lies in this one."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = []
    for path in _files_below(Path(folder), Path(other).resolve()):
        _checked(str(path))
        *folders, stem = normalize("NFC", str(path.relative_to(folder).with_suffix("")).casefold()).split(os.sep)
        found.append(_Name(path, tuple(folders), stem))
    if not found:
        raise ValueError(f"{folder}: there are no images")
    return found


def _files_below(folder: Path, other: Path) -> Iterator[Path]:
    for entry in list_folder(folder):
        if not entry.is_dir():
            yield folder / entry.name
        elif not entry.is_symlink() and Path(entry.path).resolve() != other:
            yield from _files_below(folder / entry.name, other)


def _reference_of(distorted: _Name, references: Mapping[str, list[_Name]], same: Mapping[tuple, list[_Name]]) -> str:
    if len(alike := same.get(distorted[1:], [])) == 1:
        return str(alike[0].path)
    stem, ranks = distorted.stem, {}
    for name in [stem, *(stem[:k] for k, letter in enumerate(stem) if letter == "_")]:
        for path, folders, _ in references.get(name, []):
            shared = len({*folders} & {*distorted.folders})
            ranks[path] = (shared, name == stem, shared - len(folders), is_image_name(path.name))
    best = max(ranks.values(), default=None)
    possible = [path for path, rank in ranks.items() if rank == best]
    if len(possible) > 1:
        listed = " or ".join(str(path) for path in possible)
        raise ValueError(f"{distorted.path}: its reference may be {listed}; rename one, or list the pairs in a table")
    return str(possible[0]) if possible else ""
