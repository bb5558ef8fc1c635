"""Encode text by byte-pair encoding (BPE) over bytes. The merges are learned (`train`) or read from a file.

A pattern splits the text into pre-tokens. In each pre-token, the known pair of neighbouring tokens that was learned
first is merged, again and again, until no known pair is left. `encode_reference` shows this in code. tiktoken does the
same in Rust, much faster. Its rule is "merge the pair whose joined bytes have the lowest id"; this is equivalent if the
merges are in the order of their ids, so only such files are accepted.
"""

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken

from minigpt.download import Progress
from minigpt.errors import TokenizerError
from minigpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer, file_tree, valid_unicode
from minigpt.tokenizers.joining import join
from minigpt.tokenizers.learn import Pair, count_words, learn_merges, merge, share_of_marks
from minigpt.tokenizers.patterns import (
    PATTERNS,
    byte_level,
    byte_order,
    cuts_safely,
    expression,
    pre_tokenizer_tree,
    safe_cut,
    spell,
    split,
)  # fmt: skip
from minigpt.tokenizers.simple import bpe_model

log = logging.getLogger(__name__)

SPECIALS = (PAD, UNK, BOS, EOS)
MANY_MARKS = 0.02
"""Share of combining marks in a text from which gpt4o is named."""
GAP = 1 << 18
"""Length of a window; see `_has_gap`."""


class BPETokenizer(Tokenizer):
    """Byte-level BPE.

    After training, the ids are pad 0, unk 1, bos 2, eos 3, then the 256 bytes in the order of their spelling
    (`byte_order`), then the merges, as in Hugging Face's BpeTrainer. No text ever encodes to unk.
    """

    kind = "bpe"

    def __init__(
        self,
        pieces: Sequence[bytes],
        merges: Sequence[Pair],
        pattern: str,
        special_tokens: Mapping[str, int],
        kind: str = "bpe",
        nfc: bool = False,
        added_tokens: Mapping[str, int] | None = None,
    ):
        """
        Args:
            pieces: bytes of each id, b"" for special and added tokens.
            merges: pairs of ids, in the order learned.
            pattern: "gpt2", "gpt4", "gpt4o", or an expression.
            special_tokens: name to id.
            kind: bpe, or gpt2 for OpenAI's.
            nfc: whether text is first normalized to Unicode's form NFC (only in others' files).
            added_tokens: text to id of added tokens that are not special (only in others' files).

        Raises:
            TokenizerError: pieces and merges do not match, or are not in the order of their ids.
        """
        super().__init__(pieces, special_tokens, added_tokens)
        self.kind = kind
        self.pattern, self.nfc = pattern, nfc
        self.merges = list(merges)
        self._ids = {piece: id_ for id_, piece in enumerate(pieces) if piece}
        products = [self._ids.get(pieces[left] + pieces[right], -1) for left, right in self.merges]
        if any(later <= earlier for earlier, later in pairwise([-1, *products])):
            raise TokenizerError("the merges are not in the order of their ids; minigpt cannot run it")
        if len(self._ids) != 256 + len(products) or any(bytes([byte]) not in self._ids for byte in range(256)):
            raise TokenizerError("the vocabulary is not the 256 bytes and their merges; minigpt cannot run it")
        self._ranks = dict(zip(self.merges, products, strict=True))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str = "gpt4",
        max_train_bytes: int | None = None,
        min_count: int = 2,
        progress: Progress | None = None,
    ) -> "BPETokenizer":
        """Learn a tokenizer.

        Args:
            texts: chunks of one text, read once, so that memory stays small.
            vocab_size: number of ids to reach, including the 4 special tokens. A small text may give a smaller
                vocabulary; a warning is logged then, and for a text with many marks that the pattern cuts off.
            pattern: "gpt2", "gpt4" or "gpt4o".
            max_train_bytes: learn only from this many bytes at the beginning of the text.
            min_count: a pair that occurs less often than this is not merged.
            progress: called with (what, how much is done, of how much).

        Raises:
            TokenizerError: vocab_size below 260, or no text.
        """
        base = len(SPECIALS) + 256
        if vocab_size < base:
            raise TokenizerError(
                f"vocab_size {vocab_size} is too small for bpe: 256 bytes and {len(SPECIALS)} special tokens "
                f"need {base}; raise it, or take kind byte or char"
            )
        words = count_words(texts, pattern, max_train_bytes, progress)
        if not words:
            raise TokenizerError("no text to learn merges from; give a text that is not empty")
        merges = learn_merges(words, vocab_size - base, min_count, progress)
        marks = share_of_marks(words) if pattern in ("gpt2", "gpt4") else 0
        if marks > MANY_MARKS:
            log.warning(
                "%.0f %% of the characters are combining marks, and the pattern %s cuts words at each; "
                "--tokenizer.pattern gpt4o (in minigpt tokenizer train: --pattern gpt4o) keeps such words whole",
                100 * marks, pattern,
            )  # fmt: skip
        if len(merges) < vocab_size - base:
            log.warning(
                "the %s for %d tokens: vocab_size is %d (no further pair occurs %d times)",
                "pieces of words are too short" if marks > MANY_MARKS else "text is too small",
                vocab_size, base + len(merges), min_count,
            )  # fmt: skip
        shift = len(SPECIALS)
        pieces = [b""] * shift + [bytes([byte]) for byte in byte_order()]
        for left, right in merges:
            pieces.append(pieces[left + shift] + pieces[right + shift])
        pairs = [(left + shift, right + shift) for left, right in merges]
        return cls(pieces, pairs, pattern, {name: id_ for id_, name in enumerate(SPECIALS)})

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return self._tiktoken(expression(self.pattern))

    @cached_property
    def _unsplit(self) -> tiktoken.Encoding:
        """Encodes a whole text as one pre-token."""
        return self._tiktoken(r"(?s).+")

    def _tiktoken(self, split: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(self.kind, pat_str=split, mergeable_ranks=self._ids, special_tokens={})

    def encode_array(self, text: str) -> np.ndarray:
        # Through a list, since tiktoken 0.14's encode_to_numpy is slower (0.76 s of processor time against 0.55 s for
        # WikiText-2 train).
        return np.array(self.encode(text), dtype=self.dtype)

    def safe_cut(self, text: str) -> int:
        return safe_cut(text) if self._may_cut else 0

    @cached_property
    def _may_cut(self) -> bool:
        return cuts_safely(self.pattern) and not any(char.isspace() for name in self.added_tokens for char in name)

    def _encode(self, text: str) -> list[int]:
        text = self._normal(text)
        if self.pattern in PATTERNS and not _has_gap(text):
            return self._encoding.encode_ordinary(text)
        return [id_ for word in split(self.pattern, text) for id_ in self._unsplit.encode_ordinary(word)]

    def _normal(self, text: str) -> str:
        text = valid_unicode(text)
        return unicodedata.normalize("NFC", text) if self.nfc else text

    def encode_reference(self, text: str) -> list[int]:
        """The textbook encoder, for readers and tests; gives the same ids as `encode`."""
        return [id_ for word in split(self.pattern, self._normal(text)) for id_ in self.merge_word(word.encode())]

    def merge_word(self, word: bytes) -> list[int]:
        """Ids of one pre-token: merge the pair that was learned first, everywhere, until no known pair is left."""
        ids = self._of_bytes(word)
        while len(ids) > 1:
            known = [pair for pair in pairwise(ids) if pair in self._ranks]
            if not known:
                break
            first = min(known, key=self._ranks.__getitem__)
            ids = merge(ids, first, self._ranks[first])
        return ids

    def unreached(self) -> bytes | None:
        """A token that the merges do not make, although tiktoken would use it; None if there is no such token."""
        tokens = (self._pieces[id_] for id_ in self._ranks.values())
        return next((piece for piece in tokens if len(join(self._of_bytes(piece), self._joined)) > 1), None)

    def _of_bytes(self, word: bytes) -> list[int]:
        return [self._ids[bytes([byte])] for byte in word]

    def _joined(self, left: int, right: int) -> tuple[int, int] | None:
        product = self._ranks.get((left, right))
        return None if product is None else (product, product)

    def to_tree(self) -> dict[str, Any]:
        spelt = {id_: spell(piece) for piece, id_ in self._ids.items()}
        names = spelt | {id_: name for name, id_ in (self.special_tokens | self.added_tokens).items()}
        vocab = {names[id_]: id_ for id_ in sorted(names)}
        return file_tree(
            self,
            model=bpe_model(vocab, [f"{spelt[left]} {spelt[right]}" for left, right in self.merges]),
            pre_tokenizer=pre_tokenizer_tree(self.pattern),
            decoder=byte_level(use_regex=True),
            normalizer={"type": "NFC"} if self.nfc else None,
        )


def _has_gap(text: str) -> bool:
    """Whether the text has 2 x GAP whitespace characters in a row (fewer may give True too).

    tiktoken's regular expression engine backtracks over such white space one character at a time, and panics after a
    million (tiktoken 0.14). A row of 2 x GAP always covers one of the windows of GAP characters. `isspace` stops at
    the first other character, so this check is fast.
    """
    return any(text[start : start + GAP].isspace() for start in range(0, len(text) - GAP + 1, GAP))
