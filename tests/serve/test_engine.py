"""Test the engine: texts that join and leave at any moment are the same as if each were alone."""

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from minigpt.config import GenerationConfig, ModelConfig, TokenizerConfig
from minigpt.errors import GenerationError
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.generation.text import generate_text
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.model import GPT
from minigpt.serve.engine import BusyError, Ended, Engine, Event, Failed, Job, Read, Wrote
from minigpt.serve.limits import Limits
from minigpt.tokenizers import ByteTokenizer, Tokenizer, build

LETTERS = build(TokenizerConfig(kind="char"), ["abcdefghijklmnopqrstuvwxyz .,\n"])


def make_model(tokenizer: Tokenizer = LETTERS, **fields: Any) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    shape = ModelConfig(embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=24, init_std=0.3)
    return GPT(shape.model_copy(update={"vocab_size": tokenizer.vocab_size, **fields}), seed=4).eval()


class Client:
    """The events that a client gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Wrote | Ended))

    @property
    def end(self) -> Event | None:
        return next((event for event in self.events if isinstance(event, Ended | Failed)), None)


def make_job(prompt: str, tokenizer: Tokenizer = LETTERS, **more: Any) -> tuple[Job, Client]:
    fields = {key: more.pop(key) for key in list(more) if key in GenerationConfig.model_fields}
    config, client = GenerationConfig(**fields), Client()
    most = more.pop("most", config.max_new_tokens)
    return Job(tokenizer.encode(prompt), tokenizer, config, config.seed, most, client, **more), client


def run_out(engine: Engine) -> None:
    while engine.turn():
        continue


COUNT = 10
PROMPTS = ["abcdefghijklmnopqrstuvw"[: 1 + (7 * i) % 23] for i in range(COUNT)]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1.3, "top_k": 10, "repetition_penalty": 1.1},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02, "presence_penalty": 0.5},
    {"temperature": 0.8, "typical_p": 0.9, "no_repeat_ngram_size": 4, "stop": ("ab", ".")},
]


@pytest.mark.parametrize(
    ("shape", "prepared"), [({"position": "rope"}, True), ({"position": "learned"}, False), ({"bigrams": 64}, True)]
)
def test_texts_that_join_at_any_moment_are_what_each_is_alone(shape: dict[str, Any], prepared: bool) -> None:
    gpt = make_model(**shape)
    gpt = prepare_decoding(gpt, "fp32") if prepared else gpt
    moments, engine = random.Random(7), Engine(Limits(texts=6))
    asked = [
        {**KINDS[i % 5], "seed": i, "max_new_tokens": moments.randint(1, 40), "stop_at_eos": i % 3 > 0}
        for i in range(COUNT)
    ]
    clients = []
    for prompt, fields in zip(PROMPTS, asked, strict=True):
        job, client = make_job(prompt, **fields)
        engine.submit(gpt, [job])
        clients.append(client)
        for _ in range(moments.randint(0, 6)):
            engine.turn()
    run_out(engine)
    alone = [generate_text(gpt, prompt, LETTERS, **fields) for prompt, fields in zip(PROMPTS, asked, strict=True)]
    assert [client.text for client in clients] == alone
    assert len(set(alone)) > 7
    assert engine.writing == engine.waiting == 0 and engine.writers[gpt].batch.buffer is None


def test_each_text_keeps_its_own_banned_words() -> None:
    gpt, engine = make_model(), Engine()
    fields: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0}
    banned, clients = [("w",), ("t", "ww")], []
    for words in banned:
        rules = make_rules(GenerationConfig(bad_words=words), LETTERS)
        job, client = make_job("abc", rules=rules, **fields)
        engine.submit(gpt, [job])
        clients.append(client)
    run_out(engine)
    alone = [generate_text(gpt, "abc", LETTERS, bad_words=words, **fields) for words in banned]
    assert [client.text for client in clients] == alone
    assert len({*alone, generate_text(gpt, "abc", LETTERS, **fields)}) == 3


def test_a_cancelled_text_leaves_before_its_next_token() -> None:
    gpt, engine = make_model(), Engine()
    (one, first), (two, second) = (make_job(prompt, max_new_tokens=20, temperature=0) for prompt in ("abc", "xyz"))
    engine.submit(gpt, [one, two])
    for _ in range(5):
        engine.turn()
    one.cancelled, count = True, len(first.events)
    engine.turn()
    assert (len(first.events), engine.writing) == (count, 1)
    run_out(engine)
    assert second.text == generate_text(gpt, "xyz", LETTERS, max_new_tokens=20, temperature=0)


def test_a_full_queue_refuses_and_takes_all_or_none() -> None:
    gpt, engine = make_model(), Engine(Limits(texts=2, queue=4))
    jobs = [make_job("abc", max_new_tokens=3)[0] for _ in range(7)]
    engine.submit(gpt, jobs[:4])
    with pytest.raises(BusyError, match="wait already") as caught:
        engine.submit(gpt, jobs[4:6])
    assert caught.value.seconds >= 1 and engine.waiting == 4
    engine.turn()
    assert (engine.writing, engine.waiting) == (2, 2)
    engine.submit(gpt, jobs[4:6])
    run_out(engine)


def test_a_text_that_is_cancelled_while_it_waits_frees_its_place() -> None:
    gpt, engine = make_model(), Engine(Limits(texts=1, queue=4))
    jobs = [make_job("abc", max_new_tokens=9, stop_at_eos=False)[0] for _ in range(5)]
    engine.submit(gpt, jobs[:1])
    engine.turn()
    engine.submit(gpt, jobs[1:])
    for job in jobs[2:]:
        job.cancelled = True
    engine.turn()
    assert (engine.writing, engine.waiting) == (1, 1)
    run_out(engine)


def test_time_that_is_over_ends_a_text_and_refuses_one_that_waits() -> None:
    now = [0.0]
    gpt, engine = make_model(), Engine(Limits(texts=1), clock=lambda: now[0])
    (one, first), (two, second) = (make_job("abc", max_new_tokens=50, deadline=5.0) for _ in range(2))
    engine.submit(gpt, [one, two])
    engine.turn()
    engine.turn()
    now[0] = 5.0
    engine.turn()
    assert first.end and second.end
    assert isinstance(first.end, Ended) and first.end.reason == "time"
    assert isinstance(second.end, Failed) and isinstance(second.end.error, BusyError)


def test_one_text_without_a_token_left_fails_alone() -> None:
    gpt, engine = make_model(), Engine()
    fields: dict[str, Any] = {"no_repeat_ngram_size": 1, "max_new_tokens": 40, "temperature": 0, "stop_at_eos": False}
    (bad, one), (good, two) = (make_job(prompt, **fields) for prompt in ("abcdefghijklmnopqrstuv", "a"))
    good.most = 5
    engine.submit(gpt, [bad, good])
    run_out(engine)
    assert isinstance(one.end, Failed) and isinstance(one.end.error, GenerationError)
    assert isinstance(two.end, Ended) and two.text == generate_text(
        gpt, "a", LETTERS, **{**fields, "max_new_tokens": 5}
    )


def test_an_error_of_one_model_leaves_the_others_alone() -> None:
    good, bad, engine = make_model(), make_model(), Engine()
    with torch.no_grad():
        bad.embedding.weight.fill_(float("nan"))
    (one, first), (two, second) = make_job("abc", max_new_tokens=5), make_job("abc", max_new_tokens=5)
    engine.submit(bad, [one])
    engine.submit(good, [two])
    run_out(engine)
    assert isinstance(first.end, Failed) and isinstance(second.end, Ended)


def test_a_prompt_that_cannot_be_read_fails_and_does_not_wait_for_ever() -> None:
    gpt, engine = make_model(), Engine()
    (bad, one), (late, two) = (make_job("abc", max_new_tokens=5) for _ in range(2))
    bad.ids[-1] = 1000  # as when memory runs out: the model raises while it reads
    engine.submit(gpt, [bad, late])
    run_out(engine)
    assert isinstance(one.end, Failed) and isinstance(two.end, Failed) and engine.waiting == 0
    job, client = make_job("abc", max_new_tokens=5)
    engine.submit(gpt, [job])
    run_out(engine)
    assert isinstance(client.end, Ended)


def test_the_bad_words_of_a_run_are_never_written() -> None:
    gpt, engine = make_model(), Engine()
    fields: dict[str, Any] = {"bad_words": ("a", "b", "th"), "max_new_tokens": 30, "seed": 3, "stop_at_eos": False}
    job, client = make_job("abc", rules=make_rules(GenerationConfig(**fields), LETTERS), **fields)
    engine.submit(gpt, [job])
    run_out(engine)
    assert client.text == generate_text(gpt, "abc", LETTERS, **fields)


def test_a_chat_that_goes_on_reads_only_what_is_new() -> None:
    gpt, engine = make_model(max_seq_len=64), Engine()
    job, client = make_job("abc def. ", max_new_tokens=10, temperature=0, reuse=True)
    engine.submit(gpt, [job])
    run_out(engine)
    prompt = "abc def. " + client.text + " xyz"
    job, client = make_job(prompt, max_new_tokens=10, temperature=0, reuse=True)
    engine.submit(gpt, [job])
    run_out(engine)
    # the engine reuses the whole first text
    assert isinstance(client.events[0], Read) and client.events[0].cached == len("abc def. ") + 9
    assert client.text == generate_text(gpt, prompt, LETTERS, max_new_tokens=10, temperature=0)
    other, heard = make_job("zzz", reuse=True, max_new_tokens=1)
    engine.submit(gpt, [other])
    run_out(engine)
    assert isinstance(heard.events[0], Read) and heard.events[0].cached == 0


def test_prefixes_stay_within_their_memory() -> None:
    gpt = make_model(max_seq_len=64)
    engine = Engine(Limits(prefixes=40_000))
    for start in "abcdefgh":
        job, _ = make_job(start * 20, max_new_tokens=20, reuse=True, stop_at_eos=False)
        engine.submit(gpt, [job])
        run_out(engine)
    kept = engine.writers[gpt].prefixes
    assert 0 < kept.bytes <= 40_000 and kept.bytes == sum(held.bytes for held in kept.kept)


def test_scores_of_prompt_and_text_are_the_models_own() -> None:
    gpt, engine = make_model(), Engine()
    job, client = make_job("abc", max_new_tokens=4, temperature=0, logprobs=3, score_prompt=True)
    engine.submit(gpt, [job])
    run_out(engine)
    assert isinstance(client.events[0], Read) and job.text is not None
    scores = [*client.events[0].scores, *(event.score for event in client.events if isinstance(event, Wrote))]
    ids = job.text.ids
    right = gpt(torch.tensor([ids]))[0].log_softmax(-1)
    assert [score.id for score in scores if score] == ids
    for place, each in enumerate(scores):
        assert each is not None
        if place:
            assert each.logprob == pytest.approx(right[place - 1, ids[place]].item(), abs=1e-5)
            assert [id_ for id_, _ in each.top] == right[place - 1].topk(3).indices.tolist()
    assert scores[0] is not None and scores[0].logprob is None


def test_no_half_character_is_told() -> None:
    tokenizer, engine = ByteTokenizer(), Engine()
    gpt = make_model(tokenizer)
    job, client = make_job("é", tokenizer, max_new_tokens=60, temperature=3.0, seed=2, stop_at_eos=False)
    engine.submit(gpt, [job])
    run_out(engine)
    assert job.text is not None
    assert client.text == tokenizer.decode(job.text.ids[2:])


def test_the_thread_writes_while_others_wait() -> None:
    gpt, engine = make_model(), Engine()
    engine.start()
    clients: Sequence[Client] = []
    for seed in range(6):
        job, client = make_job("abc", max_new_tokens=30, seed=seed, stop_at_eos=False)
        engine.submit(gpt, [job])
        clients = [*clients, client]
    for _ in range(1000):
        if all(client.end for client in clients):
            break
        time.sleep(0.01)
    engine.stop()
    assert all(client.end for client in clients)
