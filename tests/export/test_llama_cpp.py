"""Test that the real llama.cpp gives the same ids and greedy tokens from our GGUF files (make .venv/installed-node)."""

import json
import random
import subprocess
from pathlib import Path

import pytest
import torch
from node_run import PACKAGES, needs_node
from page_run import save_run
from test_export import SHAPES, TEXT, make_run

from minigpt import export_gguf, load_run
from minigpt.runs.load import LoadedRun
from minigpt.tokenizers import BPETokenizer
from minigpt.tokenizers.chat_template import Template
from minigpt.tokenizers.gguf import PRE

pytestmark = [pytest.mark.slow, needs_node("node-llama-cpp")]
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


def learn_by_heart(run: LoadedRun, texts: list[list[int]]) -> None:
    """Train the run's model on these ids (each as long as the others), so that one token is always far ahead.

    llama.cpp keeps keys and values in fp16: if two tokens are nearly equally likely, as with random weights, it may
    choose the other one.
    """
    ids = torch.tensor(texts)
    optimizer = torch.optim.Adam(run.model.train().parameters(), 3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(run.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    run.model.eval()


def greedy(run: LoadedRun, prompt: list[int], count: int) -> tuple[list[int], float]:
    """(our likeliest ids after the prompt, the smallest distance between the first and the second, in logits)."""
    ids, lead = torch.tensor([prompt]), float("inf")
    with torch.inference_mode():
        for _ in range(count):
            logits, best = run.model(ids)[0, -1].topk(2)
            lead = min(lead, (logits[0] - logits[1]).item())
            ids = torch.cat((ids, best[:1][None]), 1)
    return ids[0, len(prompt) :].tolist(), lead


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
        request.getfixturevalue("mirror")  # GPT-2's vocabulary
    run = load_run(make_run(tmp_path / "my", shape, kind, max_seq_len=96), "cpu")
    texts = adversarial(200)
    if kind == "char":  # llama.cpp leaves out unknown characters; minigpt writes <|unk|>
        texts = ["".join(char for char in text if char in TEXT) for text in texts] + [TEXT[i:] for i in range(50)]
    known = [run.tokenizer.encode(TEXT[start:])[:70] for start in (0, 30, 60)]
    learn_by_heart(run, known)
    prompts = [ids[:20] for ids in known]
    ours = [greedy(run, prompt, 50) for prompt in prompts]
    assert min(lead for _, lead in ours) > 0.5
    for precision in ("fp32", "fp16"):
        found = ask(export_gguf(run, precision=precision).path, texts, prompts, 50)
        pairs = [(text, run.tokenizer.encode(text), theirs) for text, theirs in zip(texts, found["ids"], strict=True)]
        wrong = [pair for pair in pairs if pair[1] != pair[2]]
        assert not wrong, f"{len(wrong)} of {len(texts)}: {wrong[:3]}"
        assert found["eos"] == run.tokenizer.eos_id
        assert found["written"] == [written for written, _ in ours], precision


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


@pytest.mark.parametrize("text", ["नमस्ते दुनिया", "ÉCOLE"])
def test_llama_cpps_gpt_4o_cuts_at_other_places(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no marks, and knows the case of ASCII only. If this fails for both texts, PRE can have the name."""
    monkeypatch.setitem(PRE, "gpt4o", "gpt-4o")
    tokenizer = BPETokenizer.train([f"{text} " * 20], 400, "gpt4o")
    made = export_gguf(load_run(save_run(tmp_path / "my", tokenizer, SHAPES["modern"], {}), "cpu"))
    assert ask(made.path, [text])["ids"][0] != tokenizer.encode(text)


def test_llama_cpp_gets_the_chat_template_and_leaves_out_unknown_characters(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "my", "modern", "char")
    Template(user="User: {}\n", assistant="Bot: {}\n").save(folder)
    made = export_gguf(load_run(folder, "cpu"))
    found = ask(made.path, ["a☃t", "cat 日本 Q"])
    tokenizer = load_run(folder, "cpu").tokenizer
    assert found["ids"] == [tokenizer.encode("at"), tokenizer.encode("cat  ")]
    assert found["texts"] == ["at", "cat  "] and "Bot:" in found["template"]
