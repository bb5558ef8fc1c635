"""Define tokenizers without merges: one id per character, or per byte."""

import sys
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import numpy as np

from minigpt.errors import TokenizerError
from minigpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer, file_tree, valid_unicode
from minigpt.tokenizers.patterns import byte_chars, byte_level


class CharTokenizer(Tokenizer):
    """One id per character of the text it was built from.

    Ids: unk 0, eos 1, then the characters in order of their code points. With unknown="error" there is no unk, and an
    unknown character raises a TokenizerError that names it and its place. With ends=False there is no eos, as in
    nanoGPT.
    In tokenizer.json this is a WordLevel model over text split at every character. If its vocabulary has no unk, that
    means unknown="error" (Hugging Face then fails on unknown characters too).
    """

    kind = "char"

    def __init__(self, characters: Iterable[str], unknown: Literal["token", "error"] = "token", ends: bool = True):
        names = [UNK] * (unknown == "token") + [EOS] * ends
        self.characters = sorted(set(characters))
        if longer := [char for char in self.characters if len(char) != 1]:
            raise TokenizerError(f"{longer[0]!r} is not one character; make the tokenizer again from its text")
        self.unknown = unknown
        pieces = [b""] * len(names) + [char.encode() for char in self.characters]
        super().__init__(pieces, {name: id_ for id_, name in enumerate(names)})

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], unknown: Literal["token", "error"] = "token", ends: bool = True
    ) -> "CharTokenizer":
        """The tokenizer of all characters in these chunks. Raises TokenizerError if there are none."""
        known = np.zeros(sys.maxunicode + 1, bool)  # by code point: two to nine times as fast as a set of characters
        for text in texts:
            known[_code_points(text)] = True
        if not known.any():
            raise TokenizerError("no text to take characters from; give a text that is not empty")
        return cls(map(chr, np.flatnonzero(known)), unknown, ends)

    @cached_property
    def _table(self) -> np.ndarray:
        """Code point to id, (last code point + 2,); vocab_size if unknown. The last entry is for higher code points."""
        codes = np.array([ord(char) for char in self.characters], dtype=np.int64)
        table = np.full(int(codes.max(initial=0)) + 2, self.vocab_size, dtype=np.uint32)
        table[codes] = np.arange(self.vocab_size - len(codes), self.vocab_size)
        return table

    def encode_array(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        unknown = ids == self.vocab_size
        if unknown.any():
            if self.unk_id is None:
                place = int(unknown.argmax())
                raise TokenizerError(
                    f"character {chr(codes[place])!r} at position {place} is not in the tokenizer's vocabulary; "
                    "drop it from the text, or build the tokenizer with --tokenizer.unknown token"
                )
            ids[unknown] = self.unk_id
        return ids.astype(self.dtype)

    def to_tree(self) -> dict[str, Any]:
        first = self.vocab_size - len(self.characters)
        vocab = self.special_tokens | {char: first + index for index, char in enumerate(self.characters)}
        return file_tree(
            self,
            model={"type": "WordLevel", "vocab": vocab, "unk_token": UNK},
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            decoder={"type": "Fuse"},
        )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(valid_unicode(text).encode("utf-32-le"), dtype="<u4")


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8, equal to the byte; then eos 256, bos 257, pad 258.

    Every text can be encoded. In tokenizer.json this is a byte-level BPE without merges and without a split.
    """

    kind = "byte"

    def __init__(self) -> None:
        pieces = [bytes([byte]) for byte in range(256)] + [b""] * 3
        super().__init__(pieces, {EOS: 256, BOS: 257, PAD: 258})

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(valid_unicode(text).encode(), dtype=np.uint8).astype(self.dtype)

    def to_tree(self) -> dict[str, Any]:
        vocab = {char: byte for byte, char in enumerate(byte_chars())} | self.special_tokens
        return file_tree(
            self,
            model=bpe_model(vocab, []),
            pre_tokenizer=byte_level(use_regex=False),
            decoder=byte_level(use_regex=True),
        )


def bpe_model(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The `model` of tokenizer.json for a byte-level BPE."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
