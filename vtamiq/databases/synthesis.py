"""Make a full-reference database from photographs: distort them, and label the pairs by a consensus of metrics.

As for KADIS-700k (Lin, Hosu and Saupe, arXiv:2001.08113), the labels come from conventional metrics instead of observers:
they are SYNTHETIC, good for pre-training and demonstrations, and say nothing of human opinion.

A unit of work is one distortion type of one photograph at all levels. Finished units are on disk, so that an interrupted
call resumes. The files do not depend on the number of workers.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vtamiq import __version__
from vtamiq.databases.schema import SUBSETS, Database, DatabaseError
from vtamiq.databases.synthetic import MANIFEST, MANIFEST_FORMAT, file_digest, load_synthetic, read_manifest
from vtamiq.images.distortions import LEVELS, distort, find_distortion
from vtamiq.images.iqms import IQMS, QuantileTables, iqm_scores, scale_regime, weak_labels
from vtamiq.images.reading import ImageError, ImageSource, centre_crop, image_size, read_image, write_png
from vtamiq.utils.digests import digest, digest_number
from vtamiq.utils.files import holding, list_images, write_text
from vtamiq.utils.processes import count_workers, executor, one_thread_per_process, run_jobs

__all__ = ["Recipe", "request_digest", "synthesize"]

log = logging.getLogger(__name__)
T = TypeVar("T")

PARTS = "parts"  # folder of the scores of finished units, until all are merged


@dataclass(frozen=True)
class Recipe:
    """What is done to every photograph.

    Attributes:
        types: distortions by number, tag or name; None takes all 25. Kept as sorted numbers.
        levels: of each distortion, among 1..5.
        metrics: keys of `IQMS` that vote on the labels; None takes all eleven; (), with `recipes_only`, makes no labels.
        size: (width, height) of the centre crop, or None to keep photographs whole.
        seed: of the random distortions, and of the choice of types with `one_type`.
        recipes_only: write no distorted image.
        one_type: one of the types for each photograph, instead of all.
        device: where the metrics are computed, "cpu" or "cuda": their last digits differ.

    Raises:
        ValueError: an unknown type, level or metric, one that is named twice, images without labels, a size, seed or
            device that cannot be.
    """

    types: tuple[int | str, ...] | None = None
    levels: tuple[int, ...] = LEVELS
    metrics: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    recipes_only: bool = False
    one_type: bool = False
    device: str = "cpu"

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
            "metrics": _distinct("metrics", sorted(metrics, key=list(IQMS).index)) if metrics else (),
            "seed": _whole(self.seed),
        }
        if not metrics and not self.recipes_only:
            raise ValueError("metrics must name something: only recipes may go without labels")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
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
        """The recipe as JSON, types with their names."""
        named = {str(type): find_distortion(type).name for type in self.types}
        return json.loads(json.dumps(asdict(self) | {"types": named}))


@dataclass(frozen=True)
class Source:
    """One photograph to distort.

    Attributes:
        ref_id: its name in the database.
        key: its own name, without a folder.
        subset: train, val, test or none.
        content: what it shows, which several photographs may share.
        types: the distortions it gets.
    """

    ref_id: str
    key: str
    image: Path | np.ndarray
    subset: str
    content: str
    types: tuple[int, ...]

    def digest(self) -> str | None:
        """Digest of the file or array; None for a file that cannot be read."""
        if not isinstance(self.image, np.ndarray):
            return file_digest(self.image)
        return digest(f"{self.image.dtype} {self.image.shape} ".encode() + np.ascontiguousarray(self.image).tobytes())

    def crop(self, size: tuple[int, int] | None) -> np.ndarray:
        """The reference image; ImageError, without the folder of a file, if there is none."""
        try:
            image = read_image(self.image)
            if size is not None:
                return centre_crop(image, size)
            if min(image.shape[:2]) < 8:
                raise ImageError(f"{image.shape[1]} x {image.shape[0]} pixels are too few, 8 x 8 are needed")
        except ImageError as error:  # manifests carry no machine paths
            raise ImageError(str(error).replace(str(self.image), self.key)) from error
        return image


@dataclass(frozen=True)
class Unit:
    """One distortion type of one reference at all levels: what a worker does at a time."""

    folder: Path
    source: Source
    type: int
    recipe: Recipe

    @property
    def seed(self) -> int:
        """Seed of the random distortions, by the photograph's name: order and company do not matter."""
        return digest_number(f"{self.recipe.seed} {self.source.key}")

    @property
    def part(self) -> Path:
        return self.folder / PARTS / f"{self.source.ref_id}_{self.type:02d}.json"

    def image(self, level: int) -> Path:
        return self.folder / "images" / f"{self.source.ref_id}_{self.type:02d}_{level:02d}.png"

    def finished(self) -> list[dict[str, float]] | None:
        """Scores of each level if this unit is done; None if it is not, or its file is damaged."""
        try:
            if not self.recipe.recipes_only and not all(self.image(n).stat().st_size for n in self.recipe.levels):
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
    recipes_only: bool = False,
    one_type: bool = False,
    subsets: Mapping[str, str] | None = None,
    contents: Mapping[str, str] | None = None,
    tables: QuantileTables | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int | None = None,
    progress: bool = True,
) -> Database:
    """Distort photographs and label the pairs, or resume; load the result if it is there already.

    A second process that asks for the same folder waits until the first has ended (not on Windows, and not on file systems
    without locks). With more than one worker, a script must call this below `if __name__ == "__main__":`.

    Args:
        images: a folder (its image files, in order of name), image files with different names, or name → image.
        out: folder to make, new or left by a call with the same arguments. The database is called after it.
        types, levels, metrics, size, seed, device: see `Recipe`. The random streams of a photograph depend on `seed` and
            its name only.
        recipes_only: write no distorted image: loaders render each one when it is asked for. The photographs of a folder
            are not copied either: they must stay where they are in relation to `out`, or be named to `load_synthetic`.
        one_type: one of the types for each photograph, as in KADIS-700k. All types get the same number of photographs, or
            one more; which gets which depends on `seed` and the names of all, not on their order.
        subsets: name of a photograph → "train", "val" or "test"; all others are "none".
        contents: name of a photograph → what it shows, for photographs that splits must not part, such as views of one
            scene; all others are contents of their own.
        tables: quantile tables for the labels. None fits them to these scores: those of the train photographs if
            `subsets` names any, else all.
        workers: processes; 0 and 1 work in this process, None takes one per core.
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
    types = None if types is None else (types,) if isinstance(types, Integral | str) else tuple(types)
    levels = (levels,) if isinstance(levels, Integral) else tuple(levels)
    recipe = Recipe(types, levels, metrics, size, seed, recipes_only, one_type, device)
    workers = count_workers(workers)
    folder = Path(out)
    sources = _list_sources(images, subsets or {}, contents or {}, recipe)
    digests = _digests(sources, progress)
    sources = _join_copies(sources, contents or {}, digests)
    request = _request(recipe, sources, tables, digests)
    place = Path(images) if recipes_only and isinstance(images, str | os.PathLike) else None
    if folder.exists() and not folder.is_dir():
        raise DatabaseError(f"{folder} is a file; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder, wait=True):
        if not _claim(folder, request):
            if device == "cuda" and not torch.cuda.is_available():
                raise ValueError("device is cuda, but torch finds none here")
            with one_thread_per_process(), executor(workers) as pool:
                sources, skipped = _prepare_references(pool, folder, sources, recipe, place, progress)
                scores = _render_all(pool, folder, sources, recipe, progress)
            _write_labels(folder, request, recipe, sources, skipped, scores, tables, place)
    in_place = place is not None and read_manifest(folder)["photographs"] is not None
    return load_synthetic(folder, photographs=place if in_place else None, check_images=not recipes_only)


def _list_sources(images: Any, subsets: Mapping[str, str], contents: Mapping[str, str], recipe: Recipe) -> list[Source]:
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
    types = _deal(list(named), recipe) if recipe.one_type else dict.fromkeys(named, recipe.types)
    digits = max(2, len(str(len(named))))
    return [
        Source(f"I{n:0{digits}d}", key, image, subsets.get(key, "none"), contents.get(key, key), types[key])
        for n, (key, image) in enumerate(named.items(), start=1)
    ]


def _digests(sources: list[Source], progress: bool = False) -> dict[str, str | None]:
    """`ref_id` → digest of the photograph; reads all files."""
    bar = tqdm(sources, desc="digests", unit="image", disable=not progress, leave=False, delay=2)
    return {source.ref_id: source.digest() for source in bar}


def _join_copies(sources: list[Source], contents: Mapping[str, str], digests: Mapping[str, str | None]) -> list[Source]:
    """Give copies of one file one content, which no split parts, unless `contents` says otherwise."""
    first, joined = {}, []
    for source in sources:
        digest = digests[source.ref_id]
        known = first.setdefault(digest, source)
        if digest is not None and known is not source and source.key not in contents:
            log.warning("%s is a copy of %s: both are one content", source.key, known.key)
            source = replace(source, content=known.content)
        joined.append(source)
    return joined


def _deal(keys: list[str], recipe: Recipe) -> dict[str, tuple[int]]:
    """Deal one type to each photograph, both shuffled by a digest of seed and name."""
    keys = sorted(keys, key=lambda key: (digest_number(f"{recipe.seed} photograph {key}"), key))
    types = sorted(recipe.types, key=lambda type: digest_number(f"{recipe.seed} type {type}"))
    return {key: (types[place % len(types)],) for place, key in enumerate(keys)}


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
        paths = list_images(folder)
        if not paths:
            raise DatabaseError(f"{folder} has no image files")
    else:
        paths = [Path(image) for image in images]
    for path in paths:
        if "\\" in path.name or not path.name.isprintable() or "\udc80" <= max(path.name) <= "\udcff":
            raise DatabaseError(f"{path.name!a} cannot be kept in tables; rename that photograph")
    named = {path.name: path for path in paths}
    if len(named) < len(paths):
        twice = sorted({path.name for path in paths if path != named[path.name]} or {paths[0].name})
        raise DatabaseError(f"two photographs are called {twice[0]}; give a mapping name → image instead")
    return named


def _request(
    recipe: Recipe, sources: list[Source], tables: QuantileTables | None, digests: Mapping[str, str | None]
) -> dict[str, Any]:
    """What makes one result differ from another, as JSON."""
    if tables is not None:
        missing = [name for name in recipe.metrics if name not in tables.names]
        if missing:
            raise DatabaseError(f"the quantile tables have none for {', '.join(missing)}")
    return {
        "format": MANIFEST_FORMAT,
        **recipe.to_dict(),
        "tables": digest(tables.to_json()) if tables else "fitted",
        "references": [
            {"ref_id": s.ref_id, "source": s.key, "sha256": digests[s.ref_id], "subset": s.subset, "content": s.content}
            | ({"type": s.types[0]} if recipe.one_type else {})
            for s in sources
        ],
    }


def request_digest(
    images: Mapping[str, np.ndarray],
    recipe: Recipe,
    *,
    subsets: Mapping[str, str],
    contents: Mapping[str, str],
    version: str,
) -> str:
    """Digest of what a call of `synthesize` with these arguments asks for, and of a version."""
    sources = _list_sources(images, subsets, contents, recipe)
    return digest([_request(recipe, sources, None, _digests(sources)), version], length=8)


def _claim(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds the finished result; if it is new, it becomes ours. Refuse a folder of anything else."""
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
    facts = {"complete": False, "pairs": 0, "skipped": {}, "photographs": None, "versions": _versions()}
    _write_json(folder / MANIFEST, request | facts)


def _versions() -> dict[str, str]:
    """Of all that decides what pixels and scores are made."""
    packages = ("piq", "torch", "numpy", "scipy", "scikit-image", "pillow")
    return {"vtamiq": __version__} | {name: version(name) for name in packages}


def _prepare_references(
    pool: ProcessPoolExecutor | None,
    folder: Path,
    sources: list[Source],
    recipe: Recipe,
    place: Path | None,
    progress: bool,
) -> tuple[list[Source], dict[str, str]]:
    """Write all references, or look at them where they are (`place`).

    Returns what can be used, with the references as their images, and name → reason of what cannot.
    """
    if place is None:
        (folder / "images").mkdir(exist_ok=True)
    usable, skipped, regimes = {}, {}, {}
    jobs = [(source, folder, recipe.size, place is not None) for source in sources]
    with tqdm(total=len(jobs), desc="photographs", unit="image", disable=not progress, leave=False) as bar:
        for (source, *_), (image, shape, reason) in run_jobs(pool, _prepare_reference, jobs):
            if reason is None:
                usable[source.ref_id] = replace(source, image=image)
                regimes.setdefault(scale_regime(shape), []).append(source.key)
            else:
                skipped[source.key] = reason
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
    # In the order asked for, whatever was ready first
    kept = [usable[source.ref_id] for source in sources if source.ref_id in usable]
    return kept, {source.key: skipped[source.key] for source in sources if source.key in skipped}


def _prepare_reference(
    job: tuple[Source, Path, tuple[int, int] | None, bool],
) -> tuple[Path | np.ndarray, tuple[int, int], str | None]:
    """Where the reference is, its (height, width), and None; or the reason in its place why it cannot be used."""
    source, folder, size, in_place = job
    path = source.image if in_place else folder / "images" / f"{source.ref_id}.png"
    part = folder / PARTS / f"{source.ref_id}.json"  # says that a photograph that stays in place was decoded
    with contextlib.suppress(OSError, ValueError):  # none yet, or damaged by a power cut
        if in_place:
            return path, tuple(json.loads(part.read_text(encoding="utf-8"))), None
        return path, image_size(path)[::-1], None
    try:
        image = source.crop(size)
    except ImageError as error:
        return path, (0, 0), str(error)
    if in_place:
        part.parent.mkdir(exist_ok=True)
        _write_json(part, image.shape[:2])
    else:
        write_png(path, image)
    return path, image.shape[:2], None


def _render_all(
    pool: ProcessPoolExecutor | None, folder: Path, sources: list[Source], recipe: Recipe, progress: bool
) -> pd.DataFrame:
    """Make and measure whatever is missing; returns one row per pair, in order of names, with scores if there are any."""
    units = [Unit(folder, source, type, recipe) for source in sources for type in source.types]
    if recipe.metrics:
        done = _measure_all(pool, units, f"synthesize {folder.name}", progress)
    else:
        done = dict.fromkeys(units, [{}] * len(recipe.levels))
    rows = [
        {"dist_img": unit.image(level).name, "ref_img": f"{unit.source.ref_id}.png", "recipe_seed": unit.seed} | scores
        for unit in units
        for level, scores in zip(recipe.levels, done[unit], strict=True)
    ]
    return pd.DataFrame(rows).astype({"recipe_seed": np.uint64})


def _measure_all(
    pool: ProcessPoolExecutor | None, units: list[Unit], title: str, progress: bool
) -> dict[Unit, list[dict[str, float]]]:
    done = {unit: scores for unit in units if (scores := unit.finished()) is not None}
    todo = [unit for unit in units if unit not in done]
    levels = len(units[0].recipe.levels)
    with tqdm(
        total=len(units) * levels, initial=len(done) * levels, desc=title, unit="pair",
        disable=not progress, leave=False,
    ) as bar:  # fmt: skip
        for unit, scores in run_jobs(pool, _render, todo):
            done[unit] = scores
            bar.update(levels)
    return done


def _render(unit: Unit) -> list[dict[str, float]]:
    """Distort and measure one unit, level by level; the part file is written last and says that all is done."""
    recipe = unit.recipe
    reference = unit.source.crop(recipe.size)
    scores = []
    for level in recipe.levels:
        try:
            distorted = None if recipe.recipes_only else _read_again(unit.image(level))
            if distorted is None:
                distorted = distort(reference, unit.type, level, unit.seed)
                if not recipe.recipes_only:
                    write_png(unit.image(level), distorted)
            scores.append(iqm_scores(reference, distorted, recipe.metrics, device=recipe.device))
        except ValueError as error:
            what = f"{unit.source.key} with {find_distortion(unit.type).name} at level {level}"
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


def _write_labels(
    folder: Path,
    request: dict[str, Any],
    recipe: Recipe,
    sources: list[Source],
    skipped: dict[str, str],
    scores: pd.DataFrame,
    tables: QuantileTables | None,
    place: Path | None,
) -> None:
    """Write the label files, then the manifest that says that all is complete."""
    names = scores[["dist_img", "ref_img"]]
    labels = pd.DataFrame({"dmos": np.nan, "var": np.nan}, index=scores.index)
    if recipe.metrics:
        tables = _tables(folder, recipe, sources, scores) if tables is None else tables.select(recipe.metrics)
        ranks = weak_labels(scores, tables)
        labels = pd.DataFrame({"dmos": 5 - 4 * ranks["consensus"], "var": 4 * ranks["spread"]}).round(6)
        measured = names.join(scores[list(recipe.metrics)])
        write_text(folder / "iqm_scores.csv", measured.to_csv(index=False, lineterminator="\n"))
        write_text(folder / "quantiles.json", tables.to_json())
    dmos = names.join(labels)
    if recipe.recipes_only:
        dmos = dmos.join(scores["recipe_seed"])
    write_text(folder / "dmos.csv", dmos.to_csv(index=False, lineterminator="\n"))
    meaning = "synthetic: dmos = 5 - 4 * mean rank of the metrics (1 worst, 5 identical), var = 4 * their deviation"
    facts = {
        "complete": True,
        "pairs": len(dmos),
        "skipped": skipped,
        "photographs": _relative(place, folder) if place else None,
        "labels": meaning if recipe.metrics else "none",
        "versions": _versions(),
    }
    _write_json(folder / MANIFEST, request | facts)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for left_over in (*folder.glob(".*.tmp"), *(folder / "images").glob(".*.tmp")):  # of processes that were killed
        left_over.unlink(missing_ok=True)


def _tables(folder: Path, recipe: Recipe, sources: list[Source], scores: pd.DataFrame) -> QuantileTables:
    """Fitted to the scores of the train photographs if there are any, else to all."""
    train = [f"{source.ref_id}.png" for source in sources if source.subset == "train"]
    if not train and any(source.subset != "none" for source in sources):
        raise DatabaseError(f"{folder}: none of the train photographs can be used, and ranks are not made of others")
    try:
        return QuantileTables.fit(scores[scores["ref_img"].isin(train)] if train else scores, recipe.metrics)
    except ValueError as error:
        what = "types or levels that change something, or `tables` fitted elsewhere, in a new folder"
        raise DatabaseError(f"{folder}: no ranks can be made of these scores ({error}); take {what}") from error


def _relative(place: Path, folder: Path) -> str:
    """How one comes from the folder to the place, with "/"; its bare name if they are on different drives."""
    try:
        return Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return place.name


# ---- files ------------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


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
