"""Explorers for JupyterLab: move a control, and see where patches fall, where a model looks, and what it scores.

Each explorer is a skin over a plain function of `vtamiq.lab.views`: `sampling_view`, `attention_view` or `score_view`
computes what is shown. A headless run shows the first state as a picture.
"""

import asyncio
import html
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_hex

from vtamiq.attention.maps import METHODS, check_method
from vtamiq.caps import CAPS, MAX_SCALES, caps_for
from vtamiq.databases.demo import PHOTOGRAPHS, Photograph
from vtamiq.images.distortions import DISTORTIONS, LEVELS, distort, find_distortion
from vtamiq.images.reading import ImageError, ImageSource, check_same_size, read_image
from vtamiq.lab.views import SHOWN_SIDE, Bar, Study, View, encode, sampling_view, shrunk
from vtamiq.model.inference import check_model
from vtamiq.model.network import VTAMIQ
from vtamiq.utils.configs import did_you_mean

log = logging.getLogger(__name__)

Controls: TypeAlias = dict[str, widgets.ValueWidget]
Images: TypeAlias = Mapping[str, ImageSource]
STYLE = Path(__file__).with_name("explorer.css")
PHOTOGRAPH_SIDE = 512  # longest side of the photographs that come with the packages: moves stay quick
PATCH_COUNTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
KEPT = 16  # newest pairs, and what the model has said of them
SETTLE = 0.02  # seconds in which further moves are awaited before an update: only the last one is computed

# --------------------------------------------------------------------------------------------------------------- explorer


class Explorer(widgets.HBox):
    """Controls at the left, four pictures and a line of numbers at the right.

    An error is said in that line, the pictures then pale; the next move that can be computed puts things right. Where an
    event loop runs, as in a notebook, moves that wait are merged: only the last is computed.

    Args:
        compute: values of the controls, by name → view.
        groups: heading → name → control.
        hint: what to say below the controls.

    Attributes:
        controls: name → control; setting `controls[name].value` is a move.
        view: what is shown, None before anything could be computed.
        error: what is wrong, None if nothing is.
    """

    def __init__(self, compute: Callable[..., View], groups: Mapping[str, Controls], hint: str = ""):
        self.controls = {name: control for group in groups.values() for name, control in group.items()}
        self.view, self.error = None, None
        self._compute, self._waiting, self._turn = compute, None, threading.RLock()
        self._line, self._titles = widgets.HTML().add_class("vtamiq-says"), [widgets.HTML() for _ in range(4)]
        self._images = [widgets.Image(format="webp", layout={"display": "none"}) for _ in range(4)]
        self._pictures = widgets.Box([widgets.VBox(panel) for panel in zip(self._titles, self._images, strict=True)])
        left = []
        for heading, group in groups.items():
            left += [widgets.HTML(_said(heading, "head")), *group.values()]
        left.append(widgets.HTML(f"<style>{STYLE.read_text()}</style>{_said(hint, 'hint')}"))
        right = [self._line, self._pictures.add_class("vtamiq-pictures")]
        boxes = {"controls": widgets.VBox(left), "shown": widgets.VBox(right)}
        super().__init__([box.add_class(f"vtamiq-{name}") for name, box in boxes.items()])
        self.add_class("vtamiq-explorer")
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.update()

    def update(self) -> None:
        """Compute and show what the controls say, now."""
        with self._turn:  # JupyterLab may bring moves in two threads; the later one must not be shown first
            try:
                self._show(self._compute(**{name: control.value for name, control in self.controls.items()}))
            except _Incomplete as missing:
                self._say(str(missing), "hint")
            except (ValueError, TypeError) as error:  # said by this package of what it was given
                self._say(str(error), "error")
            except Exception as error:
                log.exception("the explorer could not compute this state")
                self._say(f"{type(error).__name__}: {error}", "error")

    def _moved(self, change: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.update()
            return
        if self._waiting is None:
            self._line.value += _said("computing …", "busy")  # the update writes the line anew
            self._waiting = loop.create_task(self._settle())

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE)
        self._waiting = None  # before the values are read: a move from here on is one more update
        self.update()

    def _say(self, text: str, kind: str) -> None:
        self.error = text
        self._line.value = _said(text, f"line vtamiq-{kind}")
        self._pictures.add_class("vtamiq-old")

    def _show(self, view: View) -> None:
        before = self.view.panels if self.view else [None] * 4
        for title, image, panel, old in zip(self._titles, self._images, view.panels, before, strict=True):
            title.value = _said(panel.title, "title", _bar_html(panel.bar))
            if old is None or not np.array_equal(old.image, panel.image):
                picture = shrunk(panel.image, SHOWN_SIDE)
                image.value = encode(picture, "WEBP", lossless=True, method=0, quality=0)  # the quickest
                image.layout.display = None
        self.view, self.error = view, None
        self._line.value = _said(view.summary, "line")
        self._pictures.remove_class("vtamiq-old")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and for readers without its kernel text and picture of its state."""
        shown = self.view._repr_mimebundle_() if self.view else {}
        return super()._repr_mimebundle_(**kwargs) | shown | {"text/plain": self.error or self.view.summary}


class _Incomplete(ValueError):
    """Not an error: there is something still to choose."""


def _said(text: str, kind: str, more: str = "") -> str:
    return f'<div class="vtamiq-{kind}"><span>{html.escape(text)}</span>{more}</div>'


def _bar_html(bar: Bar | None) -> str:
    if bar is None:
        return ""
    stops = ", ".join(to_hex(colour) for colour in bar.colours(np.linspace(0, 1, 9)))
    low, high = (f"{value:.2g}".replace("-", "−") for value in (bar.low, bar.high))
    gradient = f'<i style="background: linear-gradient(to right, {stops})"></i>'
    return f'<span class="vtamiq-bar">{low}{gradient}{high} ({html.escape(bar.label)})</span>'


# -------------------------------------------------------------------------------------------------------------- explorers


def explore_sampling(
    images: Images | None = None, *, caps: CAPS | None = None, seed: int = 0, **picture: Any
) -> Explorer:
    """Explore where CAPS looks: image, distortion, weights of the three maps, number of patches, scales, draw.

    Args:
        images: name → reference; None takes the photographs of the demo databases, of 512 pixels at most.
        caps: to begin with; what has no control stays as it is here. None takes 512 patches.
        seed: of the distortion, and of the draw to begin with.
        picture: `photograph` (a name), `distortion` and `level` (as in `vtamiq.distort`) to begin with.

    Raises:
        ValueError: an unknown photograph, distortion or level.
    """
    caps = caps or CAPS(num_patches=512)
    pictures, pair = _pictures(images, seed, **picture)
    weights = {}
    for name in ("difference", "centre", "uniform"):
        weight = getattr(caps, name)
        weights[name] = _control(widgets.FloatSlider, name, weight, min=0, max=max(2, weight), step=0.05)
    patches = {
        "num_patches": _patch_control(caps.num_patches),
        "num_scales": _number("scales", caps.num_scales, 1, MAX_SCALES),
        "seed": _number("draw", seed, 0, 99),
    }

    def compute(photograph: str, distortion: str, level: int, seed: int, **changes: Any) -> View:
        return sampling_view(pair(photograph, distortion, level), replace(caps, **changes), seed)

    groups = {"picture": pictures, "weights of the maps": weights, "patches": patches}
    hint = "Only the ratios of the three weights count. A patch of scale s covers 2^s times its side."
    return Explorer(compute, groups, f"{hint} Small pictures have room for fewer scales.")


def explore_attention(
    model: VTAMIQ | None = None,
    images: Images | None = None,
    *,
    method: str = "rollout",
    draws: int = 4,
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
    **picture: Any,
) -> Explorer:
    """Explore where a model looks: image, distortion, method, block and head, patches and draws; with the score.

    One pass of the network serves all blocks and heads, so moving these is quick. After training the model further, make a
    new explorer: this one keeps what the model has said.

    Args:
        model: a trained VTAMIQ; None takes the one that ships with the package, and says so.
        images, picture: as in `explore_sampling`.
        method, draws, caps: to begin with, as in `vtamiq.attention_maps`.
        seed: of the distortion, and of the patches to begin with.
        trained: what the model was trained on, to be said beside every score; say so if labels were synthetic.

    Raises:
        CheckpointError, TypeError: the model is something else, or none is given and the one that ships is missing.
        ValueError: an unknown photograph, distortion, level or method.
    """
    encoder, pictures, pair = check_model(model).encoder, *_pictures(images, seed, **picture)
    patches, study = _patches(model, caps, draws, seed, trained)
    blocks = [(str(b + 1), b) for b in range(len(encoder.blocks))]
    heads = [("all", -1), *((str(h + 1), h) for h in range(encoder.blocks[-1].attn.num_heads))]
    which = {
        "method": _method_control(method),
        "block": _control(widgets.SelectionSlider, "block", len(blocks) - 1, options=blocks),
        "head": _control(widgets.SelectionSlider, "head", -1, options=heads),
    }

    def show_controls(change: Any = None) -> None:
        for name in ("block", "head"):
            which[name].disabled = which["method"].value != "attention"

    def compute(method: str, block: int, head: int, num_patches: int, draws: int, seed: int, **picture: Any) -> View:
        known = study(pair, tuple(picture.values()), num_patches, seed)
        if method != "attention":
            return known.attention_view(method, None, None, draws)
        return known.attention_view(method, block, head if head >= 0 else None, draws)

    show_controls()
    which["method"].observe(show_controls, "value")
    groups = {"picture": pictures, "map": which, "patches": patches}
    return Explorer(compute, groups, f"Block and head are for the method “attention”. {_SLOW}")


def explore_score(
    model: VTAMIQ | None = None,
    images: Images | None = None,
    *,
    method: str = "gradient",
    repeats: int = 4,
    caps: CAPS | None = None,
    seed: int = 0,
    trained: str = "",
    **picture: Any,
) -> Explorer:
    """Explore what a model scores: a distorted photograph, or two image files of one's own; with a map.

    Args and errors as for `explore_attention`; `repeats` are its draws.
    """
    of_photograph, pair = _pictures(images, seed, **picture)
    patches, study = _patches(model, caps, repeats, seed, trained)
    options = [("photograph", "photograph"), ("your files", "files")]
    switch = widgets.ToggleButtons(options=options, style={"button_width": "144px"})
    names = ("reference", "distorted")
    of_files = {name: widgets.FileUpload(accept="image/*", description=name, layout=WIDE) for name in names}

    def show_controls(change: Any = None) -> None:
        for kind, group in (("photograph", of_photograph), ("files", of_files)):
            for control in group.values():
                control.layout.display = None if switch.value == kind else "none"

    def compute(source, reference, distorted, method, num_patches, draws, seed, **picture) -> View:
        if source == "files":
            known = study(_read_uploads, _chosen(reference, distorted), num_patches, seed)
        else:
            known = study(pair, tuple(picture.values()), num_patches, seed)
        return known.score_view(method, draws)

    show_controls()
    switch.observe(show_controls, "value")
    groups = {
        "picture": {"source": switch} | of_photograph | of_files,
        "patches": patches,
        "map": {"method": _method_control(method)},
    }
    hint = f"Lower is better, 0 is a perfect copy. Files must be of one size, and 10 MB each at most. {_SLOW}"
    return Explorer(compute, groups, hint)


_SLOW = "“occlusion” and “quality” run the model once for every patch, and take their time."


def _patches(
    model: VTAMIQ | None, caps: CAPS | None, draws: int, seed: int, trained: str
) -> tuple[Controls, Callable[..., Study]]:
    """Controls of the patches that a model gets; and a function that reads a pair for a `Study` and keeps the newest."""
    caps = caps_for(check_model(model), caps)
    controls = {
        "num_patches": _patch_control(caps.num_patches),
        "draws": _number("draws", draws, 1, 16),
        "seed": _number("seed", seed, 0, 99),
    }

    @lru_cache(KEPT)
    def study(read: Callable[..., np.ndarray], arguments: tuple[Any, ...], num_patches: int, seed: int) -> Study:
        return Study(model, read(*arguments), replace(caps, num_patches=num_patches), seed, trained)

    return controls, study


# ----------------------------------------------------------------------------------------------------------------- images


def _pictures(
    images: Images | None, seed: int, photograph: str | None = None, distortion: int | str = "jpeg", level: int = 3
) -> tuple[Controls, Callable[[str, str, int], np.ndarray]]:
    """Controls for a photograph and its distortion; and a function from their values to the pair (2, H, W, 3)."""
    sources = {photo.name: photo for photo in PHOTOGRAPHS} if images is None else images
    if not sources:
        raise ValueError("images has nothing to explore; None takes the photographs of the demo databases")
    names = list(sources)
    if photograph not in (None, *names):
        raise ValueError(f"no photograph {photograph!r}{did_you_mean(photograph, names)}; there are {', '.join(names)}")
    chosen = find_distortion(distortion)
    chosen.amount(level)  # refuses unknown levels
    tags = [(known.name, known.tag) for known in DISTORTIONS.values()]
    controls = {
        "photograph": _control(widgets.Dropdown, "photograph", photograph or names[0], options=names),
        "distortion": _control(widgets.Dropdown, "distortion", chosen.tag, options=tags),
        "level": _number("level", level, LEVELS[0], LEVELS[-1]),
    }

    @lru_cache(KEPT)
    def reference(name: str) -> np.ndarray:
        source = sources[name]
        return shrunk(source.load(), PHOTOGRAPH_SIDE) if isinstance(source, Photograph) else read_image(source)

    @lru_cache(KEPT)
    def pair(name: str, tag: str, level: int) -> np.ndarray:
        return np.stack([reference(name), distort(reference(name), tag, level, seed)])

    return controls, pair


def _chosen(*uploads: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, bytes], ...]:
    """Name and content of the files of two upload buttons."""
    missing = [name for name, files in zip(("reference", "distorted image"), uploads, strict=True) if not files]
    if missing:
        raise _Incomplete(f"Choose the {' and the '.join(missing)}.")
    return tuple((files[-1]["name"], bytes(files[-1]["content"])) for files in uploads)


@lru_cache(2)
def _read_uploads(reference: tuple[str, bytes], distorted: tuple[str, bytes]) -> np.ndarray:
    pair = [read_upload(*reference), read_upload(*distorted)]
    check_same_size(reference[0], pair[0], distorted[0], pair[1])
    return np.stack(pair)


def read_upload(name: str, content: bytes | memoryview) -> np.ndarray:
    """Read the bytes of an image file as `read_image` does, (H, W, 3) uint8; `name` is what errors call it.

    Raises:
        ImageError: no image, or one that `read_image` refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"  # what a file is called elsewhere need not be a name here
        path.write_bytes(content)
        try:
            return read_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), name)) from error


# --------------------------------------------------------------------------------------------------------------- controls

WIDE = {"width": "auto"}


def _control(kind: type, name: str, value: Any, **options: Any) -> widgets.ValueWidget:
    return kind(value=value, description=name, layout=WIDE, style={"description_width": "88px"}, **options)


def _number(name: str, value: int, low: int, high: int) -> widgets.ValueWidget:
    return _control(widgets.IntSlider, name, value, min=low, max=max(high, value))


def _patch_control(count: int) -> widgets.ValueWidget:
    options = [(f"{n:,}", n) for n in sorted({*PATCH_COUNTS, count})]
    return _control(widgets.SelectionSlider, "patches", count, options=options)


def _method_control(method: str) -> widgets.ValueWidget:
    check_method(method)
    return _control(widgets.Dropdown, "method", method, options=METHODS)
