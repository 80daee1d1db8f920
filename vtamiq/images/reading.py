"""Images enter here, and only here: whatever the source, the result is an 8-bit RGB array `(H, W, 3)`.

Decisions, made once for the whole package:

- Transparent pixels are composited over a stated background (white unless told otherwise).
- 16-bit samples become `round(value / 257)`, those of a TIFF of other depths likewise by their own maximum. A PIL image of
  mode "I" (32-bit integers) counts as 16-bit: that is how Pillow holds some such files.
- Float samples must lie in [0, 1] and become `round(255 * value)`. Nothing is rescaled by its own minimum or maximum.
- EXIF orientation is applied. ICC profiles are ignored: samples are taken as sRGB.
- Of a file with several frames (GIF, TIFF, MPO) the first is read; of a PIL image, its current frame. What the first frame
  of a GIF leaves free is transparent. Files that Pillow would read wrongly are read by `deep.py` or refused by name.
- A bad image is refused with an `ImageError`, never repaired, cropped or resized.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vtamiq.images import deep
from vtamiq.images.formats import LIMIT, check_pixels, kind_of, orientation_of, quiet, upright
from vtamiq.utils.files import check_regular, replacing

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor"
Background: TypeAlias = "tuple[int, int, int] | str"  # an 8-bit RGB colour, or "checker"
WHITE = (255, 255, 255)
CHECKER = ((102, 102, 102), (153, 153, 153), 8)  # two colours and the side of the squares in pixels
_decoding = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read or used; the message names the image and the reason."""


def read_image(source: ImageSource, *, background: Background = WHITE) -> np.ndarray:
    """Read any image as 8-bit RGB.

    Args:
        source: a path, a PIL image, an array `(H, W)` or `(H, W, C)`, or a torch tensor `(C, H, W)` on any device, with
            C = 1 (grey), 3 (RGB) or 4 (RGB and alpha). Arrays and tensors are bool, uint8, uint16 or float in [0, 1].
        background: 8-bit RGB colour that shows through transparent pixels, or "checker": grey squares of 8 pixels.

    Returns:
        uint8 array `(H, W, 3)`, C-contiguous, that shares no memory with the source.

    Raises:
        ImageError: the source is missing, damaged, too large for Pillow's decompression-bomb limit, of an unsupported type,
            shape or dtype, or has samples outside its range.
    """
    background = check_background(background)
    return composite(read_samples(source), background)


def read_samples(source: ImageSource) -> np.ndarray:
    """Read any image as uint8 RGB `(H, W, 3)`, or as RGB and alpha `(H, W, 4)` if it has transparency."""
    name = describe(source)
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(os.fsdecode(source)), name)
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if _is_tensor(source):
        return _from_tensor(source, name)
    raise ImageError(f"{name} is no image: give a path, a PIL image, an array or a torch tensor")


def composite(samples: np.ndarray, background: Background, opposite: bool = False) -> np.ndarray:
    """Samples of `read_samples` over a background as RGB `(H, W, 3)`; those without alpha are returned as they are.

    `opposite` takes instead of every value of the background the farther of 0 and 255, so that no colour equals both.
    """
    if samples.shape[2] == 3:
        return samples
    if background == "checker":
        dark, light, side = CHECKER
        row, column = np.ogrid[: samples.shape[0], : samples.shape[1]]
        colours = np.array([dark, light], np.uint16)[(row // side + column // side) % 2]
    else:
        colours = np.array(background, np.uint16)
    if opposite:
        colours = np.where(colours > 127, 0, 255).astype(np.uint16)
    colour, alpha = samples[:, :, :3].astype(np.uint16), samples[:, :, 3:].astype(np.uint16)
    return ((colour * alpha + colours * (255 - alpha) + 127) // 255).astype(np.uint8)  # rounded


def read_images(sources: Iterable[ImageSource], *, background: Background = WHITE) -> np.ndarray:
    """Read K images of one size into a uint8 array `(K, H, W, 3)`; ImageError as in `read_image`, or if sizes differ."""
    if not is_sequence(sources):
        raise ImageError(f"read_images needs a sequence of images, not one {describe(sources)}")
    sources = list(sources)
    if not sources:
        raise ImageError("read_images needs at least one image")
    images = [read_image(source, background=background) for source in sources]
    for source, image in zip(sources, images, strict=True):
        check_same_size(sources[0], images[0], source, image)
    return np.stack(images)


def is_sequence(source: Any) -> bool:
    """Whether it is several images: a list, a column of a table, an array of paths or a stack (M, ...)."""
    if isinstance(source, np.ndarray) and source.dtype.kind in "OU":
        return source.ndim == 1
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return source.ndim == 4  # rows of an image are no images
    return isinstance(source, Iterable) and not isinstance(source, str | bytes | os.PathLike | Image.Image)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of an image file as `read_image` would return it, from its header where the file looks whole.

    Damage amid the pixels is only found by `read_image`.

    Raises:
        ImageError: the file is missing, of no known format, or cut off.
    """
    path = Path(path)
    with _opened(path, str(path)) as (image, file):
        # A PNG's own `getexif` would decode the pixels, for what may be behind them
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        size = image.size[::-1] if orientation_of(exif) > 4 else image.size
        told = _header_tells(image, file)
    return size if told else read_image(path).shape[1::-1]


def centre_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image `(H, W, C)`, C-contiguous; `size` is (width, height). ImageError if the image is smaller."""
    height, width = image.shape[:2]
    if width < size[0] or height < size[1]:
        raise ImageError(f"{width} x {height} pixels are too few for a crop of {size[0]} x {size[1]}")
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    return np.ascontiguousarray(image[top : top + size[1], left : left + size[0]])


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 RGB image `(H, W, 3)` as PNG without metadata, complete or not at all; missing folders are made.

    Raises:
        ImageError: the image is not uint8 RGB, or the path does not end in `.png`.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"write_png writes PNG files, so the path must end in .png: {path}")
    check_uint8_rgb(image, f"the image for {path}")
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")


def check_uint8_rgb(image: Any, name: str = "image") -> np.ndarray:
    """Return `image` itself if it is a non-empty uint8 array `(H, W, 3)`; raise an `ImageError` naming it if not."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name} must be a uint8 RGB array (H, W, 3), got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ImageError(f"{name} must be a uint8 RGB array (H, W, 3), got {image.dtype} of shape {image.shape}")
    return image


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"cannot read {name}: no such file") from error
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise ImageError(f"cannot read {name}: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Image.Image, BinaryIO]]:
    with _reading(name), quiet():
        check_regular(path, "it")  # a pipe would keep its reader waiting, a device never end
        # Opened here: given a path, Pillow maps some TIFFs into memory, and then mixes up the rows of turned ones.
        with path.open("rb") as file, _open(file) as image:
            yield image, file


def _open(file: BinaryIO) -> Image.Image:
    """An image file as a PIL image, its pixels to be decoded by `_whole`; ImageError that says why there is none."""
    tags = None
    with contextlib.suppress(Exception):  # damaged: Pillow says how
        tags = deep.read_tags(file)
    if tags:
        check_pixels(tags.get(deep.WIDTH, 0), tags.get(deep.HEIGHT, 0))
        image = deep.open_deep(file, tags)
        if image is not None:
            image.getexif()[ExifTags.Base.Orientation] = tags.get(ExifTags.Base.Orientation, 1)
            return image
        deep.check_layout(tags)
    file.seek(0)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise ImageError(deep.describe(tags) if tags else kind_of(file)) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error} To read it, set {LIMIT} to None or to a larger number") from None
    if image.format == "EPS":
        raise ImageError("PostScript is a program, not an image; convert it to PNG")
    if image.format == "JPEG2000":
        deep.check_jpeg_2000(image, file)
    check_pixels(*image.size)
    return image


def _whole(image: Image.Image, file: BinaryIO) -> Image.Image:
    """The decoded image: rounded if it is a PNG of 16 bits, on its whole canvas if a GIF."""
    tile = image.tile[0] if len(getattr(image, "tile", ())) == 1 else ("", (), 0, "")
    if image.format == "PNG" and tile[3] in ("LA;16B", "RGB;16B", "RGBA;16B") and not image.is_animated:
        return deep.decode_png(image, file)
    image.load()
    if image.format == "GIF" and tile[0] == "gif" and tuple(tile[1]) != (0, 0, *image.size):
        canvas = Image.new("RGBA", image.size)  # transparent
        canvas.paste(image.convert("RGBA").crop(tile[1]), tile[1])
        return canvas
    return image


def _from_file(path: Path, name: str) -> np.ndarray:
    with _opened(path, name) as (image, file):
        return _decode(_whole(image, file))


def _header_tells(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a file ends as its format does, with only pixels behind the header; False for formats not known here."""
    length = file.seek(0, os.SEEK_END)
    if image.format == "PNG":
        return _has_plain_chunks(file)
    if image.format == "BMP" and len(image.tile) == 1 and image.tile[0][0] == "raw":
        _, _, offset, (_, stride, *_) = image.tile[0]
        return offset + stride * image.height <= length
    if image.format != "JPEG":
        return False
    file.seek(max(0, length - 2))
    return file.read() == b"\xff\xd9"


def _has_plain_chunks(file: BinaryIO) -> bool:
    """Whether a PNG file is one chunk after the other up to its end, without metadata behind its first pixels."""
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IEND":
            return pixels and file.read(4) == b"\xaeB`\x82"
        if not kind.isalpha() or (pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")):
            return False
        pixels |= kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)  # its content and checksum
    return False


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    with _reading(name), quiet():  # an image opened by the caller is decoded only now
        if image.format == "TIFF" and hasattr(image, "tag_v2"):
            deep.check_layout(image.tag_v2, decoded=True)
        with _decoding:  # the file of an image that is not decoded yet, for the first of several threads alone
            image.load()
            image.getexif()
        return _decode(image)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name} must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if array.size == 0:
        raise ImageError(f"{name} is empty")
    if np.ma.is_masked(array):
        raise ImageError(f"{name} has masked values; fill them first")
    try:
        return _to_samples(_to_uint8(np.asarray(array)))  # sub-classes have rules of their own
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from error


def _from_tensor(tensor: "torch.Tensor", name: str) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(f"{name} must have shape (1, H, W), (3, H, W) or (4, H, W)")
    try:
        tensor = tensor.detach().cpu()
        array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
    except (RuntimeError, TypeError) as error:  # sparse, meta and quantised tensors
        raise ImageError(f"cannot read {name}: {error}") from error
    return _from_array(array.transpose(1, 2, 0), name)


def _decode(image: Image.Image) -> np.ndarray:
    """Samples of a PIL image of any mode."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    image = upright(image)
    if min(image.size) == 0:
        raise ImageError(f"the image is empty ({image.width} x {image.height})")
    if image.mode == "RGB" and not image.has_transparency_data:
        return np.array(image)
    if image.mode.startswith(("I", "F")):
        return _to_samples(_decode_wide(image, tags))
    if image.mode in ("P", "PA") and (colours := deep.narrow_map(tags)):
        image = image.copy()
        image.putpalette(colours)
    if image.mode == "La":
        image = image.convert("LA")
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _decode_wide(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """uint8 samples `(H, W)`, or `(H, W, 4)` if one value is transparent, of a grey image of more than 8 bits."""
    values = np.asarray(image)
    bits, kind = deep.depth_of(tags)
    if image.mode == "I":  # 32-bit integers: how Pillow holds some 16-bit files
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"32-bit samples must lie in 0..65535, found {values.min()}..{values.max()}")
        values = values.astype(np.uint16)
    narrow = 8 < bits < 16 or (bits == 16 and kind == 2)
    grey = deep.to_8_bits(values, bits, signed=kind == 2) if narrow else _to_uint8(values)
    if tags.get(deep.PHOTOMETRIC) == 0:  # a TIFF whose zero is white; Pillow turns 8-bit ones only
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return np.stack([grey, grey, grey, alpha], axis=-1)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """The same samples as uint8; ValueError if their dtype or range is not one that `read_image` takes."""
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and width == 1:
        return values
    if kind == "u" and width == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind == "f":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise ValueError(f"float samples must lie in [0, 1], found {low} to {high}")
        return np.rint(values.astype(np.result_type(values.dtype, np.float32)) * 255).astype(np.uint8)
    raise ValueError(f"samples must be bool, uint8, uint16 or float in [0, 1], not {values.dtype}")


def _to_samples(samples: np.ndarray) -> np.ndarray:
    """New contiguous array `(H, W, 3 or 4)` of uint8 samples `(H, W)` or `(H, W, C)`."""
    if samples.ndim == 2:
        samples = samples[:, :, None]
    return np.array(np.broadcast_to(samples, (*samples.shape[:2], max(3, samples.shape[2]))), order="C")


def _is_tensor(source: Any) -> bool:
    # A tensor can only exist once torch is imported; reading files must not cost that import.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def check_same_size(source: Any, image: np.ndarray, other_source: Any, other: np.ndarray) -> None:
    """Raise an `ImageError` that names both sources unless their images `(H, W, C)` have one size."""
    if other.shape[:2] != image.shape[:2]:
        size, other_size = (f"{array.shape[1]} x {array.shape[0]}" for array in (image, other))
        raise ImageError(
            f"images differ in size: {describe(source)} is {size} and {describe(other_source)} is {other_size} "
            "(width x height); crop or resize them to one size first"
        )


def describe(source: Any) -> str:
    """How error messages call a source of an image."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image (mode {source.mode}, {source.width} x {source.height})"
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape} ({source.dtype})"
    if _is_tensor(source):
        return f"tensor of shape {tuple(source.shape)} ({source.dtype})"
    return f"object of type {type(source).__name__}"


def check_background(background: Any) -> Background:
    """The background as it enters settings; ImageError if it is none."""
    if isinstance(background, str) and background == "checker":
        return background
    try:
        colour = np.asarray(background)
    except ValueError:  # nested unevenly
        colour = np.empty(0)
    if colour.shape != (3,) or colour.dtype.kind not in "iu" or colour.min() < 0 or colour.max() > 255:
        raise ImageError(f'background must be three integers in 0..255 or "checker", got {background!r}')
    return tuple(colour.tolist())
