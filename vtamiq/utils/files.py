"""Files that appear complete or not at all, whenever the process or the power goes, and how they are read again."""

import contextlib
import errno
import json
import logging
import math
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

AGAIN = "remove it and run again"
_CLUTTER = ("thumbs.db", "desktop.ini")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once the block has ended well and its bytes are on the disk.

    Missing folders are made. What stood at `path` stays until then; the temporary file goes if the block fails. An OSError
    names `path`, also of a disk that is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:48]}-{uuid.uuid4().hex}.tmp")  # names have at most 255 bytes
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
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
def holding(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a file (made if missing) or a folder for this process within the block.

    However the process ends, the system lets it go. Of no effect on Windows, and on file systems without locks.

    Args:
        wait: wait until another process lets it go, instead of raising.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    path = Path(path)
    if path.is_dir():
        descriptor, lock = os.open(path, os.O_RDONLY), fcntl.flock
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike `flock`, not for forked processes as well, but it needs a file that can be written
        descriptor, lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), fcntl.lockf
    try:
        _acquire(lock, descriptor, path, wait)
        yield
    finally:
        with contextlib.suppress(OSError):  # a file system without locks
            lock(descriptor, fcntl.LOCK_UN)  # else a process that was forked meanwhile would keep it
        os.close(descriptor)


def _acquire(lock: Callable[[int, int], None], descriptor: int, path: Path, wait: bool) -> None:
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        if not wait:
            raise BlockingIOError(f"{path} is held by another process") from error
        log.warning("%s is held by another process; waiting for that", path.name)
        lock(descriptor, fcntl.LOCK_EX)


def check_regular(path: str | Path, name: str | None = None) -> os.stat_result:
    """Status of a regular file; ValueError for others: a pipe would keep its reader waiting, a device never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name or path} is no regular file")
    return status


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


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of a format that Pillow reads."""
    from PIL import Image

    return Image.registered_extensions().get(os.path.splitext(name)[1].lower()) in Image.OPEN


def list_images(folder: str | Path) -> list[Path]:
    """Regular files in a folder, in plain character order, whose suffix is that of a format that Pillow reads."""
    return [Path(entry.path) for entry in list_folder(folder) if is_image_name(entry.name) and entry.is_file()]


def write_table(table: "pd.DataFrame", path: str | Path) -> Path:
    """Write a table as parquet, CSV or LaTeX (booktabs, three decimals) by its suffix, without its index.

    The file appears complete or not at all.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv", ".tex"):
        raise ValueError(f"{path}: tables are written as .parquet, .csv or .tex")
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            temporary.write_bytes(table.to_parquet(index=False))  # pyarrow opens no path that is not UTF-8
        elif path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_latex(temporary, index=False, float_format="%.3f", escape=True)
    return path


def read_table(path: str | Path, columns: Sequence[str] = (), mend: str = AGAIN) -> "pd.DataFrame":
    """Read a parquet or CSV table of ours, with at least these columns; ValueError that says how to mend a damaged one."""
    import pandas as pd

    try:
        table = (pd.read_parquet if Path(path).suffix == ".parquet" else pd.read_csv)(path)
        table[list(columns)]  # KeyError if it lacks one
    except FileNotFoundError:
        raise
    except Exception as error:  # pandas and Arrow have many
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); {mend}") from error
    return table


def read_json(path: str | Path, mend: str = AGAIN, **kinds: Any) -> dict[str, Any]:
    """Read an object with finite numbers from a JSON file of ours.

    Args:
        mend: what to do if it is damaged, for the message.
        kinds: keys that it must have, and the types of their values, such as `epochs=int`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        for name, kind in kinds.items():
            if not isinstance(values.get(name, ...), kind) or isinstance(values[name], bool):
                raise ValueError(f"its `{name}` is missing or of another kind")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {mend}") from error
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
