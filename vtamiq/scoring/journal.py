"""What is known of the scores of a table: the finished file, and before it journals of what is scored so far.

Every process appends to a journal of its own in `<out>.parts`, one JSON line a row; damaged lines are ignored. Rows are
told apart by their two paths, and scored again if an image has changed since. The process that finds a result of every row
writes the table in the order of the input and removes the journals. Two that do so at once write the same: no locks.
"""

import io
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vtamiq.scoring.pairs import PATHS
from vtamiq.utils.digests import digest
from vtamiq.utils.files import check_regular, write_table, write_text

log = logging.getLogger(__name__)

FORMATS = (".csv", ".parquet", ".json")

Key = tuple[str, str]  # paths of reference and distorted image, as the table has them


class Result(NamedTuple):
    """A score and its standard error, None for one draw; or what is wrong with a pair."""

    q: float | None
    standard_error: float | None
    error: str = ""
    file_state: str = ""  # digest of sizes and times of the two files

    def is_sound(self) -> bool:
        """Whether it is a score, a finite number, or an error."""
        texts = isinstance(self.error, str) and isinstance(self.file_state, str)
        numbers = isinstance(self.q, float | None) and isinstance(self.standard_error, float | None)
        return texts and numbers and (bool(self.error) or (self.q is not None and math.isfinite(self.q)))


def merge(earlier: Mapping[Key, Result], later: Mapping[Key, Result]) -> dict[Key, Result]:
    """Merge results; a later one wins unless it would replace a score by an error."""
    better = {key: new for key, new in later.items() if not new.error or key not in earlier or earlier[key].error}
    return {**earlier, **better}


class Store:
    """Results of a table's rows, with columns `settings` (the last one, `settings`, is a digest of all that counts).

    Attributes:
        pending: pairs without a score in the finished file `out`, each once, those of one reference together. It does not
            depend on the journals, so that all processes come to the same list.
        results: what this and other processes have found of them so far.
    """

    def __init__(self, out: Path | None, settings: dict[str, Any], table: pd.DataFrame, root: Path):
        if out is not None and out.suffix not in FORMATS:
            raise ValueError(f"{out}: scores are written as {', '.join(FORMATS)}")
        self.out, self.settings, self.table = out, settings, table
        self.keys: list[Key] = list(zip(*(table[name].tolist() for name in PATHS), strict=True))
        self.states: dict[Key, str] = {}  # of pairs whose files are there
        if out is not None:
            files = {path: _state(root / path) for path in {path for key in self.keys for path in key}}
            self.states = {key: digest([files[path] for path in key]) for key in self.keys if all(map(files.get, key))}
        self.changed: set[Key] = set()
        self.before = self._read_out()
        missing = dict.fromkeys(key for key in self.keys if key not in self.before or self.before[key].error)
        order = {reference: k for k, reference in enumerate(dict.fromkeys(reference for reference, _ in missing))}
        self.pending = sorted(missing, key=lambda key: order[key[0]])
        self.results: dict[Key, Result] = {}
        if out is not None:
            self.parts = out.with_name(out.name + ".parts")
            self.results = self._read_journals()
            self._try_out()
            self.parts.mkdir(exist_ok=True)
            self.journal = self.parts / f"{settings['settings']}-{uuid.uuid4().hex}.jsonl"
            self._file = self.journal.open("x", encoding="utf-8")
        if self.changed:
            log.info("%s: %d pairs whose images have changed are scored again", out, len(self.changed))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        if self.out is not None:
            self._file.close()

    def add(self, results: dict[Key, Result]) -> None:
        results = {key: result._replace(file_state=self.states.get(key, "")) for key, result in results.items()}
        self.results |= results
        if self.out is not None:
            self._file.writelines(json.dumps([*key, *result]) + "\n" for key, result in results.items())
            self._file.flush()

    def finish(self) -> pd.DataFrame | None:
        """The whole table, written; None if rows are missing that other processes have taken."""
        if self.out is None:
            return self._with_results(self.results).drop(columns="file_state")
        known = merge(self._read_journals(), self.results)
        if not self.journal.exists():  # another process has found all rows, and written the table
            known = merge(self._read_out(), known)
        if not all(key in known for key in self.pending):
            return None
        table = self._with_results(merge(self.before, known))
        _write(table, self.out)
        shutil.rmtree(self.parts, ignore_errors=True)
        return table

    def _with_results(self, results: Mapping[Key, Result]) -> pd.DataFrame:
        q, standard_error, error, states = zip(*(results[key] for key in self.keys), strict=True)
        numbers = {"q": np.array(q, dtype=float), "standard_error": np.array(standard_error, dtype=float)}
        return self.table.assign(**numbers, error=list(error), **self.settings, file_state=list(states))

    def _try_out(self) -> None:
        """ValueError if the table cannot be written, before hours have gone into its scores."""
        trial = self.out.with_name(f".{uuid.uuid4().hex}{self.out.suffix}")
        try:
            _write(self._with_results(dict.fromkeys(self.keys, Result(None, None))), trial)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            message = f"{self.out}: cannot be written ({error}); choose another place or other columns"
            raise ValueError(message) from error
        trial.unlink()

    def _read_out(self) -> dict[Key, Result]:
        """Current results of the finished table; ValueError if it is another one, or has rows that would be lost."""
        if self.out is None or not self.out.exists():
            return {}
        table = read_scores(self.out)
        if (table["settings"] != self.settings["settings"]).any():
            pairs = {name: (table[name].iloc[0], new) for name, new in self.settings.items() if name != "settings"}
            changed = ", ".join(f"{name} {old} instead of {new}" for name, (old, new) in pairs.items() if old != new)
            raise ValueError(
                f"{self.out}: was made with other settings ({changed or 'sampling, precision, background or root'}); "
                "choose another file, or remove it to score all rows anew"
            )
        columns = (table[name].tolist() for name in (*PATHS, *Result._fields))
        results = {
            (reference, distorted): Result(*found) for reference, distorted, *found in zip(*columns, strict=True)
        }
        lost = results.keys() - set(self.keys)
        if lost:
            raise ValueError(
                f"{self.out}: has {len(lost)} rows that are not among the pairs (such as {min(lost)[1]}) and would be "
                "lost; choose another file"
            )
        return self._current(results)

    def _read_journals(self) -> dict[Key, Result]:
        """Current results in the journals of all processes."""
        results: dict[Key, Result] = {}
        for path in sorted(self.parts.glob("*.jsonl")):
            if not path.name.startswith(self.settings["settings"]):
                raise ValueError(
                    f"{self.parts}: was begun with other settings; go on with those, or remove it to score all rows anew"
                )
            try:
                lines = path.read_bytes().splitlines(keepends=True)
            except FileNotFoundError:  # another process has just merged it
                continue
            for line in lines:
                try:
                    reference, distorted, *found = json.loads(line)
                    if line.endswith(b"\n"):
                        results[reference, distorted] = Result(*found)
                except (ValueError, TypeError, RecursionError):
                    continue  # cut off, or damaged by worse: the row is scored again
        return self._current(results)

    def _current(self, results: dict[Key, Result]) -> dict[Key, Result]:
        """Results without damaged ones, and without those of images that have changed since."""
        sound = {key: result for key, result in results.items() if result.is_sound()}
        scores = {key: result for key, result in sound.items() if not result.error}
        changed = {
            key for key, result in scores.items() if self.states.get(key, result.file_state) != result.file_state
        }
        self.changed |= changed
        return {key: result for key, result in sound.items() if key not in changed}


def _state(path: Path) -> list[int] | None:
    """Size and time of the last change of a file, None if there is none."""
    try:
        return [(status := os.stat(path)).st_size, status.st_mtime_ns]
    except (OSError, ValueError):  # the latter: a zero in its name
        return None


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read a table that `score_table` wrote, with numbers as they were; ValueError if it is no such table."""
    path = Path(path)
    text = dict.fromkeys((*PATHS, "error", "weights", "settings", "file_state"), str)
    numbers = {"q": float, "standard_error": float, "repeats": int, "num_patches": int, "seed": int}
    try:
        check_regular(path)
        if path.suffix == ".parquet":
            table = pd.read_parquet(io.BytesIO(path.read_bytes()))
        elif path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            scores = ["q", "standard_error"]
            table[scores] = table[scores].replace("", "nan")  # Python's own reading of numbers, below, is exact
        else:
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix != ".csv":
            table["q"] = [q if isinstance(q, float) else None for q in table["q"]]  # true is no score
        return table.assign(file_state=table.get("file_state", "")).astype(numbers | text)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: is no table of scores ({error}); choose another file") from error


def to_json(table: pd.DataFrame) -> str:
    """A list of objects, one a row, without rounding; NaN is null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return json.dumps(rows, indent=1, ensure_ascii=False)


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".json":
        write_text(path, to_json(table))
    else:
        write_table(table, path)
