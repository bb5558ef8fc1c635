"""Define the base class of all tokenizers: a table of byte strings, one per id, and a way to cut text into them.

Notable choices:
- A token stands for bytes, not characters, so one character may be several tokens. `utf8_stream.TextStream` streams
  text and never emits half a character.
- Text that looks like a special token ("<|endoftext|>") is ordinary text unless `special=True`, so that a document
  cannot end itself. Tokenizer files from others can have added tokens that are not special ("<think>" in Qwen3); these
  are always found in a text, and shown.
- `fingerprint` is the sha256 of the canonical tokenizer.json; token files and checkpoints store it.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.errors import TokenizerError
from minigpt.files import write_text
from minigpt.layout import TOKENIZER
from minigpt.tokenizers.patterns import safe_cut

EOS, BOS, PAD, UNK = "<|endoftext|>", "<|bos|>", "<|pad|>", "<|unk|>"
_LONG = 30
"""At most this many characters of an unknown word are shown."""


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        kind: char, byte, bpe, gpt2, sentencepiece or word.
        unit: what unk stands for, character or word.
        keeps_text: whether decoding gives back the same text, if it has no unknown units.
        vocab_size: number of ids, special tokens included.
        special_tokens: name to id, {"<|endoftext|>": 50256}.
        added_tokens: text to id of added tokens that are not special; no merges make them (only in others' files).
        eos_id, bos_id, pad_id, unk_id: the ids of these special tokens, None if there is none.
        dtype: smallest of uint16 and uint32 that holds every id; `encode_array` returns it.
    """

    kind: str
    unit: str = "character"
    keeps_text: bool = True

    def __init__(
        self, pieces: Sequence[bytes], special_tokens: Mapping[str, int], added_tokens: Mapping[str, int] | None = None
    ):
        """`pieces[id]` is the text of an id, b"" for special and added tokens.

        Raises:
            TokenizerError: the id of a special or added token is outside the vocabulary, or used twice.
        """
        self.added_tokens = dict(added_tokens or {})
        named = [*special_tokens.items(), *self.added_tokens.items()]
        uses = Counter(id_ for _, id_ in named)
        for name, id_ in named:
            kind = "added" if name in self.added_tokens else "special"
            if not 0 <= id_ < len(pieces):
                raise TokenizerError(f"the {kind} token {name!r} has the id {id_}, outside of the vocabulary")
            if pieces[id_] or uses[id_] > 1:
                raise TokenizerError(f"the {kind} token {name!r} shares its id {id_} with another token")
        self._pieces = list(pieces)
        for name, id_ in self.added_tokens.items():
            self._pieces[id_] = name.encode()
        self.vocab_size = len(self._pieces)
        self.special_tokens = dict(sorted(special_tokens.items(), key=lambda item: item[1]))
        ids = dict(named)
        self.eos_id, self.bos_id = ids.get(EOS), ids.get(BOS)
        self.pad_id, self.unk_id = ids.get(PAD), ids.get(UNK)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        self._special_names = {id_: name.encode() for name, id_ in self.special_tokens.items()}

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text as an array (n,) of `dtype`; the fast way for whole files."""

    def encode_next(self, text: str) -> np.ndarray:
        """Ids of a text that continues another: those of `encode_array`, without a mark of the beginning."""
        return self.encode_array(text)

    @abstractmethod
    def to_tree(self) -> dict[str, Any]:
        """The content of tokenizer.json, in the format of Hugging Face `tokenizers`."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text. With special=True the names of special tokens in it become their ids."""
        named = self.added_tokens | (self.special_tokens if special else {})
        if not named:
            return self._encode(text)
        longest_first = sorted(named, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        ids: list[int] = []
        for index, part in enumerate(parts):  # odd parts are the names themselves
            ids.extend([named[part]] if index % 2 else self._encode(part))
        return ids

    def safe_cut(self, text: str) -> int:
        """Largest index where cutting the text does not change its ids; 0 if none is known."""
        return safe_cut(text)

    def unknown_parts(self, text: str) -> list[str]:
        """Units of a text that the tokenizer does not know, each once, in the order of the text."""
        if self.unk_id is None:
            return []
        return [char for char in dict.fromkeys(text) if self.unk_id in self.encode(char)]

    def spelled_unknown(self, text: str) -> int:
        """How often a text itself contains the name of unk, as WikiText does; these are not unknown units."""
        return 0

    def _encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids (ints, an array or a tensor); bytes that are not UTF-8 become U+FFFD.

        Special tokens are left out, or written by name with skip_special=False. The unk token is always
        shown, as U+FFFD or by name, since it stands for a character of the text.
        """
        return b"".join(self.shown(int(id_), skip_special) for id_ in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id_: int) -> bytes:
        """Bytes of source text that a token stands for; b"" for special tokens, including unk."""
        self._check(id_)
        return self._pieces[id_]

    def respaced(self, text: str) -> str:
        """A part of a text as `decode` spells it: words have their own white space, other tokenizers keep a text's."""
        return text

    def respaced_regex(self, expression: str) -> str:
        """A regular expression for a text as a person writes it, made to match that text as `decode` spells it."""
        return expression

    def label(self, id_: int) -> str:
        """One token for a person or a list: a special one by its name, a part of a character as in `show`."""
        return show(self.token_bytes(id_)) or self.decode([id_], skip_special=False)

    def shown(self, id_: int, skip_special: bool) -> bytes:
        self._check(id_)
        if id_ not in self._special_names:
            return self._pieces[id_]
        if not skip_special:
            return self._special_names[id_]
        return "\ufffd".encode() if id_ == self.unk_id else b""

    def _check(self, id_: int) -> None:
        if not 0 <= id_ < self.vocab_size:
            raise TokenizerError(f"token id {id_} is not one of this {self.kind} tokenizer's 0..{self.vocab_size - 1}")

    def to_json(self) -> str:
        """tokenizer.json as text; the same tokenizer always gives the same text."""
        return json.dumps(self.to_tree(), ensure_ascii=False, indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of `to_json()`."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json atomically. `path` is a .json file, or a directory for it."""
        path = Path(path)
        target = path if path.suffix == ".json" else path / TOKENIZER
        write_text(target, self.to_json(), "choose another file", parents=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind!r}, vocab_size={self.vocab_size})"


def valid_unicode(text: str) -> str:
    """Replace lone surrogates (from broken JSON escapes or file names) by U+FFFD, as tiktoken does."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def show(piece: bytes) -> str:
    """A token's bytes as text; bytes that are not UTF-8 by themselves in hexadecimal: b" \\xf0\\x9f" -> " <f0><9f>"."""
    text = piece.decode("utf-8", "surrogateescape")
    return "".join(f"<{ord(char) - 0xDC00:02x}>" if "\udc80" <= char <= "\udcff" else char for char in text)


def listed(parts: Sequence[str], most: int = 20) -> str:
    """A printable list of the first characters or words, long words shortened: "\u2603 '\\t' ..."."""
    short = (part if len(part) <= _LONG else part[:_LONG] + "…" for part in parts[:most])
    shown = " ".join(part if part.isprintable() and not part.isspace() else repr(part) for part in short)
    return shown + " ..." * (len(parts) > most)


def file_tree(
    tokenizer: Tokenizer,
    model: dict[str, Any],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    normalizer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of tokenizer.json, made of its parts.

    The format allows no extra keys (tokenizers 0.23 refuses the file), so `load` recognises the kind of
    tokenizer by the parts: see the docstrings of the kinds.
    """
    named = tokenizer.special_tokens | tokenizer.added_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **flags, "special": name in tokenizer.special_tokens}
            for name, id_ in sorted(named.items(), key=lambda item: item[1])
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
