"""Hugging Face directories that others made: computed as transformers does, or refused by name; nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minigpt import GPT, load_run, quantize_run
from minigpt.errors import CheckpointError, UserError
from minigpt.tokenizers import ByteTokenizer

transformers = pytest.importorskip("transformers")
Edit = Callable[[Path], object]

GPT2 = {"n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300}
QWEN3 = {
    "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "vocab_size": 300,
}  # fmt: skip


def foreign(folder: Path, kind: str = "gpt2", **fields: Any) -> Path:
    """A directory as transformers writes it, every weight random, with the byte tokenizer."""
    cls = {"gpt2": transformers.GPT2LMHeadModel, "qwen3": transformers.Qwen3ForCausalLM}[kind]
    torch.manual_seed(1)
    model = cls(cls.config_class(**{"gpt2": GPT2, "qwen3": QWEN3}[kind] | fields))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


def logits_of_both(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(20)[None] * 11 % 250
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return GPT.from_pretrained(folder)(ids), theirs(ids).logits


def change(**fields: Any) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def leave_out(name: str) -> Edit:
    def edit(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        tree.pop(name, None)
        (folder / "config.json").write_text(json.dumps(tree))

    return edit


def reweigh(edit: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("gpt2", {"activation_function": "relu", "n_inner": 40}),
        ("gpt2", {"activation_function": "gelu", "layer_norm_epsilon": 0.01}),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 0.01}),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen3", {"vocab_size": 1000}),
    ],
    ids=str,
)
def test_what_is_expressible_is_computed(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = logits_of_both(foreign(tmp_path, kind, **fields))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.1


@pytest.mark.parametrize(
    ("kind", "edit", "named"),
    [
        ("gpt2", change(activation_function="silu"), "activation_function"),
        ("gpt2", change(scale_attn_weights=False), "scale_attn_weights"),
        ("gpt2", change(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        ("gpt2", change(add_cross_attention=True), "add_cross_attention"),
        ("gpt2", change(hidden_size=16), "hidden_size"),
        ("gpt2", change(n_embd="16"), "n_embd"),
        ("gpt2", change(n_layer=True), "n_layer"),
        ("gpt2", change(n_positions=10**12), "n_positions"),
        ("gpt2", change(n_embd=10**12), "config.json says"),
        ("gpt2", change(vocab_size=10**12), "config.json says"),
        ("gpt2", change(n_head=3), "divisible"),
        ("gpt2", change(tie_word_embeddings="no"), "tie_word_embeddings"),
        ("gpt2", change(quantization_config={"bits": 4}), "quantization_config"),
        ("gpt2", change(model_type="llama"), "llama"),
        ("gpt2", leave_out("n_layer"), "lack h.2"),
        ("gpt2", reweigh(lambda w: w.update({"score.weight": torch.ones(2, 16)})), "score.weight"),
        ("gpt2", reweigh(lambda w: w.update({"lm_head.weight": torch.ones(300, 16)})), "lm_head.weight"),
        ("gpt2", reweigh(lambda w: w.pop("transformer.h.1.ln_2.bias")), "lack h.1.ln_2.bias"),
        ("gpt2", reweigh(lambda w: w.update({"transformer.ln_f.bias": torch.ones(16).int()})), "ln_f.bias"),
        ("qwen3", change(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}), "rope"),
        ("qwen3", change(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}), "rope"),
        ("qwen3", change(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary"),
        ("qwen3", change(hidden_act="gelu"), "hidden_act"),
        ("qwen3", change(use_sliding_window=True), "use_sliding_window"),
        ("qwen3", change(attention_bias=True), "attention_bias"),
        ("qwen3", change(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
        ("qwen3", change(num_hidden_layers=1, layer_types=None), "layers.1"),
        ("qwen3", change(rms_norm_eps=float("inf")), "rms_norm_eps"),
    ],
)  # fmt: skip
def test_what_is_not_is_refused_by_name(kind: str, edit: Edit, named: str, tmp_path: Path) -> None:
    edit(foreign(tmp_path, kind))
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(tmp_path)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_only_the_files_of_the_model_are_read(tmp_path: Path) -> None:
    folder = foreign(tmp_path)
    before = GPT.from_pretrained(folder).weights()
    save_file({"transformer.wte.weight": torch.zeros(300, 16)}, folder / "z-adapter.safetensors")
    for name, tensor in GPT.from_pretrained(folder).weights().items():
        assert torch.equal(tensor, before[name])
    weights, parts = load_file(folder / "model.safetensors"), {}
    for i, name in enumerate(weights):
        parts[name] = f"part-{i % 2}.safetensors"
    for file in set(parts.values()):
        save_file({name: weights[name] for name in weights if parts[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    for name, tensor in GPT.from_pretrained(folder).weights().items():
        assert torch.equal(tensor, before[name])
    for bad in ({"a": "../part-0.safetensors"}, {"a": "gone.safetensors"}, {"a": 3}, []):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(CheckpointError, match="index"):
            GPT.from_pretrained(folder)


def test_pointers_and_damaged_files_are_told_with_the_fix(tmp_path: Path) -> None:
    folder = foreign(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        GPT.from_pretrained(folder)
    for text in ("[" * 100_000, "not json", "[1]", "3"):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            GPT.from_pretrained(folder)


def test_rows_without_a_token_are_never_drawn(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "padded", "qwen3", vocab_size=640)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][400:] *= 50  # what has no token would be likeliest
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    run = load_run(folder, "cpu")
    assert run.model.config.vocab_size == run.tokenizer.vocab_size < 640
    ids = torch.arange(20)[None]
    count = run.tokenizer.vocab_size
    torch.testing.assert_close(run.model(ids), GPT.from_pretrained(folder)(ids)[..., :count], rtol=0, atol=1e-5)
    made = quantize_run(folder, bits=8, out=tmp_path / "int8")
    assert load_run(made.path, "cpu").model.config.vocab_size == count


CHANGES: dict[str, list[Any]] = {
    "gpt2": [
        *({"activation_function": name} for name in ("relu", "gelu", "silu", "gelu_new", "quick_gelu", None, 3)),
        *({"tie_word_embeddings": value} for value in (True, False, None, "x")),
        *({"layer_norm_epsilon": value} for value in (1e-5, 0.1, 0, -1, "1e-5", 10**400)),
        *({name: True} for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_cache")),
        *({name: value} for name in ("n_embd", "n_head", "n_layer", "n_positions", "n_inner", "vocab_size")
          for value in (1, 2, 16, 24, 64, 300, 0, -1, 2.5, None, [], 10**9)),
        {"resid_pdrop": 0.5}, {"summary_type": "mean"}, {"pruned_heads": {"0": [1]}}, {"scale_attn_weights": False},
    ],
    "qwen3": [
        *({"tie_word_embeddings": value} for value in (True, False, None)),
        *({"rms_norm_eps": value} for value in (1e-6, 0.1, 0, "x")),
        *({"rope_parameters": value} for value in (
            {"rope_type": "default", "rope_theta": 77.0}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, None, 3, {"rope_theta": 50.0})),
        *({"hidden_act": name} for name in ("silu", "gelu", "relu")),
        *({name: True} for name in ("attention_bias", "use_sliding_window", "use_cache")),
        *({name: value} for name in (
            "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
            "max_position_embeddings", "num_hidden_layers", "vocab_size")
          for value in (1, 2, 4, 8, 16, 24, 300, 0, 2.5, None, 10**9)),
        {"layer_types": ["sliding_attention"] * 2}, {"sliding_window": 3}, {"attention_dropout": 0.9},
    ],
}  # fmt: skip


def tried(folder: Path, kind: str, changes: list[dict[str, Any]], leave: str | None) -> str:
    """ "equal" or "refused"; fails on anything else."""
    original = (folder / "config.json").read_text()
    try:
        for fields in changes:
            change(**fields)(folder)
        if leave:
            leave_out(leave)(folder)
        try:
            ids = torch.arange(20)[None] * 11 % 250
            with torch.inference_mode():
                ours = GPT.from_pretrained(folder)(ids)
        except UserError as error:
            assert "\n" not in str(error)
            return "refused"
        except ValueError as error:  # a context of fewer positions than we ask for
            assert "max_seq_len" in str(error)
            return "refused"
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-4)
        return "equal"
    finally:
        (folder / "config.json").write_text(original)


def fuzz(base: Path, examples: int) -> None:
    folders = {kind: foreign(base / kind, kind) for kind in CHANGES}
    counts = {"equal": 0, "refused": 0}

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(CHANGES)))
        changes = data.draw(st.lists(st.sampled_from(CHANGES[kind]), max_size=2))
        names = sorted(json.loads((folders[kind] / "config.json").read_text()))
        leave = data.draw(st.one_of(st.none(), st.sampled_from(names)))
        counts[tried(folders[kind], kind, changes, leave)] += 1

    try_one()
    print(f"Hugging Face directories: {counts}")
    assert min(counts.values()) > examples / 10


def test_changed_directories_are_equal_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 60)


@pytest.mark.slow
def test_many_changed_directories_are_equal_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 800)
