"""Whatever comes in: the right 8-bit RGB, or an `ImageError`; never a crash, a hang or a guess."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from tests.small import TINY
from vtamiq.images.reading import ImageError, image_size, read_image
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import score

FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "TGA", "PCX", "ICO", "SGI", "DDS", "QOI"]
FORMATS += [
    name for name, feature in (("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(feature)
]
relaxed = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

shapes = st.one_of(
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5)),
    hnp.array_shapes(min_dims=1, max_dims=5, max_side=4),
)
dtypes = st.sampled_from(
    [
        "?",
        "u1",
        "i1",
        "<u2",
        ">u2",
        "<i2",
        "<u4",
        "<i8",
        "<f2",
        "<f4",
        ">f4",
        "<f8",
        "g",
        "<c8",
        "O",
        "U3",
        "M8[s]",
        "u1,u1",
    ]
)


def expected_of(array):
    """The same by plain arithmetic, or None where `read_image` has to refuse."""
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        return None
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        values = array * 255.0
    elif kind == "u" and width <= 2:
        values = np.floor(array / (1 if width == 1 else 257) + 0.5)
    elif kind == "f" and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        values = np.rint(array.astype(np.result_type(array.dtype, np.float32)) * 255).astype(float)
    else:
        return None
    values = values.reshape(*array.shape[:2], -1)
    if values.shape[2] == 4:
        alpha = values[..., 3:] / 255
        values = np.floor(values[..., :3] * alpha + 255 * (1 - alpha) + 0.5 + 1e-9)
    return np.broadcast_to(values, (*values.shape[:2], 3))


@st.composite
def arrays(draw):
    dtype = draw(dtypes)
    shape = draw(shapes)
    if dtype in ("O", "U3", "M8[s]", "u1,u1"):
        return np.zeros(shape, dtype)
    elements = None
    if np.dtype(dtype).kind == "f":
        span = draw(st.sampled_from([(0, 1), (-1, 1), (0, 255), (None, None)]))
        elements = st.floats(*span, width=16)  # without a span NaN and infinities too
    try:
        return draw(hnp.arrays(dtype, shape, elements=elements))
    except Exception:  # hypothesis has no elements for long doubles
        return np.full(shape, 0.25, dtype)


@relaxed
@given(arrays())
@example(np.full((4, 5, 3), 254.6))
@example(np.full((4, 5, 3), -1e-9))
@example(np.full((4, 5, 3), np.nan))
@example(np.full((4, 5, 3), np.inf, "f2"))
@example(np.full((4, 5, 3), 0.5, "g"))
def test_arrays_of_every_kind(array):
    before, expected = array.tobytes(), expected_of(array)
    if expected is None:
        with pytest.raises(ImageError):
            read_image(array)
    else:
        image = read_image(array)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.flags.writeable
        np.testing.assert_array_equal(image, expected)
        assert not np.shares_memory(image, array)
    assert array.tobytes() == before


@relaxed
@given(
    st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2), slice(1, None, 3)]),
    st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2)]),
    st.sampled_from(["read-only", "Fortran", "memory-mapped", "sub-class", "transposed", "tensor"]),
)
def test_views_are_read_as_their_copies(tmp_path_factory, rows, columns, kind):
    whole = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    if kind == "memory-mapped":
        path = tmp_path_factory.mktemp("map") / "image.npy"
        np.save(path, whole)
        whole = np.load(path, mmap_mode="r")
    elif kind == "Fortran":
        whole = np.asfortranarray(whole)
    elif kind == "transposed":
        whole = whole.swapaxes(0, 1)
    elif kind == "sub-class":
        whole = whole.view(type("Mine", (np.ndarray,), {}))
    view = whole[rows, columns]
    if kind == "read-only":
        view.flags.writeable = False
    plain = np.array(view)
    source = torch.from_numpy(plain).permute(2, 0, 1) if kind == "tensor" else view
    image = read_image(source)
    assert type(image) is np.ndarray
    np.testing.assert_array_equal(image, plain)


def test_masked_values_are_not_guessed():
    values = np.ma.masked_array(np.full((4, 5, 3), 0.5), mask=False)
    np.testing.assert_array_equal(read_image(values), np.full((4, 5, 3), 128))
    values[0, 0] = np.ma.masked
    with pytest.raises(ImageError, match="masked"):
        read_image(values)


def encoded(format, seed=0):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (17, 23, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=format)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {format}")
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_of_every_format(tmp_path, format):
    """Cut off, bytes changed, bytes put in: an image of a plausible size, or an ImageError that names the file."""
    content, rng = encoded(format), np.random.default_rng(1)
    path = tmp_path / "image.bin"
    refused = 0
    for trial in range(60):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[rng.integers(len(damaged)) :]
        for _ in range(rng.integers(1, 6) if damaged and trial % 3 else 0):
            where = rng.integers(min(len(damaged), 100 if trial % 2 else len(damaged)))
            damaged[where : where + trial % 3 // 2] = bytes([rng.integers(256)])
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (read_image, image_size):
                try:
                    found = read(path)
                except ImageError as error:
                    refused += 1
                    assert "image.bin" in str(error)  # noqa: PT017
                else:
                    assert read is image_size or (found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3)
    assert refused > 0


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_file_cut_in_half_is_refused(tmp_path, format):
    content = encoded(format)
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="half"):
        read_image(tmp_path / "half")


@relaxed
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b"II*\0", b"RIFF", b"P6 "]),
)
def test_any_bytes(tmp_path_factory, content, magic):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(magic + content)
    try:
        assert read_image(path).dtype == np.uint8
    except ImageError as error:
        assert "any.png" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_programs_are_not_run(tmp_path, name, monkeypatch):
    """PostScript is a program: Pillow hands it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 moveto\n%%EOF\n"
    )
    with pytest.raises(ImageError, match=f"{name}: PostScript"):
        read_image(tmp_path / name)


def test_a_bomb_is_refused_from_its_header(tmp_path):
    """A few hundred bytes that claim 4 · 10⁹ pixels; nothing is decoded, nothing large is allocated."""
    content = bytearray(encoded("BMP"))
    content[18:26] = (65_000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(content)
    with pytest.raises(ImageError, match=r"bomb\.bmp"):
        read_image(tmp_path / "bomb.bmp")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 60), st.integers(1, 300), st.sampled_from(["u1", "f4", "?", "<u2"]), st.integers(0, 2**32 - 1))
@example(1, 1, "u1", 0)
@example(16, 16, "u1", 0)
@example(15, 300, "f4", 0)
def test_a_score_or_an_error_for_every_size(model, height, width, dtype, seed):
    rng = np.random.default_rng(seed)
    top = {"u1": 256, "<u2": 65536}.get(dtype, 2)
    images = [rng.integers(0, top, (height, width, 3)).astype(dtype) for _ in range(2)]
    if min(height, width) < 16:
        with pytest.raises(ImageError, match="smaller than a patch"):
            score(*images, model=model)
    else:
        assert np.isfinite(score(*images, model=model))
        assert score(images[0], images[0], model=model) == 0
