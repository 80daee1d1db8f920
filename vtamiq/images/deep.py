"""Files that Pillow misreads: PNG of 16 bits; TIFF of separate planes, other depths, signed samples, narrow colour maps.

Pillow still undoes the compression: it gets a TIFF described as grey rows of bytes, and the samples are cut from
these. The result is a PIL image of 8 bits, as Pillow would make it of the 8-bit copy of the file.
"""

import contextlib
import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Tags

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES = 256, 257, 258, 259, 262, 266, 277
STRIPS, ROWS, STRIP_SIZES, PLANAR, PREDICTOR, COLOUR_MAP = 273, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, INK_SET, EXTRA, FORMAT, SUBSAMPLING = 322, 323, 324, 325, 332, 338, 339, 530
CMYK, YCBCR, CFA = 5, 6, 32803  # photometric interpretations
SUBFILE, SUB_IMAGES, DNG_VERSION = 254, 330, 50706
COLOURS = {0: 1, 1: 1, 2: 3, CMYK: 4}
# Of bytes, whatever they mean: none, LZW, deflate (two numbers), PackBits, LZMA, Zstandard
BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)
PREMULTIPLIED = 1


def read_tags(file: BinaryIO) -> Tags | None:
    """The tags of a file's first image; None if it is no TIFF that Pillow knows."""
    file.seek(0)
    head = file.read(8)
    if not head.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return None
    if 43 in head[2:4]:  # BigTIFF
        head += file.read(8)
    tags = Tags(head)
    file.seek(tags.next)
    tags.load(file)
    return tags


def depth_of(tags: Tags) -> tuple[int, int]:
    """(bits per sample, sample format: 1 unsigned, 2 signed, 3 float) of an image; (0, 0) if samples differ in them."""
    bits, kinds = set(_many(tags.get(BITS, 1))), set(_many(tags.get(FORMAT, 1)))
    return (bits.pop(), kinds.pop()) if len(bits) == len(kinds) == 1 else (0, 0)


def narrow_map(tags: Tags) -> bytes | None:
    """RGB colours of a palette that are stored in 8 bits, where the standard asks for 16; None if they are not."""
    colours = tags.get(COLOUR_MAP)
    if not colours or max(colours) > 255:
        return None
    return np.array(colours, np.uint8).reshape(3, -1).T.tobytes()


def check_layout(tags: Tags, *, decoded: bool = False) -> None:
    """Raise a ValueError that names what Pillow would read as noise; `decoded` if it has to be read by Pillow."""
    bits, kind = depth_of(tags)
    if tags.get(SUBFILE, 0) & 1 and SUB_IMAGES in tags:
        raise ValueError("the first image of this TIFF is a preview, as in raw camera files; develop it to PNG")
    if tags.get(PHOTOMETRIC) == CMYK and tags.get(INK_SET, 1) != 1:
        raise ValueError("TIFF with inks other than CMYK; convert it to RGB")
    if kind == 3 and tags.get(SAMPLES, 1) > 1:
        raise ValueError("float RGB TIFF; only grey may be float: convert it to 16 bits")
    subsampled = tuple(tags.get(SUBSAMPLING, (2, 2))) != (1, 1)
    if tags.get(PHOTOMETRIC) == YCBCR and tags.get(COMPRESSION, 1) == 1 and (subsampled or _is_separate(tags)):
        raise ValueError("uncompressed TIFF of subsampled or separate YCbCr; convert it to RGB")
    if bits == 32 and tags.prefix == b"MM" and tags.get(COMPRESSION, 1) != 1:
        raise ValueError("compressed big-endian TIFF of 32 bits, which Pillow reads wrongly; store it uncompressed")
    if _is_separate(tags) and (bits != 8 or tags.get(FILL_ORDER) == 2 or PREMULTIPLIED in _many(tags.get(EXTRA, ()))):
        how = ": give its path instead of a PIL image" if decoded else "; convert it to interleaved RGB"
        raise ValueError(f"TIFF with separate planes of {bits} bits, which Pillow reads wrongly{how}")


def open_deep(file: BinaryIO, tags: Tags) -> Image.Image | None:
    """The file's first image in 8 bits, without its orientation; None where Pillow reads it right or not at all."""
    (bits, kind), photometric = depth_of(tags), tags.get(PHOTOMETRIC, 0)
    if not (1 <= bits <= 16 and kind in (1, 2) and photometric in COLOURS and tags.get(COMPRESSION, 1) in BYTEWISE):
        return None
    if not (bits > 8 or kind == 2 or _is_separate(tags)) or tags.get(SAMPLES, 1) < COLOURS[photometric]:
        return None
    if bits not in (8, 16) and tags.get(PREDICTOR, 1) != 1:
        raise ValueError(f"TIFF of {bits} bits with a predictor; convert it to 8 or 16 bits")
    mode = _mode_of(photometric, tags.get(SAMPLES, 1), _many(tags.get(EXTRA, ())))
    samples = to_8_bits(_read_samples(file, tags, bits, len(mode)), bits, signed=kind == 2)
    if photometric == 0:
        samples[:, :, 0] = 255 - samples[:, :, 0]
    return Image.frombytes(mode, samples.shape[1::-1], samples.tobytes())


def to_8_bits(values: np.ndarray, bits: int, signed: bool = False) -> np.ndarray:
    """Integer samples of so many bits as uint8, rounded; ValueError for samples below zero, which arrive unsigned."""
    top = 2 ** (bits - signed) - 1
    if values.max() > top:
        raise ValueError("signed TIFF with samples below 0; shift them into the positive range")
    if top == 255:
        return values.astype(np.uint8)
    return ((values.astype(np.uint32) * 510 + top) // (2 * top)).astype(np.uint8)


def decode_png(image: Image.Image, file: BinaryIO) -> Image.Image:
    """RGB(A) of 8 bits, rounded, of an opened PNG of 16 bits, of which Pillow would keep the high bytes."""

    def decode(mode: str) -> np.ndarray:
        nonlocal image
        file.seek(0)
        image = Image.open(file)
        image.tile = [(codec, box, offset, mode)]
        return np.array(image).astype(np.uint16)

    codec, box, offset, mode = image.tile[0]
    if mode == "LA;16B":
        four = decode("RGBA")  # high and low byte of grey, then of alpha
        high, low = four[:, :, [0, 0, 0, 2]], four[:, :, [1, 1, 1, 3]]
    else:
        high, low = decode(mode), decode(mode[:-1] + "L")
    values = (high << 8) | low
    samples = to_8_bits(values, 16)
    transparent = image.info.pop("transparency", None)
    if transparent is not None:
        seen = (values != np.array(transparent)).any(axis=2, keepdims=True)
        samples = np.concatenate([samples, seen.astype(np.uint8) * np.uint8(255)], axis=2)
    rounded = Image.fromarray(samples)
    rounded.info = image.info  # it may be turned
    return rounded


def check_jpeg_2000(image: Image.Image, file: BinaryIO) -> None:
    """Raise a ValueError for colours of more than 8 bits, in which Pillow's rounding turns white into black."""
    file.seek(0)
    _, start, header = file.read(65536).partition(b"\xff\x4f\xff\x51")  # the sizes, at the start of the code stream
    if start and len(image.getbands()) > 1 and max(header[38 : 38 + 3 * header[37] : 3], default=0) & 127 > 7:
        raise ValueError("JPEG 2000 of more than 8 bits in colour, which Pillow reads wrongly; convert it to PNG")


def describe(tags: Tags) -> str:
    """What a TIFF is that Pillow cannot open, and what to do."""
    if tags.get(PHOTOMETRIC) == CFA or DNG_VERSION in tags:
        return "it is a raw camera file; develop it to PNG"
    bits, kind = depth_of(tags)
    kinds = {1: "unsigned", 2: "signed", 3: "float"}.get(kind, "other")
    return (
        f"it is a TIFF of {tags.get(SAMPLES, 1)} {kinds} samples of {bits or 'several'} bits a pixel, photometric "
        f"interpretation {tags.get(PHOTOMETRIC)}, compression {tags.get(COMPRESSION, 1)}, which Pillow cannot read; "
        "convert it to PNG"
    )


def _mode_of(photometric: int, count: int, extra: tuple[int, ...]) -> str:
    """Pillow's name for `count` samples a pixel; it has a letter for each of those that are used."""
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[COLOURS[photometric]]
    # As Pillow has it for 8 bits, RGB with a fourth sample of unstated meaning has transparency
    alpha = extra[0] if extra else 2 * (photometric == 2)
    if count == len(mode) or mode == "CMYK" or alpha not in (PREMULTIPLIED, 2, 999):
        return mode
    return mode + ("a" if alpha == PREMULTIPLIED else "A")


def _read_samples(file: BinaryIO, tags: Tags, bits: int, used: int) -> np.ndarray:
    """The first `used` samples a pixel, `(H, W, used)`, unsigned and of up to 16 bits."""
    file.seek(0)
    content = file.read()
    order, count = (">u2" if tags.prefix == b"MM" else "<u2"), tags.get(SAMPLES, 1)
    separate = _is_separate(tags)
    planes = []
    for plane in range(used if separate else 1):
        rows = _decompress(content, tags, (1 if separate else count) * bits, (plane, count) if separate else (0, 1))
        if bits == 16:
            values = rows.view(order).astype(np.uint16)
        elif bits == 8:
            values = rows
        else:
            width = tags[WIDTH] * (1 if separate else count)
            single = np.unpackbits(rows, axis=1)[:, : width * bits].reshape(len(rows), width, bits)
            values = single @ (1 << np.arange(bits, dtype=np.uint16)[::-1])
        values = values.reshape(len(rows), tags[WIDTH], -1)
        if tags.get(PREDICTOR, 1) == 2:
            step = tags.get(TILE_WIDTH, tags[WIDTH])
            parts = [values[:, x : x + step] for x in range(0, tags[WIDTH], step)]
            values = np.concatenate([np.cumsum(part, axis=1, dtype=values.dtype) for part in parts], axis=1)
        planes.append(values)
    return np.concatenate(planes, axis=2)[:, :, :used]


def _decompress(content: bytes, tags: Tags, pixel_bits: int, part: tuple[int, int]) -> np.ndarray:
    """Bytes `(H, bytes per row)` of an image, or of plane `part[0]` of `part[1]`."""
    new = {WIDTH: -(-tags[WIDTH] * pixel_bits // 8), HEIGHT: tags[HEIGHT], BITS: 8, PHOTOMETRIC: 1, SAMPLES: 1}
    new |= {tag: tags[tag] for tag in (COMPRESSION, FILL_ORDER, ROWS, TILE_HEIGHT) if tag in tags}
    if TILE_WIDTH in tags:
        new[TILE_WIDTH] = tags[TILE_WIDTH] * pixel_bits // 8
    for tag in (STRIPS, STRIP_SIZES, TILES, TILE_SIZES):
        if tag in tags:
            segments = _many(tags[tag])
            length = len(segments) // part[1]
            new[tag] = segments[part[0] * length : (part[0] + 1) * length]
    end = len(content)
    described = io.BytesIO(b"II*\0" + struct.pack("<I", end) + content[8:] + _directory(new, end))
    with contextlib.closing(TiffImagePlugin.TiffImageFile(described)) as image:
        return np.array(image)


def _directory(tags: dict[int, int | tuple[int, ...]], offset: int) -> bytes:
    """Tags of 32-bit integers as they are stored `offset` bytes behind the start of a file."""
    entries, lists = [struct.pack("<H", len(tags))], b""
    offset += 2 + 12 * len(tags) + 4  # of the lists, which are stored behind the entries
    for tag, value in sorted(tags.items()):
        values = _many(value)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            lists, packed = lists + packed, struct.pack("<I", offset + len(lists))
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + packed)
    return b"".join(entries) + bytes(4) + lists


def _is_separate(tags: Tags) -> bool:
    return tags.get(PLANAR, 1) == 2 and tags.get(SAMPLES, 1) > 1


def _many(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
