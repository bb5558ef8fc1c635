"""Test minigpt finetune, from the base to the run that is loaded again, with tiny models on the CPU."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cli_run import json_of
from page_run import save_run
from tuned_run import ANSWERS, SHAPE, TEXT, StopAt, last_tensors, make_base, questions, same, tune, write

from minigpt.cli import main
from minigpt.config import GenerationConfig, OptimizerConfig, load_config
from minigpt.config.finetune import LoRAConfig
from minigpt.errors import CheckpointError, ConfigError, DataError, RunError, StorageError, UserError
from minigpt.files import read_lines
from minigpt.generation import generate
from minigpt.generation.text import generate_text
from minigpt.layout import RunFolder
from minigpt.model import GPT
from minigpt.runs import train as assembly
from minigpt.runs.finetune import _keep_starts, fine_tune, finetune_config, merge_run, passes, tuned_defaults
from minigpt.runs.load import find_base, load_run
from minigpt.runs.plan import compare
from minigpt.runs.train import train
from minigpt.tokenizers import EOS, ByteTokenizer, Tokenizer
from minigpt.tokenizers.chat_template import Piece, encode, encode_question, load_template
from minigpt.tokenizers.sentencepiece import SentencePieceTokenizer
from minigpt.training import make_optimizer
from minigpt.training.finetune import Adapters, SavedAdapter
from minigpt.training.finetune.freeze import decay_by_layer, freeze
from minigpt.training.hooks.checkpoints import prune
from minigpt.weights import checkpoint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "runs" / "base")


@pytest.mark.parametrize("way", ["full", "adapter"])
def test_a_run_cut_off_is_resumed_by_the_same_command_to_the_same_bits(way: str, base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path / "q.jsonl")
    settings = {"model__dropout": 0.1, "train__eval_every": 3, "train__max_steps": 9, "train__micro_batch_size": 2}
    if way == "full":
        settings |= {"train__ema_decay": 0.9, "finetune__layer_decay": 0.8, "finetune__freeze": "blocks.0.norm?"}
    else:
        settings |= {"lora__rank": 3, "lora__dropout": 0.2, "finetune__pack": True, "finetune__seq_len": 40}
    whole = tune(base, data, "whole", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "Signals", StopAt)
        assert tune(base, data, "cut", **settings).state.step == 4
    again = tune(base, data, "cut", **settings)
    assert again.state.step == whole.state.step == 9
    assert same(last_tensors(again.path), last_tensors(whole.path))
    logged = [[line.get("loss") for line in read_lines(run.path / "metrics.jsonl")] for run in (whole, again)]
    assert logged[0] == logged[1]
    finished = (again.path / "metrics.jsonl").read_bytes()
    assert tune(base, data, "cut", **settings).state.finished
    assert (again.path / "metrics.jsonl").read_bytes() == finished


def test_the_first_loss_equals_transformers_from_the_same_directory(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    folder = tmp_path / "runs" / "hf"
    theirs.save_pretrained(folder)
    tokenizer = ByteTokenizer()
    tokenizer.save(folder)
    data = questions(tmp_path / "q.jsonl")
    run = tune(folder, data, train__batch_size=10, train__max_steps=1, finetune__val_source=str(data))
    ids = torch.full((10, 32), 0)
    labels = torch.full((10, 32), -100)
    for at, (ask, answer) in enumerate(ANSWERS):
        prompt, reply = tokenizer.encode(f"the {ask}"), [*tokenizer.encode(f" {answer}"), tokenizer.eos_id]
        ids[at, : len(prompt + reply)] = torch.tensor(prompt + reply)
        labels[at, len(prompt) : len(prompt + reply)] = torch.tensor(reply)
    with torch.no_grad():
        expected = theirs(input_ids=ids, labels=labels).loss.item()
    _, line = read_lines(run.path / "metrics.jsonl")
    print(f"loss of the answers before the first step: ours {line['loss']:.5f}, transformers {expected:.5f}")
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert line["val_loss"] < line["loss"]
    with torch.no_grad():
        logits = load_run(run.path, "cpu").model(ids)
    after = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    assert line["val_loss"] == pytest.approx(after, rel=1e-5)
    reply_bytes = sum(len(f" {answer}") for _, answer in ANSWERS)
    bits = line["val_loss"] / torch.tensor(2.0).log().item() * (reply_bytes + 10) / reply_bytes
    assert line["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(base: Path, tmp_path: Path) -> None:
    run = tune(
        base, questions(tmp_path / "q.jsonl"), finetune__freeze="embedding, blocks.0*", optimizer__weight_decay=0.5
    )
    before, after = (
        load_run(base, "cpu").model.weights(),
        load_run(run.path / "checkpoints/last", "cpu").model.weights(),
    )
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith(("embedding", "blocks.0."))}
    model = GPT(SHAPE.model_copy(update={"vocab_size": 9}))
    with pytest.raises(ConfigError, match=r"nothing is called 'blocks.7'; did you mean blocks\.\d"):
        freeze(model, ("blocks.7",))
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        freeze(model, ("*",))


def test_each_layer_learns_at_its_own_rate(base: Path, tmp_path: Path) -> None:
    model = GPT(SHAPE.model_copy(update={"vocab_size": 9, "tie_embeddings": False}))
    optimizer = make_optimizer(model, OptimizerConfig(kind="adamw", weight_decay=0.3))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decay_by_layer(model, optimizer, 0.5)
    rates = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"embedding": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "norm": 1.0, "head": 1.0}
    for name, parameter in model.named_parameters():
        assert rates[parameter] == next(rate for part, rate in expected.items() if name.startswith(part)), name
    assert {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == decays
    run = tune(
        base, questions(tmp_path / "q.jsonl"), finetune__layer_decay=0.5, optimizer__learning_rate=1e-2,
        train__max_steps=1, schedule__warmup_steps=0,
    )  # fmt: skip
    before, after = load_run(base, "cpu").model.weights(), load_run(run.path, "cpu").model.weights()
    for part, scale in {"embedding": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "norm": 1.0}.items():
        steps = [(after[name] - before[name]).abs().max().item() for name in before if name.startswith(part)]
        assert max(steps) == pytest.approx(1e-2 * scale, rel=1e-2), "each weight moves by the rate in Adam's first step"


def test_an_adapter_run_is_small_loads_generates_and_merges(base: Path, tmp_path: Path) -> None:
    run = tune(base, questions(tmp_path / "q.jsonl"), "small", lora__rank=2, train__max_steps=40, train__eval_every=40)
    step = run.path / "checkpoints" / "step-00000040"
    assert {path.name for path in step.iterdir()} == {
        "adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    whole = base / "checkpoints/step-00000001/model.safetensors"
    assert (step / "adapter.safetensors").stat().st_size < whole.stat().st_size / 3
    loaded, ids = load_run(step, "cpu"), torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids), run.model(ids), rtol=1e-4, atol=1e-4)
        assert (loaded.model(ids) - load_run(base, "cpu").model(ids)).abs().max() > 0.1
    served = Adapters(load_run(base, "cpu").model)
    served.load("small", run.path)
    with torch.no_grad():
        assert torch.equal(served.use("small")(ids), run.model(ids)), "an adapter's run can be used as an adapter"
    with pytest.raises(CheckpointError, match="holds an adapter, not a model"):
        GPT.from_pretrained(run.path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="merged: cannot be written"):
        patch.setattr(Tokenizer, "save", lambda *_: os.open(tmp_path / "no/such/folder", os.O_CREAT))
        merge_run(run.path, tmp_path / "runs" / "merged")
    assert not [path for path in (tmp_path / "runs").iterdir() if "merged" in path.name], "no unfinished run is left"
    merged = merge_run(run.path, tmp_path / "runs" / "merged")
    assert str(run.path) in (merged / "config.yaml").read_text().splitlines()[0]
    assert load_run(merged, "cpu").config.lora.rank == 0
    assert same(load_run(merged, "cpu").model.weights(), load_run(run.path, "cpu").model.weights())
    assert (step.parent / "best").is_file()
    with torch.no_grad():
        greedy = generate_text(loaded.model, "the cat", loaded.tokenizer, temperature=0, max_new_tokens=12)
    assert greedy == generate_text(
        load_run(merged, "cpu").model, "the cat", loaded.tokenizer, temperature=0, max_new_tokens=12
    )
    with pytest.raises(RunError, match="is there already"):
        merge_run(run.path, merged)
    chained = tune(run.path, questions(tmp_path / "q.jsonl"), "chained", lora__rank=2)
    for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
        assert load_run(chained.path, device).model.embedding.weight.device.type == device
    receipt = json.loads((chained.path / "receipt.json").read_text())
    assert receipt["base"]["path"] == str((step.parent / checkpoint.resolve(run.path).name).resolve())


def test_the_speed_of_an_adapter_counts_no_gradients_of_frozen_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, work = questions(tmp_path / "q.jsonl"), []

    class Seen(assembly.Metrics):
        def __init__(self, *words: Any, **named: Any) -> None:
            work.append(words[2](1))
            super().__init__(*words, **named)

    monkeypatch.setattr(assembly, "Metrics", Seen)
    for rank in (0, 2):
        tune(base, data, f"rank-{rank}", lora__rank=rank, train__max_steps=1)
    assert 2 / 3 < work[1] / work[0] < 0.72


def test_an_adapter_finds_a_base_that_moved_with_it_and_refuses_another(base: Path, tmp_path: Path) -> None:
    run = tune(base, questions(tmp_path / "q.jsonl"), "small", lora__rank=2)
    weights = load_run(run.path, "cpu").model.weights()
    moved = tmp_path / "moved"
    shutil.move(str(base.parent), moved)
    assert same(load_run(moved / "small", "cpu").model.weights(), weights)
    shutil.rmtree(moved / "base")
    with pytest.raises(CheckpointError, match="base is gone; put it back at"):
        load_run(moved / "small", "cpu")
    make_base(moved / "base", init_std=0.1)
    with pytest.raises(CheckpointError, match="an adapter for another base"):
        load_run(moved / "small", "cpu")


def test_an_adapter_from_windows_finds_its_base_here(tmp_path: Path) -> None:
    step = tmp_path / "base" / "checkpoints" / "step-00000004"
    step.mkdir(parents=True)
    for base in (r"C:\Users\ada\runs\base\checkpoints\step-00000004", "runs/base/checkpoints/step-00000004"):
        assert find_base(tmp_path / "small", SavedAdapter(tmp_path, LoRAConfig(), {}, base, "")) == step


def test_an_adapter_is_never_its_own_base(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "qwen"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    for base in ("/models/qwen", "/elsewhere/runs/qwen/checkpoints/step-00000004"):
        with pytest.raises(CheckpointError, match="base is gone"):
            find_base(run, SavedAdapter(run, LoRAConfig(), {}, base, ""))
    (run / "config.yaml").touch()
    (inside := run / "adapters" / "pirate").mkdir(parents=True)  # but its base may be the run that holds it
    assert find_base(inside, SavedAdapter(inside, LoRAConfig(), {}, "/models/qwen", "")) == run
    with pytest.raises(CheckpointError, match="base is gone"):
        find_base(run / "checkpoints" / "step-00000004", SavedAdapter(run, LoRAConfig(), {}, "/models/qwen", ""))


@pytest.mark.parametrize("base", ["base/checkpoints/step-00000004", "sweep/rank=2/checkpoints/step-00000004", "qwen"])
@pytest.mark.parametrize("run", ["small", "sweep/small"])
def test_an_adapter_of_a_sweep_moves_together_with_its_base(base: str, run: str, tmp_path: Path) -> None:
    (tmp_path / base).mkdir(parents=True)
    saved = SavedAdapter(tmp_path, LoRAConfig(), {}, f"/elsewhere/runs/{base}", "")
    assert find_base(tmp_path / run, saved) == tmp_path / base


def test_a_base_that_trains_on_keeps_the_checkpoint_that_an_adapter_needs(base: Path, tmp_path: Path) -> None:
    run, folder = tune(base, questions(tmp_path / "q.jsonl"), "small", lora__rank=2), base / "checkpoints"
    before = load_run(run.path, "cpu").model.weights()
    for step in (2, 3):
        shutil.copytree(folder / "step-00000001", folder / f"step-0000000{step}")
    for name in ("best", "last"):
        checkpoint.point(folder, name, folder / "step-00000003")
    prune(folder, 1)
    assert [path.name for path in RunFolder(base).steps()] == ["step-00000001", "step-00000003"]
    assert same(load_run(run.path, "cpu").model.weights(), before)


def test_a_base_that_saves_other_weights_of_the_same_step_keeps_those_that_an_adapter_needs(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(base, questions(tmp_path / "q.jsonl"), "small", lora__rank=2)
    before, step = load_run(run.path, "cpu").model.weights(), base / "checkpoints" / "step-00000001"
    saved = checkpoint.load(step)
    checkpoint.save(step, saved.tensors, saved.state)
    assert not [*step.parent.glob("needed-*")], "the same weights"
    for factor in (2, 3):
        doubled = {name: factor * tensor for name, tensor in saved.tensors["model"].items()}
        checkpoint.save(step, {**saved.tensors, "model": doubled}, saved.state)
    assert "are kept in needed-step-00000001" in capsys.readouterr().err.replace("\n", " ")
    assert same(load_run(run.path, "cpu").model.weights(), before)
    assert RunFolder(base).steps() == [step], "it is none of its run's own checkpoints"


def test_a_base_that_was_deleted_meanwhile_or_cannot_be_marked_is_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = base / "checkpoints" / "step-00000001"
    (step.parent / f"{step.name}.needed").mkdir()  # so it cannot be written
    _keep_starts({"base": {"path": str(step)}}, tmp_path / "small")
    assert f"keep {step}: small needs it" in capsys.readouterr().err.replace("\n", " ")
    shutil.rmtree(step)
    with pytest.raises(RunError, match="has just deleted it; try again"):
        _keep_starts({"base": {"path": str(step)}}, tmp_path / "small")


def test_an_older_checkpoint_has_the_base_with_which_its_run_went_on(tmp_path: Path) -> None:
    receipt = {"data": {"sha256": {}}, "base": {"path": str(tmp_path / "kept"), "sha256": ""}}
    for name in ("kept", "base", "small"):
        (tmp_path / name).mkdir()
    (tmp_path / "small" / "receipt.json").write_text(json.dumps(receipt))
    saved = SavedAdapter(tmp_path, LoRAConfig(), {}, str(tmp_path / "base"), "")
    assert find_base(tmp_path / "small", saved) == tmp_path / "kept", "another model may be at the old path"


def test_a_training_from_scratch_is_not_continued_as_a_fine_tuning() -> None:
    fresh, tuned, moved = (load_config(None, {"finetune.base": base}) for base in (None, "runs/a", "runs/b"))
    assert compare(fresh, tuned, strict=False) == compare(tuned, fresh, strict=False) == ["finetune.base"]
    assert compare(tuned, moved, strict=False) == []


def test_a_chat_tuning_learns_ten_questions_to_exact_answers(tmp_path: Path) -> None:
    base = make_base(tmp_path / "runs" / "base", max_seq_len=80)

    def chat(ask: str, answer: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"the {ask}?"}, {"role": "assistant", "content": answer},
            {"role": "user", "content": "and who?"}, {"role": "assistant", "content": f"an old {ask}"},
        ]  # fmt: skip

    data = write(tmp_path / "chat.jsonl", [{"messages": chat(*pair)} for pair in ANSWERS])
    run = tune(
        base, data, "chat", finetune__val_source=str(data), train__max_steps=80, train__batch_size=10,
        optimizer__learning_rate=8e-3, train__eval_every=40, train__sample_every=80, train__save_every=80,
    )  # fmt: skip
    loaded, template = load_run(run.path, "cpu"), load_template(run.path)
    eos, right = loaded.tokenizer.eos_id, 0
    for pair in ANSWERS:
        messages = chat(*pair)
        for turn in (1, 3):
            ids = torch.tensor([encode_question(messages[:turn], template, loaded.tokenizer)])
            greedy = GenerationConfig(temperature=0, max_new_tokens=20)
            reply = [int(token) for token in generate(loaded.model, ids, greedy, eos)]
            right += loaded.tokenizer.decode(reply).strip() == messages[turn]["content"] and reply[-1] == eos
    print(f"chat: {right} of 20 replies to the letter, ended by themselves; val_loss {run.state.best_loss:.4f}")
    assert right == 20
    samples = read_lines(run.path / "samples.jsonl")
    assert samples[-1]["prompt"] == "User: the fox?\nAssistant:"
    assert samples[-1]["text"].strip() == "red"
    again = tune(run.path, questions(tmp_path / "q.jsonl"), "more")
    assert load_template(again.path) == template, "a chat's template is passed on"


def test_text_is_learned_as_train_learns_it_with_the_bases_tokenizer(base: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text(TEXT)
    run = tune(base, tmp_path / "more.txt", train__max_steps=30, finetune__seq_len=32, optimizer__learning_rate=5e-3)
    losses = [line["loss"] for line in read_lines(run.path / "metrics.jsonl")[1:]]
    print(f"text: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    assert losses[-1] < losses[0] - 1
    assert run.tokenizer.fingerprint == load_run(base, "cpu").tokenizer.fingerprint
    with pytest.raises(RunError, match="exists with another"):
        tune(base, tmp_path / "more.txt", train__seed=1)
    (tmp_path / "short.txt").write_text("the cat sat on a mat")
    with pytest.raises(DataError, match=r"set --finetune\.seq-len"):
        tune(base, tmp_path / "short.txt", "short")


def test_an_imported_model_of_llamas_tokenizer_is_trained_further(tmp_path: Path) -> None:
    letters = sorted(set(TEXT) - {"\n"})
    texts = ["", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = SentencePieceTokenizer(texts, {}, {EOS: 0})
    base = save_run(tmp_path / "llama", tokenizer, {"embed_dim": 32, "num_heads": 2}, {})
    run = tune(base, questions(tmp_path / "q.jsonl"), train__max_steps=1)
    assert load_run(run.path, "cpu").tokenizer.kind == "sentencepiece"
    ids, learned = encode([Piece("the cat"), Piece(" mew", learned=True, ends=True)], tokenizer)
    assert tokenizer.decode(ids) == " the cat mew"  # the text gets one space in front, the answer none
    assert learned.tolist() == [False] * 8 + [True] * 5
    with pytest.raises(ConfigError, match="the base has sentencepiece"):
        tune(base, tmp_path / "q.jsonl", "char", tokenizer__kind="char")


def test_the_sample_prompt_and_stops_are_cleaned_as_the_text_is(base: Path) -> None:
    given = {"data.source": "a.txt", "data.clean": ["lower"], "generation.stop": ["END"], "train.sample_prompt": "ABC"}
    config = finetune_config(load_run(base, "cpu"), given)
    assert (config.generation.stop, config.train.sample_prompt) == (("end",), "abc")


def test_defaults_suit_fine_tuning_and_what_is_given_wins(base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path / "q.jsonl")
    (tmp_path / "more.txt").write_text(TEXT)
    unbounded = {"train__max_steps": None, "train__batch_size": 16}
    fresh = load_config(None, {"model.embed_dim": 32, "optimizer.kind": "adamw"}).optimizer.learning_rate
    full = tune(base, tmp_path / "more.txt", "full", **unbounded).config
    assert (full.train.max_epochs, full.train.max_steps, full.optimizer.kind) == (3, None, "adamw")
    assert full.optimizer.learning_rate == pytest.approx(fresh / 10)
    skill = tune(base, data, "skill", **unbounded).config
    assert (skill.train.max_epochs, skill.train.max_steps) == (30, None), "more passes, as there are ten records"
    assert skill.optimizer.learning_rate == pytest.approx(fresh), "answering is new to a small model"
    assert [passes(steps) for steps in (0.5, 225, 300, 10_000)] == [30, 6, 4, 3]
    wide = tuned_defaults(load_run(make_base(base.parent / "wide", embed_dim=1024), "cpu"), {"data.source": str(data)})
    assert wide["optimizer.learning_rate"] == pytest.approx(fresh / 10 * (32 / 1024) ** 0.5, rel=0.1)
    assert wide["train.max_epochs"] == 3, "a wide model is assumed to be pretrained"
    adapter = tune(base, data, "adapter", lora__rank=1).config
    assert adapter.optimizer.learning_rate == pytest.approx(fresh)
    assert adapter.schedule.warmup_steps == 1, "a fifth of six steps"
    given = tune(base, data, "given", optimizer__kind="muon", schedule__warmup_steps=4, optimizer__learning_rate=1e-5)
    assert (given.config.optimizer.kind, given.config.optimizer.learning_rate) == ("muon", 1e-5)
    assert given.config.schedule.warmup_steps == 4
    again = fine_tune(recipe=str(given.path / "config.yaml"), name="again", quiet=True)
    assert same(last_tensors(again.path), last_tensors(given.path)), "config.yaml repeats the run"
    recipe, flags = str(given.path / "config.yaml"), {"optimizer.kind": "adamw"}
    other = fine_tune(recipe=recipe, settings=flags, name="other", quiet=True)
    assert other.config.optimizer.learning_rate == pytest.approx(fresh), "muon's rate is not adamw's"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model__embed_dim": 64}, "model.embed_dim: the base has 32"),
        ({"tokenizer__kind": "byte"}, "tokenizer.kind: the base has char"),
        ({"finetune__seq_len": 65}, "finetune.seq_len: the model reads 64 tokens at most"),
        ({"lora__rank": 2, "optimizer__kind": "muon"}, "muon goes with neither"),
        ({"lora__rank": 2, "train__ema_decay": 0.9}, "train.ema_decay: an adapter"),
        ({"lora__rank": 2, "train__average_last": 0.2}, "train.average_last: an adapter"),
        ({"lora__rank": 2, "train__precision": "fp8"}, "train.precision: fp8 does not go with lora"),
        ({"train__masked_inputs": 0.5, "finetune__dpo_beta": 0.1}, "train.masked_inputs: goes with neither"),
        ({"lora__rank": 2, "lora__targets": "nose"}, "no linear layer is called 'nose'"),
        ({"lora__targets": "head"}, "lora: rank is 0, so there is no adapter"),
        ({"finetune__dpo_beta": 0.1, "finetune__pack": True}, "pairs go with neither"),
        ({"finetune__teacher_weight": 0.1}, "finetune.teacher: name the teacher"),
        ({"finetune__layer_decay": 1.5}, "finetune.layer_decay"),
        ({"schedule__context_warmup": 0.5}, "schedule.context_warmup: a row must be read whole here"),
        ({"finetune__bsae": "x"}, "finetune.bsae: no such setting; did you mean base"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, problem: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        tune(base, questions(tmp_path / "q.jsonl"), "none", **settings)
    assert not (base.parent / "none").exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"finetune__teacher": ("runs/none",)}, "no such run"),
        ({"finetune__freeze": ("nothing",)}, "nothing"),
        ({"lora__rank": 2, "lora__targets": "nose"}, "no linear layer is called 'nose'"),
        ({"finetune__pack": True, "finetune__dpo_beta": 0.0}, "finetune.pack: is for records .*; leave it out$"),
    ],
)
def test_what_a_model_lacks_is_said_before_a_text_is_encoded(
    settings: dict, problem: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text := tmp_path / "my.txt").write_text(TEXT)
    monkeypatch.setattr("minigpt.runs.finetune.text_feed", lambda *_: pytest.fail("the text was encoded"))
    with pytest.raises(UserError, match=problem):
        tune(base, text, "none", **settings)
    assert not (base.parent / "none").exists()


def test_a_changed_base_or_other_records_are_not_resumed(base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path / "q.jsonl")
    tune(base, data)
    tune(base, data, "again")
    kept = shutil.copytree(base, base.with_name("kept"))
    shutil.rmtree(base)
    make_base(base, seed=4)
    with pytest.raises(RunError, match=r"began with a base of other weights than .* and --resume"):
        tune(base, data)
    assert tune(kept, data, "again", resume=True, train__max_steps=7).state.step == 7
    shutil.rmtree(base)
    make_base(base)
    write(data, [{"prompt": "the cat", "completion": f" {i}"} for i in range(5)])
    with pytest.raises(RunError, match=r"trained on another text|another train\.sample_prompt"):
        tune(base, data)


def test_train_and_eval_say_what_is_finetunings(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora: train starts from scratch; minigpt finetune"):
        train(load_config(None, {"lora.rank": 4}), quiet=True)
    run = tune(base, questions(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match="holds records, not a text"):
        load_run(run.path, "cpu").prepared()


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = questions(tmp_path / "q.jsonl")
    flags = (
        f"--train.device cpu --train.precision fp32 --logging.plots false --logging.runs-dir {base.parent} --name c "
        "--train.max-steps 3 --finetune.freeze embedding,blocks.0* --finetune.pack --lora.rank 2 --lora.targets head"
    ).split()
    assert main(["finetune", str(base), str(data), *flags]) == 2
    assert "lora.targets: the head is the embedding here" in capsys.readouterr().err
    answer = json_of(capsys, "finetune", base, data, *flags[:-2])
    assert (answer["run"], answer["step"]) == (str(base.parent / "c"), 3)
    assert load_run(base.parent / "c").config.finetune.freeze == ("embedding", "blocks.0*")
    out = tmp_path / "whole"
    assert main(["finetune", "--merge", str(base.parent / "c"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    for argv, problem in {
        ("finetune",): "name a base and the data",
        ("finetune", "a", "b", "c"): "c: one base, one data source",
        ("finetune", "--merge", "x"): "belong together",
        ("finetune", str(tmp_path / "no"), str(data)): "no such run",
        ("finetune", str(base), str(data), "--lora.rnk", "3"): "--lora.rnk: no such setting; did you mean --lora.rank",
        ("train", str(data), "--layer-decay", "0.5"): "no such option: --layer-decay",
    }.items():
        assert main(list(argv)) == 2
        err = capsys.readouterr().err
        assert problem in err, err


def test_a_new_length_replaces_that_of_the_recipe(base: Path, tmp_path: Path) -> None:
    first = tune(base, questions(tmp_path / "q.jsonl"), train__max_steps=None, train__max_epochs=1)
    recipe, settings = str(first.path / "config.yaml"), {"train.max_steps": first.state.step + 2}
    longer = fine_tune(settings=settings, name="tuned", resume=True, recipe=recipe, quiet=True)
    assert (longer.path, longer.state.step) == (first.path, first.state.step + 2)


@pytest.mark.parametrize("name", ["mine", None])
def test_settings_left_out_with_resume_are_the_runs_own(name: str | None, base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path / "q.jsonl")
    first = tune(base, data, name, lora__rank=3, optimizer__learning_rate=0.005)
    settings = {"train.max_steps": 8, "logging.runs_dir": str(base.parent)}
    longer = fine_tune(base, data, settings, name=name, resume=True, quiet=True)
    assert (longer.path, longer.state.step) == (first.path, 8)
    assert longer.config == first.config.changed(train={"max_steps": 8})
