"""Speed of our BPE trainer beside Hugging Face's (Rust), and of our encoders beside plain tiktoken, in one run.

    python benchmarks/tokenizer_speed.py TEXT [--vocab-size 8192] [--pattern gpt4] [--repeats 3] [--json]

TEXT is a UTF-8 file, as WikiText-2's train.txt. Each figure is the best of the repeats, which alternate, so that a
busy machine slows all alike. Hugging Face uses as many threads as RAYON_NUM_THREADS says (default: all cores);
ours and tiktoken's one. Before anything is timed, merges and ids are checked to be equal. Needs the test extra.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Theirs

from minigpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, safe_cut
from minigpt.tokenizers.bpe import SPECIALS
from minigpt.tokenizers.patterns import PATTERNS, PUBLISHED


def train_theirs(blocks: list[str], vocab_size: int, pattern: str) -> Theirs:
    """Hugging Face's trainer with our pattern, alphabet and special tokens, over blocks for its threads."""
    theirs = Theirs(models.BPE())
    split = pre_tokenizers.Split(Regex(PUBLISHED[pattern]), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(blocks, trainer)
    return theirs


def safe_blocks(text: str) -> Iterator[str]:
    """The text in blocks of about 128 KB, cut where no pre-token is."""
    while len(text) > 2**17 and (cut := safe_cut(text[: 2**17])):
        yield text[:cut]
        text = text[cut:]
    yield text


def best(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of each job: the best of the repeats, in turn."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def measure(text: str, vocab_size: int, pattern: str, repeats: int) -> dict[str, Any]:
    """All figures. Fails if ours and theirs differ."""
    chunks = [text[start : start + 2**20] for start in range(0, len(text), 2**20)]
    blocks = list(safe_blocks(text))
    ours, theirs = BPETokenizer.train(chunks, vocab_size, pattern), train_theirs(blocks, vocab_size, pattern)
    merges = [" ".join(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    same_merges = merges == ours.to_tree()["model"]["merges"]
    plain = tiktoken.Encoding("plain", pat_str=PATTERNS[pattern], mergeable_ranks=ours._ids, special_tokens={})
    same_ids = ours.encode_array(text).tolist() == plain.encode_ordinary(text) == theirs.encode(text).ids
    if not (same_merges and same_ids):
        raise SystemExit(f"not the same: merges {same_merges}, ids {same_ids}")
    char, byte = CharTokenizer.from_texts(chunks), ByteTokenizer()
    part = text[: 2**17]
    training = best(
        {
            "minigpt": lambda: BPETokenizer.train(chunks, vocab_size, pattern),
            "tokenizers (Rust)": lambda: train_theirs(blocks, vocab_size, pattern),
        },
        repeats,
    )
    encoding = best(
        {
            "tiktoken, list": lambda: [plain.encode_ordinary(chunk) for chunk in chunks],
            "tiktoken, array": lambda: [plain.encode_to_numpy(chunk, disallowed_special=()) for chunk in chunks],
            "minigpt bpe, array": lambda: [ours.encode_array(chunk) for chunk in chunks],
            "minigpt bpe, list": lambda: [ours.encode(chunk) for chunk in chunks],
            "minigpt char, array": lambda: [char.encode_array(chunk) for chunk in chunks],
            "minigpt byte, array": lambda: [byte.encode_array(chunk) for chunk in chunks],
        },
        repeats,
    )
    slow = best({"minigpt bpe, reference": lambda: ours.encode_reference(part)}, 1)
    size = len(text.encode()) / 1e6
    speed = {name: size / seconds for name, seconds in encoding.items()}
    speed |= {name: len(part.encode()) / 1e6 / seconds for name, seconds in slow.items()}
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "rayon_threads": os.environ.get("RAYON_NUM_THREADS", "all"),
        "megabytes": size,
        "vocab_size": ours.vocab_size,
        "pattern": pattern,
        "training_seconds": {name: round(seconds, 3) for name, seconds in training.items()},
        "encoding_mb_per_second": {name: round(value, 2) for name, value in speed.items()},
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--pattern", choices=sorted(PATTERNS), default="gpt4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with args.text.open(encoding="utf-8", newline="") as file:
        report = measure(file.read(), args.vocab_size, args.pattern, args.repeats)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            print(name.replace("_", " "))
            for row, figure in value.items():
                print(f"  {row:<24}{figure:>10.2f}")
        else:
            print(f"{name.replace('_', ' '):<26}{value}")


if __name__ == "__main__":
    main()
