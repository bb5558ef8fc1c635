"""Test figures over a whole text against slow and obvious forms of each."""

import tracemalloc
from io import StringIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from minigpt.config import ModelConfig
from minigpt.data.token_file import TokenFile, TokenWriter
from minigpt.evals import evaluate
from minigpt.explanation import dataset
from minigpt.explanation.dataset import (
    SURVEY_KEYS,
    Span,
    loss_by_frequency,
    loss_by_position,
    memorised_spans,
    most_surprising,
    neighbours,
    survey,
    token_losses,
)
from minigpt.explanation.tables import show_survey
from minigpt.model import GPT
from minigpt.runtime.device import make_runtime
from minigpt.tokenizers import CharTokenizer

TEXT = "the cat sat on the mat. the dog ran to the barn by the mill, and the cat saw the dog. " * 4
TOKENIZER = CharTokenizer.from_texts([TEXT])
MODEL = GPT(
    ModelConfig(vocab_size=TOKENIZER.vocab_size, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, init_std=0.2),
    seed=4,
)
IDS = TOKENIZER.encode_array(TEXT)


def test_losses_are_those_of_evaluation_token_by_token():
    losses = token_losses(MODEL, IDS)
    score = evaluate(MODEL, IDS, context=16, runtime=make_runtime("cpu", "fp32"))
    assert len(losses) == len(IDS) - 1 == score.tokens.sum()
    windows = [losses[start : start + 16].sum() for start in range(0, len(losses), 16)]
    np.testing.assert_allclose(windows, score.nats, rtol=1e-5)


def test_loss_by_place_and_by_frequency_are_means_over_the_right_tokens():
    losses = np.arange(10.0)
    np.testing.assert_allclose(loss_by_position(losses, 4), [4, 5, 4, 5])
    counts, targets = np.array([0, 1, 2, 3, 9]), np.array([0, 1, 2, 3, 4, 3])
    assert loss_by_frequency(np.array([9.0, 8, 6, 4, 1, 2]), targets, counts) == [
        {"seen_from": 0, "seen_to": 0, "tokens": 1, "loss": 9.0},
        {"seen_from": 1, "seen_to": 1, "tokens": 1, "loss": 8.0},
        {"seen_from": 2, "seen_to": 3, "tokens": 3, "loss": 4.0},
        {"seen_from": 8, "seen_to": 15, "tokens": 1, "loss": 1.0},
    ]


def test_tokens_are_counted_in_the_memory_of_a_chunk():
    tokens = np.broadcast_to(np.uint16(3), 10 * dataset.CHUNK + 5)
    tracemalloc.start()
    try:
        assert dataset.token_counts(tokens, 5).tolist() == [0, 0, 0, len(tokens), 0]
        assert tracemalloc.get_traced_memory()[1] < 3 * 8 * dataset.CHUNK
    finally:
        tracemalloc.stop()


def test_the_most_surprising_tokens_come_with_their_context():
    losses = np.zeros(len(IDS) - 1)
    losses[[3, 7]] = 5, 9
    first, second = most_surprising(losses, IDS, TOKENIZER, count=2, around=3)
    assert first == {"at": 8, "text": TEXT[8], "before": TEXT[5:8], "after": TEXT[9:12], "loss": 9.0}
    assert second["at"] == 4


def test_neighbours_are_the_nearest_by_cosine():
    ids, cosines = neighbours(MODEL, np.array([3, 5]), count=4)
    table = MODEL.embedding.weight.detach()[: TOKENIZER.vocab_size]
    for row, id_ in enumerate((3, 5)):
        similar = torch.cosine_similarity(table[id_], table)
        order = [other for other in similar.argsort(descending=True).tolist() if other != id_][:4]
        assert ids[row].tolist() == order
        np.testing.assert_allclose(cosines[row], similar[order].detach(), atol=1e-6)


def slow_spans(text: list[int], training: list[int], shortest: int) -> set[tuple[int, int, int]]:
    """(start, length, times) of the longest matches, by comparing everything with everything."""

    def times(start: int, end: int) -> int:
        part = text[start:end]
        return sum(training[at : at + len(part)] == part for at in range(len(training) - len(part) + 1))

    ends = {}
    for start in range(len(text)):
        lengths = [end for end in range(start + shortest, len(text) + 1) if times(start, end)]
        if lengths:
            ends[start] = max(lengths)
    whole = {(start, end) for start, end in ends.items() if ends.get(start - 1, -1) < end}
    return {(start, end - start, times(start, end)) for start, end in whole}


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=60), st.integers(2, 5))
def test_spans_are_all_longest_matches_with_their_place_and_count(text, training, shortest):
    found = memorised_spans(np.array(text, np.int64), np.array(training, np.uint16), shortest)
    assert {(span.start, span.length, span.times) for span in found} == slow_spans(text, training, shortest)
    for span in found:
        assert training[span.place : span.place + span.length] == text[span.start : span.start + span.length]
    lengths = [span.length for span in found]
    assert lengths == sorted(lengths, reverse=True)


def test_spans_are_found_in_a_token_file_over_the_borders_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 64)
    rng = np.random.default_rng(0)
    training = rng.integers(0, 1000, 1000)
    with TokenWriter(tmp_path / "train.tokens", 1000, "f" * 64) as writer:
        writer.append(training)
    mapped = TokenFile(tmp_path / "train.tokens").tokens
    text = np.concatenate([rng.integers(0, 1000, 30), training[100:230], [1, 2, 3], training[40:70]])
    assert memorised_spans(text, mapped, 20) == [Span(30, 130, 100, 1), Span(163, 30, 40, 1)]
    assert memorised_spans(text[:10], mapped, 20) == []


def test_a_survey_has_its_keys_and_finds_a_copied_sentence():
    found = survey(MODEL, TOKENIZER, IDS, IDS[:100], "xx the dog ran to the barn by the mill".replace("x", "l"))
    assert set(found) == set(SURVEY_KEYS)
    assert found["tokens"] == 99 and len(found["loss_by_position"]) == 16
    assert found["spans"][0]["text"] == " the dog ran to the barn by the mill" and found["spans"][0]["times"] == 4
    assert found["neighbours"][0]["text"] == " ", "the most frequent token first"
    assert found["loss"] == pytest.approx(token_losses(MODEL, IDS[:100]).mean())


def test_a_model_that_is_never_surprised_is_shown_too():
    found = survey(MODEL, TOKENIZER, IDS, IDS[:100], "the cat")
    sure = {
        "loss_by_position": [0.0] * 16,
        "loss_by_frequency": [row | {"loss": 0.0} for row in found["loss_by_frequency"]],
    }
    screen = Console(file=StringIO(), width=100)
    for part in show_survey(found | sure):
        screen.print(part)
    assert "0.000  █" in screen.file.getvalue()


def test_the_table_of_positions_counts_the_tokens_that_the_model_had_read():
    found = survey(MODEL, TOKENIZER, IDS, IDS[:100], "the cat")
    screen = Console(file=StringIO(), width=100)
    for part in show_survey(found):
        screen.print(part)
    table = screen.file.getvalue().partition("By position")[2].partition("By how often")[0]
    rows = [line.split("  ")[1] for line in table.splitlines() if "█" in line]
    assert rows == ["1", "2", "3 to 4", "5 to 8", "9 to 16"]
