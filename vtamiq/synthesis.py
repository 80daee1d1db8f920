"""Make a full-reference database from photographs: distort them, and label the pairs by a consensus of metrics.

As for KADIS-700k (Lin, Hosu and Saupe, arXiv:2001.08113), the labels come from conventional metrics instead of observers:
they are SYNTHETIC, good for pre-training and for demonstrations, and say nothing of human opinion. The folder has the
layout of KADID-10k (see `vtamiq.databases.synthetic`).

The unit of work is one distortion type of one photograph, at all levels. Whatever is finished is on disk: a call that was
interrupted, even killed, goes on where it stopped. The files do not depend on the number of workers.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from vtamiq import __version__
from vtamiq.databases import Database, DatabaseError, load_database
from vtamiq.databases.base import SUBSETS
from vtamiq.databases.synthetic import MANIFEST, MANIFEST_FORMAT, read_manifest
from vtamiq.distortions import LEVELS, distort, find_distortion
from vtamiq.images import ImageError, ImageSource, centre_crop, read_image, write_png
from vtamiq.metrics import CHEAP_IQMS, IQMS, QuantileTables, iqm_scores, scale_regime, weak_labels

__all__ = [
    "DEMO_NAMES",
    "PHOTOGRAPHS",
    "Photograph",
    "Recipe",
    "cache_folder",
    "demo_database",
    "demo_photographs",
    "synthesize",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

PARTS = "parts"  # folder of the scores of finished units, until all are merged


@dataclass(frozen=True)
class Recipe:
    """What is done to every photograph.

    Attributes:
        types: distortions by number, tag or name; None takes all 25. Kept as sorted numbers.
        levels: of each distortion, among 1..5.
        metrics: keys of `vtamiq.metrics.IQMS` that vote on the labels; None takes all eleven. Kept in the order of `IQMS`.
        size: (width, height) of the centre crop, or None to keep photographs whole.
        seed: of the random distortions.

    Raises:
        ValueError: an unknown type, level or metric, one that is named twice, a size or seed that cannot be.
    """

    types: tuple[int | str, ...] | None = None
    levels: tuple[int, ...] = LEVELS
    metrics: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self):
        types = range(1, 26) if self.types is None else self.types
        metrics = IQMS if self.metrics is None else self.metrics
        for known, chosen, what in ((LEVELS, self.levels, "level"), (IQMS, metrics, "metric")):
            for value in chosen:
                if value not in known:
                    raise ValueError(f"unknown {what} {value!r}; known: {', '.join(map(str, known))}")
        kept = {
            "types": _distinct("types", sorted(find_distortion(type).type for type in types)),
            "levels": _distinct("levels", sorted(int(level) for level in self.levels)),
            "metrics": _distinct("metrics", sorted(metrics, key=list(IQMS).index)),
            "seed": _whole(self.seed),
        }
        if kept["seed"] is None or kept["seed"] < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed!r}")
        if self.size is not None:
            sides = [_whole(side) for side in self.size] if isinstance(self.size, Iterable) else []
            if len(sides) != 2 or None in sides or min(sides) < 8:
                raise ValueError(f"size must be (width, height) of at least 8 whole pixels, got {self.size!r}")
            kept["size"] = tuple(sides)
        for name, value in kept.items():  # plain numbers: a manifest is JSON
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        return {
            "types": {str(type): find_distortion(type).name for type in self.types},
            "levels": list(self.levels),
            "metrics": list(self.metrics),
            "size": list(self.size) if self.size else None,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Source:
    """One photograph that was asked for.

    key: its name, without a folder; ref_id: what it is called in the database; subset: train, val, test or none; content:
    what it shows, which several photographs may share.
    """

    ref_id: str
    key: str
    image: Path | np.ndarray
    subset: str
    content: str

    def digest(self) -> str | None:
        """SHA-256 of the file or array, shortened; None for a file that cannot be read."""
        if isinstance(self.image, np.ndarray):
            content = f"{self.image.dtype} {self.image.shape} ".encode() + np.ascontiguousarray(self.image).tobytes()
        else:
            try:
                content = self.image.read_bytes()
            except OSError:
                return None
        return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Unit:
    """One distortion type of one reference at all levels: what a worker does at a time."""

    folder: Path
    ref_id: str
    key: str
    type: int
    recipe: Recipe

    @property
    def part(self) -> Path:
        return self.folder / PARTS / f"{self.ref_id}_{self.type:02d}.json"

    def image(self, level: int) -> Path:
        return self.folder / "images" / f"{self.ref_id}_{self.type:02d}_{level:02d}.png"

    def finished(self) -> list[dict[str, float]] | None:
        """Scores of each level if this unit is done, else None: also where a power cut left the file damaged."""
        try:
            if not all(self.image(level).stat().st_size for level in self.recipe.levels):
                return None
            return json.loads(self.part.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None


# ---- making a database ------------------------------------------------------------------------------------------


def synthesize(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Mapping[str, ImageSource],
    out: str | os.PathLike[str],
    *,
    types: Iterable[int | str] | None = None,
    levels: Iterable[int] = LEVELS,
    metrics: Iterable[str] | None = None,
    size: tuple[int, int] | None = None,
    subsets: Mapping[str, str] | None = None,
    contents: Mapping[str, str] | None = None,
    tables: QuantileTables | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Database:
    """Distort photographs and label the pairs; load the result if it is there already.

    With more than one worker, a script must call this below `if __name__ == "__main__":` (processes are spawned).

    Args:
        images: a folder (its image files, in order of name), image files with different names, or name → image.
        out: folder to make, new or left by a call with the same arguments. The database is called after it.
        types, levels, metrics, size, seed: see `Recipe`. Each photograph has its own random streams, which depend on
            `seed` and its name only.
        subsets: name of a photograph → "train", "val" or "test"; all others are "none".
        contents: name of a photograph → what it shows, for photographs that splits must not part, such as views of one
            scene; all others are contents of their own.
        tables: quantile tables for the labels. None fits them to these scores: those of the train photographs if
            `subsets` names any, else all.
        workers: processes; 0 and 1 work in this process, None takes one for each processor core.
        progress: whether to show progress and the time left.

    Returns:
        The database. Its score is 5 - 4 · consensus (5 = identical; 1 = worst on every metric), its spread 4 · the
        standard deviation of the metrics' ranks.

    Files that cannot be read, or are smaller than `size`, are skipped: logged, and listed in `omissions`.

    Raises:
        ImageError: an array or PIL image among `images` cannot be used.
        DatabaseError: there is no photograph, two have the same name, `out` holds something else or was made with other
            arguments, a distortion or metric fails on a photograph, or photographs are on both sides of 384 pixels,
            where five of the metrics change scale (give a `size`).
        ValueError: see `Recipe`.
    """
    metrics = None if metrics is None else (metrics,) if isinstance(metrics, str) else tuple(metrics)
    types = None if types is None else (types,) if isinstance(types, int | str) else tuple(types)
    levels = (levels,) if isinstance(levels, int) else tuple(levels)
    recipe = Recipe(types=types, levels=levels, metrics=metrics, size=size, seed=seed)
    workers = _count_workers(workers)
    folder = Path(out)
    sources = _list_sources(images, subsets or {}, contents or {})
    request = _request(recipe, sources, tables)
    if _claim(folder, request):
        return load_database("synthetic", folder)
    with _one_thread_per_process(), _executor(workers) as pool:
        skipped = _prepare_references(pool, folder, sources, recipe, progress)
        usable = [source for source in sources if source.ref_id not in skipped]
        scores = _render_all(pool, folder, usable, recipe, progress)
    _write_labels(folder, request, recipe, usable, skipped, scores, tables)
    return load_database("synthetic", folder)


def _list_sources(images: Any, subsets: Mapping[str, str], contents: Mapping[str, str]) -> list[Source]:
    named = _name_images(images)
    subsets, contents = ({str(key): value for key, value in given.items()} for given in (subsets, contents))
    if not named:
        raise DatabaseError("there is no photograph to start from")
    for what, given in (("subsets", subsets), ("contents", contents)):
        unknown = [key for key in given if key not in named]
        if unknown:
            photographs = ", ".join(named)
            raise DatabaseError(f"{what} names {', '.join(unknown)}, which is none of the photographs {photographs}")
    for key, subset in subsets.items():
        if subset not in SUBSETS:
            raise DatabaseError(f"the subset of {key} must be one of {', '.join(SUBSETS)}, got {subset!r}")
    digits = max(2, len(str(len(named))))
    return [
        Source(f"I{number:0{digits}d}", key, image, subsets.get(key, "none"), contents.get(key, key))
        for number, (key, image) in enumerate(named.items(), start=1)
    ]


def _name_images(images: Any) -> dict[str, Path | np.ndarray]:
    if isinstance(images, Mapping):
        is_path = {key: isinstance(image, str | os.PathLike) for key, image in images.items()}
        named = {str(key): Path(image) if is_path[key] else read_image(image) for key, image in images.items()}
        if len(named) < len(images):
            raise DatabaseError(f"two photographs have the same name among {', '.join(map(repr, images))}")
        return named
    if isinstance(images, str | os.PathLike):
        folder = Path(images)
        if not folder.is_dir():
            raise DatabaseError(f"no folder {folder}; give a folder, a list of files, or name → image")
        known = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        paths = [path for path in entries if path.suffix.lower() in known and path.is_file()]
        if not paths:
            raise DatabaseError(f"{folder} has no image files")
    else:
        paths = [Path(image) for image in images]
    named = {path.name: path for path in paths}
    if len(named) < len(paths):
        twice = sorted({path.name for path in paths if path != named[path.name]} or {paths[0].name})
        raise DatabaseError(f"two photographs are called {twice[0]}; give a mapping name → image instead")
    return named


def _request(recipe: Recipe, sources: list[Source], tables: QuantileTables | None) -> dict[str, Any]:
    """What makes one result differ from another, as JSON."""
    if tables is not None:
        missing = [name for name in recipe.metrics if name not in tables.names]
        if missing:
            raise DatabaseError(f"the quantile tables have none for {', '.join(missing)}")
    return {
        "format": MANIFEST_FORMAT,
        **recipe.to_dict(),
        "tables": hashlib.sha256(tables.to_json().encode()).hexdigest()[:16] if tables else "fitted",
        "references": [
            {"ref_id": s.ref_id, "source": s.key, "sha256": s.digest(), "subset": s.subset, "content": s.content}
            for s in sources
        ],
    }


def _claim(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds the finished result; if it is new, it becomes ours. Refuse a folder of anything else."""
    if folder.exists() and not folder.is_dir():
        raise DatabaseError(f"{folder} is a file; choose a new folder")
    manifest = read_manifest(folder)
    if manifest is None:
        # A call that is killed before its first manifest leaves at most a temporary file.
        if folder.exists() and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
            raise DatabaseError(f"{folder} is not empty and was not made by vtamiq; choose a new folder")
        _begin(folder, request)
        return False
    different = [name for name, wanted in request.items() if manifest.get(name) != wanted]
    if different and not manifest["complete"] and not (folder / PARTS).exists():  # it came to nothing: begin anew
        shutil.rmtree(folder / "images", ignore_errors=True)
        _begin(folder, request)
        return False
    if different:
        details = "; ".join(
            f"{name}: there {_short(manifest.get(name))}, now {_short(request[name])}" for name in different
        )
        raise DatabaseError(f"{folder} was made with other arguments ({details}); remove it or choose a new folder")
    if not manifest["complete"]:
        log.info("%s is unfinished; going on", folder.name)
        then, now = manifest.get("versions"), _versions()
        if then != now:
            log.warning("%s was begun with %s, now %s: images and scores may differ", folder.name, then, now)
    return manifest["complete"]


def _begin(folder: Path, request: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"complete": False, "pairs": 0, "skipped": {}, "versions": _versions()}
    _write_json(folder / MANIFEST, request | facts)


def _versions() -> dict[str, str]:
    """Of all that decides what pixels and scores are made."""
    packages = ("piq", "torch", "numpy", "scipy", "scikit-image", "pillow")
    return {"vtamiq": __version__} | {name: version(name) for name in packages}


def _prepare_references(
    pool: ProcessPoolExecutor | None, folder: Path, sources: list[Source], recipe: Recipe, progress: bool
) -> dict[str, str]:
    """Write all references; returns ref_id → reason of those that cannot be used."""
    (folder / "images").mkdir(exist_ok=True)
    skipped, regimes = {}, {}
    jobs = [(source, folder / "images" / f"{source.ref_id}.png", recipe.size) for source in sources]
    with tqdm(total=len(jobs), desc="photographs", unit="image", disable=not progress, leave=False) as bar:
        for (source, _, _), (shape, reason) in _run(pool, _prepare_reference, jobs):
            if reason is None:
                regimes.setdefault(scale_regime(shape), []).append(source.key)
            else:
                skipped[source.ref_id] = reason
                log.warning("%s is skipped: %s", source.key, reason)
            bar.update()
    if not regimes:
        reason = next(iter(skipped.values()))
        raise DatabaseError(f"none of the {len(sources)} photographs can be used; for example: {reason}")
    if len(regimes) > 1 and any(IQMS[name].pools_by_size for name in recipe.metrics):
        few, many = sorted(regimes.values(), key=len)[0], sorted(regimes.values(), key=len)[-1]
        raise DatabaseError(
            f"{min(few)} and {min(many)} differ so much in size that metrics would work at different scales; "
            "give a size=(width, height) to crop all photographs to"
        )
    return skipped


def _prepare_reference(job: tuple[Source, Path, tuple[int, int] | None]) -> tuple[tuple[int, int], str | None]:
    """(height, width) of the reference written, and None; or the reason why the photograph cannot be used."""
    source, path, size = job
    if path.exists():
        with contextlib.suppress(OSError), Image.open(path) as image:  # damaged by a power cut: written again below
            return (image.height, image.width), None
    try:
        image = read_image(source.image)
        if size is not None:
            image = centre_crop(image, size)
        elif min(image.shape[:2]) < 8:
            raise ImageError(f"{image.shape[1]} x {image.shape[0]} pixels are too few, 8 x 8 are needed")
    except ImageError as error:
        return (0, 0), str(error).replace(str(source.image), source.key)  # manifests carry no machine paths
    write_png(path, image)
    return image.shape[:2], None


def _render_all(
    pool: ProcessPoolExecutor | None, folder: Path, sources: list[Source], recipe: Recipe, progress: bool
) -> pd.DataFrame:
    """Make all distorted images that are missing; returns the scores of all, in order of their names."""
    units = [Unit(folder, source.ref_id, source.key, type, recipe) for source in sources for type in recipe.types]
    done = {unit: scores for unit in units if (scores := unit.finished()) is not None}
    todo = [unit for unit in units if unit not in done]
    levels = len(recipe.levels)
    with tqdm(
        total=len(units) * levels, initial=len(done) * levels, desc=f"synthesize {folder.name}", unit="pair",
        disable=not progress, leave=False,
    ) as bar:  # fmt: skip
        for unit, scores in _run(pool, _render, todo):
            done[unit] = scores
            bar.update(levels)
    rows = [
        {"dist_img": unit.image(level).name, "ref_img": f"{unit.ref_id}.png"} | scores
        for unit in units
        for level, scores in zip(recipe.levels, done[unit], strict=True)
    ]
    return pd.DataFrame(rows)


def _render(unit: Unit) -> list[dict[str, float]]:
    """Distort and measure one unit, level by level; the part file is written last and says that all is done."""
    reference = read_image(unit.folder / "images" / f"{unit.ref_id}.png")
    scores = []
    for level in unit.recipe.levels:
        try:
            distorted = _read_again(unit.image(level))
            if distorted is None:
                distorted = distort(reference, unit.type, level, _photograph_seed(unit.recipe.seed, unit.key))
                write_png(unit.image(level), distorted)
            scores.append(iqm_scores(reference, distorted, unit.recipe.metrics))
        except ValueError as error:
            what = f"{unit.key} with {find_distortion(unit.type).name} at level {level}"
            raise DatabaseError(f"{what}: {error}; leave it out, in a new folder") from error
    unit.part.parent.mkdir(exist_ok=True)
    _write_json(unit.part, scores)
    return scores


def _read_again(path: Path) -> np.ndarray | None:
    """An image that a call left behind that was interrupted; None if there is none, or a damaged one."""
    try:
        return read_image(path) if path.exists() else None
    except ImageError:
        return None


def _photograph_seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "little")


def _write_labels(
    folder: Path,
    request: dict[str, Any],
    recipe: Recipe,
    sources: list[Source],
    skipped: dict[str, str],
    scores: pd.DataFrame,
    tables: QuantileTables | None,
) -> None:
    """Write the label files, then the manifest that says that all is complete."""
    metrics = list(recipe.metrics)
    if tables is None:
        train = [f"{source.ref_id}.png" for source in sources if source.subset == "train"]
        try:
            tables = QuantileTables.fit(scores[scores["ref_img"].isin(train)] if train else scores, metrics)
        except ValueError as error:
            what = "types or levels that change something, or `tables` fitted elsewhere, in a new folder"
            raise DatabaseError(f"{folder}: no ranks can be made of these scores ({error}); take {what}") from error
    labels = weak_labels(scores, tables, names=metrics)
    dmos = pd.DataFrame(
        {
            "dist_img": scores["dist_img"],
            "ref_img": scores["ref_img"],
            "dmos": (5 - 4 * labels["consensus"]).round(6),
            "var": (4 * labels["spread"]).round(6),
        }
    )
    _write_text(folder / "iqm_scores.csv", scores.to_csv(index=False, lineterminator="\n"))
    _write_text(folder / "quantiles.json", tables.select(metrics).to_json())
    _write_text(folder / "dmos.csv", dmos.to_csv(index=False, lineterminator="\n"))
    names = {entry["ref_id"]: entry["source"] for entry in request["references"]}
    facts = {
        "complete": True,
        "pairs": len(dmos),
        "skipped": {name: skipped[ref_id] for ref_id, name in names.items() if ref_id in skipped},
        "labels": "synthetic: dmos = 5 - 4 * mean rank of the metrics (1 worst, 5 identical), var = 4 * their deviation",
        "versions": _versions(),
    }
    _write_json(folder / MANIFEST, request | facts)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for left_over in (*folder.glob(".*.tmp"), *(folder / "images").glob(".*.tmp")):  # of processes that were killed
        left_over.unlink(missing_ok=True)


# ---- processes --------------------------------------------------------------------------------------------------


def _count_workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be None or an integer from 0, got {workers!r}")
    return workers


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Sums over several threads differ in their last bits: the number of threads must not show in the result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _executor(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers < 2:
        yield None
        return
    # Spawned, not forked: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            'a worker process died: out of memory, or the script lacks its `if __name__ == "__main__":`. '
            "What is finished is kept; call again to go on, with workers=0 to do without processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent lets us finish our unit
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a parent that was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(pool: ProcessPoolExecutor | None, function: Callable[[Any], T], jobs: list[Any]) -> Iterator[tuple[Any, T]]:
    """(job, result) of each job, as they finish."""
    if pool is None:
        yield from ((job, function(job)) for job in jobs)
        return
    futures = {pool.submit(function, job): job for job in jobs}
    yield from ((futures[future], future.result()) for future in as_completed(futures))


# ---- files ------------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    """The file appears complete or not at all."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _distinct(name: str, values: Iterable[T]) -> tuple[T, ...]:
    values = tuple(values)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must name something, and nothing twice; got {values}")
    return values


def _whole(value: Any) -> int | None:
    """The value as a plain int if it is an integer of any kind, else None."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(value)} entries)"


# ---- demo databases ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photograph:
    """A photograph that comes inside scikit-image or scikit-learn.

    loader: "<package>:<name>"; halve: reduce twofold, for JPEG sources of high resolution; rows: the only ones to keep, so
    that a centre crop shows the subject; views: how many crops go into the demo database, 1 (the centre) or up to 4 (the
    corners, which overlap).
    """

    name: str
    database: str
    subset: str
    loader: str
    credit: str
    licence: str
    halve: bool = False
    rows: tuple[int, int] | None = None
    views: int = 1

    def load(self) -> np.ndarray:
        """uint8 RGB (H, W, 3)."""
        package, _, name = self.loader.partition(":")
        image = read_image(_package_image(package, name))[slice(*self.rows) if self.rows else slice(None)]
        return np.asarray(Image.fromarray(image).reduce(2)) if self.halve else image

    def crops(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The views of this photograph, (width, height) pixels each: name → uint8 RGB."""
        image = self.load()
        if self.views == 1:
            return {self.name: centre_crop(image, size)}
        tops, lefts = (0, image.shape[0] - size[1]), (0, image.shape[1] - size[0])
        corners = [(tops[0], lefts[0]), (tops[1], lefts[1]), (tops[0], lefts[1]), (tops[1], lefts[0])][: self.views]
        return {
            f"{self.name}-{number}": image[top : top + size[1], left : left + size[0]]
            for number, (top, left) in enumerate(corners, start=1)
        }


def _package_image(package: str, name: str) -> np.ndarray:
    if package == "scikit-learn":
        from sklearn.datasets import load_sample_image  # slow to import, and only needed here

        return load_sample_image(name)
    from skimage import data

    return getattr(data, name)()


# Contents that belong together are in one part: the three textures, for example. No photograph is in two databases.
PHOTOGRAPHS = (
    Photograph("astronaut", "photos", "train", "scikit-image:astronaut", "NASA", "public domain", views=4),
    Photograph("coffee", "photos", "train", "scikit-image:coffee", "Rachel Michetti", "CC0", views=4),
    Photograph("rocket", "photos", "train", "scikit-image:rocket", "SpaceX", "public domain", views=4),
    Photograph("china", "photos", "train", "scikit-learn:china.jpg", "danielbuechele (flickr.com/photos/danielbuechele/"
               "6061409035)", "CC BY 2.0", views=4),
    Photograph("ihc", "photos", "train", "scikit-image:immunohistochemistry", "Center for Microscopy and "
               "Molecular Imaging", "no known copyright restrictions", views=4),
    Photograph("flower", "photos", "val", "scikit-learn:flower.jpg", "vultilion (flickr.com/photos/vultilion/6056698931)",
               "CC BY 2.0"),
    Photograph("hubble", "photos", "val", "scikit-image:hubble_deep_field", "NASA", "public domain", halve=True),
    Photograph("chelsea", "photos", "test", "scikit-image:chelsea", "Stefan van der Walt", "CC0"),
    Photograph("retina", "photos", "test", "scikit-image:retina", "Mikael Häggström", "CC0", halve=True),
    Photograph("brick", "textures", "train", "scikit-image:brick", "CC0Textures", "CC0"),
    Photograph("grass", "textures", "train", "scikit-image:grass", "linolafett", "CC0"),
    Photograph("gravel", "textures", "train", "scikit-image:gravel", "CC0Textures", "CC0"),
    Photograph("coins", "textures", "val", "scikit-image:coins", "Brooklyn Museum", "no known copyright restrictions"),
    Photograph("camera", "textures", "test", "scikit-image:camera", "Lav Varshney", "CC0", rows=(20, 380)),
    Photograph("cell", "textures", "test", "scikit-image:cell", "Paul Müller and others", "CC0"),
)  # fmt: skip

# Twelve types, one at least of each group. Nine metrics: FSIMc and IW-SSIM take almost half of the time of all eleven,
# and are among those that the others' consensus predicts best (leave-one-out SROCC 0.96 and 0.94).
_PHOTO_TYPES = (1, 3, 6, 7, 9, 10, 11, 13, 17, 19, 23, 25)
_TEXTURE_TYPES = (1, 2, 10, 14, 18, 21, 22, 24)  # on grey photographs, types 4, 7 and 8 change nothing
_DEMO_METRICS = tuple(name for name in IQMS if name not in ("fsimc", "iw_ssim"))

# At 288 and 160 pixels all metrics work at one scale.
_DEMOS = {
    ("photos", "demo"): Recipe(types=_PHOTO_TYPES, metrics=_DEMO_METRICS, size=(384, 288)),
    ("photos", "smoke"): Recipe(types=(1, 10, 11, 25), levels=(1, 3, 5), metrics=CHEAP_IQMS, size=(192, 160)),
    ("textures", "demo"): Recipe(types=_TEXTURE_TYPES, metrics=_DEMO_METRICS, size=(384, 288)),
    ("textures", "smoke"): Recipe(types=(2, 10, 21), levels=(1, 3, 5), metrics=CHEAP_IQMS, size=(192, 160)),
}
_SMOKE_NAMES = ("astronaut", "coffee", "flower", "chelsea", "brick", "grass", "coins", "camera")
DEMO_NAMES = ("photos", "textures")


def demo_photographs(name: str | None = None) -> dict[str, np.ndarray]:
    """The photographs of a demo database (None: of all), name → uint8 RGB (H, W, 3), not yet cropped to one size."""
    if name is not None and name not in DEMO_NAMES:
        raise DatabaseError(f"unknown demo database {name!r}; known: {', '.join(DEMO_NAMES)}")
    return {photo.name: photo.load() for photo in PHOTOGRAPHS if name in (None, photo.database)}


def demo_database(
    name: str = "photos",
    *,
    cache: str | os.PathLike[str] | None = None,
    preset: str = "demo",
    workers: int | None = None,
    progress: bool = True,
) -> Database:
    """A small database with SYNTHETIC labels, made from photographs inside installed packages on first use.

    Args:
        name: "photos" (colour) or "textures" (grey, other contents and partly other distortions, for tests across
            databases).
        cache: folder to keep it in; see `cache_folder`. Every recipe has its own folder in there.
        preset: "demo" or "smoke" (four photographs, small crops, few distortions, four metrics: seconds).
        workers: processes to make it with, see `synthesize`; None takes one per core (for "smoke" none).
        progress: whether to show progress.

    Returns:
        The database, with a train, val and test part (`Database.distributed_split`).
    """
    if name not in DEMO_NAMES:
        raise DatabaseError(f"unknown demo database {name!r}; known: {', '.join(DEMO_NAMES)}")
    if (name, preset) not in _DEMOS:
        raise DatabaseError(f"unknown preset {preset!r} of a demo database; known: demo, smoke")
    recipe = _DEMOS[name, preset]
    photographs = [photo for photo in PHOTOGRAPHS if photo.database == name]
    if preset == "smoke":
        photographs = [replace(photo, views=1) for photo in photographs if photo.name in _SMOKE_NAMES]
        workers = 0 if workers is None else workers  # starting processes would take longer than the work
    views = [(photo, name, image) for photo in photographs for name, image in photo.crops(recipe.size).items()]
    images = {name: image for _, name, image in views}
    subsets = {name: photo.subset for photo, name, _ in views}
    contents = {name: photo.name for photo, name, _ in views}
    request = _request(recipe, _list_sources(images, subsets, contents), None)
    digest = hashlib.sha256(json.dumps([request, __version__]).encode()).hexdigest()[:8]
    return synthesize(
        images,
        cache_folder(cache) / "demo" / f"{preset}-{digest}" / name,
        types=recipe.types,
        levels=recipe.levels,
        metrics=recipe.metrics,
        size=recipe.size,
        seed=recipe.seed,
        subsets=subsets,
        contents=contents,
        workers=workers,
        progress=progress,
    )


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """`cache` if given, else `$VTAMIQ_CACHE`, else `vtamiq` in the user's cache folder (`$XDG_CACHE_HOME`, ~/.cache)."""
    chosen = cache or os.environ.get("VTAMIQ_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vtamiq"
