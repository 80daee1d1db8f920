"""Make a full-reference database from photographs: distort them, and label the pairs by a consensus of metrics.

As for KADIS-700k (Lin, Hosu and Saupe, arXiv:2001.08113), the labels come from metrics instead of observers: they are
SYNTHETIC, good for pre-training and demonstrations, and say nothing of human opinion.

A unit of work is one distortion type of one photograph at all levels. It is done when its part file is on disk, so that an
interrupted call resumes. The files do not depend on the number of workers.
"""

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
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vtamiq import __version__
from vtamiq.databases.schema import SUBSETS, Database, DatabaseError
from vtamiq.databases.synthetic import MANIFEST, MANIFEST_FORMAT, file_digest, load_synthetic, read_manifest
from vtamiq.images.distortions import LEVELS, distort, find_distortion
from vtamiq.images.iqms import IQMS, QuantileTables, iqm_scores, scale_regime, weak_labels
from vtamiq.images.reading import ImageError, ImageSource, centre_crop, read_image, write_png
from vtamiq.utils.digests import digest, digest_number
from vtamiq.utils.files import clear_unfinished, holding, list_images, read_json, write_text
from vtamiq.utils.processes import count_workers, executor, one_thread_per_process, run_jobs

log = logging.getLogger(__name__)

PARTS = "parts"  # folder of the scores of finished units, until all are merged
MEANING = "synthetic: dmos = 5 - 4 * mean rank of the metrics (1 worst, 5 identical), var = 4 * their deviation"
Pool = ProcessPoolExecutor | None


@dataclass(frozen=True)
class Recipe:
    """What is done to every photograph.

    With `recipes_only`, no distorted image is written: loaders render each one when it is asked for. The photographs of a
    folder are not copied either: they must stay where they are in relation to `out`, or be named to `load_synthetic`.
    ValueError for what is unknown, named twice or cannot be, and for images without labels.
    """

    types: Iterable[int | str] | None = None  # distortions by number, tag or name; None takes all 25
    levels: Iterable[int] = LEVELS  # of each distortion, among 1..5
    metrics: Iterable[str] | None = None  # keys of `IQMS` that vote on labels; None takes all, () makes recipes without
    size: tuple[int, int] | None = None  # (width, height) of the centre crop; None keeps photographs whole
    seed: int = 0  # random seed of the distortions, and of the choice of types with `one_type`
    recipes_only: bool = False
    one_type: bool = False  # one type for each photograph, as in KADIS-700k, dealt evenly by `seed` and names
    device: str = "cpu"  # computes the metrics, "cpu" or "cuda": their last digits differ

    def __post_init__(self):
        types = range(1, 26) if self.types is None else _listed(self.types)
        levels = _listed(self.levels)
        metrics = tuple(IQMS) if self.metrics is None else _listed(self.metrics)
        for known, chosen, what in ((LEVELS, levels, "level"), (IQMS, metrics, "metric")):
            for value in chosen:
                if value not in known:
                    raise ValueError(f"unknown {what} {value!r}; known: {', '.join(map(str, known))}")
        if not metrics and not self.recipes_only:
            raise ValueError("metrics must name something: only recipes may go without labels")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed!r}")
        kept = {
            "types": tuple(sorted(find_distortion(type).type for type in types)),
            "levels": tuple(sorted(int(level) for level in levels)),
            "metrics": tuple(sorted(metrics, key=list(IQMS).index)),
            "seed": int(self.seed),
        }
        for name in ("types", "levels", "metrics"):
            if len(set(kept[name])) < len(kept[name]) or not (kept[name] or name == "metrics"):
                raise ValueError(f"{name} must name something, and nothing twice; got {kept[name]}")
        if self.size is not None:
            sides = tuple(self.size) if isinstance(self.size, Iterable) else ()
            if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 8 for side in sides):
                raise ValueError(f"size must be (width, height) of at least 8 whole pixels, got {self.size!r}")
            kept["size"] = (int(sides[0]), int(sides[1]))
        for name, value in kept.items():  # plain numbers: a manifest is JSON
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON, types with their names."""
        named = {str(type): find_distortion(type).name for type in self.types}
        return json.loads(json.dumps(asdict(self) | {"types": named}))


def _listed(values: Any) -> tuple:
    """Values, or the only one."""
    return (values,) if isinstance(values, Integral | str) else tuple(values)


@dataclass(frozen=True)
class Source:
    """One photograph to distort."""

    ref_id: str  # its name in the database
    key: str  # its own name, without a folder
    image: Path | np.ndarray
    subset: str
    content: str
    types: tuple[int, ...]  # the distortions it gets
    sha256: str | None  # of the file or array; None for a file that cannot be read

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

    def digest_images(self) -> dict[str, str | None]:
        """Name → digest of the distorted images that are kept."""
        paths = [] if self.recipe.recipes_only else [self.image(level) for level in self.recipe.levels]
        return {path.name: file_digest(path) for path in paths}


def synthesize(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Mapping[str, ImageSource],
    out: str | os.PathLike[str],
    *,
    subsets: Mapping[str, str] | None = None,
    contents: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    **recipe: Any,
) -> Database:
    """Distort photographs and label the pairs, or resume; load the result if it is there already.

    A second process that asks for the same folder waits until the first has ended, where the file system has locks. With
    more than one worker, a script must call this below `if __name__ == "__main__":`.

    Args:
        images: a folder (its image files, in order of name), image files with different names, or name → image.
        out: folder to make, new or left by a call with the same arguments. The database is called after it.
        subsets: name of a photograph → "train", "val" or "test"; all others are "none". Labels are ranks among the scores
            of the train photographs, if there are any, else among all.
        contents: name of a photograph → its scene, for photographs that splits must not part.
        workers: processes; 0 and 1 work in this process, None takes one per core.
        progress: whether to show progress and the time left.
        recipe: fields of `Recipe`. The random streams of a photograph depend on `seed` and its name only.

    Returns:
        The database. Its score is 5 - 4 · consensus (5 = identical; 1 = worst on every metric), its spread 4 · the
        standard deviation of the metrics' ranks.

    Files that cannot be read, or are smaller than `size`, are skipped: logged, and listed in `omissions`.

    Raises:
        ImageError: an array or PIL image among `images` cannot be used.
        DatabaseError: no photograph, two of one name, another result in `out`, a distortion or metric that fails, or
            photographs on both sides of 384 pixels, where five of the metrics change scale (give a `size`).
    """
    recipe = Recipe(**recipe)
    workers = count_workers(workers)
    folder = Path(out)
    sources = _list_sources(images, subsets or {}, contents or {}, recipe, progress)
    request = _request(recipe, sources)
    place = Path(images) if recipe.recipes_only and isinstance(images, str | os.PathLike) else None
    if folder.exists() and not folder.is_dir():
        raise DatabaseError(f"{folder} is a file; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder, wait=True):
        if not _is_finished(folder, request):
            if recipe.device == "cuda" and not torch.cuda.is_available():
                raise ValueError("device is cuda, but torch finds none here")
            with one_thread_per_process(), executor(workers) as pool:
                sources, skipped = _prepare_references(pool, folder, sources, recipe, place, progress)
                scores = _measure(pool, folder, sources, recipe, progress)
            _write_labels(folder, recipe, sources, scores)
            facts = {"complete": True, "pairs": len(scores), "skipped": skipped}
            facts |= {"photographs": _relative(place, folder), "labels": MEANING if recipe.metrics else "none"}
            _write_manifest(folder, request | facts)
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            clear_unfinished(folder)
    in_place = place is not None and read_manifest(folder)["photographs"] is not None
    return load_synthetic(folder, photographs=place if in_place else None, check_images=not recipe.recipes_only)


def _list_sources(
    images: Any, subsets: Mapping[str, str], contents: Mapping[str, str], recipe: Recipe, progress: bool = False
) -> list[Source]:
    """All photographs, with their digests; copies of one share its content, unless `contents` says otherwise."""
    named = _name_images(images)
    subsets, contents = ({str(key): value for key, value in given.items()} for given in (subsets, contents))
    if not named:
        raise DatabaseError("there is no photograph to start from")
    for what, given in (("subsets", subsets), ("contents", contents)):
        if unknown := [key for key in given if key not in named]:
            photographs = ", ".join(named)
            raise DatabaseError(f"{what} names {', '.join(unknown)}, which is none of the photographs {photographs}")
    for key, subset in subsets.items():
        if subset not in SUBSETS:
            raise DatabaseError(f"the subset of {key} must be one of {', '.join(SUBSETS)}, got {subset!r}")
    types = _deal(list(named), recipe) if recipe.one_type else dict.fromkeys(named, recipe.types)
    digits = max(2, len(str(len(named))))
    sources, first = [], {}
    bar = tqdm(named.items(), desc="digests", unit="image", disable=not progress, leave=False, delay=2)
    for number, (key, image) in enumerate(bar, start=1):
        sha256, content = _digest(image), contents.get(key, key)
        if sha256 in first and key not in contents:
            log.warning("%s is a copy of %s: both are one content", key, first[sha256].key)
            content = first[sha256].content
        subset = subsets.get(key, "none")
        sources.append(Source(f"I{number:0{digits}d}", key, image, subset, content, types[key], sha256))
        if sha256 is not None:
            first.setdefault(sha256, sources[-1])
    return sources


def _digest(image: Path | np.ndarray) -> str | None:
    if isinstance(image, Path):
        return file_digest(image)
    return digest(f"{image.dtype} {image.shape} ".encode() + np.ascontiguousarray(image).tobytes())


def _deal(keys: list[str], recipe: Recipe) -> dict[str, tuple[int]]:
    """Deal one type to each photograph, both shuffled by a digest of seed and name."""
    keys = sorted(keys, key=lambda key: (digest_number(f"{recipe.seed} photograph {key}"), key))
    types = sorted(recipe.types, key=lambda type: digest_number(f"{recipe.seed} type {type}"))
    return {key: (types[place % len(types)],) for place, key in enumerate(keys)}


def _name_images(images: Any) -> dict[str, Path | np.ndarray]:
    if isinstance(images, str | os.PathLike):
        folder = Path(images)
        if not folder.is_dir():
            raise DatabaseError(f"no folder {folder}; give a folder, a list of files, or name → image")
        images = list_images(folder)
        if not images:
            raise DatabaseError(f"{folder} has no image files")
    by_name = isinstance(images, Mapping)
    named = {}
    for key, image in images.items() if by_name else ((Path(path).name, path) for path in images):
        if not by_name and ("\\" in key or not key.isprintable()):
            raise DatabaseError(f"{key!a} cannot be kept in tables; rename that photograph")
        if str(key) in named:
            raise DatabaseError(f"two photographs are called {key}; give a mapping name → image with different names")
        named[str(key)] = Path(image) if isinstance(image, str | os.PathLike) else read_image(image)
    return named


def _request(recipe: Recipe, sources: list[Source]) -> dict[str, Any]:
    """What makes one result differ from another, as JSON."""
    return {
        "format": MANIFEST_FORMAT,
        **recipe.to_dict(),
        "tables": "fitted",  # an option of earlier versions
        "references": [
            {"ref_id": s.ref_id, "source": s.key, "sha256": s.sha256, "subset": s.subset, "content": s.content}
            | ({"type": s.types[0]} if recipe.one_type else {})
            for s in sources
        ],
    }


def request_digest(
    images: Mapping[str, np.ndarray], recipe: Recipe, subsets: Mapping[str, str], contents: Mapping[str, str]
) -> str:
    """Digest of what a call of `synthesize` with these arguments asks for, and of the version of this package."""
    return digest([_request(recipe, _list_sources(images, subsets, contents, recipe)), __version__], length=8)


def _is_finished(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds the finished result; if it is new, it becomes ours. Refuse a folder of anything else."""
    manifest = read_manifest(folder)
    different = [name for name, wanted in request.items() if manifest and manifest.get(name) != wanted]
    # A call that is killed before its first manifest leaves at most a temporary file.
    if manifest is None and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
        raise DatabaseError(f"{folder} is not empty and was not made by vtamiq; choose a new folder")
    if manifest is None or (different and not manifest["complete"] and not (folder / PARTS).exists()):
        shutil.rmtree(folder / "images", ignore_errors=True)  # of a call that came to nothing
        _write_manifest(folder, request | {"complete": False, "pairs": 0, "skipped": {}, "photographs": None})
        return False
    if different:
        texts = ((name, json.dumps(manifest.get(name)), json.dumps(request[name])) for name in different)
        details = "; ".join(f"{name}: there {then:.80}, now {now:.80}" for name, then, now in texts)
        raise DatabaseError(f"{folder} was made with other arguments ({details}); remove it or choose a new folder")
    if not manifest["complete"]:
        log.info("%s is unfinished; going on", folder.name)
        then, now = manifest.get("versions"), _versions()
        if then != now:
            log.warning("%s was begun with %s, now %s: images and scores may differ", folder.name, then, now)
    return manifest["complete"]


def _versions() -> dict[str, str]:
    """Versions of everything that decides pixels and scores."""
    packages = ("piq", "torch", "numpy", "scipy", "scikit-image", "pillow")
    return {"vtamiq": __version__} | {name: version(name) for name in packages}


def _prepare_references(
    pool: Pool, folder: Path, sources: list[Source], recipe: Recipe, place: Path | None, progress: bool
) -> tuple[list[Source], dict[str, str]]:
    """Write all references, or look at them where they are (`place`): what can be used, with the references as their
    images, and name → reason of what cannot."""
    jobs = [(source, folder, recipe.size, place is not None) for source in sources]
    done = {}
    with tqdm(total=len(jobs), desc="photographs", unit="image", disable=not progress, leave=False) as bar:
        for (source, *_), result in run_jobs(pool, _prepare_reference, jobs):
            done[source.ref_id] = result
            bar.update()
    usable, skipped, regimes = [], {}, {}
    for source in sources:
        image, shape, reason = done[source.ref_id]
        if reason:
            skipped[source.key] = reason
            log.warning("%s is skipped: %s", source.key, reason)
        else:
            usable.append(replace(source, image=image))
            regimes.setdefault(scale_regime(shape), []).append(source.key)
    if not usable:
        reason = next(iter(skipped.values()))
        raise DatabaseError(f"none of the {len(sources)} photographs can be used; for example: {reason}")
    if len(regimes) > 1 and any(IQMS[name].pools_by_size for name in recipe.metrics):
        few, *_, many = sorted(regimes.values(), key=len)
        raise DatabaseError(
            f"{min(few)} and {min(many)} differ so much in size that metrics would work at different scales; "
            "give a size=(width, height) to crop all photographs to"
        )
    return usable, skipped


def _prepare_reference(
    job: tuple[Source, Path, tuple[int, int] | None, bool],
) -> tuple[Path | np.ndarray, tuple[int, int], str | None]:
    """Where the reference is, its (height, width), and None; or the reason in its place why it cannot be used."""
    source, folder, size, in_place = job
    path = source.image if in_place else folder / "images" / f"{source.ref_id}.png"
    try:
        image = source.crop(size)
    except ImageError as error:
        return path, (0, 0), str(error)
    if not in_place:  # also where there is one, of an earlier call: it may be damaged
        write_png(path, image)
    return path, image.shape[:2], None


def _measure(pool: Pool, folder: Path, sources: list[Source], recipe: Recipe, progress: bool) -> pd.DataFrame:
    """Make and measure what is missing; one row per pair, in order of names, with scores if there are metrics."""
    units = [Unit(folder, source, type, recipe) for source in sources for type in source.types]
    done = {}
    if recipe.metrics:
        for unit in units:
            scores = _finished_scores(unit)
            if scores is not None:
                done[unit] = scores
        options = {"desc": f"synthesize {folder.name}", "unit": "unit", "disable": not progress, "leave": False}
        with tqdm(total=len(units), initial=len(done), **options) as bar:
            for unit, scores in run_jobs(pool, _render, [unit for unit in units if unit not in done]):
                done[unit] = scores
                bar.update()
    rows = [
        {"dist_img": unit.image(level).name, "ref_img": f"{unit.source.ref_id}.png", "recipe_seed": unit.seed} | scores
        for unit in units
        for level, scores in zip(recipe.levels, done.get(unit, [{}] * len(recipe.levels)), strict=True)
    ]
    return pd.DataFrame(rows).astype({"recipe_seed": np.uint64})


def _finished_scores(unit: Unit) -> list[dict[str, float]] | None:
    """Scores of a unit; None of one that is not done, or whose files a power cut or anything else has damaged."""
    try:
        part = read_json(unit.part, scores=list, check=str, images=dict)
    except (FileNotFoundError, ValueError):
        return None
    whole = part["check"] == digest([part["scores"], part["images"]])
    return part["scores"] if whole and part["images"] == unit.digest_images() else None


def _render(unit: Unit) -> list[dict[str, float]]:
    """Distort and measure one unit, level by level; the part file is written last and says that all is done."""
    recipe = unit.recipe
    reference = unit.source.crop(recipe.size)
    scores = []
    for level in recipe.levels:
        try:
            distorted = distort(reference, unit.type, level, unit.seed)
            if not recipe.recipes_only:
                write_png(unit.image(level), distorted)
            scores.append(iqm_scores(reference, distorted, recipe.metrics, device=recipe.device))
        except ValueError as error:
            what = f"{unit.source.key} with {find_distortion(unit.type).name} at level {level}"
            raise DatabaseError(f"{what}: {error}; leave it out, in a new folder") from error
    images = unit.digest_images()
    write_text(unit.part, json.dumps({"scores": scores, "images": images, "check": digest([scores, images])}))
    return scores


def _write_labels(folder: Path, recipe: Recipe, sources: list[Source], scores: pd.DataFrame) -> None:
    names = scores[["dist_img", "ref_img"]]
    dmos = names.assign(dmos=np.nan, var=np.nan)
    if recipe.metrics:
        tables = _fit_tables(folder, recipe, sources, scores)
        ranks = weak_labels(scores, tables)
        dmos = names.assign(dmos=(5 - 4 * ranks["consensus"]).round(6), var=(4 * ranks["spread"]).round(6))
        measured = names.join(scores[list(recipe.metrics)])
        write_text(folder / "iqm_scores.csv", measured.to_csv(index=False, lineterminator="\n"))
        write_text(folder / "quantiles.json", tables.to_json())
    if recipe.recipes_only:
        dmos = dmos.join(scores["recipe_seed"])
    write_text(folder / "dmos.csv", dmos.to_csv(index=False, lineterminator="\n"))


def _fit_tables(folder: Path, recipe: Recipe, sources: list[Source], scores: pd.DataFrame) -> QuantileTables:
    """Fitted to the scores of the train photographs if there are any, else to all."""
    train = [f"{source.ref_id}.png" for source in sources if source.subset == "train"]
    if not train and any(source.subset != "none" for source in sources):
        raise DatabaseError(f"{folder}: none of the train photographs can be used, and ranks are not made of others")
    try:
        return QuantileTables.fit(scores[scores["ref_img"].isin(train)] if train else scores, recipe.metrics)
    except ValueError as error:
        said = f"{folder}: no ranks can be made of these scores ({error})"
        raise DatabaseError(f"{said}; take types or levels that change something, in a new folder") from error


def _relative(place: Path | None, folder: Path) -> str | None:
    """How one comes from the folder to the place, with "/"; its bare name if they are on different drives."""
    if place is None:
        return None
    try:
        return Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return place.name


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(content | {"versions": _versions()}, indent=1) + "\n")
