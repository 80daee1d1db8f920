"""Files that appear complete or not at all, whenever the process or the power goes."""

import contextlib
import errno
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "clear_unfinished",
    "holding",
    "holding_folder",
    "is_utf8",
    "list_folder",
    "list_images",
    "replacing",
    "write_table",
    "write_text",
]

log = logging.getLogger(__name__)

_CLUTTER = ("thumbs.db", "desktop.ini")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once the block has ended well and its bytes are on the disk.

    Missing folders are made. What stood at `path` stays until then; the temporary file goes if the block fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with "\\n" at the ends of lines, in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def clear_unfinished(folder: str | Path) -> None:
    """Remove what `replacing` has left in a folder, and in those within it, in processes that were killed meanwhile."""
    for path in Path(folder).rglob(".*-*.tmp"):
        if re.fullmatch(r"\..+-[0-9a-f]{32}\.tmp", path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def holding(path: str | Path) -> Iterator[None]:
    """Keep the file `path` for this process within the block. However the process ends, the system lets it go.

    Of no effect on Windows, and on file systems without locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike `flock`, not for forked processes as well
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(f"{path} is held by another process") from error
        yield


def is_utf8(name: str) -> bool:
    """Whether a file's name is text that tables can keep: bytes that are not UTF-8 come from the system as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """Files and folders in a folder, by name in plain character order, but for hidden ones (".name", which macOS leaves
    beside every file) and what Windows leaves."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER]
    return sorted(found, key=lambda entry: entry.name)


def list_images(folder: str | Path, *, below: bool = False) -> list[Path]:
    """Regular files in a folder, in plain character order, whose suffix is that of a format that Pillow reads.

    Args:
        below: also those in the folders within it, links to folders excepted.
    """
    from PIL import Image

    known = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
    found = []
    for entry in list_folder(folder):
        if below and entry.is_dir(follow_symlinks=False):
            found += list_images(entry.path, below=True)
        elif os.path.splitext(entry.name)[1].lower() in known and entry.is_file():
            found.append(Path(entry.path))
    return sorted(found, key=str)


@contextlib.contextmanager
def holding_folder(folder: str | Path) -> Iterator[None]:
    """Keep a folder, made if it is missing, for this block: whoever else asks for it waits until the block has ended.

    Nothing is written into it. However the process ends, the system lets the folder go. Nobody waits on Windows, and on
    file systems without locks.

    Raises:
        OSError: the folder cannot be made or opened.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = _lock_folder(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # else a process that was forked meanwhile would keep it
        os.close(descriptor)


def _lock_folder(folder: Path) -> int:
    """A descriptor of the folder, locked where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("%s is held by another process; waiting for that", folder.name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:  # an interruption
            os.close(descriptor)
            raise
    except OSError:
        pass  # a file system without locks
    return descriptor


def write_table(table: "pd.DataFrame", path: str | Path) -> Path:
    """Write a table as parquet, CSV or LaTeX (booktabs, three decimals) by its suffix, without its index.

    The file appears complete or not at all.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv", ".tex"):
        raise ValueError(f"{path}: tables are written as .parquet, .csv or .tex")
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        elif path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_latex(temporary, index=False, float_format="%.3f", escape=True)
    return path
