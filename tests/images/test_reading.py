"""Every kind of source becomes the same uint8 RGB array, or an ImageError that names it."""

import os
import stat
import struct
import warnings
import zlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vtamiq.images.reading import ImageError, check_uint8_rgb, composite, image_size, read_image, read_images, write_png

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def assert_is(image, expected):
    """The result equals the expectation and is what the rest of the package relies on."""
    assert image.dtype == np.uint8
    assert image.shape == (*expected.shape[:2], 3)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image.flags.owndata
    np.testing.assert_array_equal(image, np.broadcast_to(expected.reshape(*expected.shape[:2], -1), image.shape))


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_rgb_file(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert_is(read_image(path), RGB)
    assert_is(read_image(str(path)), RGB)


def test_jpeg_equals_pillow(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(RGB).save(path, quality=70)
    assert_is(read_image(path), np.array(Image.open(path)))


def test_grey_and_binary_files(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    assert_is(read_image(tmp_path / "grey.png"), GREY)
    Image.fromarray(GREY > 127).save(tmp_path / "binary.png")
    assert_is(read_image(tmp_path / "binary.png"), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_file_is_divided_by_257(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [385, 386, 65534, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert_is(read_image(tmp_path / f"deep.{suffix}"), np.array([[0, 0, 1, 1], [1, 2, 255, 255]]))


def test_transparent_value_of_a_16_bit_file(tmp_path):
    Image.fromarray(np.array([[257, 514]], np.uint16)).save(tmp_path / "deep.png", transparency=514)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", background=(9, 8, 7)), [[[1, 1, 1], [9, 8, 7]]])


def test_palette_file(tmp_path):
    image = Image.fromarray(RGB).quantize(4)
    image.save(tmp_path / "palette.png")
    assert_is(read_image(tmp_path / "palette.png"), np.array(image.convert("RGB")))


def test_a_checker_shows_through(tmp_path):
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[0, 0] = (7, 8, 9, 255)
    image = read_image(rgba, background="checker")
    assert image[0, 0].tolist() == [7, 8, 9]
    assert image[[0, 0, 8, 8, 16], [7, 8, 7, 8, 8]].tolist() == [[grey] * 3 for grey in (102, 153, 153, 102, 153)]
    opposite = composite(rgba, "checker", opposite=True)
    assert np.array_equal(opposite[image == 153], np.zeros((image == 153).sum()))
    assert composite(rgba, (0, 128, 127), opposite=True)[1, 1].tolist() == [255, 0, 255]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, "/dev/zero"):
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=f"cannot read {path}: it is no regular file"):
                read(path)


def test_transparent_palette_entry_shows_the_background(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "palette.png", transparency=1)
    expected = [[[10, 20, 30], [1, 2, 3], [70, 80, 90]]]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png", background=(1, 2, 3)), expected)


def test_transparent_colour_of_an_rgb_file(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png", transparency=(4, 5, 6))
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), [[[1, 2, 3], [255, 255, 255]]])


def test_alpha_is_composited_over_the_background(tmp_path):
    pixels = np.array([[[200, 100, 0, 0], [200, 100, 0, 51], [200, 100, 0, 255]]], np.uint8)  # alpha 0, 1/5, 1
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    on_white = [[[255, 255, 255], [244, 224, 204], [200, 100, 0]]]
    on_black = [[[0, 0, 0], [40, 20, 0], [200, 100, 0]]]
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), on_white)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png", background=(0, 0, 0)), on_black)


@given(hnp.arrays(np.uint8, (3, 4, 4)), st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=25, deadline=None)
def test_compositing_rounds_the_exact_mixture(rgba, background):
    alpha = rgba[:, :, 3:] / 255
    exact = alpha * rgba[:, :, :3] + (1 - alpha) * np.array(background)
    assert np.abs(read_image(rgba, background=background) - exact).max() <= 0.5 + 1e-9


def test_cmyk_file(tmp_path):
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert_is(read_image(tmp_path / "cmyk.tif"), np.full((4, 6, 3), (255, 0, 0)))


# EXIF orientation -> what has to be done to the stored pixels
TURNS = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("suffix", "pixels"),
    [
        ("png", RGB),
        ("tif", RGB),
        ("tif", np.tile(GREY, (40, 50))),  # formats that Pillow would map into memory
        ("tif", np.tile(GREY, (40, 50)).astype(np.uint16) * 257),
        ("tif", np.dstack([RGB, np.full_like(GREY, 255)])),
    ],
    ids=["png", "rgb-tif", "grey-tif", "16-bit-tif", "alpha-tif"],
)
def test_exif_orientation_is_applied(tmp_path, orientation, suffix, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    upright = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    assert_is(read_image(path), TURNS[orientation](upright[..., :3] if upright.ndim == 3 else upright))


def test_16_bit_tiff_whose_zero_is_white(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "negative.tif", tiffinfo={262: 0})
    assert_is(read_image(tmp_path / "negative.tif"), 255 - GREY)


def test_first_frame_of_several(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    assert_is(read_image(tmp_path / "frames.tif"), np.full((3, 4, 3), (255, 0, 0)))
    with Image.open(tmp_path / "frames.tif") as image:
        image.seek(1)
        assert_is(read_image(image), np.full((3, 4, 3), (0, 0, 255)))


def test_bad_files_name_file_and_reason(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png.*no such file"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(ImageError, match=r"text\.png.*text file"):
        read_image(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png.*empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="cannot read"):
        read_image(tmp_path)  # a folder
    with pytest.raises(ImageError, match=r"text\.png/below.*no such file"):
        read_image(tmp_path / "text.png" / "below")
    with pytest.raises(ImageError, match=r"xxx.*too long"):
        read_image("x" * 300)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "jp2", "gif"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("limit", [30, 10])  # 35 pixels: Pillow warns, Pillow raises
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"bomb\.png.*(limit|bomb)"):
            read_image(tmp_path / "bomb.png")


def test_global_flags_of_pillow_stay(tmp_path):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    Image.fromarray(RGB).save(tmp_path / "image.png")
    read_image(tmp_path / "image.png")
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# ---- objects in memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_pil_modes(mode):
    black = Image.new("RGB", (5, 4)).convert(mode)
    image = read_image(black, background=(0, 0, 0))
    assert_is(image, np.zeros((4, 5, 3)))


def test_pil_image_is_not_changed_or_shared():
    source = Image.fromarray(RGB)
    image = read_image(source)
    assert_is(image, RGB)
    image[:] = 0
    np.testing.assert_array_equal(np.array(source), RGB)


def test_pil_images_out_of_range():
    with pytest.raises(ImageError, match=r"0\.\.65535"):
        read_image(Image.new("I", (2, 2), -1))
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        read_image(Image.new("F", (2, 2), 255.0))
    with pytest.raises(ImageError, match="empty"):
        read_image(Image.new("RGB", (0, 2)))


@pytest.mark.parametrize("expected", [GREY, GREY[:, :, None], RGB])
def test_uint8_arrays(expected):
    for array in (expected, np.asfortranarray(expected), np.ascontiguousarray(expected[::-1])[::-1]):
        before = array.copy()
        image = read_image(array)
        assert_is(image, expected)
        image[:] = 0
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_8_bit_value_survives_as_float(dtype):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert_is(read_image((values / 255).astype(dtype)), values)


def test_other_dtypes():
    assert_is(read_image(np.array([[True, False]])), np.array([[255, 0]]))
    assert_is(read_image(np.array([[0, 0.5, 1]], np.float16)), np.array([[0, 128, 255]]))
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert_is(read_image(every), np.rint(every / 257))
    assert_is(read_image(every.astype(">u2")), np.rint(every / 257))


def test_alpha_of_16_bit_and_float_arrays():
    rgba = np.dstack([RGB, np.full_like(GREY, 51)])
    expected = read_image(rgba, background=(9, 8, 7))
    np.testing.assert_array_equal(read_image(rgba.astype(np.uint16) * 257, background=(9, 8, 7)), expected)
    np.testing.assert_array_equal(read_image(rgba / 255, background=(9, 8, 7)), expected)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), np.nan), "nan"),
        (np.full((2, 2), np.inf), "inf"),
        (np.full((2, 2), -0.01), r"\[0, 1\]"),
        (np.full((2, 2, 3), 1.01), r"\[0, 1\]"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), object), "object"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
        (np.zeros((3, 8, 8), np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 0), np.uint8), "empty"),
    ],
)
def test_bad_arrays(array, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(array)


def test_tensors():
    channels_first = torch.from_numpy(RGB).permute(2, 0, 1)
    image = read_image(channels_first)
    assert_is(image, RGB)
    image[:] = 0
    np.testing.assert_array_equal(channels_first.permute(1, 2, 0).numpy(), RGB)
    for dtype in (torch.float32, torch.float64):
        assert_is(read_image((channels_first / 255).to(dtype).requires_grad_()), RGB)
    assert_is(read_image(channels_first[:1]), GREY)
    assert_is(read_image(torch.ones(1, 2, 3, dtype=torch.bfloat16)), np.full((2, 3), 255))
    transparent = torch.cat([channels_first, torch.zeros(1, 7, 5, dtype=torch.uint8)])
    assert_is(read_image(transparent), np.full((7, 5, 3), 255))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(4, 4), "shape"),
        (torch.zeros(8, 8, 3), "shape"),
        (torch.zeros(1, 3, 8, 8), "shape"),
        (torch.zeros(3, 0, 8), "empty"),
        (torch.full((3, 2, 2), 2.0), r"\[0, 1\]"),
        (torch.full((3, 2, 2), torch.nan), "nan"),
        (torch.zeros(3, 2, 2, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
        (torch.zeros(3, 2, 2).to_sparse(), "sparse|Sparse"),
        (torch.zeros(3, 2, 2, device="meta"), "meta"),
    ],
)
def test_bad_tensors(tensor, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(tensor)


@pytest.mark.parametrize("source", [None, 3, b"bytes", [[0, 1], [1, 0]]])
def test_other_objects(source):
    with pytest.raises(ImageError, match=type(source).__name__):
        read_image(source)


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (-1, 0, 0), (0.5,) * 3, "white", ((1, 2), (3,))])
def test_bad_background(background):
    with pytest.raises(ImageError, match="background"):
        read_image(RGB, background=background)


# ---- several images ---------------------------------------------------------------------------------------------


def test_read_images_stacks_mixed_sources(tmp_path):
    write_png(tmp_path / "a.png", RGB)
    images = read_images([tmp_path / "a.png", GREY, Image.fromarray(RGB)])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.stack([RGB, np.dstack([GREY] * 3), RGB]))


def test_read_images_names_both_sizes(tmp_path):
    write_png(tmp_path / "a.png", RGB)
    write_png(tmp_path / "b.png", RGB[:6])
    with pytest.raises(ImageError, match=r"a\.png is 5 x 7 .*b\.png is 5 x 6"):
        read_images([tmp_path / "a.png", tmp_path / "b.png"])


def test_read_images_needs_a_sequence(tmp_path):
    with pytest.raises(ImageError, match="at least one"):
        read_images([])
    for one in ("a.png", tmp_path / "a.png", Image.fromarray(RGB), RGB, torch.zeros(3, 8, 8), 3, None):
        with pytest.raises(ImageError, match="sequence"):
            read_images(one)


# ---- writing ----------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
@settings(max_examples=15, deadline=None)
def test_png_round_trip(tmp_path_factory, image):
    path = tmp_path_factory.mktemp("png") / "image.png"
    write_png(path, image)
    assert_is(read_image(path), image)


def test_write_png_is_deterministic_and_leaves_one_file(tmp_path):
    write_png(tmp_path / "a.png", RGB)
    write_png(tmp_path / "b.png", np.asfortranarray(RGB))
    write_png(tmp_path / "b.png", RGB)  # replaces
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_write_png_has_the_mode_of_an_ordinary_file(tmp_path):
    (tmp_path / "ordinary").touch()
    write_png(tmp_path / "a.png", RGB)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", RGB)
    before = (tmp_path / "a.png").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(tmp_path / "a.png", RGB[::-1])
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("image", [GREY, RGB / 255, RGB[:0], np.dstack([RGB, GREY]), Image.fromarray(RGB), None])
def test_only_uint8_rgb_is_written(tmp_path, image):
    with pytest.raises(ImageError, match=r"a\.png.*uint8 RGB"):
        write_png(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


def test_write_png_refuses_other_suffixes(tmp_path):
    with pytest.raises(ImageError, match=r"a\.jpg"):
        write_png(tmp_path / "a.jpg", RGB)


def test_check_uint8_rgb_returns_the_image_and_names_a_bad_one():
    assert check_uint8_rgb(RGB) is RGB
    with pytest.raises(ImageError, match="reference must be a uint8 RGB"):
        check_uint8_rgb(GREY, "reference")


# ---- sizes from headers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_size_comes_from_the_header_and_a_cut_off_file_is_refused(tmp_path, suffix, mode):
    if mode == "P" and suffix in ("jpg", "webp"):
        pytest.skip("the format has no palettes")
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    assert image_size(path) == (45, 31)
    content = path.read_bytes()
    for kept in (len(content) * 3 // 4, 20, 0):
        path.write_bytes(content[:kept])
        with pytest.raises(ImageError, match=rf"cannot read .*image\.{suffix}"):
            image_size(path)


def test_size_of_a_turned_photograph_is_the_one_it_is_read_with(tmp_path):
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (30, 40)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 30, 3)


def test_the_pixels_of_an_ordinary_png_are_not_decoded_for_its_size(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    write_png(tmp_path / "plain.png", np.zeros((30, 40, 3), np.uint8))
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "more.png").write_bytes((tmp_path / "plain.png").read_bytes() + b"more")
    assert read_image(tmp_path / "turned.png").shape == (40, 30, 3)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    sizes = {path.stem: image_size(path) for path in tmp_path.iterdir()}
    assert sizes == {"plain": (40, 30), "turned": (30, 40), "more": (40, 30)}


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    ],
)
def test_a_png_may_say_behind_its_pixels_that_it_is_turned(tmp_path, chunk):
    write_png(tmp_path / "plain.png", np.zeros((30, 40, 3), np.uint8))
    content = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert read_image(tmp_path / "a.png").shape == (40, 30, 3)
    assert image_size(tmp_path / "a.png") == (30, 40)


def test_a_png_of_which_a_power_cut_has_left_zeros_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", noise)
    content = (tmp_path / "a.png").read_bytes()
    for kept in (len(content) // 2, len(content) * 3 // 4):
        (tmp_path / "a.png").write_bytes(content[:kept] + bytes(len(content) - kept))
        with pytest.raises(ImageError, match=r"cannot read .*a\.png"):
            image_size(tmp_path / "a.png")


def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[274] = 9
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (30, 40, 3)
    assert image_size(tmp_path / "a.jpg") == (40, 30)


def test_bytes_after_the_end_of_a_file_are_no_damage(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"more")
    assert image_size(tmp_path / "a.png") == (40, 30)


@pytest.mark.parametrize("path", ["none.png", "a.png/b.png"])
def test_size_of_a_file_that_is_not_there(tmp_path, path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match="no such file"):
        image_size(tmp_path / path)
