"""Test model cards (the hub can read them, they say what the run knows) and adapters (peft loads them on the base)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_run import fails, small_run
from page_run import make_run
from tuned_run import TEXT, make_base, questions, tune

from minigpt import export_huggingface, export_peft, load_run
from minigpt.cli import main
from minigpt.export.card import model_card
from minigpt.tokenizers.chat_template import Template
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import TrainState, read_state


def card(folder: Path) -> tuple[dict, str]:
    """(front matter, text) of a card, as the hub reads it."""
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard.load(folder / "README.md")
    return read.data.to_dict(), read.text


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = small_run(tmp_path_factory.mktemp("runs"))
    assert main(["eval", str(run), "--save"]) == 0
    return run


@pytest.mark.slow
def test_a_card_tells_what_the_run_knows(scored: Path, tmp_path: Path) -> None:
    done = export_huggingface(load_run(scored, "cpu"), tmp_path / "cats-hf")
    front, text = card(done.path)
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    score = json.loads((scored / "eval.json").read_text())
    low, high = score["confidence_interval"]["bits_per_byte"]
    assert f"| bits per byte | {score['bits_per_byte']:.4f} (95 % in {low:.4f} to {high:.4f}) |" in text
    assert f"| bits per byte of 5-gram of bytes | {score['floors']['five_gram']:.4f} |" in text
    sha = json.loads((scored / "receipt.json").read_text())["data"]["sha256"]["train"]
    for line in (
        "# cats-hf", f"| parameters | {done.weights:,} |", "| data | `cats.txt` |", sha, "| context | 32 tokens |",
        'AutoModelForCausalLM.from_pretrained("cats-hf")', "whole validation split", "tokens in 40 steps |",
        "## Intended use", "## Limits", "it was not trained to answer",
    ):  # fmt: skip
        assert line in text, line
    assert str(scored.parent) not in (done.path / "README.md").read_text()


def test_a_card_of_a_run_that_knows_little(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a|b", kind="byte")
    Template().save(run)
    front, text = card(export_huggingface(load_run(run, "cpu")).path)
    assert "datasets" not in front
    assert "| training | not known here |" in text and "It was not scored." in text and "answers in chats" in text
    again = export_huggingface(load_run(tmp_path / "a|b-hf", "cpu"), tmp_path / "again")
    assert "| training | not known here |" in card(again.path)[1]


@pytest.mark.parametrize(("batches", "where"), [(None, "whole validation split"), (5, "at most 5 batches of the")])
def test_a_card_without_a_score_says_what_the_loss_is_of(tmp_path: Path, batches: int | None, where: str) -> None:
    run = load_run(make_base(tmp_path / "base"), "cpu")
    state = replace(read_state(run.checkpoint), train=TrainState(step=1, val_loss=1.5, eval_step=1))
    checkpoint.save(run.checkpoint, {"model": run.model.weights()}, state)
    train = run.config.train.model_copy(update={"eval_batches": batches})
    run = replace(run, config=run.config.model_copy(update={"train": train}))
    text = model_card(run, "qwen3", "fp32", "base-hf")
    assert f"1.5000 nats per token ({where}" in text and "; step 1)" in text
    pairs = replace(run, config=run.config.changed(finetune={"dpo_beta": 0.1}))
    assert "1.5000 nats per pair (" in model_card(pairs, "qwen3", "fp32", "base-hf")


@pytest.mark.parametrize(
    "shape", [{"shape": "gpt2"}, {"shape": "modern"}, {"shape": "modern", "qk_norm": False}], ids=str
)
def test_peft_loads_the_adapter_on_the_exported_base(shape: dict, tmp_path: Path, capsys) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = make_base(tmp_path / "base", **shape)
    tuned = tune(base, questions(tmp_path / "q.jsonl"), "lora", lora__rank=3, optimizer__learning_rate=0.05).path
    assert main(["export", str(base)]) == 0
    capsys.readouterr()
    assert main(["export", str(tuned), "--to", "peft"]) == 0
    assert "peft's logits equal minigpt's within" in capsys.readouterr().out
    folder = tmp_path / "lora-peft"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base-hf"
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base-hf")
    ids = torch.tensor([load_run(base, "cpu").tokenizer.encode(TEXT[:60])])
    with torch.inference_mode():
        without = plain(ids).logits
        found = peft.PeftModel.from_pretrained(plain, str(folder)).eval()(ids).logits
        expected = load_run(tuned, "cpu").model(ids)
    assert (found - expected).abs().max() < 1e-4 < (found - without).abs().max()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode(TEXT[:60], add_special_tokens=False) == ids[0].tolist()
    front, text = card(folder)
    assert (front["library_name"], front["base_model"]) == ("peft", "base-hf") and "LoRA of rank 3" in text


def test_what_is_no_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base")
    fails(capsys, ["export", str(base), "--to", "peft"], "has no adapter; --to hf writes a whole model")
    fails(capsys, ["export", str(base), "--to", "peft", "--precision", "int8"], "for --to peft choose fp32")
    run = tune(base, questions(tmp_path / "q.jsonl"), "lora", lora__rank=1, train__max_steps=2)
    loaded = load_run(run.path, "cpu")
    shutil.rmtree(base)
    with pytest.raises(Exception, match="whose base is gone"):
        export_peft(loaded)
    assert not (tmp_path / "lora-peft").exists()
