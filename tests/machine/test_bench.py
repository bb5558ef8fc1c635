"""Test benchmarks: results equal figures computed by hand, and both sides do the same work. No time is asserted."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from minigpt.config import ModelConfig, RunConfig, load_config
from minigpt.errors import DataError, StorageError, TokenizerError, UserError
from minigpt.machine.bench import data, generate, machine, rivals, shape, timing, tokenizer, train
from minigpt.machine.bench.profile import check_profile, group_of, profiled, table
from minigpt.model import GPT
from minigpt.runtime.device import Runtime, make_runtime, peak_flops
from minigpt.tokenizers import ByteTokenizer
from minigpt.weights.huggingface import weights_to_hf

CPU = Runtime(torch.device("cpu"), "fp32")


def tiny(kind: str = "gpt2", **fields: Any) -> ModelConfig:
    values = {"vocab_size": 64, "embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 16}
    return ModelConfig.model_validate({"shape": kind, **values, **fields})


def tiny_run(kind: str = "gpt2", **overrides: Any) -> RunConfig:
    flags = {
        "train.batch_size": 4,
        "train.device": "cpu",
        "train.precision": "fp32",
        "train.compile": "off",
        "optimizer.kind": "adamw",
    }
    tree = {f"model.{key}": value for key, value in tiny(kind).model_dump().items()}
    return load_config(None, tree | flags | overrides)


def test_all_take_turns_and_every_other_round_goes_backwards():
    visits: list[str] = []
    told: list[str] = []

    def side(name: str):
        return lambda: visits.append(name) or len(visits)

    results = timing.alternate({name: side(name) for name in "abc"}, 3, told.append)
    assert "".join(visits) == "abc" + "cba" + "abc"
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert told[0] == "round 1 of 3: a" and told[-1] == "round 3 of 3: c"


def test_a_stopwatch_reads_its_clock_before_and_after_the_job():
    now = [10.0]

    def job() -> None:
        now[0] += 2.5

    assert timing.stopwatch(job, lambda: now[0]) == 2.5


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [4.0, 1.0, 3.0, 2.0], [7.0, 1.0, 1.0, 9.0, 30.0]])
def test_a_spread_is_numpys(values: list[float]):
    spread = timing.Spread.of(values)
    expected = [*np.percentile(values, [50, 25, 75]), min(values), max(values)]
    assert list(spread.figures().values()) == pytest.approx(expected)
    assert spread.figures(1e3)["median"] == pytest.approx(1e3 * spread.median)


def test_a_ratio_compares_each_round_with_itself():
    assert timing.speed_ratio([1, 5], [2, 10]) == 2  # the ratio of the medians is the same here ...
    assert timing.speed_ratio([1, 10, 1], [2, 20, 40]) == 2  # ... but 20 here


def step_side(name: str, precision: str = "fp32") -> train.Side:
    return train.Side(name, precision, False, 7, lambda: None, 0.25)


def test_training_figures_follow_from_the_median_step():
    ours, theirs = [[0.5, 0.4, 0.6], [0.5, 9.0, 0.5]], [[1.0, 1.0, 1.0], [0.75, 0.75, 3.0]]
    row = train.side_row(step_side("minigpt"), ours, ours, tokens=1000, flops=2_000_000, ceiling=8e9)
    assert (row["tokens_per_second"], row["gflops_per_second"], row["mfu"]) == (2000, 4.0, 0.5)
    assert row["ms_per_step"] == {"median": 500, "q1": 500, "q3": 575, "min": 400, "max": 9000}
    assert (row["ratio"], row["first_step_seconds"], row["parameters"]) == (None, 0.25, 7)
    row = train.side_row(step_side("other"), theirs, ours, tokens=1000, flops=2_000_000, ceiling=8e9)
    assert row["ratio"] == 1.75  # the median of 1.0 / 0.5 and 0.75 / 0.5


def test_a_step_and_its_ceiling_are_timed_with_the_products_that_their_name_says(monkeypatch: pytest.MonkeyPatch):
    used: list[str] = []
    config = load_config(None, {"model.vocab_size": 64, "model.num_layers": 1, "train.batch_size": 2})
    model, before = GPT(config.model), torch.get_float32_matmul_precision()
    model.norm.register_forward_hook(lambda *_: used.append(torch.get_float32_matmul_precision()))
    for precision in ("tf32", "fp32"):
        train.our_side(model, config, Runtime(CPU.device, precision), train.random_batches(config, CPU.device)).step()
    monkeypatch.setattr(torch, "mm", lambda *_: used.append(torch.get_float32_matmul_precision()))
    peak_flops.__wrapped__("cpu", "tf32")
    assert used[:2] == ["high", "highest"] and set(used[2:]) == {"high"}
    assert torch.get_float32_matmul_precision() == before


def decoding(*times: float) -> generate.Decoding:
    return generate.Decoding(list(times))


def test_decoding_figures_leave_out_the_prompt_and_know_the_memory_bound():
    ours = [decoding(0, 0.1, 0.15, 0.2, 0.25), decoding(5, 5.3, 5.35, 5.4, 5.45)]
    theirs = [decoding(0, 0.1, 0.2, 0.3, 0.4), decoding(5, 5.3, 5.5, 5.7, 5.9)]
    writer = generate.Writer("minigpt fp32", "fp32", 9, 10**9, lambda count: decoding())
    row = generate.side_row(writer, ours, ours, batch_size=2, bandwidth=4e10)
    assert row["ms_per_token"]["median"] == pytest.approx(50)
    assert row["ms_to_first_token"]["median"] == pytest.approx(200)
    assert row["tokens_per_second"] == pytest.approx(40)
    assert row["bound_ms_per_token"] == 25 and row["share_of_bound"] == pytest.approx(0.5)
    assert row["ratio"] is None
    assert generate.side_row(writer, theirs, ours, 2, 4e10)["ratio"] == pytest.approx(3)  # the median of 2 and 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_a_token_reads_the_matrices_and_the_head_but_not_the_tables(kind: str, tied: bool):
    model = GPT(tiny(kind, tie_embeddings=tied))
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    assert generate.weight_bytes(model) == 4 * linear
    assert generate.weight_bytes(model.bfloat16()) == 2 * linear


def test_the_vocabulary_is_the_tokenizers(tmp_path: Path):
    def size(**flags: Any) -> int:
        return shape.vocabulary(load_config(None, {key.replace("__", "."): value for key, value in flags.items()}))

    assert size() == 65
    assert size(tokenizer__kind="byte") == ByteTokenizer().vocab_size
    assert size(tokenizer__kind="gpt2") == 50257
    assert size(tokenizer__kind="bpe", tokenizer__vocab_size=777) == 777
    assert size(tokenizer__kind="word") == 33_278 and size(tokenizer__kind="word", tokenizer__vocab_size=777) == 777
    assert size(tokenizer__kind="gpt2", model__vocab_size=99) == 99
    ByteTokenizer().save(tmp_path)
    assert size(tokenizer__kind="gpt2", tokenizer__path=str(tmp_path)) == ByteTokenizer().vocab_size


def test_random_batches_are_micro_batches_whose_targets_are_the_next_ids():
    config = tiny_run("gpt2", **{"train.micro_batch_size": 2, "model.vocab_size": 5})
    batches = train.random_batches(config, CPU.device)
    assert [inputs.shape for inputs, _ in batches] == [(2, 16), (2, 16)]
    for inputs, targets in batches:
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert int(inputs.min()) >= 0 and int(targets.max()) < 5
    again = train.random_batches(config, CPU.device)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(
    ("fields", "name", "differences"),
    [
        ({}, "GPT2LMHeadModel", []),
        ({"ff_dim": 72, "norm_eps": 1e-4}, "GPT2LMHeadModel", []),
        ({"kind": "modern"}, "Qwen3ForCausalLM", []),
        ({"kind": "modern", "num_kv_heads": 1, "head_dim": 20, "tie_embeddings": False}, "Qwen3ForCausalLM", []),
        ({"bias": False, "activation": "gelu"}, "GPT2LMHeadModel", ["activation gelu_tanh", "bias True"]),
        ({"kind": "modern", "activation": "relu2"}, "Qwen3ForCausalLM", ["activation swiglu"]),
        ({"kind": "modern", "dropout": 0.1}, "Qwen3ForCausalLM", ["dropout only in attention"]),
        ({"kind": "modern", "input_dropout": 0.1}, "Qwen3ForCausalLM", ["dropout only in attention"]),
        ({"embed_dim": 30, "num_heads": 2, "num_kv_heads": 1}, "GPT2LMHeadModel", ["kv_heads 2"]),
    ],
)  # fmt: skip
def test_the_nearest_rival_is_found_and_its_differences_are_listed(
    fields: dict[str, Any], name: str, differences: list[str]
):
    counterpart = rivals.nearest_counterpart(tiny(**fields))
    assert (counterpart.name, list(counterpart.differences)) == (name, differences)
    assert bool(counterpart.notes) == bool(differences)
    assert all(difference in counterpart.notes[0] for difference in differences)


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_a_rival_has_our_parameters_and_steps_as_ours_does(kind: str):
    pytest.importorskip("transformers")
    # A large eps, so that AdamW's first step is smooth in the gradient: rounding does not change its sign.
    config = tiny_run(kind, **{"train.micro_batch_size": 2, "optimizer.eps": 1e-3, "optimizer.learning_rate": 1e-2})
    ours = GPT(config.model)
    theirs = rivals.build_counterpart(rivals.nearest_counterpart(config.model))
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert generate.weight_bytes(theirs) == generate.weight_bytes(ours)
    before = {key: value.clone() for key, value in weights_to_hf(config.model, ours.weights()).items()}
    theirs.load_state_dict(before, strict=False)
    batches = train.random_batches(config, CPU.device)
    for side in (train.our_side(ours, config, CPU, batches), train.hf_side(theirs, config, CPU, batches)):
        side.round(2)
    found = theirs.state_dict()
    for name, tensor in weights_to_hf(config.model, ours.weights()).items():
        assert (tensor - before[name]).abs().max() > 1e-4, name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_a_rival_that_does_not_compile_is_left_out_with_a_note():
    pytest.importorskip("transformers")
    config, notes = tiny_run(), list[str]()

    def warm(side: train.Side) -> train.Side:
        if side.compiled:
            raise RuntimeError("no C++ compiler\nand much more")
        return side

    counterpart = rivals.nearest_counterpart(config.model)
    sides = list(train._rivals(counterpart, config, CPU.device, train.random_batches(config, CPU.device), warm, notes))
    assert [side.name for side in sides] == ["transformers fp32"]
    assert notes == ["transformers bf16 compiled does not work here, so it is left out: no C++ compiler"]


def test_one_optimizer_for_all_sides_and_the_report_says_so():
    config = tiny_run(**{"optimizer.kind": "muon"})
    config, notes = train._with_adamw(config, rivals.nearest_counterpart(config.model))
    assert config.optimizer.kind == "adamw" and notes == ["all sides step by AdamW, not by the recipe's muon"]


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    for bench in (
        lambda: train.bench_train(tiny_run(), vs_hf=True),
        lambda: generate.bench_generate(GPT(tiny()), vs_hf=True),
    ):
        with pytest.raises(UserError, match="pip install transformers"):
            bench()


def test_only_an_out_of_memory_error_is_reported_as_one():
    with pytest.raises(UserError, match="out of memory; buy some"), machine.enough_memory("buy some"):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="shapes"), machine.enough_memory("buy some"):
        raise RuntimeError("shapes differ")


def test_the_machines_figures_are_what_they_say():
    assert set(machine.ceilings(CPU.device, {"fp32"})) == {"bf16", "fp32"}
    held = torch.ones(1 << 24)
    peak = machine.peak_memory(CPU.device)
    assert peak is not None and peak > held.numel() * 4


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::baddbmm", "matrix products"),
        ("aten::addmm_", "matrix products"),
        ("aten::mm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("aten::mul", "elementwise"),
        ("cpp_fused_gelu_3", "elementwise"),
        ("aten::_log_softmax_backward_data", "elementwise"),
        ("aten::max", "other"),
        ("aten::transpose", "other"),
    ],
)
def test_operations_have_groups(name: str, group: str):
    assert group_of(name) == group


def test_the_table_shares_all_of_the_time_among_the_dearest():
    made = table([("aten::mm", 600.0, 3), ("aten::mul", 300.0, 5), ("aten::view", 100.0, 9), ("aten::bmm", 1000.0, 1)])
    assert made["groups"] == {"matrix products": 0.8, "elementwise": 0.15, "other": 0.05}
    assert [row["name"] for row in made["operations"]] == ["aten::bmm", "aten::mm", "aten::mul", "aten::view"]
    assert made["operations"][1] == {
        "name": "aten::mm", "group": "matrix products", "share": 0.3, "ms": 0.6, "calls": 3,
    }  # fmt: skip
    assert len(table([(f"op{i}", 1.0, 1) for i in range(40)])["operations"]) == 15


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_profile_is_a_chrome_trace(ending: str, tmp_path: Path):
    path = tmp_path / f"trace{ending}"
    made = profiled(lambda: torch.ones(32, 32) @ torch.ones(32, 32), CPU, path)
    text = gzip.decompress(path.read_bytes()) if ending.endswith("gz") else path.read_bytes()
    events = json.loads(text)["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert len(products) == 1 and products[0]["ph"] == "X" and products[0]["dur"] >= 0
    assert made["file"] == str(path)
    assert sum(made["groups"].values()) == pytest.approx(1, abs=1e-4)
    assert next(row["calls"] for row in made["operations"] if row["name"] == "aten::mm") == 1


def test_a_profile_that_cannot_be_written_is_refused_first(tmp_path: Path):
    check_profile(None)
    with pytest.raises(UserError, match=r"\.json or \.json\.gz"):
        check_profile(tmp_path / "trace.txt")
    with pytest.raises(StorageError, match="make it first"):
        check_profile(tmp_path / "nowhere" / "trace.json")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        profiled(lambda: None, CPU, tmp_path / "taken.json")


def test_training_is_measured_without_any_data(tmp_path: Path):
    config = tiny_run(**{"data.source": str(tmp_path / "nowhere.txt"), "train.micro_batch_size": 2})
    report = train.bench_train(config, steps=2, warmup=0, profile=tmp_path / "t.json")
    (side,) = report["sides"]
    assert (side["name"], side["compiled"], report["rounds"]) == ("minigpt fp32", False, 1)
    assert (report["tokens_per_step"], report["micro_batch_size"]) == (64, 2)
    assert side["mfu"] * report["ceilings_gflops"]["fp32"] == pytest.approx(side["gflops_per_second"], rel=1e-4)
    optimizer = [row for row in report["profile"]["operations"] if row["name"] == "aten::_fused_adamw_"]
    assert not optimizer or optimizer[0]["calls"] == 2 * 2  # two steps, two groups of parameters
    assert "optimizer" in report["profile"]["groups"]


def test_training_in_bf16_alone_is_measured_with_its_fp32_copies():
    model = GPT(tiny("gpt2"))
    config = tiny_run(**{"train.precision": "bf16-pure"})
    runtime = make_runtime("cpu", "bf16-pure")
    side = train.our_side(model, config, runtime, train.random_batches(config, runtime.device))
    before = model.head.weight.clone()
    side.step()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not torch.equal(model.head.weight, before)
    assert side.name == "minigpt bf16-pure"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_generation_times_every_token_but_the_first(precision: str):
    model = GPT(tiny("modern"))
    matrices, parameters = generate.weight_bytes(model) // 4, sum(p.numel() for p in model.parameters())
    prompt = generate.random_prompt(model, 3, 4)
    assert prompt.shape == (3, 4)
    writer = generate.our_writer(model, prompt, Runtime(CPU.device, precision))
    made = writer.write(5)
    assert len(made.others) == 4 and made.first > 0 and min(made.others) > 0
    assert model.head.weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    rows = sum(len(p) for name, p in model.named_parameters() if name.endswith("scale"))
    assert (rows > 0) == (precision == "int8")
    assert writer.weight_bytes == matrices * {"fp32": 4, "bf16": 2, "int8": 1}[precision] + 4 * rows
    assert writer.parameters == parameters


def test_transformers_is_timed_token_by_token_too():
    pytest.importorskip("transformers")
    model = GPT(tiny())
    counterpart = rivals.nearest_counterpart(model.config)
    writer = generate.hf_writer(counterpart, generate.random_prompt(model, 2, 4), Runtime(CPU.device, "bf16"))
    assert len(writer.write(6).others) == 5
    assert writer.weight_bytes * 2 == generate.weight_bytes(model)


def test_generation_never_leaves_the_context():
    model = GPT(tiny())  # a context of 16
    assert generate.bench_generate(model, prompt_tokens=10, rounds=1)["new_tokens"] == 6
    for prompt, new in ((10, 7), (15, None), (99, 2)):
        with pytest.raises(UserError, match="context of 16"):
            generate.bench_generate(model, prompt_tokens=prompt, new_tokens=new)


TEXT = "The cat sat on the mat, and the rat sat on the cat. naïve 🦊 12345\n" * 60


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "gpt4o"])
def test_tokenizers_are_compared_on_the_same_merges(pattern: str):
    pytest.importorskip("tokenizers")
    report = tokenizer.bench_tokenizer(TEXT, 280, pattern, rounds=1)
    assert report["same_merges"] is True and report["same_ids"] is True
    assert (report["bytes"], report["vocab_size"]) == (len(TEXT.encode()), 280)
    assert [side["name"] for side in report["training"]][:2] == ["minigpt", "tokenizers"]
    assert [side["name"] for side in report["encoding"]] == ["minigpt", "tiktoken"]
    assert [side["ratio"] is None for side in report["encoding"]] == [True, False]


def test_a_text_too_small_for_the_vocabulary_says_so_once(caplog: pytest.LogCaptureFixture):
    report = tokenizer.bench_tokenizer(TEXT, 5000, rounds=2)
    assert report["vocab_size"] < 400
    assert len(caplog.records) == 1
    with pytest.raises(TokenizerError, match="no text"):
        tokenizer.bench_tokenizer("", 300)


def test_rust_trainers_that_are_missing_become_notes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    report = tokenizer.bench_tokenizer(TEXT, 300, rounds=1)
    assert [side["name"] for side in report["training"]] == ["minigpt"]
    assert report["same_merges"] is None and report["same_ids"] is True
    assert [note.split()[-1] for note in report["notes"]] == ["tokenizers", "rustbpe"]


def test_blocks_for_rust_are_the_text_cut_between_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "BLOCK", 50)
    blocks = list(tokenizer.safe_blocks(TEXT))
    assert "".join(blocks) == TEXT and len(blocks) > 50
    assert all(block[0] in " \nT" for block in blocks)


def test_preparing_is_measured_on_a_copy_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    text = tmp_path / "my.txt"
    text.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(data, "BATCHES", 2)
    config = load_config(None, {"data.source": str(text), "tokenizer.kind": "byte", "train.batch_size": 3})
    report = data.bench_data(config, rounds=2)
    assert report["bytes"] == report["tokens"] == len(TEXT.encode())
    assert report["source"] == str(text) and text.read_text(encoding="utf-8") == TEXT
    assert (report["batches"]["batch_size"], report["batches"]["seq_len"]) == (3, 128)
    assert report["prepare"]["mb_per_second"] == pytest.approx(
        report["bytes"] / 1e6 / report["prepare"]["seconds"]["median"], rel=1e-3
    )
    assert not list((tmp_path / "tmp").iterdir())
    with pytest.raises(DataError, match="no such file"):
        data.bench_data(load_config(None, {"data.source": str(tmp_path / "none.txt")}))


def test_preparing_documents_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my.txt").write_text("\n~\n".join(f"{n}: {TEXT[:60]}" for n in range(400)), encoding="utf-8")
    monkeypatch.setattr(data, "BATCHES", 2)
    settings = {"data.source": str(tmp_path / "my.txt"), "data.split_at": "\n~\n", "tokenizer.kind": "byte"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.bench_data(load_config(None, settings), rounds=1)


def test_preparing_knows_the_characters_of_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my.txt").write_text(TEXT + "\u2603", encoding="utf-8")
    monkeypatch.setattr(data, "BATCHES", 2)
    config = load_config(None, {"data.source": str(tmp_path / "my.txt"), "tokenizer.unknown": "error"})
    assert data.bench_data(config, rounds=1)["tokenizer"]["kind"] == "char"
