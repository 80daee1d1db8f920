"""Tables of image pairs to score: read from a file, or matched by name from two folders."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vtamiq.utils.files import is_utf8, list_images
from vtamiq.utils.tables import numbers_where_exact, read_table

__all__ = ["pair_folders", "read_pairs"]

PATHS = ("reference", "distorted")
ADDED = ("q", "standard_error", "error", "repeats", "num_patches", "seed", "weights", "settings")  # by `score_table`


def read_pairs(path: str | Path) -> pd.DataFrame:
    """Read a table of pairs from `.csv` or `.parquet`, with columns `reference` and `distorted`.

    Other columns are kept. The frame's index is called `line` and says where a row begins in the file (parquet: the row's
    number from 1). A line of the CSV with too many or too few fields is a row without paths, for `score_table` to report.

    Raises:
        ValueError: the file is of another kind or damaged, a column is missing, or there is no row.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".csv":
        table, _ = read_table(path, PATHS, others=True)
        table = table.apply(lambda column: column if column.name in PATHS else numbers_where_exact(column))
    elif path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as parquet ({error})") from error
        table.index = pd.RangeIndex(1, len(table) + 1, name="line")
    else:
        raise ValueError(f"{path}: pairs are read from .csv or .parquet")
    return check_pairs(table, str(path))


def check_pairs(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with its paths as text, "" where there is none; ValueError if it is no table of pairs."""
    columns = list(table.columns)
    for column in PATHS:
        if columns.count(column) != 1:
            raise ValueError(f"{name}: needs one column `{column}`, has {', '.join(map(str, columns)) or 'none'}")
    for column in columns:
        if column in ADDED:
            raise ValueError(f"{name}: has a column `{column}`, which is one of the result; rename it")
        if columns.count(column) > 1:
            raise ValueError(f"{name}: has several columns `{column}`")
    if table.empty:
        raise ValueError(f"{name}: there is no pair to score")
    return table.assign(**{column: [_path(value, column, name) for value in table[column]] for column in PATHS})


def pair_folders(ref_dir: str | Path, dist_dir: str | Path) -> pd.DataFrame:
    """Pair every image below `dist_dir` with its reference below `ref_dir`, by their names without suffix.

    The reference of `NAME.jpg` is `NAME.*`; failing that, that of `NAME_anything.jpg` is `NAME.*`. Capitals do not
    matter. A distorted image without a reference is a row with an empty one, for `score_table` to report. Hidden files
    and folders (".NAME") are passed over.

    Returns:
        DataFrame with columns `reference` and `distorted`, sorted by `distorted`.

    Raises:
        ValueError: no folder, no images, a name that is not UTF-8, or a distorted image with several possible references.
    """
    if Path(ref_dir).resolve() == Path(dist_dir).resolve():
        raise ValueError(f"{ref_dir}: references and distorted images need folders of their own, or a table of pairs")
    references: dict[str, list[Path]] = {}
    for path in _images_below(ref_dir):
        references.setdefault(path.stem.casefold(), []).append(path)
    known = {path.resolve() for paths in references.values() for path in paths}  # one folder may lie in the other
    distorted = [path for path in _images_below(dist_dir) if path.resolve() not in known]
    if not distorted:
        raise ValueError(f"{dist_dir}: there are no images beside the references")
    rows = [(_reference_of(path, references), str(path)) for path in distorted]
    return pd.DataFrame(rows, columns=list(PATHS))


def _images_below(folder: str | Path) -> list[Path]:
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = list_images(folder, below=True)
    if not found:
        raise ValueError(f"{folder}: there are no images")
    for path in found:
        _check_text(str(path))
    return found


def _reference_of(distorted: Path, references: Mapping[str, list[Path]]) -> str:
    stem = distorted.stem.casefold()
    names = [stem] if stem in references else [stem[:k] for k, letter in enumerate(stem) if letter == "_"]
    possible = [path for name in names for path in references.get(name, [])]
    if len(possible) > 1:
        listed = " or ".join(str(path) for path in possible)
        raise ValueError(f"{distorted}: its reference may be {listed}; rename one, or list the pairs in a table")
    return str(possible[0]) if possible else ""


def _path(value: Any, column: str, name: str) -> str:
    if isinstance(value, str | os.PathLike):
        _check_text(path := os.fspath(value))
        return path
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    raise ValueError(f"{name}: column `{column}` must hold paths, got {value!r}")


def _check_text(path: str) -> None:
    if not is_utf8(path):
        raise ValueError(f"{path!a}: a name that is not UTF-8 cannot be kept in tables; rename that file")
