"""Score tables of image pairs: resumable, in several processes, with bad rows reported and the others scored.

Every process appends what it has scored to a journal of its own in `<out>.parts`, one JSON line a row; a line that was
cut
off by a kill is ignored and its row scored again. Rows are told apart by their two paths. The process that finds a record
of every row, whichever it is, writes the table in the order of the input, then takes the journals away. Two that find so
at once write the same table, each as a whole, so nothing has to be locked and each row is there exactly once.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from vtamiq.caps import CAPS, PatchSample, caps_for
from vtamiq.images.reading import ImageError, check_same_size, read_image
from vtamiq.model.inference import NOT_FINITE, check_model, fingerprint, half_precision
from vtamiq.model.modes import evaluation
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import forward, mean_and_error, sample_pair
from vtamiq.utils.files import is_utf8, list_images

__all__ = ["pair_folders", "read_pairs", "score_table"]

FORMATS = (".csv", ".parquet", ".json")
PATHS = ("reference", "distorted")
ADDED = ("q", "standard_error", "error", "repeats", "num_patches", "seed", "weights", "settings")
SHARD = 64  # neighbouring rows that one process takes, since they often share their reference

Key = tuple[str, str]  # paths of reference and distorted image, as the table has them
Result = tuple[float | None, float | None, str]  # q, standard error, error


@dataclass(frozen=True)
class Settings:
    """All that a score depends on beside its images."""

    weights: str
    caps: CAPS
    repeats: int
    seed: int
    precision: str
    root: str  # rows are known by their paths, which other roots may have as well

    @property
    def digest(self) -> str:
        template = self.caps.centre_map and hashlib.sha256(Path(self.caps.centre_map).read_bytes()).hexdigest()
        content = json.dumps([asdict(self), template], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------------ pairs


def read_pairs(path: str | Path) -> pd.DataFrame:
    """Table of pairs from `.csv` (UTF-8, comma) or `.parquet`, with columns `reference` and `distorted`.

    Other columns are kept. The frame's index is called `line` and says where a row begins in the file (parquet: the row's
    number from 1). A line of the CSV with too many or too few fields is a row without paths, for `score_table` to report.

    Raises:
        ValueError: the file is of another kind or damaged, a column is missing, or there is no row.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".csv":
        table = _read_csv(path)
    elif path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path}: cannot be read as parquet ({error})") from error
        table.index = pd.RangeIndex(1, len(table) + 1, name="line")
    else:
        raise ValueError(f"{path}: pairs are read from .csv or .parquet")
    return _check_pairs(table, str(path))


def pair_folders(ref_dir: str | Path, dist_dir: str | Path) -> pd.DataFrame:
    """Pair every image below `dist_dir` with its reference below `ref_dir`, by their names without suffix.

    The reference of `NAME.jpg` is `NAME.*`; failing that, that of `NAME_anything.jpg` is `NAME.*`. Capitals do not
    matter.
    A distorted image without a reference is a row with an empty one, for `score_table` to report. Hidden files and
    folders
    (".NAME") are passed over.

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
    rows = [
        (_reference_of(path, references), str(path)) for path in _images_below(dist_dir) if path.resolve() not in known
    ]
    if not rows:
        raise ValueError(f"{dist_dir}: there are no images beside the references")
    return pd.DataFrame(rows, columns=list(PATHS))


def _images_below(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = list_images(folder, below=True)
    if not found:
        raise ValueError(f"{folder}: there are no images")
    for path in found:
        _check_text(str(path))
    return found


def _check_text(path: str) -> None:
    if not is_utf8(path):
        raise ValueError(f"{path!a}: a name that is not UTF-8 cannot be kept in tables; rename that file")


def _reference_of(distorted: Path, references: Mapping[str, list[Path]]) -> str:
    stem = distorted.stem.casefold()
    names = [stem] if stem in references else [stem[:k] for k, letter in enumerate(stem) if letter == "_"]
    possible = [path for name in names for path in references.get(name, [])]
    if len(possible) > 1:
        listed = " or ".join(str(path) for path in possible)
        raise ValueError(f"{distorted}: its reference may be {listed}; rename one, or list the pairs in a table")
    return str(possible[0]) if possible else ""


def _read_csv(path: Path, text: Collection[str] = PATHS) -> pd.DataFrame:
    """Own reader: it knows the line of every row, and a row of the wrong length does not end it.

    Columns that read as numbers become numbers, except those of `text`.
    """
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            end = reader.line_num
            for row in reader:
                line, end = end + 1, reader.line_num  # a quoted field may span lines
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                rows.append(row if len(row) == len(header) else [""] * len(header))
                lines.append(line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error
    table = pd.DataFrame(rows, columns=header, index=pd.Index(lines, name="line", dtype=np.int64), dtype=str)
    for name in header:
        if name not in text and header.count(name) == 1:
            try:
                values = pd.to_numeric(table[name])
            except ValueError:
                continue  # text stays text
            if all(str(value) == text for value, text in zip(values.tolist(), table[name], strict=True)):
                table[name] = values  # else it is no number but a name of digits, such as 007
    return table


def _check_pairs(table: pd.DataFrame, name: str) -> pd.DataFrame:
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


def _path(value: Any, column: str, name: str) -> str:
    if isinstance(value, str | os.PathLike):
        _check_text(path := os.fspath(value))
        return path
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return ""
    raise ValueError(f"{name}: column `{column}` must hold paths, got {value!r}")


# ---------------------------------------------------------------------------------------------------------- scoring


def score_table(
    pairs: pd.DataFrame | str | Path,
    out: str | Path | None = None,
    *,
    model: VTAMIQ | None = None,
    root: str | Path | None = None,
    caps: CAPS | None = None,
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 1,
    precision: str = "float32",
    workers: int = 0,
    progress: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> pd.DataFrame | None:
    """Score every pair of a table.

    >>> pairs = pd.DataFrame({"reference": ["a.png", "a.png"], "distorted": ["a.png", "missing.png"]})
    >>> table = score_table(pairs, model=model)
    >>> table["q"].tolist(), table["error"].tolist()
    ([0.0, nan], ['', 'cannot read missing.png: no such file'])

    Given `out`, the work can be interrupted at any time and goes on with the same call. When `out` is there already, rows
    that have a score keep it, and rows that are new or had an error are scored. Without `out` nothing is written.

    Args:
        pairs: DataFrame with columns `reference` and `distorted`, or a file for `read_pairs`.
        out: `.csv`, `.parquet` or `.json` (a list of objects).
        model: a trained VTAMIQ, used in evaluation mode on the device where it is; None takes the one that ships.
        root: folder that paths are relative to; None: the folder of the file of pairs, or the current folder.
        caps, repeats, seed, precision: as for `vtamiq.score`, whose scores these are (with larger batches, but for
            rounding).
        batch_size: patch samples that go through the network at once.
        workers: processes that read images and cut patches; 0: this one does. Each holds one pair of images.
        rank, world_size: this process takes its share of the rows; give all processes the same table and `out`.

    Returns:
        The pairs in their order, with columns `q` (NaN for bad rows), `standard_error` (NaN for one draw), `error` (text,
        empty for good rows), and what scores depend on: `repeats`, `num_patches`, `seed`, `weights` (fingerprint of model
        and configuration) and `settings` (of all of these together). None if rows of other processes are still to come:
        the last one writes the table.

    Raises:
        ValueError: a bad argument or table, or `out` holds something else, was made with other settings, or cannot be
            written.
        CheckpointError, TypeError: as for `vtamiq.score`.
    """
    model = check_model(model)
    if out is None and world_size != 1:
        raise ValueError("several processes need out, where their scores meet")
    _check_arguments(repeats, seed, batch_size, workers, rank, world_size, precision)
    table = read_pairs(pairs) if isinstance(pairs, str | Path) else _check_pairs(pairs, "the table of pairs")
    if root is None:
        root = Path(pairs).parent if isinstance(pairs, str | Path) else Path()
    repeats, seed = int(repeats), int(seed)
    settings = Settings(
        fingerprint(model), caps_for(model, caps), repeats, seed, precision, os.path.abspath(os.fspath(root))
    )
    store = _Store(None if out is None else Path(out), settings, table)
    mine = [key for k, key in enumerate(store.pending) if k // SHARD % world_size == rank]
    share = [key for key in mine if store.begun.get(key, (None,))[0] is None]  # bad rows are tried again
    loader = DataLoader(
        _Pairs(share, Path(root), settings),
        batch_size=max(1, batch_size // repeats),
        num_workers=min(workers, len(share)),
        collate_fn=_collate,
        generator=torch.Generator(),  # else the loader would draw from the caller's random numbers
    )
    bar = tqdm(total=len(mine), initial=len(mine) - len(share), desc="score", unit="pair", disable=not progress)
    with store, bar, evaluation(model):
        for errors, stacked in loader:
            store.add(_score_items(model, errors, stacked, settings, batch_size))
            bar.update(len(errors))
    return store.finish()


def _check_arguments(repeats, seed, batch_size, workers, rank, world_size, precision) -> None:
    least = {"repeats": 1, "seed": 0, "batch_size": 1, "workers": 0, "rank": 0, "world_size": 1}
    given = dict(zip(least, (repeats, seed, batch_size, workers, rank, world_size), strict=True))
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least[name]:
            raise ValueError(f"{name} must be an integer, at least {least[name]}, got {value!r}")
    if rank >= world_size:
        raise ValueError(f"rank must be below world_size={world_size}, got {rank}")
    half_precision(torch.device("cpu"), precision)


class _Pairs(Dataset):
    """Items (key, samples or what is wrong): images are read and cut where the loader works, bad ones never raise."""

    def __init__(self, keys: list[Key], root: Path, settings: Settings):
        self.keys, self.root, self.settings = keys, root, settings
        self._reference: tuple[str, np.ndarray] | None = None  # the last one: neighbours share it

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Key, list[PatchSample] | str]:
        key = self.keys[index]
        try:
            return key, self._samples(*key)
        except (ImageError, MemoryError) as error:
            return key, str(error) or "there is too little memory for it"

    def _samples(self, reference: str, distorted: str) -> list[PatchSample]:
        if not (reference or distorted):
            raise ImageError("no images are given, or the line has too few or too many fields")
        if not (reference and distorted):
            raise ImageError(
                f"no {'distorted image' if reference else 'reference'} is given for {reference or distorted}"
            )
        if self._reference is None or self._reference[0] != reference:
            self._reference = reference, read_image(self.root / reference)
        images = self._reference[1], read_image(self.root / distorted)
        check_same_size(reference, images[0], distorted, images[1])
        caps, repeats, seed = self.settings.caps, self.settings.repeats, self.settings.seed
        return list(sample_pair(*images, caps, repeats, seed, distorted))


def _collate(items: list[tuple[Key, list[PatchSample] | str]]) -> tuple[list[tuple[Key, str]], list[torch.Tensor]]:
    """Keys with what is wrong with them ("" if nothing), and `patches, uv, scale` of all samples of the others.

    Stacked where they are cut: every tensor that passes between processes is an open file, of which there are few.
    """
    samples = [sample for _, found in items if not isinstance(found, str) for sample in found]
    names = ("patches", "uv", "scale") if samples else ()
    stacked = [torch.stack([getattr(sample, name) for sample in samples]) for name in names]
    return [(key, found if isinstance(found, str) else "") for key, found in items], stacked


def _score_items(
    model: VTAMIQ, errors: list[tuple[Key, str]], stacked: list[torch.Tensor], settings: Settings, batch_size: int
) -> dict[Key, Result]:
    draws = iter(forward(model, stacked, batch_size, settings.precision).reshape(-1, settings.repeats))
    return {key: (None, None, error) if error else _result(next(draws)) for key, error in errors}


def _result(draws: np.ndarray) -> Result:
    if not np.isfinite(draws).all():
        return None, None, NOT_FINITE
    mean, error = mean_and_error(draws)
    return float(mean), _or_none(error), ""


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


# -------------------------------------------------------------------------------------------- what is on disk already


def _preferring_scores(earlier: dict[Key, Result], later: dict[Key, Result]) -> dict[Key, Result]:
    """Both, the later ones where both have a row; but no error takes the place of a score."""
    return earlier | {key: new for key, new in later.items() if new[0] is not None or earlier.get(key, new)[0] is None}


class _Store:
    """What is known of a table's rows: the finished table, the journals of all processes, and one's own journal."""

    def __init__(self, out: Path | None, settings: Settings, table: pd.DataFrame):
        if out is not None and out.suffix not in FORMATS:
            raise ValueError(f"{out}: scores are written as {', '.join(FORMATS)}")
        self.out, self.settings, self.table = out, settings, table
        self.parts = None if out is None else out.with_name(out.name + ".parts")
        self.keys = list(zip(*(table[name].tolist() for name in PATHS), strict=True))
        self.stamp = self._stamp()  # before the table is read
        self.before = self._read_out()
        self.begun = self._read_journals()
        self.pending = self._pending()
        self.journal = None
        self._try_out()

    def _pending(self) -> list[Key]:
        """Pairs without a score in the finished table, each once, those of one reference together.

        All processes must come to the same list, of which each takes its share, although others may be writing already:
        so it does not depend on the journals.
        """
        missing = dict.fromkeys(key for key in self.keys if self.before.get(key, (None,))[0] is None)
        order = {reference: k for k, reference in enumerate(dict.fromkeys(key[0] for key in missing))}
        return sorted(missing, key=lambda key: order[key[0]])

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal is not None:
            self.journal.close()

    def add(self, results: dict[Key, Result]) -> None:
        self.begun |= results
        if self.out is None:
            return
        if self.journal is None:
            self.parts.mkdir(parents=True, exist_ok=True)
            name = f"{self.settings.digest}-{uuid.uuid4().hex}.jsonl"
            self.journal = (self.parts / name).open("x", encoding="utf-8")
        self.journal.writelines(json.dumps([*key, *result]) + "\n" for key, result in results.items())
        self.journal.flush()

    def finish(self) -> pd.DataFrame | None:
        """The whole table, written; None if rows are missing that other processes have taken."""
        if self.out is None:
            return self._with_results(self.begun)
        self.begun = _preferring_scores(self._read_journals(), self.begun)
        known = self.begun
        if self._stamp() != self.stamp:  # another process has found all rows, and may have taken the journals away
            self.before = self._read_out()
            known = self.before | self.begun
        if not all(key in known for key in self.pending):
            return None
        result = self._with_results(_preferring_scores(self.before, self.begun))
        self._write(result)
        shutil.rmtree(self.parts, ignore_errors=True)
        return result

    def _with_results(self, results: Mapping[Key, Result]) -> pd.DataFrame:
        q, standard_error, error = zip(*(results[key] for key in self.keys), strict=True)
        return self.table.assign(
            q=np.array(q, dtype=float),
            standard_error=np.array(standard_error, dtype=float),
            error=list(error),
            **self._told(),
            settings=self.settings.digest,
        )

    def _told(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "repeats": settings.repeats,
            "num_patches": settings.caps.num_patches,
            "seed": settings.seed,
            "weights": settings.weights,
        }

    def _try_out(self) -> None:
        """ValueError if the table cannot be written, before hours have gone into its scores."""
        if self.out is None:
            return
        try:
            with self._written(self._with_results(dict.fromkeys(self.keys, (None, None, "")))):
                pass
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"{self.out}: cannot be written ({error}); choose another place or other columns"
            ) from error

    def _write(self, table: pd.DataFrame) -> None:
        """The file appears complete or not at all, whoever else writes it."""
        with self._written(table) as temporary:
            os.replace(temporary, self.out)

    @contextlib.contextmanager
    def _written(self, table: pd.DataFrame) -> Iterator[Path]:
        """A temporary file beside the table's own."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.out.with_name(f".{self.out.stem[:64]}-{uuid.uuid4().hex}.tmp")
        try:
            if self.out.suffix == ".parquet":
                table.to_parquet(temporary, index=False)
            elif self.out.suffix == ".csv":
                table.to_csv(temporary, index=False)
            else:
                temporary.write_text(to_json(table), encoding="utf-8")
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self.out.stat() if self.out is not None else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)

    def _read_out(self) -> dict[Key, Result]:
        """Results of the finished table.

        Raises:
            ValueError: it is no table of scores, was made with other settings, or has rows that would be lost.
        """
        if self.out is None or not self.out.exists():
            return {}
        table = read_scores(self.out)
        if (table["settings"] != self.settings.digest).any():
            told = {name: (table[name].iloc[0], value) for name, value in self._told().items()}
            changed = ", ".join(f"{name} {old} instead of {new}" for name, (old, new) in told.items() if old != new)
            raise ValueError(
                f"{self.out}: was made with other settings ({changed or 'sampling, precision or root'}); choose another "
                "file, or remove it to score all rows anew"
            )
        columns = (table[name].tolist() for name in (*PATHS, "q", "standard_error", "error"))
        results = {
            (reference, distorted): (_or_none(q), _or_none(deviation), error)
            for reference, distorted, q, deviation, error in zip(*columns, strict=True)
        }
        lost = results.keys() - set(self.keys)
        if lost:
            raise ValueError(
                f"{self.out}: has {len(lost)} rows that are not among the pairs (such as {min(lost)[1]}) and would be "
                "lost; choose another file"
            )
        return results

    def _read_journals(self) -> dict[Key, Result]:
        """Results in the journals of all processes, also of those that were killed in the middle of a line."""
        results: dict[Key, Result] = {}
        if self.parts is None or not self.parts.is_dir():
            return results
        for path in sorted(self.parts.glob("*.jsonl")):
            if not path.name.startswith(self.settings.digest):
                raise ValueError(
                    f"{self.parts}: was begun with other settings; go on with those, or remove it to score all rows anew"
                )
            try:
                lines = path.read_bytes().splitlines(keepends=True)
            except FileNotFoundError:  # another process has just merged it
                continue
            results |= dict(_journal_lines(lines))
        return results


def to_json(table: pd.DataFrame) -> str:
    """A list of objects, one a row, without rounding; NaN is null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return json.dumps(rows, indent=1, ensure_ascii=False)


def read_scores(path: str | Path) -> pd.DataFrame:
    """A table that `score_table` wrote, with numbers as they were.

    Raises:
        ValueError: it is no such table.
    """
    path = Path(path)
    text = ("reference", "distorted", "error", "weights", "settings")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix == ".csv":
            table = _read_csv(path, (*PATHS, *ADDED)).reset_index(drop=True)
            for name in ("q", "standard_error"):  # Python's own reading of numbers is exact
                table[name] = [float(value) if value else np.nan for value in table[name]]
            table = table.astype(dict.fromkeys(("repeats", "num_patches", "seed"), int))
        else:
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        table = table.astype({"q": float, "standard_error": float, **dict.fromkeys(text, str)})
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: is no table of scores ({error}); choose another file") from error
    missing = [name for name in (*PATHS, *ADDED) if name not in table]
    if missing:
        raise ValueError(f"{path}: is no table of scores, it has no column `{missing[0]}`; choose another file")
    return table


def _journal_lines(lines: list[bytes]) -> Iterator[tuple[Key, Result]]:
    for line in lines:
        try:
            reference, distorted, q, standard_error, error = json.loads(line)
        except (ValueError, TypeError):
            continue  # cut off by a kill, or damaged by worse: the row is scored again
        if line.endswith(b"\n"):
            yield (reference, distorted), (q, standard_error, error)
