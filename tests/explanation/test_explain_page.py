"""Test `minigpt explain`: the object, the page as text, the walk, the pictures, and how they change in training."""

import base64
import io
import json
import re
import shutil
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_run import fails, json_of, small_run, text
from mostly_slow import mostly_slow
from rich.console import Console
from tuned_run import TEXT, make_base

from minigpt.cli import main
from minigpt.config import ModelConfig, dump_config, load_config
from minigpt.errors import RunError, UserError
from minigpt.explanation import explain, record
from minigpt.explanation.analysis import KEYS, token_texts, visible
from minigpt.explanation.canvas import in_font
from minigpt.explanation.dataset import SURVEY_KEYS
from minigpt.explanation.figures import draw_explanation
from minigpt.explanation.html import make_page, read
from minigpt.explanation.over_time import TIMELINE_KEYS, timeline
from minigpt.explanation.walk import steps, walk
from minigpt.files import append_line
from minigpt.model import GPT
from minigpt.runs.load import load_run
from minigpt.tokenizers import ByteTokenizer, Tokenizer
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

PROMPT = "the cat sat on a mat and saw the cat"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("runs") / "base")


def byte_model(**changes: object) -> tuple[GPT, Tokenizer]:
    tokenizer = ByteTokenizer()
    shape = {"embed_dim": 48, "num_heads": 6, "num_layers": 6, "max_seq_len": 256, "init_std": 0.2} | changes
    return GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), seed=2), tokenizer


def embedded(page: str) -> dict:
    """The JSON in a page, as a browser finds it: up to the first end tag."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_object_holds_what_was_recorded(run, capsys):
    found = json_of(capsys, "explain", run, "--prompt", PROMPT, "--device", "cpu")
    assert tuple(found) == KEYS
    loaded = load_run(run, "cpu")
    recording = record(loaded.model, loaded.tokenizer.encode(PROMPT))
    length = len(PROMPT)
    assert "".join(found["texts"]) == PROMPT and found["loss"][0] is None
    np.testing.assert_allclose(found["loss"][1:], recording.loss, rtol=1e-3)
    for t in (0, 5, length - 1):
        np.testing.assert_allclose(found["attention"][1][0][t], recording.attention[1, 0, t, : t + 1], rtol=1e-3)
    np.testing.assert_allclose(found["stream_norm"], recording.stream_norm, rtol=1e-3)
    assert found["lens"]["ids"] == recording.lens_ids.tolist()
    shown = {str(id_) for id_ in [*found["ids"], *recording.lens_ids.flat]}
    assert set(found["vocabulary"]) == shown
    where = (recording.attention[0, 1] * (np.arange(length)[:, None] - np.arange(length))).sum(1).mean()
    assert found["look_back"][0][1] == pytest.approx(where, rel=1e-3)
    assert found["model"]["parameters"] == sum(part.numel() for part in loaded.model.parameters())


def test_the_page_is_one_small_file_that_names_no_other(run, capsys):
    assert main(["explain", str(run), "--prompt", PROMPT, "--device", "cpu"]) == 0
    told = capsys.readouterr()
    path = Path(told.out.strip())
    assert told.err.strip() == f"open it in a browser: {path.resolve().as_uri()}"
    assert path == run / "plots" / "explain.html"
    page = path.read_text(encoding="utf-8")
    outside = set(re.findall(r"""(?:https?:)?//[\w.]+|(?:src|href|url)\s*[=(]\s*[^\s#]+""", page))
    assert outside == {"http://www.w3.org"}, "the only URL is the name of SVG's namespace"
    assert page.count("<h2") == page.count('class="equation"') == 6
    assert "{{" not in page


def test_a_browser_without_light_dark_gets_the_light_colours():
    style = read("page.css")
    colours = re.findall(r"(--[\w-]+): light-dark\((#\w+), ", style)
    fallback = style.partition("@supports not (color: light-dark(red, red))")[2].partition("}")[0]
    assert re.findall(r"(--[\w-]+): (#\w+);", fallback) == colours != []


@pytest.mark.parametrize("softmaxes", [1, 3])
def test_the_page_knows_how_many_softmaxes_its_equation_is_about(softmaxes: int):
    model, tokenizer = byte_model(num_layers=1, num_heads=1, softmaxes=softmaxes)
    page = make_page(explain(model, tokenizer, tokenizer.encode("some text")))
    assert embedded(page)["model"]["softmaxes"] == softmaxes and 'id="mixture"' in page


def test_64_tokens_of_6_layers_with_6_heads_stay_under_2_megabytes():
    model, tokenizer = byte_model()
    page = make_page(explain(model, tokenizer, tokenizer.encode("x" * 63 + "é")[:64]))
    print(f"64 tokens, 6 layers, 6 heads: {len(page.encode()):,} bytes")
    assert len(page.encode()) < 2_000_000


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "{{data}} \\1 \u2028 é\x00"])
def test_a_prompt_stays_text_in_the_page(text: str):
    model, tokenizer = byte_model(num_layers=1, num_heads=1)
    page = make_page(explain(model, tokenizer, tokenizer.encode(text), run="</title><b>"))
    found = embedded(page)
    assert found["ids"] == tokenizer.encode(text)
    assert "<b>" not in page
    assert page.count("</script") == 3 and "<!--" not in page


def test_packed_attention_is_within_half_a_step():
    model, tokenizer = byte_model(num_layers=2, num_heads=3)
    whole = explain(model, tokenizer, tokenizer.encode("some text"))
    bytes_ = np.frombuffer(base64.b64decode(embedded(make_page(whole))["attention"]), np.uint8)
    flat = [weight for layer in whole["attention"] for head in layer for row in head for weight in row]
    assert len(bytes_) == len(flat) == 2 * 3 * 9 * 10 // 2
    assert np.abs(bytes_ / 255 - flat).max() <= 0.5 / 255 + 1e-9


def test_tokens_that_are_not_text_are_shown_by_bytes_or_by_name():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é ") + ([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
    assert token_texts(tokenizer, ids)[:3] == ["<c3>", "<a9>", " "]
    assert token_texts(tokenizer, ids)[3:] == (["<|endoftext|>"] if tokenizer.eos_id is not None else [])


SHAPES = {
    "modern, grouped": {"num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "embed_dim": 32},
    "gpt2": {"shape": "gpt2", "num_heads": 2, "num_layers": 2, "embed_dim": 32},
    "bigrams": {"bigrams": 300, "num_heads": 2, "num_layers": 2, "embed_dim": 32},
    "gpt2, bigrams": {"shape": "gpt2", "bigrams": 300, "num_heads": 2, "num_layers": 2, "embed_dim": 32},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_walk_adds_up_step_by_step(name: str):
    model, tokenizer = byte_model(**SHAPES[name])
    ids = tokenizer.encode("the cat sat")
    embedding, *blocks, head = steps(model, tokenizer, ids, 4)  # token 4 of 5; all tokens are in the table
    *parts, stream = (step.values.float() for step in embedding.steps)
    if parts:
        torch.testing.assert_close(sum(parts), stream, atol=1e-5, rtol=1e-5)
    assert [step.name for step in embedding.steps].count("bigram") == ("bigrams" in SHAPES[name])
    for block in blocks:
        by_name = [(step.name, step.values.float()) for step in block.steps]
        outs = [values for name, values in by_name if name == "out"]
        after = [values for name, values in by_name if name == "x"]
        torch.testing.assert_close(stream + outs[0], after[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after[0] + outs[1], after[1], atol=1e-4, rtol=1e-4)
        stream = after[1]
        values = dict(by_name)
        shared = values["q"].shape[0] // values["k"].shape[0]
        own = next(look for look in block.attended if look.position == 4)
        product = float(values["q"][block.head] @ values["k"][block.head // shared])
        assert own.product == pytest.approx(product, rel=1e-4)
        assert own.score == pytest.approx(product / model.config.head_size**0.5, rel=1e-4)
        ratio = np.exp(block.attended[0].score - block.attended[1].score)
        assert block.attended[0].weight / block.attended[1].weight == pytest.approx(ratio, rel=1e-3)
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, 4]
    torch.testing.assert_close(head.steps[-1].values, logits)
    best = logits.softmax(-1).max()
    assert head.guesses[0][2] == pytest.approx(float(best), rel=1e-5)


@pytest.mark.parametrize("width", [80, 100])
def test_the_walk_fits_the_terminal(width: int):
    model, tokenizer = byte_model(num_layers=2, num_heads=2)
    console = Console(width=width, record=True, file=io.StringIO())
    for part in walk(model, tokenizer, tokenizer.encode("the cat\nsat")):
        console.print(part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("Block") for line in lines) == 2
    with pytest.raises(UserError, match="0 to 2"):
        steps(model, tokenizer, [1, 2, 3], 3)


@pytest.mark.parametrize("picture", mostly_slow(["attention", "surprise", "lens", "stream"]))
def test_pictures_for_papers_are_whole(run, tmp_path, capsys, picture: str):
    svg, png = tmp_path / "a.svg", tmp_path / "new" / "a.png"
    argv = ["explain", str(run), "--prompt", PROMPT, "--device", "cpu", "--picture", picture]
    assert main([*argv, "--svg", str(svg), "--png", str(png)]) == 0
    assert capsys.readouterr().out.split() == [str(png), str(svg)]
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000


def test_a_picture_is_drawn_from_the_printed_json(tmp_path):
    model, tokenizer = byte_model(num_layers=1, num_heads=2, max_seq_len=16)
    found = explain(model, tokenizer, tokenizer.encode("a b"))
    told = json.loads(json.dumps(found))
    assert told == found
    told["texts"] = ["你", " b", "\x1c"]  # letters that matplotlib's font does not have are shown as codes
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that it cannot draw
        assert draw_explanation(told, tmp_path / "a.svg", "lens").is_file()
    assert [in_font(visible(text)) for text in told["texts"]] == ["U+4F60", "␣b", "U+001C"]


def test_a_timeline_goes_through_the_kept_checkpoints(tmp_path, capsys):
    run = make_base(tmp_path / "base")
    loaded = load_run(run, "cpu")
    later = GPT(loaded.model.config, seed=9)
    state = CheckpointState(model=later.config.model_dump())
    checkpoint.save(run / "checkpoints" / "step-00000007", {"model": later.weights()}, state)
    append_line(run / "samples.jsonl", {"step": 7, "prompt": "the", "text": " cat"})
    ids = loaded.tokenizer.encode(PROMPT)
    found = timeline(run, loaded.tokenizer, ids)
    assert tuple(found) == TIMELINE_KEYS
    assert [step["step"] for step in found["steps"]] == [1, 7]
    for step, model in zip(found["steps"], (loaded.model, later), strict=True):
        recording = record(model, ids)
        assert step["loss"] == pytest.approx(recording.loss.mean(), rel=1e-5)
        np.testing.assert_allclose(step["pattern"][1][0], recording.attention[1, 0, -1], atol=1e-4)
    assert main(["explain", str(run), "--over", "training", "--prompt", PROMPT, "--device", "cpu"]) == 0
    assert "␣cat" in capsys.readouterr().out
    with pytest.raises(RunError, match="no checkpoints"):
        timeline(tmp_path, loaded.tokenizer, ids)


@pytest.mark.slow  # trains a small run
def test_a_runs_own_data_is_surveyed_as_numbers_and_as_tables(tmp_path, capsys):
    trained, known = small_run(tmp_path), text()[1000:1060]
    capsys.readouterr()
    argv = ["explain", str(trained), "--over", "data", "--prompt", f"{known} 12", "--device", "cpu"]
    found = json_of(capsys, *argv)
    assert set(found) == set(SURVEY_KEYS) and found["run"] == "cats" and found["step"] > 0
    assert known in found["spans"][0]["text"] + found["spans"][-1]["text"]
    by_frequency = sum(row["loss"] * row["tokens"] for row in found["loss_by_frequency"]) / found["tokens"]
    assert by_frequency == pytest.approx(found["loss"], rel=1e-6)
    assert json_of(capsys, "eval", trained, "--device", "cpu")["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert f"{found['loss']:.4f}" in shown and f"{found['surprising'][0]['loss']:.2f}" in shown


def test_a_text_to_look_for_is_cleaned_as_the_training_text(run, tmp_path, capsys):
    folder, source, wanted = shutil.copytree(run, tmp_path / "run"), tmp_path / "a.txt", TEXT[20:80]
    source.write_text(TEXT)
    data = {"data.source": str(source), "data.clean": ["lower"], "data.cache_dir": str(tmp_path / "cache")}
    (folder / "config.yaml").write_text(dump_config(load_config(folder / "config.yaml", data)))
    found = json_of(capsys, "explain", folder, "--over", "data", "--prompt", wanted.upper(), "--device", "cpu")
    assert found["text"] == found["spans"][0]["text"] == wanted


def test_a_run_is_explained_from_inside_its_folder(run, monkeypatch, capsys):
    for inside, word in ((run, "."), (run / "checkpoints", "..")):
        monkeypatch.chdir(inside)
        assert json_of(capsys, "explain", word, "--prompt", "the", "--device", "cpu")["run"] == "base"


def test_the_last_part_of_a_long_prompt_is_read_and_the_cut_reported(run, capsys):
    argv = ["explain", str(run), "--json", "--device", "cpu", "--prompt"]
    assert main([*argv, "the cat" + " sat" * 20 + "Ω"]) == 0
    told = capsys.readouterr()
    assert "".join(json.loads(told.out)["texts"][:-1]) == ("the cat" + " sat" * 20)[-63:]
    assert "88 tokens; only the last 64 fit into the model's context" in told.err and "never saw: Ω" in told.err


def test_the_walk_is_not_broken_where_no_terminal_is(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["explain", str(run), "--prompt", "the cat", "--step-by-step", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "␣ is a space" in lines[1]
    made = [line for line in lines if re.match(r"x +x \+ out +\[\d+\]", line)]
    assert len(made) == 4 and all(re.search(r"… length=[\d.]+$", line) for line in made), "two lines for each block"


def test_the_commands_mistakes_are_user_errors(run, capsys):
    fails(capsys, ["explain", str(run), "--prompt", ""], "empty")
    fails(capsys, ["explain", str(run), "--png", "a.jpg"], "--png a.jpg", ".png")
    fails(capsys, ["explain", str(run), "--json", "--step-by-step"], "--json", "--step-by-step")
    fails(capsys, ["explain", str(run), "--over", "data", "--step-by-step"], "--step-by-step")
    fails(capsys, ["explain", str(run), "--step-by-step", "--position", "99", "--prompt", "the"], "0 to 2")
    fails(capsys, ["explain", str(run.parent / "bse")], "no such run", "base")
