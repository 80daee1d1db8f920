"""The network against the original implementation, timm's ViT and its own promises."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from timm.layers import SwiGLU
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

from vtamiq.model.accelerate import accelerate
from vtamiq.model.backbone import resize_position_table
from vtamiq.model.checkpoints import CheckpointError
from vtamiq.model.config import VTAMIQConfig
from vtamiq.model.network import VTAMIQ, preference
from vtamiq.model.original import _ratio, _rename

DATA = Path(__file__).parents[1] / "data"
NETWORKS = ["model_noscale", "model_scale3", "model_2021"]
TINY = VTAMIQConfig(
    backbone="vit_tiny_patch16_384", image_size=64, width=32, num_heads=2, num_blocks=2, num_registers=1,
    num_groups=1, blocks_per_group=1, reduction=4,
)  # fmt: skip


class Golden:
    """One file of golden vectors with the model that its weights make."""

    def __init__(self, name):
        self.arrays = np.load(DATA / f"{name}.npz")
        self.weights = {key[2:]: self.arrays[key] for key in self.arrays.files if key.startswith("w/")}
        self.model = VTAMIQ.from_original(self.weights, num_heads=4)
        self.patches = torch.stack([self[f"in/patches_{role}"] for role in ("ref", "dist", "b")], dim=1)
        self.uv = self["in/pos"]
        if name == "model_2021":  # positions in [-1, 1] there
            self.uv = (self.uv + 1) / (2 + 1e-6)
        self.scale = self["in/scales"] if "in/scales" in self.arrays.files else None

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[key])

    def has(self, key):
        return key in self.arrays.files


@pytest.fixture(scope="module", params=NETWORKS)
def golden(request):
    return Golden(request.param)


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual.detach().numpy(), expected.numpy(), atol=tolerance, rtol=0)


def test_scores_equal_the_original(golden):
    q = golden.model(golden.patches, golden.uv, golden.scale)
    assert_close(q[:, 0], golden["out/q"], 5e-6)
    assert_close(q[:, 1], golden["out/q_b"], 5e-6)


def test_intermediate_vectors_equal_the_original(golden):
    encoder, patches = golden.model.encoder, golden.patches[:, 0]
    assert_close(encoder.embed(patches, golden.uv, golden.scale), golden["out/embed_ref"], 1e-5)
    cls = golden.model.encode(golden.patches, golden.uv, golden.scale)
    assert_close(cls[:, 0], golden["out/cls_ref"], 1e-5)
    assert_close(cls[:, 1], golden["out/cls_dist"], 1e-5)
    modulated = golden.model.modulate(cls[:, 0] - cls[:, 1], cls[:, 0])
    assert_close(modulated, golden["out/diff_modulated"], 2e-5)
    if golden.has("out/sequence_ref"):
        assert_close(encoder(patches, golden.uv, golden.scale), golden["out/sequence_ref"], 1e-5)
        token0 = []
        hooks = [b.register_forward_hook(lambda *args: token0.append(args[2][:, 0])) for b in encoder.blocks]
        encoder(patches, golden.uv, golden.scale)
        for hook in hooks:
            hook.remove()
        assert_close(torch.stack(token0), golden["out/layer_token0_ref"], 2e-5)
    if golden.has("out/diff_scaled"):
        assert_close((cls[:, 0] - cls[:, 1]) * golden.model.difference_scale, golden["out/diff_scaled"], 1e-5)
    if golden.has("out/diff_embedded"):
        gated = (cls[:, 0] - cls[:, 1]) * golden.model.difference_gate(cls[:, 0])
        assert_close(gated, golden["out/diff_embedded"], 1e-5)


def test_unaligned_positions_equal_the_original(golden):
    if not golden.has("in/pos_dist_unaligned"):
        pytest.skip("the 2021 vectors have aligned positions only")
    uv = torch.stack([golden.uv, golden["in/pos_dist_unaligned"]], dim=1)
    scale = None
    if golden.scale is not None:
        scale = torch.stack([golden.scale, golden["in/scales_dist_unaligned"]], dim=1)
    q = golden.model(golden.patches[:, :2], uv, scale)
    assert_close(q[:, 0], golden["out/q_unaligned"], 5e-6)


def test_preferences_equal_the_original(golden):
    w = golden.model.config.preference_weight
    assert w == (6.0 if golden.has("out/pref_prob_w2p5") else 1.0)
    assert_close(preference(golden["out/q"], golden["out/q_b"], w), golden["out/pref_prob"], 5e-6)
    if golden.has("out/pref_prob_w2p5"):
        assert_close(preference(golden["out/q"], golden["out/q_b"], 2.5), golden["out/pref_prob_w2p5"], 5e-6)


def test_2021_without_difference_gate_equals_the_original():
    golden = Golden("model_2021")
    weights = {name: value for name, value in golden.weights.items() if not name.startswith("diff_embedding")}
    model = VTAMIQ.from_original(weights, num_heads=4)
    assert not model.config.difference_gate
    assert_close(model(golden.patches, golden.uv)[:, 0], golden["out/q_no_diff_embedding"], 5e-6)


@pytest.mark.parametrize("name", ["model_noscale", "model_scale3"])
def test_gradients_equal_the_original(name):
    golden = Golden(name)
    golden.model(golden.patches[:, :2], golden.uv, golden.scale).sum().backward()
    ours = {key: parameter.grad for key, parameter in golden.model.named_parameters()}
    checked = 0
    for key in golden.arrays.files:
        if not key.startswith("grad/"):
            continue
        expected, original = golden[key], key.removeprefix("grad/")
        actual = _our_gradient(ours, original)
        tolerance = 1e-4 * expected.abs().max().item() + 1e-6
        assert_close(actual.reshape(expected.shape), expected, tolerance)
        checked += 1
    assert checked > 50


def _our_gradient(gradients, original):
    """Find the gradient of an original weight by translating a state dict that marks it."""
    if ".attn.query." in original or ".attn.key." in original or ".attn.value." in original:
        layer, role, part = original.split(".")[3], original.split(".")[5], original.split(".")[6]
        thirds = gradients[f"encoder.blocks.{layer}.attn.qkv.{part}"].chunk(3)
        return thirds[("query", "key", "value").index(role)]
    gradient = gradients[_rename(original, 2024)]
    if original.endswith("scale_embeddings"):  # we do not keep the row that is never used
        gradient = torch.cat([torch.zeros_like(gradient[:1]), gradient])
    return gradient


def test_default_configuration_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in VTAMIQ().parameters()) == 57_322_386


# ------------------------------------------------------------------------------------------- class token of the last block


def parts_of(golden):
    return golden.patches[:, 0], golden.uv, golden.scale


def test_the_class_token_alone_equals_that_of_all_tokens(golden):
    encoder = golden.model.encoder
    alone = encoder(*parts_of(golden), class_token_only=True)
    assert alone.shape == (len(golden.uv), 1, golden.model.head.hidden.in_features)
    assert_close(alone, encoder(*parts_of(golden))[:, :1].detach(), 2e-6)
    assert_close(alone[:, 0], golden["out/cls_ref"], 1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"qk_norm": True, "qkv_bias": False},
        {"scale_attn_norm": True, "scale_mlp_norm": True, "proj_bias": False},
        {"mlp_layer": SwiGLU},
        {"attn_layer": "diff"},
        {"block_fn": ResPostBlock},
    ],
    ids=str,
)
@pytest.mark.parametrize("adapters", [False, True])
def test_the_class_token_alone_in_blocks_of_any_kind(kind, adapters):
    torch.manual_seed(0)
    layers = {"img_size": 64, "num_classes": 0, "embed_dim": 32, "num_heads": 2, "depth": 2} | kind
    ours = not kind.keys() & {"attn_layer", "block_fn"}
    vit = VisionTransformer(**layers)
    if "block_fn" in kind:  # it has no layer scale of its own
        for block in vit.blocks:
            block.ls1, block.ls2 = torch.nn.Identity(), torch.nn.Identity()
    model = VTAMIQ(replace(TINY, adapters=adapters and ours, layer_scale=ours), _vit=vit).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(3, 5, 3, 16, 16), torch.rand(3, 5, 2)
    last, computed = model.encoder.blocks[-1], []
    hook = last.mlp.register_forward_hook(lambda module, given, result: computed.append(result.shape[1]))
    alone = model.encoder(*inputs, class_token_only=True)
    hook.remove()
    torch.testing.assert_close(alone, model.encoder(*inputs)[:, :1], atol=1e-5, rtol=1e-5)
    assert computed == [1 if ours else 7]  # tokens that went through the last MLP


def test_whoever_watches_the_last_block_sees_all_its_tokens(tiny, batch):
    model, seen = copy.deepcopy(tiny), []
    last = model.encoder.blocks[-1]
    for part in (last, last.attn, last.attn.qkv):
        hook = part.register_forward_hook(lambda module, given, result: seen.append(result.shape[1]))
        q = model(*batch)
        hook.remove()
        torch.testing.assert_close(q, tiny(*batch), atol=1e-5, rtol=0)
    tokens = 2 + batch[0].shape[2]
    assert seen == [tokens] * 3


def test_a_projection_that_somebody_has_replaced_is_called(tiny, batch):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = copy.deepcopy(tiny)
    qkv = model.encoder.blocks[-1].attn.qkv
    other = Doubled(qkv.in_features, qkv.out_features)
    other.load_state_dict(qkv.state_dict())
    model.encoder.blocks[-1].attn.qkv = other
    with torch.no_grad():
        actual = model(*batch)
        for parameter in qkv.parameters():
            parameter.mul_(2)
        model.encoder.blocks[-1].attn.qkv = qkv
        torch.testing.assert_close(actual, model(*batch), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(actual, tiny(*batch), atol=1e-6)


def test_gradients_and_drop_path_of_the_class_token_alone():
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, encoder_drop_path=0.5))
    inputs = torch.randn(8, 5, 3, 16, 16), torch.rand(8, 5, 2)
    results = []
    for alone in (True, False):
        torch.manual_seed(1)
        token = model.encoder(*inputs, class_token_only=alone)[:, 0]
        results.append((token, *torch.autograd.grad(token.square().sum(), list(model.encoder.parameters()))))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- pre-trained ViTs

JAX = {"backbone": "vit_base_patch16_384", "width": 96, "num_heads": 4, "mlp_ratio": 2.0}


@pytest.mark.parametrize("onednn", [False, True])
def test_blocks_computed_anew_give_the_same_gradients_to_the_last_bit(onednn):
    """With all randomness that the network has, and fewer bytes kept on the way."""
    random = dict.fromkeys(("embedding_dropout", "mlp_dropout", "encoder_drop_path", "decoder_drop_path"), 0.2)
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, num_blocks=4, head_dropout=0.2, **random))
    if onednn:
        accelerate(model, training=True, shapes=[(96, 32), (32, 32), (128, 32), (32, 128)])
    images, uv = torch.randn(3, 2, 9, 3, 16, 16), torch.rand(3, 9, 2)
    found, kept = [], []
    for recompute in (False, True):
        model.encoder.recompute = recompute
        kept.append(0)

        def count(value):
            kept[-1] += value.nbytes
            return value

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            q = model(images, uv)
        gradients = torch.autograd.grad(q.square().sum(), list(model.parameters()))
        found.append((q, *gradients, torch.get_rng_state()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert kept[1] < kept[0] / 2
    with torch.inference_mode():
        again = model.eval()(images, uv)
        model.encoder.recompute = False
        assert torch.equal(model(images, uv), again)


@pytest.fixture(scope="module")
def jax_expected():
    return np.load(DATA / "jax_vit_tiny_expected.npz")


@pytest.mark.parametrize(("blocks", "key"), [(3, "cls"), (2, "cls_keep2"), (1, "cls_keep1")])
def test_npz_vit_gives_the_original_class_token(jax_expected, blocks, key):
    config = VTAMIQConfig(**JAX, num_blocks=blocks, image_size=64, num_registers=0)
    model = VTAMIQ.from_vit(config, pretrained=DATA / "jax_vit_tiny.npz").eval()
    patches, uv = (torch.from_numpy(jax_expected[name]) for name in ("patches", "pos"))
    tokens = model.encoder(patches, uv)
    assert_close(tokens[:, 0], torch.from_numpy(jax_expected[key]), 1e-5)
    if blocks == 3:
        assert_close(tokens, torch.from_numpy(jax_expected["sequence"]), 2e-5)
        assert_close(tokens[:, 0], torch.from_numpy(jax_expected["cls_timm"]), 1e-5)


def test_position_table_is_resized_like_the_original(jax_expected):
    config = VTAMIQConfig(**JAX, num_blocks=1, image_size=96)
    model = VTAMIQ.from_vit(config, pretrained=str(DATA / "jax_vit_tiny.npz"))
    expected = torch.from_numpy(jax_expected["pos_embedding_resized_6x6"])[0]
    assert_close(model.encoder.position_table, expected, 1e-5)


def test_resizing_keeps_corners_and_class_row():
    table = torch.randn(1 + 9, 5)
    resized = resize_position_table(table, 5)
    assert torch.equal(resized[0], table[0])
    for old, new in ((1, 1), (3, 5), (7, 21), (9, 25)):
        torch.testing.assert_close(resized[new], table[old])


@pytest.mark.parametrize(
    "backbone", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_medium_patch16_gap_256"]
)
def test_regular_grid_equals_timm(backbone):
    """On every patch of a regular grid, the encoder is timm's own forward."""
    torch.manual_seed(0)
    size = {"vit_small_patch14_reg4_dinov2": 56}.get(backbone, 64)
    overrides = {"img_size": size, "embed_dim": 48, "num_heads": 3, "depth": 2}
    if "gap" in backbone:
        with pytest.raises(ValueError, match="class token"):
            VTAMIQ(VTAMIQConfig(backbone=backbone, image_size=64, num_blocks=1))
        return
    vit = timm.create_model(backbone, num_classes=0, **overrides).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    registers = 0 if vit.reg_token is None else vit.reg_token.shape[1]
    config = VTAMIQConfig(
        backbone=backbone,
        image_size=size,
        width=48,
        num_heads=3,
        num_blocks=2,
        num_registers=registers,
        layer_scale=False,
    )
    model = VTAMIQ(config, _vit=vit).eval()
    if registers:  # such a ViT has no position for its class token
        assert not model.encoder.position_table[0].any()
    P = vit.patch_embed.patch_size[0]
    G = size // P
    image = torch.randn(2, 3, size, size)
    patches = image.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    uv = torch.cartesian_prod(torch.arange(G), torch.arange(G)) / G + 0.5 / G
    torch.testing.assert_close(
        model.encoder(patches, uv.expand(2, -1, -1)), vit.forward_features(image), atol=1e-5, rtol=1e-5
    )


def test_truncated_npz_is_refused(tmp_path):
    whole = (DATA / "jax_vit_tiny.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.npz"):
        VTAMIQ.from_vit(VTAMIQConfig(**JAX, num_blocks=1), pretrained=tmp_path / "cut.npz")


def test_npz_of_another_width_is_refused():
    with pytest.raises(CheckpointError, match="does not fit"):
        VTAMIQ.from_vit(replace(TINY, image_size=None), pretrained=DATA / "jax_vit_tiny.npz")


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", **{"Transformer/posembed_input/pos_embedding": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(CheckpointError, match=r"evil\.npz"):
        VTAMIQ.from_vit(VTAMIQConfig(**JAX, num_blocks=1), pretrained=tmp_path / "evil.npz")


# ----------------------------------------------------------------------------------------------------- promises of the net


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    patches = torch.rand(2, 3, 10, 3, 16, 16, generator=generator) * 2 - 1
    return patches, torch.rand(2, 10, 2, generator=generator)


@pytest.fixture
def tiny():
    torch.manual_seed(1)
    return VTAMIQ(TINY).eval()


def test_gradients_are_the_same_every_time():
    """Bit by bit, on several threads: otherwise no run could be repeated, nor an interrupted one go on as it would
    have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        torch.manual_seed(0)
        model = VTAMIQ(replace(TINY, image_size=384, width=96, num_heads=3, num_scales=3)).eval()
        patches, uv = torch.randn(16, 2, 64, 3, 16, 16), torch.rand(16, 64, 2)
        scale = torch.randint(0, 3, (16, 64))
        gradients = []
        for _ in range(12):
            model.zero_grad()
            model(patches, uv, scale).sum().backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    finally:
        torch.set_num_threads(threads)
    for again in gradients[1:]:
        assert [name for name, value in again.items() if not torch.equal(value, gradients[0][name])] == []


def test_order_of_patches_does_not_matter(tiny, batch):
    patches, uv = batch
    order = torch.randperm(10)
    torch.testing.assert_close(tiny(patches, uv), tiny(patches[:, :, order], uv[:, order]), atol=1e-5, rtol=0)


def test_images_of_an_item_are_scored_as_if_alone(tiny, batch):
    patches, uv = batch
    together = tiny(patches, uv)
    alone = torch.cat([tiny(patches[:, [0, k]], uv) for k in (1, 2)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_uint8_patches_are_normalised(tiny, batch):
    uv = batch[1]
    patches = torch.randint(0, 256, (2, 2, 10, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(tiny(patches, uv), tiny((patches / 255 - 0.5) / 0.5, uv))


def test_position_matters(tiny, batch):
    patches, uv = batch
    assert not torch.allclose(tiny(patches, uv), tiny(patches, 1 - uv.clamp(min=1e-3)))


@pytest.mark.parametrize("training", [False, True])
def test_zero_anchor_scores_a_copy_exactly_zero(batch, training):
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, zero_anchor=True, head_dropout=0.5)).train(training)
    patches, uv = batch
    patches = torch.stack([patches[:, 0], patches[:, 0], patches[:, 1]], dim=1)
    q = model(patches, uv)
    assert (q[:, 0] == 0).all()
    assert (q[:, 1] != 0).all()
    assert model.head.training == training


def test_without_anchor_a_copy_scores_one_constant(tiny, batch):
    patches, uv = batch
    q = tiny(patches[:, [0, 0]], uv)
    constant = tiny.head(tiny.diffnet(torch.zeros(1, 32)))
    torch.testing.assert_close(q.flatten(), constant.expand(2), atol=1e-6, rtol=0)


def test_other_draws_for_a_copy_are_not_taken_for_a_copy(batch):
    model = VTAMIQ(replace(TINY, zero_anchor=True)).eval()
    patches, uv = batch
    other = torch.stack([uv, 1 - uv.clamp(min=1e-3)], dim=1)
    assert (model(patches[:, [0, 0]], other) != 0).all()


def test_every_option_changes_the_network(batch):
    base = {name: p.shape for name, p in VTAMIQ(TINY).named_parameters()}
    for change in (
        {"num_registers": 3}, {"num_scales": 3}, {"layer_scale": False}, {"adapters": True}, {"num_groups": 0},
        {"blocks_per_group": 2}, {"reduction": 8}, {"difference_scale": False}, {"difference_gate": True},
        {"channel_attention_prelu": True}, {"num_blocks": 1}, {"image_size": 96},
    ):  # fmt: skip
        changed = {name: p.shape for name, p in VTAMIQ(replace(TINY, **change)).named_parameters()}
        assert changed != base, change


@pytest.mark.parametrize(
    "option", ["embedding_dropout", "mlp_dropout", "encoder_drop_path", "decoder_drop_path", "head_dropout"]
)
def test_dropouts_act_in_training_only(batch, option):
    none = {"decoder_drop_path": 0.0, "head_dropout": 0.0}
    model = VTAMIQ(replace(TINY, **(none | {option: 0.5})))
    patches, uv = batch
    torch.manual_seed(0)
    draws = torch.stack([model.train()(patches, uv) for _ in range(4)])
    assert draws.std(dim=0).max() > 0
    torch.testing.assert_close(model.eval()(patches, uv), model(patches, uv))


def test_adapters_start_as_identity(batch):
    torch.manual_seed(5)
    plain = VTAMIQ(TINY).eval()
    adapted = VTAMIQ(replace(TINY, adapters=True)).eval()
    state = {name.replace("ls1.gamma", "ls1.1.gamma").replace("ls2.gamma", "ls2.1.gamma"): value
             for name, value in plain.state_dict().items()}  # fmt: skip
    missing = adapted.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    torch.testing.assert_close(adapted(*batch), plain(*batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": lambda p: p[:, :, :, :2]}, "patches must be"),
        ({"patches": lambda p: p[..., :8, :8]}, "patches must be"),
        ({"uv": lambda u: u[:, :5]}, "uv must be"),
        ({"uv": lambda u: u + 1}, r"\[0, 1\)"),
        ({"uv": lambda u: u * float("nan")}, r"\[0, 1\)"),
        ({"scale": torch.zeros(2, 4, dtype=torch.long)}, "scale must be"),
        ({"scale": torch.zeros(2, 10)}, "scale must be integers, got torch.float32"),
        ({"patches": lambda p: p[:, :1]}, "at least 2 images"),
    ],
)
def test_bad_inputs_are_refused(tiny, batch, change, message):
    patches, uv = batch
    patches = change.get("patches", lambda p: p)(patches)
    uv = change.get("uv", lambda u: u)(uv)
    with pytest.raises(ValueError, match=message):
        tiny(patches, uv, change.get("scale"))


def test_a_batch_of_nothing_has_no_scores(tiny, batch):
    assert tiny(*(part[:0] for part in batch)).shape == (0, 2)


def test_any_integers_say_the_scale(batch):
    model = VTAMIQ(replace(TINY, num_scales=3)).eval()
    scale = torch.arange(10).expand(2, 10) % 4  # 3 counts as the coarsest that the model knows
    q = model(*batch, scale)
    assert torch.equal(model(*batch, scale.to(torch.uint8)), q)
    assert torch.equal(model(*batch, scale.clamp(max=2)), q)
    assert not torch.equal(model(*batch, torch.zeros_like(scale)), q)


def test_scale_is_required_by_a_multi_scale_model(batch):
    with pytest.raises(ValueError, match="num_scales=3"):
        VTAMIQ(replace(TINY, num_scales=3))(*batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"head_dropout": 1.0}, "head_dropout"),
        ({"std": (1, 0, 1)}, "std"),
        ({"mean": (1, 0)}, "mean"),
        ({"uv_anchor": "middle"}, "uv_anchor"),
        ({"width": -3}, "width"),
        ({"width": 32, "num_heads": 3}, "width must divide by num_heads=3"),
        ({"num_blocks": 2.5}, r"num_blocks must be int, got 2\.5"),
        ({"num_blocks": True}, "num_blocks must be int"),
        ({"zero_anchor": "no"}, "zero_anchor must be bool, got 'no'"),
        ({"mean": "abc"}, "mean must be tuple"),
        ({"backbone": 3}, "backbone must be str"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VTAMIQConfig(**change)


def test_unknown_field_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean `num_registers`"):
        VTAMIQConfig.from_dict({"num_register": 3})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("vit_bse_patch16_384", "near: vit_base_patch16_384"),
        ("resnet18", "ResNet|cannot be built"),
        ("deit_tiny_distilled_patch16_224", "distillation"),
        ("vit_small_patch16_18x2_224", "blocks of another kind"),
        ("vit_tiny_r_s16_p8_224", "does not project patches of pixels"),
    ],
)
def test_unusable_backbones_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        VTAMIQ(VTAMIQConfig(backbone=backbone))


def test_more_blocks_than_the_backbone_has():
    with pytest.raises(ValueError, match="12 blocks"):
        VTAMIQ(VTAMIQConfig(backbone="vit_tiny_patch16_224", num_blocks=13))


# --------------------------------------------------------------------------------------------------------- saving, loading


def test_save_and_load(tiny, batch, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    loaded = VTAMIQ.from_pretrained(tmp_path / "model")
    assert loaded.config == tiny.config
    assert not loaded.training
    assert torch.equal(loaded(*batch), tiny(*batch))


def test_default_constructed_config_survives_saving(tmp_path):
    VTAMIQ(TINY).save_pretrained(tmp_path)
    assert VTAMIQConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == TINY


@pytest.mark.parametrize(
    "text", ["[]", '""', "{", '{"num_heads": 5}', '{"num_blocks": 2.5}', '{"mean": ["a"]}', '{"num_blocks": 99}']
)
def test_bad_configuration_files_are_refused(tiny, tmp_path, text):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: not a VTAMIQ configuration"):
        VTAMIQ.from_pretrained(tmp_path)


def test_a_name_that_is_too_long_is_refused():
    with pytest.raises(CheckpointError, match="xxx"):
        VTAMIQ.from_pretrained("x" * 300)


def test_missing_model_is_refused_without_network():
    with pytest.raises(CheckpointError, match="download=True"):
        VTAMIQ.from_pretrained("nobody/no-such-model")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        pytest.fail("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def fake_cache(folder, model, revision="main"):
    """`someone/vtamiq` as the Hugging Face cache keeps it."""
    snapshot = folder / "models--someone--vtamiq" / "snapshots" / "0123abc"
    model.save_pretrained(snapshot)
    references = folder / "models--someone--vtamiq" / "refs"
    references.mkdir()
    (references / revision).write_text("0123abc")
    return snapshot


@pytest.mark.usefixtures("no_network")
def test_hub_id_comes_from_the_cache_without_network(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = fake_cache(tmp_path, tiny)
    loaded = VTAMIQ.from_pretrained("someone/vtamiq")
    assert loaded.origin == "someone/vtamiq"
    for name, value in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert VTAMIQ.from_pretrained("someone/vtamiq", revision="main").origin == "someone/vtamiq@main"
    for missing in (("someone/vtamiq", "v2"), ("someone/else", None)):
        with pytest.raises(CheckpointError, match=r"pass download=True"):
            VTAMIQ.from_pretrained(missing[0], revision=missing[1])
    (snapshot / "model.safetensors").unlink()  # a download that was broken off
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        VTAMIQ.from_pretrained("someone/vtamiq")


def test_network_is_asked_only_with_download(tiny, tmp_path, monkeypatch):
    asked = []
    tiny.save_pretrained(tmp_path)
    monkeypatch.setattr(
        "vtamiq.model.checkpoints.snapshot_download", lambda name, **options: asked.append(options) or str(tmp_path)
    )
    VTAMIQ.from_pretrained("someone/vtamiq")
    VTAMIQ.from_pretrained("someone/vtamiq", download=True, revision="v1")
    assert [options["local_files_only"] for options in asked] == [True, False]
    assert [options["revision"] for options in asked] == [None, "v1"]
    assert all(options["allow_patterns"] == ["config.json", "model.safetensors", "seen.json"] for options in asked)


def test_what_a_model_has_seen_is_kept_and_never_another_models(tiny, tmp_path):
    seen = ({"database": "a", "contents": ["x"], "pictures": []},)
    model = VTAMIQ(tiny.config)
    assert model.seen == ()
    model.seen = seen
    model.save_pretrained(tmp_path)
    assert VTAMIQ.from_pretrained(tmp_path).seen == seen
    model.seen = None
    model.save_pretrained(tmp_path)
    assert VTAMIQ.from_pretrained(tmp_path).seen is None
    for damaged in ('{"database": "a"}', "[1]", "", '[{"database": "a"}]'):
        (tmp_path / "seen.json").write_text(damaged)
        assert VTAMIQ.from_pretrained(tmp_path).seen is None


def test_a_revision_is_of_the_hub_not_of_a_folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    assert VTAMIQ.from_pretrained(tmp_path, revision="v1").origin == str(tmp_path)


def test_a_failing_network_is_one_clear_error(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("vtamiq.model.checkpoints.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"`someone/vtamiq` is neither a folder nor to be had .*no route to host"):
        VTAMIQ.from_pretrained("someone/vtamiq", download=True)


def test_a_download_that_fails_says_why_and_does_not_ask_for_what_was_asked_for(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("no route to host")  # one of those that the Hub's own code wraps

    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi.repo_info", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as refusal:
        VTAMIQ.from_pretrained("someone/vtamiq", download=True)
    assert str(refusal.value) == (
        "`someone/vtamiq` is neither a folder nor in the local Hugging Face cache, and cannot be fetched (no route to host)"
    )


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_not_read(tiny, tmp_path, name):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=rf"has no model\.safetensors.*pickled weights \({name}\) are not read"):
        VTAMIQ.from_pretrained(tmp_path)


def test_a_pickle_under_another_name_is_not_unpickled(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        VTAMIQ.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        VTAMIQ.from_original(tmp_path / "model.safetensors")
    np.savez(tmp_path / "vit.npz", embedding=np.array([Bomb()], dtype=object))
    with pytest.raises(CheckpointError, match=r"vit\.npz"):
        VTAMIQ.from_vit(TINY, pretrained=tmp_path / "vit.npz")


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    broken = copy.deepcopy(tiny)
    with torch.no_grad():
        broken.head.output.bias.fill_(torch.nan)
    broken.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"`head\.output\.bias` holds NaN or infinite"):
        VTAMIQ.from_pretrained(tmp_path)


def test_a_configuration_beyond_all_memory_is_refused(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 2**40, "num_heads": 1}))
    with pytest.raises(CheckpointError, match=r"config\.json: not a VTAMIQ configuration"):
        VTAMIQ.from_pretrained(tmp_path)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        VTAMIQ.from_pretrained(tmp_path)


def test_truncated_weights_are_refused(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        VTAMIQ.from_pretrained(tmp_path)


def test_weights_of_another_configuration_are_refused(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_registers": 3}))
    with pytest.raises(CheckpointError, match="registers"):
        VTAMIQ.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_original_checkpoint_file(tmp_path, wrapped):
    golden = Golden("model_noscale")
    state = {name: torch.from_numpy(value) for name, value in golden.weights.items()}
    if wrapped:
        state = {f"module.{name}": value for name, value in state.items()}
        state = {
            "model_state_dict": state,
            "epoch": 3,
            "SROCC": np.float64(0.9),
            "pref_module_state_dict": {"p": torch.tensor(6.0)},
        }
    torch.save(state, tmp_path / "latest.pth")
    model = VTAMIQ.from_original(tmp_path / "latest.pth", num_heads=4, zero_anchor=True)
    assert model.config.zero_anchor
    assert (model(golden.patches[:, [0, 0]], golden.uv) == 0).all()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("srocc", [0.9, np.float32(0.9), np.float16(0.9), np.int64(1)])
def test_wrapped_checkpoints_of_any_number_type(tmp_path, prefix, srocc):
    golden = Golden("model_noscale")
    state = {prefix + name: torch.from_numpy(value) for name, value in golden.weights.items()}
    state |= {"pref_module.p": torch.tensor(6.0)}
    torch.save({"model_state_dict": state, "SROCC": srocc}, tmp_path / "latest.pth")
    model = VTAMIQ.from_original(tmp_path / "latest.pth", num_heads=4)
    assert torch.equal(model.head.output.weight, golden.model.head.output.weight)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("attn.key.weight", r"no weights for encoder\.blocks\.0\.attn\.key\.weight"),
        ("patch_embeddings", "no weights for encoder.patch_projection.weight"),
        ("positional_embeddings", "no weights for encoder.position_table"),
        ("transformer.encoder.layers.0.", "no weights for encoder.blocks.0"),
        ("q_predictor", "head"),
    ],
)
def test_original_without_a_part_is_refused(part, message):
    weights = {name: value for name, value in Golden("model_noscale").weights.items() if part not in name}
    with pytest.raises(CheckpointError, match=message):
        VTAMIQ.from_original(weights, num_heads=4)


def test_original_without_groups_is_a_network_without_groups():
    weights = {k: v for k, v in Golden("model_noscale").weights.items() if not k.startswith("quality_decoder")}
    assert VTAMIQ.from_original(weights, num_heads=4).config.num_groups == 0


def test_original_with_heads_that_do_not_fit_is_refused():
    with pytest.raises(CheckpointError, match="width must divide by num_heads=7"):
        VTAMIQ.from_original(Golden("model_noscale").weights, num_heads=7)


def test_damaged_original_files_are_refused(tmp_path):
    torch.save({"transformer.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "whole.pth")
    whole = bytearray((tmp_path / "whole.pth").read_bytes())
    rng = np.random.default_rng(0)
    for k in range(60):
        broken = whole.copy()
        for place in rng.integers(len(whole), size=20):
            broken[place] = rng.integers(256)
        (tmp_path / f"{k}.pth").write_bytes(broken)
        with pytest.raises(CheckpointError):  # also where it can be read: there is next to nothing in it
            VTAMIQ.from_original(tmp_path / f"{k}.pth")


@pytest.mark.parametrize(("hidden", "width"), [(60, 44), (3072, 768), (28, 25)])
def test_mlp_widths_survive_division(hidden, width):
    assert int(width * _ratio(hidden, width)) == hidden


class Danger:
    def __reduce__(self):
        return (print, ("unpickled!",))


def test_original_checkpoint_with_code_inside_is_refused(tmp_path, capsys):
    torch.save({"model_state_dict": Danger()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        VTAMIQ.from_original(tmp_path / "evil.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_original_with_unknown_part_is_refused():
    golden = Golden("model_noscale")
    with pytest.raises(CheckpointError, match="mystery"):
        VTAMIQ.from_original(golden.weights | {"mystery.weight": np.zeros(3)}, num_heads=4)


@pytest.mark.parametrize("state", [{"model_state_dict": "text"}, {3: torch.zeros(2)}, {"name": "text"}])
def test_what_is_no_state_dict_is_refused(state):
    with pytest.raises(CheckpointError, match=r"no state dict|no VTAMIQ checkpoint"):
        VTAMIQ.from_original(state)


def test_npz_of_its_own_grid_can_be_saved_and_loaded(tmp_path):
    model = VTAMIQ.from_vit(VTAMIQConfig(**JAX, num_blocks=1), pretrained=DATA / "jax_vit_tiny.npz")
    assert model.config.image_size == 64
    model.save_pretrained(tmp_path)
    assert VTAMIQ.from_pretrained(tmp_path).config == model.config


def test_downloaded_weights_bring_their_normalisation(monkeypatch):
    create = timm.create_model
    offline = lambda name, pretrained=False, **options: create(name, pretrained=False, **options)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", offline)
    deit = VTAMIQConfig(backbone="deit_tiny_patch16_224", num_blocks=1)
    model = VTAMIQ.from_vit(deit)
    assert (model.config.mean, model.config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(model._mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert VTAMIQ.from_vit(replace(deit, mean=(0.1, 0.2, 0.3))).config.std == (0.5, 0.5, 0.5)
    assert VTAMIQ.from_vit(deit, pretrained=False).config.mean == (0.5, 0.5, 0.5)


def test_downloaded_vit_keeps_its_shape():
    with pytest.raises(ValueError, match="width cannot be changed in a pre-trained ViT"):
        VTAMIQ.from_vit(TINY)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        VTAMIQ.from_original(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no VTAMIQ checkpoint"):
        VTAMIQ.from_original({"fc.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("scales", [1, 3])
def test_the_network_is_exported_for_any_number_of_items_and_patches(scales):
    torch.manual_seed(0)
    model = VTAMIQ(replace(TINY, num_scales=scales, zero_anchor=True)).eval()

    def inputs(B, N):
        patches, scale = torch.randint(0, 256, (B, 2, N, 3, 16, 16), dtype=torch.uint8), torch.randint(0, 3, (B, N))
        patches[0, 1] = patches[0, 0]
        return (patches, torch.rand(B, N, 2), scale)[: 2 + (scales > 1)]

    B, N = torch.export.Dim("B"), torch.export.Dim("N")
    dimensions = ({0: B, 2: N}, {0: B, 1: N}, {0: B, 1: N})[: 2 + (scales > 1)]
    exported = torch.export.export(model, inputs(2, 9), dynamic_shapes=dimensions, strict=scales > 1).module()
    for size in ((2, 9), (3, 20)):
        given = inputs(*size)
        torch.testing.assert_close(exported(*given), model(*given), rtol=0, atol=1e-6)
        assert exported(*given)[0].item() == 0


def test_onnx_computes_the_same(tmp_path):
    """The example of docs/export.md."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = VTAMIQ(TINY).eval()
    inputs = torch.randint(0, 256, (2, 2, 9, 3, 16, 16), dtype=torch.uint8), torch.rand(2, 9, 2)
    B, N = torch.export.Dim("B"), torch.export.Dim("N")
    path = tmp_path / "vtamiq.onnx"
    torch.onnx.export(
        model, inputs, path, dynamo=True, dynamic_shapes=({0: B, 2: N}, {0: B, 1: N}),
        input_names=["patches", "uv"], output_names=["q"],
    )  # fmt: skip
    given = torch.randint(0, 256, (3, 2, 20, 3, 16, 16), dtype=torch.uint8), torch.rand(3, 20, 2)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (q,) = session.run(None, {"patches": given[0].numpy(), "uv": given[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(q), model(*given), rtol=0, atol=1e-5)
