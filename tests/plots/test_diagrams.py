"""Diagrams say what the model has, and their texts, boxes and arrows keep clear of each other."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.plots.diagrams import vit_diagram, vtamiq_diagram

TINY = VTAMIQConfig(
    backbone="vit_tiny_patch16_384", image_size=64, width=48, num_heads=2, num_blocks=2, num_registers=3,
    num_groups=2, blocks_per_group=3, reduction=4, zero_anchor=True,
)  # fmt: skip
CONFIGS = {
    "tiny": TINY,
    "everything": replace(
        TINY, num_scales=3, adapters=True, difference_gate=True, num_registers=12, image_size=160,
    ),
    "nothing": replace(
        TINY, num_groups=0, num_registers=0, difference_scale=False, layer_scale=False, head_dropout=0.0,
        zero_anchor=False, num_blocks=1,
    ),
    "2021": VTAMIQConfig.paper_2021(
        backbone="vit_tiny_patch16_384", image_size=64, width=48, num_heads=3, num_blocks=1, difference_gate=True,
        blocks_per_group=1,
    ),
    "no scale, gate": replace(TINY, difference_scale=False, difference_gate=True, decoder_drop_path=0.0),
}  # fmt: skip
DIAGRAMS = {"vtamiq_diagram": vtamiq_diagram, "vit_diagram": vit_diagram}


@pytest.fixture(scope="module")
def models():
    return {name: VTAMIQ(config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def diagrams(models):
    """Both diagrams of every model, drawn once."""
    figures = {(kind, name): draw(model) for name, model in models.items() for kind, draw in DIAGRAMS.items()}
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


def joined(figure: Figure) -> str:
    """All texts of a figure, one a line."""
    return "\n".join(t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible())


def boxes_of(figure: Figure) -> list[tuple[float, float, float, float]]:
    """Of all texts, in inches: left, bottom, right, top of the ink."""
    return [t.get_window_extent().extents / figure.dpi for t in figure.findobj(Text) if t.get_text()]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("draw", DIAGRAMS)
class TestDiagramLayout:
    def test_no_text_touches_another_or_the_border(self, draw, name, diagrams):
        figure = diagrams[draw, name]
        boxes = np.array(boxes_of(figure))
        width, height = figure.get_size_inches()
        assert (boxes[:, :2] >= 0.01).all()
        assert (boxes[:, 2:] <= (width - 0.01, height - 0.01)).all()
        overlap = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
            boxes[:, None, :2], boxes[None, :, :2]
        )
        touching = np.argwhere(np.triu((overlap > (0.0, 0.025)).all(axis=-1), k=1))  # line boxes may share a hair
        assert touching.tolist() == []
        assert min(text.get_size() for text in figure.findobj(Text)) >= 7

    def test_text_keeps_within_its_box(self, draw, name, diagrams):
        figure = diagrams[draw, name]
        frames = [patch.get_bbox().extents for patch in figure.findobj(FancyBboxPatch) if patch.get_zorder() > 0]
        for left, bottom, right, top in boxes_of(figure):
            x, y = (left + right) / 2, (bottom + top) / 2
            around = [
                f for f in frames if f[0] < x < f[2] and f[1] < y < f[3]
            ]  # a box, or the copies behind it as well
            fits = [left > f[0] and right < f[2] and bottom > f[1] and top < f[3] for f in around]
            assert not around or any(fits)

    def test_boxes_do_not_overlap(self, draw, name, diagrams):
        figure = diagrams[draw, name]
        kinds = [patch for patch in figure.findobj(FancyBboxPatch) if patch.get_zorder() > 0]  # panels lie below
        frames = np.unique([patch.get_bbox().extents for patch in kinds], axis=0)
        for a, b in itertools.combinations(frames, 2):
            overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            copies = np.allclose(a[2:] - a[:2], b[2:] - b[:2]) and np.abs(a - b).max() < 0.07
            assert copies or not (overlap > 0).all()

    def test_arrows_end_at_the_edge_of_something(self, draw, name, diagrams):
        figure = diagrams[draw, name]
        (ax,) = figure.axes
        edges = [patch.get_bbox().extents for patch in ax.patches if isinstance(patch, FancyBboxPatch | Rectangle)]
        edges = np.array(edges)
        circles = np.array([(*patch.center, patch.radius) for patch in ax.patches if isinstance(patch, Circle)])
        labels = np.array([text.get_position() for text in ax.texts if text.get_text() == "q"])
        heads = [
            a for a in ax.patches if isinstance(a, FancyArrowPatch) and "FilledB" in type(a.get_arrowstyle()).__name__
        ]
        assert len(heads) >= 9
        for arrow in heads:
            tip = arrow._path_original.vertices[-1]
            inside = [((edges[:, :2] - e < tip) & (tip < edges[:, 2:] + e)).all(axis=1) for e in (0.005, -0.005)]
            on_edge = (inside[0] & ~inside[1]).any()
            on_circle = (np.abs(np.hypot(*(circles[:, :2] - tip).T) - circles[:, 2]) < 0.005).any()
            at_label = (np.abs(labels - tip) < (0.15, 0.05)).all(axis=1).any() if len(labels) else False
            assert on_edge or on_circle or at_label


class TestDiagramContent:
    @pytest.mark.parametrize(
        ("name", "change"), [("tiny", {}), ("other", {"width": 96, "num_heads": 3, "num_blocks": 1})]
    )
    def test_numbers_are_those_of_the_model(self, name, change):
        config = replace(TINY, **change)
        D, heads, L = config.width, config.num_heads, config.num_blocks
        model = VTAMIQ(config)
        whole = joined(vtamiq_diagram(model))
        expected = [f"width {D}", f"{heads} heads", "3 registers", "2 groups ×", "3 blocks", f"{D} → {D // 4} → 1"]
        expected += [
            f"{D} → {D // 4} → {D}\nReLU, sigmoid",
            "× 2",
            "× 3",
            "N × 3 × 16 × 16",
            f"scale γ\n{D}",
            "1 scale",
            "lower is",
        ]
        expected += [f"{L} block" + ("s" if L > 1 else "")]
        assert [text for text in expected if text not in whole] == []
        encoder = joined(vit_diagram(model))
        expected = [f"transformer block × {L}", f"{heads} heads × {D // heads}", f"{D} → {4 * D} → {D}", "GELU"]
        expected += [
            f"768 → {D}",
            f"17 × {D}",
            "4 × 4 cells",
            f"T = 1 + 3 + N tokens of width {D}",
            "row 0: class token",
        ]
        assert [text for text in expected if text not in encoder] == []

    @pytest.mark.parametrize(
        ("text", "present", "absent"),
        [
            ("scale γ", "tiny", "nothing"),
            ("DiffNet", "tiny", "nothing"),
            ("channel attention", "tiny", "nothing"),
            ("zero\nanchor", "tiny", "nothing"),
            ("dropout 0.1", "tiny", "nothing"),
            ("drop path\n0.1", "tiny", "no scale, gate"),
            ("difference\ngate", "everything", "tiny"),
            ("at (u, v, s)", "everything", "tiny"),
            ("PReLU, sigmoid", "2021", "tiny"),
        ],
    )
    def test_optional_parts_of_the_whole(self, text, present, absent, diagrams):
        assert text in joined(diagrams["vtamiq_diagram", present])
        assert text not in joined(diagrams["vtamiq_diagram", absent]).replace("PReLU\nlinear", "")

    @pytest.mark.parametrize(
        ("text", "present", "absent"),
        [
            ("scale γ₁", "tiny", "nothing"),
            ("3 registers", "tiny", "nothing"),
            ("+ row 0", "tiny", "2021"),
            ("row 0: first cell", "2021", "tiny"),
            ("scale table\n3 × 48", "everything", "tiny"),
            ("adapter\n48 → 12\n→ 48", "everything", "tiny"),
        ],
    )
    def test_optional_parts_of_the_encoder(self, text, present, absent, diagrams):
        assert text in joined(diagrams["vit_diagram", present])
        assert text not in joined(diagrams["vit_diagram", absent])
