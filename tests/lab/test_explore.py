"""The explorers as widgets: what moves do, and what is said when something is wrong."""

import asyncio
import base64
import datetime
import io
import logging
import threading
import time

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.small import TINY
from vtamiq import CAPS, VTAMIQ, ImageError, distort
from vtamiq.attention.maps import METHODS
from vtamiq.databases.demo import demo_photographs
from vtamiq.lab.explore import Explorer, explore_attention, explore_sampling, explore_score, read_upload
from vtamiq.lab.views import Panel, View, attention_view, sampling_view, score_view

FEW = CAPS(num_patches=8)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype("u1") for name in ("a", "b")}


@pytest.fixture(scope="module")
def model() -> VTAMIQ:
    torch.manual_seed(0)
    return VTAMIQ(TINY)


def shown(explorer: Explorer) -> list[np.ndarray]:
    """The pictures as the browser gets them."""
    return [np.asarray(Image.open(io.BytesIO(image.value))) for image in explorer._images]


def assert_shows(explorer: Explorer, view: View) -> None:
    for image, panel, title in zip(shown(explorer), view.panels, explorer._titles, strict=True):
        np.testing.assert_array_equal(image, panel.image)
        assert panel.title in title.value
    assert view.summary in explorer._line.value
    assert explorer.error is None
    assert "vtamiq-old" not in explorer._pictures._dom_classes


def upload(name: str, content: bytes) -> tuple[dict, ...]:
    moment = datetime.datetime(2021, 10, 4, tzinfo=datetime.UTC)
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": moment}
    return (file,)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class TestSampling:
    def test_moves_show_what_the_function_returns(self, images):
        explorer = explore_sampling(images, distortion="colorblock", level=5, caps=FEW, seed=2)
        pair = np.stack([images["a"], distort(images["a"], "colorblock", 5, 2)])
        assert_shows(explorer, sampling_view(pair, FEW, 2))
        before = [image.value for image in explorer._images]
        explorer.controls["difference"].value = 0
        assert_shows(explorer, sampling_view(pair, CAPS(num_patches=8, difference=0), 2))
        after = [image.value for image in explorer._images]
        assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, False]
        for name, value in {"centre": 2, "uniform": 1, "num_patches": 32, "seed": 7}.items():
            explorer.controls[name].value = value
        assert_shows(explorer, sampling_view(pair, CAPS(num_patches=32, difference=0, centre=2, uniform=1), 7))
        explorer.controls["photograph"].value = "b"
        explorer.controls["distortion"].value = "jpeg"
        pair = np.stack([images["b"], distort(images["b"], "jpeg", 5)])
        assert_shows(explorer, sampling_view(pair, CAPS(num_patches=32, difference=0, centre=2, uniform=1), 7))

    def test_photographs_of_the_packages(self):
        explorer = explore_sampling(photograph="chelsea")
        np.testing.assert_array_equal(shown(explorer)[0], demo_photographs()["chelsea"])  # small as it is
        assert explorer.view.numbers["patches"] == 512
        explorer.controls["photograph"].value = "retina"
        assert shown(explorer)[0].shape == (512, 512, 3)
        assert set(explorer.controls["photograph"].options) == set(demo_photographs())
        explorer.controls["num_scales"].value = 3
        assert "of 64 px" in explorer.view.summary

    def test_odd_values_to_begin_with_have_a_place(self, images):
        caps = CAPS(num_patches=50, difference=7.5)
        explorer = explore_sampling(images, caps=caps, seed=1000)
        values = [explorer.controls[name].value for name in ("num_patches", "difference", "seed")]
        assert values == [50, 7.5, 1000]
        assert explorer.error is None

    def test_an_error_is_said_and_the_next_move_mends_it(self, images):
        explorer = explore_sampling(images, caps=FEW)
        before = [image.value for image in explorer._images]
        for name in ("difference", "centre", "uniform"):
            explorer.controls[name].value = 0
        assert "must have a positive, finite sum" in explorer._line.value
        assert "vtamiq-error" in explorer._line.value
        assert "vtamiq-old" in explorer._pictures._dom_classes
        for name, weight in {"difference": 1, "centre": 0.5, "uniform": 0.25}.items():
            explorer.controls[name].value = weight
        assert explorer.error is None
        assert [image.value for image in explorer._images] == before

    def test_an_image_that_cannot_be_used_is_said(self, images, tmp_path):
        bad = {"small": np.zeros((9, 30, 3), "u1"), "gone": tmp_path / "gone.png", "fine": images["a"]}
        explorer = explore_sampling(bad, caps=FEW)
        assert "30 x 9 (width x height) is smaller than a patch" in explorer.error
        assert [image.layout.display for image in explorer._images] == ["none"] * 4
        assert "image/jpeg" not in explorer._repr_mimebundle_()
        explorer.controls["photograph"].value = "gone"
        assert "no such file" in explorer.error
        explorer.controls["photograph"].value = "fine"
        assert explorer.error is None
        assert [image.layout.display for image in explorer._images] == [None] * 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"photograph": "cofee"}, "no photograph 'cofee'.*coffee"),
            ({"distortion": "jpg"}, "jpg"),
            ({"level": 6}, "level must be one of"),
            ({"images": {}}, "nothing to explore"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            explore_sampling(**options)


class TestAttention:
    def test_moves_show_what_the_function_returns(self, images, model):
        explorer = explore_attention(model, images, caps=FEW, draws=2, trained="nothing")
        pair = [images["a"], distort(images["a"], "jpeg", 3)]
        options = {"draws": 2, "caps": FEW, "trained": "nothing"}
        for method in METHODS:
            explorer.controls["method"].value = method
            assert explorer.controls["head"].disabled == (method != "attention")
            assert_shows(explorer, attention_view(model, *pair, method=method, **options))
        explorer.controls["method"].value = "attention"
        for head in (0, 1):
            explorer.controls["head"].value = head
            assert_shows(explorer, attention_view(model, *pair, method="attention", head=head, block=0, **options))
        explorer.controls["seed"].value = 4
        explorer.controls["draws"].value = 1
        options |= {"draws": 1, "seed": 4, "method": "attention", "head": 1}
        assert_shows(explorer, attention_view(model, *pair, **options))

    def test_refused(self, images, model):
        with pytest.raises(TypeError, match="from_pretrained"):
            explore_attention("folder", images)
        with pytest.raises(ValueError, match=r"no method 'rolout'.*rollout"):
            explore_attention(model, images, method="rolout")


class TestScore:
    def test_moves_show_what_the_function_returns(self, images, model):
        explorer = explore_score(model, images, caps=FEW, repeats=2, level=5)
        pair = [images["a"], distort(images["a"], "jpeg", 5)]
        assert_shows(explorer, score_view(*pair, model=model, caps=FEW, repeats=2))
        explorer.controls["method"].value = "difference"
        explorer.controls["num_patches"].value = 16
        options = {"model": model, "caps": CAPS(num_patches=16), "repeats": 2, "method": "difference"}
        assert_shows(explorer, score_view(*pair, **options))

    def test_two_files(self, images, model):
        explorer = explore_score(model, images, caps=FEW, repeats=2)
        controls = explorer.controls
        assert controls["reference"].layout.display == "none"
        controls["source"].value = "files"
        assert controls["reference"].layout.display is None
        assert controls["photograph"].layout.display == "none"
        assert explorer.error == "Choose the reference and the distorted image."
        assert "vtamiq-error" not in explorer._line.value  # a question, not an error
        controls["reference"].value = upload("x.png", png(images["a"]))
        assert explorer.error == "Choose the distorted image."
        controls["distorted"].value = upload("y.png", png(images["b"]))
        assert_shows(explorer, score_view(images["a"], images["b"], model=model, caps=FEW, repeats=2))
        controls["source"].value = "photograph"
        pair = [images["a"], distort(images["a"], "jpeg", 3)]
        assert_shows(explorer, score_view(*pair, model=model, caps=FEW, repeats=2))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"not an image", "cannot read bad.png: it is a text file, not an image"),
            (b"", "cannot read bad.png: the file is empty"),
            (png(np.zeros((20, 20, 3), "u1"))[:50], "cannot read bad.png"),
            (png(np.zeros((20, 20, 3), "u1")), "images differ in size: good.png is 64 x 48 and bad.png is 20 x 20"),
        ],
    )
    def test_a_bad_file_is_said_and_a_better_one_mends_it(self, images, model, content, message):
        explorer = explore_score(model, images, caps=FEW, repeats=2)
        explorer.controls["source"].value = "files"
        explorer.controls["reference"].value = upload("good.png", png(images["a"]))
        explorer.controls["distorted"].value = upload("bad.png", content)
        assert message in explorer.error
        assert "vtamiq-error" in explorer._line.value
        explorer.controls["distorted"].value = upload("bad.png", png(images["b"]))
        assert_shows(explorer, score_view(images["a"], images["b"], model=model, caps=FEW, repeats=2))

    def test_files_smaller_than_a_patch(self, images, model):
        explorer = explore_score(model, images, caps=FEW)
        explorer.controls["source"].value = "files"
        for name in ("reference", "distorted"):
            explorer.controls[name].value = upload("x.png", png(np.zeros((9, 9, 3), "u1")))
        assert "smaller than a patch" in explorer.error

    def test_refused(self, images):
        with pytest.raises(TypeError, match="VTAMIQ"):
            explore_score("runs/model")


class TestUpload:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
    def test_kinds(self, images, kind):
        buffer = io.BytesIO()
        Image.fromarray(images["a"]).save(buffer, kind)
        np.testing.assert_array_equal(read_upload("x", buffer.getvalue()), images["a"])
        np.testing.assert_array_equal(read_upload("x", memoryview(buffer.getvalue())), images["a"])

    def test_names_are_names_only(self, tmp_path):
        with pytest.raises(ImageError, match=r"^cannot read \.\./\.\./<b>x: it is a text file"):
            read_upload("../../<b>x", b"?")

    def test_errors_name_no_folder_of_this_machine(self, images):
        with pytest.raises(ImageError) as caught:
            read_upload("mine.png", png(images["a"])[:200])
        assert "mine.png" in str(caught.value)
        assert "/" not in str(caught.value)


def plain_view(number: int) -> View:
    image = np.full((20, 30, 3), number, np.uint8)
    return View((Panel("<i>", image),) * 4, {"number": number}, f"{number} < 300")


def a_slider() -> dict[str, ipywidgets.IntSlider]:
    return {"x": ipywidgets.IntSlider(0, 0, 250)}


class TestExplorer:
    def test_texts_are_no_markup(self):
        explorer = Explorer(lambda x: plain_view(x), {"<b>": a_slider()}, "<u>")
        assert "&lt;i&gt;" in explorer._titles[0].value
        assert "0 &lt; 300" in explorer._line.value

    def test_any_failure_is_said_and_logged(self, caplog):
        def compute(x):
            if x == 1:
                raise RuntimeError("out of <memory>")
            return plain_view(x)

        explorer = Explorer(compute, {"": a_slider()})
        with caplog.at_level(logging.ERROR, logger="vtamiq.lab.explore"):
            explorer.controls["x"].value = 1
        assert explorer.error == "RuntimeError: out of <memory>"
        assert "out of &lt;memory&gt;" in explorer._line.value
        assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]
        explorer.controls["x"].value = 2
        assert explorer.error is None
        assert (shown(explorer)[3] == 2).all()

    def test_of_moves_that_wait_only_the_last_is_computed(self):
        computed = []

        def compute(x):
            computed.append(x)
            time.sleep(0.01)
            return plain_view(x)

        async def moves() -> None:
            explorer = Explorer(compute, {"": a_slider()})
            assert computed == [0]  # the first state is there at once
            for x in range(1, 100):
                explorer.controls["x"].value = x
            assert computed == [0]
            assert "computing" in explorer._line.value
            await explorer._waiting
            assert computed == [0, 99]
            assert "computing" not in explorer._line.value
            explorer.controls["x"].value = 5
            await explorer._waiting
            assert computed == [0, 99, 5]
            assert (shown(explorer)[0] == 5).all()

        asyncio.run(moves())

    def test_a_move_during_a_computation_is_not_lost(self):
        explorers = []

        def compute(x):
            if x == 1:  # as if the user went on moving
                explorers[0].controls["x"].value = 2
            return plain_view(x)

        async def moves() -> None:
            explorers.append(Explorer(compute, {"": a_slider()}))
            explorers[0].controls["x"].value = 1
            await explorers[0]._waiting
            await explorers[0]._waiting
            assert (shown(explorers[0])[0] == 2).all()

        asyncio.run(moves())

    def test_moves_of_two_threads_end_at_the_later_one(self):
        begun, go_on = threading.Event(), threading.Event()

        def compute(x):
            if x == 1:
                begun.set()
                assert go_on.wait(60)
            return plain_view(x)

        explorer = Explorer(compute, {"": a_slider()})
        first, second = (
            threading.Thread(target=setattr, args=(explorer.controls["x"], "value", x), daemon=True) for x in (1, 2)
        )
        first.start()
        assert begun.wait(60)
        second.start()
        second.join(0.2)  # long enough to be shown first, if it could be
        go_on.set()
        for thread in (first, second):
            thread.join(60)
        assert explorer.view.numbers == {"number": 2}
        assert (shown(explorer)[0] == 2).all()

    def test_a_failure_in_the_loop_is_said(self):
        async def moves() -> None:
            explorer = Explorer(lambda x: plain_view(1 // (1 - x)), {"": a_slider()})
            explorer.controls["x"].value = 1
            await explorer._waiting
            assert "ZeroDivisionError" in explorer.error

        asyncio.run(moves())

    def test_readers_without_a_kernel_see_a_picture(self, images):
        explorer = explore_sampling(images, caps=FEW)
        bundle = explorer._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.model_id
        assert bundle["text/plain"] == explorer.view.summary
        with Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"]))) as image:
            assert image.size == explorer.view.picture().shape[1::-1]
