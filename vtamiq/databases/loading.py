"""Find databases on disk, and load them by name.

A new loader is a function `load(root, *, strict=True, **options)` that returns a `Database`, and a line in `LOADERS`.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vtamiq.databases.csiq import load_csiq
from vtamiq.databases.kadid import load_kadid10k
from vtamiq.databases.kadis import load_kadis700k
from vtamiq.databases.live import load_live
from vtamiq.databases.pieapp import load_pieapp
from vtamiq.databases.pipal import PIPAL_MARKS, load_pipal
from vtamiq.databases.reading import FolderIndex
from vtamiq.databases.schema import Database, DatabaseError
from vtamiq.databases.synthetic import load_synthetic
from vtamiq.databases.table import load_table
from vtamiq.databases.tid import load_tid2008, load_tid2013
from vtamiq.utils.configs import did_you_mean, parse_setting

log = logging.getLogger(__name__)


class Loader(NamedTuple):
    """How a database is loaded, and recognised."""

    load: Callable[..., Database]
    folders: tuple[str, ...]  # names of its folder in circulation, in any letter case
    marks: tuple[str, ...] = ()  # its root has one of these; else it may lie one level deeper, as some archives unpack


LOADERS = {
    "live": Loader(
        load_live, ("databaserelease2", "LIVE", "LIVEIQA_release2", "LIVE_release2"), ("refnames_all.mat", "refimgs")
    ),
    "csiq": Loader(load_csiq, ("CSIQ",), ("src_imgs", "csiq.DMOS.xlsx")),
    "tid2008": Loader(load_tid2008, ("tid2008",), ("mos_with_names.txt",)),
    "tid2013": Loader(load_tid2013, ("tid2013",), ("mos_with_names.txt",)),
    "kadid10k": Loader(load_kadid10k, ("kadid10k", "kadid-10k", "kadid"), ("dmos.csv",)),
    "kadis700k": Loader(
        load_kadis700k,
        ("kadis700k", "kadis-700k", "kadis"),
        ("kadis700k_ref_imgs.csv", "kadis700k_friqa.csv", "ref_imgs"),
    ),
    "pieapp": Loader(
        load_pieapp,
        ("PieAPP_dataset_CVPR_2018", "all_data_PieAPP_dataset_CVPR_2018", "PieAPP"),
        ("labels", "train_reference_list.txt"),
    ),
    "pipal": Loader(load_pipal, ("PIPAL", "PIPAL22", "PIPAL2022"), PIPAL_MARKS),
    "synthetic": Loader(load_synthetic, ("synthetic",), ("manifest.json",)),
    "table": Loader(load_table, ("table",)),
}


def load_database(
    name: str, /, root: str | os.PathLike[str] | None = None, *, strict: bool = True, **options: Any
) -> Database:
    """Load a database by name.

    Args:
        name: a key of `LOADERS`, in any letter case.
        root: folder of the database. None looks in `$VTAMIQ_DATA` (by default `data` in the current folder) for the
            folder names in circulation.
        strict: refuse incomplete or damaged copies; otherwise load what can be used and list the rest in
            `Database.omissions`. Of a pair listed twice that is its first row, or none if its scores differ.
        options: of the loader, such as `realigned=False` for LIVE, `part="val"` for PIPAL, or `check_images=False` (most
            loaders open every image once, to find those missing, cut off or of another size).

    Raises:
        DatabaseError: unknown name, missing folder, or anything wrong inside it.
        TypeError: the loader has no such option.
    """
    key = str(name).lower()
    if key not in LOADERS:
        raise DatabaseError(
            f"unknown database {name!r}{did_you_mean(key, LOADERS)}; there are {', '.join(sorted(LOADERS))}"
        )
    folder = _search(key) if root is None else _unpacked(Path(root), LOADERS[key])
    if not folder.is_dir():
        raise DatabaseError(f"no folder {folder} for database {key}")
    return LOADERS[key].load(folder, strict=strict, **options)


def load_from_text(text: str, base: str | os.PathLike[str] = ".", **options: Any) -> Database:
    """Load a database that is named in one line, as in "tid2013", "live:realigned=false", "data/mine:label=vsi" or
    "table:root=data/mine:higher_better=true": a name for `load_database`, or a folder that `synthesize` made; then options
    of the loader, with colons between.

    Paths are relative to `base`; further `options` are overridden by the text. DatabaseError if it cannot be loaded.
    """
    name, *given = (part.strip() for part in text.split(":"))
    folder = Path(base) / name
    if name.lower() not in LOADERS and name and folder.is_dir():
        name, options = "synthetic", {"root": folder} | options
    options |= parse_options(given)
    options |= {key: Path(base) / str(options[key]) for key in ("root", "cache", "photographs") if options.get(key)}
    try:
        return load_database(name, **options)
    except TypeError as error:
        raise DatabaseError(f"{text}: {error}") from error


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """{"realigned": False} of ["realigned=false"]; DatabaseError for a text without a name and a value."""
    try:
        return dict(map(parse_setting, texts))
    except ValueError as error:
        raise DatabaseError(f"option of a database: {error}") from error


def data_folder() -> Path:
    """Where databases are looked for: `$VTAMIQ_DATA`, or `data`, here; beside a current folder named `notebooks`."""
    folder = Path(os.environ.get("VTAMIQ_DATA") or "data")
    return Path("..") / folder if Path.cwd().name == "notebooks" else folder  # an absolute path replaces ".."


def find_databases(data: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Name → root of every database in a folder (None for `data_folder()`); DatabaseError if there is no such folder. A
    database whose folder is there twice, in two letter cases, is left out, with a warning in the log."""
    data = data_folder() if data is None else Path(data)
    if not data.is_dir():
        raise DatabaseError(f"no folder {data}; put databases there, or set VTAMIQ_DATA to the folder that has them")
    index, found = FolderIndex(data), {}
    for name, loader in LOADERS.items():
        try:
            found[name] = _find(index, loader)
        except DatabaseError as error:  # two folders that differ by case: one database must not hide the others
            log.warning("%s cannot be told: %s", name, error)
    return {name: folder for name, folder in found.items() if folder is not None}


def _search(name: str) -> Path:
    data, loader = data_folder(), LOADERS[name]
    where = f"{data} (VTAMIQ_DATA)" if os.environ.get("VTAMIQ_DATA") else f"{data.absolute()} (VTAMIQ_DATA is not set)"
    if not data.is_dir():
        raise DatabaseError(f"database {name} not found: no folder {where}; set VTAMIQ_DATA or give root=")
    found = _find(FolderIndex(data), loader)
    if found is None:
        names = ", ".join(loader.folders)
        raise DatabaseError(f"database {name} not found in {where}: looked for {names}; or give root=")
    return found


def _find(index: FolderIndex, loader: Loader) -> Path | None:
    found = next((path for name in loader.folders if (path := index.get(name)) is not None), None)
    return None if found is None else _unpacked(index.root / found, loader)


def _unpacked(folder: Path, loader: Loader) -> Path:
    """The folder itself, or the one inside it that an archive unpacked to."""

    def has_mark(place: Path) -> bool:
        return place.is_dir() and any(FolderIndex(place).get(mark) for mark in loader.marks)

    if not folder.is_dir() or has_mark(folder):
        return folder
    index = FolderIndex(folder)
    inner = (folder / path for name in loader.folders if (path := index.get(name)) is not None)
    return next(filter(has_mark, inner), folder)
