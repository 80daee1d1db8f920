"""Files that Pillow reads wrongly are read right or refused by name; every other refusal says what the file is."""

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from vtamiq.images.reading import ImageError, image_size, read_image

RGBA = np.random.default_rng(1).integers(0, 256, (37, 45, 4), dtype=np.uint8)
RGBA[:, :, 3] = np.where(RGBA[:, :, 3] > 60, RGBA[:, :, 3], 255)
RGB, GREY = RGBA[:, :, :3].copy(), RGBA[:, :, 0].copy()
MODES = {"grey": ("minisblack", GREY[:, :, None], ()), "rgb": ("rgb", RGB, ()), "rgba": ("rgb", RGBA, ["unassalpha"]),
         "rgbx": ("rgb", RGBA, ["unspecified"]), "cmyk": ("separated", RGBA, ()),
         "grey alpha": ("minisblack", RGBA[:, :, [0, 3]], ["unassalpha"]), "premultiplied": ("rgb", RGBA, ["assocalpha"]),
         "negative": ("miniswhite", GREY[:, :, None], ())}  # fmt: skip


def eight_bits(name, pixels):
    """What the picture is in 8 bits, by Pillow from pixels in memory."""
    if name in ("grey", "negative"):
        return read_image(pixels if name == "grey" else 255 - pixels)
    mode = {"rgb": "RGB", "rgba": "RGBA", "cmyk": "CMYK", "grey alpha": "LA", "premultiplied": "RGBa"}.get(name)
    if name == "rgbx":
        mode, pixels = "RGB", pixels[:, :, :3]
    height, width = pixels.shape[:2]
    return read_image(Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes()))


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("planar", ["separate", "contig"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "options",
    [{"rowsperstrip": 10}, {"tile": (16, 32)}, {"compression": "zlib", "predictor": True}, {"bigtiff": True},
     {"compression": "zlib", "predictor": True, "tile": (32, 16)}],
    ids=["strips", "tiles", "deflate", "big", "deflate tiles"],
)  # fmt: skip
def test_a_tiff_of_16_bits_equals_its_copy_of_8(tmp_path, name, planar, order, options):
    photometric, pixels, extra = MODES[name]
    if options.get("bigtiff") and order == ">":
        pytest.skip("not read by Pillow")
    values = pixels.astype(f"{order}u2") * 257
    if pixels.shape[2] == 1:
        values, planar = values[:, :, 0], None
    elif planar == "separate":
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, planarconfig=planar, byteorder=order,
        extrasamples=extra, **options)  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), eight_bits(name, pixels))
    assert image_size(tmp_path / "a.tif") == (45, 37)


def write_tiff(path, pixels, **tags):
    """Grey or interleaved samples, written by hand: `tags` are numbers of TIFF tags with a leading t."""
    content = np.ascontiguousarray(pixels).tobytes()
    entries = {256: pixels.shape[1], 257: pixels.shape[0], 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: pixels.shape[0]}
    entries |= {279: len(content)} | {int(key[1:]): value for key, value in tags.items()}
    end = 8 + len(content)
    head, lists = struct.pack("<H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            lists, packed = lists + packed, struct.pack("<I", end + 6 + 12 * len(entries) + len(lists))
        head += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    path.write_bytes(b"II*\0" + struct.pack("<I", end) + content + head + bytes(4) + lists)


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3])
def test_depths_between_8_and_16_are_scaled_by_their_own_maximum(tmp_path, bits, channels):
    top = 2**bits - 1
    values = np.random.default_rng(2).integers(0, top + 1, (5, 7, channels))
    values.flat[:2] = 0, top
    digits = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(5, -1).astype(np.uint8), axis=1)
    write_tiff(tmp_path / "a.tif", rows, t256=7, t258=(bits,) * channels, t277=channels, t262=1 if channels == 1 else 2)
    expected = np.broadcast_to(np.floor(values * 255 / top + 0.5), (5, 7, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    if (bits, channels) == (12, 1):
        with Image.open(tmp_path / "a.tif") as image:
            np.testing.assert_array_equal(read_image(image), expected)


@pytest.mark.parametrize("dtype", ["i2", "i1"])
def test_signed_samples(tmp_path, dtype):
    top = np.iinfo(dtype).max
    values = np.array([[0, 1, top // 2, top]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == np.floor(values[0] * (255 / top) + 0.5).tolist()
    tifffile.imwrite(tmp_path / "b.tif", -values)
    with pytest.raises(ImageError, match=r"b\.tif.*below 0"):
        read_image(tmp_path / "b.tif")


def test_extra_planes_that_are_not_needed_are_not_decoded(tmp_path):
    pixels = np.vstack([GREY, GREY])
    write_tiff(
        tmp_path / "a.tif",
        pixels,
        t257=37,
        t258=(8, 8),
        t277=2,
        t284=2,
        t278=37,
        t338=0,
        t273=(8, 0),
        t279=(37 * 45, 0),
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), read_image(GREY))


def test_every_value_of_16_bits_is_rounded(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([every] * 3), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[:, :, 1], np.rint(every / 257))


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_colour_map_of_8_bits(tmp_path, bits):
    palette = np.random.default_rng(3).integers(0, 256, (2**bits, 3))
    indices = np.random.default_rng(4).integers(0, 2**bits, (6, 16), dtype=np.uint8)
    digits = (indices[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(digits.reshape(6, -1), axis=1)
    for factor in (1, 257):
        colours = tuple((palette.T * factor).ravel().tolist())
        write_tiff(tmp_path / "a.tif", packed, t256=16, t258=bits, t262=3, t320=colours)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), palette[indices])
        with Image.open(tmp_path / "a.tif") as image:
            np.testing.assert_array_equal(read_image(image), palette[indices])


def write_png16(path, values, kind, transparent=b"", interlace=0):
    """A PNG of 16 bits, each of its rows filtered in another way."""
    rows = np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(len(values), -1).astype(int)
    step = 2 * values.shape[2]
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(left, ((1, 0), (0, 0)))[:-1]
    guess = left + above - corner
    paeth = np.select([(abs(guess - left) <= abs(guess - above)) & (abs(guess - left) <= abs(guess - corner)),
                       abs(guess - above) <= abs(guess - corner)], [left, above], corner)  # fmt: skip
    filters = [0 * rows, left, above, (left + above) // 2, paeth]
    lines = b"".join(
        bytes([y % 5]) + ((rows - filters[y % 5])[y] % 256).astype(np.uint8).tobytes() for y in range(len(rows))
    )
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, kind, 0, 0, interlace)
    chunks = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks if c or k == b"IEND"
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("name", ["grey", "rgb", "grey alpha", "rgba"])
def test_a_png_of_16_bits_is_rounded(tmp_path, name):
    channels = ["grey", "rgb", "grey alpha", "rgba"].index(name) + 1
    kind = {1: 0, 2: 2, 3: 4, 4: 6}[channels]
    pixels = MODES[name][1]
    write_png16(tmp_path / "a.png", pixels.astype(np.uint16) * 257, kind)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), eight_bits(name, pixels))
    values = np.random.default_rng(5).integers(0, 65536, pixels.shape)
    write_png16(tmp_path / "a.png", values, kind)
    rounded = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), eight_bits(name, rounded))
    assert image_size(tmp_path / "a.png") == (45, 37)


def test_transparent_colour_of_a_png_of_16_bits(tmp_path):
    values = np.array([[[1000, 2000, 3000], [1001, 2000, 3000]]])
    write_png16(tmp_path / "a.png", values, 2, transparent=struct.pack(">HHH", 1000, 2000, 3000))
    assert read_image(tmp_path / "a.png", background=(9, 8, 7)).tolist() == [[[9, 8, 7], [4, 8, 12]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_files_are_turned_like_others(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.tif", exif=exif)
    deep = RGB.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "b.tif", deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    write_png16(tmp_path / "c.png", deep, 2)
    content = (tmp_path / "c.png").read_bytes()
    chunk = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "c.png").write_bytes(content[:33] + chunk + content[33:])
    for name in ("b.tif", "c.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), read_image(tmp_path / "a.tif"))
        assert image_size(tmp_path / name) == image_size(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_may_be_stored_as_any_integer(tmp_path, kind, suffix):
    value = {1: b"\6\0\0\0", 3: b"\0\6\0\0", 4: b"\0\0\0\6"}[kind]
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0" + bytes([kind]) + b"\0\0\0\1" + value + bytes(4)
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert read_image(path).shape == (40, 30, 3)
    assert image_size(path) == (30, 40)


def test_a_gif_frame_may_be_smaller_than_its_canvas(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (7, 5), (255, 0, 0)).quantize(4).save(file, "GIF")
    content = bytearray(file.getvalue())
    content[6:10] = struct.pack("<HH", 12, 9)
    (tmp_path / "a.gif").write_bytes(content)
    expected = np.full((9, 12, 3), (1, 2, 3))
    expected[:5, :7] = 255, 0, 0
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif", background=(1, 2, 3)), expected)


@pytest.mark.parametrize("deep", [False, True])
def test_grey_with_premultiplied_alpha(tmp_path, deep):
    pixels = np.array([[[50, 100], [255, 255], [0, 0]]], np.uint8)
    values = pixels.astype(np.uint16) * 257 if deep else pixels
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"]
    )
    assert abs(read_image(tmp_path / "a.tif").astype(int)[0, :, 0] - [205, 255, 255]).max() <= 1


KINDS = {
    "empty": b"", "text": b"hello\n" * 9, "HTML": b"\n<!DOCTYPE html><html>404</html>", "SVG": b"<?xml?>\n<svg/>",
    "PDF": b"%PDF-1.7\n", "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JPEG XL": b"\xff\x0a\x12\x34" * 9,
    "JPEG XL image": b"\0\0\0\x0cJXL \r\n\x87\n", "raw camera": b"FUJIFILMCCD-RAW 0201", "OpenEXR": b"v/1\x01\2\0\0\0",
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "NumPy": b"\x93NUMPY\1\0v\0", "archive": b"PK\3\4\x14\0", "video": b"\0\0\0\x18ftypisom\0\0\2\0", "zeros": bytes(99),
    "PostScript": b"%!PS\n",
    "camera": b"II*\0\x10\0\0\0CR\2\0", "damaged TIFF": b"II*\0\x08\0\0\0", "BigTIFF": b"MM\0+\0\x08\0\0" + bytes(8),
    "damaged PNG": b"\x89PNG\r\n\x1a\n" + bytes(20), "no known": bytes(range(128, 160)) + bytes(9),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_says_what_the_file_is(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(KINDS[kind])
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=rf"cannot read .*a\.png: .*{kind}") as caught:
            read(tmp_path / "a.png")
        assert "BufferedReader" not in str(caught.value)


def test_tiffs_that_cannot_be_read_are_refused_by_name(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB.astype("f4") / 255, photometric="rgb")
    with pytest.raises(ImageError, match="float RGB"):
        read_image(path)
    tifffile.imwrite(path, RGB.astype("u4"), photometric="rgb", bigtiff=True)
    with pytest.raises(ImageError, match="3 unsigned samples of 32 bits"):
        read_image(path)
    tifffile.imwrite(path, RGBA, photometric="separated", extratags=[(332, 3, 1, 2, True)])
    with pytest.raises(ImageError, match="inks"):
        read_image(path)
    tifffile.imwrite(path, GREY.astype("f4") / 255, photometric="minisblack", byteorder=">", compression="zlib")
    with pytest.raises(ImageError, match="big-endian"):
        read_image(path)
    write_tiff(path, np.zeros((6, 4), "u1"), t256=4, t257=4, t258=(8, 8, 8), t277=3, t262=6, t530=(2, 2))
    with pytest.raises(ImageError, match="YCbCr"):
        read_image(path)
    write_tiff(path, np.zeros((4, 12), "u1"), t256=4, t258=(8, 8, 8), t277=3, t262=2, t254=1, t330=8)
    with pytest.raises(ImageError, match="raw camera"):
        read_image(path)
    tifffile.imwrite(path, (RGB.astype("u2") * 257).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    with Image.open(path) as image, pytest.raises(ImageError, match=r"separate planes of 16 bits.*give its path"):
        read_image(image)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_jpeg_2000_of_16_bits_is_refused_where_pillow_turns_white_into_black(tmp_path, mode):
    path = tmp_path / "a.jp2"
    Image.new(mode, (20, 15), "white").save(path)
    assert read_image(path).min() == 255
    content = bytearray(path.read_bytes())
    sizes = content.index(b"\xff\x4f\xff\x51") + 42
    content[sizes : sizes + 3 * len(mode) : 3] = bytes([15] * len(mode))  # 16 bits a sample
    path.write_bytes(content)
    with Image.open(path) as image:
        colours = len(image.getbands())
    if colours > 1:
        with pytest.raises(ImageError, match="JPEG 2000 of more than 8 bits"):
            read_image(path)


def test_a_large_image_is_refused_with_the_way_out(tmp_path, monkeypatch, recwarn):
    Image.new("L", (20, 15)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((15, 20, 3), "u2"), photometric="rgb")
    for limit in (200, 100):  # Pillow warns, Pillow raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for name in ("a.png", "b.tif"):
            with pytest.raises(ImageError, match=rf"{name}.*300|20 x 15.*PIL\.Image\.MAX_IMAGE_PIXELS"):
                read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "a.png").shape == (15, 20, 3)
    assert not list(recwarn)


def test_warnings_of_pillow_stay_inside_and_filters_outside(tmp_path, monkeypatch):
    Image.new("L", (20, 15)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)

    def read():
        for _ in range(50):
            with pytest.raises(ImageError):
                read_image(tmp_path / "a.png")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    assert caught == []


@pytest.mark.parametrize("read", [read_image, image_size])
def test_only_regular_files_are_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.png"))
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "s.png", tmp_path / "link.png", tmp_path, "/dev/zero"):
        with pytest.raises(ImageError, match="regular file"):
            read(path)
    server.close()


def test_reading_imports_neither_torch_nor_tifffile(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype("u2"), photometric="rgb")
    code = f"import sys; from vtamiq.images.reading import read_image; read_image({str(tmp_path / 'a.tif')!r}); "
    code += "sys.exit('torch' in sys.modules or 'tifffile' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
