"""What the explorers show, as plain functions."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.small import TINY
from vtamiq import CAPS, VTAMIQ, ImageError, attention_maps, score
from vtamiq.attention.maps import METHODS
from vtamiq.lab import views
from vtamiq.lab.views import Bar, Study, attention_view, sampling_view, score_view
from vtamiq.plots.sampling import patch_coverage

H, W = 40, 56
FEW = CAPS(num_patches=6)


@pytest.fixture(scope="module")
def pair() -> np.ndarray:
    rng = np.random.default_rng(0)
    reference = np.kron(rng.integers(20, 200, (H // 8, W // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    distorted = reference.copy()
    distorted[8:24, 16:40] += 50
    return np.stack([reference, distorted])


@pytest.fixture(scope="module")
def model() -> VTAMIQ:
    torch.manual_seed(0)
    model = VTAMIQ(TINY)
    with torch.no_grad():  # random weights of a tiny model attend evenly, and score next to nothing
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


class TestSampling:
    def test_pictures_are_those_given(self, pair):
        view = sampling_view(list(pair), FEW, 3)
        assert [panel.title for panel in view.panels[:2]] == ["reference", "distorted"]
        for panel, image in zip(view.panels[:2], pair, strict=True):
            np.testing.assert_array_equal(panel.image, image)
        assert {panel.image.shape for panel in view.panels} == {(H, W, 3)}
        assert {panel.image.dtype for panel in view.panels} == {np.dtype(np.uint8)}

    def test_numbers(self, pair):
        sample = FEW(pair, 3)
        coverage, changed = patch_coverage(pair[0], sample), np.zeros((H, W), bool)
        changed[8:24, 16:40] = True  # all by the same amount
        numbers = sampling_view(pair, FEW, 3).numbers
        assert numbers["patches"] == 6
        assert numbers["pixels_seen"] == (coverage > 0).mean()
        expected = (coverage[changed].sum() / coverage.sum()) / changed.mean()
        assert numbers["difference_seen"] == pytest.approx(expected, rel=1e-5)

    def test_same_difference_everywhere_is_seen_once(self, pair):
        assert sampling_view([pair[0], pair[0] + 5], FEW).numbers["difference_seen"] == pytest.approx(1)

    def test_equal_images(self, pair):
        view = sampling_view([pair[0], pair[0]], FEW)
        assert np.isnan(view.numbers["difference_seen"])
        assert "the images are the same" in view.summary

    def test_even_map(self, pair):
        panel = sampling_view(pair, CAPS(num_patches=6, difference=0, centre=0, uniform=1)).panels[2]
        assert (panel.bar.low, panel.bar.high) == (0, pytest.approx(H * W / ((H - 15) * (W - 15))))
        top, bottom = panel.image[0, 0], panel.image[H // 2, W // 2]
        assert top.tolist() == [0, 0, 3]  # the first and the last colour of magma
        assert bottom.tolist() == [251, 252, 191]
        assert (panel.image == bottom).all(-1).sum() == (H - 15) * (W - 15)

    def test_patches_are_drawn_with_frames_where_they_lie(self, pair):
        sample = FEW(pair, 3)
        picture, seen = sampling_view(pair, FEW, 3).panels[3].image, patch_coverage(pair[1], sample) > 0
        assert (picture[~seen] >= 232).all()  # a pale ghost
        frames = np.zeros((H, W), bool)
        for row, column in sample.position.tolist():
            frames[row : row + 16, [column, column + 15]] = frames[[row, row + 15], column : column + 16] = True
        assert (picture[frames] == 64).all()
        np.testing.assert_array_equal(picture[seen & ~frames], pair[1][seen & ~frames])

    def test_of_several_scales_the_coarser_have_frames(self, pair):
        reference = pair[0].repeat(3, 0).repeat(3, 1)
        caps = CAPS(num_patches=12, num_scales=2)
        sample = caps([reference, reference], 0)
        view = sampling_view([reference, reference], caps, 0)
        for row, column in (sample.position[sample.scale == 1] * 2).tolist():
            assert view.panels[3].image[row, column].tolist() == [213, 94, 0]
        assert "of 16 px" in view.summary
        assert "of 32 px" in view.summary

    def test_many_patches_have_no_frames(self, pair):
        picture = sampling_view(pair, CAPS(num_patches=4000, uniform=5)).panels[3].image
        np.testing.assert_array_equal(picture, pair[1])

    def test_seed(self, pair):
        pictures = [sampling_view(pair, FEW, seed).panels[3].image for seed in (0, 0, 1)]
        np.testing.assert_array_equal(pictures[0], pictures[1])
        assert (pictures[0] != pictures[2]).any()

    def test_refused(self, pair):
        with pytest.raises(ValueError, match="at least 2 images"):
            sampling_view(pair[:1], FEW)
        with pytest.raises(ImageError, match="smaller than a patch"):
            sampling_view(pair[:, :9], FEW)
        with pytest.raises(ImageError, match="one size"):
            sampling_view([pair[0], pair[1][:30]], FEW)


class TestAttention:
    @pytest.mark.parametrize("method", METHODS)
    def test_same_as_attention_maps_and_score(self, model, pair, method):
        options = {"method": method, "draws": 2, "caps": FEW, "seed": 5}
        maps, stability = attention_maps(model, *pair, return_stability=True, **options)
        mean, error = score(*pair, model=model, repeats=2, seed=5, caps=FEW, return_std=True)
        view = attention_view(model, *pair, **options)
        assert view.numbers["q"] == mean
        assert view.numbers["standard_error"] == error
        assert view.numbers["stability"] == stability.min()
        assert view.numbers["pixels_seen"] == np.isfinite(maps).mean()
        signed = method in ("occlusion", "quality")
        high = np.percentile(np.abs(maps[np.isfinite(maps)]), 99)
        for panel, image, values in zip(view.panels[2:], pair, maps, strict=True):
            assert (panel.bar.low, panel.bar.high) == (-high if signed else 0, high)
            np.testing.assert_array_equal(panel.image, views._overlay(image, values, panel.bar))

    def test_block_and_head(self, model, pair):
        options = {"draws": 2, "caps": FEW, "block": 0, "head": 1}
        maps = attention_maps(model, *pair, method="attention", **options)
        view = attention_view(model, *pair, method="attention", **options)
        np.testing.assert_array_equal(view.panels[3].image, views._overlay(pair[1], maps[1], view.panels[3].bar))
        assert view.panels[3].title == "attention in block 1, head 2 (distorted)"

    def test_sentence(self, model, pair):
        said = attention_view(model, *pair, draws=1, caps=FEW, trained="synthetic labels").summary
        assert said.endswith("(one draw of 6 patches; synthetic labels)")
        assert "±" not in said
        said = attention_view(model, *pair, draws=3, caps=FEW).summary
        assert "(standard error of 3 draws of 6 patches); stability of the map" in said

    def test_refused(self, model, pair):
        with pytest.raises(TypeError, match="must be a VTAMIQ"):
            attention_view("model", *pair)
        with pytest.raises(ValueError, match=r"no method 'rolout'.*rollout"):
            attention_view(model, *pair, method="rolout")
        with pytest.raises(ValueError, match='for method="attention"'):
            attention_view(model, *pair, head=0)
        with pytest.raises(ValueError, match="head must be an integer from 0 to 1"):
            attention_view(model, *pair, method="attention", head=2)
        with pytest.raises(ImageError, match="differ in size"):
            attention_view(model, pair[0], pair[1][:30])

    def test_other_heads_need_no_other_pass(self, model, pair, monkeypatch):
        passes = []
        monkeypatch.setattr(views, "capture", lambda *args, **options: passes.append(0) or capture(*args, **options))
        study, capture = Study(model, pair, FEW, 0, ""), attention_maps.__globals__["capture"]
        one, other, mean = (study.maps("attention", 0, head, 2).maps for head in (0, 1, None))
        study.maps("rollout", None, None, 2)
        assert len(passes) == 2  # one per draw
        seen = np.isfinite(mean)  # heads count by how much of their attention goes to patches, so only about the mean
        assert np.corrcoef(((one + other) / 2)[seen], mean[seen])[0, 1] > 0.8
        assert np.nanmax(np.abs(one - other)) > 1e-6
        study.maps("rollout", None, None, 3)
        assert len(passes) == 3  # a further draw alone


class TestScore:
    def test_same_as_score(self, model, pair):
        mean, error = score(*pair, model=model, repeats=3, seed=1, caps=FEW, return_std=True)
        view = score_view(*pair, model=model, repeats=3, seed=1, caps=FEW)
        assert view.numbers["q"] == mean
        assert view.numbers["standard_error"] == error
        share = 16 * 24 / (H * W)
        assert view.numbers["difference"] == pytest.approx(share * np.sqrt(3) * 50 / 255)
        maps = attention_maps(model, *pair, method="gradient", draws=3, seed=1, caps=FEW)
        np.testing.assert_array_equal(view.panels[3].image, views._overlay(pair[1], maps[1], view.panels[3].bar))

    def test_a_copy(self, model, pair):
        view = score_view(pair[0], pair[0], model=model, caps=FEW, method="quality")
        assert view.numbers["q"] == view.numbers["difference"] == 0
        assert view.summary.startswith("q = 0.000 ± 0.000 (")
        assert (view.panels[2].image == view.panels[2].image[0, 0]).all()

    def test_refused(self, model, pair):
        with pytest.raises(TypeError, match="from_pretrained"):
            score_view(*pair, model="folder")
        with pytest.raises(ValueError, match="repeats"):
            score_view(*pair, model=model, repeats=0)


def test_no_negative_zero(model, pair, monkeypatch):
    monkeypatch.setattr(views, "score", lambda *args, **options: (-1e-9, 0.0))
    assert score_view(*pair, model=model, caps=FEW, repeats=2).summary.startswith("q = 0.000 ")


def test_overlay_is_the_map_over_grey():
    image = np.zeros((1, 3, 3), np.uint8)
    image[0, 1] = 255
    values = np.array([[1.0, 1.0, np.nan]])
    expected = 0.65 * np.array([[251, 252, 191], [251, 252, 191], [201, 201, 201]])  # the last colour; grey
    expected[1] += 0.35 * 255
    np.testing.assert_allclose(views._overlay(image, values, Bar(0, 1, ""))[0], expected, atol=0.51)


class TestView:
    def test_picture(self, pair):
        view = sampling_view(pair, FEW)
        picture, gap = view.picture(), views.GAP
        assert picture.shape == (2 * (H + gap), 2 * (W + gap), 3)
        rows, columns = (slice(gap // 2, gap // 2 + side) for side in (H, W))
        np.testing.assert_array_equal(picture[rows, columns], pair[0])
        np.testing.assert_array_equal(picture[H + gap :, W + gap :][rows, columns], view.panels[3].image)

    def test_shown_without_widgets(self, pair):
        view = sampling_view(pair, FEW)
        bundle = view._repr_mimebundle_()
        assert bundle["text/plain"] == view.summary
        with Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"]))) as image:
            assert image.size == view.picture().shape[1::-1]

    def test_large_images_are_shown_smaller(self):
        large = np.full((100, 1440, 3), 7, np.uint8)
        picture = sampling_view([large, large], FEW).picture()
        assert picture.shape == (2 * (50 + views.GAP), 2 * (720 + views.GAP), 3)
