"""Test GGUF files: the format's own package reads them, we read the same bits back, and damaged files are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_run import json_of
from test_export import TEXT, fails, make_run

from minigpt import export_gguf, import_model, load_run, load_template
from minigpt.cli import main
from minigpt.errors import ConfigError, RunError, StorageError, TokenizerError
from minigpt.tokenizers import BPETokenizer, CharTokenizer
from minigpt.tokenizers.chat_template import Template
from minigpt.tokenizers.gguf import from_gguf, to_gguf
from minigpt.weights import gguf_file
from minigpt.weights.gguf import config_from_gguf, weights_from_gguf

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "q8_0", "q4_0"])
def test_numbers_are_packed_to_the_bits_of_ggml(kind: str) -> None:
    values = torch.randn(6, 96, generator=torch.Generator().manual_seed(1))
    values[0, :32] = 0
    values[1, 3:9] = torch.tensor([0.5, -0.5, 127.0, 1.5, -126.5, 2.5])  # halves, rounded away from zero
    theirs = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}[kind]
    code = gguf.GGMLQuantizationType[theirs]
    packed = gguf_file.pack(values, kind)
    assert packed == gguf.quants.quantize(values.numpy(), code).tobytes()
    found = gguf_file.unpack(np.frombuffer(packed, np.uint8), kind)
    np.testing.assert_array_equal(found, gguf.quants.dequantize(np.frombuffer(packed, np.uint8), code).reshape(-1))


def test_the_formats_own_package_reads_the_header(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", "modern", "bpe", temperature=0.7, top_k=20), "cpu")
    done = export_gguf(run, precision="q8_0")
    assert done.path == tmp_path / "my-Q8_0.gguf" and done.architecture == "qwen3"
    reader = gguf.GGUFReader(done.path)
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["general.architecture"] == "qwen3" and value["general.name"] == "my"
    assert (value["qwen3.block_count"], value["qwen3.attention.head_count_kv"], value["qwen3.context_length"]) == (
        2,
        2,
        40,
    )
    assert value["qwen3.rope.freq_base"] == 5000.0 and value["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert value["tokenizer.ggml.pre"] == "llama-bpe" and value["tokenizer.ggml.add_bos_token"] is False
    assert value["tokenizer.ggml.eos_token_id"] == run.tokenizer.eos_id
    assert value["general.sampling.temp"] == pytest.approx(0.7) and value["general.sampling.top_k"] == 20
    assert len(value["tokenizer.ggml.tokens"]) == run.tokenizer.vocab_size
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32" and kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert sum(tensor.n_elements for tensor in reader.tensors) == done.weights
    rows = {tensor.name: tensor.data for tensor in reader.tensors}["token_embd.weight"]
    embedding = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    weight = run.model.weights()["embedding.weight"][: run.tokenizer.vocab_size]
    np.testing.assert_allclose(embedding, weight, atol=float(weight.abs().max()) / 200)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("gpt2", "byte"),
        ("modern", "char"),
        ("untied", "bpe"),
        ("llama", "sentencepiece"),
        ("llama", "smollm"),
        ("modern", "qwen2"),
    ],
)
def test_what_was_exported_reads_back_to_the_bit(shape: str, kind: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, kind), "cpu")
    done = export_gguf(run, tmp_path / "out.gguf", "fp32")
    assert (done.difference, done.same) == (0, 1)
    file = gguf_file.read(done.path)
    config = config_from_gguf(file)
    mine = run.model.config
    same = ("norm_eps", "rope_theta", "tie_embeddings", "qk_norm", "hidden_dim", "head_size", "kv_heads", "max_seq_len")
    assert [getattr(config, name) for name in same] == [getattr(mine, name) for name in same]
    found, ours = weights_from_gguf(config, file), run.model.weights()
    assert found.keys() == ours.keys()
    for name, tensor in ours.items():
        cut = slice(mine.vocab_size) if name in ("embedding.weight", "head.weight") else slice(None)
        assert torch.equal(found[name][cut], tensor[cut]), name
    assert from_gguf(file.settings).fingerprint == run.tokenizer.fingerprint
    if kind != "char":  # also without our own tokenizer.json, as llama.cpp reads it
        bare = {name: value for name, value in file.settings.items() if name != "tokenizer.huggingface.json"}
        assert from_gguf(bare).encode(TEXT) == run.tokenizer.encode(TEXT)


def test_the_command(tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "my", "gpt2", "byte")
    report = json_of(capsys, "export", folder, "--to", "gguf", "--precision", "q8_0")
    assert list(report) == ["run", "path", "architecture", "precision", "weights", "bytes", "difference", "same"]
    assert report["path"] == str(tmp_path / "my-Q8_0.gguf") and report["same"] > 0.9
    assert main(["export", str(folder), "--to", "gguf"]) == 0
    line = capsys.readouterr().out
    assert (
        "my-F16.gguf: gpt2, " in line
        and "the likeliest next token equals the run's in" in line
        and line.count("\n") == 1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my", "my-F16.gguf", "my-Q8_0.gguf"]


def test_what_llama_cpp_has_not_is_refused_by_name(tmp_path: Path, capsys) -> None:
    words = make_run(tmp_path / "words", "gpt2", "word")
    assert "llama.cpp has no tokenizer of whole words; export to hf" in fails(capsys, words, "--to", "gguf")
    with pytest.raises(TokenizerError, match=r"would end a text at the token with id 11; export to hf"):
        to_gguf(CharTokenizer.from_texts([TEXT], ends=False))
    with pytest.raises(TokenizerError, match=r"no name for the tokenizer's split pattern 'gpt4o'; export to hf"):
        to_gguf(BPETokenizer.train([TEXT], 300, "gpt4o"))
    mixed = make_run(tmp_path / "mixed", "mixed")
    said = fails(capsys, mixed, "--to", "gguf")
    assert "nearest is gpt2, but: bias False (True), activation relu2 (gelu_tanh)" in said
    folder = make_run(tmp_path / "my", kind="bpe")
    run = load_run(folder, "cpu")
    with pytest.raises(ConfigError, match="choose from fp32, fp16, bf16, q8_0, q4_0"):
        export_gguf(run, precision="int8")
    assert "--precision q8_0 is for --to gguf; for --to hf choose fp32, bf16 or fp16" in fails(
        capsys, folder, "--precision", "q8_0"
    )
    (tmp_path / "there.gguf").write_text("")
    with pytest.raises(RunError, match="nothing is overwritten"):
        export_gguf(run, tmp_path / "there.gguf")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|[^\p{L}]+"
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(TokenizerError, match=r"llama\.cpp has no name for the tokenizer's split pattern"):
        export_gguf(load_run(folder, "cpu"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "my", "there.gguf", "words"]


def test_a_chat_comes_back_and_nothing_is_left_of_a_failed_export(tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "my", kind="byte")
    Template(user="User: {}\n", assistant="Bot: {}\n").save(folder)
    made = export_gguf(load_run(folder, "cpu"))
    value = gguf_file.read(made.path).settings
    assert value["tokenizer.chat_template"] == load_template(folder).jinja()
    assert load_template(import_model(made.path, tmp_path / "back").path) == load_template(folder)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(capsys, folder, "--to", "gguf", "--out", tmp_path / "file/out.gguf")
    resource = pytest.importorskip("resource", reason="needs POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            export_gguf(load_run(folder, "cpu"), tmp_path / "new/out.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "new").iterdir())
