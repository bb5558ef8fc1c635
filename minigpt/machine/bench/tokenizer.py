"""Compare learning merges with trainers in Rust, and encoding with tiktoken, for `minigpt bench tokenizer`.

All encoders have the same merges. The trainers of Hugging Face and rustbpe use all cores (RAYON_NUM_THREADS limits
them); our trainer and both encoders use one core.
"""

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypedDict

import tiktoken

from minigpt.machine.bench.timing import Spread, SpreadFigures, Tell, alternate, rounded, speed_ratio, stopwatch
from minigpt.tokenizers import BPETokenizer, safe_cut
from minigpt.tokenizers.bpe import SPECIALS
from minigpt.tokenizers.patterns import PATTERNS, PUBLISHED

CHUNK = 1 << 20  # characters
BLOCK = 1 << 17  # characters, for the threads of Rust's trainers
OURS = "minigpt"


class TrainingSide(TypedDict):
    """Time of one trainer. ratio: our speed / this trainer's speed; None for ours."""

    name: str
    seconds: SpreadFigures
    ratio: float | None


class EncodingSide(TypedDict):
    """Speed of one encoder. ratio: our speed / this encoder's speed; None for ours."""

    name: str
    mb_per_second: SpreadFigures
    ratio: float | None


class TokenizerReport(TypedDict):
    """What `minigpt bench tokenizer --json` prints after the source."""

    bytes: int
    vocab_size: int
    pattern: str
    rounds: int
    cores: int | None
    rayon_threads: str
    training: list[TrainingSide]
    encoding: list[EncodingSide]
    same_merges: bool | None
    same_ids: bool
    notes: list[str]


def bench_tokenizer(
    text: str, vocab_size: int = 8192, pattern: str = "gpt4", rounds: int = 3, tell: Tell = lambda what: None
) -> TokenizerReport:
    """Measure learning and encoding of one text, which is in memory.

    Args:
        text: any text that UTF-8 can encode.
        vocab_size: number of ids to learn, special tokens included. A small text may give fewer; then all sides learn
            as many.
        pattern: gpt2, gpt4 or gpt4o.
        rounds: number of rounds, in which the sides take turns.

    Raises:
        TokenizerError: vocab_size below 260, or no text.
    """
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    tell(OURS)
    ours = BPETokenizer.train(chunks, vocab_size, pattern)
    ids = {ours.token_bytes(id_): id_ for id_ in range(len(SPECIALS), ours.vocab_size)}
    plain = tiktoken.Encoding("plain", pat_str=PATTERNS[pattern], mergeable_ranks=ids, special_tokens={})
    trainers, notes = rival_trainers(text, ours.vocab_size, pattern)
    same_merges = None
    if "tokenizers" in trainers:
        theirs = json.loads(trainers["tokenizers"]().to_str())["model"]["merges"]
        same_merges = [" ".join(pair) for pair in theirs] == ours.to_tree()["model"]["merges"]
    training = _turns({OURS: lambda: BPETokenizer.train(chunks, ours.vocab_size, pattern), **trainers}, rounds, tell)
    encoding = _turns(
        {
            OURS: lambda: [ours.encode_array(chunk) for chunk in chunks],
            "tiktoken": lambda: [plain.encode_ordinary(chunk) for chunk in chunks],
        },
        rounds,
        tell,
    )
    size = len(text.encode())
    return {
        "bytes": size,
        "vocab_size": ours.vocab_size,
        "pattern": pattern,
        "rounds": rounds,
        "cores": os.cpu_count(),
        "rayon_threads": os.environ.get("RAYON_NUM_THREADS", "all"),
        "training": [
            {"name": name, "seconds": Spread.of(taken).figures(), "ratio": _ratio(name, training)}
            for name, taken in training.items()
        ],
        "encoding": [
            {
                "name": name,
                "mb_per_second": Spread.of([size / 1e6 / seconds for seconds in taken]).figures(),
                "ratio": _ratio(name, encoding),
            }
            for name, taken in encoding.items()
        ],
        "same_merges": same_merges,
        "same_ids": all(ours.encode(chunk) == plain.encode_ordinary(chunk) for chunk in chunks),
        "notes": notes,
    }


def _turns(jobs: dict[str, Callable[[], object]], rounds: int, tell: Tell) -> dict[str, list[float]]:
    """Seconds of each job in each round."""
    return alternate({name: lambda job=job: stopwatch(job) for name, job in jobs.items()}, rounds, tell)


def _ratio(name: str, seconds: dict[str, list[float]]) -> float | None:
    return None if name == OURS else rounded(speed_ratio(seconds[OURS], seconds[name]))


def rival_trainers(text: str, vocab_size: int, pattern: str) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """The installed trainers in Rust, by name, and a note for each one that is missing."""
    makers = {"tokenizers": hugging_face_trainer, "rustbpe": rustbpe_trainer}
    here = [name for name in makers if find_spec(name)]
    blocks = list(safe_blocks(text)) if here else []
    notes = [f"{name} is not installed, so it is left out: pip install {name}" for name in makers if name not in here]
    return {name: makers[name](blocks, vocab_size, pattern) for name in here}, notes


def hugging_face_trainer(blocks: list[str], vocab_size: int, pattern: str) -> Callable[[], Any]:
    """Make a function that trains with Hugging Face, with our pattern, alphabet and special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    def train() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(PUBLISHED[pattern]), "isolated")
        spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spelling])  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(blocks, trainer)
        return tokenizer

    return train


def rustbpe_trainer(blocks: list[str], vocab_size: int, pattern: str) -> Callable[[], Any]:
    """Make a function that trains with nanochat's trainer. Among equally frequent pairs it may choose differently."""
    rustbpe = import_module("rustbpe")  # has no types, and is rarely installed

    def train() -> Any:
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(iter(blocks), vocab_size - len(SPECIALS), pattern=PUBLISHED[pattern])
        return tokenizer

    return train


def safe_blocks(text: str) -> Iterator[str]:
    """Cut the text into blocks of about BLOCK characters, never inside a pre-token, so the pre-tokens do not change."""
    start = 0
    while len(text) - start > BLOCK and (cut := safe_cut(text[start : start + BLOCK])):
        yield text[start : start + cut]
        start += cut
    yield text[start:]
