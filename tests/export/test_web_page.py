"""Test the web page of a run in node: it computes, encodes, draws and explains the same as minigpt."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import json_of
from mostly_slow import mostly_slow
from page_run import TEXT, make_run

from minigpt import GPT, explain, export_page, load_run, quantize_run
from minigpt.cli import main
from minigpt.config import validate
from minigpt.errors import ConfigError, MiniGPTError, RunError
from minigpt.explanation.analysis import token_texts
from minigpt.export.page import describe_run
from minigpt.export.page.check import ask
from minigpt.export.page.pack import check_size, rounded
from minigpt.export.page.pattern import javascript
from minigpt.generation.chat.conversation import Message, Turns, fit
from minigpt.generation.text import Writing
from minigpt.tokenizers import BPETokenizer, Tokenizer
from minigpt.tokenizers.chat_template import Template, encode_question
from minigpt.tokenizers.load import from_tree
from minigpt.tokenizers.patterns import check

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node: apt install nodejs")
HOSTILE = [
    "", " ", "\n", "\r\n \r\n", "a\u00a0b\u2003c\u0085d\ufeffe\u180ef", "THEY'LL we'Ve I'D it'ſ 'ſ 'S", "İstanbul ǅ",
    "漢字かな交じり文。ไทย เขียน", "🙂👩‍👩‍👧‍👦🇨🇭 e\u0301\u0301", "\x00\x1c\x1f\x7f\u200b\u2028x", "1234567890١٢٣½²Ⅷ",
    "   x  \t\n\n   y   ", "<|endoftext|> </script><b>&amp;", "$$$…---___///\n\n!!!\r\r", "a" * 300,
    "\ufffd\ufffe\U0010ffff",
]  # fmt: skip


def page_of(run: Path, precision: str = "fp32") -> tuple[Path, GPT, Tokenizer]:
    """The page, and the model with the page's weights, whose results the page must equal."""
    loaded = load_run(run, "cpu")
    done = export_page(loaded, precision=precision)
    assert done.difference is not None and done.difference < 1e-4
    return done.path, rounded(loaded.model, precision), loaded.tokenizer


def written(model: GPT, tokenizer: Tokenizer, ids: list[int], **settings: Any) -> dict[str, Any]:
    """The text that generation continues from ids, in the form of check.js."""
    config = validate({"generation": settings}).generation
    completion = Writing(model, tokenizer, [ids], config).finish()[0][0]
    return {"text": completion.text, "reason": completion.reason}


@needs_node
@pytest.mark.parametrize(
    ("shape", "kind", "precision"),
    mostly_slow(
        [
            ("modern", "char", "int8"),
            ("gpt2", "word", "fp32"),
            ("gpt2", "byte", "fp32"),
            ("mixed", "byte", "fp16"),
            ("odd", "bpe", "fp32"),
        ]
    ),
)
def test_every_field_is_computed_and_written_on_past_the_context(shape, kind, precision, tmp_path: Path) -> None:
    page, model, tokenizer = page_of(make_run(tmp_path / "my", shape, kind), precision)
    ids = tokenizer.encode(TEXT)[:40]
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0, "max_new_tokens": 90, "stop_at_eos": False},  # the context is 40
        {"temperature": 0.9, "max_new_tokens": 60, "seed": 12345678901},
    ]
    answers = ask(page, {"logits": [ids], "write": [{"ids": ids[:5], **each} for each in settings]})
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.tensor(answers["logits"]), model(torch.tensor([ids]))[:, -1], rtol=0, atol=1e-4
        )
    for each, found in zip(settings, answers["written"], strict=True):
        assert {"text": found["text"], "reason": found["reason"]} == written(model, tokenizer, ids[:5], **each)


@pytest.mark.slow
@needs_node
def test_int8_writes_what_the_quantised_run_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", "gpt2", "bpe")
    page, _, tokenizer = page_of(run, "int8")
    quantised = load_run(quantize_run(run, bits=8).path, "cpu").model
    ids = tokenizer.encode("The cat")
    greedy: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 50, "stop_at_eos": False}
    (found,) = ask(page, {"write": [{"ids": ids, **greedy}]})["written"]
    assert found["text"] == written(quantised, tokenizer, ids, **greedy)["text"] and len(found["ids"]) == 50


@needs_node
def test_a_seed_and_every_setting_write_what_generate_writes(tmp_path: Path) -> None:
    rules = {"bad_words": ("the",), "logit_bias": {"e": -2.0, "#40": 3.0}, "min_new_tokens": 5}
    page, model, tokenizer = page_of(make_run(tmp_path / "my", "gpt2", "byte", **rules))
    ids = tokenizer.encode("The cat sat")
    settings: list[dict[str, Any]] = [
        {"temperature": 1.3, "top_k": 7, "seed": 3},
        {"top_p": 0.8, "seed": 4},
        {"min_p": 0.1, "seed": 5},
        {"typical_p": 0.5, "seed": 6},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9, "seed": 7},
        {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2, "seed": 8},
        {"no_repeat_ngram_size": 2, "temperature": 0.0},
        {"stop": ["a", "\n"], "seed": 9, "temperature": 3.0},
    ]
    settings = [{"max_new_tokens": 40, **each} for each in settings]
    answers = ask(page, {"write": [{"ids": ids, **each} for each in settings]})
    for each, found in zip(settings, answers["written"], strict=True):
        assert {"text": found["text"], "reason": found["reason"]} == written(model, tokenizer, ids, **rules, **each), (
            each
        )


@needs_node
def test_two_line_ends_stop_a_text_of_words(tmp_path: Path) -> None:
    rules = {"logit_bias": {"\n": 100.0}}  # it writes nothing else
    page, model, tokenizer = page_of(make_run(tmp_path / "my", "gpt2", "word", **rules))
    ids = tokenizer.encode("The cat")
    asked: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 9}
    for stop, text in (("\n\n", ""), ("\n the", " \n" * 9)):
        found = ask(page, {"write": [{"ids": ids, **asked, "stop": [stop]}]})["written"][0]
        expected = {"text": text, "reason": "stop" if stop == "\n\n" else "length"}
        assert {"text": found["text"], "reason": found["reason"]} == expected
        assert written(model, tokenizer, ids, **rules, **asked, stop=stop) == expected


@needs_node
@pytest.mark.parametrize("kind", mostly_slow(["bpe", "word", "byte", "char"], [0, 1]))
def test_hostile_texts_become_our_ids_and_come_back(kind: str, tmp_path: Path) -> None:
    page, _, tokenizer = page_of(make_run(tmp_path / "my", kind=kind))
    spread = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 400).tolist()
    answers = ask(page, {"encode": HOSTILE, "decode": [spread], "labels": list(range(tokenizer.vocab_size))})
    assert answers["encoded"] == [tokenizer.encode(text) for text in HOSTILE]
    assert answers["decoded"] == [tokenizer.decode(spread)]
    assert answers["labels"] == token_texts(tokenizer, list(range(tokenizer.vocab_size)))


@pytest.mark.slow
@needs_node
def test_lone_surrogates_are_one_unknown_character(tmp_path: Path) -> None:
    page, _, tokenizer = page_of(make_run(tmp_path / "my", kind="byte"))
    texts = ["a\ud83d", "\ude42b", "\ude42\ud83d"]
    assert ask(page, {"encode": texts})["encoded"] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(?i:'s|'t)|\s+(?!\S)", r"(?:'[sS\u017f]|'[tT])|\p{White_Space}+(?!\P{White_Space})"),
        (r"[^\r\n\p{L}]?+\p{N}{1,3}", r"(?:(?=(?<p1>[^\r\n\p{L}]?))\k<p1>)\p{N}{1,3}"),
        (r"(a|b)++\-\.", r"(?:(?=(?<p1>(?:a|b)+))\k<p1>)\u{2d}\."),
    ],
)
def test_a_split_expression_in_javascript(pattern: str, expected: str) -> None:
    check(pattern)
    assert javascript(pattern) == expected


@pytest.mark.slow
@needs_node
def test_the_split_of_another_tool_cuts_the_same_pieces(tmp_path: Path) -> None:
    tree = load_run(make_run(tmp_path / "bpe", kind="bpe"), "cpu").tokenizer.to_tree()
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = (
        r"(?i:'k|'s)|[^\r\n\p{L}\p{N}]?+\p{L}++| ?\p{N}| ?[^\s\p{L}\p{N}]++[\r\n/]*+|\s*[\r\n]++|\s+(?!\S)|\s+"
    )
    tree["normalizer"] = {"type": "NFC"}
    tree["added_tokens"].append(
        {"id": 300, "content": "<think>", "special": False, "normalized": False, "single_word": False}
    )
    page, _, tokenizer = page_of(make_run(tmp_path / "my", kind=from_tree(tree)))
    texts = [*HOSTILE, "a<think>b<think>", "cafe\u0301 'K\u212a", " /\n/x"]
    assert ask(page, {"encode": texts})["encoded"] == [tokenizer.encode(text) for text in texts]


@pytest.mark.slow
@needs_node
def test_gpt4o_cuts_the_same_pieces(tmp_path: Path) -> None:
    texts = [*HOSTILE, "ʰaB ǅungla HTTPServer'LL naïveTÉÀ //\n/x", "नमस्ते दुनिया। שָׁלוֹם"]
    page, _, tokenizer = page_of(make_run(tmp_path / "my", kind=BPETokenizer.train(texts, 900, "gpt4o", min_count=1)))
    assert ask(page, {"encode": texts})["encoded"] == [tokenizer.encode(text) for text in texts]


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("shape", ["modern", "mixed"])
def test_what_it_explains_is_what_explain_records(shape: str, tmp_path: Path) -> None:
    page, model, tokenizer = page_of(make_run(tmp_path / "my", shape, "char"))
    ids = tokenizer.encode(TEXT)[:30]
    found = ask(page, {"explain": [{"ids": ids}]})["explained"][0]
    expected = explain(model, tokenizer, ids)
    assert found["ids"] == ids and found["texts"] == expected["texts"] and found["parts"] == expected["parts"]
    for key in ("entropy", "attention_entropy", "look_back", "stream_norm", "written_norm"):
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-3, atol=2e-4, err_msg=key)
    np.testing.assert_allclose(found["loss"][1:], expected["loss"][1:], rtol=2e-3, atol=2e-4)
    assert found["lens"]["ids"] == expected["lens"]["ids"]
    np.testing.assert_allclose(found["lens"]["probs"], expected["lens"]["probs"], rtol=2e-3, atol=2e-4)
    weights = [weight for layer in expected["attention"] for head in layer for row in head for weight in row]
    np.testing.assert_allclose(found["attention"], np.array(weights) * 255, atol=0.6)


@pytest.mark.slow
@needs_node
def test_a_head_that_is_switched_off_brings_nothing_back(tmp_path: Path) -> None:
    page, model, tokenizer = page_of(make_run(tmp_path / "my", "gpt2", "byte"))
    ids, size = tokenizer.encode(TEXT)[:20], model.config.head_size
    with torch.no_grad():
        model.get_parameter("blocks.1.attention.out.weight")[:, 2 * size : 3 * size] = 0  # head 2 of layer 1
    found = ask(page, {"explain": [{"ids": ids, "off": [1 * 4 + 2]}]})["explained"][0]
    expected = explain(model, tokenizer, ids)
    np.testing.assert_allclose(found["loss"][1:], expected["loss"][1:], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@needs_node
def test_a_chat_is_spelled_and_cut_as_the_chat_command_does(tmp_path: Path) -> None:
    run, template = (
        make_run(tmp_path / "my", kind="byte", max_new_tokens=10),
        Template(user="Q: {}\n", assistant="A: {}\n"),
    )
    template.save(run)
    page, model, tokenizer = page_of(run)
    turns = Turns(tokenizer, lambda messages: encode_question(messages, template, tokenizer))
    chats = [
        [Message("user", "It's?")],
        [Message("system", "Be."), Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "Bye {}")],
        [Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("user", "four" * 4)],
        [Message("user", "a text that is far longer than the context of forty tokens, cut on its left")],
    ]
    asked = [[{"role": m.role, "content": m.content} for m in chat] for chat in chats]
    limit = model.config.max_seq_len
    expected = [turns.encode(fit(chat, turns.encode, limit, 10)) for chat in chats]
    assert ask(page, {"chats": asked})["chats"] == expected


@needs_node
def test_the_page_trusts_only_its_own_script_and_no_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>my", kind="char")
    page, _, _ = page_of(run, "int8")
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy and "default-src 'none'" in policy[1] and "unsafe-inline" not in policy[1]
    for kind, body in (("script", text.rpartition("<script>")[2]), ("style", text.partition("<style>")[2])):
        digest = hashlib.sha256(body.partition(f"</{kind}>")[0].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy[1]
    assert "<b>my" not in text and "{{" not in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text), "the page loads nothing"


READ = """
const { readFileSync } = require("node:fs");
const html = readFileSync(process.argv[1], "utf8"), block = (id) => html.match(`id="${id}">([^]*?)</script>`)[1];
const about = JSON.parse(block("about")), found = html.matchAll(
  /data-name="(.+?)" data-kind="(.+?)" data-rows="(.+?)" data-columns="(.+?)">(.+?)</g);
const tensors = Object.fromEntries([...found].map(([, name, kind, rows, columns, base64]) => [
  name, { kind, rows: Number(rows), columns: Number(columns), base64 }]));
"""
"""Reads the parts of a page."""
JOBS = (
    READ
    + """
const jobs = new Function("performance", `${block("worker")}; return JOBS;`)({ now: () => 0 });
jobs.load({ about, tensors });
const settings = { ...about.settings, max_new_tokens: 200, temperature: 3, stop: ["E"] };
jobs.write({ prompt: "THE", settings }, 0, () => null).then((answer) => console.log(JSON.stringify(answer)));
"""
)
"""What the worker of a page answers if the clock stands still."""
SET_BACK = (
    READ
    + """
let date = 1e12, passed = 0;
const clocks = [{ now: () => (date -= 1000) }, { now: () => (passed += 20) }];
const jobs = new Function("Date", "performance", `${block("worker")}; return JOBS;`)(...clocks);
jobs.load({ about, tensors });
const settings = { ...about.settings, max_new_tokens: 200, max_seconds: 1, stop_at_eos: false };
const write = (job) => jobs.write({ prompt: "THE", settings }, job, () => null);
write(0).then(async (late) => console.log(JSON.stringify([late, await write(1)])));
"""
)
"""What the worker answers to its newest job, 0, and to another, if a person sets the clock back while it writes."""


@needs_node
def test_a_typed_stop_is_cleaned_and_no_rate_is_infinite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my", kind="byte")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("clean: []", "clean: [lower]"))
    page, _, _ = page_of(run)
    done = subprocess.run(["node", "-e", JOBS, page], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["reason"] == "stop" and answer["tokens"] > 1 and answer["rate"] is None


@needs_node
def test_a_clock_that_is_set_back_delays_neither_the_time_limit_nor_stop(tmp_path: Path) -> None:
    page, _, _ = page_of(make_run(tmp_path / "my", kind="byte"))
    done = subprocess.run(["node", "-e", SET_BACK, page], capture_output=True, text=True, check=True)
    assert [answer["reason"] for answer in json.loads(done.stdout)] == ["time", "interrupted"]


def test_without_node_the_page_is_written_and_not_checked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", str(make_run(tmp_path / "my")), "--to", "page"]) == 0
    said = capsys.readouterr()
    assert (
        "my.html: " in said.out and "weights in int8" in said.out and "not checked: node is not installed" in said.out
    )
    assert said.err.startswith("open it in a browser: file://")


def test_a_page_that_computes_otherwise_gets_no_name(tmp_path: Path, monkeypatch) -> None:
    run = load_run(make_run(tmp_path / "my", kind="byte"), "cpu")
    row = [0.0] * run.tokenizer.vocab_size
    wrong = json.dumps({"logits": [row, row], "plain": [row, row], "greedy": [[]], "encoded": [[]], "decoded": [""]})
    fake = tmp_path / "bin" / "node"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{wrong}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    with pytest.raises(MiniGPTError, match="logits differ from minigpt"):
        export_page(run, tmp_path / "out" / "my.html")
    fake.write_text("#!/bin/sh\necho 'TypeError: no' >&2\nexit 1\n")
    with pytest.raises(MiniGPTError, match="the page does not run: TypeError: no"):
        export_page(run, tmp_path / "out" / "my.html")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_runs_stops_are_cleaned_as_its_text_was(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", stop=("THE",), bad_words=("AN",)), "cpu")
    lower = replace(run, config=run.config.changed(data={"clean": ("lower",)}))
    about = describe_run(lower, run.path, "fp32")
    assert about["settings"]["stop"] == ("the",)
    assert tuple(run.tokenizer.encode("an")) in about["rules"]["bad_words"]


def test_what_a_page_cannot_do_is_refused_by_name(tmp_path: Path, capsys) -> None:
    beams = load_run(make_run(tmp_path / "beams", num_beams=4, temperature=0.0), "cpu")
    with pytest.raises(ConfigError, match=r"generation.num_beams; set num_beams: 1 in the run's config.yaml"):
        export_page(beams)
    run = load_run(make_run(tmp_path / "my"), "cpu")
    with pytest.raises(ConfigError, match="precision: int4 is not possible; choose from int8, fp16, fp32"):
        export_page(run, precision="int4")
    with torch.no_grad():
        run.model.embedding.weight[3, 3] = 1e6
    with pytest.raises(ConfigError, match=r"fp16 cannot hold the numbers of embedding.weight; use int8 or fp32"):
        export_page(run, precision="fp16")
    check_size(124_000_000, "int8")
    with pytest.raises(ConfigError, match=r"124,000,000 weights in fp32 are a page of 661 MB, .*; use precision fp16"):
        check_size(124_000_000, "fp32")
    with pytest.raises(ConfigError, match="export it with --to hf instead"):
        check_size(10**9, "int8")
    (tmp_path / "my.html").write_text("mine")
    with pytest.raises(RunError, match="exists, and nothing is overwritten"):
        export_page(run)
    assert main(["export", str(tmp_path / "my"), "--to", "page", "--precision", "bf16"]) == 2
    said = "--precision bf16 is for --to hf or --to gguf; for --to page choose int8, fp16 or fp32"
    assert said in capsys.readouterr().err
    assert (tmp_path / "my.html").read_text() == "mine"


@pytest.mark.slow
@needs_node
def test_the_command_as_json(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "my")
    report = json_of(capsys, "export", run, "--to", "page", "--out", tmp_path / "deep/page.html")
    assert list(report) == ["run", "path", "precision", "weights", "bytes", "difference"]
    assert report["bytes"] == (tmp_path / "deep/page.html").stat().st_size and report["precision"] == "int8"
