"""Split text into pre-tokens, find places where text may be cut, and spell bytes as files do.

The split patterns are those of GPT-2 (Radford et al., 2019), GPT-4 (tiktoken's cl100k) and GPT-4o (o200k). Here they
have possessive quantifiers (`++`), which give the same splits and need no backtracking stack. tokenizer.json gets
patterns without them, since `++` means something else in some engines. `tests/tokenizers/test_tokenizers_patterns.py`
tests that all give the published splits. (A newer cl100k in tiktoken makes all white space at the end of a text one
piece; we do not.)

Only gpt4o counts combining marks (\\p{M}: the vowel signs of Hindi and Thai, the points of Hebrew) as parts of a word.
It also begins a new word at a capital letter after a small one, and leaves 's and the like at the word before.

Three engines run the patterns: `regex` (training), tiktoken's (encoding) and Hugging Face's. They agree on all of
Unicode 16. A newer `regex` knows more letters (Unicode 17) and may split these differently in training. That can change
which merges are learned from such text, but not how text is encoded.
"""

import re
from functools import cache
from typing import Any

import regex

from minigpt.errors import TokenizerError

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt4o": (
        r"[^\r\n\p{L}\p{N}\p{M}]?+(?:[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*+\p{Ll}[\p{Ll}\p{Lm}\p{Lo}\p{M}]*+"
        r"|(?:[\p{Lu}\p{Lt}]*+[\p{Lm}\p{Lo}\p{M}]++)++|[\p{Lu}\p{Lt}]++)(?i:'s|'t|'re|'ve|'m|'ll|'d)?+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n/]*+|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Name to the expression that minigpt runs."""

_POSSESSIVE = re.compile(r"([+*?]|\{[\d,]+\})\+")

PUBLISHED = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt4o": _POSSESSIVE.sub(r"\1", PATTERNS["gpt4o"]),
}
"""Name to the expression as it is written into tokenizer.json."""


DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""SmolLM's two splits as one pattern: each digit alone, then GPT-2's pattern on the text between digits."""


def expression(pattern: str) -> str:
    """The expression of a named pattern; any other text is an expression itself (from others' files)."""
    return PATTERNS.get(pattern, pattern)


_KNOWN = re.compile(
    r"""(?: \\[pP]\{[A-Z][a-z]?\} | \\[sSrnt] | \\[^A-Za-z0-9\s] | [^\\\[\](){}?*+|^$.]  # a character or a kind of it
          | \[\^?(?: \\[pP]\{[A-Z][a-z]?\} | \\[sSrnt] | \\[^A-Za-z0-9\s] | [^\\\[\]^&~|-]
                  | (?<=[A-Za-z0-9])-(?=[A-Za-z0-9]) )+\]
          | \(\?[:=!] | \((?!\?) | \(\?i:(?=['|a-z]+\))(?![^)]*(?:ff|fi|fl|ss|st)) | \) | \|
          | (?<![(|?*+])[?*+]\+? | \{\d+(?:,\d*)?\}(?![?+*{])
        )*""",
    re.VERBOSE,
)
"""Expressions that our engine and Hugging Face's both read the same way; \\w, ^, lazy and nested ones are not."""
_PROBE = "a A1 é漢'll\n\n  \t.-_ x\u0301\u00a0🙂 "
SECONDS = 5.0


def check(pattern: str) -> None:
    """Raises TokenizerError if an expression from others' files may give other pieces in our engine."""
    if not _KNOWN.fullmatch(pattern) or re.search("[\ud800-\udfff]", pattern):  # half a pair cannot be saved
        raise TokenizerError(f"its split expression {pattern[:60]!r} has parts that minigpt may run differently")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise TokenizerError(f"its split expression {pattern[:60]!r} is not valid ({error})") from None
    for text in ("", _PROBE):
        split(pattern, text)


def split(pattern: str, text: str) -> list[str]:
    """The pre-tokens of a text; text that the expression does not match is a piece too, as with Hugging Face.

    Raises TokenizerError if the expression has an empty match or takes too long.
    """
    pieces, end = [], 0
    try:
        for match in regex.finditer(expression(pattern), text, timeout=SECONDS + len(text) / 100_000):
            start = match.start()
            if start == match.end():
                raise TokenizerError(f"the tokenizer's split expression {pattern[:60]!r} can match an empty text")
            pieces += [text[end:start]] if end < start else []
            pieces.append(match[0])
            end = match.end()
    except TimeoutError:
        raise TokenizerError(f"the tokenizer's split expression {pattern[:60]!r} takes too long") from None
    return [*pieces, text[end:]] if end < len(text) else pieces


def safe_cut(text: str) -> int:
    """Largest i, 0 < i < len(text), where the ids of text[:i] and text[i:] together are those of text; 0 if none.

    safe_cut("one two three") -> 7                   before " three"
    safe_cut("one two\\nthree") -> 8                  after a single newline
    safe_cut("one  ") -> 3                           never inside a run of spaces

    Holds for char, byte, and the patterns for which `cuts_safely` is true. A cut is made
      A. between a character that is not whitespace and a space or tab,
      B. between a letter or digit and a line break,
      C. after a single "\\n" that stands between two characters that are not whitespace, the second of them not "/"
         (text whose lines end in punctuation, such as Chinese, may have no A or B at all).

    Why this is safe: a regular expression without look-behind, matched from a token's start, gives the same tokens on
    text[:i] if (1) a token ends at i in the whole text, and (2) no match that begins before i depends on the text
    after i.
    (1) No token of ALTERNATIVES has a non-space followed by a space or tab (A), or a letter or digit followed by a line
    break (B: only punctuation takes line breaks along), or a line break followed by a non-space (C: the one leading
    character that a token may take is never "\\r" or "\\n"; gpt4o's punctuation takes line breaks and "/" along).
    (2) Only `\\s+(?!\\S)` looks ahead, inside a run of whitespace. In A and B that run ended before i - 1. In C the run
    is the single "\\n". If a non-space follows, `\\s+(?!\\S)` fails and `\\s+` matches it; at the end of the text
    `\\s+(?!\\S)` matches it. If punctuation comes before it, the punctuation's token takes it in both cases. gpt4o's
    words end alike at white space and at the end of the text.
    """
    for i in range(len(text) - 1, 0, -1):
        before, after = text[i - 1], text[i]
        if before.isspace():
            if before == "\n" and not after.isspace() and after != "/" and i > 1 and not text[i - 2].isspace():
                return i
        elif after in " \t" or (after in "\r\n" and before.isalnum()):
            return i
    return 0


_CONTRACTIONS = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sdmt]|ll|ve|re)"}
_LETTERS = {r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+", PUBLISHED["gpt4o"].split(r"|\p{N}")[0]}
_DIGITS = {r" ?\p{N}+", r"\p{N}{1,3}", r"\p{N}+", r"\p{N}"}
_OTHERS = {r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"[^\s\p{L}\p{N}]+"}
_SPACES = {r"\s+"}
ALTERNATIVES = _CONTRACTIONS | _LETTERS | _DIGITS | _OTHERS | _SPACES | {r"\s*[\r\n]+", r"\s+(?!\S)"}
"""Parts of a pattern for which `safe_cut` is proven. A possessive quantifier counts as a plain one."""


@cache
def cuts_safely(pattern: str) -> bool:
    """Whether `safe_cut` holds for a pattern: all its parts are in ALTERNATIVES, and together they match any character.

    A character that no part matches could form one piece with its neighbours across a cut.
    """
    text = _POSSESSIVE.sub(r"\1", expression(pattern))
    parts = set(re.findall(r"(?:\(\?[:i=!](?:[^()]|\([^()]*\))*\)|[^|()])+", text))
    return parts <= ALTERNATIVES and all(parts & kind for kind in (_LETTERS, _DIGITS, _OTHERS, _SPACES))


@cache
def byte_chars() -> tuple[str, ...]:
    """GPT-2's visible spelling of each byte 0..255, used in tokenizer.json and vocab.bpe.

    A printable Latin-1 byte is that character ("A"; "é" for byte 233). The other 68 bytes are U+0100, U+0101 and so
    on, in order: space (32) is "Ġ" (U+0120), newline (10) is "Ċ".
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256))


@cache
def byte_order() -> tuple[int, ...]:
    """The bytes in the order of their spelling (`byte_chars`), the order of their ids in GPT-2 and Hugging Face."""
    return tuple(sorted(range(256), key=lambda byte: byte_chars()[byte]))


def spell(piece: bytes) -> str:
    """b" the" -> "Ġthe"."""
    table = byte_chars()
    return "".join([table[byte] for byte in piece])


@cache
def _char_bytes() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_chars())}


def unspell(word: str) -> bytes:
    """ "Ġthe" -> b" the". Raises KeyError for a character that does not spell a byte."""
    table = _char_bytes()
    return bytes([table[char] for char in word])


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Hugging Face's ByteLevel part: spells bytes, and splits by GPT-2's pattern if use_regex is true."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def pre_tokenizer_tree(pattern: str) -> dict[str, Any]:
    """The `pre_tokenizer` of tokenizer.json that splits by this pattern."""
    if pattern == "gpt2":
        return byte_level(use_regex=True)
    split = {"Regex": PUBLISHED.get(pattern, pattern)}
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
            byte_level(use_regex=False),
        ],
    }
