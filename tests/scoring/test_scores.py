"""Scoring pairs and whole databases."""

import contextlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.small import TINY, small_database
from vtamiq.caps import CAPS, caps_for
from vtamiq.images.reading import ImageError, composite, read_image, read_images, write_png
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring import predictions
from vtamiq.scoring.loss import VTAMIQLoss
from vtamiq.scoring.metric import VTAMIQMetric
from vtamiq.scoring.predictions import _PairDraws, predict
from vtamiq.scoring.scores import ReferenceEmbedding, score
from vtamiq.scoring.table import score_table
from vtamiq.utils.files import write_table


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return small_database(tmp_path_factory.mktemp("pairs"), references=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@pytest.fixture(scope="module")
def pair(database):
    return [database.path(database.pairs.loc[3, name]) for name in ("ref_path", "dist_path")]


def test_same_score_from_path_pil_array_and_tensor(model, pair):
    expected = score(*pair, model=model)
    arrays = [read_image(path) for path in pair]
    assert isinstance(expected, float)
    assert score(*(Image.open(path) for path in pair), model=model) == expected
    assert score(*arrays, model=model) == expected
    assert score(*(torch.from_numpy(a).permute(2, 0, 1) for a in arrays), model=model) == expected


def test_a_copy_scores_zero(model, pair):
    assert score(pair[0], pair[0], model=model) == 0


def test_list_is_scored_as_if_one_by_one(model, database):
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:3]]
    together = score(reference, distorted, model=model)
    assert together.shape == (3,)
    np.testing.assert_array_equal(together, [score(reference, image, model=model) for image in distorted])


def test_repeats_average_independent_draws(model, pair):
    caps = CAPS(num_patches=6)
    mean, error = score(*pair, model=model, repeats=4, caps=caps, return_std=True)
    assert mean == score(*pair, model=model, repeats=4, caps=caps)
    assert error > 0
    assert score(*pair, model=model, caps=caps, seed=0) != score(*pair, model=model, caps=caps, seed=1)
    assert np.isnan(score(*pair, model=model, return_std=True)[1])


def test_mode_of_the_model_is_restored(pair):
    model = VTAMIQ(TINY).train()
    score(*pair, model=model)
    assert model.training
    assert model.head.training


def test_caps_follow_the_model():
    model = VTAMIQ(replace(TINY, num_scales=3, uv_anchor="corner"))
    caps = caps_for(model, num_patches=9)
    assert (caps.num_patches, caps.num_scales, caps.uv_anchor, caps.patch_size) == (9, 3, "corner", 16)
    assert caps_for(model, CAPS(num_scales=2, patch_size=8)).num_scales == 3
    assert caps_for(VTAMIQ(TINY), CAPS(num_scales=2)).num_scales == 2
    assert caps_for(model, CAPS(patch_size=8)).patch_size == 16


def test_without_any_model_says_what_to_do(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("vtamiq.model.inference.SHIPPED", tmp_path)
    with pytest.raises(CheckpointError, match="from_pretrained"):
        score(*pair)


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"distorted": []}, {"seed": -1}])
def test_bad_arguments(model, pair, bad):
    with pytest.raises(ValueError, match=r"repeats|no distorted|seed"):
        score(
            pair[0], bad.get("distorted", pair[1]), model=model, repeats=bad.get("repeats", 1), seed=bad.get("seed", 0)
        )


def test_sizes_must_agree(model, pair):
    with pytest.raises(ImageError, match="differ in size"):
        score(pair[0], np.zeros((50, 48, 3), np.uint8), model=model)


def test_an_image_smaller_than_a_patch_is_named(model, tmp_path):
    write_png(tmp_path / "small.png", np.zeros((10, 12, 3), np.uint8))
    with pytest.raises(ImageError, match=r"small\.png: an image of 12 x 10 .* is smaller than a patch of 16 px"):
        score(tmp_path / "small.png", tmp_path / "small.png", model=model)


def test_lists_and_stacks_are_paired(model, database):
    paths = [[database.path(path) for path in database.pairs[name][:8:3]] for name in ("ref_path", "dist_path")]
    expected = [score(*pair, model=model) for pair in zip(*paths, strict=True)]
    assert score(*paths, model=model).tolist() == expected
    stacks = [np.stack([read_image(path) for path in side]) for side in paths]  # (3, H, W, 3)
    assert score(*stacks, model=model).tolist() == expected
    assert score(*(torch.from_numpy(s).permute(0, 3, 1, 2) for s in stacks), model=model).tolist() == expected
    assert score(stacks[0][0], stacks[1][:1], model=model).tolist() == expected[:1]


@pytest.mark.parametrize(("references", "distorted"), [(2, None), (2, 3), (1, 2)])
def test_references_and_distorted_images_must_pair_up(model, pair, references, distorted):
    with pytest.raises(ValueError, match="reference"):
        score([pair[0]] * references, pair[1] if distorted is None else [pair[1]] * distorted, model=model)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_batches_change_nothing_but_rounding(model, database, batch_size):
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:3]]
    options = {"model": model, "repeats": 3, "caps": CAPS(num_patches=6), "return_std": True}
    expected = score(reference, [reference, *distorted], **options)
    found = score(reference, [reference, *distorted], batch_size=batch_size, **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0][0] == 0


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near(model, pair, precision):
    expected = score(*pair, model=model)
    assert score(*pair, model=model, precision=precision) == pytest.approx(expected, abs=2e-2)
    assert score(*pair, model=model, precision=precision) != expected
    assert score(pair[0], pair[0], model=model, precision=precision) == 0
    dtype = getattr(torch, precision)
    assert score(*pair, model=deepcopy(model).to(dtype)) == pytest.approx(expected, abs=2e-2)


def test_double_precision_agrees(model, pair):
    assert score(*pair, model=deepcopy(model).double()) == pytest.approx(score(*pair, model=model), abs=1e-6)


def test_a_score_that_is_not_finite_is_refused(pair):
    model = VTAMIQ(TINY)
    with torch.no_grad():
        model.head.output.bias.fill_(torch.inf)
    with pytest.raises(CheckpointError, match="not finite"):
        score(*pair, model=model)


def test_a_path_is_no_model(pair):
    with pytest.raises(TypeError, match="from_pretrained"):
        score(*pair, model="folder")


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"repeats": 1.5}, {"seed": True}, {"precision": "half"}])
def test_further_bad_arguments(model, pair, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        score(*pair, model=model, **bad)


def test_direction_range_and_origin(model, tmp_path):
    assert model.lower_better is True
    assert model.score_range == (-np.inf, np.inf)
    assert model.perfect_score == 0
    assert VTAMIQ(replace(TINY, zero_anchor=False)).perfect_score is None
    assert model.origin == "initial values, not loaded from anywhere"
    model.save_pretrained(tmp_path)
    assert VTAMIQ.from_pretrained(tmp_path).origin == str(tmp_path)


# ----------------------------------------------------------------------------------------- one reference, embedded once


@pytest.mark.parametrize("scales", [1, 2])
def test_with_its_only_version_as_guide_it_is_the_score(database, scales):
    torch.manual_seed(1)
    model = VTAMIQ(replace(TINY, num_scales=scales)).eval()
    paths = [database.path(database.pairs.loc[3, name]) for name in ("ref_path", "dist_path")]
    options = {"model": model, "repeats": 3, "seed": 2, "caps": CAPS(num_patches=9, shuffle=True)}
    expected = score(*paths, return_std=True, **options)
    embedding = ReferenceEmbedding(paths[0], guides=[paths[1]], **options)
    assert embedding.score(paths[1], return_std=True) == pytest.approx(expected, abs=1e-6)
    assert score(*paths, shared_positions=True, return_std=True, **options) == pytest.approx(expected, abs=1e-6)


def test_shared_positions_are_those_of_the_mean_difference(model, database):
    """The same samples that CAPS draws of all versions at once, through the network as one item."""
    paths = [database.path(database.pairs.loc[0, "ref_path"])]
    paths += [database.path(path) for path in database.pairs["dist_path"][:4]]
    (sample,) = caps_for(model).draws(read_images(paths), 5, [0])
    with torch.inference_mode():
        expected = model(sample.patches[None], sample.uv[None], sample.scale[None])[0].numpy()
    for batch_size in (1, 3):
        q = score(paths[0], paths[1:], model=model, seed=5, shared_positions=True, batch_size=batch_size)
        np.testing.assert_allclose(q, expected, atol=1e-6)
    assert not np.allclose(q, score(paths[0], paths[1:], model=model, seed=5), atol=1e-6)


def test_an_embedding_without_guides_scores_each_version_on_its_own(model, database):
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:3]]
    embedding = ReferenceEmbedding(reference, model=model, caps=CAPS(num_patches=9), repeats=2)
    together = embedding.score([reference, *distorted])
    assert together[0] == 0
    assert [embedding.score(image) for image in distorted] == together[1:].tolist()
    alone = caps_for(model, CAPS(num_patches=9, difference=0))
    expected = score(reference, distorted[2], model=model, caps=alone, repeats=2)
    assert together[3] == pytest.approx(expected, abs=1e-6)


def test_the_reference_is_embedded_once(database, monkeypatch):
    torch.manual_seed(0)
    model = VTAMIQ(TINY).eval()
    encoded = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda patches, *rest: encoded.append(patches.shape[1]) or encode(patches, *rest)
    )
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:4]]
    score(reference, distorted, model=model, shared_positions=True)
    assert sum(encoded) == 1 + 4
    encoded.clear()
    score(reference, distorted, model=model)
    assert sum(encoded) == 2 * 4


def test_embeddings_refuse(model, pair):
    embedding = ReferenceEmbedding(pair[0], model=model)
    with pytest.raises(ImageError, match=r"r0\.png is 48 x 48 and array .* is 48 x 50"):
        embedding.score(np.zeros((50, 48, 3), np.uint8))
    with pytest.raises(ImageError, match="differ in size"):
        ReferenceEmbedding(pair[0], model=model, guides=[np.zeros((50, 48, 3), np.uint8)])
    with pytest.raises(ValueError, match="aligned"):
        ReferenceEmbedding(pair[0], model=model, caps=CAPS(aligned=False))
    with pytest.raises(ValueError, match="no distorted"):
        embedding.score([])
    with pytest.raises(ValueError, match="batch_size"):
        embedding.score(pair[1], batch_size=0)
    with pytest.raises(ValueError, match="one reference"):
        score([pair[0]], [pair[1]], model=model, shared_positions=True)


# ------------------------------------------------------------------------------------------------------------- transparency


def logo(alpha, grey=255, side=40):
    """A square of one grey in the middle of a transparent image, (H, W, 4)."""
    image = np.zeros((side, side, 4), np.uint8)
    image[..., :3] = grey
    image[12:28, 12:28, 3] = alpha
    return image


@pytest.mark.parametrize("background", [(255, 255, 255), (128, 128, 128), "checker"])
@pytest.mark.parametrize("grey", [0, 102, 128, 255])
def test_a_logo_of_any_grey_differs_from_nothing(model, background, grey):
    here, gone = logo(255, grey), logo(0, grey)
    options = {"model": model, "background": background, "repeats": 2}
    q = score(here, gone, **options)
    assert q != 0
    over = [composite(image, background, opposite) for opposite in (False, True) for image in (here, gone)]
    expected = np.mean([score(*over[:2], model=model, repeats=2), score(*over[2:], model=model, repeats=2)])
    assert q == pytest.approx(expected, abs=1e-9)
    assert score(here, here, **options) == 0
    embedding = ReferenceEmbedding(here, guides=[gone], **options)
    assert embedding.score([here, gone, here]).tolist() == pytest.approx([0, q, 0], abs=1e-6)
    assert score(here, [gone], shared_positions=True, **options)[0] == pytest.approx(q, abs=1e-6)


def test_an_opaque_reference_sees_what_is_transparent(model):
    opaque = np.full((40, 40, 3), 255, np.uint8)
    assert score(opaque, logo(255), model=model) != 0
    assert ReferenceEmbedding(opaque, model=model).score(logo(255)) != 0
    assert score(opaque, np.dstack([opaque, opaque[..., :1]]), model=model) == 0  # alpha of 255 everywhere


def test_the_background_shows_through(model, tmp_path):
    Image.fromarray(logo(128, 40)).save(tmp_path / "a.png")
    Image.fromarray(logo(128, 90)).save(tmp_path / "b.png")
    pair = tmp_path / "a.png", tmp_path / "b.png"
    black, white = (score(*pair, model=model, background=colour) for colour in ((0, 0, 0), (255, 255, 255)))
    assert black != white == score(*pair, model=model)
    assert black == score(*(read_image(path, background=(0, 0, 0)) for path in pair), model=model)
    table = pd.DataFrame({"reference": ["a.png", "a.png"], "distorted": ["b.png", "a.png"]})
    scored = score_table(table, root=tmp_path, model=model, background=[0, 0, 0])
    assert scored["q"].tolist() == [black, 0]
    with pytest.raises(ImageError, match=r'background must be three integers in 0\.\.255 or "checker", got .black'):
        score(*pair, model=model, background="black")


# --------------------------------------------------------------------------------------------------- torch's global state


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
        torch.inference_mode,
    ],
)
def test_a_score_depends_on_its_arguments_only(database, tmp_path, state):
    torch.manual_seed(0)
    VTAMIQ(replace(TINY, mean=(0.48, 0.45, 0.4), std=(0.26, 0.27, 0.28))).save_pretrained(tmp_path)
    table = pd.DataFrame({"reference": database.pairs["ref_path"], "distorted": database.pairs["dist_path"]})
    pair = [database.path(database.pairs.loc[3, name]) for name in ("ref_path", "dist_path")]
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1)[None] for path in pair]

    def numbers():
        model = VTAMIQ.from_pretrained(tmp_path)
        assert {value.dtype for value in (*model.parameters(), *model.buffers())} == {torch.float32}
        metric = VTAMIQMetric(model)
        metric.update(images[1], images[0])
        return model, [
            score(*pair, model=model),
            *score_table(table, root=database.root, model=model)["q"],
            ReferenceEmbedding(pair[0], model=model, guides=[pair[1]]).score(pair[1]),
            *predict(model, database, progress=False)["q"],
            VTAMIQLoss(model)(*(image.float() / 255 for image in images[::-1])).item(),
            metric.compute().item(),
        ]

    expected = numbers()[1]
    with state():
        model, found = numbers()
    assert found == expected
    x = (images[1] / 255).requires_grad_()
    VTAMIQLoss(model)(x, images[0] / 255).backward()
    gradient = x.grad.clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = VTAMIQLoss(model)(x, images[0] / 255)
    x.grad = None
    loss.backward()
    assert torch.equal(x.grad, gradient)


def test_compiled_functions_and_models_score(model, pair):
    expected = score(*pair, model=model)
    compiled = torch.compile(model, backend="eager")
    assert score(*pair, model=compiled) == expected
    assert ReferenceEmbedding(pair[0], model=compiled, guides=[pair[1]]).score(pair[1]) == pytest.approx(
        expected, abs=1e-6
    )

    @torch.compile(backend="eager")
    def doubled(x):
        return x * 2 * score(*pair, model=model)

    assert doubled(torch.ones(2)).tolist() == pytest.approx([2 * expected] * 2)
    assert torch.compile(score, backend="eager")(*pair, model=model) == expected


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_score_within_autocast_leaves_no_trace(pair, precision):
    """Autocast keeps weights that it has cast; a score's would be of inference mode, or of another type."""
    torch.manual_seed(0)
    model = VTAMIQ(TINY).eval()
    expected = score(*pair, model=model, precision=precision)
    inputs = torch.randint(0, 256, (2, 2, 9, 3, 16, 16), dtype=torch.uint8), torch.rand(2, 9, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(*pair, model=model, precision=precision) == expected
        model(*inputs).sum().backward()
        assert score(*pair, model=model, precision=precision) == expected


def test_columns_and_arrays_of_paths_are_lists(model, database):
    paths = [database.root / path for path in database.pairs["dist_path"][:2]]
    reference = database.path(database.pairs.loc[0, "ref_path"])
    expected = score(reference, paths, model=model).tolist()
    for several in (
        pd.Series(paths, index=[7, 9]),
        np.array([str(path) for path in paths]),
        pd.Index(paths),
        tuple(paths),
    ):
        assert score(reference, several, model=model).tolist() == expected
        assert len(read_images(several)) == 2
    assert ReferenceEmbedding(reference, model=model, guides=pd.Series(paths)).score(pd.Series(paths)).shape == (2,)


# -------------------------------------------------------------------------------------------------------------- large, odd


@pytest.mark.parametrize("size", [(16, 16), (16, 40_000), (30_000, 17)])
def test_extreme_shapes(model, size):
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.isfinite(score(reference, reference[::-1], model=model))
    assert score(reference, reference, model=model) == 0


@pytest.mark.slow
def test_twelve_megapixels_in_bounded_memory(model):
    """The network sees as many patches as ever; NumPy's share of the memory stays below what the module says."""
    reference = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    distorted = reference.copy()
    distorted[1200:1400, 2000:2300] //= 2
    tracemalloc.start()
    q = score(reference, distorted, model=model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(q)
    assert q != 0
    assert peak / 12e6 < 40


# ----------------------------------------------------------------------------------------------------------------- threads


def test_threads_share_a_model(database):
    """Scores at the same time equal scores in turn, with a model in training mode that is restored at the end, and with a
    PIL image whose file all threads want to decode."""
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, head_dropout=0.5)).train()
    model.encoder.eval()
    reference = database.path(database.pairs.loc[0, "ref_path"])
    distorted = [database.path(path) for path in database.pairs["dist_path"][:4]]
    options = {"model": model, "caps": CAPS(num_patches=6)}
    expected = [score(reference, path, **options) for path in distorted]
    for _ in range(5):
        opened = Image.open(reference)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda path, opened=opened: score(opened, path, **options), distorted * 4))
        assert found == expected * 4
    assert model.training
    assert model.head.training
    assert not any(part.training for part in model.encoder.modules())


# -------------------------------------------------------------------------------------------------------- whole databases


def test_prediction_table(model, database):
    caps = CAPS(num_patches=6)
    table = predict(model, database, caps, repeats=3, seed=4, batch_size=3, progress=False, split="val")
    assert len(table) == len(database)
    assert table["dist_path"].tolist() == database.pairs["dist_path"].tolist()
    assert (table["split"] == "val").all()
    assert (table["num_patches"] == 6).all()
    assert (table["repeats"] == 3).all()
    assert table["synthetic"].all()
    assert (table["q_std"] > 0).all()
    draws = [predict(model, database, caps, seed=4, repeats=r, progress=False)["q"] for r in (1, 2)]
    first, second = draws[0], 2 * draws[1] - draws[0]
    third = 3 * table["q"] - first - second
    np.testing.assert_allclose(np.std([first, second, third], axis=0, ddof=1), table["q_std"], rtol=1e-3, atol=1e-6)


def test_a_pair_has_one_score_whatever_it_is_scored_with(model, database, tmp_path):
    """In a database, a part of it, a table, a list or alone: the same patches, draw by draw."""
    options = {"caps": CAPS(num_patches=6), "repeats": 3, "seed": 4}
    pairs = [(database.path(row.ref_path), database.path(row.dist_path)) for row in database.pairs.itertuples()]
    expected = np.array([score(*pair, model=model, return_std=True, **options) for pair in pairs])
    predicted = predict(model, database, batch_size=7, workers=1, progress=False, **options)
    np.testing.assert_allclose(predicted["q"], expected[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(predicted["q_std"] / np.sqrt(3), expected[:, 1], rtol=0, atol=1e-6)
    part = replace(database, pairs=database.pairs.iloc[[2, 6]])
    some = predict(model, part, batch_size=1, progress=False, **options)
    np.testing.assert_allclose(some["q"], expected[[2, 6], 0], rtol=0, atol=1e-6)
    table = pd.DataFrame(pairs[::-1], columns=["reference", "distorted"])
    np.testing.assert_array_equal(score_table(table, model=model, **options)["q"], expected[::-1, 0])


def test_versions_of_a_reference_share_random_numbers_and_other_references_do_not(model, database):
    """So that a sampling by the uniform map alone has as many places as the others."""
    caps = caps_for(model, CAPS(num_patches=6, difference=0))
    items = [_PairDraws(database, caps, 2, seed=0)[row] for row in (0, 1, 4)]
    first, second, elsewhere = (uv for _, uv, _ in items)  # (2, N, 2) each
    assert torch.equal(first, second)
    assert not torch.equal(first, elsewhere)
    assert not torch.equal(first[0], first[1])


class Stop(Exception):
    pass


def test_predictions_resume_where_they_were_interrupted(model, database, tmp_path, monkeypatch):
    options = {"caps": CAPS(num_patches=6), "repeats": 2, "batch_size": 4, "progress": False}
    whole = predict(model, database, **options)
    forward, scored = predictions.forward, []

    def forward_that_stops(model, inputs, *rest):
        if len(scored) == 3:
            raise Stop
        scored.append(len(inputs[0]))
        return forward(model, inputs, *rest)

    monkeypatch.setattr(predictions, "BLOCK", 4)
    monkeypatch.setattr(predictions, "forward", forward_that_stops)
    with pytest.raises(Stop):
        predict(model, database, keep=tmp_path, **options)
    assert len(np.load(tmp_path / "scores.npy")) == 4  # of 6 that were scored
    scored.clear()
    pd.testing.assert_frame_equal(predict(model, database, keep=tmp_path, **options), whole, check_exact=True)
    assert scored == [4, 4]
    scored.append(0)
    pd.testing.assert_frame_equal(predict(model, database, keep=tmp_path, **options), whole, check_exact=True)


def test_single_draw_has_no_spread(model, database):
    assert predict(model, database, CAPS(num_patches=6), progress=False)["q_std"].isna().all()


def test_repeats_are_checked(model, database):
    with pytest.raises(ValueError, match="repeats"):
        predict(model, database, repeats=0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_tables_are_written_whole(tmp_path, suffix):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    path = write_table(table, tmp_path / "new" / f"table{suffix}")
    read = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
    assert read.equals(table)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_table_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.parquet, \.csv or \.tex"):
        write_table(pd.DataFrame(), tmp_path / "table.xlsx")
