"""Cleaning of text in a stream: the same result whatever the blocks the text arrives in.

Each step says up to where a text can be worked on without knowing what follows; the rest waits for the
next block. So a \\r\\n across a border becomes one \\n, and an accent in the next block joins its letter.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_HELD = 1 << 16
"""Characters that may wait for the next block; a longer stretch without a safe border is cut anyway."""


def _all(text: str) -> int:
    return len(text)


def _not_last_return(text: str) -> int:
    """Hold a final \\r back: the next block may begin with its \\n."""
    return len(text) - text.endswith("\r")


def _before_last_starter(text: str) -> int:
    """Hold back from the last character that never joins the one before it: marks after it may join it.

    Letters and marks outside the first plane, marks anywhere and Hangul vowels and finals may join;
    everything else starts again (checked against the whole decomposition table in the tests).
    """
    at = len(text) - 1
    while at > 0:
        char = text[at]
        if char < "\u0300":
            break
        hangul = "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff"
        if char <= "\uffff" and not hangul and unicodedata.category(char)[0] != "M":
            break
        at -= 1
    return max(at, 0)


def _before_last_space(text: str) -> int:
    """Hold the last word back: a capital sigma is lower-cased by its place in the word (Unicode, SpecialCasing)."""
    for at in range(len(text) - 1, -1, -1):
        if text[at].isspace():
            return at
    return 0


class _Step(NamedTuple):
    apply: Callable[[str], str]
    border: Callable[[str], int]  # largest safe cut


_STEPS = {
    "ascii": _Step(lambda text: text if text.isascii() else text.encode("ascii", "ignore").decode("ascii"), _all),
    "nfc": _Step(lambda text: unicodedata.normalize("NFC", text), _before_last_starter),
    "lower": _Step(str.lower, _before_last_space),
    "newlines": _Step(lambda text: text.replace("\r\n", "\n").replace("\r", "\n"), _not_last_return),
}


def clean(blocks: Iterable[str], steps: Sequence[str]) -> Iterator[str]:
    """The blocks with each step applied in order. "".join(clean(blocks, steps)) does not depend on the borders.

    Steps: ascii (drop characters above U+007F), nfc (Unicode's composed form), lower (lower case),
    newlines (\\r\\n, and \\r alone, to \\n). No empty block comes out.
    """
    for name in steps:
        blocks = _run(blocks, _STEPS[name])
    return (block for block in blocks if block)


def clean_text(text: str, steps: Sequence[str]) -> str:
    """A whole text with each step applied in order."""
    for name in steps:
        text = _STEPS[name].apply(text)
    return text


def _run(blocks: Iterable[str], step: _Step) -> Iterator[str]:
    held = ""
    for block in blocks:
        text = held + block
        cut = step.border(text)
        if len(text) - cut > MAX_HELD:
            cut = len(text)
        held = text[cut:]
        yield step.apply(text[:cut])
    yield step.apply(held)
