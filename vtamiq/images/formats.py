"""What the readers of image files share: limits, orientation, silence, and names for files that Pillow cannot open."""

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ExifTags, Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any handler Python prints a library's errors
LIMIT = "PIL.Image.MAX_IMAGE_PIXELS"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_quiet = threading.Lock()
_readers: list[warnings.catch_warnings] = []  # one a reader; the first holds the user's filters

# First bytes of a file that Pillow cannot open -> what it is, and what to do
KINDS = {
    rb"\s*<!doctype html|\s*<html": "an HTML page; a download that went wrong?",
    rb"\s*(<\?xml[^>]*>)?\s*(<!.*>\s*)*<svg": "an SVG drawing; render it as PNG",
    rb"\s*<\?xml": "an XML file, not an image",
    rb"%!PS": "PostScript, a program and not an image; convert it to PNG",
    rb"%PDF-": "a PDF document; export its image as PNG",
    rb"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    rb"....ftypavi[fs]": "an AVIF image, for which this Pillow has no decoder; convert it to PNG",
    rb"....ftyp(hei|hev|mif1|msf1)": "a HEIC image; it needs a plug-in of Pillow such as pillow-heif, or convert it to PNG",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL image; it needs a plug-in of Pillow, or convert it to PNG",
    rb"....ftypcrx|FUJIFILMCCD-RAW|II\*\0....CR|IIU\0|IIR[OS]|MMOR|FOVb|\0MRM": "a raw camera file; develop it to PNG",
    rb"....ftyp|\x1a\x45\xdf\xa3|OggS|\0\0\x01\xba|RIFF....AVI ": "a video; extract a frame as PNG",
    rb"II\xbc": "a JPEG XR image; convert it to PNG",
    rb"\xff\xd8\xff\xf7": "a JPEG-LS image; convert it to PNG",
    rb"v/1\x01": "an OpenEXR image of float samples; map it to 8 or 16 bits",
    rb"#\?(RADIANCE|RGBE)": "a Radiance HDR image of float samples; map it to 8 or 16 bits",
    rb"P[Ff]4?\s": "a PFM image of float samples; map it to 8 or 16 bits",
    rb"\x93NUMPY": "a NumPy file; load it and give the array",
    rb"\x89HDF|CDF|SIMPLE  =": "a file of scientific data; load it and give an array",
    rb"8BP[SB]|gimp xcf": "a layered file of Photoshop or GIMP that Pillow cannot read; export it as PNG",
    rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ": "an archive; unpack it",
    rb"MM\0\x2b": "a big-endian BigTIFF, which Pillow cannot read; convert it to an ordinary TIFF or PNG",
    rb"II\*\0|MM\0\*|II\x2b\0": "a damaged TIFF file",
    rb"\x89PNG": "a damaged PNG file",
    rb"\xff\xd8": "a damaged JPEG file, or of a kind that Pillow cannot read",
    rb"GIF8": "a damaged GIF file",
    rb"BM": "a damaged BMP file, or of a kind that Pillow cannot read",
    rb"RIFF....WEBP": "a damaged WebP file",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "a damaged JPEG 2000 file, or of a kind that Pillow cannot read",
    rb"\0+$": "a file of zeros, as a power cut leaves it",
    rb"\xff\xfe|\xfe\xff|[\t\n\r\x20-\x7e\x80-\xff]*$": "a text file, not an image",
}


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says."""
    turn = TURNS.get(orientation_of(image.getexif()))
    return image if turn is None else image.transpose(turn)


def orientation_of(exif: Image.Exif) -> int:
    """EXIF orientation 1..8, however it is stored; 1 if it is none of these."""
    value = exif.get(ExifTags.Base.Orientation, 1)
    value = value[0] if isinstance(value, bytes | tuple) and value else value
    return value if value in range(1, 9) else 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of Pillow from the user, in any number of threads at once, and leave the user's filters alone."""
    with _quiet:
        _readers.append(warnings.catch_warnings())
        if len(_readers) == 1:
            _readers[0].__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _quiet:
            if len(_readers) == 1:
                _readers[0].__exit__()
                _readers.clear()
            else:
                _readers.pop()


def check_pixels(width: int, height: int) -> None:
    """Raise a ValueError that says the way out if an image is larger than Pillow's limit, at twice which it raises."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{width} x {height} pixels exceed Pillow's limit of {limit} pixels, which guards against bombs; "
            f"to read it, set {LIMIT} to None or to a larger number"
        )


def kind_of(file: BinaryIO) -> str:
    """What a file is that Pillow cannot open, told by its first bytes, and what to do."""
    file.seek(0)
    head = file.read(512).removeprefix(b"\xef\xbb\xbf")  # the mark that UTF-8 text may begin with
    if not head:
        return "the file is empty"
    kinds = (kind for start, kind in KINDS.items() if re.match(start, head, re.DOTALL | re.IGNORECASE))
    return f"it is {next(kinds, 'of no known image format')}"
