"""What a figure was drawn from, exactly, in two files: enough to draw it again without computing anything.

A recipe is the name of a figure function and its arguments. `NAME.json` has both, readable and open to edits such as
another title; arrays lie in `NAME.npz` beside it, and the JSON holds their digest. Nothing is pickled, so that reading a
recipe runs no code of its own. Known are

- None, booleans, numbers, text, lists, tuples and mappings;
- NumPy arrays and scalars, tensors; pandas Series, Index and DataFrame of the usual types;
- `PatchSample` (overlapping patches share their pixels) and `LogisticFit`;
- `VTAMIQ`: its configuration alone, since diagrams show how a network is built and not its weights.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vtamiq.caps import PatchSample, extract_patches
from vtamiq.evaluation.correlation import LogisticFit
from vtamiq.model.network import VTAMIQ, VTAMIQConfig

__all__ = ["Recipe", "RecipeError", "find_recipes", "forget_recipe", "read_recipe", "write_recipe"]

FORMAT = 1
KIND = "$"  # the key that tells an encoded value from a mapping


class RecipeError(ValueError):
    """A figure's recipe is missing, damaged, or holds what cannot be kept; the message says which and where."""


@dataclass(frozen=True)
class Recipe:
    """How a figure is drawn and saved.

    function: module and name, such as "plots.bars". arguments: by name. data: the table or mapping that is written beside
    the figure. dpi: as for `plots.save_figure`. gallery: whether it may go to the repository's gallery, or tells of one
    machine and stays in its run.
    """

    function: str
    arguments: Mapping[str, Any]
    data: pd.DataFrame | Mapping[str, Any] | None = None
    dpi: float | None = None
    gallery: bool = True


# ---------------------------------------------------------------------------------------------------------------- files


def write_recipe(recipe: Recipe, folder: str | Path, name: str) -> list[Path]:
    """Write `name.json` and, if there are arrays, `name.npz`; equal recipes give the same bytes.

    Raises:
        RecipeError: an argument of a kind that cannot be kept; no file is touched then.
    """
    store = _Store()
    content = {"format": FORMAT, "function": recipe.function, "dpi": recipe.dpi, "arrays": None}
    content |= {} if recipe.gallery else {"gallery": False}
    content["arguments"] = {
        key: store.encode(value, f"{recipe.function}: {key}") for key, value in recipe.arguments.items()
    }
    content["data"] = store.encode(recipe.data, "data")
    text_path, arrays_path = (Path(folder) / f"{name}.{kind}" for kind in ("json", "npz"))
    text_path.parent.mkdir(parents=True, exist_ok=True)
    if store.arrays:
        packed = _pack(store.arrays)
        content["arrays"] = hashlib.sha256(packed).hexdigest()
        _replace(arrays_path, packed)
    else:
        arrays_path.unlink(missing_ok=True)
    _replace(text_path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return [text_path, arrays_path] if store.arrays else [text_path]


def forget_recipe(folder: str | Path, name: str) -> None:
    """Remove a recipe that is no longer that of the figure of this name, if there is one."""
    for kind in ("json", "npz"):
        (Path(folder) / f"{name}.{kind}").unlink(missing_ok=True)


def find_recipes(folder: str | Path) -> list[str]:
    """Names of the figures whose recipes lie in a folder, sorted; none if there is no such folder."""
    return sorted({path.stem for kind in ("json", "npz") for path in Path(folder).glob(f"*.{kind}")})


def read_recipe(folder: str | Path, name: str) -> Recipe:
    """Inverse of `write_recipe`.

    Raises:
        RecipeError: nothing there, files that are damaged or do not belong together, or a recipe of another format.
    """
    path = Path(folder) / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RecipeError(f"{path.name} has format {content['format']!r}, this version reads {FORMAT}")
        decode = _Decoder({} if content["arrays"] is None else _unpack(path.with_suffix(".npz"), content["arrays"]))
        return Recipe(
            function=str(content["function"]),
            arguments={key: decode(value) for key, value in content["arguments"].items()},
            data=decode(content["data"]),
            dpi=decode(content["dpi"]),
            gallery=bool(content.get("gallery", True)),
        )
    except RecipeError:
        raise
    except FileNotFoundError as error:
        raise RecipeError(f"{Path(error.filename).name} is missing") from error
    except Exception as error:  # whatever a damaged file makes its readers stumble over
        raise RecipeError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _unpack(path: Path, digest: str) -> dict[str, np.ndarray]:
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != digest:
        raise RecipeError(f"{path.name} is damaged, or not the one that belongs to {path.stem}.json")
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


# --------------------------------------------------------------------------------------------------------------- values


@dataclass
class _Store:
    """Turns values into what JSON can hold; arrays are put aside under numbers."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def encode(self, value: Any, where: str) -> Any:
        """`where` names the value in errors."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {KIND: "float", "value": str(value)}
        if value is pd.NA:
            return {KIND: "NA"}
        for kinds, encode in self._encoders():
            if isinstance(value, kinds):
                return encode(value, where)
        raise RecipeError(f"{where} is a {type(value).__name__}, which cannot be kept for drawing again")

    def _encoders(self) -> list[tuple[Any, Callable[[Any, str], Any]]]:
        return [
            (np.generic, self._scalar),
            (np.ndarray, self._array),
            (torch.Tensor, lambda value, _: {KIND: "tensor", "key": self._keep(value.detach().cpu().numpy())}),
            (pd.DataFrame, self._frame),
            (pd.Series, self._series),
            (pd.Index, self._index),
            (PatchSample, self._sample),
            (LogisticFit, lambda value, where: {KIND: "fit", "fields": self.encode(asdict(value), where)}),
            (VTAMIQ, lambda value, where: {KIND: "network", "config": self.encode(asdict(value.config), where)}),
            (Mapping, self._mapping),
            (tuple, lambda value, where: {KIND: "tuple", "items": self._items(value, where)}),
            (Sequence, self._items),
        ]

    def _keep(self, array: np.ndarray) -> str:
        key = f"a{len(self.arrays)}"
        self.arrays[key] = array
        return key

    def _items(self, values: Sequence[Any], where: str) -> list[Any]:
        return [self.encode(value, f"{where}[{k}]") for k, value in enumerate(values)]

    def _mapping(self, value: Mapping, where: str) -> Any:
        if KIND not in value and all(type(key) is str for key in value):
            return {key: self.encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        return {
            KIND: "mapping",
            "keys": self._items(list(value), where),
            "values": self._items(list(value.values()), where),
        }

    def _scalar(self, value: np.generic, where: str) -> Any:
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {KIND: "scalar", "dtype": value.dtype.str, "value": self.encode(value.item(), where)}
        return {KIND: "array", "key": self._keep(np.asarray(value)), "scalar": True}

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype.hasobject:
            return {KIND: "objects", "shape": list(value.shape), "items": self._items(value.ravel().tolist(), where)}
        return {KIND: "array", "key": self._keep(value)}

    def _column(self, values: Any, where: str) -> Any:
        """Values of a Series or an Index with their type."""
        if isinstance(values.dtype, np.dtype):
            return self._array(values.to_numpy(), where)
        if isinstance(values.dtype, pd.CategoricalDtype):
            kind = values.dtype
            codes = np.asarray(pd.Categorical(values).codes)
            return {
                KIND: "categories",
                "codes": self._keep(codes),
                "of": self._index(kind.categories, where),
                "ordered": bool(kind.ordered),
            }
        return {KIND: "column", "dtype": str(values.dtype), "items": self._items(values.tolist(), where)}

    def _index(self, value: pd.Index, where: str) -> Any:
        where = f"{where}, index"
        names = self._items(list(value.names), where)
        if isinstance(value, pd.RangeIndex):
            return {KIND: "range", "slice": [value.start, value.stop, value.step], "names": names}
        if isinstance(value, pd.MultiIndex):
            levels = [self._index(level, where) for level in value.levels]
            codes = [self._keep(np.asarray(codes)) for codes in value.codes]
            return {KIND: "levels", "levels": levels, "codes": codes, "names": names}
        return {KIND: "index", "values": self._column(value, where), "names": names}

    def _series(self, value: pd.Series, where: str) -> Any:
        encoded = {KIND: "series", "name": self.encode(value.name, where), "index": self._index(value.index, where)}
        return encoded | {"values": self._column(value, where)}

    def _frame(self, value: pd.DataFrame, where: str) -> Any:
        columns = [self._column(value.iloc[:, k], f"{where}[{name!r}]") for k, name in enumerate(value.columns)]
        encoded = {KIND: "frame", "columns": self._index(value.columns, where)}
        return encoded | {"index": self._index(value.index, where), "values": columns}

    def _sample(self, value: PatchSample, where: str) -> Any:
        encoded = {KIND: "sample"}
        encoded |= {name: self.encode(getattr(value, name), where) for name in ("uv", "scale", "position")}
        pixels = _shared_pixels(value)
        if pixels is None:
            return encoded | {"patches": self.encode(value.patches, where)}
        return encoded | {"side": value.patches.shape[-1], "pixels": [self._array(each, where) for each in pixels]}


class _Decoder:
    """Inverse of `_Store.encode`, with the arrays at hand."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.kinds: dict[str, Callable[[dict], Any]] = {
            "float": lambda v: float(v["value"]),
            "NA": lambda v: pd.NA,
            "scalar": lambda v: np.dtype(v["dtype"]).type(self(v["value"])),
            "array": lambda v: arrays[v["key"]][()] if v.get("scalar") else arrays[v["key"]],
            "objects": self._objects,
            "tensor": lambda v: torch.from_numpy(arrays[v["key"]]),
            "tuple": lambda v: tuple(map(self, v["items"])),
            "mapping": lambda v: dict(zip(map(self, v["keys"]), map(self, v["values"]), strict=True)),
            "column": lambda v: pd.array([self(item) for item in v["items"]], dtype=v["dtype"]),
            "categories": lambda v: pd.Categorical.from_codes(arrays[v["codes"]], self(v["of"]), ordered=v["ordered"]),
            "range": lambda v: pd.RangeIndex(*v["slice"], name=self(v["names"][0])),
            "index": self._index,
            "levels": self._levels,
            "series": lambda v: self._series(v["values"], self(v["index"]), self(v["name"])),
            "frame": self._frame,
            "sample": self._sample,
            "fit": self._fit,
            "network": self._network,
        }

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        if KIND not in value:
            return {key: self(item) for key, item in value.items()}
        if value[KIND] not in self.kinds:
            raise RecipeError(f"there is a value of unknown kind {value[KIND]!r}")
        return self.kinds[value[KIND]](value)

    def _objects(self, value: dict) -> np.ndarray:
        array = np.empty(len(value["items"]), dtype=object)
        for k, item in enumerate(value["items"]):  # an assignment as a whole would make arrays of lists
            array[k] = self(item)
        return array.reshape(value["shape"])

    def _index(self, value: dict) -> pd.Index:
        values = self(value["values"])
        return pd.Index(values, dtype=values.dtype, name=self(value["names"][0]))

    def _levels(self, value: dict) -> pd.MultiIndex:
        codes = [self.arrays[key] for key in value["codes"]]
        return pd.MultiIndex(levels=self(value["levels"]), codes=codes, names=self(value["names"]))

    def _series(self, values: dict, index: pd.Index, name: Any = None) -> pd.Series:
        column = self(values)
        return pd.Series(column, index, dtype=column.dtype, name=name)  # left to itself pandas turns objects into text

    def _frame(self, value: dict) -> pd.DataFrame:
        index, columns = self(value["index"]), self(value["columns"])
        frame = pd.DataFrame({k: self._series(part, index) for k, part in enumerate(value["values"])}, index=index)
        return frame.set_axis(columns, axis=1)

    def _sample(self, value: dict) -> PatchSample:
        parts = {name: self(value[name]) for name in ("uv", "scale", "position")}
        if "patches" in value:
            return PatchSample(patches=self(value["patches"]), **parts)
        pixels = [self(each) for each in value["pixels"]]
        patches = _patches_of(pixels, parts["position"].numpy(), parts["scale"].numpy(), value["side"])
        return PatchSample(patches=torch.from_numpy(patches), **parts)

    def _fit(self, value: dict) -> LogisticFit:
        return LogisticFit(**self(value["fields"]))

    def _network(self, value: dict) -> VTAMIQ:
        with torch.random.fork_rng(
            devices=[]
        ):  # weights that nobody looks at shall not change anybody's random numbers
            return VTAMIQ(VTAMIQConfig.from_dict(self(value["config"]))).eval()


# -------------------------------------------------------------------------------------------------------------- patches


def _places(images: int, position: np.ndarray, scale: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Image, which of its patches, and their corners (n, 2): one entry for each image and each scale in it."""
    places = []
    for k in range(images):
        corners, scales = (position, scale) if scale.ndim == 1 else (position[k], scale[k])
        places += [(k, scales == s, corners[scales == s]) for s in np.unique(scales)]
    return places


def _shared_pixels(sample: PatchSample) -> list[np.ndarray] | None:
    """For each image and scale the pixels that its patches show, (h, w, 3).

    Ten thousand patches of a photograph show every pixel a dozen times. None if patches are so few that they take less
    room than the pixels around them, or if they contradict each other.
    """
    patches, position, scale = (part.numpy() for part in (sample.patches, sample.position, sample.scale))
    side, pixels = patches.shape[-1], []
    if patches.dtype != np.uint8 or not patches.size or position.min() < 0:
        return None
    places = _places(len(patches), position, scale)
    sizes = [corners.max(axis=0) + side for *_, corners in places]
    if 3 * sum(math.prod(size.tolist()) for size in sizes) >= patches.size:
        return None
    for (k, chosen, corners), size in zip(places, sizes, strict=True):
        canvas = np.zeros((*size, 3), np.uint8)
        rows, columns = corners.T[..., None] + np.arange(side)  # (n, P) each
        canvas[rows[:, :, None], columns[:, None, :]] = patches[k, chosen].transpose(0, 2, 3, 1)
        pixels.append(canvas)
    return pixels if np.array_equal(_patches_of(pixels, position, scale, side, len(patches)), patches) else None


def _patches_of(
    pixels: Sequence[np.ndarray], position: np.ndarray, scale: np.ndarray, side: int, images: int | None = None
) -> np.ndarray:
    """Patches (K, N, 3, P, P) from what `_shared_pixels` made of them."""
    if images is None:
        images = len(pixels) // len(np.unique(scale)) if scale.ndim == 1 else len(scale)
    patches = np.empty((images, scale.shape[-1], 3, side, side), np.uint8)
    for canvas, (k, chosen, corners) in zip(pixels, _places(images, position, scale), strict=True):
        patches[k, chosen] = extract_patches(canvas, corners, side)
    return patches
