"""Linear layers through oneDNN: the same results, the same weights, and nothing left behind. Never timed here."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, partialmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.model.test_network import NETWORKS, Golden
from tests.small import TINY
from vtamiq.attention.maps import capture
from vtamiq.caps import CAPS
from vtamiq.model import accelerate as fast
from vtamiq.model.accelerate import OneDNNLinear, _linear_rows, accelerate, accelerated, compile_blocks, restore
from vtamiq.model.inference import fingerprint
from vtamiq.model.network import VTAMIQ
from vtamiq.scoring.loss import VTAMIQLoss
from vtamiq.scoring.scores import score

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    """The route must not depend on how fast the machine is that runs the tests."""
    monkeypatch.setattr(fast, "_worth_it", lambda outputs, inputs, training: True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VTAMIQ(TINY).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 9, 3, 16, 16, generator=generator), torch.rand(2, 9, 2, generator=generator)


def routed(module):
    return [part for part in module.modules() if isinstance(part, OneDNNLinear)]


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_vectors_hold(name):
    golden = Golden(name)
    model = golden.model.optimize_for_inference()
    assert len(routed(model)) > 20
    with torch.no_grad():
        q = model(golden.patches, golden.uv, golden.scale)
    assert all(part._packed for part in routed(model.encoder))
    for k, key in enumerate(("out/q", "out/q_b")):
        np.testing.assert_allclose(q[:, k], golden[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 5, 7), (2, 0, 7), (600, 7)])
def test_products_equal_the_default(shape, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(7, 6, bias=bias), torch.randn(shape)
    ours = OneDNNLinear(linear)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), linear(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            ours(x.expand(2, *shape).transpose(0, -2)), linear(x.expand(2, *shape).transpose(0, -2))
        )
        for start, stop in ((0, 2), (2, 6), (0, 6)):
            torch.testing.assert_close(
                _linear_rows(ours, x, start, stop), linear(x)[..., start:stop], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(_linear_rows(linear, x, start, stop), linear(x)[..., start:stop])


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_the_default(model, batch, training):
    plain, ours = copy.deepcopy(model), accelerate(model, training=training)
    gradients = []
    for network in (plain, ours):
        patches = batch[0].clone().requires_grad_()
        network(patches, batch[1]).square().sum().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in network.named_parameters()} | {"patches": patches.grad}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)


def test_nothing_is_packed_in_training(model, batch):
    """Weights change in ways that nobody is told of: `.data` is how Lightning exchanges them with their average."""
    plain = copy.deepcopy(model)
    accelerate(model, training=True)
    with torch.inference_mode():
        torch.testing.assert_close(model(*batch), plain(*batch), atol=1e-5, rtol=0)
    for network in (model, plain):
        for parameter in network.parameters():
            parameter.data.mul_(1.1)
    with torch.inference_mode():
        torch.testing.assert_close(model(*batch), plain(*batch), atol=1e-5, rtol=1e-5)
    assert not any(part._packed for part in routed(model))


def test_frozen_parts_get_no_gradient():
    linear = OneDNNLinear(nn.Linear(4, 3), training_too=True)
    linear.weight.requires_grad_(False)
    x = torch.randn(5, 4)
    linear(x).sum().backward()
    assert linear.weight.grad is None
    assert torch.equal(linear.bias.grad, torch.full((3,), 5.0))


def test_weights_that_change_are_packed_anew(model, batch):
    other = VTAMIQ(TINY).eval()
    model.optimize_for_inference()
    with torch.no_grad():
        before = model(*batch)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(*batch), other(*batch), atol=1e-5, rtol=0)
    for network in (model, other):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
        network(*batch).sum().backward()
        optimiser.step()
    with torch.no_grad():
        torch.testing.assert_close(model(*batch), other(*batch), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(*batch), before)
        linear = routed(model.encoder)[0]
        linear.weight = nn.Parameter(torch.zeros_like(linear.weight))
        assert torch.equal(linear(torch.randn(2, linear.in_features)), linear.bias.expand(2, -1))


def test_state_saving_and_copies_are_those_of_the_plain_model(model, batch, tmp_path):
    plain = copy.deepcopy(model)
    parameters = list(model.parameters())
    assert model.optimize_for_inference() is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert fingerprint(model) == fingerprint(plain)
    with torch.no_grad():
        q = model(*batch)
        model.save_pretrained(tmp_path)
        assert torch.equal(VTAMIQ.from_pretrained(tmp_path)(*batch), plain(*batch))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert len(routed(twin)) == len(routed(model))
            assert torch.equal(twin(*batch), q)


def test_undone(model, batch):
    with torch.no_grad():
        q = model(*batch)
        model.optimize_for_inference()
        model(*batch)
        assert model.optimize_for_inference(False) is model
        assert routed(model) == []
        assert torch.equal(model(*batch), q)
    assert repr(model.encoder.blocks[0].attn.qkv) == "Linear(in_features=32, out_features=96, bias=True)"
    assert model.training is False


def test_accelerated_twice_is_accelerated_once(model):
    model.optimize_for_inference()
    count = len(routed(model))
    model.optimize_for_inference()
    assert len(routed(model)) == count
    assert all(type(part.weight) is nn.Parameter for part in routed(model))


def test_other_types_and_autocast_are_left_to_pytorch(model, batch):
    plain = copy.deepcopy(model)
    model.optimize_for_inference()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(*batch), plain(*batch))
    double = [part.double() for part in batch]
    with torch.no_grad():
        assert torch.equal(model.double()(*double), plain.double()(*double))


def test_attention_and_the_loss_work_on_it(model):
    images = np.random.default_rng(0).integers(256, size=(2, 40, 50, 3), dtype=np.uint8)
    sample = CAPS(num_patches=9)(images, 0)
    x, y = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in images)
    results = []
    for network in (copy.deepcopy(model), model.optimize_for_inference()):
        captured, given = capture(network, sample, gradient=True), x.clone().requires_grad_()
        loss = VTAMIQLoss(network, caps=CAPS(num_patches=9))(given, y)
        loss.backward()
        q = score(*images, model=network, caps=CAPS(num_patches=9))
        results.append(
            (*captured.attention, *captured.gradient, captured.q, loss.detach(), given.grad, torch.tensor(q))
        )
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_threads_share_a_model(model, batch):
    with torch.inference_mode():
        expected = model.optimize_for_inference()(*batch)
    model.optimize_for_inference()  # nothing is packed

    def score(_):
        with torch.inference_mode():
            return model(*batch)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(q, expected) for q in pool.map(score, range(8)))


def test_hooked_and_derived_layers_are_left_alone():
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *parts: None)
    module = accelerate(nn.Sequential(hooked, Own(4, 4), nn.Linear(4, 4)))
    assert [type(part) for part in module] == [nn.Linear, Own, OneDNNLinear]


class TestFusedGELU:
    """The first layer of an MLP computes the activation after it."""

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("approximate", ["none", "tanh"])
    def test_equals_the_two_layers(self, approximate, training):
        torch.manual_seed(0)
        plain = Mlp(6, 24, act_layer=partial(nn.GELU, approximate=approximate), drop=0.5)
        ours, x = accelerate(copy.deepcopy(plain), training=training), torch.randn(2, 5, 6)
        assert ours.fc1.gelu == approximate
        assert ours.fc2.gelu is None
        assert type(ours.act) is nn.Identity
        seen = []
        ours.act.register_forward_hook(lambda module, given, result: seen.append(result.detach()))
        for part in (plain, ours):
            part.eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(seen.pop(), plain.act(plain.fc1(x)), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours.double()(x.double()), plain.double()(x.double()))  # left to PyTorch
        gradients = []
        for part in (plain.float(), ours.float()):
            given = x.clone().requires_grad_()
            part(given).square().sum().backward()
            gradients.append((given.grad, *(parameter.grad for parameter in part.parameters())))
        for expected, actual in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)

    def test_undone(self):
        mlp = restore(accelerate(Mlp(6, 24, act_layer=partial(nn.GELU, approximate="tanh")).eval()))
        assert type(mlp.act) is nn.GELU
        assert mlp.act.approximate == "tanh"
        assert not mlp.act.training
        assert type(mlp.fc1) is nn.Linear

    def test_only_plain_activations_of_plain_mlps(self):
        watched, other, within = Mlp(6, 24), Mlp(6, 24, act_layer=nn.ReLU), nn.Sequential(nn.Linear(6, 24), nn.GELU())
        watched.act.register_forward_hook(lambda *parts: None)
        for module in (watched, other, within):
            assert [part.gelu for part in routed(accelerate(module))] == [None] * len(routed(module))
        assert type(watched.act) is type(within[1]) is nn.GELU
        assert type(other.act) is nn.ReLU

    def test_all_blocks_have_it(self, model, batch):
        plain = copy.deepcopy(model)
        model.optimize_for_inference()
        assert [block.mlp.fc1.gelu for block in model.encoder.blocks] == ["none"] * len(model.encoder.blocks)
        with torch.inference_mode():
            torch.testing.assert_close(model(*batch), plain(*batch), atol=1e-5, rtol=0)


class TestChoice:
    @pytest.fixture(autouse=True)
    def always_worth_it(self):
        """Here the choice itself is tested."""

    @pytest.fixture
    def seconds(self, monkeypatch):
        """Timings in turns: the default's, oneDNN's."""

        def given(default, onednn):
            times = iter([default, onednn] * (1 + fast.TRIALS))
            monkeypatch.setattr(fast, "_seconds", lambda product, training: (product(), next(times))[1])

        return given

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize(("onednn", "taken"), [(0.5, True), (0.89, True), (0.95, False), (2.0, False)])
    def test_onednn_is_taken_where_it_is_clearly_faster(self, seconds, onednn, taken, training):
        seconds(1.0, onednn)
        module = accelerate(nn.Sequential(nn.Linear(16, 8)), training=training)
        assert bool(routed(module)) is taken
        assert isinstance(module[0], nn.Linear)

    def test_each_shape_is_timed_once(self, monkeypatch):
        timed = []
        monkeypatch.setattr(fast, "_worth_it", lambda *shape: timed.append(shape) or shape[:2] == (8, 16))
        module = accelerate(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 8)))
        assert timed == [(8, 16, False), (16, 8, False)]
        assert [isinstance(part, OneDNNLinear) for part in module] == [True, False, True]

    def test_given_shapes_are_taken_without_timing(self, monkeypatch):
        monkeypatch.delattr(fast, "_worth_it")
        module = accelerate(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 8)), shapes=[(8, 16)])
        assert [isinstance(part, OneDNNLinear) for part in module] == [True, False, True]
        assert accelerated(module) == [(8, 16)]
        assert accelerated(accelerate(module, shapes=[(16, 8), (3, 3), (8, 16)])) == [(8, 16), (16, 8)]
        assert accelerated(accelerate(module, shapes=[])) == []
        monkeypatch.setattr(fast, "onednn_works", lambda *shape: False)
        assert accelerated(accelerate(module, shapes=[(8, 16)])) == []

    @pytest.mark.parametrize("problem", [AttributeError, RuntimeError, NotImplementedError])
    def test_an_operator_that_is_missing_is_not_used(self, monkeypatch, seconds, problem):
        seconds(1.0, 0.1)

        def missing(*_):
            raise problem

        monkeypatch.setattr(fast, "_onednn_pack", missing)
        assert routed(accelerate(nn.Sequential(nn.Linear(16, 8)))) == []

    @pytest.mark.parametrize("wrong", [None, "none", "tanh"])
    @pytest.mark.parametrize("error", [1.0, torch.nan])
    def test_an_operator_that_is_wrong_is_not_used(self, monkeypatch, seconds, error, wrong):
        def product(x, weight, bias, gelu=None):
            y = F.linear(x, weight)
            y = y if gelu is None else F.gelu(y, approximate=gelu)
            return y + error if gelu == wrong else y

        seconds(1.0, 0.1)
        monkeypatch.setattr(fast, "_onednn_pack", lambda weight: weight)
        monkeypatch.setattr(fast, "_onednn_product", product)
        assert routed(accelerate(nn.Sequential(nn.Linear(16, 8)))) == []

    def test_without_onednn(self, monkeypatch):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert routed(accelerate(nn.Sequential(nn.Linear(16, 8)))) == []


def compile_by(backend, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))


class TestCompiled:
    """By PyTorch's compiler without its last stage, which would call a C++ compiler for a minute."""

    @pytest.fixture
    def counter(self, monkeypatch):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compile_by(counter, monkeypatch)
        return counter

    @pytest.fixture
    def deep(self):
        torch.manual_seed(0)
        return VTAMIQ(replace(TINY, num_blocks=4)).eval()

    def test_one_code_for_all_blocks_and_any_number_of_patches(self, deep, counter):
        plain = copy.deepcopy(deep)
        assert deep.optimize_for_inference(compile=True) is deep
        for items, patches in ((2, 9), (1, 5), (3, 20), (2, 64)):
            images, uv = torch.randn(items, 2, patches, 3, 16, 16), torch.rand(items, patches, 2)
            with torch.inference_mode():
                torch.testing.assert_close(deep(images, uv), plain(images, uv), atol=1e-5, rtol=0)
        assert counter.frame_count == 1

    def test_golden_vectors(self, counter):
        golden = Golden(NETWORKS[0])
        golden.model.optimize_for_inference(compile=True)
        with torch.inference_mode():
            q = golden.model(golden.patches, golden.uv, golden.scale)
        assert counter.frame_count == 1
        np.testing.assert_allclose(q[:, 0], golden["out/q"], atol=1e-5, rtol=0)

    def test_state_saving_and_copies_are_those_of_the_plain_model(self, deep, batch, counter, tmp_path):
        plain = copy.deepcopy(deep)
        deep.optimize_for_inference(compile=True)
        assert list(deep.state_dict()) == list(plain.state_dict())
        assert fingerprint(deep) == fingerprint(plain)
        deep.save_pretrained(tmp_path)
        copies = copy.deepcopy(deep), pickle.loads(pickle.dumps(deep)), VTAMIQ.from_pretrained(tmp_path)
        with torch.inference_mode():
            expected = plain(*batch)
            for twin in copies:
                torch.testing.assert_close(twin(*batch), expected, atol=1e-5, rtol=0)
            assert counter.frame_count == 1  # of the original alone
            deep.load_state_dict({name: value / 2 for name, value in plain.state_dict().items()})
            plain.load_state_dict(deep.state_dict())
            torch.testing.assert_close(deep(*batch), plain(*batch), atol=1e-5, rtol=0)  # not those compiled for
            assert deep.optimize_for_inference(False) is deep
            torch._dynamo.reset()
            assert torch.equal(deep(*batch), plain(*batch))
        assert counter.frame_count == 1

    def test_maps_of_attention_can_be_read(self, deep, counter):
        images = np.random.default_rng(0).integers(256, size=(2, 40, 50, 3), dtype=np.uint8)
        sample = CAPS(num_patches=9)(images, 0)
        expected = capture(deep, sample)
        deep.optimize_for_inference(compile=True)
        for ours, theirs in zip(capture(deep, sample).attention, expected.attention, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)

    def test_gradients_of_blocks_that_are_computed_anew(self, deep, batch, monkeypatch):
        plain = copy.deepcopy(deep)
        compile_by("aot_eager", monkeypatch)
        assert compile_blocks(deep.encoder.blocks, 32, training=True)
        assert all(parameter.grad is None for parameter in deep.parameters())
        deep.encoder.recompute = True
        for network in (deep, plain):
            network(*batch).square().sum().backward()
        for (name, ours), theirs in zip(deep.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)

    @pytest.mark.parametrize("training", [False, True])
    def test_where_it_fails_a_warning_says_why(self, deep, batch, caplog, training, monkeypatch):
        def broken(graph, inputs):
            raise RuntimeError("there is no compiler here")

        expected = deep(*batch)
        compile_by(broken, monkeypatch)
        assert not compile_blocks(deep.encoder.blocks, 32, training=training)
        told = [record.getMessage() for record in caplog.records if record.name == "vtamiq.model.accelerate"]
        assert told == ["torch.compile fails here (RuntimeError: there is no compiler here), so no block is compiled"]
        assert torch.equal(deep(*batch), expected)


def test_restore_leaves_plain_modules_alone():
    module = nn.Sequential(nn.Linear(4, 4))
    linear = module[0]
    assert restore(module)[0] is linear
