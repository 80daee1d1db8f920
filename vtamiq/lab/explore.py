"""Explorers for JupyterLab: move a control, and see where patches fall, where a model looks, and what it scores.

Each explorer is a skin over a plain function: `sampling_view`, `attention_view` and `score_view` (of `vtamiq.lab.views`)
compute all that is shown; `explore_sampling`, `explore_attention` and `explore_score` put controls beside it. A headless
run shows the first state as a picture.
"""

import asyncio
import base64
import hashlib
import html
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import UnidentifiedImageError

from vtamiq.attention.maps import METHODS
from vtamiq.caps import CAPS, MAX_SCALES
from vtamiq.databases.demo import PHOTOGRAPHS
from vtamiq.images.distortions import DISTORTIONS, LEVELS, distort, find_distortion
from vtamiq.images.reading import ImageError, ImageSource, read_image
from vtamiq.lab.views import (
    Bar,
    Kept,
    Known,
    View,
    attention_view,
    encoded,
    said_of,
    sampling_view,
    score_view,
    shown,
    shrunk,
    view_attention,
    view_score,
)
from vtamiq.model.inference import check_model
from vtamiq.model.network import VTAMIQ
from vtamiq.utils.configs import did_you_mean

__all__ = [
    "Explorer",
    "attention_view",
    "explore_attention",
    "explore_sampling",
    "explore_score",
    "read_upload",
    "sampling_view",
    "score_view",
]

log = logging.getLogger(__name__)

PANELS = 4  # in every explorer, two by two
PHOTOGRAPH_SIDE = 512  # longest side of the photographs that come with the packages: moves stay quick
PATCH_COUNTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SETTLE = 0.02  # seconds in which further moves are awaited before an update: only the last one is computed

# --------------------------------------------------------------------------------------------------------------- explorer

_LOOK = """<style>
.vtamiq-explorer .vtamiq-body { gap: 20px; flex-wrap: wrap; align-items: flex-start; }
.vtamiq-explorer .vtamiq-controls { gap: 2px; }
.vtamiq-explorer .vtamiq-pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px 16px; }
.vtamiq-explorer .vtamiq-head, .vtamiq-explorer .vtamiq-title, .vtamiq-explorer .vtamiq-line { line-height: 1.35; }
.vtamiq-explorer .vtamiq-head { font-size: 11px; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--jp-ui-font-color2, #666); margin-top: 8px; }
.vtamiq-explorer .vtamiq-title { display: flex; justify-content: space-between; align-items: center; gap: 10px;
  font-size: 12px; min-height: 20px; white-space: nowrap; color: var(--jp-ui-font-color1, #222); }
.vtamiq-explorer .vtamiq-bar { display: flex; align-items: center; gap: 5px; font-size: 11px;
  color: var(--jp-ui-font-color2, #666); }
.vtamiq-explorer .vtamiq-bar i { width: 56px; height: 8px; border-radius: 2px; }
.vtamiq-explorer .vtamiq-line { font-size: 14px; min-height: 22px; font-variant-numeric: tabular-nums;
  color: var(--jp-ui-font-color1, #222); }
.vtamiq-explorer .vtamiq-hint { font-size: 12px; color: var(--jp-ui-font-color2, #666); line-height: 1.4; }
.vtamiq-explorer .vtamiq-error { color: var(--jp-error-color0, #b71c1c); font-weight: 600; white-space: normal; }
.vtamiq-explorer .vtamiq-says { position: relative; }
.vtamiq-explorer .vtamiq-busy { position: absolute; top: 0; right: 0; padding: 0 4px; font-size: 12px;
  color: var(--jp-ui-font-color2, #666); background: var(--jp-layout-color0, #fff);
  animation: vtamiq-appear 0s 0.4s both; }
.vtamiq-explorer .vtamiq-old img { opacity: .3; }
.vtamiq-explorer img.widget-image { width: 100%; height: auto; margin: 0; border-radius: 3px; }
.vtamiq-explorer .vtamiq-pictures .widget-vbox { overflow: visible; }
.vtamiq-explorer .vtamiq-controls > .widget-hslider { margin: 2px; }
.vtamiq-explorer .vtamiq-controls .widget-label { text-align: left; }
.vtamiq-explorer .vtamiq-controls .widget-readout { min-width: 46px; }
@keyframes vtamiq-appear { from { opacity: 0; } to { opacity: 1; } }
</style>"""


class Explorer(widgets.VBox):
    """Controls at the left, four pictures and a line of numbers at the right.

    Whatever goes wrong is said in that line, the pictures then pale; the next move that can be computed puts things
    right.
    Where an event loop runs, as in a notebook, a move is computed after the moves that wait, and only the last of these.

    Args:
        compute: settings (name → value of its control) → view.
        controls: name → control.
        groups: heading → names of the controls below it.
        hint: what to say below the controls.

    Attributes:
        controls: name → control; setting `controls[name].value` is a move.
        view: what is shown, None before anything could be computed.
        error: what is wrong, None if nothing is.
        seconds: how long the last move took.
    """

    def __init__(
        self,
        compute: Callable[[dict[str, Any]], View],
        controls: Mapping[str, widgets.ValueWidget],
        groups: Mapping[str, Sequence[str]],
        hint: str = "",
    ):
        self.controls, self.view, self.error, self.seconds = dict(controls), None, None, 0.0
        self._compute, self._waiting, self._turn = compute, None, threading.RLock()
        self._line = widgets.HTML()
        self._titles = [widgets.HTML() for _ in range(PANELS)]
        self._images = [widgets.Image(format="webp", layout={"display": "none"}) for _ in range(PANELS)]
        left = []
        for heading, names in groups.items():
            left += [_text(heading, "head"), *(self.controls[name] for name in names)]
        left.append(_text(hint, "hint"))
        panels = [
            widgets.VBox(pair, layout={"min_width": "0"}) for pair in zip(self._titles, self._images, strict=True)
        ]
        self._pictures = widgets.Box(panels, layout={"width": "100%"})
        right = widgets.VBox([self._line, self._pictures], layout={"flex": "1 1 460px", "min_width": "0"})
        column = widgets.VBox(left, layout={"flex": "0 0 300px", "width": "300px"})
        body = widgets.HBox([column, right], layout={"width": "100%"})
        for widget, name in (
            (body, "body"),
            (column, "controls"),
            (self._line, "says"),
            (self._pictures, "pictures"),
        ):
            widget.add_class(f"vtamiq-{name}")
        super().__init__([widgets.HTML(_LOOK, layout={"display": "none"}), body])
        self.add_class("vtamiq-explorer")
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.update()

    def update(self) -> None:
        """Compute and show what the controls say, now."""
        with self._turn:  # JupyterLab may bring moves in two threads; the later one must not be shown first
            started = time.perf_counter()
            self._update()
            self.seconds = time.perf_counter() - started

    def _update(self) -> None:
        try:
            view = self._compute({name: control.value for name, control in self.controls.items()})
        except _Incomplete as missing:
            self._say(str(missing), "hint")
        except (ValueError, TypeError) as error:  # said by this package of what it was given
            self._say(str(error), "error")
        except Exception as error:
            log.exception("the explorer could not compute this state")
            self._say(f"{type(error).__name__}: {error}", "error")
        else:
            self._show(view)

    def _moved(self, change: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.update()
            return
        if self._waiting is None:
            self._line.value += _BUSY  # every way of saying something writes the line anew
            self._waiting = loop.create_task(self._settle())

    async def _settle(self) -> None:
        await asyncio.sleep(_SETTLE)
        self._waiting = None  # before the values are read: a move from here on is one more update
        self.update()

    def _say(self, text: str, kind: str) -> None:
        self.error = text
        self._line.value = f'<div class="vtamiq-line vtamiq-{kind}" role="alert">{html.escape(text)}</div>'
        self._pictures.add_class("vtamiq-old")

    def _show(self, view: View) -> None:
        before = self.view.panels if self.view else [None] * PANELS
        for title, image, panel, old in zip(self._titles, self._images, view.panels, before, strict=True):
            title.value = (
                f'<div class="vtamiq-title"><span>{html.escape(panel.title)}</span>{_bar_html(panel.bar)}</div>'
            )
            if old is None or not np.array_equal(old.image, panel.image):
                image.value = encoded(shown(panel.image), "WEBP")
                image.layout.display = None
        self.view, self.error = view, None
        self._line.value = f'<div class="vtamiq-line">{html.escape(view.summary)}</div>'
        self._pictures.remove_class("vtamiq-old")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and for readers without its kernel a picture of its state."""
        bundle = super()._repr_mimebundle_(**kwargs) | {"text/plain": self.error or self.view.summary}
        if self.view is not None:
            bundle["image/jpeg"] = base64.b64encode(encoded(self.view.picture(), "JPEG")).decode()
        return bundle


_BUSY = '<div class="vtamiq-line vtamiq-busy">computing …</div>'


class _Incomplete(ValueError):
    """Not an error: there is something still to choose."""


def _text(text: str, kind: str) -> widgets.HTML:
    return widgets.HTML(f'<div class="vtamiq-{kind}">{html.escape(text)}</div>')


def _bar_html(bar: Bar | None) -> str:
    if bar is None:
        return ""
    stops = ", ".join(to_hex(colour) for colour in colormaps[bar.colours](np.linspace(0, 1, 9)))
    low, high = (f"{value:.2g}".replace("-", "−") for value in (bar.low, bar.high))
    gradient = f'<i style="background: linear-gradient(to right, {stops})"></i>'
    return f'<span class="vtamiq-bar">{low}{gradient}{high} <span>({html.escape(bar.label)})</span></span>'


# -------------------------------------------------------------------------------------------------------------- explorers


def explore_sampling(
    images: Mapping[str, ImageSource] | None = None,
    *,
    photograph: str | None = None,
    distortion: int | str = "jpeg",
    level: int = 3,
    caps: CAPS | None = None,
    seed: int = 0,
) -> Explorer:
    """Explore where CAPS looks: image, distortion, weights of the three maps, number of patches, scales, draw.

    Args:
        images: name → reference; None takes the photographs of the demo databases, of 512 pixels at most.
        photograph: the one to begin with; None takes the first.
        distortion, level: to begin with, as in `vtamiq.distort`.
        caps: to begin with; what has no control stays as it is here. None takes 512 patches.
        seed: of the distortion, and of the draw to begin with.

    Raises:
        ValueError: a photograph, distortion or level that there is not.
    """
    source, caps = _Source(images, seed), caps or CAPS(num_patches=512)
    controls = source.controls(photograph, distortion, level)
    for name in ("difference", "centre", "uniform"):
        weight = getattr(caps, name)
        controls[name] = _slider(widgets.FloatSlider, name, weight, 0, max(2, weight), step=0.05, readout_format=".2f")
    controls["num_patches"] = _patch_control(caps.num_patches)
    controls["num_scales"] = _slider(widgets.IntSlider, "scales", caps.num_scales, 1, MAX_SCALES)
    controls["seed"] = _slider(widgets.IntSlider, "draw", seed, 0, max(99, seed))

    def compute(settings: dict[str, Any]) -> View:
        changes = {name: settings[name] for name in ("difference", "centre", "uniform", "num_patches", "num_scales")}
        return sampling_view(source.pair(settings), replace(caps, **changes), settings["seed"])

    groups = {
        "picture": ("photograph", "distortion", "level"),
        "weights of the maps": ("difference", "centre", "uniform"),
        "patches": ("num_patches", "num_scales", "seed"),
    }
    hint = "Only the ratios of the three weights count. A patch of scale s covers 2^s times its side; small pictures have room for fewer scales."  # noqa: E501
    return Explorer(compute, controls, groups, hint)


def explore_attention(
    model: VTAMIQ | None = None,
    images: Mapping[str, ImageSource] | None = None,
    *,
    photograph: str | None = None,
    distortion: int | str = "jpeg",
    level: int = 3,
    method: str = "rollout",
    draws: int = 4,
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
) -> Explorer:
    """Explore where a model looks: image, distortion, method, block and head, patches and draws; with the score.

    What one pass of the network gives for all blocks and heads is kept, so that moving these is quick. The weights of the
    model must not change meanwhile: after training it, make a new explorer.

    Args:
        model: a trained VTAMIQ; None takes the one that ships with the package, and says so.
        images, photograph, distortion, level: as in `explore_sampling`.
        method, draws, caps: to begin with, as in `vtamiq.attention_maps`.
        seed: of the distortion, and of the patches to begin with.
        trained: what the model was trained on, to be said beside every score; say so if labels were synthetic.

    Raises:
        CheckpointError, TypeError: the model is something else, or none is given and the one that ships is missing.
        ValueError: a photograph, distortion, level or method that there is not.
    """
    known, source, trained = Known(check_model(model)), _Source(images, seed), said_of(model, trained)
    blocks, heads = len(known.model.encoder.blocks), known.model.encoder.blocks[-1].attn.num_heads
    controls = source.controls(photograph, distortion, level) | {
        "method": _method_control(method),
        "block": _choice("block", [(str(b + 1), b) for b in range(blocks)], blocks - 1),
        "head": _choice("head", [("all", -1), *((str(h + 1), h) for h in range(heads))], -1),
        **_draw_controls(known.caps(caps), draws, seed),
    }

    def of_attention(change: Any = None) -> None:
        for name in ("block", "head"):
            controls[name].disabled = controls["method"].value != "attention"

    def compute(settings: dict[str, Any]) -> View:
        block, head = settings["block"], settings["head"] if settings["head"] >= 0 else None
        chosen = (block, head) if settings["method"] == "attention" else (None, None)
        sampler = replace(known.caps(caps), num_patches=settings["num_patches"])
        options = (settings["draws"], sampler, settings["seed"], trained)
        return view_attention(known, source.pair(settings), settings["method"], *chosen, *options)

    of_attention()
    controls["method"].observe(of_attention, "value")
    groups = {
        "picture": ("photograph", "distortion", "level"),
        "map": ("method", "block", "head"),
        "patches": ("num_patches", "draws", "seed"),
    }
    return Explorer(compute, controls, groups, f"Block and head are for the method “attention”. {_SLOW}")


def explore_score(
    model: VTAMIQ | None = None,
    images: Mapping[str, ImageSource] | None = None,
    *,
    photograph: str | None = None,
    distortion: int | str = "jpeg",
    level: int = 3,
    method: str = "gradient",
    repeats: int = 4,
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
) -> Explorer:
    """Explore what a model scores: a distorted photograph, or two image files of one's own; with a map.

    Args:
        model: a trained VTAMIQ, whose weights must not change meanwhile; None takes the one that ships with the package.
        images, photograph, distortion, level: as in `explore_sampling`.
        method, repeats, caps: to begin with, as in `score_view`.
        seed: of the distortion, and of the patches to begin with.
        trained: what the model was trained on, to be said beside every score; say so if labels were synthetic.

    Raises:
        CheckpointError, TypeError: the model is something else, or none is given and the one that ships is missing.
        ValueError: a photograph, distortion, level or method that there is not.
    """
    known, source, trained = Known(check_model(model)), _Source(images, seed), said_of(model, trained)
    kinds = [("photograph", "photograph"), ("your files", "files")]
    switch = widgets.ToggleButtons(options=kinds, value="photograph", style={"button_width": "144px"})
    of_photograph = source.controls(photograph, distortion, level)
    files = {name: _upload_control(name) for name in ("reference", "distorted")}
    controls = {
        "source": switch,
        **of_photograph,
        **files,
        "method": _method_control(method),
        **_draw_controls(known.caps(caps), repeats, seed),
    }

    def of_source(change: Any = None) -> None:
        for kind, group in (("photograph", of_photograph), ("files", files)):
            for control in group.values():
                control.layout.display = None if switch.value == kind else "none"

    def compute(settings: dict[str, Any]) -> View:
        uploaded = settings["source"] == "files"
        pair = source.uploads(*(settings[name] for name in files)) if uploaded else source.pair(settings)
        sampler = replace(known.caps(caps), num_patches=settings["num_patches"])
        return view_score(known, pair, settings["method"], settings["draws"], sampler, settings["seed"], trained)

    of_source()
    switch.observe(of_source, "value")
    groups = {
        "picture": ("source", *of_photograph, *files),
        "patches": ("num_patches", "draws", "seed"),
        "map": ("method",),
    }
    hint = f"Lower is better, 0 is a perfect copy. Files must be of one size, and 10 MB each at most. {_SLOW}"
    return Explorer(compute, controls, groups, hint)


_SLOW = "“occlusion” and “quality” run the model once for every patch, and take their time."


def read_upload(name: str, content: bytes | memoryview) -> np.ndarray:
    """Read the bytes of an image file, (H, W, 3) uint8, with all that `read_image` checks of a file.

    Args:
        name: what errors call it.

    Raises:
        ImageError: no image, or one that `read_image` refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"  # what a file is called elsewhere need not be a name here
        path.write_bytes(content)
        try:
            return read_image(path)
        except ImageError as error:
            if isinstance(error.__cause__, UnidentifiedImageError):
                raise ImageError(f"{name} is no image that can be read here: try PNG, JPEG, TIFF or WebP") from error
            raise ImageError(str(error).replace(str(path), name)) from error


class _Source:
    """Where the two images of an explorer come from; the newest ones are kept."""

    def __init__(self, images: Mapping[str, ImageSource] | None, seed: int):
        if images is not None and not images:
            raise ValueError("images has nothing to explore; None takes the photographs of the demo databases")
        self._given, self._seed, self._kept = images, seed, Kept(16)

    def controls(self, photograph: str | None, distortion: int | str, level: int) -> dict[str, widgets.ValueWidget]:
        names = [photo.name for photo in PHOTOGRAPHS] if self._given is None else list(self._given)
        photograph = names[0] if photograph is None else photograph
        if photograph not in names:
            hint = did_you_mean(photograph, names)
            raise ValueError(f"no photograph {photograph!r}{hint}; there are {', '.join(names)}")
        chosen = find_distortion(distortion)
        chosen.amount(level)  # refuses levels that there are not
        tags = [(known.name, known.tag) for known in DISTORTIONS.values()]
        return {
            "photograph": _choice("photograph", names, photograph, widgets.Dropdown),
            "distortion": _choice("distortion", tags, chosen.tag, widgets.Dropdown),
            "level": _slider(widgets.IntSlider, "level", level, LEVELS[0], LEVELS[-1]),
        }

    def pair(self, settings: Mapping[str, Any]) -> np.ndarray:
        """Reference and distorted image, (2, H, W, 3) uint8."""
        name, tag, level = (settings[key] for key in ("photograph", "distortion", "level"))
        reference = self._kept(name, lambda: self._read(name))
        return self._kept((name, tag, level), lambda: np.stack([reference, distort(reference, tag, level, self._seed)]))

    def uploads(self, *uploads: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Likewise, of the values of two upload buttons."""
        missing = [name for name, files in zip(("reference", "distorted image"), uploads, strict=True) if not files]
        if missing:
            raise _Incomplete(f"Choose the {' and the '.join(missing)}.")
        (reference, of_reference), (distorted, of_distorted) = (self._uploaded(files[-1]) for files in uploads)
        if of_reference.shape != of_distorted.shape:
            sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in (of_reference, of_distorted)]
            raise ImageError(
                f"images differ in size: {reference} is {sizes[0]} and {distorted} is {sizes[1]} (width x height); crop or "
                "resize them to one size first"
            )
        return np.stack([of_reference, of_distorted])

    def _read(self, name: str) -> np.ndarray:
        if self._given is not None:
            return read_image(self._given[name])
        (photo,) = (photo for photo in PHOTOGRAPHS if photo.name == name)
        return shrunk(photo.load(), PHOTOGRAPH_SIDE)

    def _uploaded(self, file: Mapping[str, Any]) -> tuple[str, np.ndarray]:
        name, content = file["name"], bytes(file["content"])
        return name, self._kept((name, hashlib.blake2b(content).digest()), lambda: read_upload(name, content))


_WIDE = {"width": "auto"}
_NAMED = {"description_width": "88px"}


def _slider(kind: type, name: str, value: float, low: float, high: float, **options: Any) -> widgets.ValueWidget:
    return kind(value, min=low, max=high, description=name, layout=_WIDE, style=_NAMED, **options)


def _choice(
    name: str, options: Sequence[Any], value: Any, kind: type = widgets.SelectionSlider
) -> widgets.SelectionSlider | widgets.Dropdown:
    return kind(options=options, value=value, description=name, layout=_WIDE, style=_NAMED)


def _method_control(method: str) -> widgets.Dropdown:
    if method not in METHODS:
        raise ValueError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    return _choice("method", METHODS, method, widgets.Dropdown)


def _patch_control(count: int) -> widgets.SelectionSlider:
    return _choice("patches", [(f"{n:,}", n) for n in sorted({*PATCH_COUNTS, count})], count)


def _draw_controls(caps: CAPS, draws: int, seed: int) -> dict[str, widgets.ValueWidget]:
    return {
        "num_patches": _patch_control(caps.num_patches),
        "draws": _slider(widgets.IntSlider, "draws", draws, 1, max(16, draws)),
        "seed": _slider(widgets.IntSlider, "seed", seed, 0, max(99, seed)),
    }


def _upload_control(name: str) -> widgets.FileUpload:
    upload = widgets.FileUpload(accept="image/*", description=name, layout=_WIDE)

    def named(change: Any) -> None:
        upload.description = f"{name}: {upload.value[-1]['name']}" if upload.value else name

    upload.observe(named, "value")
    return upload
