"""The plain twin is the same network; the benchmark measures what it says. Nothing here depends on time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.small import TINY
from tests.test_model import NETWORKS, Golden
from vtamiq import benchmark as module
from vtamiq.__main__ import main
from vtamiq.benchmark import Benchmark, TwinNetwork, benchmark, best_rate, interleaved, pictures
from vtamiq.model import VTAMIQ, VTAMIQConfig

QUICK = Benchmark(
    backbone="vit_tiny_patch16_384", blocks=2, width=32, num_heads=2, patches=6, batch=4, versions=2, megapixels=(0.01,),
    rounds=2,
)  # fmt: skip


class TestTwin:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_golden_vectors(self, name):
        golden = Golden(name)
        twin = TwinNetwork(golden.model)
        with torch.no_grad():
            for k, key in enumerate(("out/q", "out/q_b"), start=1):
                q = twin(golden.patches[:, 0], golden.patches[:, k], golden.uv, golden.scale)
                np.testing.assert_allclose(q, golden[key], atol=1e-5, rtol=0)
            cls = twin.encode(golden.patches[:, 0], golden.uv, golden.scale)
        np.testing.assert_allclose(cls, golden["out/cls_ref"], atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"zero_anchor": False, "layer_scale": False, "difference_scale": False, "num_registers": 0},
            {"num_groups": 0, "class_token_position": False},
            {"difference_gate": True, "channel_attention_prelu": True, "num_scales": 3, "num_blocks": 3},
        ],
        ids=str,
    )
    def test_equals_the_model_in_every_configuration(self, change):
        torch.manual_seed(0)
        model = VTAMIQ(replace(TINY, **change)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        twin = TwinNetwork(model)
        images = torch.randint(256, (3, 2, 7, 3, 16, 16), dtype=torch.uint8)
        uv, scale = torch.rand(3, 7, 2), torch.randint(4, (3, 7))
        with torch.no_grad():
            expected = model(images, uv, scale)[:, 0]
            torch.testing.assert_close(twin(images[:, 0], images[:, 1], uv, scale), expected, atol=1e-5, rtol=1e-5)

    def test_its_weights_are_its_own(self):
        model = VTAMIQ(TINY)
        twin = TwinNetwork(model)
        assert twin.training
        shared = {parameter.data_ptr() for parameter in model.parameters()}
        assert not shared & {parameter.data_ptr() for parameter in twin.parameters()}
        count = sum(parameter.numel() for parameter in twin.parameters())
        assert count == sum(parameter.numel() for parameter in model.parameters())

    def test_training_gives_the_models_gradients(self):
        torch.manual_seed(0)
        model = VTAMIQ(replace(TINY, head_dropout=0.0, decoder_drop_path=0.0))
        twin = TwinNetwork(model)
        images, uv = torch.randn(3, 2, 7, 3, 16, 16), torch.rand(3, 7, 2)
        model(images, uv).sum().backward()
        twin(images[:, 0], images[:, 1], uv).sum().backward()
        pairs = [
            (twin.class_token, model.encoder.class_token),
            (twin.position_table, model.encoder.position_table),
            (twin.blocks[-1].fc1.weight, model.encoder.blocks[-1].mlp.fc1.weight),
            (twin.groups[0].expands[0].bias, model.diffnet.groups[0].blocks[0].attention.expand.bias),
            (twin.hidden.weight, model.head.hidden.weight),
        ]
        for ours, theirs in pairs:
            assert theirs.grad.abs().max() > 0
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-3)

    @pytest.mark.parametrize(
        "change", [{"adapters": True}, {"mlp_dropout": 0.1}, {"embedding_dropout": 0.1}, {"encoder_drop_path": 0.1}]
    )
    def test_what_it_has_not_is_refused(self, change):
        model = VTAMIQ(replace(TINY, **change))
        with pytest.raises(ValueError, match="plain twin has neither adapters nor"):
            TwinNetwork(model)
        if "adapters" not in change:
            assert not TwinNetwork(model.eval()).training

    def test_blocks_of_other_kinds_are_refused(self):
        model = VTAMIQ(TINY)
        model.encoder.blocks[0].attn.q_norm = torch.nn.LayerNorm(16)
        with pytest.raises(ValueError, match="usual blocks only"):
            TwinNetwork(model)


class TestMeasuring:
    def test_calls_take_turns_after_one_to_warm_up(self):
        calls = []
        seconds, results = interleaved([lambda: calls.append("a") or len(calls), lambda: calls.append("b")], 3)
        assert calls == ["a", "b"] * 4
        assert seconds.shape == (3, 2)
        assert (seconds >= 0).all()
        assert results == [7, None]

    def test_processor_time_is_taken(self, monkeypatch):
        clock = iter(range(100))
        monkeypatch.setattr(module.time, "process_time", lambda: next(clock) ** 2)
        seconds, _ = interleaved([lambda: None, lambda: None], 2, warm_up=False)
        assert seconds.tolist() == [[1, 5], [9, 13]]

    def test_ratios_ranges_and_shares(self, monkeypatch):
        seconds = np.array([[4.0, 2.0, 1.0], [9.0, 3.0, 2.0], [4.0, 1.0, 1.0]])
        monkeypatch.setattr(module, "interleaved", lambda functions, rounds: (seconds, [1.0, 1.25, None]))
        monkeypatch.setattr(module, "_squares", lambda: [None])
        rows = module._compare("x", ("twin", None), {"y": None}, 3, flops=module._SQUARE_FLOPS / 2)
        assert rows[0] == ("xy", "twin", 3.0, 2.0, 4.0, 2.0, 0.25)
        assert rows[1][:6] == ("xy", "best float32 rate", 1 / 3, 0.25, 0.5, 2.0)

    def test_the_best_rate_is_a_rate(self):
        assert best_rate(1) > 1e6


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    table = benchmark(QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    return table


class TestBenchmark:
    def test_rows(self, table):
        assert list(table) == ["what", "against", "ratio", "lowest", "highest", "seconds", "error"]
        assert table["what"].tolist() == [
            "scoring 4 × 6 patches", "scoring 4 × 6 patches, optimised",
            "scoring 4 × 6 patches", "scoring 4 × 6 patches, optimised",
            "scoring 2 × 12 patches", "scoring 2 × 12 patches, optimised",
            "scoring 2 × 12 patches", "scoring 2 × 12 patches, optimised",
            "2 triplets × 6 patches, reference shared", "2 triplets × 6 patches, reference shared, optimised",
            "training step of 4 × 6 patches", "training step of 4 × 6 patches, optimised",
            "2 versions × 6 patches, ReferenceEmbedding, optimised",
            "116 × 87: 12 patches sampled", "116 × 87: a whole item",
        ]  # fmt: skip
        against = ["plain twin"] * 2 + ["best float32 rate"] * 2
        last = ["score, optimised", "decoding two PNG files", "decoding two PNG files"]
        assert table["against"].tolist() == against * 2 + ["plain twin"] * 4 + last
        assert (table["lowest"] <= table["ratio"]).all()
        assert (table["ratio"] <= table["highest"]).all()

    def test_results_agree(self, table):
        errors = table["error"].dropna()
        assert len(errors) == 6
        assert (errors < 1e-5).all()

    def test_settings_are_kept(self, table):
        assert table.attrs["patches"] == 6
        assert table.attrs["threads"] == torch.get_num_threads()
        assert table.attrs["gflops"] > 0

    def test_parts(self):
        assert benchmark(replace(QUICK, rounds=1), parts=["data"])["what"].str.startswith("116 × 87").all()
        with pytest.raises(ValueError, match="parts must be among network, data, got disk"):
            benchmark(QUICK, parts=["disk"])

    @pytest.mark.parametrize(
        "change",
        [{"rounds": 0}, {"batch": 1}, {"patches": 0}, {"megapixels": (0.0,)}, {"blocks": 1.5}, {"versions": 0}],
    )
    def test_bad_settings_are_refused(self, change):
        with pytest.raises(ValueError, match=f"Benchmark.{next(iter(change))}"):
            replace(QUICK, **change)

    def test_the_default_is_the_papers_network(self):
        settings = Benchmark()
        config = VTAMIQConfig()
        assert (settings.backbone, settings.blocks) == (config.backbone, config.num_blocks)

    def test_pictures_differ_and_are_the_same_each_time(self):
        first, second = pictures(40, 60), pictures(40, 60)
        assert first[0].shape == (40, 60, 3)
        assert first[0].dtype == np.uint8
        assert (first[0] != first[1]).any()
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


OPTIONS = ["--backbone", "vit_tiny_patch16_384", "--width", "32", "--num-heads", "2", "--blocks", "1", "--patches", "4"]
OPTIONS += ["--batch", "2", "--versions", "1", "--rounds", "1", "--megapixels", "0.01"]


def test_shell_prints_a_table(capsys):
    threads = torch.get_num_threads()
    assert main(["benchmark", *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("vit_tiny_patch16_384, 1 blocks, float32 on the CPU, 1 thread(s), best rate")
    assert "scoring 2 × 4 patches, optimised" in printed
    assert "116 × 87: a whole item" in printed
    assert torch.get_num_threads() == threads


def test_shell_prints_json(capsys):
    assert main(["benchmark", *OPTIONS, "--only", "data", "--threads", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["settings"]["threads"] == 2
    assert [row["what"] for row in result["rows"]] == ["116 × 87: 8 patches sampled", "116 × 87: a whole item"]
    assert result["rows"][0]["error"] is None


def test_shell_refuses_bad_settings(capsys):
    assert main(["benchmark", "--batch", "1"]) == 2
    assert "Benchmark.batch must be at least 2" in capsys.readouterr().err
