"""Test Hugging Face directories: we compute what transformers computes, and errors name what we lack."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign_model import make
from safetensors.torch import load_file, save_file

from minigpt import GPT
from minigpt.errors import CheckpointError
from minigpt.weights.huggingface import config_from_hf

transformers = pytest.importorskip("transformers")


def change(path: Path, **fields: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def same(path: Path) -> None:
    ids = torch.arange(10)[None] * 7 % 70
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert (GPT.from_pretrained(path)(ids) - theirs(ids).logits).abs().max() < 1e-4


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(path)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {"tie_word_embeddings": False}),
        *[("gpt2", {"activation_function": name}) for name in ("relu", "relu2", "gelu", "gelu_fast", "gelu_new")],
        ("gpt2", {"n_inner": 20, "layer_norm_epsilon": 1e-3}),
        ("qwen3", {"tie_word_embeddings": True, "rope_theta": 100.0}),
        ("qwen3", {"rms_norm_eps": 1e-2}),
        ("llama", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
        ("llama", {"head_dim": None}),
    ],
)
def test_what_we_can_express_computes_the_same(tmp_path, kind, fields):
    same(make(tmp_path / "hf", kind, **fields))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "tanh"}),
        ("gpt2", {"add_cross_attention": True}),
        ("gpt2", {"quantization_config": {"bits": 4}}),
        ("gpt2", {"some_new_setting": 1}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"rope_interleaved": True}),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        ("gpt2", {"n_embd": "8"}),
        ("gpt2", {"n_layer": 2.5}),
        ("gpt2", {"n_embd": None}),
        ("gpt2", {"layer_norm_epsilon": []}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"use_sliding_window": True}),
        ("qwen3", {"hidden_act": "gelu"}),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("qwen3", {"partial_rotary_factor": 0.5}),
    ],
)
def test_a_setting_that_we_lack_is_refused_by_name(tmp_path, kind, fields):
    change(make(tmp_path, kind), **fields)
    refused(tmp_path, *fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_special": 0, "predict_special_tokens": True},  # gpt2-medium
        {"output_past": True},  # gpt2-xl
        {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},  # distilgpt2
        {"is_decoder": False, "torchscript": False, "use_bfloat16": False, "finetuning_task": None, "num_labels": 2},
        {"do_sample": True, "max_length": 50, "temperature": 0.7, "tokenizer_class": "GPT2Tokenizer"},
    ],
)
def test_settings_of_published_files_that_compute_nothing_are_passed_over(tmp_path, fields):
    change(make(tmp_path, "gpt2"), **fields)
    same(tmp_path)


def test_rope_parameters_of_another_kind_are_refused(tmp_path):
    change(make(tmp_path, "qwen3"), rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    refused(tmp_path, "rope_parameters.rope_type", "yarn")


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000, b"3", b'{"model_type": ["gpt2"]}'])
def test_a_config_of_another_form_is_refused(tmp_path, content):
    (make(tmp_path, "gpt2") / "config.json").write_bytes(content)
    refused(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"n_embd": 10**9, "n_head": 1}, {"n_layer": 10**9}, {"n_positions": 10**12}, {"vocab_size": 10**15}]
)
def test_sizes_that_no_machine_has_are_refused(tmp_path, fields):
    change(make(tmp_path, "gpt2"), **fields)
    refused(tmp_path)


def test_rotary_tables_have_a_limit(tmp_path):
    change(make(tmp_path, "qwen3"), max_position_embeddings=10**12)
    refused(tmp_path, "context")


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.more", "transformer.h.2.ln_1.weight", "score.weight", "wte.weight"]
)
def test_a_weight_that_nothing_reads_is_refused(tmp_path, name):
    file = make(tmp_path, "gpt2") / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(2)}, file, {"format": "pt"})
    refused(tmp_path, name)


def test_buffers_of_older_files_are_passed_over(tmp_path):
    file = make(tmp_path, "gpt2") / "model.safetensors"
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(old | {"h.0.attn.bias": torch.ones(1, 1, 16, 16)}, file, {"format": "pt"})
    same(tmp_path)


def test_a_tied_head_of_other_numbers_is_refused(tmp_path):
    file = make(tmp_path, "gpt2") / "model.safetensors"
    held = load_file(file)
    save_file(held | {"lm_head.weight": held["transformer.wte.weight"] + 1}, file, {"format": "pt"})
    refused(tmp_path, "lm_head.weight")


def test_files_are_those_of_the_index(tmp_path):
    whole = make(tmp_path / "whole", "qwen3")
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    assert (tmp_path / "parts/model.safetensors.index.json").is_file()
    save_file({"lm_head.weight": torch.ones(70, 8)}, tmp_path / "parts/zzz.safetensors")
    same(tmp_path / "parts")
    index = tmp_path / "parts/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../whole/model.safetensors"}}))
    refused(tmp_path / "parts", "not a file of this folder")
    for name in ("a\0.safetensors", "\ud83d.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        refused(tmp_path / "parts", "not a file of this folder")


def test_what_is_not_weights_is_said(tmp_path):
    path = make(tmp_path / "hf", "gpt2")
    (path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    refused(path, "git lfs pull")
    (path / "model.safetensors").unlink()
    refused(path, "model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"1")
    refused(path, "pickle", "save_pretrained")
    shutil.rmtree(path)
    path.mkdir()
    (path / "ckpt.pt").write_bytes(b"1")
    refused(path, "pickle", "safetensors")
    refused(path / "ckpt.pt", "pickle")


def test_a_folder_may_be_called_like_a_pickle(tmp_path):
    GPT.from_pretrained(make(tmp_path / "small.pt", "gpt2"))
    refused(tmp_path / "small.pt" / "ckpt.pt", "pickle")


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_padded_vocabulary_loads_without_its_padding(tmp_path, kind):
    from minigpt import load_run
    from minigpt.tokenizers import CharTokenizer

    tokenizer = CharTokenizer("abcdefghij")
    tokenizer.save(make(tmp_path, kind))
    run = load_run(tmp_path, "cpu")
    ids = torch.arange(10)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
    assert run.model.config.vocab_size == tokenizer.vocab_size
    assert (run.model(ids) - theirs[..., : tokenizer.vocab_size]).abs().max() < 1e-4


def test_a_rotary_base_that_no_float_holds_is_refused():
    with pytest.raises(CheckpointError, match="rope_theta"):
        config_from_hf({"model_type": "qwen3", "rope_theta": 10**400, "rope_scaling": {"rope_type": "default"}})
