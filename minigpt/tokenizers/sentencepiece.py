"""Run tokenizers of Llama's family (SentencePiece's BPE). We read them from files, and never train them.

How a text is encoded:
1. A space is put before the text.
2. Each character becomes a token. A character that is not in the vocabulary becomes its bytes: every byte has a token.
3. Two neighbours that form a token are joined, again and again. The pair whose token has the best rank goes first; of
   equal pairs, the leftmost.

No pattern splits the text into words first. The space of step 1 makes the first word look like every other word.
llama2.c's tokenizer.bin is a tokenizer of this kind.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.errors import TokenizerError
from minigpt.tokenizers.base import EOS, UNK, Tokenizer, file_tree, valid_unicode
from minigpt.tokenizers.joining import join
from minigpt.tokenizers.simple import bpe_model

SPACE = "▁"
"""How a space is spelled in files."""
MOST_TOKENS, LONGEST = 1 << 20, 1 << 10
"""Most tokens of a tokenizer.bin, and characters of a token, since `to_tree` cuts each token at every place. Llama has
32,000 tokens of at most 27 bytes."""


class SentencePieceTokenizer(Tokenizer):
    """Merges by rank; characters outside the vocabulary become bytes. Special tokens are never found in a text."""

    kind = "sentencepiece"

    def __init__(self, texts: Sequence[str], ranks: Mapping[str, float], special_tokens: Mapping[str, int]):
        """
        Args:
            texts: the text of each id, with real spaces; "<0x0A>" for bytes, "" for special tokens.
            ranks: token to its rank; the lowest is joined first. A token without a rank is never made by joining.
            special_tokens: name to id.

        Raises:
            TokenizerError: a byte without a token, two tokens with the same text, or a token that is too long.
        """
        if max(map(len, texts), default=0) > LONGEST:
            raise TokenizerError(f"one of its tokens has more than {LONGEST:,} characters; minigpt cannot run it")
        self._bytes = {int(text[3:5], 16): id_ for id_, text in enumerate(texts) if BYTE.fullmatch(text)}
        if len(self._bytes) != 256:
            raise TokenizerError("its vocabulary has no tokens for all 256 bytes; minigpt cannot run it")
        of_bytes = {id_: bytes([byte]) for byte, id_ in self._bytes.items()}
        plain = [(text, id_) for id_, text in enumerate(texts) if text and id_ not in of_bytes]
        self._ids = dict(plain)
        if len(self._ids) != len(plain):
            raise TokenizerError("two of its tokens have the same text; minigpt cannot run it")
        joined = (text for text in ranks if text in self._ids and len(text) > 1)
        order = sorted(joined, key=lambda text: (ranks[text], self._ids[text]))
        self._ranks = {text: rank for rank, text in enumerate(order)}
        super().__init__([of_bytes.get(id_, text.encode()) for id_, text in enumerate(texts)], special_tokens)
        self._words = lru_cache(1 << 16)(self._merged)

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=self.dtype)

    def safe_cut(self, text: str) -> int:
        """0, since no cut is safe: each part would get a space in front."""
        return 0

    def _encode(self, text: str) -> list[int]:
        return self._encode_spaced(f" {text}") if text else []

    def encode_next(self, text: str) -> np.ndarray:
        """Ids of a text that continues another: it gets no space in front."""
        return np.array(self._encode_spaced(text), dtype=self.dtype)

    def _encode_spaced(self, text: str) -> list[int]:
        text = valid_unicode(text).replace(SPACE, " ")
        words = re.findall(r" *[^ ]+| +", text) if self._words_apart else [text]
        return [id_ for word in words for id_ in self._words(word)]

    @cached_property
    def _words_apart(self) -> bool:
        """Whether no token has a space after other characters, so that each word can be merged separately."""
        return not any(re.search(r"[^ ] ", text) for text in self._ranks)

    def _merged(self, word: str) -> tuple[int, ...]:
        """Ids of a word, in time n log n for n characters."""
        ids: list[int] = []
        for part in join(word, self._joined):
            known = self._ids.get(part)
            ids += [self._bytes[byte] for byte in part.encode()] if known is None else [known]
        return tuple(ids)

    def _joined(self, one: str, two: str) -> tuple[int, str] | None:
        rank = self._ranks.get(both := one + two)
        return None if rank is None else (rank, both)

    def texts(self) -> list[str]:
        """How each id is spelled in files: "▁the", "<0x0A>", the names of special tokens."""
        spelled = {id_: text.replace(" ", SPACE) for text, id_ in self._ids.items()}
        spelled |= {id_: f"<0x{byte:02X}>" for byte, id_ in self._bytes.items()}
        spelled |= {id_: name for name, id_ in self.special_tokens.items()}
        return [spelled[id_] for id_ in range(self.vocab_size)]

    def places(self) -> dict[str, int]:
        """Each token that is made by joining, spelled as in files, to its place in the order of joining."""
        return {text.replace(" ", SPACE): place for text, place in self._ranks.items()}

    def to_tree(self) -> dict[str, Any]:
        vocab = {text: id_ for id_, text in enumerate(self.texts())}
        plain = {text.replace(" ", SPACE) for text in self._ids}
        merges = [
            f"{text[:cut]} {text[cut:]}"
            for text in self.places()
            for cut in range(1, len(text))
            if text[:cut] in plain and text[cut:] in plain
        ]
        return file_tree(
            self,
            model=bpe_model(vocab, merges) | {"byte_fallback": True, "unk_token": UNK if UNK in vocab else None},
            pre_tokenizer=None,
            decoder={
                "type": "Sequence",
                "decoders": [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}],
            },
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": SPACE}, _replace(" ", SPACE)],
            },
        )


BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _replace(one: str, other: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": one}, "content": other}


def from_model(tree: dict[str, Any]) -> SentencePieceTokenizer:
    """The tokenizer of a tokenizer.json whose BPE has byte_fallback. Raises TokenizerError, KeyError and the like."""
    vocab: dict[str, int] = tree["model"]["vocab"]
    specials = {token["content"]: token["id"] for token in tree["added_tokens"]}
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise TokenizerError("its ids are not 0, 1, 2 and so on without a hole; minigpt cannot run it")
    names = {id_: "" if text in specials else text.replace(SPACE, " ") for text, id_ in vocab.items()}
    pairs = (item.split(" ") if isinstance(item, str) else item for item in tree["model"]["merges"])
    joined = dict.fromkeys((left + right).replace(SPACE, " ") for left, right in pairs)
    ranks = {text: place for place, text in enumerate(joined)}
    return SentencePieceTokenizer([names[id_] for id_ in range(len(names))], ranks, specials)


def from_llama2c(path: Path) -> SentencePieceTokenizer:
    """The tokenizer of llama2.c's tokenizer.bin, which holds a score, a length and the bytes for each token.

    Token 1 comes before each story and no token ends one, so token 1 is our end of text. Raises TokenizerError.
    """
    texts: list[str] = []
    scores: list[float] = []
    try:
        data = path.read_bytes() if path.stat().st_size < MOST_TOKENS * 64 else b""
        place = 4  # after the length of the longest token
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            place += 8 + length
            if not 0 <= length <= LONGEST or place > len(data) or len(texts) == MOST_TOKENS:
                raise ValueError("an impossible length")
            texts.append(data[place - length : place].decode())
            scores.append(score)
    except (OSError, ValueError, struct.error) as error:
        raise TokenizerError(f"{path}: is not a whole tokenizer.bin of llama2.c ({error}); copy it again") from None
    if len(texts) < 259:
        raise TokenizerError(f"{path}: is not a whole tokenizer.bin of llama2.c; copy it again")
    names = {UNK: 0, EOS: 1, "</s>": 2}
    try:
        return SentencePieceTokenizer(["", "", "", *texts[3:]], _ranks(texts[3:], scores[3:]), names)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _ranks(texts: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Token to rank: the best score first."""
    return {text: -score for text, score in zip(texts, scores, strict=True)}


def from_scores(
    texts: Sequence[str], scores: Sequence[float], special_tokens: Mapping[str, int]
) -> SentencePieceTokenizer:
    """The tokenizer of a GGUF file, from its tokens (spelled as in files) and scores. Raises TokenizerError."""
    spaced = [text.replace(SPACE, " ") for text in texts]
    return SentencePieceTokenizer(
        ["" if id_ in special_tokens.values() else text for id_, text in enumerate(spaced)],
        _ranks(spaced, scores),
        special_tokens,
    )
