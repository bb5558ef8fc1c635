"""Translate the split expressions of byte-level BPE into JavaScript's regular expressions, with the same pieces.

JavaScript has no possessive quantifiers, not all browsers have `(?i:...)`, and its \\s is another set:

    X++        (?:(?=(?<p1>X+))\\k<p1>): a look-ahead does not give back what it took
    (?i:'s)    '[sS\\u017f]
    \\s         \\p{White_Space}
"""

import re

from minigpt.tokenizers.patterns import PUBLISHED

_ALSO = {"s": "\\u017f", "k": "\\u212a"}  # the long s and the Kelvin sign are also cases of these letters
_ESCAPED = re.compile(r"\\[pP]\{\w+\}|\\.", re.DOTALL)


def javascript(pattern: str) -> str:
    """The source of a RegExp with the flags gu, for a name or an expression that `tokenizers.patterns.check` allows."""
    return _Reader(PUBLISHED.get(pattern, pattern)).alternatives()


class _Reader:
    """Reads an expression from left to right, part by part."""

    def __init__(self, text: str):
        self.text, self.at, self.groups = text, 0, 0

    def alternatives(self, folded: bool = False) -> str:
        """Translate up to the end, or to the bracket that closes this group."""
        out = ""
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "|":
                self.at += 1
                out += "|"
            else:
                out += self._quantified(self._atom(folded))
        return out

    def _quantified(self, atom: str) -> str:
        found = re.compile(r"([?*+]|\{[\d,]+\})(\+?)").match(self.text, self.at)
        if not found:
            return atom
        self.at = found.end()
        if not found[2]:
            return atom + found[1]
        self.groups += 1
        return f"(?:(?=(?<p{self.groups}>{atom}{found[1]}))\\k<p{self.groups}>)"

    def _atom(self, folded: bool) -> str:
        if found := re.compile(r"\((\?[:=!]|\?i:)?").match(self.text, self.at):
            self.at = found.end()
            inside = self.alternatives(folded or found[1] == "?i:")
            self.at += 1
            return f"({found[1] if found[1] in ('?=', '?!') else '?:'}{inside})"
        if self.text[self.at] == "[":
            return self._set()
        piece = self._piece()
        if folded and piece.isascii() and piece.isalpha():
            return f"[{piece.lower()}{piece.upper()}{_ALSO.get(piece.lower(), '')}]"
        return piece

    def _set(self) -> str:
        """Translate a set such as [^\\s\\p{L}a-z]."""
        self.at += 1
        out = "["
        while self.text[self.at] != "]":
            if self.text[self.at] in "^-":
                out += self.text[self.at]
                self.at += 1
            else:
                out += self._piece()
        self.at += 1
        return out + "]"

    def _piece(self) -> str:
        """Translate a character, or a class of characters."""
        found = _ESCAPED.match(self.text, self.at)
        piece = found[0] if found else self.text[self.at]
        self.at += len(piece)
        if piece in (r"\s", r"\S"):
            return r"\p{White_Space}" if piece == r"\s" else r"\P{White_Space}"
        if piece[:2] in (r"\p", r"\P", r"\r", r"\n", r"\t"):
            return piece
        char = piece[-1]
        return f"\\{char}" if char in r"^$\.*+?()[]{}|/" else f"\\u{{{ord(char):x}}}" if char == "-" else char
