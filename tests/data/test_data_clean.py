"""Test that cleaning a stream gives the same as cleaning the whole text, wherever the blocks end."""

import itertools
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.clean import MAX_HELD, _before_last_starter, clean, clean_text

STEPS = ("ascii", "nfc", "lower", "newlines")
NASTY = "aé Σσς\u0301\u0323\u0327e\r\n\r\t\u1100\u1161\u11a8가ｶﾞ\u212bİıǅ\u0344\u0b47\u0b57\U00011131\U00011127😀"
texts = st.text(st.one_of(st.sampled_from(NASTY), st.characters(codec="utf-8")), max_size=40)


def blocks_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(texts, st.lists(st.integers(0, 40), max_size=6), st.lists(st.sampled_from(STEPS), max_size=4))
def test_borders_of_blocks_do_not_show(text: str, cuts: list[int], steps: list[str]) -> None:
    assert "".join(clean(blocks_of(text, cuts), steps)) == clean_text(text, steps)


@given(texts)
def test_each_step_does_what_pythons_own_function_does(text: str) -> None:
    assert clean_text(text, ["nfc"]) == unicodedata.normalize("NFC", text)
    assert clean_text(text, ["lower"]) == text.lower()
    assert clean_text(text, ["ascii"]) == "".join(char for char in text if ord(char) < 128)
    assert clean_text(text, ["newlines"]) == "\n".join(text.replace("\r\n", "\n").split("\r"))


def test_one_character_blocks_join_accents_line_ends_and_final_sigmas() -> None:
    text = "CAFE\u0301 ΟΔΟΣ\r\nΣΑΣ\r\r\n"
    assert "".join(clean(iter(text), ["nfc", "lower", "newlines"])) == "café οδος\nσας\n\n"


def test_a_character_that_joins_the_one_before_is_not_a_safe_border() -> None:
    joining = {0x1161 + n for n in range(21)} | {0x11A8 + n for n in range(27)}  # Hangul composes by arithmetic
    for point in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joining.add(int(parts[1], 16))
        if unicodedata.combining(chr(point)):
            joining.add(point)
    assert len(joining) > 900
    assert [hex(point) for point in joining if _before_last_starter("a" + chr(point)) != 0] == []


def test_the_order_of_steps_counts() -> None:
    assert clean_text("e\u0301", ["nfc", "ascii"]) == ""
    assert clean_text("e\u0301", ["ascii", "nfc"]) == "e"


@pytest.mark.parametrize("step", ["lower", "nfc"])
def test_a_stretch_without_a_border_is_held_only_so_long(step: str) -> None:
    blocks = ["\u0301" * MAX_HELD, "\u0301" * MAX_HELD, "b"]
    first = next(clean(iter(blocks), [step]))
    assert len(first) >= MAX_HELD
