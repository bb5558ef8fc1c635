"""Test that any bytes given as data, prompts or records are read, or refused with one line. `-s` prints the counts."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_watch import Watch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.cli.prompts import read_prompts
from minigpt.config import DataConfig
from minigpt.data.corpus import open_corpus
from minigpt.errors import UserError
from minigpt.generation.text.prompts import encode_prompts, typed_prompt
from minigpt.tokenizers import ByteTokenizer, CharTokenizer
from minigpt.tokenizers.chat_template import Template, read_template
from minigpt.training.finetune.records import holds_records, read_records

FEW, MANY = 400, 10_000
NAMES = ("x", "x.txt", "x.jsonl", "X.JSONL", "x.ndjson", "x.json", "x.json.gz", "x.gz", "é\udcff.txt")

ODD = ["", "\ud83d", "<|endoftext|>", "a", "b c", "a\u2028b", "\0", "\ufeff"]
texts = st.one_of(st.text(max_size=30), st.sampled_from(ODD))
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none())
values = st.recursive(
    st.one_of(texts, numbers), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
GOOD = (
    st.fixed_dictionaries({"text": texts}),
    st.fixed_dictionaries({"prompt": texts, "completion": texts}, optional={"seed": st.integers(0, 9), "more": values}),
    st.fixed_dictionaries({"messages": st.lists(message, min_size=2, max_size=4)}),
    st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}),
    texts,
)
BAD = st.one_of(
    st.fixed_dictionaries({"text": values}),
    st.fixed_dictionaries({"prompt": texts | values}, optional={"seed": values, "completion": values}),
    st.fixed_dictionaries({"messages": st.lists(message | values, max_size=3) | values}),
    values,
)


@st.composite
def rows(draw: st.DrawFn) -> list[Any]:
    """Good rows of one kind, and sometimes a bad row."""
    kind = draw(st.sampled_from(GOOD))
    found = draw(st.lists(kind, min_size=2, max_size=6))
    return [*found, draw(BAD)] if draw(st.integers(0, 3)) == 0 else found


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """JSON of all forms, texts, deep nests and noise, sometimes cut, joined, or in another encoding."""
    kind = draw(st.sampled_from(["lines", "lines", "list", "pretty", "text", "noise", "deep"]))
    if kind == "noise":
        return draw(st.binary(max_size=60))
    if kind == "deep":
        text = draw(st.sampled_from(["[", '{"a":', '{"prompt": [', '[{"text":'])) * draw(st.integers(1, 3000))
    elif kind == "text":
        text = draw(st.text(max_size=80) | st.sampled_from(["[1] a\n", "{x}\n", '["a", "b"]\n', "{}\n{}\n", "\n\n"]))
    else:
        found = draw(rows())
        ascii_ = draw(st.booleans())
        spelled = [json.dumps(one, ensure_ascii=ascii_) for one in found]
        text = "\n".join(spelled) if kind == "lines" else json.dumps(found, indent=1 if kind == "pretty" else None)
    data = draw(st.sampled_from(["", "\ufeff"])).encode() + text.encode(
        draw(st.sampled_from([*["utf-8"] * 8, "utf-16", "latin-1"])), "replace"
    )
    start, end = draw(st.integers(0, 2)), draw(st.integers(0, 3))
    return data[start : len(data) - end] if draw(st.integers(0, 7)) == 0 else data


def as_data(path: Path) -> Any:
    """Read a training text, with a mark to split it at."""
    found = []
    for mark in ("", "<|endoftext|>"):
        corpus = open_corpus(DataConfig(source=str(path), split_at=mark))
        found.append([piece.text for piece in corpus.pieces()])
        assert all(found[-1])
    return [text.encode() for texts in found for text in texts]  # raises if half of a surrogate pair got through


def as_prompts(path: Path) -> Any:
    """Read and encode a file of prompts, and write them again."""
    found = read_prompts(str(path))
    for tokenizer in (ByteTokenizer(), CharTokenizer("abc")):
        encode_prompts([record["prompt"] for record in found], tokenizer, 64)
    return [json.dumps(record) for record in found]


def as_records(path: Path) -> Any:
    """Read and encode records."""
    if not holds_records(str(path), "utf-8", "text"):
        return None
    found = read_records(path, clean=("newlines", "nfc"))
    pieces = [piece for record in found for piece in record.pieces(Template(), eos=True)]
    return [ByteTokenizer().encode(piece.text) for piece in pieces]


def as_template(path: Path) -> Any:
    """Read a chat template."""
    return read_template(path).jinja()


def as_typed(path: Path) -> Any:
    """Give the bytes as an argument of the command line."""
    return typed_prompt(os.fsdecode(path.read_bytes().replace(b"\0", b""))[1:] + "x").encode()


READERS: tuple[Callable[[Path], Any], ...] = (as_data, as_prompts, as_records, as_template, as_typed)


def tried(folder: Path, count: int) -> Counter[str]:
    """Give `count` contents to every reader. Anything but a UserError of one line fails."""
    told: Counter[str] = Counter()
    numbers: Iterator[int] = iter(range(10**9))
    watch = Watch()

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(contents(), st.sampled_from(NAMES))
    def check(data: bytes, name: str) -> None:
        path = folder / f"{next(numbers)}{name}"  # a new name, since surveys are cached by name, size and time
        path.write_bytes(gzip.compress(data) if name.endswith("gz") and len(data) % 4 else data)
        for reader in READERS:
            try:
                with watch.example():
                    read = reader(path)
                told[f"{reader.__name__}: {'read' if read else 'not for it'}"] += 1
            except UserError as error:
                assert str(error)
                assert "\n" not in str(error), error
                told[f"{reader.__name__}: refused"] += 1
        path.unlink()

    check()
    watch.end("\n".join(f"{told[what]:>9,} {what}" for what in sorted(told)))
    assert all(told[f"{reader.__name__}: read"] > count / 100 for reader in READERS if reader is not as_template)
    assert all(told[f"{reader.__name__}: refused"] > count / 100 for reader in READERS)
    return told


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    tried(tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_very_many_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    tried(tmp_path, MANY)
