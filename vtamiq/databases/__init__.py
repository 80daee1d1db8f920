"""Full-reference image quality databases, each as one table of image pairs.

`load_database` finds and loads one by name. A new loader is a function `load(root, *, strict=True, **options)` that
returns a `Database`, and a line in `LOADERS`.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtamiq.databases.base import (
    PAIR_COLUMNS,
    PREFERENCE_COLUMNS,
    Database,
    DatabaseError,
    LabelScale,
    validate_pairs,
    validate_preferences,
)
from vtamiq.databases.kadid import load_kadid10k
from vtamiq.databases.reading import FolderIndex
from vtamiq.databases.synthetic import load_synthetic

__all__ = [
    "LOADERS",
    "PAIR_COLUMNS",
    "PREFERENCE_COLUMNS",
    "Database",
    "DatabaseError",
    "FolderIndex",
    "LabelScale",
    "Loader",
    "load_database",
    "validate_pairs",
    "validate_preferences",
]


@dataclass(frozen=True)
class Loader:
    """How one database is loaded, and the folder names under which it is in circulation (in any letter case)."""

    load: Callable[..., Database]
    folders: tuple[str, ...]


LOADERS: dict[str, Loader] = {
    "kadid10k": Loader(load_kadid10k, ("kadid10k",)),
    "synthetic": Loader(load_synthetic, ("synthetic",)),
}


def load_database(
    name: str, root: str | os.PathLike[str] | None = None, *, strict: bool = True, **options: Any
) -> Database:
    """Load a database by name.

    Args:
        name: a key of `LOADERS`, in any letter case.
        root: folder of the database. None looks in `$VTAMIQ_DATA` (by default `data` in the current folder) for the
            folder names in circulation.
        strict: refuse incomplete copies; otherwise load what is there and list the rest in `Database.omissions`.
        options: of the loader.

    Raises:
        DatabaseError: unknown name, missing folder, or anything wrong inside it.
        TypeError: the loader has no such option.
    """
    key = str(name).lower()
    if key not in LOADERS:
        near = difflib.get_close_matches(key, LOADERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DatabaseError(f"unknown database {name!r}; {hint}Known: {', '.join(sorted(LOADERS))}")
    loader = LOADERS[key]
    folder = _search(key, loader.folders) if root is None else Path(root)
    if not folder.is_dir():
        raise DatabaseError(f"no folder {folder} for database {key}")
    return loader.load(folder, strict=strict, **options)


def _search(name: str, folders: tuple[str, ...]) -> Path:
    data = Path(os.environ.get("VTAMIQ_DATA") or "data")
    where = f"{data} (VTAMIQ_DATA)" if os.environ.get("VTAMIQ_DATA") else f"{data.absolute()} (VTAMIQ_DATA is not set)"
    if not data.is_dir():
        raise DatabaseError(f"database {name} not found: no folder {where}; set VTAMIQ_DATA or give root=")
    index = FolderIndex(data)
    found = next((path for path in map(index.get, folders) if path is not None), None)
    if found is None:
        raise DatabaseError(f"database {name} not found in {where}: looked for {', '.join(folders)}; or give root=")
    return data / found
