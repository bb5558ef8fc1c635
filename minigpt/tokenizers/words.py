"""Define the tokenizer of whole words, as published WikiText results count them.

There is one id per word, `<eos>` for a line end, and `<unk>` for all other words:

    "the cat \\n sat"  ->  the  cat  <eos>  sat

Notable choices:
- Text is split at the 29 white space characters of `str.split()`. Only "\\n" becomes a token, so "\\r\\n" is one line
  end, and "\\r" alone is a space.
- Decoding writes one space before each token. So a text in WikiText's form (" the cat \\n": one space before each word
  and each line end) is decoded to itself. Any other text keeps its known words and its line ends, but not its white
  space.
- `<eos>` is text: it ends a line, not a document. No token ends a document, so `eos_id` is None. If the words `<eos>`
  and `<unk>` occur in a text, they become these tokens, as in WikiText.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigpt.download import Progress
from minigpt.errors import TokenizerError
from minigpt.tokenizers.base import Tokenizer, file_tree, valid_unicode

LINE_END, UNKNOWN = "<eos>", "<unk>"
WIKITEXT_2 = 33_278
"""Size of WikiText-2's vocabulary (Merity et al., 2016, table 1), for estimates before a text is read."""
SPACES = "".join(chr(code) for code in (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
                                        0x2028, 0x2029, 0x202F, 0x205F, 0x3000))  # fmt: skip
"""The white space characters of `str.split()`, including the line end."""
_GAP = re.compile(f"[{SPACES}]+")
_IN_REGEX = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\n", re.DOTALL)
"""An escape, a set of characters, or a line end in a regular expression."""
_SPACED = r"(?:\x20?\n(?:\x20(?!\n))?)"
_SPELLED = re.compile(rf"{UNKNOWN}(?!\S)")


class WordTokenizer(Tokenizer):
    """One id per word; see the module's docstring.

    In tokenizer.json this is a WordLevel model whose normalizer writes `<eos>` for each line end. `<eos>` and `<unk>`
    are words of its vocabulary, so it has no special tokens.
    """

    kind = "word"
    unit = "word"
    keeps_text = False

    def __init__(self, words: Sequence[str]):
        """`words[id]`; `<eos>` and `<unk>` are among them.

        Raises:
            TokenizerError: `<eos>` or `<unk>` is missing, or a word is there twice or contains white space.
        """
        self._ids = {word: id_ for id_, word in enumerate(words)}
        if (wrong := next((word for word in words if word.split() != [word]), None)) is not None:
            raise TokenizerError(f"{wrong!r} is not one word; make the tokenizer again from its text")
        if len(self._ids) != len(words) or not {LINE_END, UNKNOWN} <= self._ids.keys():
            raise TokenizerError(f"its words are not all different, with {LINE_END} and {UNKNOWN}; make it again")
        self.words = list(words)
        super().__init__([b" \n" if word == LINE_END else f" {word}".encode() for word in words], {})
        self.unk_id = self._ids[UNKNOWN]

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], vocab_size: int | None = None, progress: Progress | None = None
    ) -> "WordTokenizer":
        """The tokenizer of the most frequent words. Ids go by frequency, from 0; equal ones are in code point order.

        Args:
            texts: each is read once; no word may continue from one to the next.
            vocab_size: the most ids, `<eos>` and `<unk>` included (default: all words).
            progress: called with (what, characters done, None).

        Raises:
            TokenizerError: vocab_size is below 3, or the texts have no word.
        """
        if vocab_size is not None and vocab_size < 3:
            raise TokenizerError(f"vocab_size {vocab_size} is too small for word; give 3 or more, or leave it out")
        counts: Counter[str] = Counter()
        done = 0
        for text in texts:
            counts.update(_split(text))
            done += len(text)
            if progress:
                progress("counting words", done, None)
        if not counts.keys() - {LINE_END, UNKNOWN}:
            raise TokenizerError(f"no words but {LINE_END} and {UNKNOWN}; give a text that has some")
        always = {name: counts.pop(name, 0) for name in (LINE_END, UNKNOWN)}
        room = None if vocab_size is None else vocab_size - len(always)
        kept = sorted(counts.items(), key=_place)[:room]
        return cls([word for word, _ in sorted([*kept, *always.items()], key=_place)])

    def encode_array(self, text: str) -> np.ndarray:
        words = _split(text)
        ids, unknown = self._ids, self.unk_id
        return np.fromiter((ids.get(word, unknown) for word in words), self.dtype, len(words))

    def safe_cut(self, text: str) -> int:
        """Largest index next to white space, so that no word is cut; 0 if there is none."""
        for index in range(len(text) - 1, 0, -1):
            if text[index].isspace() or text[index - 1].isspace():
                return index
        return 0

    def unknown_parts(self, text: str) -> list[str]:
        return [word for word in dict.fromkeys(_split(text)) if word not in self._ids]

    def spelled_unknown(self, text: str) -> int:
        starts = (match.start() for match in _SPELLED.finditer(text))
        return sum(start == 0 or text[start - 1].isspace() for start in starts)

    def respaced(self, text: str) -> str:
        """respaced("end.\\n\\nThe") -> "end. \\n \\n The". White space around a word may end or begin the text."""
        return _GAP.sub(_gap, text)

    def respaced_regex(self, expression: str) -> str:
        """Line ends also match their spaces: that before them, and that of a word after them. ^ and $ stay as they are.

        Without `(?!\\n)` there would be two ways to match the space in " \\n \\n", so 2^n ways to match n line ends.
        """
        ends = [r"\n"] if re.search(r"\(\?\w*x", expression) else [r"\n", "\n"]  # with (?x) the second is layout
        return _IN_REGEX.sub(lambda part: _SPACED if part[0] in ends else part[0], expression)

    def to_tree(self) -> dict[str, Any]:
        return file_tree(
            self,
            model={"type": "WordLevel", "vocab": dict(self._ids), "unk_token": UNKNOWN},
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": f"[{SPACES}]+"},
                "behavior": "Removed",
                "invert": False,
            },
            decoder={
                "type": "Sequence",
                "decoders": [_replace({"Regex": "^"}, " "), _replace({"Regex": f"^ {LINE_END}$"}, " \n"), _FUSE],
            },
            normalizer=_replace({"String": "\n"}, f" {LINE_END} "),
        )


_FUSE = {"type": "Fuse"}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(text: str) -> list[str]:
    """_split(" a b\\n") -> ["a", "b", "<eos>"]."""
    return valid_unicode(text).replace("\n", f" {LINE_END} ").split()


def _gap(found: re.Match[str]) -> str:
    """A match of white space as decoding writes it: a space before each line end, and before a word."""
    lines = " \n" * found[0].count("\n")
    return lines if lines and found.end() == len(found.string) else lines + " "


def _place(counted: tuple[str, int]) -> tuple[int, str]:
    """A sort key: the most frequent word first, equal ones in code point order."""
    word, count = counted
    return -count, word


def from_model(tree: dict[str, Any]) -> WordTokenizer:
    """The tokenizer of a tokenizer.json. Raises TokenizerError, KeyError and the like."""
    vocab: dict[str, int] = tree["model"]["vocab"]
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise TokenizerError("its ids are not 0, 1, 2 and so on without a hole; minigpt cannot run it")
    tokenizer = WordTokenizer(sorted(vocab, key=vocab.__getitem__))
    ours = tokenizer.to_tree()
    if strange := next((part for part in ours if tree.get(part, ours[part]) != ours[part]), None):
        raise TokenizerError(f"its {strange} is not as minigpt writes it for words; make it again")
    return tokenizer
