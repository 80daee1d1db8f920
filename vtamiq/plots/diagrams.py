"""Two diagrams of the network, drawn from a model as it is, on a sheet measured in inches; boxes fit their text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Line
from torch import nn

from vtamiq.model.network import VTAMIQ, Adapter
from vtamiq.plots.style import PAGE, new_figure, styled, text_width, tile

TITLE_SIZE, DETAIL_SIZE, LINE = 7.5, 7.0, 1.25  # points, points, line height in font sizes
INK = "#333333"
# Inches: how far a copy peeps out, the shortest arrow, the diameter of + and ×, the width of an image
COPY, GAP, OPERATOR, PICTURE = 0.03, 0.12, 0.17, 0.74
TABLE_LEFT, GRID_SIDE = 0.88, 0.56  # inches, of the position table
KINDS = {  # fill and edge, one meaning per colour throughout both diagrams
    "plain": ("#F2F2F2", "#777777"),
    "patch": ("#D5EDE5", "#009E73"),
    "linear": ("#D9E8F3", "#0072B2"),
    "attention": ("#FCEBCB", "#C98500"),
    "token": ("#FADFD0", "#D55E00"),
    "learned": ("#F4E3ED", "#B0568B"),
    "operator": ("#FFFFFF", INK),
    "panel": ("#FAFAFA", "#BBBBBB"),
}


def _look(kind: str) -> dict[str, Any]:
    fill, edge = KINDS[kind]
    return {"facecolor": fill, "edgecolor": edge, "linewidth": 0.8, "zorder": 2}


@dataclass(frozen=True)
class _Part:
    """What a box says: a title and lines of detail below it; one box stands for `copies` in a row."""

    title: str
    detail: str = ""
    kind: str = "linear"
    copies: int = 1

    @property
    def lines(self) -> list[tuple[str, float]]:
        """Lines of text with their size in points."""
        titles = [(line, TITLE_SIZE) for line in self.title.splitlines()]
        return titles + [(line, DETAIL_SIZE) for line in self.detail.splitlines()]

    @property
    def width(self) -> float:
        if self.kind == "operator":
            return OPERATOR
        return max(text_width(line, size) for line, size in self.lines) + 0.12

    @property
    def height(self) -> float:
        return OPERATOR if self.kind == "operator" else sum(size for _, size in self.lines) * LINE / 72 + 0.1

    @property
    def span(self) -> float:
        """Width with the copies that peep out behind."""
        return self.width + COPY * (min(self.copies, 3) - 1)


PLUS, TIMES, MINUS = (_Part(sign, kind="operator") for sign in "+×−")


@dataclass(frozen=True)
class _Box:
    """Where something was drawn, in inches: its centre and size."""

    x: float
    y: float
    width: float
    height: float

    left = property(lambda self: (self.x - self.width / 2, self.y))
    right = property(lambda self: (self.x + self.width / 2, self.y))
    top = property(lambda self: (self.x, self.y + self.height / 2))
    bottom = property(lambda self: (self.x, self.y - self.height / 2))
    corner = property(lambda self: (self.left[0], self.bottom[1]))  # lower left, as Matplotlib wants it


class _Sheet:
    def __init__(self, width: float, height: float):
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine("none")
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()
        self.ax.set_autoscale_on(False)
        self.width, self.height = width, height

    def text(self, x: float, y: float, text: str | _Part, **options: Any) -> None:
        # Each line is set on its own baseline, so that boxes side by side have theirs level.
        part = _Part("", text) if isinstance(text, str) else text
        top = y + sum(size for _, size in part.lines) * LINE / 144
        for line, size in part.lines:
            top -= size * LINE / 72
            look = {"size": size, "color": INK if size == DETAIL_SIZE else "black", "ha": "center", "zorder": 4}
            self.ax.text(x, top + 0.28 * size / 72, line, **look | options)

    def box(self, x: float, y: float, part: _Part, width: float | None = None, height: float | None = None) -> _Box:
        box = _Box(x, y, width or part.width, height or part.height)
        if part.kind == "operator":
            self.ax.add_patch(Circle((x, y), box.width / 2, **_look(part.kind)))
            self.ax.text(x, y - 0.002, part.title, size=8.5, ha="center", va="center_baseline", zorder=4)
            return box
        for k in reversed(range(min(part.copies, 3))):
            self._rounded(_Box(x + COPY * k, y - COPY * k, box.width, box.height), **_look(part.kind))
        self.text(x, y, part)
        return box

    def panel(self, left: float, bottom: float, width: float, height: float, title: str = "") -> _Box:
        box = _Box(left + width / 2, bottom + height / 2, width, height)
        self._rounded(box, **_look("panel") | {"linewidth": 0.6, "zorder": 0})
        self.text(left + 0.07, bottom + height - 0.12, _Part(title), ha="left", weight="bold")
        return box

    def _rounded(self, box: _Box, **look: Any) -> None:
        shape = "round,pad=0,rounding_size=0.04"
        self.ax.add_patch(FancyBboxPatch(box.corner, box.width, box.height, boxstyle=shape, **look))

    def cells(self, box: _Box, rows: int, columns: int, kind: str, spacing: float = 0.0) -> None:
        """A box divided into rows × columns cells: a feature vector, a row of tokens."""
        width, height = box.width / columns, box.height / rows
        for k in range(rows * columns):
            corner = box.corner[0] + k % columns * width + spacing / 2, box.corner[1] + k // columns * height
            self.ax.add_patch(Rectangle(corner, width - spacing, height, **_look(kind)))

    def arrow(self, *points: tuple[float, float], head: bool = True, **options: Any) -> None:
        """A line through the points, with its head at the last one."""
        look = {"arrowstyle": "-|>,head_length=2.6,head_width=1.4" if head else "-", "mutation_scale": 1} | options
        look |= {"color": INK, "linewidth": 0.8, "joinstyle": "miter", "zorder": 1.5}
        self.ax.add_patch(FancyArrowPatch(path=Line(points), **look))

    def picture(self, box: _Box, image: np.ndarray) -> None:
        extent = (box.left[0], box.right[0], box.bottom[1], box.top[1])
        self.ax.imshow(image, extent=extent, aspect="auto", zorder=2)
        self.ax.add_patch(Rectangle(box.corner, box.width, box.height, fill=False, linewidth=0.6, zorder=3))

    def join(self, *boxes: _Box) -> None:
        """Arrows from each box to the next."""
        for start, end in pairwise(boxes):
            self.arrow(start.right, end.left)

    def chain(self, left: float, right: float, y: float, parts: Sequence[_Part], ends: bool = True) -> list[_Box]:
        """Parts from left to right with arrows between them, into the first and, if `ends`, out of the last."""
        centres = _spread([part.span for part in parts], left, right)
        boxes = [self.box(x - (part.span - part.width) / 2, y, part) for x, part in zip(centres, parts, strict=True)]
        self.join(_Box(left, y, 0, 0), *boxes, *([_Box(right, y, 0, 0)] if ends else []))
        return boxes

    def skip(self, start: float, end: _Box, y: float) -> None:
        """A residual connection: from the line at x = start, along the height y, into the circle `end`."""
        self.arrow((start, end.y), (start, y), (end.x, y), end.top if y > end.y else end.bottom)


def _spread(widths: Sequence[float], left: float, right: float) -> list[float]:
    """Centres of boxes between left and right, with equal gaps before, between and after them."""
    gap = (right - left - sum(widths)) / (len(widths) + 1)
    starts = left + gap * np.arange(1, len(widths) + 1) + np.cumsum([0, *widths[:-1]])
    return (starts + np.array(widths) / 2).tolist()


def _chain_width(widths: Sequence[float]) -> float:
    """The least width for `_spread`, with gaps long enough for an arrow."""
    return sum(widths) + GAP * (len(widths) + 1)


def _between(a: _Box, b: _Box) -> float:
    return (a.right[0] + b.left[0]) / 2


def _sketch() -> np.ndarray:
    """A landscape and its coarse version, (2, 96, 128, 3) uint8: stands for the image pair."""
    y, x = np.mgrid[0:96, 0:128] / 96.0
    picture = np.stack([0.45 + 0.4 * y, 0.65 + 0.25 * y, 0.95 - 0.1 * y], axis=-1)
    picture[np.hypot(y - 0.25, x - 1.0) < 0.11] = (1.0, 0.85, 0.35)
    for height, colour in ((0.5, (0.45, 0.55, 0.6)), (0.66, (0.3, 0.5, 0.35)), (0.84, (0.2, 0.36, 0.24))):
        picture[y > height + 0.09 * np.sin(5 * x + 9 * height) + 0.03 * np.sin(17 * x)] = colour
    coarse = picture[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)
    return (np.stack([picture, coarse]) * 255).astype(np.uint8)


def _cut_patches(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Nine patches as one picture of 3 × 3 tiles, their top left corners (9, 2) and their side in pixels."""
    side = image.shape[0] // 7
    thirds = np.stack(np.divmod(np.arange(9), 3), axis=1) + np.random.default_rng(3).uniform(0.1, 0.9, (9, 2))
    top_left = (thirds / 3 * (np.array(image.shape[:2]) - side)).astype(int)
    patches = np.stack([image[y : y + side, x : x + side] for y, x in top_left])
    return tile(patches.reshape(3, 3, side, side, 3), side // 3), top_left, side


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


@styled
def vtamiq_diagram(model: VTAMIQ) -> Figure:
    """Draw the network with its own numbers: image pair → patches → encoder → difference → DiffNet → quality head → q."""
    panels, parts = _diffnet_panels(model), _main_parts(model)
    widths = {"images": PICTURE} | {name: part.width for name, part in parts.items()}
    panel_widths = [_chain_width([part.span for part in chain]) for chain in panels.values()]
    width = max(PAGE, _chain_width(list(widths.values())), sum(panel_widths) + 0.1 * (len(panels) + 1))
    base = 1.42 if panels else 0.0
    sheet = _Sheet(width, base + 1.86)
    x = dict(zip(widths, _spread(list(widths.values()), 0, width), strict=True))
    tokens = _draw_streams(sheet, parts, x, base + 0.93)
    line = _draw_decoder(sheet, model, parts, x, tokens)
    if panels:
        _draw_diffnet(sheet, panels, panel_widths, line["diffnet"])
    return sheet.figure


def _main_parts(model: VTAMIQ) -> dict[str, _Part]:
    """What stands in the main line from left to right."""
    encoder, head = model.encoder, model.head
    P, width = encoder.patch_size, encoder.class_token.shape[-1]
    scales = model.config.num_scales
    lines = ["(shared)", _count(len(encoder.blocks), "block"), f"width {width}"]
    lines += [_count(encoder.blocks[0].attn.num_heads, "head"), _count(model.config.num_registers, "register")]
    parts = {
        "caps": _Part("CAPS", f"same\nplaces\nin both,\n{_count(scales, 'scale')}", "patch"),
        "patches": _Part("", f"N × 3 × {P} × {P}\nat (u, v{', s' if scales > 1 else ''})"),
        "encoder": _Part("ViT encoder", "\n".join(lines)),
        "tokens": _Part("", str(width)),
        "difference": MINUS,
    }
    if model.difference_scale is not None:
        parts["scale"] = _Part("scale γ", str(model.difference_scale.numel()), "plain")
    if model.difference_gate is not None:
        parts["gate"] = _Part("difference\ngate", "of the\nreference", "attention")
    if model.config.num_groups:
        groups = model.diffnet.groups
        blocks = _count(len(groups[0].blocks), "block")
        parts["diffnet"] = _Part("DiffNet", f"{_count(len(groups), 'group')} ×\n{blocks}", "attention")
    sizes = f"{width} → {head.hidden.out_features} → {head.output.out_features}"
    dropout = f"\ndropout {head.dropout.p:g}" if head.dropout.p else ""
    parts["head"] = _Part("quality head", sizes + dropout, "token")
    if model.config.zero_anchor:
        parts["anchor"] = _Part("− q(0)", "zero\nanchor", "plain")
    return parts | {"q": _Part("", "better")}


def _draw_streams(sheet: _Sheet, parts: Mapping[str, _Part], x: Mapping[str, float], middle: float) -> list[_Box]:
    """From the two images to their class tokens, whose boxes it returns."""
    caps = sheet.box(x["caps"], middle, parts["caps"], height=1.5)
    encoder = sheet.box(x["encoder"], middle, parts["encoder"], height=1.5)
    sheet.text(x["patches"], middle, parts["patches"])
    tokens = []
    for image, name, sign in zip(_sketch(), ("reference", "distorted"), (1, -1), strict=True):
        y = middle + sign * 0.45
        inches = PICTURE / image.shape[1]  # per pixel
        picture = _Box(x["images"], y, PICTURE, image.shape[0] * inches)
        sheet.picture(picture, image)
        sheet.text(picture.x, y + sign * (picture.height / 2 + 0.09), name)
        tiles, top_left, pixels = _cut_patches(image)
        for row, column in top_left * inches:
            corner, side = (picture.left[0] + column, picture.top[1] - row - pixels * inches), pixels * inches
            sheet.ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.6, zorder=3))
        stack = _Box(x["patches"], y, 0.46, 0.46)
        sheet.picture(stack, tiles)
        tokens.append(_Box(x["tokens"], y, 0.13, 0.5))
        sheet.cells(tokens[-1], 7, 1, "token")
        sheet.join(picture, replace(caps, y=y), stack, replace(encoder, y=y), tokens[-1])
    sheet.text(x["tokens"], tokens[0].top[1] + 0.12, "class tokens")
    sheet.text(x["tokens"], tokens[1].bottom[1] - 0.09, parts["tokens"])
    return tokens


def _draw_decoder(
    sheet: _Sheet, model: VTAMIQ, parts: Mapping[str, _Part], x: Mapping[str, float], tokens: Sequence[_Box]
) -> dict[str, _Box]:
    """From the two class tokens to q; returns the boxes of this part of the main line."""
    middle = (tokens[0].y + tokens[1].y) / 2
    names = list(parts)
    line = {name: sheet.box(x[name], middle, parts[name]) for name in names[names.index("difference") : -1]}
    difference = line["difference"]
    for token, end, sign, side in zip(tokens, (difference.top, difference.bottom), "+−", (1, -1), strict=True):
        sheet.arrow(token.right, (difference.x, token.y), end)
        sheet.text(difference.x + 0.11, middle + side * 0.17, sign)
    sheet.join(*line.values(), _Box(x["q"], middle, 0.2, 0))
    sheet.ax.text(x["q"], middle, "q", size=11, weight="bold", style="italic", ha="center", va="center_baseline")
    sheet.text(x["q"], middle - 0.27, f"{'lower' if model.lower_better else 'higher'} is\nbetter")
    return line


def _diffnet_panels(model: VTAMIQ) -> dict[str, list[_Part]]:
    """Titles and chains of DiffNet, its residual group, and the channel-attention block in that; or nothing."""
    if not model.config.num_groups:
        return {}
    groups = model.diffnet.groups
    group, block = groups[0], groups[0].blocks[0]
    squeeze, D = block.attention.squeeze, model.diffnet.linear.out_features
    linear = _Part("linear", str(D))
    drop = [_Part("drop path", f"{group.drop_path.drop_prob:g}", "plain")] if group.drop_path.drop_prob else []
    sizes = f"{D} → {squeeze.out_features} → {D}\n{type(block.attention.activation).__name__}, sigmoid"
    attention = _Part("channel attention", sizes, "attention")
    groups = _Part("residual\ngroup", f"× {len(groups)}", "attention", len(groups))
    blocks = _Part("attention\nblock", f"× {len(group.blocks)}", "attention", len(group.blocks))
    return {
        "DiffNet": [groups, linear],
        "residual group": [blocks, linear, *drop, PLUS],
        "channel-attention block": [_Part("PReLU", kind="plain"), linear, attention, TIMES, PLUS],
    }


def _draw_diffnet(sheet: _Sheet, panels: Mapping[str, list[_Part]], widths: Sequence[float], diffnet: _Box) -> None:
    """DiffNet from its outside in, below its box in the main line."""
    margin, y = 0.1, 0.6
    spare = (sheet.width - margin * (len(panels) + 1) - sum(widths)) / len(panels)
    left = margin
    for (title, chain), width in zip(panels.items(), widths, strict=True):
        right = left + width + spare
        sheet.panel(left, 0.06, right - left, 1.2, title)
        boxes = sheet.chain(left, right, y, chain)
        if title != "DiffNet":
            sheet.skip((left + boxes[0].left[0]) / 2, boxes[-1], 0.17)
        if TIMES in chain:  # what comes out of the linear is multiplied by its own attention
            sheet.skip(_between(boxes[1], boxes[2]), boxes[3], 0.95)
        left = right + margin
    sheet.arrow(diffnet.bottom, (diffnet.x, 1.35), head=False, linestyle=":")
    sheet.arrow((margin, 1.35), (sheet.width - margin, 1.35), head=False, linestyle=":")


@styled
def vit_diagram(model: VTAMIQ) -> Figure:
    """Draw the patch encoder: how patches become tokens, what a block does, and where the class token comes out."""
    encoder, block = model.encoder, model.encoder.blocks[0]
    attention = _Part("self-attention", f"{_count(block.attn.num_heads, 'head')} × {block.attn.head_dim}", "attention")
    sizes = f"{block.mlp.fc1.in_features} → {block.mlp.fc1.out_features} → {block.mlp.fc2.out_features}"
    mlp = _Part("MLP", f"{sizes}\n{type(block.mlp.act).__name__}")
    attention = _branch(block.norm1, attention, block.ls1, "γ₁")
    mlp = _branch(block.norm2, mlp, block.ls2, "γ₂")
    final = _Part(_norm(encoder.norm), kind="plain")
    needed = _chain_width([part.width for part in (*attention, *mlp, final)]) + 0.9
    width = max(PAGE, needed, _embedding_width(encoder))
    sheet = _Sheet(width, 3.12)
    tokens = _draw_embedding(sheet, encoder)

    y, left, right = 0.47, 0.1, width - final.width - 0.96
    sheet.panel(left, 0.06, right - left, 1.2, f"transformer block × {len(encoder.blocks)}")
    boxes = sheet.chain(left, right, y, [*attention, *mlp], ends=False)
    first, last = boxes[: len(attention)], boxes[len(attention) :]
    sheet.skip((left + first[0].left[0]) / 2, first[-1], 0.9)
    sheet.skip(_between(first[-1], last[0]), last[-1], 0.9)
    sheet.arrow(tokens.bottom, (tokens.x, 1.37), (0.04, 1.37), (0.04, y), (left, y), head=False)

    norm = sheet.box(right + GAP + final.width / 2, y, final)
    out = _Box(width - 0.42, y, 0.13, 0.5)
    sheet.cells(out, 7, 1, "token")
    sheet.join(boxes[-1], norm, out)
    sheet.text(out.x, out.top[1] + 0.15, "class token\nof the image")
    sheet.text(out.x, out.bottom[1] - 0.09, str(encoder.class_token.shape[-1]))
    return sheet.figure


def _branch(norm: nn.Module, main: _Part, after: nn.Module, gamma: str) -> list[_Part]:
    """One residual branch of a transformer block, from its norm to its sum."""
    adapters = [m for m in after.modules() if isinstance(m, Adapter)]
    scales = [m for m in after.modules() if hasattr(m, "gamma")]
    return [
        _Part(_norm(norm), kind="plain"),
        main,
        *(_Part("adapter", f"{m.down.in_features} → {m.down.out_features}\n→ {m.up.out_features}") for m in adapters),
        *(_Part(f"scale {gamma}", str(m.gamma.numel()), "plain") for m in scales),
        PLUS,
    ]


def _norm(module: nn.Module) -> str:
    name = type(module).__name__
    return {"LayerNorm": "LN", "RmsNorm": "RMS", "Identity": "no norm"}.get(name, name)


def _tables(encoder: nn.Module) -> dict[str, _Part]:
    rows, D = encoder.position_table.shape
    first = "row 0: class token" if encoder.class_token_position else "row 0: first cell"
    detail = f"{rows} × {D}\n{encoder.grid} × {encoder.grid} cells\n{first}"
    tables = {"(u, v)": _Part("position table", detail, "learned")}
    if encoder.scale_table is not None:
        tables["s"] = _Part("scale table", f"{len(encoder.scale_table)} × {D}", "learned")
    return tables


def _token_groups(encoder: nn.Module) -> list[tuple[str, str, int, float]]:
    """Kind, name and number drawn of the tokens that enter the first block, and the inches that they take."""
    registers = 0 if encoder.registers is None else encoder.registers.shape[1]
    groups = [("token", "class token", 1), ("learned", _count(registers, "register"), min(registers, 8))]
    groups = [group for group in groups if group[2]] + [("patch", "N patches", 7)]
    return [(kind, name, n, max(0.13 * n, text_width(name, DETAIL_SIZE))) for kind, name, n in groups]


def _embedding_width(encoder: nn.Module) -> float:
    tables = sum(part.width + 0.72 for part in _tables(encoder).values())
    return TABLE_LEFT + GRID_SIDE + tables + _chain_width([width for *_, width in _token_groups(encoder)]) + 0.2


def _draw_embedding(sheet: _Sheet, encoder: nn.Module) -> _Box:
    """Upper half: patches, their projection, position and scale looked up in tables; returns the box of tokens."""
    P, y, below = encoder.patch_size, 2.66, 1.86
    stack = _Box(0.47, y, 0.46, 0.46)
    sheet.picture(stack, _cut_patches(_sketch()[0])[0])
    sheet.text(stack.x, stack.top[1] + 0.09, f"N × 3 × {P} × {P}")
    start, right = stack, TABLE_LEFT
    for key, part in _tables(encoder).items():
        position = key == "(u, v)"
        width = part.width + (GRID_SIDE + 0.09 if position else 0)
        left = right if position else right + 0.3
        table = sheet.box(left + width / 2, below, _Part("", kind="learned"), width, GRID_SIDE + 0.14)
        sheet.text(table.right[0] - part.width / 2, below, part)
        sheet.text(table.left[0] - 0.2 - text_width(key, DETAIL_SIZE) / 2, below, key)
        sheet.arrow((table.left[0] - 0.17, below), table.left)
        if position:
            _draw_grid(sheet, _Box(left + 0.07 + GRID_SIDE / 2, below, GRID_SIDE, GRID_SIDE), encoder.grid)
            sizes = f"{encoder.patch_projection.in_features} → {encoder.patch_projection.out_features}"
            box = sheet.box(table.x, y, _Part("patch projection", sizes))
            sheet.arrow(start.right, box.left)
            start = box
        plus = sheet.box(table.right[0] + 0.24, y, PLUS)
        sheet.arrow(table.right, (plus.x, below), plus.bottom)
        sheet.arrow(start.right, plus.left)
        start, right = plus, plus.right[0]
    tokens = _draw_tokens(sheet, encoder, right + 0.26)
    sheet.arrow(start.right, (tokens.left[0], y))
    return tokens


def _draw_grid(sheet: _Sheet, box: _Box, grid: int) -> None:
    """The cells of the position table, one of them looked up."""
    row, column = grid // 2, grid * 2 // 3
    cells = np.zeros((grid, grid))
    cells[row, column] = 1
    x, y = (start + np.arange(grid + 1) * box.width / grid for start in box.corner)
    look = {"edgecolors": KINDS["learned"][1], "linewidth": 0.25, "antialiased": True, "zorder": 3}
    sheet.ax.pcolormesh(x, y, cells, cmap=ListedColormap(["white", KINDS["patch"][1]]), **look)
    across, up = x[column : column + 2].mean(), y[row : row + 2].mean()
    sheet.ax.plot([x[0], across, across], [up, up, y[-1]], color=KINDS["patch"][1], linewidth=0.9, zorder=4)


def _draw_tokens(sheet: _Sheet, encoder: nn.Module, left: float) -> _Box:
    frame = sheet.panel(left, 1.5, sheet.width - 0.1 - left, 1.55)
    groups, y = _token_groups(encoder), 2.52
    centres = _spread([width for *_, width in groups], left, frame.right[0])
    for x, (kind, name, number, _) in zip(centres, groups, strict=True):
        sheet.cells(_Box(x, y, 0.13 * number, 0.46), 1, number, kind, spacing=0.02)
        sheet.text(x, y + 0.35, name)
        if kind == "token" and encoder.class_token_position:
            sheet.text(x, y - 0.33, "+ row 0")
    sheet.text(centres[-1] + 0.13 * 3.5 + 0.09, y, "…")
    registers = "" if encoder.registers is None else f"{encoder.registers.shape[1]} + "
    note = f"T = 1 + {registers}N tokens of width {encoder.class_token.shape[-1]}"
    if not isinstance(encoder.norm_pre, nn.Identity):
        note += f"\nthen {_norm(encoder.norm_pre)}"
    sheet.text(frame.x, 1.86, note)
    return frame
