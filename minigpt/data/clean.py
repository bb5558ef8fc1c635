"""Clean a text that arrives in blocks. The result does not depend on where the blocks are cut.

Each step says how much of a block it can clean without knowing the next block; the rest waits for that. So a \\r\\n
across two blocks becomes one \\n, and an accent at the start of a block joins the letter before it.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_HELD = 1 << 16
"""Most characters that wait for the next block. A longer stretch without a safe cut is cut anyway."""


def _all(text: str) -> int:
    return len(text)


def _not_last_return(text: str) -> int:
    """Keep back a final \\r, since the next block may begin with its \\n."""
    return len(text) - text.endswith("\r")


def _before_last_starter(text: str) -> int:
    """Keep back the text from the last starter on: a character that never joins the one before it.

    Marks that follow may join the starter. Marks, Hangul vowels and finals, and all characters outside the first plane
    may join the character before them. All others are starters (tests check this against the decomposition table).
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
    """Keep back the last word: the lower case of a capital sigma depends on its place in the word (SpecialCasing)."""
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
    """Apply the steps in order to a text in blocks. "".join(clean(blocks, steps)) does not depend on the cuts.

    Steps: ascii (drop characters above U+007F), nfc (Unicode's composed form), lower (lower case),
    newlines (\\r\\n, and \\r alone, to \\n). It yields no empty blocks.
    """
    for name in steps:
        blocks = _run(blocks, _STEPS[name])
    return (block for block in blocks if block)


def clean_text(text: str, steps: Sequence[str]) -> str:
    """Apply the steps in order to a whole text."""
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
