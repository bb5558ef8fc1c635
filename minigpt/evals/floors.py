"""Compute floors: the scores of simpler models on the same text, in bits per byte, to compare a loss with.

    uniform     all bytes that occur in the training text are equally likely: log2 of their number
    unigram     bytes by their frequency in training, one added to each of the 256 counts
    five_gram   predicts a byte from the one to four bytes before it: interpolated Kneser-Ney (see `ngram`)
    xz          bits that this text adds if xz packs it after the end of the training text
    entropy     stories only: the exact expectation under the grammar that wrote them; no model can do better
    surprisal   stories only: -log2 P of this text under the grammar; its mean over texts is the entropy

The first three are fitted on the first 16 MiB of the training text; xz (preset 6) sees the last 1 MiB. More text would
make xz a little better: on the stories it falls from 0.88 to 0.83 with all of the text, in three times the time. The
floors read documents one after another, without the end-of-text token between them. As in the model's score, bytes are
those of the source: a floor reads "?" for each character that the tokenizer does not know.

A word tokenizer decodes to the same text only if the text is in WikiText's form and has no unknown word. For other
texts, the decoded text is not the source text, so a run with this tokenizer has no fitted floors.

Floors depend on the text, so the cache keeps them under its hash:

    CACHE/floors/KEY.json

KEY is a hash of the two texts (training and evaluated), of VERSION, and of the tokenizer if it may have lost text.
"""

import contextlib
import hashlib
import json
import lzma
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from minigpt.data import Prepared
from minigpt.data.counts import holds, token_counts
from minigpt.data.stories import generator
from minigpt.download import cache_root
from minigpt.errors import DataError
from minigpt.evals.ngram import NGram
from minigpt.evals.token_text import Bytes, TokenText
from minigpt.files import parse_json, write_bytes
from minigpt.tokenizers import Tokenizer

FIT_BYTES = 16 << 20
XZ_BYTES = 1 << 20
VERSION = 3  # version of the cached floors: raise it when a definition above changes

Floors = dict[str, float]
_NAMES = Literal["uniform", "unigram", "five_gram", "xz", "entropy", "surprisal"]
_KEPT: TypeAdapter[Any] = TypeAdapter(dict[_NAMES, float])


def compute_floors(head: Bytes, tail: Bytes, text: Bytes) -> Floors:
    """uniform, unigram and five_gram of `text`, fitted on `head`, and xz after `tail`. DataError if one is empty."""
    if not (len(head) and len(tail) and len(text)):
        raise DataError("no floors without text: the training or the evaluated text is empty")
    return {
        "uniform": math.log2(len(np.unique(head))),
        "unigram": unigram_bits(head, text) / len(text),
        "five_gram": NGram.fit(head, 5).bits(text) / len(text),
        "xz": xz_bits(tail, text) / len(text),
    }


def unigram_bits(train: Bytes, text: Bytes) -> float:
    """-log2 P(text) by the frequencies of single bytes, one added to each count."""
    counts = token_counts(train, 256) + 1.0
    return float(-(token_counts(text, 256) @ np.log2(counts / counts.sum())))


def xz_bits(before: Bytes, text: Bytes) -> float:
    """Bits that `text` adds to an xz archive of `before`. The two archives are written at the same time."""
    history = before.tobytes()
    with ThreadPoolExecutor(2) as pool:
        alone, both = pool.map(lambda data: len(lzma.compress(data)), (history, history + text.tobytes()))
    return 8.0 * (both - alone)


def run_floors(prepared: Prepared, tokenizer: Tokenizer, split: str) -> Floors:
    """The floors of one split, from the cache if they were computed before.

    The training split has no fitted floors: they would be fitted on the text that they score.

    Args:
        prepared: token files.
        tokenizer: the one that made the token files.
        split: val, test or train.
    """
    cached = _cached(prepared, tokenizer, split)
    with contextlib.suppress(OSError, ValueError):  # missing, unreadable or in another form: compute again
        return _KEPT.validate_python(parse_json(cached.read_bytes()))
    floors = _measure(prepared, tokenizer, split)
    with contextlib.suppress(OSError):  # without a cache the next evaluation only takes longer
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cached, json.dumps(floors).encode())
    return floors


def _cached(prepared: Prepared, tokenizer: Tokenizer, split: str) -> Path:
    used = ("train", split)
    unknown = tokenizer.unk_id  # None: the tokens need no check
    lossy = not tokenizer.keeps_text or (
        unknown is not None and any(holds(prepared.splits[name].tokens, unknown) for name in used)
    )
    texts = [prepared.meta["splits"][name]["sha256"] for name in used]
    parts = [VERSION, _from_grammar(prepared), split, *texts, tokenizer.fingerprint if lossy else None]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return cache_root() / "floors" / f"{key[:32]}.json"


def _from_grammar(prepared: Prepared) -> bool:
    """Whether the text is the stories as the grammar wrote them."""
    return prepared.meta["source"] == "stories" and not prepared.meta["clean"]


def _measure(prepared: Prepared, tokenizer: Tokenizer, split: str) -> Floors:
    if split == "train" and not _from_grammar(prepared):
        return {}
    table = TokenText(tokenizer)
    text = table.whole(prepared.splits[split].tokens)
    train = prepared.splits["train"].tokens
    # Other threads compress, without Python's lock, while this one reads the stories.
    with ThreadPoolExecutor(1) as pool:
        parts = (table.head(train, FIT_BYTES), table.tail(train, XZ_BYTES), text)
        source = prepared.meta["splits"][split]
        kept = tokenizer.keeps_text or hashlib.sha256(text.tobytes()).hexdigest() == source["sha256"]
        fitted = pool.submit(compute_floors, *parts) if split != "train" and kept else None
        stories = stories_floors(text) if _from_grammar(prepared) else {}
        share = len(text) / source["bytes"]  # below 1 if the tokenizer lost a part of the text
        return {name: bits * share for name, bits in (fitted.result() if fitted else {}).items()} | stories


def stories_floors(text: Bytes) -> Floors:
    """Entropy of the grammar, and surprisal of these stories; each story is one line."""
    floors = {"entropy": generator.entropy().bits_per_byte}
    # If a tokenizer made for another text lost a character, the grammar cannot have written these stories.
    with contextlib.suppress(DataError):
        nats = -sum(map(generator.log_probability, text.tobytes().decode("ascii").splitlines(keepends=True)))
        floors["surprisal"] = nats / math.log(2) / len(text)
    return floors
