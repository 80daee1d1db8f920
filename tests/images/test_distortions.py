"""The 25 distortions: what every type must keep, and what each type must do."""

import inspect
import itertools
import math
import warnings

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab, rgb2ycbcr
from skimage.filters import threshold_otsu

from vtamiq.images import distortions
from vtamiq.images.distortions import DISTORTIONS, LEVELS, distort, find_distortion
from vtamiq.images.reading import ImageError

pytestmark = pytest.mark.filterwarnings("ignore:some images are too small for the JPEG 2000 ratio")

TYPES = tuple(DISTORTIONS)
RANDOM = {3, 5, 11, 12, 13, 14, 15, 19, 20, 23}
FALLING = set(TYPES) - {18, 25}  # PSNR falls with the level
SAME = {(1, 1), (3, 1), (8, 1), (18, 3)}  # levels that change nothing
PHOTOS = {
    "astronaut": np.ascontiguousarray(skimage.data.astronaut()[40:200, 130:322]),
    "coffee": np.ascontiguousarray(skimage.data.coffee()[120:280, 200:392]),
}
ASTRONAUT = PHOTOS["astronaut"]
CAMERA = np.repeat(skimage.data.camera()[100:228, 160:288, None], 3, axis=2)


@pytest.fixture(scope="module")
def distorted():
    """Every type at every level of both photographs: `distorted[name, type, level]`."""
    return {
        (name, type, level): distort(photo, type, level)
        for name, photo in PHOTOS.items()
        for type in TYPES
        for level in LEVELS
    }


def psnr(a, b):
    error = np.mean((a.astype(float) - b) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def by_tag(tag):
    return pytest.param(find_distortion(tag).type, id=tag)


every_type = pytest.mark.parametrize("type", [by_tag(d.tag) for d in DISTORTIONS.values()])


# ---- every type -------------------------------------------------------------------------------------------------


def test_table():
    """Tags and amounts as the KADIS generator has them."""
    assert {d.tag: d.levels for d in DISTORTIONS.values()} == {
        "gblur": (0.1, 0.5, 1, 2, 5),
        "lblur": (1, 2, 4, 6, 8),
        "mblur": (1, 2, 4, 6, 10),
        "colordiffuse": (1, 3, 6, 8, 12),
        "colorshift": (1, 3, 6, 8, 12),
        "colorquantize": (64, 48, 32, 16, 8),
        "colorsaturate": (0.4, 0.2, 0.1, 0, -0.4),
        "saturate": (1, 2, 3, 6, 9),
        "jp2k": (16, 32, 45, 120, 400),
        "jpeg": (43, 36, 24, 7, 4),
        "noisegauss": (0.001, 0.002, 0.003, 0.005, 0.01),
        "noisecolorcomp": (0.0001, 0.0005, 0.001, 0.002, 0.003),
        "noiseimpulse": (0.001, 0.005, 0.01, 0.02, 0.03),
        "noisemultiplicative": (0.001, 0.005, 0.01, 0.02, 0.05),
        "denoise": (0.01, 0.03, 0.05, 0.1, 0.15),
        "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),
        "darken": (0.05, 0.1, 0.2, 0.4, 0.8),
        "meanshift": (0.15, 0.08, 0, -0.08, -0.15),
        "jitter": (0.05, 0.1, 0.2, 0.5, 1),
        "noneccentricity": (20, 40, 60, 80, 100),
        "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),
        "noisequantize": (20, 16, 13, 10, 7),
        "colorblock": (2, 4, 6, 8, 10),
        "sharpenHi": (1, 2, 3, 6, 12),
        "contrastchange": (0.3, 0.15, 0, -0.4, -0.6),
    }


def test_numbers_groups_and_kinds():
    assert [d.type for d in DISTORTIONS.values()] == list(DISTORTIONS) == list(range(1, 26))
    assert {d.group for d in DISTORTIONS.values()} == {
        "blur",
        "colour",
        "compression",
        "noise",
        "brightness",
        "spatial",
        "sharpness/contrast",
    }
    assert {d.type for d in DISTORTIONS.values() if d.random} == RANDOM
    assert {d.type for d in DISTORTIONS.values() if not d.ordered} == {18, 25}


@every_type
def test_uint8_rgb_of_the_same_size(distorted, type):
    for (_, kind, _), image in distorted.items():
        if kind == type:
            assert image.dtype == np.uint8
            assert image.shape == ASTRONAUT.shape
            assert image.flags.c_contiguous
            assert image.flags.writeable


@every_type
def test_input_is_unchanged_and_not_shared(type):
    source = ASTRONAUT[:48, :56].copy()
    for level in (1, 3, 5):
        image = distort(source, type, level)
        image[:] = 0
        np.testing.assert_array_equal(source, ASTRONAUT[:48, :56])


@every_type
def test_seed_decides_the_bytes(distorted, type):
    first = distorted["astronaut", type, 4]
    np.testing.assert_array_equal(distort(ASTRONAUT, type, 4), first)
    np.testing.assert_array_equal(distort(np.asfortranarray(ASTRONAUT), type, 4, seed=0), first)
    others = [distort(ASTRONAUT, type, 4, seed=seed) for seed in (1, 2, 3)]  # two shifts may round to the same pixels
    assert any((other != first).any() for other in others) == (type in RANDOM)


@every_type
def test_only_random_types_take_a_generator(type):
    distortion = DISTORTIONS[type]
    assert len(inspect.signature(distortion.apply).parameters) == (3 if distortion.random else 2)


def test_global_random_state_plays_no_part():
    np.random.seed(3)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    distort(ASTRONAUT, "noisegauss", 1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# The amounts that change nothing
IDENTITY = {
    1: 0, 2: 0, 3: 1, 5: 0, 7: 1, 8: 1, 9: 1, 11: 0, 12: 0, 13: 0, 14: 0, 16: 0, 17: 0, 18: 0, 19: 0, 20: 0, 22: 255,
    23: 0, 24: 0, 25: -0.2,
}  # fmt: skip


@pytest.mark.parametrize("type", IDENTITY)
def test_identity_amount_is_the_identity(type):
    distortion = DISTORTIONS[type]
    generator = [np.random.default_rng(0)] if distortion.random else []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = distortion.apply(ASTRONAUT / 255, IDENTITY[type], *generator)
    np.testing.assert_array_equal(np.rint(255 * np.clip(result, 0, 1)), ASTRONAUT)


def test_levels_that_change_nothing(distorted):
    for name, photo in PHOTOS.items():
        same = {(type, level) for type in TYPES for level in LEVELS if psnr(distorted[name, type, level], photo) > 99}
        assert same == SAME


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("type", sorted(FALLING))
def test_psnr_falls_with_the_level(distorted, name, type):
    values = [psnr(distorted[name, type, level], PHOTOS[name]) for level in LEVELS]
    assert all(before > after for before, after in itertools.pairwise(values)), values


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("type", [18, 25])
def test_psnr_falls_with_the_severity(distorted, name, type):
    known = DISTORTIONS[type]
    assert not known.ordered
    severity = [abs(amount - IDENTITY[type]) for amount in known.levels]
    values = [psnr(distorted[name, type, level], PHOTOS[name]) for level in LEVELS]
    for (s, p), (t, q) in itertools.combinations(zip(severity, values, strict=True), 2):
        if math.isclose(s, t):
            assert abs(p - q) < 1
        else:
            assert (s < t) == (p > q)


def test_noise_has_its_expected_power(distorted):
    """Closed forms of the expected PSNR on mid-grey, where clipping is rare."""
    grey = np.full((160, 192, 3), 128, np.uint8)
    for level, variance in zip(LEVELS, DISTORTIONS[11].levels, strict=True):
        assert psnr(distort(grey, 11, level), grey) == pytest.approx(-10 * math.log10(variance), abs=0.1)
    for level, variance in zip(LEVELS, DISTORTIONS[14].levels, strict=True):
        expected = -10 * math.log10(variance * (128 / 255) ** 2)
        assert psnr(distort(grey, 14, level), grey) == pytest.approx(expected, abs=0.15)
    for level, share in zip(LEVELS, DISTORTIONS[13].levels, strict=True):
        expected = -10 * math.log10(share * ((128 / 255) ** 2 + (127 / 255) ** 2) / 2)
        assert psnr(distort(grey, 13, level), grey) == pytest.approx(expected, abs=0.6)


# ---- unusual images ---------------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("shape", [(8, 8), (8, 31), (47, 9), (33, 48)])
def test_small_images(type, shape):
    image = ASTRONAUT[: shape[0], : shape[1]]
    for level in LEVELS:
        result = distort(image, type, level)
        assert result.shape == image.shape
        assert result.dtype == np.uint8


@every_type
@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_images(type, value):
    image = np.full((40, 50, 3), value, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        results = [distort(image, type, level) for level in LEVELS]
    if type not in {9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 23, 25}:  # codecs, noise, tone curves and blocks
        for result in results:
            np.testing.assert_array_equal(result, image)


@every_type
def test_grey_photographs(type):
    for level in LEVELS:
        result = distort(CAMERA, type, level)
        is_grey = np.ptp(result, axis=2).max() <= 1  # CIELAB and back may round the channels apart
        assert is_grey == (type not in {5, 11, 12, 13, 14, 15, 23})
        if type in {4, 7, 8}:
            np.testing.assert_array_equal(result, CAMERA)


# ---- blur -------------------------------------------------------------------------------------------------------


def impulse(side=41):
    image = np.zeros((side, side, 3))
    image[side // 2, side // 2] = 1
    return image


def test_gaussian_blur_is_a_truncated_gaussian():
    x = np.arange(-10, 11)
    kernel = np.exp(-(x**2) / 50) * (np.abs(x) <= 10)
    kernel /= kernel.sum()
    response = distortions.gaussian_blur(impulse(), 5)[10:31, 10:31]
    np.testing.assert_allclose(response, np.repeat(np.outer(kernel, kernel)[..., None], 3, 2), atol=1e-12)


@pytest.mark.parametrize("radius", DISTORTIONS[2].levels)
def test_lens_blur_is_a_disk(radius):
    response = distortions.lens_blur(impulse(), radius)[..., 0]
    assert response.sum() == pytest.approx(1)
    assert response.min() > -1e-12
    y, x = np.mgrid[-20:21, -20:21]
    distance = np.hypot(y, x)
    assert np.abs(response[distance > radius + 0.71]).max() < 1e-12
    np.testing.assert_allclose(response[distance < radius - 0.71], 1 / (np.pi * radius**2), rtol=0.02)
    np.testing.assert_allclose(response, response.T, atol=1e-12)
    np.testing.assert_allclose(response, response[::-1], atol=1e-12)


@pytest.mark.parametrize("length", DISTORTIONS[3].levels[1:])
@pytest.mark.parametrize("seed", range(5))
def test_motion_blur_is_a_line_at_the_drawn_angle(length, seed):
    response = distortions.motion_blur(impulse(), length, np.random.default_rng(seed))[..., 0]
    angle = np.random.default_rng(seed).uniform(0, np.pi)
    y, x = np.mgrid[-20:21, -20:21]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert response.sum() == pytest.approx(1)
    assert np.abs(response[np.abs(across) >= 1]).max() < 1e-12
    assert np.abs(response[np.abs(along) >= (length + 1) / 2]).max() < 1e-12
    np.testing.assert_allclose(response, response[::-1, ::-1], atol=1e-12)
    if length >= 4:  # variance of a uniform line
        assert (response * along**2).sum() == pytest.approx(length**2 / 12, rel=0.2)


def test_edges_are_replicated():
    columns = np.tile(np.linspace(0.2, 0.8, 64)[:, None, None], (1, 64, 3))  # constant along x
    for blurred in (distortions.gaussian_blur(columns, 5), distortions.lens_blur(columns, 8)):
        np.testing.assert_allclose(blurred, np.repeat(blurred[:, :1], 64, axis=1), atol=1e-12)


# ---- colour -----------------------------------------------------------------------------------------------------


def test_colour_diffusion_blurs_and_amplifies_chroma_only():
    muted = ASTRONAUT / 255 * 0.2 + 0.4  # no colour leaves the gamut
    before, after = rgb2lab(muted), rgb2lab(distortions.colour_diffusion(muted, 2))
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=0.02)
    expected = 2 * gaussian_filter(before[..., 1:], (5, 5, 0), truncate=2, mode="nearest")
    np.testing.assert_allclose(after[..., 1:], expected, atol=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_colour_shift_moves_green_right_and_down(seed):
    dot = np.full((61, 61, 3), 0.5)
    dot[30, 30] = 1
    shifted = distortions.colour_shift(dot, 12, np.random.default_rng(seed))
    np.testing.assert_array_equal(shifted[..., [0, 2]], dot[..., [0, 2]])
    angle = np.random.default_rng(seed).uniform(0, np.pi / 2)
    down, right = round(12 * np.sin(angle)), round(12 * np.cos(angle))
    assert shifted[30, 30, 1] == pytest.approx(0.5)  # the mask is 1 on the dot
    away = np.abs(shifted[..., 1] - 0.5) > 1e-9
    assert set(map(tuple, np.argwhere(away))) <= {(30 + down, 30 + right)}


def test_colour_shift_spares_smooth_regions():
    step = np.full((64, 128, 3), 0.25)
    step[:, 64:] = 0.75
    step[..., 1] += np.linspace(0, 0.1, 64)[:, None]  # a faint slope that a full shift would move
    shifted = distortions.colour_shift(step, 12, np.random.default_rng(0))
    change = np.abs(shifted - step)[..., 1].max(axis=0)
    assert change[60:72].max() > 0.3
    assert change[:40].max() < 1e-3


def test_colour_shift_spares_edges_below_a_tenth_of_the_strongest():
    steps = np.full((64, 160, 3), 0.2)
    steps[:, 40:] += 0.5
    steps[:, 110:] += 0.04
    change = (distortions.colour_shift(steps, 6, np.random.default_rng(0)) != steps).any(axis=(0, 2))
    assert change[40:46].any()
    assert not change[60:].any()


def test_colour_quantisation_counts_colours(distorted):
    for name in PHOTOS:
        for level, colours in zip(LEVELS, DISTORTIONS[6].levels, strict=True):
            found = len(np.unique(distorted[name, 6, level].reshape(-1, 3), axis=0))
            assert colours / 2 < found <= colours


def test_colour_quantisation_dithers():
    ramp = np.repeat(np.tile(np.linspace(0.2, 0.8, 128), (64, 1))[..., None], 3, axis=2)
    error = distortions.colour_quantisation(ramp, 4) - ramp
    assert np.abs(error).max() > 0.05
    assert np.abs(gaussian_filter(error[..., 0], 4))[16:-16, 16:-16].max() < 0.02  # right on average


def test_hsv_saturation():
    colour = np.array([[[0.8, 0.4, 0.2]]])  # value 0.8, saturation 0.75
    np.testing.assert_allclose(distortions.hsv_saturation(colour, 0), [[[0.8, 0.8, 0.8]]])
    np.testing.assert_allclose(distortions.hsv_saturation(colour, 0.4), [[[0.8, 0.64, 0.56]]])
    np.testing.assert_allclose(distortions.hsv_saturation(colour, -0.4), [[[0.8, 0.96, 1.04]]])  # clipped later


def test_lab_saturation_keeps_lightness():
    muted = ASTRONAUT / 255 * 0.2 + 0.4
    before, after = rgb2lab(muted), rgb2lab(distortions.lab_saturation(muted, 2))
    np.testing.assert_allclose(after, before * [1, 2, 2], atol=0.02)


def test_lab_conversion_equals_scikit_image_without_its_warning():
    lab = rgb2lab(ASTRONAUT) * [1, 9, 9]
    with pytest.warns(UserWarning, match="negative Z"):
        expected = distortions.lab2rgb(lab)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(distortions._lab_to_rgb(lab), expected, atol=1e-9)


# ---- compression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_jpeg2000_reaches_its_ratio(level):
    photo = skimage.data.coffee()
    ratio = DISTORTIONS[9].levels[level - 1]
    _, size = distortions._through_codec(photo / 255, format="JPEG2000", quality_mode="rates", quality_layers=[ratio])
    assert photo.size / size == pytest.approx(ratio, rel=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psnr(distort(photo, 9, level), photo) < 45


def test_jpeg2000_warns_of_small_images():
    with pytest.warns(UserWarning, match="too small"):
        distort(ASTRONAUT[:64, :64], 9, 5)


def test_jpeg_halves_the_resolution_of_chroma():
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2], stripes[:, 1::2] = (0.7, 0.4, 0.4), (0.4, 0.557, 0.4)  # equal luma
    luma, *chroma = np.moveaxis(rgb2ycbcr(distortions.jpeg(stripes, 100)), -1, 0)
    assert np.ptp(luma) < 4
    assert all(np.ptp(component) < 4 for component in chroma)
    assert np.ptp(rgb2ycbcr(stripes)[..., 2]) > 25


def test_jpeg_quality(distorted):
    assert psnr(distortions.jpeg(ASTRONAUT / 255, 100) * 255, ASTRONAUT) > 34
    blocks = distorted["astronaut", 10, 5].astype(int)
    steps = np.abs(np.diff(blocks, axis=1)).mean(axis=(0, 2))
    assert steps[7::8].mean() > 2 * np.delete(steps, np.s_[7::8]).mean()  # edges between 8 x 8 blocks


# ---- noise ------------------------------------------------------------------------------------------------------


def test_component_noise_has_its_variance_in_ycbcr():
    grey = np.full((128, 128, 3), 0.5)
    noisy = distortions.component_noise(grey, 0.002, np.random.default_rng(0))
    noise = (rgb2ycbcr(noisy) - rgb2ycbcr(grey)) / 255
    np.testing.assert_allclose(noise.reshape(-1, 3).var(axis=0), 0.002, rtol=0.05)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("level", LEVELS)
def test_impulse_noise_changes_its_share_of_samples(level):
    share, grey = DISTORTIONS[13].levels[level - 1], np.full((160, 192, 3), 128, np.uint8)
    result = distort(grey, 13, level)
    deviation = math.sqrt(share * (1 - share) * grey.size)
    assert abs((result != grey).sum() - share * grey.size) < 3 * deviation
    for extreme in (0, 255):
        assert abs((result == extreme).sum() - share / 2 * grey.size) < 3 * deviation
    assert set(np.unique(result)) == {0, 128, 255}


def test_multiplicative_noise_is_uniform_and_spares_black():
    image = np.full((128, 128, 3), 0.5)
    image[:64] = 0
    noise = distortions.multiplicative_noise(image, 0.03, np.random.default_rng(0)) - image
    assert not noise[:64].any()
    assert noise[64:].var() == pytest.approx(0.03 * 0.25, rel=0.03)
    assert np.abs(noise).max() == pytest.approx(0.5 * math.sqrt(3 * 0.03), rel=0.01)  # the end of the uniform range


def test_denoised_noise_is_smoother_and_closer_than_the_noise():
    photo = ASTRONAUT / 255
    noisy = np.clip(distortions.white_noise(photo, 0.03, np.random.default_rng(0)), 0, 1)
    denoised = distortions.denoised_noise(photo, 0.03, np.random.default_rng(0))
    assert psnr(255 * denoised, ASTRONAUT) > psnr(255 * noisy, ASTRONAUT) + 5


def test_levels_share_one_noise_field(distorted):
    grey = np.full((64, 64, 3), 128, np.uint8)
    low, high = (distort(grey, 11, level, seed=5) - 128.0 for level in (1, 5))
    np.testing.assert_allclose(high, low * math.sqrt(10), atol=0.51 * (1 + math.sqrt(10)))
    touched = [distorted["coffee", 13, level] != PHOTOS["coffee"] for level in LEVELS]
    for fewer, more in itertools.pairwise(touched):
        assert not (fewer & ~more).any()


# ---- brightness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_brighten_mixes_two_curves(level):
    amount, value = DISTORTIONS[16].levels[level - 1], 178 / 255
    linear = ((value + 0.055) / 1.055) ** 2.4
    lightness = 1.16 * linear ** (1 / 3) - 0.16  # L*/100
    lifted = min(lightness + 2 * amount * lightness * (1 - lightness), 1)
    through_lab = 1.055 * ((lifted + 0.16) / 1.16) ** (3 / 2.4) - 0.055
    through_rgb = min(value + 2 * amount * value * (1 - value), 1)
    result = distort(np.full((8, 8, 3), 178, np.uint8), 16, level)
    np.testing.assert_allclose(result, 255 * (2 * through_rgb + through_lab) / 3, atol=0.6)
    half = distortions.brighten(np.full((1, 1, 3), 0.5), amount)
    assert half.min() > 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_darken(level):
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    amount, x = DISTORTIONS[17].levels[level - 1], ramp / 255
    expected = np.rint(255 * np.clip(x - 2 * amount * x * (1 - x), 0, 1))
    np.testing.assert_array_equal(distort(ramp, 17, level), expected)
    half = distortions.darken(np.full((1, 1, 3), 0.5), amount)
    np.testing.assert_allclose(half, 0.5 - amount / 2)


@pytest.mark.parametrize(("level", "shift"), [(1, 38), (2, 20), (3, 0), (4, -20), (5, -38)])
def test_mean_shift(level, shift):
    np.testing.assert_array_equal(distort(ASTRONAUT, 18, level), np.clip(ASTRONAUT.astype(int) + shift, 0, 255))


# ---- spatial ----------------------------------------------------------------------------------------------------


def positions(height, width):
    """An image whose red and green channels tell the column and the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns, rows, np.zeros_like(rows)]).astype(np.uint8)


def test_jitter_moves_pixels_by_five_gaussian_steps():
    ramp = positions(128, 128) / 255
    moved = 255 * (distortions.jitter(ramp, 0.05, np.random.default_rng(0)) - ramp)[16:-16, 16:-16, :2]
    assert moved.std(axis=(0, 1)) == pytest.approx(0.05 * math.sqrt(5), rel=0.05)
    assert np.abs(moved.mean(axis=(0, 1))).max() < 0.005
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(("shape", "side"), [((160, 192), 16), ((48, 80), 16), ((30, 80), 10), ((8, 8), 2)])
def test_non_eccentricity_moves_blocks_a_little(shape, side):
    image = positions(*shape)
    moved = distort(image, 20, 5)
    change = moved[..., :2].astype(int) - image[..., :2]
    changed = change.any(axis=2)
    assert changed.sum() > side**2 / 2
    assert np.abs(change).max() <= side // 2
    margin = side - side // 2
    inner = changed[margin : shape[0] - margin, margin : shape[1] - margin]
    assert inner.sum() == changed.sum()


def test_non_eccentricity_adds_blocks_with_the_level(distorted):
    changed = [(distorted["coffee", 20, level] != PHOTOS["coffee"]).any(axis=2).sum() for level in LEVELS]
    assert changed == sorted(set(changed))
    assert changed[0] <= 20 * 16 * 16


@pytest.mark.parametrize(("level", "columns"), [(1, 171), (2, 151), (3, 135), (4, 110), (5, 56)])
def test_pixelate_keeps_a_share_of_columns(level, columns):
    result = distort(positions(160, 192), 21, level)
    assert len(np.unique(result[..., 0])) == columns  # ceil(z * 192), z = 0.887 0.784 0.699 0.569 0.290
    assert np.abs(result.astype(int) - positions(160, 192)).max() <= 2


def test_quantisation_leaves_thresholds_plus_one_values(distorted):
    for name in PHOTOS:
        for level, thresholds in zip(LEVELS, DISTORTIONS[22].levels, strict=True):
            values = np.unique(distorted[name, 22, level])
            assert len(values) == thresholds + 1
            assert values[0] == 0
            assert values[-1] == 255


def test_quantisation_maps_classes_to_their_ends():
    image = np.repeat(np.array([[10, 11, 100, 102, 103, 240, 250]], np.uint8)[..., None], 3, axis=2)
    result = 255 * distortions.quantisation(image / 255, 2)
    np.testing.assert_allclose(result[0, :, 0], [0, 0, 103, 103, 103, 255, 255])


def test_quantisation_agrees_with_otsu():
    grey = CAMERA[..., 0]
    low = distortions.quantisation(CAMERA / 255, 1)[..., 0] == 0
    np.testing.assert_array_equal(low, grey <= threshold_otsu(grey))


@given(st.lists(st.integers(1, 50), min_size=3, max_size=8), st.integers(2, 4), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_otsu_classes_are_optimal(counts, classes, random):
    classes = min(classes, len(counts))
    values = np.sort(random.sample(range(256), len(counts))).astype(float)
    counts = np.array(counts)

    def within(last):
        parts = np.split(np.arange(len(values)), np.array(last[:-1]) + 1)
        means = [np.average(values[p], weights=counts[p]) for p in parts]
        return sum((counts[p] * (values[p] - mean) ** 2).sum() for p, mean in zip(parts, means, strict=True))

    last = distortions._otsu_classes(values, counts, classes)
    assert len(last) == classes
    assert last[-1] == len(values) - 1
    every = itertools.combinations(range(len(values) - 1), classes - 1)
    assert within(last) == pytest.approx(min(within((*ends, len(values) - 1)) for ends in every), abs=1e-6)


def test_colour_block_covers_at_most_its_area(distorted):
    for name, photo in PHOTOS.items():
        masks = [(distorted[name, 23, level] != photo).any(axis=2) for level in LEVELS]
        for mask, blocks in zip(masks, DISTORTIONS[23].levels, strict=True):
            assert 1000 < mask.sum() <= 1024 * blocks
        for fewer, more in itertools.pairwise(masks):
            assert (fewer & ~more).sum() < 20  # a later block may match the photograph by chance


@pytest.mark.parametrize(("shape", "side"), [((100, 70), 32), ((50, 70), 25), ((8, 12), 4)])
def test_colour_block_is_one_coloured_square(shape, side):
    black = np.zeros((*shape, 3))
    block = distortions.colour_block(black, 1, np.random.default_rng(1)).any(axis=2)
    rows, columns = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
    assert len(rows) == len(columns) == side
    assert block.sum() == side**2


# ---- sharpness and contrast -------------------------------------------------------------------------------------


def test_high_sharpen_overshoots_on_both_sides_of_an_edge():
    step = np.full((40, 80, 3), 0.4)
    step[:, 40:] = 0.6
    sharpened = distortions.high_sharpen(step, 1)[20]
    x = np.arange(-6, 7)
    kernel = np.exp(-(x**2) / 18)
    share = kernel[x > 0].sum() / kernel.sum()  # of the kernel that lies across the edge
    low, high = (rgb2lab(np.full(3, value))[0] for value in (0.4, 0.6))
    np.testing.assert_allclose(rgb2lab(sharpened[39])[0], low - share * (high - low), atol=0.05)
    np.testing.assert_allclose(rgb2lab(sharpened[40])[0], high + share * (high - low), atol=0.05)
    np.testing.assert_allclose(sharpened[:30], 0.4, atol=1e-6)


@pytest.mark.parametrize("amount", DISTORTIONS[25].levels)
def test_contrast_change_goes_through_its_knots(amount):
    knots = np.array([0, 0.3, 0.5, 0.7, 1])
    expected = [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1]
    image = np.repeat(knots[None, :, None], 3, axis=2)
    np.testing.assert_allclose(distortions.contrast_change(image, amount)[0, :, 1], expected, atol=1e-12)


def test_contrast_rises_in_levels_1_to_3_and_falls_in_4_and_5(distorted):
    spread = [distorted["coffee", 25, level].std() for level in LEVELS]
    assert spread == sorted(spread, reverse=True)
    assert spread[2] > PHOTOS["coffee"].std() > spread[3]


# ---- names and bad input ----------------------------------------------------------------------------------------


@every_type
def test_number_tag_and_name_mean_the_same(type):
    distortion = DISTORTIONS[type]
    for key in (type, np.int64(type), distortion.tag, distortion.name, distortion.tag.upper()):
        assert find_distortion(key) is distortion


@pytest.mark.parametrize(
    ("type", "hint"),
    [("gblurr", "`gblur`"), ("jpeg20000", "`jpeg2000`"), ("color shift", "`colo.?r ?shift`"), ("???", "known tags")],
)
def test_unknown_name_gives_a_hint(type, hint):
    with pytest.raises(ValueError, match=hint):
        distort(ASTRONAUT, type, 1)


@pytest.mark.parametrize("type", [0, 26, -1, 1.5, None])
def test_unknown_number(type):
    with pytest.raises(ValueError, match="1 to 25"):
        distort(ASTRONAUT, type, 1)


@pytest.mark.parametrize("level", [0, 6, -1, 1.5, "1", None])
def test_unknown_level(level):
    with pytest.raises(ValueError, match="level"):
        distort(ASTRONAUT, 1, level)


def test_negative_seed():
    with pytest.raises(ValueError, match="seed"):
        distort(ASTRONAUT, 11, 1, seed=-1)


@pytest.mark.parametrize("image", [ASTRONAUT / 255, ASTRONAUT[..., 0], ASTRONAUT[:0], ASTRONAUT.tolist()])
def test_only_uint8_rgb(image):
    with pytest.raises(ImageError, match="uint8 RGB"):
        distort(image, 1, 1)
