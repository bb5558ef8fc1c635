"""Test that scores are exact over the whole text for every window, and agree with each other and with other tools."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typed_report import check

from minigpt.cli import eval as command
from minigpt.config import DataConfig, ModelConfig
from minigpt.data import eval_batches, prepare
from minigpt.errors import CheckpointError, DataError, UserError
from minigpt.evals import REPORT_KEYS, Score, TokenText, bootstrap, compute_floors, evaluate, evaluate_run, report
from minigpt.evals.report import Report
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.tokenizers import ByteTokenizer, CharTokenizer, safe_cut
from minigpt.training import step, validation_loss

CPU = Runtime(torch.device("cpu"), "fp32")
V = 7


class Memory(nn.Module):
    """Predicts from the sum of all tokens it sees, so its prediction depends on where its window starts."""

    def __init__(self, vocab_size: int = V, seed: int = 0):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, max_seq_len=64)
        self.table = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[self.seen(tokens) % self.config.vocab_size]

    def seen(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.cumsum(1)


class Bigram(Memory):
    """Predicts from the last token only, so its loss is one sum over the text, for all windows."""

    def seen(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def by_hand(model: Memory, tokens: np.ndarray, context: int, stride: int) -> list[float]:
    """-ln p of tokens 1, 2, ...: each in the first window that holds it, from what that window has before it."""
    log_p = torch.log_softmax(model.table.double(), -1).numpy()
    nats = []
    for place in range(1, len(tokens)):
        start = max(0, -(-(place - context) // stride) * stride)
        row = tokens[start:place].sum() if type(model) is Memory else tokens[place - 1]
        nats.append(-log_p[row % V, tokens[place]])
    return nats


def some_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(V, size=count).astype(np.uint16)


windows = st.integers(1, 12).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


@settings(max_examples=80)
@given(st.integers(2, 70), windows, st.integers(1, 5), st.integers(0, 99))
def test_every_token_is_scored_once_from_the_context_that_is_stated(count, window, batch_size, seed):
    tokens, (context, stride) = some_tokens(count, seed), window
    for model in (Memory(), Bigram()):
        seen: list[tuple[int, int]] = []
        score = evaluate(
            model, tokens, context=context, stride=stride, batch_size=batch_size, runtime=CPU,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )  # fmt: skip
        expected = by_hand(model, tokens, context, stride)
        assert score.tokens.sum() == count - 1 and seen[-1] == (count - 1, count - 1)
        assert score.nats.sum() == pytest.approx(sum(expected), rel=1e-5)
        at = np.concatenate(([0], np.cumsum(score.tokens)))
        for window_nats, start, end in zip(score.nats, at[:-1], at[1:], strict=True):
            assert window_nats == pytest.approx(sum(expected[start:end]), rel=1e-4, abs=1e-5)


def test_a_bigram_models_loss_is_its_cross_entropy_for_every_stride():
    tokens, model = some_tokens(1000), Bigram()
    pairs = np.zeros((V, V))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    exact = -(pairs * torch.log_softmax(model.table.double(), -1).numpy()).sum() / 999
    for stride in (1, 7, 16):
        assert evaluate(model, tokens, context=16, stride=stride, runtime=CPU).loss == pytest.approx(exact, rel=1e-6)


def test_more_context_is_used_when_the_stride_is_smaller():
    tokens = some_tokens(200)
    whole, overlapping = (evaluate(Memory(), tokens, context=16, stride=s, runtime=CPU).loss for s in (16, 4))
    assert whole != pytest.approx(overlapping, rel=1e-3)


def test_the_default_is_what_training_reports_as_validation_loss():
    model = GPT(ModelConfig(vocab_size=V, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=16)).train()
    tokens = some_tokens(333)
    score = evaluate(model, tokens, context=16, runtime=CPU)
    assert score.loss == pytest.approx(validation_loss(model, eval_batches(tokens, 16, 16, 4), CPU), rel=1e-5)
    assert model.training


def test_a_window_with_many_logits_is_scored_in_pieces(monkeypatch):
    model = GPT(ModelConfig(vocab_size=V, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=64)).eval()
    tokens, lengths = some_tokens(300), []
    whole = evaluate(model, tokens, context=64, batch_size=2, runtime=CPU)
    model.head.register_forward_hook(lambda _module, given, _out: lengths.append(given[0].shape[1]))
    monkeypatch.setattr(step, "chunk_logits", lambda _: 2 * 25 * V)
    pieces = evaluate(model, tokens, context=64, batch_size=2, runtime=CPU)
    assert lengths[:3] == [25, 25, 14]
    assert pieces.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_allclose(pieces.nats, whole.nats, rtol=1e-6)


def test_a_mixture_has_the_logits_of_all_its_softmaxes_in_memory(monkeypatch):
    shape = {"vocab_size": V, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 64, "softmaxes": 3}
    model, lengths = GPT(ModelConfig(**shape)).eval(), []
    model.head.register_forward_hook(lambda _module, given, _out: lengths.append(given[0].shape[1]))
    monkeypatch.setattr(step, "chunk_logits", lambda _: 3 * 2 * 25 * V)
    evaluate(model, some_tokens(300), context=64, batch_size=2, runtime=CPU)
    assert lengths[:3] == [25, 25, 14]


def test_bytes_of_a_window_are_those_of_the_tokens_it_scores():
    tokens, lengths = some_tokens(50), np.array([0, 1, 2, 3, 4, 5, 6])
    score = evaluate(Bigram(), tokens, context=8, stride=3, runtime=CPU, token_lengths=lengths)
    assert score.bytes.sum() == tokens[1:].sum()
    assert score.bytes[0] == tokens[1:9].sum()


def test_what_cannot_be_evaluated_is_said():
    tokens = some_tokens(20)
    for wrong in ({"context": 8, "stride": 9}, {"context": 8, "stride": 0}, {"context": 0}):
        with pytest.raises(UserError, match="stride"):
            evaluate(Bigram(), tokens, runtime=CPU, **wrong)
    with pytest.raises(UserError, match="batch size"):
        evaluate(Bigram(), tokens, context=4, batch_size=0, runtime=CPU)
    with pytest.raises(DataError, match="give more text"):
        evaluate(Bigram(), tokens[:1], context=4, runtime=CPU)
    broken = Bigram()
    broken.table[int(tokens[3])] = math.nan
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        evaluate(broken, tokens, context=4, runtime=CPU)


def test_bootstrap_agrees_with_scipys():
    rng = np.random.default_rng(1)
    tokens = rng.integers(50, 150, size=80)
    nats = tokens * rng.normal(2.0, 0.3, size=80)
    theirs = scipy.stats.bootstrap(
        (nats, tokens), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile",
        n_resamples=9999, vectorized=True, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    ours = bootstrap(nats, tokens)
    width = theirs.high - theirs.low
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.1 * width)
    assert (ours == bootstrap(nats, tokens)).all()


def figures(score: Score, **other) -> dict:
    usual = {"text_bytes": 1000, "words": 100, "floors": {}, "split": "val", "context": 10, "stride": 10}
    return report(score, **(usual | {"checkpoint": "c", "step": 1, "data": "d"} | other))


def flat_score(windows: int, tokens: int, nats: float = 2.0) -> Score:
    noise = np.random.default_rng(0).normal(1, 0.1, size=windows)
    return Score(nats * tokens * noise, np.full(windows, tokens), np.full(windows, 2 * tokens))


def test_overlapping_windows_are_resampled_in_blocks_of_a_context():
    nats = np.random.default_rng(0).normal(2, 0.5, size=1000)
    one = Score(nats, np.ones(1000, int), np.full(1000, 2))
    ten = Score(nats.reshape(-1, 10).sum(1), np.full(100, 10), np.full(100, 20))
    for key, low_high in figures(ten)["confidence_interval"].items():
        assert figures(one, stride=1)["confidence_interval"][key] == pytest.approx(low_high)


def test_the_interval_holds_the_figure_scaled_to_the_source_bytes():
    result = figures(flat_score(100, 10), text_bytes=4000)  # twice the sum of the tokens' lengths
    for key in ("loss", "bits_per_byte"):
        low, high = result["confidence_interval"][key]
        assert low < result[key] < high
        assert high - low < 0.1 * result[key]


def test_figures_that_make_no_sense_are_null():
    assert figures(flat_score(1, 10))["confidence_interval"] is None
    huge = figures(flat_score(10, 10, nats=800.0), words=0)
    assert huge["perplexity"] is None and huge["word_perplexity"] is None
    with pytest.raises(DataError):
        figures(flat_score(2, 10), text_bytes=0)


def make_run(tmp_path: Path, tokenizer, name="documents.jsonl"):
    path = tmp_path / name
    path.write_text("".join(f'{{"text": "Ä number {n} was told."}}\n' for n in range(200)), encoding="utf-8")
    prepared = prepare(DataConfig(source=str(path)), tokenizer, safe_cut)
    return SimpleNamespace(
        path=tmp_path, checkpoint=tmp_path / "step-00000007", step=7, model=Bigram(tokenizer.vocab_size),
        tokenizer=tokenizer, runtime=CPU, prepared=lambda: prepared,
    )  # fmt: skip


def test_the_report_has_the_documented_keys_and_its_figures_agree(tmp_path):
    run = make_run(tmp_path, ByteTokenizer())
    result = evaluate_run(run)
    meta = run.prepared().meta["splits"]["val"]
    nats = result["loss"] * result["tokens"]
    check(Report, result)
    assert tuple(result) == REPORT_KEYS
    assert result["tokens"] == meta["tokens"] - 1
    assert result["bytes"] == meta["bytes"] - 1  # the first byte is not predicted; eos, one per document, has none
    assert meta["tokens"] == meta["bytes"] + meta["documents"]
    assert result["words"] == meta["words"] == 5 * meta["documents"]
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / result["bytes"])
    assert result["word_perplexity"] == pytest.approx(math.exp(nats / result["words"]))
    assert (result["context"], result["stride"], result["step"], result["split"]) == (64, 64, 7, "val")
    assert result["checkpoint"].endswith("step-00000007") and result["data"].endswith("documents.jsonl")
    assert list(result["floors"]) == ["uniform", "unigram", "five_gram", "xz"]
    for key, (low, high) in result["confidence_interval"].items():
        assert low < result[key] < high


def test_other_windows_splits_and_data_are_taken(tmp_path):
    run = make_run(tmp_path, ByteTokenizer())
    result = evaluate_run(run, context=20, stride=5, split="train", batch_size=3)
    assert (result["context"], result["stride"], result["split"], result["floors"]) == (20, 5, "train", {})
    other = make_run(tmp_path, ByteTokenizer(), "other.jsonl").prepared()
    assert evaluate_run(run, prepared=other)["data"].endswith("other.jsonl")
    with pytest.raises(UserError, match="no test split"):
        evaluate_run(run, split="test")
    with pytest.raises(UserError, match="choose 1 to 64"):
        evaluate_run(run, context=65)


def test_unknown_characters_are_counted_as_bytes_of_the_source(tmp_path):
    run = make_run(tmp_path, CharTokenizer.from_texts(["number was told. 0123456789"]))
    result = evaluate_run(run)
    lengths = TokenText(run.tokenizer).lengths[run.prepared().splits["val"].tokens]
    assert result["bytes"] == run.prepared().meta["splits"]["val"]["bytes"]  # the first token is unknown: no bytes
    assert lengths.sum() < result["bytes"]  # Ä is two bytes, "?" is one
    low, high = result["confidence_interval"]["bits_per_byte"]
    assert low < result["bits_per_byte"] < high
    read = {split: TokenText(run.tokenizer).whole(run.prepared().splits[split].tokens) for split in ("train", "val")}
    bits = compute_floors(read["train"], read["train"], read["val"])["five_gram"] * len(read["val"])
    assert result["floors"]["five_gram"] == pytest.approx(bits / result["bytes"])


def test_the_command_says_it_in_words_and_documents_every_key(capsys):
    floors = {"five_gram": 2.26, "surprisal": 1.0}
    words = command.sentence({"bits_per_byte": 2.0, "floors": floors})
    assert "2.000 bits" in words and "0.260 fewer than a 5-gram" in words and "1.000 more than the grammar" in words
    assert "5-gram" not in command.sentence({"bits_per_byte": 2.0, "floors": {}})
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert all(key in shown for key in REPORT_KEYS)


def test_only_the_runs_own_validation_figures_are_saved(tmp_path: Path):
    for other in (["--split", "test"], ["--data", "x.txt"]):
        with pytest.raises(UserError, match="--save"):
            command.main(["runs/none", "--save", *other])
    with pytest.raises(UserError, match="leave --context out"):
        command.main(["runs/none", "--save", "--context", "16"])
    (tmp_path / "checkpoints/step-2").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"name the run: minigpt eval .* --save"):
        command.main([str(tmp_path / "checkpoints/step-2"), "--save"])


def test_each_part_of_a_model_gets_its_own_mode_back():
    model = GPT(ModelConfig(vocab_size=V, embed_dim=16, num_heads=2, num_layers=2, max_seq_len=8)).train()
    model.blocks[0].eval()  # as for layers that are frozen
    evaluate(model, np.arange(20) % V, context=8, runtime=CPU)
    assert [part.training for part in (model, *model.blocks)] == [True, False, True]
