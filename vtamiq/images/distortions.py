"""The 25 distortions of KADID-10k and KADIS-700k (Lin, Hosu and Saupe, QoMEX 2019), each at five levels.

Each type is a pure function of a float RGB image `(H, W, 3)` in [0, 1] and an amount (and a random generator); the result
may leave [0, 1], and `distort` clips it and rounds it to 8 bits.

The published descriptions and programs disagree in places. Decisions for all types (others stand at their functions):

- The order and the values of the five amounts are those of the KADIS generator. Types 18 and 25 are therefore not
  sorted by severity (`Distortion.ordered`).
- Images are never rescaled by their own minimum and maximum, neither before nor after a distortion.
- One random stream serves the five levels of an image: they share angle, noise field and places, so that severity grows
  with the level.
- Types 9 and 10 (codecs) give the same bytes only for the same versions of Pillow and its codec libraries.
- Some levels change nothing and are kept: types 1, 3 and 8 at level 1, type 18 at level 3.
"""

import io
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates, sobel
from scipy.signal import fftconvolve
from skimage.color import hsv2rgb, lab2rgb, rgb2hsv, rgb2lab, rgb2ycbcr, ycbcr2rgb
from skimage.restoration import denoise_tv_chambolle

from vtamiq.images.reading import check_uint8_rgb
from vtamiq.utils.configs import did_you_mean

LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Distortion:
    """One type of distortion: `type` 1..25 in KADID-10k, `tag` in the score files of KADIS-700k, the amounts of `levels`.

    `apply` takes (image, amount), and a generator if `random`; `ordered` says whether severity grows with the level.
    """

    type: int
    name: str
    tag: str
    group: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[..., np.ndarray]
    random: bool = False
    ordered: bool = True

    def amount(self, level: int) -> float:
        """The parameter of level 1..5; ValueError for any other level."""
        if not isinstance(level, Integral) or level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
        return self.levels[level - 1]


def distort(image: np.ndarray, type: int | str, level: int, seed: int = 0) -> np.ndarray:
    """Distort a uint8 RGB image `(H, W, 3)`, tested from 8 x 8 pixels up; the result is alike, C-contiguous.

    Args:
        type: number 1..25, tag or name; ValueError if unknown.
        level: 1..5, else ValueError.
        seed: non-negative; used by random types only. Give every image its own.
    """
    check_uint8_rgb(image)
    distortion = find_distortion(type)
    arguments = [image / 255, distortion.amount(level)]
    if distortion.random:
        if operator.index(seed) < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        arguments.append(np.random.default_rng([seed, distortion.type]))
    return _to_uint8(distortion.apply(*arguments))


def find_distortion(type: int | str) -> Distortion:
    """The distortion of a number 1..25, a tag or a name (in any case); ValueError with the nearest name if unknown."""
    if not isinstance(type, str):
        try:
            return DISTORTIONS[operator.index(type)]
        except (KeyError, TypeError):
            raise ValueError(f"distortion types are numbered 1 to {len(DISTORTIONS)}, got {type!r}") from None
    by_name = {key.lower(): d for d in DISTORTIONS.values() for key in (d.tag, d.name)}
    if type.lower() not in by_name:
        hint = did_you_mean(type.lower(), by_name) or f"; known tags: {[d.tag for d in DISTORTIONS.values()]}"
        raise ValueError(f"unknown distortion {type!r}{hint}")
    return by_name[type.lower()]


def gaussian_blur(image: np.ndarray, std: float) -> np.ndarray:
    """Type 1: Gaussian of standard deviation `std` pixels, cut at ceil(2 std), edge pixels replicated."""
    return gaussian_filter(image, (std, std, 0), radius=math.ceil(2 * std), mode="nearest")


def lens_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Type 2: mean over a disk of `radius` pixels, whose border pixels count by the share of their area inside."""
    side, parts = 2 * math.ceil(max(radius - 0.5, 0)) + 1, 15  # parts is odd: some sample lies on the very centre
    offset = (np.arange(side * parts) - (side * parts - 1) / 2) / parts
    inside = np.hypot(offset[:, None], offset) <= radius
    return _convolve(image, inside.reshape(side, parts, side, parts).mean(axis=(1, 3)))


def motion_blur(image: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Type 3: mean over an anti-aliased line of `length` >= 1 pixels at a random angle."""
    angle = rng.uniform(0, np.pi)
    reach = (length - 1) / 2
    y, x = np.mgrid[-math.ceil(reach) : math.ceil(reach) + 1, -math.ceil(reach) : math.ceil(reach) + 1]
    along = np.clip(x * np.cos(angle) + y * np.sin(angle), -reach, reach)  # nearest point of the segment
    distance = np.hypot(x - along * np.cos(angle), y - along * np.sin(angle))
    return _convolve(image, np.maximum(0, 1 - distance))


def colour_diffusion(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 4: CIELAB a*, b* blurred with standard deviation 1.5 amount + 2, then multiplied by `amount`; L* kept."""
    lab = rgb2lab(image)
    lab[..., 1:] = amount * gaussian_blur(lab[..., 1:], 1.5 * amount + 2)
    return _lab_to_rgb(lab)


def colour_shift(image: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Type 5: near edges the green channel is moved `length` pixels right and down, in a random direction.

    The mask that blends it in is the blurred gradient magnitude of the grey image: rescaled to [0, 1], cut at 0.1,
    then its 1st and 99th percentile stretched to 0 and 1.
    """
    angle = rng.uniform(0, np.pi / 2)
    down, right = round(length * np.sin(angle)), round(length * np.cos(angle))
    height, width, _ = image.shape
    rows, columns = np.maximum(np.arange(height) - down, 0), np.maximum(np.arange(width) - right, 0)
    green = image[..., 1]
    grey = image @ [0.299, 0.587, 0.114]
    edges = np.hypot(sobel(grey, axis=0, mode="nearest"), sobel(grey, axis=1, mode="nearest"))
    edges = gaussian_filter(edges, 4, radius=8, mode="nearest")
    edges = np.maximum(_stretch(edges, edges.min(), edges.max()), 0.1)
    mask = _stretch(edges, *np.percentile(edges, [1, 99]))
    shifted = image.copy()
    shifted[..., 1] = green + mask * (green[np.ix_(rows, columns)] - green)
    return shifted


def colour_quantisation(image: np.ndarray, colours: int) -> np.ndarray:
    """Type 6: a median-cut palette of `colours` RGB colours with error diffusion (Floyd-Steinberg)."""
    picture = Image.fromarray(_to_uint8(image))
    palette = picture.quantize(colours)
    # Pillow dithers only towards a given palette, hence the second call.
    dithered = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(dithered.convert("RGB")) / 255


def hsv_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Type 7: HSV saturation multiplied by `factor`. Level 4 is grey and level 5 has inverted hues."""
    hsv = rgb2hsv(image)
    hsv[..., 1] *= factor
    return hsv2rgb(hsv)


def lab_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Type 8: CIELAB a*, b* multiplied by `factor`, L* kept."""
    return _lab_to_rgb(rgb2lab(image) * [1, factor, factor])


def jpeg2000(image: np.ndarray, ratio: float) -> np.ndarray:
    """Type 9: JPEG 2000 at a compression ratio (raw bytes / file bytes); warns where an image is too small for it.

    Level 5 is ratio 400, as in the KADIS generator (some ports use 170); it needs some 180 x 180 pixels.
    """
    decoded, file_bytes = _through_codec(image, format="JPEG2000", quality_mode="rates", quality_layers=[ratio])
    if image.size / file_bytes < 0.9 * ratio:
        warnings.warn("some images are too small for the JPEG 2000 ratio of their level", stacklevel=2)
    return decoded


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Type 10: baseline JPEG of a quality 1..100 with 4:2:0 chroma subsampling."""
    return _through_codec(image, format="JPEG", quality=quality, subsampling="4:2:0")[0]


def white_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Type 11: independent Gaussian noise on every RGB sample."""
    return image + math.sqrt(variance) * rng.standard_normal(image.shape)


def component_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Type 12: independent Gaussian noise on all three components of YCbCr.

    YCbCr is of studio range (luma 16..235) divided by 255, as in the KADIS generator; full range would be milder.
    """
    ycbcr = rgb2ycbcr(image) / 255
    noisy = np.clip(ycbcr + math.sqrt(variance) * rng.standard_normal(image.shape), 0, 1)
    return ycbcr2rgb(255 * noisy)


def impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Type 13: every RGB sample is replaced with probability `share`, by 0 or by 1 alike."""
    draw = rng.random(image.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw >= 1 - share / 2, 1.0, image))


def multiplicative_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Type 14: x + n x with uniform n of mean zero, per sample (speckle)."""
    return image + image * math.sqrt(12 * variance) * (rng.random(image.shape) - 0.5)


def denoised_noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Type 15: Gaussian noise, clipped, then every channel denoised by total variation (Chambolle 2004).

    A stand-in: the KADIS generator denoises with a pretrained DnCNN; smear and residual noise are alike, images are not.
    The number of steps is fixed, because stopping by tolerance leaves visibly more noise in some channels and levels.
    """
    std = math.sqrt(variance)
    noisy = np.clip(image + std * rng.standard_normal(image.shape), 0, 1)
    return denoise_tv_chambolle(noisy, weight=std, eps=0, max_num_iter=20, channel_axis=-1)


def brighten(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 16: a quadratic tone curve through (1/2, 1/2 + amount/2): 2/3 of it on RGB plus 1/3 of it on L*."""
    lab = rgb2lab(image)
    lab[..., 0] = 100 * _bend(lab[..., 0] / 100, amount)
    return (2 * _bend(image, amount) + _lab_to_rgb(lab)) / 3


def darken(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 17: a quadratic tone curve through (1/2, 1/2 - amount/2) on RGB."""
    return _bend(image, -amount)


def mean_shift(image: np.ndarray, shift: float) -> np.ndarray:
    """Type 18: `shift` added to every sample. Levels 1 and 2 brighten, 3 is the identity, 4 and 5 darken."""
    return image + shift


def jitter(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Type 19: five warps in turn, each moving every pixel by its own Gaussian step in x and y (cubic splines)."""
    height, width, _ = image.shape
    grid = np.mgrid[:height, :width]
    for step in rng.standard_normal((5, 2, height, width)):
        places = grid + std * step
        channels = [map_coordinates(image[..., c], places, order=3, mode="nearest") for c in range(3)]
        image = np.stack(channels, axis=-1)
    return image


def non_eccentricity(image: np.ndarray, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Type 20: random blocks of 16 x 16 pixels are copied to places at most 8 pixels away in x and y.

    Blocks are taken from the unchanged image, at least 16 pixels from its border; in images below 48 pixels a third of
    the shorter side takes the place of 16.
    """
    height, width, _ = image.shape
    side = min(16, height // 3, width // 3)
    reach = side // 2
    spans = [height - 3 * side + 1, width - 3 * side + 1, 2 * reach + 1, 2 * reach + 1]
    draws = np.floor(rng.random((blocks, 4)) * spans).astype(int)  # fewer blocks: a prefix of more
    origins, steps = draws[:, :2] + side, draws[:, 2:] - reach
    moved = image.copy()
    for (top, left), (row, column) in zip(origins, origins + steps, strict=True):
        moved[row : row + side, column : column + side] = image[top : top + side, left : left + side]
    return moved


def pixelate(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 21: nearest-neighbour resize by 0.95 - amount^0.6, and back."""
    height, width, _ = image.shape
    scale = 0.95 - amount**0.6
    picture = Image.fromarray(_to_uint8(image))
    small = picture.resize((math.ceil(scale * width), math.ceil(scale * height)), Image.Resampling.NEAREST)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) / 255


def quantisation(image: np.ndarray, thresholds: int) -> np.ndarray:
    """Type 22: the exact multi-level Otsu classes of all RGB values pooled; `thresholds` + 1 values remain.

    The lowest class becomes 0, the highest 1, every other its largest value. An image of fewer values is unchanged.
    """
    values, codes, counts = np.unique(_to_uint8(image), return_inverse=True, return_counts=True)
    if len(values) <= thresholds + 1:
        return image
    last = _otsu_classes(values.astype(float), counts, thresholds + 1)
    levels = np.concatenate([[0], values[last[1:-1]], [255]]) / 255
    return levels[np.searchsorted(last, codes)].reshape(image.shape)


def colour_block(image: np.ndarray, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Type 23: squares of 32 x 32 pixels (at most half the shorter side) of random colours at random places."""
    height, width, _ = image.shape
    side = min(32, height // 2, width // 2)
    draws = rng.random((blocks, 5))  # fewer blocks: a prefix of more
    corners = np.floor(draws[:, :2] * [height - side + 1, width - side + 1]).astype(int)
    covered = image.copy()
    for (top, left), colour in zip(corners, draws[:, 2:], strict=True):
        covered[top : top + side, left : left + side] = colour
    return covered


def high_sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 24: unsharp mask on L* with a Gaussian of standard deviation 3 pixels."""
    lab = rgb2lab(image)
    lightness = lab[..., 0]
    blurred = gaussian_filter(lightness, 3, radius=6, mode="nearest")
    lab[..., 0] = np.clip(lightness + amount * (lightness - blurred), 0, 100)
    return _lab_to_rgb(lab)


def contrast_change(image: np.ndarray, amount: float) -> np.ndarray:
    """Type 25: a cubic spline tone curve through (0.3, 0.25 - amount/4), (0.5, 0.5), (0.7, 0.75 + amount/4) and the ends.

    Amounts above -0.2, the identity, raise the contrast (levels 1 to 3); amounts below lower it (levels 4 and 5).
    """
    curve = CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1])
    return curve(image)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8, order="C")


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each channel filtered with an odd square kernel, scaled to sum 1; edge pixels replicated."""
    half = kernel.shape[0] // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
    return fftconvolve(padded, kernel[..., None] / kernel.sum(), mode="valid", axes=(0, 1))


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..1 and clip; where both are equal, a step just above them."""
    return np.clip((values - low) / max(high - low, np.finfo(float).eps), 0, 1)


def _bend(values: np.ndarray, amount: float) -> np.ndarray:
    """The parabola through (0, 0), (1/2, 1/2 + amount/2) and (1, 1), clipped to [0, 1]."""
    return np.clip(values + 2 * amount * values * (1 - values), 0, 1)


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """RGB of CIELAB, clipped to the gamut. Negative Z becomes 0 beforehand: scikit-image does the same, but warns of it."""
    lab = lab.copy()
    limit = 200 / 116 * (lab[..., 0] + 16)  # where Z reaches zero
    lab[..., 2] = np.minimum(lab[..., 2], (1 - 1e-12) * limit)
    return lab2rgb(lab)


def _through_codec(image: np.ndarray, **options: object) -> tuple[np.ndarray, int]:
    """The image encoded and decoded by Pillow, and the size of the file in bytes."""
    file = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(file, **options)
    with Image.open(file) as decoded:
        return np.asarray(decoded) / 255, file.getbuffer().nbytes


def _otsu_classes(values: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Index of the last value of each class, `(classes,)`, for the split with the least variance within classes.

    It has the largest sum over classes of (sum of samples)^2 / (number of samples); dynamic programming finds it exactly.
    """
    size = len(values)
    number, total = (np.concatenate([[0], np.cumsum(x)]) for x in (counts, counts * values))
    first, last = np.triu_indices(size)
    gain = np.full((size, size), -np.inf)  # gain[i, j]: one class of the values i..j
    gain[first, last] = (total[last + 1] - total[first]) ** 2 / (number[last + 1] - number[first])
    best, starts = gain[0], []  # best[j]: the values 0..j in the classes so far
    for _ in range(classes - 1):
        candidates = best[:-1, None] + gain[1:]
        starts.append(candidates.argmax(axis=0) + 1)
        best = candidates.max(axis=0)
    ends = [size - 1]
    for start in reversed(starts):
        ends.append(start[ends[-1]] - 1)
    return np.array(ends[::-1])


# fmt: off
_TABLE = (
    Distortion(1, "Gaussian blur", "gblur", "blur", (0.1, 0.5, 1, 2, 5), gaussian_blur),
    Distortion(2, "lens blur", "lblur", "blur", (1, 2, 4, 6, 8), lens_blur),
    Distortion(3, "motion blur", "mblur", "blur", (1, 2, 4, 6, 10), motion_blur, random=True),
    Distortion(4, "colour diffusion", "colordiffuse", "colour", (1, 3, 6, 8, 12), colour_diffusion),
    Distortion(5, "colour shift", "colorshift", "colour", (1, 3, 6, 8, 12), colour_shift, random=True),
    Distortion(6, "colour quantisation", "colorquantize", "colour", (64, 48, 32, 16, 8), colour_quantisation),
    Distortion(7, "colour saturation 1", "colorsaturate", "colour", (0.4, 0.2, 0.1, 0, -0.4), hsv_saturation),
    Distortion(8, "colour saturation 2", "saturate", "colour", (1, 2, 3, 6, 9), lab_saturation),
    Distortion(9, "JPEG2000", "jp2k", "compression", (16, 32, 45, 120, 400), jpeg2000),
    Distortion(10, "JPEG", "jpeg", "compression", (43, 36, 24, 7, 4), jpeg),
    Distortion(11, "white noise", "noisegauss", "noise", (0.001, 0.002, 0.003, 0.005, 0.01), white_noise, random=True),
    Distortion(12, "noise in colour component", "noisecolorcomp", "noise", (0.0001, 0.0005, 0.001, 0.002, 0.003),
               component_noise, random=True),
    Distortion(13, "impulse noise", "noiseimpulse", "noise", (0.001, 0.005, 0.01, 0.02, 0.03), impulse_noise, random=True),
    Distortion(14, "multiplicative noise", "noisemultiplicative", "noise", (0.001, 0.005, 0.01, 0.02, 0.05),
               multiplicative_noise, random=True),
    Distortion(15, "denoise (TV stand-in)", "denoise", "noise", (0.01, 0.03, 0.05, 0.1, 0.15), denoised_noise,
               random=True),
    Distortion(16, "brighten", "brighten", "brightness", (0.1, 0.2, 0.4, 0.7, 1.1), brighten),
    Distortion(17, "darken", "darken", "brightness", (0.05, 0.1, 0.2, 0.4, 0.8), darken),
    Distortion(18, "mean shift", "meanshift", "brightness", (0.15, 0.08, 0, -0.08, -0.15), mean_shift, ordered=False),
    Distortion(19, "jitter", "jitter", "spatial", (0.05, 0.1, 0.2, 0.5, 1), jitter, random=True),
    Distortion(20, "non-eccentricity patch", "noneccentricity", "spatial", (20, 40, 60, 80, 100), non_eccentricity,
               random=True),
    Distortion(21, "pixelate", "pixelate", "spatial", (0.01, 0.05, 0.1, 0.2, 0.5), pixelate),
    Distortion(22, "quantisation", "noisequantize", "spatial", (20, 16, 13, 10, 7), quantisation),
    Distortion(23, "colour block", "colorblock", "spatial", (2, 4, 6, 8, 10), colour_block, random=True),
    Distortion(24, "high sharpen", "sharpenHi", "sharpness/contrast", (1, 2, 3, 6, 12), high_sharpen),
    Distortion(25, "contrast change", "contrastchange", "sharpness/contrast", (0.3, 0.15, 0, -0.4, -0.6),
               contrast_change, ordered=False),
)
# fmt: on

DISTORTIONS: dict[int, Distortion] = {distortion.type: distortion for distortion in _TABLE}
