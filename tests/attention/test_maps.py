"""Attention maps are what the network computed, painted where the patches lie, and looking changes nothing."""

import copy
import inspect
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.layers import AttentionRope

from tests.model.test_network import Golden
from tests.small import TINY, small_database
from vtamiq.attention import maps as attention
from vtamiq.attention.maps import (
    METHODS,
    Capture,
    attention_maps,
    average_maps,
    capture,
    channel_attention,
    even_shares,
    gradient_rollout,
    head_maps,
    kept_models,
    occlusion,
    patch_difference,
    repair,
    rollout,
    token_attention,
    token_shares,
)
from vtamiq.caps import CAPS, PatchSample
from vtamiq.images.reading import ImageError
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.scores import score
from vtamiq.training.run import train
from vtamiq.training.stage import Stage

SMALL = replace(TINY, num_blocks=2, num_registers=2, blocks_per_group=2, num_groups=2)
REGION = (slice(8, 24), slice(32, 48))  # of the images below


@pytest.fixture(scope="module")
def images():
    """A picture and its copy with one square changed, (2, 48, 64, 3)."""
    rng = np.random.default_rng(0)
    reference = np.kron(rng.uniform(40, 200, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    distorted = reference.copy()
    distorted[REGION] = 255 - distorted[REGION]
    return np.stack([reference, distorted])


@pytest.fixture(scope="module")
def model():
    """Random weights, but large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = VTAMIQ(SMALL)
    for name, parameter in model.encoder.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if ".attn." in name else 0.15)
    return model


@pytest.fixture(scope="module")
def sample(images):
    return CAPS(num_patches=10, num_scales=2)(images, 3)


def known_answer() -> VTAMIQ:
    """Attention even, no MLP, no DiffNet: q is the size of the difference of the two means over patches."""
    torch.manual_seed(0)
    model = VTAMIQ(replace(SMALL, num_blocks=1, num_groups=0, num_registers=0))
    block, head = model.encoder.blocks[0], model.head
    with torch.no_grad():
        block.attn.qkv.weight[:64].zero_()  # queries and keys
        torch.nn.init.eye_(block.attn.qkv.weight[64:])
        torch.nn.init.eye_(block.attn.proj.weight)
        block.mlp.fc2.weight.zero_()
        torch.nn.init.eye_(head.hidden.weight)
        head.activation.weight.fill_(-1.0)  # |x|
        head.output.weight.fill_(1.0)
        for bias in (head.hidden.bias, head.output.bias, block.mlp.fc2.bias):
            bias.zero_()
    return model.eval()


def state_of(model):
    """All that capture could have left behind."""
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    fused = [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")]
    return hooks, fused, [part.training for part in model.modules()], [p.grad for p in model.parameters()]


def take(sample: PatchSample, order: torch.Tensor) -> PatchSample:
    return PatchSample(sample.patches[:, order], sample.uv[order], sample.scale[order], sample.position[order])


# ---------------------------------------------------------------------------------------------------------------- capture


class SeparateProjections(AttentionRope):
    """Queries, keys and values from three linears, with norms of queries and keys."""

    def __init__(self, dim, **options):
        wanted = inspect.signature(AttentionRope.__init__).parameters
        super().__init__(dim, qkv_fused=False, **{name: v for name, v in options.items() if name in wanted})


KINDS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {}),
    "norm ahead of the blocks": ("vit_base_patch32_clip_224", {"patch_size": 16}),
    "no position of the class token": ("deit3_small_patch16_224", {}),
    "norm of queries and keys": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "separate projections": ("vit_tiny_patch16_224", {"attn_layer": SeparateProjections, "qk_norm": True}),
    "norm and gain in attention": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "init_values": 0.1}),
}


def of_kind(kind, **changes):
    name, options = KINDS[kind]
    size = 56 if "patch14" in name else 64
    torch.manual_seed(1)
    vit = timm.create_model(name, num_classes=0, img_size=size, embed_dim=48, num_heads=3, depth=2, **options)
    for parameter in vit.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    config = replace(SMALL, backbone=name, width=48, num_heads=3, image_size=size, patch_size=None, **changes)
    return VTAMIQ(config, _vit=vit).eval()


def by_hand(model, sample) -> list[torch.Tensor]:
    """softmax(q kᵀ / √d) of every block, from what enters it in an ordinary, fused pass."""
    entered = []
    hooks = [b.norm1.register_forward_hook(lambda *args: entered.append(args[2])) for b in model.encoder.blocks]
    with torch.no_grad():
        model(sample.patches[None], sample.uv[None], sample.scale[None])
    for hook in hooks:
        hook.remove()
    maps = []
    for block, x in zip(model.encoder.blocks, entered, strict=True):
        layer = block.attn
        if getattr(layer, "qkv", None) is not None:
            q, k, _ = torch.nn.functional.linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
        else:
            q, k = layer.q_proj(x), layer.k_proj(x)
        q, k = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in (q, k))  # (K, A, T, d)
        q, k = layer.q_norm(q), layer.k_norm(k)
        logits = torch.einsum("kaid,kajd->kaij", q, k) / q.shape[-1] ** 0.5
        exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
        maps.append((exponentials / exponentials.sum(-1, keepdim=True)).detach())
    return maps


class TestCapture:
    @pytest.mark.parametrize("adapters", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_maps_equal_softmax_by_hand(self, images, kind, adapters):
        model = of_kind(kind, adapters=adapters)
        sample = CAPS(num_patches=9, patch_size=model.encoder.patch_size)(images, 0)
        captured = capture(model, sample)
        assert captured.prefix == 3
        assert len(captured.attention) == 2
        for ours, expected in zip(captured.attention, by_hand(model, sample), strict=True):
            assert ours.shape == (2, 3, 12, 12)
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(ours.sum(-1), torch.ones(2, 3, 12), atol=1e-5, rtol=0)
            assert ours.std(-1).max() > 0.01  # far from uniform, or equality would say little

    @pytest.mark.parametrize("name", ["model_noscale", "model_scale3", "model_2021"])
    def test_original_weights(self, images, name):
        model = Golden(name).model
        sample = attention.caps_for(model, CAPS(num_patches=9))(images, 0)
        captured = capture(model, sample)
        for ours, expected in zip(captured.attention, by_hand(model, sample), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)

    def test_score_is_the_models(self, model, images):
        for caps in (CAPS(num_patches=10), CAPS(num_patches=10, aligned=False)):
            sample = caps(np.concatenate([images, images[1:] // 2]), 0)
            expected = model.eval()(sample.patches[None], sample.uv[None], sample.scale[None])[0]
            torch.testing.assert_close(capture(model, sample).q, expected.detach(), atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_leaves_no_trace(self, model, sample, training):
        model.train(training)
        before = state_of(model)
        capture(model, sample, gradient=True)
        occlusion(model, sample)
        repair(model, sample)
        channel_attention(model, sample)
        assert state_of(model) == before
        assert all(before[1])  # attention was fused, and is

    def test_leaves_no_trace_when_it_fails(self, model, sample, monkeypatch):
        before = state_of(model)

        def broken(*_):
            raise RuntimeError("in the middle")

        monkeypatch.setattr(VTAMIQ, "compare", broken)
        for look in (capture, occlusion, repair):
            with pytest.raises(RuntimeError, match="in the middle"):
                look(model, sample)
        monkeypatch.setattr(VTAMIQ, "modulate", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            channel_attention(model, sample)
        assert state_of(model) == before

    def test_dropout_of_a_model_in_training_does_not_act(self, images, sample):
        torch.manual_seed(0)
        model = VTAMIQ(replace(SMALL, embedding_dropout=0.5, mlp_dropout=0.5, encoder_drop_path=0.5)).train()
        first, second = capture(model, sample), capture(model, sample)
        assert torch.equal(first.attention[1], second.attention[1])
        assert torch.equal(first.q, second.q)

    def test_hooks_of_the_model_act_as_in_a_score(self, model, sample):
        model.eval()
        hook = model.encoder.blocks[0].register_forward_hook(lambda module, inputs, output: output * 2)
        q = model(sample.patches[None], sample.uv[None], sample.scale[None])[0].detach()
        captured = capture(model, sample)
        hook.remove()
        torch.testing.assert_close(captured.q, q, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(captured.q, capture(model, sample).q, atol=1e-4)

    def test_wrapped_methods_run_on_the_twin(self, images, sample):
        """As libraries do that move weights between devices: `forward` set on the instance, bound to it."""
        torch.manual_seed(0)
        model = VTAMIQ(SMALL)
        expected = capture(model, sample)
        for part in model.modules():
            part.forward = part.forward
        assert torch.equal(capture(model, sample).attention[1], expected.attention[1])

    def test_shared_parts_stay_shared(self, model):
        twin = attention._twin(torch.nn.ModuleDict({"a": model, "b": model.encoder}), {})
        assert twin["b"] is twin["a"].encoder
        assert twin["a"].encoder.class_token is model.encoder.class_token

    def test_works_in_inference_mode_and_with_frozen_weights(self, model, sample):
        expected = capture(model, sample, gradient=True)
        with torch.inference_mode():
            captured = capture(model, sample, gradient=True)
        assert all(map(torch.equal, captured.gradient, expected.gradient))
        try:
            captured = capture(model.requires_grad_(False), sample, gradient=True)
        finally:
            model.requires_grad_(True)
        assert all(map(torch.equal, captured.gradient, expected.gradient))
        assert expected.gradient[0].abs().max() > 0

    def test_threads_do_not_see_each_other(self, model, images):
        samples = [CAPS(num_patches=n)(images, n) for n in (5, 9, 13)]
        alone = [capture(model, sample) for sample in samples]
        wrong = []

        def look(sample, expected):
            for _ in range(20):
                captured = capture(model, sample)
                if not all(map(torch.equal, captured.attention, expected.attention)):
                    wrong.append(len(captured.attention))

        threads = [threading.Thread(target=look, args=pair) for pair in zip(samples, alone, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_half_precision(self, model, sample):
        half = copy.deepcopy(model).bfloat16()
        captured = capture(half, sample)
        for ours, expected in zip(captured.attention, capture(model, sample).attention, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, expected, atol=0.1, rtol=0)


class Unread(torch.nn.Module):
    """An attention layer of another kind."""

    num_heads, fused_attn = 2, True

    def __init__(self, maps=None):
        super().__init__()
        self.attn_drop, self.maps = torch.nn.Identity(), maps

    def forward(self, x, **_):
        if self.maps is not None:
            self.attn_drop(self.maps(len(x), 2, x.shape[1], x.shape[1]))
        return x


class TestRefusals:
    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (torch.nn.Identity(), "block 1 has a Identity, whose attention cannot be read"),  # noticed before it runs
            (Unread(), r"block 1 has a Unread.*it left 0 maps in one pass"),
            (Unread(torch.ones), r"its rows sum to 13 … 13, not to 1"),
            (
                Unread(lambda *shape: torch.eye(shape[-1]).expand(*shape) * 2 - 1 / shape[-1]),
                "cannot be read: its rows",
            ),
            (Unread(lambda *shape: torch.full(shape, torch.nan)), "its rows sum to nan"),
            (
                Unread(lambda k, a, t, _: torch.eye(t).expand(k, 2 * a, t, t)),
                r"maps are \(2, 4, 13, 13\), expected \(2, 2",
            ),
        ],
    )
    def test_unknown_attention(self, model, sample, layer, message):
        attn = model.encoder.blocks[1].attn
        try:
            model.encoder.blocks[1].attn = layer
            with pytest.raises(ValueError, match=message):
                capture(model, sample)
        finally:
            model.encoder.blocks[1].attn = attn

    def test_differential_attention_of_timm(self, images):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, embed_dim=48, num_heads=3, depth=1,
                                attn_layer="diff")  # fmt: skip
        model = VTAMIQ(replace(SMALL, width=48, num_heads=3, num_blocks=1), _vit=vit)
        with pytest.raises(ValueError, match="DiffAttention, whose attention cannot be read: its maps are"):
            capture(model, CAPS(num_patches=4)(images, 0))

    @pytest.mark.parametrize("look", [capture, occlusion, repair, channel_attention])
    def test_what_is_no_vtamiq(self, sample, look):
        with pytest.raises(TypeError, match="model must be a VTAMIQ, got Linear"):
            look(torch.nn.Linear(2, 2), sample)

    @pytest.mark.parametrize("look", [capture, occlusion, repair, channel_attention])
    def test_sample_that_does_not_fit(self, model, images, look):
        with pytest.raises(ValueError, match="patches must be"):
            look(model, CAPS(num_patches=4, patch_size=8)(images, 0))

    @pytest.mark.parametrize("look", [lambda m, s: occlusion(m, s), repair, lambda m, s: patch_difference(s)])
    def test_samples_without_a_pair(self, model, images, look):
        with pytest.raises(ValueError, match=r"a sample of two images is needed.*got 3"):
            look(model, CAPS(num_patches=4)(images[[0, 1, 1]], 0))
        with pytest.raises(ValueError, match=r"same places.*aligned=True"):
            look(model, CAPS(num_patches=4, aligned=False)(images, 0))

    def test_a_reference_alone(self, model, images):
        with pytest.raises(ValueError, match="at least 2 images"):
            capture(model, CAPS(num_patches=4)(images[:1], 0))


# ---------------------------------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def captured(model, sample):
    return capture(model, sample, gradient=True)


class TestWeights:
    def test_token_attention_is_a_row(self, captured):
        maps = captured.attention
        np.testing.assert_array_equal(token_attention(captured, token=2, block=0, head=1), maps[0][:, 1, 2, 3:])
        expected = (maps[1][:, 0, 0, 3:].double() + maps[1][:, 1, 0, 3:].double()) / 2
        np.testing.assert_allclose(token_attention(captured), expected, rtol=1e-12)

    def test_shares_of_a_token_sum_to_one(self, captured):
        shares = token_shares(captured, token=1)
        assert len(shares) == 2 * 2 * 2
        np.testing.assert_allclose(shares[["class_token", "registers", "patches"]].sum(axis=1), 1, atol=1e-6)
        row = shares.query("block == 1 and head == 0 and image == 1").iloc[0]
        expected = captured.attention[1][1, 0, 1]
        np.testing.assert_allclose(
            row[["class_token", "registers"]].tolist(), [expected[0], expected[1:3].sum()], rtol=1e-6
        )
        np.testing.assert_allclose(row["patches"], token_attention(captured, token=1, head=0)[1].sum(), rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"token": 3}, "token must be an integer from 0 to 2, got 3"),
            ({"token": -1}, "token must be an integer from 0 to 2, got -1"),
            ({"block": 2}, "block must be an integer from -2 to 1, got 2"),
            ({"head": 2}, "head must be an integer from 0 to 1, got 2"),
            ({"head": 0.5}, "head must be an integer"),
        ],
    )
    def test_no_such_token_block_or_head(self, captured, options, message):
        with pytest.raises(ValueError, match=message):
            token_attention(captured, **options)
        if "token" in options:
            with pytest.raises(ValueError, match=message):
                token_shares(captured, **options)

    def test_rollout_by_hand(self):
        """Two blocks of two heads over two tokens, sums written out."""
        first = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]])  # mean: 3/4 1/4 | 1/2 1/2
        second = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]])  # mean: 0 1 | 1/2 1/2
        # With the residual: (7/8 1/8 | 1/4 3/4), then (1/2 1/2 | 1/4 3/4); the second times the first.
        expected = [[7 / 16 + 1 / 8, 1 / 16 + 3 / 8], [7 / 32 + 3 / 16, 1 / 32 + 9 / 16]]
        np.testing.assert_allclose(rollout([first, second]), [expected], rtol=1e-12)

    def test_rollout_rows_sum_to_one_and_order_of_blocks_matters(self, captured):
        rolled = rollout(captured.attention)
        assert rolled.shape == (2, 13, 13)
        np.testing.assert_allclose(rolled.sum(-1), 1, atol=1e-6)
        assert np.abs(rolled - rollout(captured.attention[::-1])).max() > 1e-3

    def test_gradients_equal_finite_differences(self, sample):
        """Attention is changed in one entry by a hook on an unfused pass of the model itself, in double precision."""
        torch.manual_seed(4)
        model = VTAMIQ(replace(SMALL, zero_anchor=False)).eval()
        for parameter in model.encoder.blocks.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model = model.double()
        gradient = capture(model, sample, gradient=True).gradient
        for block in model.encoder.blocks:
            block.attn.fused_attn = False

        def changed(block, place, step):
            def add(module, inputs, output):
                output = output.clone()
                output[place] += step
                return output

            hook = model.encoder.blocks[block].attn.attn_drop.register_forward_hook(add)
            with torch.no_grad():
                q = model(model.normalise(sample.patches[None]), sample.uv[None], sample.scale[None]).item()
            hook.remove()
            return q

        for block, place in [
            (0, (0, 1, 4, 6)),
            (0, (1, 0, 0, 2)),
            (1, (1, 1, 0, 5)),
            (1, (0, 0, 0, 0)),
            (1, (1, 0, 7, 1)),
        ]:
            expected = (changed(block, place, 1e-4) - changed(block, place, -1e-4)) / 2e-4
            assert gradient[block][place].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert not gradient[1][:, :, 1:].any()  # only the class token leaves the last block
        assert gradient[1][:, :, 0].abs().min() > 0

    def test_gradient_rollout_by_hand(self):
        first = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])
        second = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])
        gradients = torch.tensor([[[[2.0, -8.0], [4.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0], [1.0, -1.0]]]])
        # I + positive parts: (2 0 | 1 1), then (1 1 | 0 1); the second times the first.
        np.testing.assert_allclose(gradient_rollout([first, second], gradients), [[[3, 1], [1, 1]]])
        heads = [torch.cat([first, torch.zeros_like(first)], 1)], [torch.cat([gradients[0]] * 2, 1)]
        np.testing.assert_allclose(gradient_rollout(*heads), [[[1.5, 0], [0.5, 1]]])  # mean over heads

    def test_order_of_patches_is_kept(self, model, sample):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        first, second = (capture(model, s, gradient=True) for s in (sample, take(sample, order)))
        pairs = [
            (token_attention(first, token=1), token_attention(second, token=1)),
            (rollout(first.attention)[:, 0, 3:], rollout(second.attention)[:, 0, 3:]),
            *[(gradient_rollout(c.attention, c.gradient)[:, 0, 3:] for c in (first, second))],
            *[(look(model, s) for s in (sample, take(sample, order))) for look in (occlusion, repair)],
            (patch_difference(sample), patch_difference(take(sample, order))),
        ]
        for before, after in pairs:
            assert before.std() > 0
            np.testing.assert_allclose(after, before[..., order.numpy()], atol=2e-6)

    def test_even_shares(self):
        weights = np.array([[1.0, 3.0], [0.0, 0.0]])
        np.testing.assert_array_equal(even_shares(weights), [[0.5, 1.5], [0, 0]])


class TestTryingOut:
    @pytest.mark.parametrize("at_once", [1, 40, 16_384])
    def test_occlusion_equals_leaving_out(self, model, sample, monkeypatch, at_once):
        monkeypatch.setattr(attention, "_TOKENS_AT_ONCE", at_once)
        model.eval()

        def q(kept):
            part = take(sample, kept)
            return model(part.patches[None], part.uv[None], part.scale[None]).item()

        everything = torch.arange(10)
        expected = [q(everything) - q(everything[everything != n]) for n in range(10)]
        assert np.std(expected) > 1e-4
        np.testing.assert_allclose(occlusion(model, sample), expected, atol=1e-6)

    def test_the_only_patch(self, model, images):
        sample = CAPS(num_patches=1)(images[:, REGION[0], REGION[1]], 0)
        q = model.eval()(sample.patches[None], sample.uv[None], sample.scale[None]).item()
        np.testing.assert_allclose(occlusion(model, sample), [q], atol=1e-6)  # without any, both images are one
        np.testing.assert_allclose(repair(model, sample), [q], atol=1e-6)

    @pytest.mark.parametrize("at_once", [1, 25, 16_384])
    def test_repair_equals_putting_the_reference_in(self, model, sample, monkeypatch, at_once):
        monkeypatch.setattr(attention, "_TOKENS_AT_ONCE", at_once)
        model.eval()
        q = model(sample.patches[None], sample.uv[None], sample.scale[None]).item()
        gain = repair(model, sample)
        equal = 0
        for n in range(10):
            patches = sample.patches.clone()
            patches[1, n] = patches[0, n]
            if torch.equal(patches, sample.patches):
                equal += 1
                assert gain[n] == 0
            repaired = model(patches[None], sample.uv[None], sample.scale[None]).item()
            assert gain[n] == pytest.approx(q - repaired, abs=1e-6)
        assert 0 < equal < 9

    def test_a_copy_has_nothing_to_repair(self, model, images):
        sample = CAPS(num_patches=10)(images[[0, 0]], 0)
        assert not repair(model, sample).any()
        assert not occlusion(model, sample).any()
        assert not patch_difference(sample).any()

    def test_patch_difference(self, sample):
        n = 3
        first, second = sample.patches[:, n].numpy() / 255
        assert patch_difference(sample)[n] == pytest.approx(np.abs(first - second).mean())

    @pytest.mark.parametrize("method", ["occlusion", "quality", "difference"])
    def test_finds_the_only_place_that_differs(self, images, method):
        values, stability = attention_maps(
            known_answer(), *images, method=method, draws=24, caps=CAPS(num_patches=24), seed=3, return_stability=True
        )  # of another seed, the highest pixel may be one at the border that a single patch sees
        inside = np.zeros(values.shape[1:], bool)
        inside[REGION] = True
        assert inside.flat[np.nanargmax(values[1])]
        within, without = np.nanmean(values[1][inside]), np.nanmean(values[1][~inside])
        if method == "occlusion":  # fewer patches that are alike make the others count more
            assert within > 0 > without
        else:
            assert within > 4 * without >= 0
        assert stability.min() > 0.7
        if method == "quality":  # out of reach of every patch that sees the place
            assert np.nanmax(np.abs(values[1][:, :17])) == 0


# --------------------------------------------------------------------------------------------------------------- painting


def at(position, scale=None, side=2, images=1):
    """A sample of patches at those places, whatever they show."""
    position = torch.tensor(position)
    count = position.shape[-2]
    scale = torch.zeros(position.shape[:-1], dtype=torch.int64) if scale is None else torch.tensor(scale)
    return PatchSample(torch.zeros(images, count, 3, side, side, dtype=torch.uint8), position / 100, scale, position)


def paint(weights, sample, shape):
    return attention._mean(*attention._spread(weights, sample, shape))


class TestPainting:
    def test_overlapping_patches_by_hand(self):
        painted = paint(np.array([[1.0, 4.0]]), at([[0, 0], [1, 1]]), (4, 4))
        none = np.nan
        expected = [[1, 1, none, none], [1, 2.5, 4, none], [none, 4, 4, none], [none] * 4]
        np.testing.assert_array_equal(painted, [expected])

    def test_scales_by_hand(self):
        """A patch of scale 1 has four times the pixels, so a quarter of the say; places count in pixels of their
        scale."""
        painted = paint(np.array([[3.0, 8.0]]), at([[2, 2], [1, 1]], [0, 1]), (6, 6))
        expected = np.full((6, 6), np.nan)
        expected[2:6, 2:6] = 8.0
        expected[2:4, 2:4] = (3 / 4 + 8 / 16) / (1 / 4 + 1 / 16)
        np.testing.assert_allclose(painted, [expected], rtol=1e-12)

    def test_equal_weights_are_flat_wherever_patches_crowd(self, images):
        sample = CAPS(num_patches=60, num_scales=2)(images, 0)
        painted = paint(np.full((2, 60), 0.7), sample, (48, 64))
        np.testing.assert_allclose(painted[np.isfinite(painted)], 0.7, rtol=1e-12)

    def test_zero_stays_exactly_zero(self, images):
        sample = CAPS(num_patches=60)(images, 0)
        painted = paint(np.eye(60)[None].repeat(2, axis=0).transpose(1, 0, 2) / 3, sample, (48, 64))  # (60, 2, H, W)
        assert painted.shape == (60, 2, 48, 64)
        for n, (row, column) in enumerate(sample.position.tolist()):
            mine = np.zeros((48, 64), bool)
            mine[row : row + 16, column : column + 16] = True
            assert not np.nan_to_num(painted[n, 0][~mine]).any()
            assert (painted[n, 0][mine] > 0).all()

    def test_images_with_places_of_their_own(self):
        sample = at([[[0, 0]], [[2, 1]]], images=2)
        painted = paint(np.array([[5.0], [7.0]]), sample, (4, 3))
        expected = np.full((2, 4, 3), np.nan)
        expected[0, :2, :2], expected[1, 2:, 1:] = 5, 7
        np.testing.assert_array_equal(painted, expected)

    def test_more_axes_ahead(self, images, sample):
        weights = np.random.default_rng(0).random((3, 2, 2, 10))
        painted = paint(weights, sample, (48, 64))
        np.testing.assert_array_equal(painted[1, 0], paint(weights[1, 0], sample, (48, 64)))


# ------------------------------------------------------------------------------------------------------------------ draws


class TestAverages:
    def weights(self, values):
        """Another constant in every draw."""
        values = iter(values)
        return lambda sample: np.full((2, 6), next(values))

    def test_mean_over_draws(self, images):
        """Pixels have the mean over all patches of all draws that see them, however many each draw has there."""
        caps = CAPS(num_patches=6, uniform=50)
        maps = average_maps(self.weights([1.0, 2.0, 6.0]), images, caps, draws=3)
        patches = np.zeros((3, 48, 64))  # that see each pixel, in every draw
        for draw in range(3):
            for row, column in next(caps.draws(images, 0, [draw])).position.tolist():
                patches[draw, row : row + 16, column : column + 16] += 1
        seen = patches.any(axis=0)
        expected = np.einsum("dhw,d->hw", patches, [1.0, 2.0, 6.0])[seen] / patches.sum(axis=0)[seen]
        assert 0.3 < seen.mean() < 1
        assert maps.draws == 3
        for image in range(2):
            np.testing.assert_allclose(maps.maps[image][seen], expected)
            assert np.isnan(maps.maps[image][~seen]).all()
        np.testing.assert_allclose(maps.coverage, seen.mean())

    def test_stability_by_hand(self):
        rng = np.random.default_rng(0)
        truth, noise = rng.normal(size=(2, 30, 40)), rng.normal(size=(4, 2, 30, 40))
        halves = attention._Halves()
        for k in range(4):
            halves.add(truth + noise[k], np.ones((2, 30, 40)))
        for image in range(2):
            means = [truth[image] + noise[[0, 2], image].mean(0), truth[image] + noise[[1, 3], image].mean(0)]
            r = np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1]
            assert halves.stability()[image] == pytest.approx(2 * r / (1 + r))
        assert halves.stability() == pytest.approx(4 / 5, abs=0.05)  # variance of truth over that of the mean of four

    def test_stability_of_flat_and_contrary_maps(self):
        ramp, flat = np.arange(12.0).reshape(3, 4), np.ones((3, 4))
        assert attention._agreement(ramp, ramp) == 1
        assert attention._agreement(flat, flat) == 1
        assert attention._agreement(flat, ramp) == 0
        assert attention._agreement(ramp, -ramp) == pytest.approx(-1)
        assert attention._agreement(np.full((3, 4), np.nan), flat) == 0
        holes = np.where(ramp % 2, ramp, np.nan)
        assert attention._agreement(holes, ramp) == pytest.approx(1)

    def test_goes_on_until_stable(self, model, images):
        options = {"method": "difference", "caps": CAPS(num_patches=12), "return_stability": True}
        few = attention_maps(model, *images, draws=2, **options)[1].min()
        maps, stability = attention_maps(model, *images, draws=2, until=0.97, **options)
        assert few < 0.97 <= stability.min()
        capped = attention_maps(model, *images, draws=2, until=0.999, max_draws=3, **options)[0]
        np.testing.assert_array_equal(capped, attention_maps(model, *images, draws=3, **options)[0])
        assert np.isfinite(maps).mean() > np.isfinite(capped).mean()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draws": 0}, "draws must be at least 1, got 0"),
            ({"draws": 1, "until": 0.5}, "draws must be at least 2, got 1"),
            ({"until": 1.0}, "until must be a stability between 0 and 1, got 1.0"),
            ({"until": 0.5, "draws": 8, "max_draws": 7}, "max_draws must be at least draws=8, got 7"),
            ({"seed": -1}, "seed must not be negative, got -1"),
        ],
    )
    def test_bad_numbers(self, model, images, options, message):
        with pytest.raises(ValueError, match=message):
            average_maps(self.weights([1.0] * 99), images, CAPS(num_patches=6), **options)
        with pytest.raises(ValueError, match=message):
            attention_maps(model, *images, **options)

    def test_one_draw_has_no_stability(self, model, images):
        stability = attention_maps(model, *images, draws=1, return_stability=True)[1]
        assert np.isnan(stability).all()


# ------------------------------------------------------------------------------------------------------------------- maps


class TestMaps:
    caps = CAPS(num_patches=10, num_scales=2)

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_by_its_parts(self, model, images, method):
        maps = attention_maps(model, *images, method=method, draws=1, caps=self.caps, seed=5)
        (sample,) = self.caps.draws(images, 5, [0])
        captured = capture(model, sample, gradient=True)
        weights = {
            "attention": lambda: even_shares(token_attention(captured)),
            "rollout": lambda: even_shares(rollout(captured.attention)[:, 0, 3:]),
            "gradient": lambda: even_shares(gradient_rollout(captured.attention, captured.gradient)[:, 0, 3:]),
            "occlusion": lambda: np.stack([occlusion(model, sample)] * 2),
            "quality": lambda: np.stack([repair(model, sample)] * 2),
            "difference": lambda: even_shares(np.stack([patch_difference(sample)] * 2)),
        }[method]()
        assert maps.shape == (2, 48, 64)
        np.testing.assert_allclose(maps, paint(weights, sample, (48, 64)), atol=1e-7)
        assert np.nanstd(maps[1]) > 0

    def test_same_seed_same_maps_and_another_seed_others(self, model, images):
        first, again, other = (attention_maps(model, *images, draws=2, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other, equal_nan=True)

    def test_places_are_those_of_the_score(self, model, images):
        drawn = []

        def weigh(sample):
            drawn.append(capture(model, sample).q.item())
            return np.ones((2, 10))

        average_maps(weigh, images, self.caps, draws=3, seed=4)
        assert np.mean(drawn) == pytest.approx(score(*images, model=model, caps=self.caps, repeats=3, seed=4), abs=1e-6)

    def test_token_block_and_head(self, model, images):
        options = {"draws": 1, "caps": self.caps}
        grid = head_maps(model, *images, token=2, **options)
        assert grid.maps.shape == (2, 2, 2, 48, 64)
        assert grid.stability.shape == (2, 2, 2)
        one = attention_maps(model, *images, method="attention", token=2, block=0, head=1, **options)
        np.testing.assert_allclose(grid.maps[0, 1], one, atol=1e-12)

    def test_model_prescribes_scales_and_patch_size(self, images):
        torch.manual_seed(0)
        model = VTAMIQ(replace(SMALL, num_scales=2, patch_size=8))
        assert np.isfinite(attention_maps(model, *images, draws=1, caps=CAPS(num_patches=10))).any()

    @pytest.mark.parametrize("method", METHODS)
    def test_a_copy_of_the_reference(self, model, images, method):
        maps, stability = attention_maps(
            model, images[0], images[0], method=method, draws=4, caps=self.caps, return_stability=True
        )
        if method in ("attention", "rollout"):
            np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
        else:  # with the zero anchor nothing moves the score of a copy
            assert np.nanmax(np.abs(maps)) == 0
            assert (stability == 1).all()

    def test_places_of_their_own(self, model, images):
        caps = replace(self.caps, aligned=False)
        maps = attention_maps(model, *images, draws=1, caps=caps)
        assert not np.array_equal(np.isfinite(maps[0]), np.isfinite(maps[1]))
        with pytest.raises(ValueError, match="aligned=True"):
            attention_maps(model, *images, method="quality", caps=caps)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "rolout"}, "no method 'rolout'; did you mean `rollout`"),
            ({"head": 0}, "head is for method=\"attention\", 'rollout' has no use for it"),
            ({"method": "quality", "token": 0, "block": 1}, "token, block is for"),
            ({"method": "attention", "block": 5}, "block must be an integer from -2 to 1, got 5"),
        ],
    )
    def test_bad_options(self, model, images, options, message):
        with pytest.raises(ValueError, match=message):
            attention_maps(model, *images, **options)

    def test_bad_token_of_heads(self, model, images):
        with pytest.raises(ValueError, match="token must be an integer from 0 to 2, got 3"):
            head_maps(model, *images, token=3)

    @pytest.mark.parametrize("look", [attention_maps, head_maps])
    def test_bad_images_and_models(self, model, images, look):
        with pytest.raises(ImageError, match="differ in size"):
            look(model, images[0], images[1][:40])
        with pytest.raises(ImageError, match="no-such-file"):
            look(model, images[0], "no-such-file.png")
        with pytest.raises(ImageError, match="smaller than a patch"):
            look(model, images[0][:8], images[1][:8])
        with pytest.raises(TypeError, match="model must be a VTAMIQ, got str"):
            look("model", *images)


# ---------------------------------------------------------------------------------------------------------------- DiffNet


class TestChannelAttention:
    def test_equals_the_network_step_by_step(self, model, sample):
        table = channel_attention(model, sample)
        assert len(table) == 2 * 2 * 32
        with torch.no_grad():
            embedding = model.eval().encode(sample.patches[None], sample.uv[None], sample.scale[None])[0]
            x = (embedding[0] - embedding[1]) * model.difference_scale
            for g, group in enumerate(model.diffnet.groups):  # noqa: B007
                start = x
                for b, block in enumerate(group.blocks):  # noqa: B007 - read by the query
                    proposal = block.linear(block.activation(x))
                    gate = block.attention.expand(
                        block.attention.activation(block.attention.squeeze(proposal))
                    ).sigmoid()
                    part = table.query("group == @g and block == @b")
                    assert part["channel"].tolist() == list(range(32))
                    np.testing.assert_allclose(part["gate"], gate, atol=1e-6)
                    np.testing.assert_allclose(part["before"], x, atol=1e-6)
                    x = x + proposal * gate
                    np.testing.assert_allclose(part["after"], x, atol=1e-6)
                x = start + group.linear(x)
        assert table["gate"].between(0, 1, inclusive="neither").all()

    def test_the_gate_of_2021_is_applied_before(self, images):
        model = Golden("model_2021").model
        sample = attention.caps_for(model, CAPS(num_patches=6))(images, 0)
        with torch.no_grad():
            embedding = model.encode(sample.patches[None], sample.uv[None], sample.scale[None])[0]
            entering = (embedding[0] - embedding[1]) * model.difference_gate(embedding[0])
        first = channel_attention(model, sample).query("group == 0 and block == 0")
        np.testing.assert_allclose(first["before"], entering, atol=1e-6)

    def test_refusals(self, model, images, sample):
        with pytest.raises(ValueError, match="no DiffNet"):
            channel_attention(VTAMIQ(replace(SMALL, num_groups=0)), sample)
        with pytest.raises(ValueError, match=r"two images is needed.*got 3"):
            channel_attention(model, CAPS(num_patches=4)(images[[0, 1, 1]], 0))


# --------------------------------------------------------------------------------------------------------- training stages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    parts = small_database(tmp_path_factory.mktemp("pairs"), references=5).split(seed=1)
    torch.manual_seed(0)
    stage = Stage(caps=CAPS(num_patches=6), test_patches=6, num_draws=1, epochs=3, batch_size=8)
    return train(VTAMIQ(TINY), stage, *parts, out=tmp_path_factory.mktemp("run") / "r", progress=False)


class TestKeptModels:
    def test_models_by_epoch(self, run):
        models = kept_models(run.folder)
        best = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] + 1
        assert list(models) == [f"epoch {epoch}" for epoch in sorted({best, 3})]
        assert not any(model.training for model in models.values())
        for name, value in run.model.state_dict().items():
            assert torch.equal(models[f"epoch {best}"].state_dict()[name], value)
        last = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name, value in models["epoch 3"].state_dict().items():
            assert torch.equal(value, last[f"model.{name}"])

    def test_auxiliary_heads_of_a_training_are_no_part_of_the_model(self, run, tmp_path):
        shutil.copytree(run.folder, tmp_path / "run")
        for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
            checkpoint = torch.load(path, weights_only=True)
            checkpoint["state_dict"] |= {"heads.weight": torch.ones(2, 32), "heads.bias": torch.ones(2)}
            torch.save(checkpoint, path)
        assert list(kept_models(tmp_path / "run")) == list(kept_models(run.folder))

    def test_refusals(self, run, tmp_path):
        with pytest.raises(CheckpointError, match="holds no checkpoints"):
            kept_models(tmp_path)
        shutil.copytree(run.folder, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
        with pytest.raises(CheckpointError, match=r"best\.ckpt: not a checkpoint of this run"):
            kept_models(tmp_path / "run")


def test_capture_is_plain_data(model, sample):
    captured = capture(model, sample)
    assert isinstance(captured, Capture)
    assert not any(part.requires_grad for part in (*captured.attention, captured.q))
    assert isinstance(model.config, VTAMIQConfig)
