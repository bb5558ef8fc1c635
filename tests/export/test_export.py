"""Test exported runs: transformers gives our logits, ids and texts, and reading them back gives the same bits."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from page_run import save_run
from safetensors.torch import load_file

from minigpt import GPT, GenerationConfig, ModelConfig, export_huggingface, generate, load_run
from minigpt.cli import main
from minigpt.config import TokenizerConfig
from minigpt.errors import ConfigError, MiniGPTError, StorageError
from minigpt.export import huggingface
from minigpt.tokenizers import EOS, UNK, BPETokenizer, CharTokenizer, build
from minigpt.tokenizers.chat_template import Template
from minigpt.tokenizers.gguf import QWEN2
from minigpt.tokenizers.patterns import DIGITS
from minigpt.tokenizers.sentencepiece import SentencePieceTokenizer
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

TEXT = "The cat sat on a mat, said Zoë’s dog; “why?” 42 times!\nAnd the old mill went round.\n" * 30
SHAPES = {
    "gpt2": {"shape": "gpt2", "embed_dim": 48, "num_heads": 4},
    "modern": {"shape": "modern", "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "rope_theta": 5000.0},
    "untied": {"shape": "modern", "embed_dim": 64, "num_heads": 2, "tie_embeddings": False, "norm_eps": 1e-5},
    "llama": {"shape": "modern", "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "qk_norm": False},
    "mixed": {"shape": "gpt2", "embed_dim": 48, "activation": "relu2", "bias": False},
}
pytest.importorskip("transformers")


FOREIGN = {"smollm": DIGITS, "qwen2": QWEN2}
"""Split patterns of other families."""


def sentencepiece() -> SentencePieceTokenizer:
    """A small tokenizer of Llama's kind. Its tokens are beginnings of the text's words."""
    text = f" {TEXT[:88]}"
    starts = {word[:end] for word in re.findall(r" [a-zA-Z]+", text) for end in range(2, len(word) + 1)} | {"  ", "on"}
    texts = ["", "", "", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(starts, key=len), *sorted(set(text))]
    return SentencePieceTokenizer(texts, {text: i for i, text in enumerate(texts)}, {UNK: 0, "<s>": 1, EOS: 2})


def make_run(
    folder: Path, shape: str = "modern", kind: str = "char", max_seq_len: int = 40, **generation: object
) -> Path:
    """A run directory of random weights, large enough that its logits differ."""
    if kind == "sentencepiece":
        tokenizer = sentencepiece()
    elif kind in FOREIGN:
        tokenizer = BPETokenizer.train([TEXT], 300, FOREIGN[kind])
    else:
        tokenizer = build(TokenizerConfig(kind=kind, vocab_size=300), [TEXT])  # type: ignore[arg-type]
    return save_run(folder, tokenizer, {"max_seq_len": max_seq_len} | SHAPES[shape], generation)


def theirs(path: Path):
    """(model, tokenizer) as every user of transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main(["export", *map(str, argv)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("minigpt: "), said
    return said.err


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("gpt2", "byte"), ("modern", "char"), ("untied", "bpe"), ("gpt2", "bpe"), ("modern", "byte"), ("llama", "bpe"),
     ("modern", "word")],
)  # fmt: skip
def test_transformers_computes_and_writes_what_we_do(shape: str, kind: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, kind, max_seq_len=128), "cpu")
    done = export_huggingface(run)
    assert done.path == tmp_path / "my-hf" and done.difference is not None and done.difference < 1e-4
    model, tokenizer = theirs(done.path)
    assert sum(p.numel() for p in model.parameters()) == done.weights
    ids = torch.tensor([run.tokenizer.encode(TEXT)[:40]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, run.model(ids), rtol=0, atol=1e-4)
    for text in (TEXT[:36], "Zoë 42", "", "  the\n\n cat"):
        assert tokenizer.encode(text, add_special_tokens=False) == run.tokenizer.encode(text)
        assert tokenizer.decode(run.tokenizer.encode(text)) == run.tokenizer.decode(run.tokenizer.encode(text))
        assert run.tokenizer.decode(run.tokenizer.encode(text)) == text or not run.tokenizer.keeps_text
    assert (tokenizer.eos_token_id, model.generation_config.eos_token_id) == (run.tokenizer.eos_id,) * 2
    prompt = tokenizer("The cat", return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    written = model.generate(**prompt, max_new_tokens=100, do_sample=False, eos_token_id=-1)
    settings = GenerationConfig(max_new_tokens=100, temperature=0.0)
    ours = [int(ids) for ids in generate(run.model, prompt["input_ids"], settings)]
    assert len(ours) == 100 and written[0].tolist() == [*prompt["input_ids"][0].tolist(), *ours]


def test_what_was_exported_is_read_back_to_the_bit_and_exported_again(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", "untied", "bpe"), "cpu")
    back = load_run(export_huggingface(run, tmp_path / "out").path, "cpu")
    rows = run.model.config.vocab_size  # rows after these only pad the matrix
    for name, tensor in run.model.weights().items():
        cut = slice(rows) if name in ("embedding.weight", "head.weight") else slice(None)
        assert torch.equal(back.model.weights()[name][cut], tensor[cut]), name
    again = export_huggingface(back, tmp_path / "again").path
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bytes(precision: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my"), "cpu")
    whole, half = (export_huggingface(run, tmp_path / p, p) for p in ("fp32", precision))
    assert half.weights == whole.weights and half.bytes < 0.6 * whole.bytes
    model, _ = theirs(half.path)
    assert {p.dtype for p in model.parameters()} == {huggingface.PRECISIONS[precision]}
    kept = load_file(half.path / "model.safetensors")
    for name, tensor in load_file(whole.path / "model.safetensors").items():
        assert torch.equal(kept[name], tensor.to(kept[name].dtype)), name


def test_transformers_writes_in_the_runs_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", temperature=0.7, top_p=0.9, repetition_penalty=1.2, max_new_tokens=9)
    settings = theirs(export_huggingface(load_run(run, "cpu")).path)[0].generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 0.7, 0.9, 0)
    assert (settings.repetition_penalty, settings.max_new_tokens) == (1.2, 9)
    assert settings.bos_token_id == settings.eos_token_id == load_run(run, "cpu").tokenizer.eos_id
    greedy = export_huggingface(load_run(make_run(tmp_path / "greedy", temperature=0.0, top_p=0.9), "cpu")).path
    model, _ = theirs(greedy)
    assert model.generation_config.do_sample is False
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "again")  # transformers refuses changed settings that contradict each other


def test_a_chat_is_spelled_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", kind="byte")
    Template(user="User: {}\n", assistant="Bot: {}\n").save(run)
    done = export_huggingface(load_run(run, "cpu"))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "It's “here”?"}]
    from minigpt import load_template

    _, tokenizer = theirs(done.path)
    spelled = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert spelled == load_template(done.path).prompt(chat) == load_template(run).prompt(chat)
    assert spelled == "System: Be brief.\nUser: It's “here”?\nBot:"


def test_a_chat_without_an_end_of_text_is_spelled_alike(tmp_path: Path) -> None:
    template = Template(user="The {}\n", assistant="said: {}\n")
    run = save_run(tmp_path / "my", CharTokenizer.from_texts([TEXT], ends=False), SHAPES["modern"], {})
    template.save(run)
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "mat"}]
    spelled = theirs(export_huggingface(load_run(run, "cpu")).path)[1].apply_chat_template(chat, tokenize=False)
    assert spelled == "".join(piece.text for piece in template.pieces(chat, eos=False)) == "The cat\nsaid: mat\n"


def test_the_command(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "my")
    assert main(["export", str(run), "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert list(report) == ["run", "path", "architecture", "precision", "weights", "bytes", "difference"]
    assert report["architecture"] == "qwen3" and report["difference"] < 1e-4 and said.err == ""
    assert sorted(p.name for p in (tmp_path / "my-hf").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert main(["generate", str(tmp_path / "my-hf"), "--prompt", "The", "--max-new-tokens", "5", "--seed", "1"]) == 0
    copy = capsys.readouterr().out
    assert main(["generate", str(run), "--prompt", "The", "--max-new-tokens", "5", "--seed", "1"]) == 0
    assert copy == capsys.readouterr().out
    assert main(["export", str(run), "--out", str(tmp_path / "deep/in/out")]) == 0
    line = capsys.readouterr().out
    assert "qwen3, " in line and "transformers' logits equal minigpt's within" in line and line.count("\n") == 1


def test_without_transformers_it_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(make_run(tmp_path / "my"))]) == 0
    assert "not compared: transformers is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["weights", "ids"])
def test_a_wrong_export_is_found_and_leaves_nothing(fault: str, tmp_path: Path, monkeypatch) -> None:
    run = load_run(make_run(tmp_path / "my", kind="bpe"), "cpu")
    if fault == "weights":
        right = huggingface.config_to_hf  # transformers then rotates by other angles than minigpt
        monkeypatch.setattr(
            huggingface, "config_to_hf", lambda *a: right(*a) | {"rope_parameters": None, "rope_theta": 1e6}
        )
        monkeypatch.setattr(GPT, "from_pretrained", lambda path: run.model)
    else:
        tree = json.loads((tmp_path / "my/tokenizer.json").read_text())
        tree["model"]["merges"] = tree["model"]["merges"][5:]
        (tmp_path / "my/tokenizer.json").write_text(json.dumps(tree))
    said = {"weights": "logits of the export differ", "ids": "encodes a text into other ids"}[fault]
    with pytest.raises(MiniGPTError, match=said):
        export_huggingface(run)
    assert [p.name for p in tmp_path.iterdir()] == ["my"]


def test_a_disk_that_is_full_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    resource = pytest.importorskip("resource", reason="needs POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the weights have 300,000 bytes
    try:
        with pytest.raises(StorageError, match=r"out: cannot be written .*--out"):
            export_huggingface(run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_mistakes_are_named_in_one_line(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "my")
    (tmp_path / "there").mkdir()
    assert "exists, and nothing is overwritten; choose another with --out" in fails(
        capsys, run, "--out", tmp_path / "there"
    )
    assert "no such run" in fails(capsys, tmp_path / "mi")
    said = fails(capsys, run, "--precision", "int8")
    assert "--precision int8 is for --to onnx or --to page; for --to hf choose fp32, bf16 or fp16" in said
    with pytest.raises(ConfigError, match="precision: int8 is not possible; choose from fp32, bf16, fp16"):
        export_huggingface(load_run(run, "cpu"), precision="int8")
    (run / "template.json").write_text("{")
    assert "template.json: cannot be read as a template" in fails(capsys, run)
    (tmp_path / "file").write_text("")
    (run / "template.json").unlink()
    assert "cannot be written (Not a directory)" in fails(capsys, run, "--out", tmp_path / "file/out")
    state = json.loads(next(run.rglob("state.json")).read_text())
    mixed = make_run(tmp_path / "mixed")
    for fields, said in (
        ({"activation": "relu2", "ff_dim": 256}, "models of the shapes gpt2 and modern only"),
        (
            {"bigrams": 40},
            "Hugging Face has no model with bigrams; train with --model.bigrams 0 for other tools",
        ),
    ):
        model = GPT(ModelConfig.model_validate(state["model"] | fields))
        shutil.rmtree(mixed / "checkpoints")
        checkpoint.save(
            mixed / "checkpoints/step-00000001",
            {"model": model.weights(), "optimizer": {}},
            CheckpointState(model=model.config.model_dump(mode="json")),
        )
        assert said in fails(capsys, mixed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mixed", "my", "there"]
