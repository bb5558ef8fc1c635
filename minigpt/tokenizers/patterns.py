"""How text is split into pre-tokens before merging, where it may be cut, and how bytes are spelt in files.

The split patterns are those of GPT-2 (Radford et al., 2019) and of GPT-4 (tiktoken's cl100k). Here each
is written with possessive quantifiers (`++`), which give the same splits and spare the engine a
backtracking stack; the file carries the published spelling, since `++` means something else in some
engines. `tests/tokenizers/test_tokenizers_patterns.py` holds all of them equal. (tiktoken's cl100k has since changed in
one point, which we do not follow: all white space that ends a text is one piece.)

Three engines run them: `regex` (training), tiktoken's (encoding) and Hugging Face's. They agree on all
of Unicode 16; a letter that a newer `regex` knows already (Unicode 17) may split otherwise in training,
which can change what is learned from such text, never what is encoded.
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
}
"""Name to the expression that minigpt runs."""

PUBLISHED = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Name to the expression as it is written into tokenizer.json."""


DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""SmolLM's two splits as one: each digit alone, then GPT-2's pattern on what is between them."""


def expression(pattern: str) -> str:
    """The expression of a named pattern; any other text is an expression itself (a foreign file's)."""
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
"""What our engine and that of Hugging Face read alike: \\w, ^, lazy and nested ones are among the rest."""
_PROBE = "a A1 é漢'll\n\n  \t.-_ x\u0301\u00a0🙂 "
SECONDS = 5.0


def check(pattern: str) -> None:
    """Raises TokenizerError for an expression of others that we cannot run to the same pieces."""
    if not _KNOWN.fullmatch(pattern):
        raise TokenizerError(f"its split expression {pattern[:60]!r} has parts that minigpt cannot run alike")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise TokenizerError(f"its split expression {pattern[:60]!r} is not valid ({error})") from None
    for text in ("", _PROBE):
        split(pattern, text)


def split(pattern: str, text: str) -> list[str]:
    """The pre-tokens of a text; what an expression of others does not match is a piece too, as with Hugging Face.

    Raises TokenizerError for an expression that matches nothing at some place, or takes too long.
    """
    pieces, end = [], 0
    try:
        for match in regex.finditer(expression(pattern), text, timeout=SECONDS + len(text) / 100_000):
            start = match.start()
            if start == match.end():
                raise TokenizerError(f"the tokenizer's split expression {pattern[:60]!r} can match nothing at all")
            pieces += [text[end:start]] if end < start else []
            pieces.append(match[0])
            end = match.end()
    except TimeoutError:
        raise TokenizerError(f"the tokenizer's split expression {pattern[:60]!r} takes too long") from None
    return [*pieces, text[end:]] if end < len(text) else pieces


def safe_cut(text: str) -> int:
    """Largest i, 0 < i < len(text), where text[:i] and text[i:] encode apart to the ids of the whole; 0 if none.

    safe_cut("one two three") -> 7                   before " three"
    safe_cut("one two\\nthree") -> 8                  after a single newline
    safe_cut("one  ") -> 3                           never inside a run of spaces

    Holds for char, byte, and the patterns of which `cuts_safely` says so. A cut is taken
      A. between a character that is not whitespace and a space or tab,
      B. between a letter or digit and a line break,
      C. after a single "\\n" that stands between two characters that are not whitespace
         (text whose lines end in punctuation, such as Chinese, may have no A or B at all).

    Why that is safe: a regular expression without look-behind that is matched from a token's start gives
    the same tokens on text[:i] if (1) a token ends at i in the whole text, and (2) no match that begins
    before i depends on what follows i.
    (1) In none of ALTERNATIVES does a token hold a non-space followed by a space or tab (A), or a letter or digit
    followed by a line break (B: only punctuation takes line breaks along), or a line break followed by a
    non-space (C: the one leading character a token may take is never "\\r" or "\\n").
    (2) Only `\\s+(?!\\S)` looks ahead, from within a run of whitespace. In A and B that run ended before
    i - 1. In C the run is the single "\\n": with a non-space behind it `\\s+(?!\\S)` fails and `\\s+` takes it,
    at the end of the text `\\s+(?!\\S)` takes it; or punctuation before it has taken it in both.
    """
    for i in range(len(text) - 1, 0, -1):
        before, after = text[i - 1], text[i]
        if before.isspace():
            if before == "\n" and not after.isspace() and i > 1 and not text[i - 2].isspace():
                return i
        elif after in " \t" or (after in "\r\n" and before.isalnum()):
            return i
    return 0


_CONTRACTIONS = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sdmt]|ll|ve|re)"}
_LETTERS = {r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+"}
_DIGITS = {r" ?\p{N}+", r"\p{N}{1,3}", r"\p{N}+", r"\p{N}"}
_OTHERS = {r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+"}
_SPACES = {r"\s+"}
ALTERNATIVES = _CONTRACTIONS | _LETTERS | _DIGITS | _OTHERS | _SPACES | {r"\s*[\r\n]+", r"\s+(?!\S)"}
"""Parts of a pattern for which `safe_cut` is proven. A possessive quantifier counts as the plain one."""


@cache
def cuts_safely(pattern: str) -> bool:
    """Whether `safe_cut` holds for a pattern: it has no other parts than ALTERNATIVES, and they match any character.

    A character that nothing matches would be one piece with its neighbours, across a cut.
    """
    text = re.sub(r"([+*?]|\{[\d,]+\})\+", r"\1", expression(pattern))
    parts = set(re.findall(r"(?:\(\?[:i=!][^()]*\)|[^|()])+", text))
    return parts <= ALTERNATIVES and all(parts & kind for kind in (_LETTERS, _DIGITS, _OTHERS, _SPACES))


@cache
def byte_chars() -> tuple[str, ...]:
    """GPT-2's visible spelling of each byte 0..255, used in tokenizer.json and vocab.bpe.

    Printable Latin-1 stands for itself ("A", "é" as byte 233), the other 68 bytes in turn for U+0100
    and on: space (32) is "Ġ" (U+0120), newline (10) is "Ċ".
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256))


@cache
def byte_order() -> tuple[int, ...]:
    """The bytes in the order of their spelling, which is the order of their ids in GPT-2 and Hugging Face."""
    return tuple(sorted(range(256), key=lambda byte: byte_chars()[byte]))


def spell(piece: bytes) -> str:
    """b" the" -> "Ġthe"."""
    table = byte_chars()
    return "".join([table[byte] for byte in piece])


@cache
def _char_bytes() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_chars())}


def unspell(word: str) -> bytes:
    """ "Ġthe" -> b" the". Raises KeyError for a character that spells no byte."""
    table = _char_bytes()
    return bytes([table[char] for char in word])


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Hugging Face's ByteLevel part: spells bytes, and splits by GPT-2's pattern if asked to."""
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
