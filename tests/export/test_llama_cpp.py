"""The real llama.cpp reads our GGUF files: the same ids, the same greedy tokens (make .venv/installed-node)."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_export import TEXT, make_run

from minigpt import export_gguf, load_run
from minigpt.runs.load import LoadedRun
from minigpt.tokenizers.chat_template import Template

PACKAGES = Path(os.environ.get("MINIGPT_NODE", Path(sys.prefix) / "node")) / "node_modules"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("node") or not (PACKAGES / "node-llama-cpp").is_dir(),
        reason="node-llama-cpp is not there: make .venv/installed-node",
    ),
]
PIECES = [
    *"aAzéßñİǅʼnΩжאعहไ漢かカ한", *"0189²½٣९Ⅷ", *"'’`\"“”.,;:!?-_/\\|@#$€%&*()[]{}<>=+~^°§¶",
    *" \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u3000", *"\u0301\u0308\u20dd\u200b\u200d\ufe0f\u00ad\ufeff",
    "👩‍👩‍👧", "🏳️‍🌈", "🙂", "e\u0301", "ﬁ", "𝒳", "𐐷", "\U000e0001", "\ufffd", "\u0001", "\u001f", "\x7f",
    "'s", "'S", "'ll", "'LL", "'Ll", "'re", "'VE", "'d", "'t", "'m", "n't", "''s", "  ", "   ", "\n\n", "\r\n", " \n",
    "\n ", "\t\t", "1234567", "3.14", "1,000", "0x1F", "the", " the", "The", " cat", "foo_bar", "http://a.b/c?d=e",
    "<|endoftext|>", "<|bos|>", "<|pad|>", "<|unk|>", "<s>", "[INST]", "...", "——", "!!!", "ⅣⅤ", "１２３",
]  # fmt: skip


def adversarial(count: int) -> list[str]:
    draw = random.Random(0)
    return [TEXT[:200], "", " ", *("".join(draw.choices(PIECES, k=draw.randint(1, 40))) for _ in range(count - 3))]


def ask(model: Path, texts: list[str] = (), prompts: list[list[int]] = (), count: int = 0) -> dict:  # type: ignore[assignment]
    question = {"packages": str(PACKAGES), "model": str(model), "texts": texts, "prompts": prompts, "count": count}
    script = Path(__file__).parents[2] / "benchmarks/llama_cpp.mjs"
    done = subprocess.run(["node", script], input=json.dumps(question), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout)


def behind(run: LoadedRun, prompt: list[int], written: list[int]) -> float:
    """How far the logits of what was written lie below our largest, at most; 0: each is our greedy token.

    llama.cpp keeps keys and values in fp16, so it may take the other one of two that are nearly equal.
    """
    ids = torch.tensor([prompt + written])
    with torch.inference_mode():
        logits = run.model(ids)[0, len(prompt) - 1 : -1]
    return (logits.amax(-1) - logits.gather(1, torch.tensor(written)[:, None])[:, 0]).max().item()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("gpt2", "byte"),
        ("modern", "char"),
        ("untied", "bpe"),
        ("gpt2", "gpt2"),
        ("modern", "bpe"),
        ("llama", "char"),
        ("llama", "sentencepiece"),
        ("llama", "smollm"),
        ("modern", "qwen2"),
    ],
)
def test_llama_cpp_has_our_ids_and_writes_our_tokens(
    request: pytest.FixtureRequest, shape: str, kind: str, tmp_path: Path
) -> None:
    if kind == "gpt2":
        request.getfixturevalue("mirror")  # its vocabulary
    run = load_run(make_run(tmp_path / "my", shape, kind, max_seq_len=96), "cpu")
    texts = adversarial(200)
    if kind == "char":  # what its vocabulary lacks is left out there, and <|unk|> here
        known = set(TEXT)
        texts = ["".join(char for char in text if char in known) for text in texts] + [TEXT[i:] for i in range(50)]
    prompts = [run.tokenizer.encode(text)[:20] for text in (TEXT, TEXT[30:], "the mat, 42")]
    for precision in ("fp32", "fp16"):
        found = ask(export_gguf(run, precision=precision).path, texts, prompts, 50)
        wrong = [
            (text, ours, theirs)
            for text, theirs in zip(texts, found["ids"], strict=True)
            if (ours := run.tokenizer.encode(text)) != theirs
        ]
        assert not wrong, f"{len(wrong)} of {len(texts)}: {wrong[:3]}"
        assert found["eos"] == run.tokenizer.eos_id
        gaps = [behind(run, *pair) for pair in zip(prompts, found["written"], strict=True)]
        assert max(gaps) < 0.005 and 0.0 in gaps, (precision, gaps)


@pytest.mark.parametrize(("shape", "precision"), [(s, p) for s in ("gpt2", "modern") for p in ("bf16", "q8_0", "q4_0")])
def test_llama_cpp_computes_with_fewer_bits(shape: str, precision: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, "byte", max_seq_len=96), "cpu")
    prompts = [run.tokenizer.encode(TEXT[i:])[:40] for i in range(8)]
    made = export_gguf(run, precision=precision)
    found = ask(made.path, [TEXT], prompts, 1)
    with torch.inference_mode():
        ours = [[int(run.model(torch.tensor([prompt]))[0, -1].argmax())] for prompt in prompts]
    same = sum(ours[i] == found["written"][i] for i in range(8))
    assert same >= (3 if precision == "q4_0" else 6), (same, made.same)


def test_llama_cpp_gets_the_chat_template_and_leaves_out_unknown_characters(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "my", "modern", "char")
    Template(user="User: {}\n", assistant="Bot: {}\n").save(folder)
    made = export_gguf(load_run(folder, "cpu"))
    found = ask(made.path, ["a☃t", "cat 日本 Q"])
    tokenizer = load_run(folder, "cpu").tokenizer
    assert found["ids"] == [tokenizer.encode("at"), tokenizer.encode("cat  ")]
    assert found["texts"] == ["at", "cat  "] and "Bot:" in found["template"]
