"""Test fine-tuning with a loss other than the next-token loss: a teacher's, and preferences (DPO)."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from mostly_slow import mostly_slow
from tuned_run import ANSWERS, SHAPE, TEXT, StopAt, last_tensors, make_base, questions, same, tune, write

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, ConfigError, DataError
from minigpt.files import read_lines
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token
from minigpt.runs import train as assembly
from minigpt.runs.feeds import record_row
from minigpt.runs.finetune import FineTuning, finetune_config
from minigpt.runs.load import load_run
from minigpt.tokenizers import CharTokenizer
from minigpt.tokenizers.chat_template import Template
from minigpt.training.finetune.distill import Distillation
from minigpt.training.finetune.preference import Pair, Preference, answer_log_probability, fit_pair, stack_pairs
from minigpt.training.finetune.records import Record
from minigpt.training.finetune.row_batches import Row


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "runs" / "base")


def test_distilling_equals_its_definition_and_nears_the_teacher(base: Path, tmp_path: Path) -> None:
    shape = ModelConfig(**SHAPE.model_dump() | {"vocab_size": 20, "num_layers": 1})
    model, teacher = GPT(shape, seed=1), GPT(shape, seed=2)
    tokens = torch.arange(20).reshape(2, 10)
    targets = tokens.roll(-1).masked_fill(tokens % 3 == 0, -100)
    for weight, temperature in ((0.3, 2.0), (1.0, 1.0)):
        ours = Distillation([teacher], weight, temperature)(model, tokens, targets, valid=5)
        expected = 0.0
        for row, column in (targets != -100).nonzero().tolist():  # one position at a time
            p, q = ((m(tokens)[row, column] / temperature).softmax(-1) for m in (teacher, model))
            kl = (p * (p.log() - q.log())).sum() * temperature**2
            nll = -model(tokens)[row, column].log_softmax(-1)[targets[row, column]]
            expected = expected + ((1 - weight) * nll + weight * kl) / 5
        torch.testing.assert_close(ours, expected)
    ours.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.embedding.weight.grad.abs().sum() > 0
    master = make_base(tmp_path / "runs" / "master", seed=9)
    (tmp_path / "more.txt").write_text(TEXT)
    run = tune(
        base, tmp_path / "more.txt", finetune__teacher=str(master), finetune__teacher_weight=1.0, train__max_steps=60,
        finetune__seq_len=16, optimizer__learning_rate=5e-3, train__batch_size=16,
    )  # fmt: skip
    losses = [line["loss"] for line in read_lines(run.path / "metrics.jsonl")[1:]]
    print(f"KL to a random teacher: {losses[0]:.2f} -> {losses[-1]:.2f} nats")
    assert losses[-1] < losses[0] / 2
    assert json.loads((run.path / "receipt.json").read_text())["teacher"]["path"].startswith(str(master))
    short = make_base(tmp_path / "runs" / "short", max_seq_len=32)
    with pytest.raises(ConfigError, match=r"reads 32 tokens at most; set --finetune\.seq-len 32"):
        tune(base, tmp_path / "more.txt", "x", finetune__teacher=str(short))
    CharTokenizer.from_texts([TEXT.upper()]).save(short)
    with pytest.raises((ConfigError, CheckpointError), match=r"another tokenizer|the tokenizer has"):
        tune(base, tmp_path / "more.txt", "x", finetune__teacher=str(short))


def test_the_work_of_a_step_counts_the_other_models_and_the_rows_that_are_read(base: Path, tmp_path: Path) -> None:
    start, teacher = load_run(base, "cpu"), make_base(tmp_path / "runs" / "teacher", seed=9, embed_dim=64)
    shape, large = (load_run(path, "cpu").model.config for path in (base, teacher))
    given = {"data.source": str(questions(tmp_path / "q.jsonl"))}

    def work(**settings: object) -> float:
        config = finetune_config(start, given | {name.replace("__", "."): value for name, value in settings.items()})
        return assembly.step_flops(config, FineTuning(config, start, None, ""), 1)

    def once(model: ModelConfig, length: int = 64) -> float:
        return flops_per_token(model.model_copy(update={"max_seq_len": length}), training=False)

    assert work() == 3 * once(shape)
    assert work(finetune__seq_len=16) == 3 * once(shape, 16)
    assert work(finetune__teacher=str(teacher)) == 3 * once(shape) + once(large)
    assert work(finetune__dpo_beta=0.1) == 4 * once(shape)
    assert 2 * once(shape) < work(lora__rank=2) < 2.2 * once(shape)
    assert work(train__masked_inputs=0.5) == 6 * once(shape)


def test_preferring_is_dpos_definition_and_starts_at_log_two() -> None:
    shape = ModelConfig(**SHAPE.model_dump() | {"vocab_size": 20, "num_layers": 1})
    model, reference = GPT(shape, seed=1), GPT(shape, seed=2)
    rows = [Row(torch.arange(n).numpy() * 7 % 20, torch.arange(n).numpy() >= 3) for n in (6, 9, 5, 12)]
    batch, labels = stack_pairs([Pair(rows[0], rows[1]), Pair(rows[2], rows[3])], 16)
    assert batch.shape == (2, 2, 2, 12)
    gains = []
    for row in rows:  # one token at a time
        ids = torch.tensor(row.ids)[None]
        gain = 0.0
        for place in range(3, len(row.ids)):
            for sign, net in ((1, model), (-1, reference)):
                gain = gain + sign * net(ids[:, :place])[0, -1].log_softmax(-1)[ids[0, place]]
        gains.append(gain)
    margins = torch.stack([0.3 * (gains[0] - gains[1]), 0.3 * (gains[2] - gains[3])])
    ours = Preference(reference, 0.3)(model, batch, labels, valid=2)
    torch.testing.assert_close(ours, -margins.sigmoid().log().mean(), rtol=1e-4, atol=1e-5)
    smooth = Preference(reference, 0.3)(model, batch, labels, valid=2, label_smoothing=0.1)
    expected = -(0.9 * margins.sigmoid().log() + 0.1 * (-margins).sigmoid().log()).mean()
    torch.testing.assert_close(smooth, expected, rtol=1e-4, atol=1e-5)
    same_model = Preference(copy.deepcopy(model), 0.3)
    assert same_model(model, batch, labels, valid=2).item() == pytest.approx(math.log(2))
    same_model(model, batch, labels, valid=2).backward()
    assert all(parameter.grad is None for parameter in same_model.reference.parameters())


def test_both_answers_of_a_pair_have_the_same_prompt_after_a_cut() -> None:
    def row(prompt: int, answer: int) -> Row:
        ids = torch.arange(prompt + answer).numpy()
        return Row(ids, ids >= prompt)

    for answer, prompt_left, sizes in ((2, 5, (7, 7)), (6, 3, (5, 9)), (12, 0, (2, 9))):
        pair = fit_pair(row(5, 2), row(5, answer), 9)
        prompts = [side.ids[side.ids < 5].tolist() for side in pair]
        assert prompts[0] == prompts[1] == list(range(5 - prompt_left, 5))
        assert tuple(len(side.ids) for side in pair) == sizes
        assert not any(side.learned[0] for side in pair)


@pytest.mark.parametrize("rank", mostly_slow([0, 4]))
def test_dpo_prefers_what_was_chosen_and_resumes_to_the_same_bits(rank: int, base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"the {ask}", "chosen": f" {answer}", "rejected": " dog"} for ask, answer in ANSWERS]
    data = write(tmp_path / "p.jsonl", rows)
    settings = {
        "finetune__dpo_beta": 0.5, "lora__rank": rank, "train__max_steps": 24, "train__eval_every": 8,
        "train__micro_batch_size": 2, "finetune__val_source": str(data), "train__ema_decay": 0.0 if rank else 0.5,
        "optimizer__learning_rate": 5e-3,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "Signals", StopAt)
        tune(base, data, "dpo", **settings)
    run = tune(base, data, "dpo", **settings)
    whole = tune(base, data, "whole", **settings)
    assert same(last_tensors(run.path), last_tensors(whole.path))
    lines = read_lines(run.path / "metrics.jsonl")
    assert lines[0]["val_loss"] == pytest.approx(math.log(2)) == lines[1]["loss"]
    assert all("bits_per_byte" not in line for line in lines)
    print(f"DPO, rank {rank}: validation loss {run.state.best_loss:.3f}, from {math.log(2):.3f}")
    assert run.state.best_loss < 0.1
    tokenizer = run.tokenizer
    nets = [load_run(path, "cpu").model for path in (base, run.path)]
    for row in rows[:4]:
        gaps = []
        for net in nets:
            pair = Pair(
                *(
                    record_row(Record("", "preference", row), Template(), tokenizer, side)
                    for side in ("chosen", "rejected")
                )
            )
            batch, _ = stack_pairs([pair], 64)
            inputs, targets = batch.flatten(0, 1).unbind(1)
            chosen, rejected = answer_log_probability(net, inputs, targets)
            gaps.append((chosen - rejected).item())
        assert gaps[1] > gaps[0] + 2
    with pytest.raises(DataError, match="is a completion, but DPO needs prompt, chosen and rejected"):
        tune(base, questions(tmp_path / "q.jsonl"), "x", finetune__dpo_beta=0.1)
    chosen_only = tune(base, data, "chosen")
    assert chosen_only.state.val_loss > 0.7, "without beta the chosen answers are learned as completions"
