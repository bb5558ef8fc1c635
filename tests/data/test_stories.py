"""Test the built-in stories: probabilities and expectations are exact, no text has two derivations, forms agree.

The exhaustive tests use their own enumerator (`every_text`), which shares no code with the engine.
"""

import hashlib
import itertools
import lzma
import math
import os
import random
import re
import statistics
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow

from minigpt.data.stories.generator import (
    Grammar,
    Mention,
    Phrase,
    entropy,
    generate_stories,
    log_probability,
    stories_grammar,
)
from minigpt.data.stories.grammar import ANIMALS, NAMES, ROLES, RULES, UNLIKE
from minigpt.errors import DataError

SEEDS = st.integers(0, 2**40)
PRONOUNS = {"he": "he", "him": "he", "his": "he", "she": "she", "her": "she"}


def rows(table: str) -> list[dict[str, str]]:
    """A role's table as records, capitalised forms included."""
    header, *lines = ([cell.strip() for cell in line.split("|")] for line in re.split("[;\n]", table.strip()))
    records = [dict(zip(header, line, strict=True)) for line in lines]
    return [r | {k.capitalize(): v[0].upper() + v[1:] for k, v in r.items() if k != "weight"} for r in records]


GENDER = {record["name"]: record["he"] for record in rows(NAMES)}
KINDS = [record["noun"] for record in rows(ANIMALS)]


@pytest.fixture(scope="module")
def sampled() -> list[tuple[str, float]]:
    """5,000 stories, each with ln P of the choices that made it."""
    rng = random.Random(20)
    return [stories_grammar().sample(rng) for _ in range(5000)]


# Probability


def test_log_probability_is_the_sum_of_the_choices_made_in_writing(sampled):
    for story, log_p in sampled[:1500]:
        assert log_probability(story) == pytest.approx(log_p, abs=1e-9)


def test_sampled_surprise_and_length_agree_with_the_analytic_figures(sampled):
    exact = entropy()
    for values, expected in (
        ([-log_p for _, log_p in sampled], exact.nats_per_story),
        ([len(story) for story, _ in sampled], exact.chars_per_story),
    ):
        standard_error = statistics.stdev(values) / math.sqrt(len(values))
        assert abs(statistics.fmean(values) - expected) < 4 * standard_error


def test_the_docstring_example_has_the_entropy_it_says():
    grammar = Grammar(
        {"story": {"The {pet.noun} {rested}. Good {pet.noun}!": 1}, "rested": {"sat": 1, "lay": 1}},
        {"pet": "weight | noun\n3 | cat\n1 | dog"},
        {},
    )
    exact = entropy(grammar)
    assert exact.nats_per_story == pytest.approx(1.255, abs=5e-4)
    assert exact.chars_per_story == 22
    assert exact.nats_per_char == pytest.approx(0.057, abs=5e-4)
    assert exact.bits_per_byte == pytest.approx(exact.nats_per_story / math.log(2) / 22)
    assert exact.nats_per_token_char == pytest.approx(exact.nats_per_story / 23)
    assert -log_probability("The cat sat. Good cat!", grammar) == pytest.approx(0.981, abs=5e-4)
    with pytest.raises(DataError):
        log_probability("The cat sat. Good dog!", grammar)


def test_probability_sums_over_the_derivations_of_an_ambiguous_grammar():
    grammar = Grammar({"story": {"{a}{b}": 1}, "a": {"x": 1, "xx": 1}, "b": {"x": 1, "": 3}}, {}, {})
    # "xx" is a="x", b="x" (1/2 x 1/4), or a="xx", b="" (1/2 x 3/4)
    assert log_probability("xx", grammar) == pytest.approx(math.log(1 / 2))


def every_text(text: str, rules: dict, cast: dict):
    """Every way to write `text` out, with its probability."""
    slot = re.search(r"\{([\w.]+)\}", text)
    if not slot:
        yield text, 1.0
        return
    head, tail = text[: slot.start()], text[slot.end() :]
    if "." in slot[1]:
        role, form = slot[1].split(".")
        choices = {cast[role][form]: 1}
    else:
        choices = rules[slot[1]]
    for choice, weight in choices.items():
        for rest, p in every_text(choice + tail, rules, cast):
            yield head + rest, p * weight / sum(choices.values())


def every_cast(names: list[str], tables: dict):
    """Every casting of the roles, with its probability."""
    for records in itertools.product(*(rows(tables[name]) for name in names)):
        cast, p = dict(zip(names, records, strict=True)), 1.0
        for name, record in cast.items():
            other = cast.get(UNLIKE.get(name, ""))
            p *= record != other and float(record["weight"]) / sum(
                float(r["weight"]) for r in rows(tables[name]) if r != other
            )
        if p:
            yield cast, p


def every_story(rules: dict, tables: dict):
    """Every derivation of the grammar, with its probability."""
    for plot, weight in rules["story"].items():
        mentioned, ahead = set(), [plot]
        while ahead:
            for slot in re.findall(r"\{([\w.]+)\}", ahead.pop()):
                mentioned |= {slot.split(".")[0]} if "." in slot else set()
                ahead += () if "." in slot else rules[slot]
        for cast, p in every_cast([name for name in tables if name in mentioned], tables):
            for text, q in every_text(plot, rules, cast):
                yield text, p * q * weight / sum(rules["story"].values())


def shrunk(seed: int) -> tuple[dict, dict]:
    """A small random part of the rules and roles: mostly one alternative a rule, here and there two or three."""
    rng = random.Random(seed)

    def some(items: list, least: int = 1) -> list:
        wanted = max(least, rng.choices([1, 2, 3], [14, 3, 1])[0])
        return [items[i] for i in sorted(rng.sample(range(len(items)), min(wanted, len(items))))]

    rules = {name: dict(some(list(alternatives.items()))) for name, alternatives in RULES.items()}
    tables = {}
    for name, table in ROLES.items():
        header, *lines = re.split("[;\n]", table.strip())
        distinct = name in UNLIKE or name in UNLIKE.values()
        tables[name] = "\n".join([header, *(lines[:2] if distinct else some(lines))])
    return rules, tables


@pytest.mark.parametrize("seed", mostly_slow(range(16), range(4)))
def test_stories_of_a_small_grammar_sum_to_one_with_the_exact_entropy(seed):
    for attempt in itertools.count(1000 * seed):
        rules, tables = shrunk(attempt)
        stories = list(itertools.islice(every_story(rules, tables), 6001))
        if 300 <= len(stories) <= 6000:
            break
    grammar, exact = Grammar(rules, tables, UNLIKE), entropy(Grammar(rules, tables, UNLIKE))
    assert len({text for text, _ in stories}) == len(stories)
    assert math.fsum(p for _, p in stories) == pytest.approx(1, abs=1e-12)
    assert math.fsum(-p * math.log(p) for _, p in stories) == pytest.approx(exact.nats_per_story, abs=1e-9)
    assert math.fsum(p * len(text) for text, p in stories) == pytest.approx(exact.chars_per_story, abs=1e-9)
    for text, p in stories[:: max(1, len(stories) // 50)]:
        assert grammar.derivations(text) == [pytest.approx(math.log(p), abs=1e-9)]


# No text has two derivations: a proof over the whole grammar, in two parts. Relax the grammar: let every mention choose
# its own word. Two derivations of one text in the grammar are also two in the relaxed one, unless they differ only in
# a role that the text does not show. Part one shows that the relaxed grammar never derives a text twice; part two that
# every plot shows all its roles, whatever is chosen.


def ambiguity(grammar: Grammar) -> str | None:
    """What the relaxed grammar can write in two ways, or None after a search of every pair of choices."""
    cells: dict[tuple, int] = {}  # what is still to write, as a linked list with shared tails: (part, rest) -> id
    parts: list[tuple] = [("", 0)]  # id -> (part, rest); id 0 is the end

    def link(text, rest: int) -> int:
        for part in reversed(text):
            if (part, rest) not in cells:
                cells[part, rest] = len(parts)
                parts.append((part, rest))
            rest = cells[part, rest]
        return rest

    def branches(cell: int) -> list[int]:
        part, rest = parts[cell]
        if isinstance(part, Mention):
            return [link((word,), rest) for word in {r[part.form] for r in grammar.roles[part.role].records}]
        return [link(text, rest) for text in grammar.texts[part.rule]]

    # Collect each choice that can be met, with all that can follow it, as pairs of options.
    pairs, seen, ahead = [], {0}, [link((Phrase("story"),), 0)]
    while ahead:
        cell = ahead.pop()
        if cell in seen:
            continue
        seen.add(cell)
        options = [parts[cell][1]] if isinstance(parts[cell][0], str) else branches(cell)
        pairs += itertools.combinations(options, 2)
        ahead += options

    # Walk the two side by side while they agree, taking all their further choices: they must never meet again.
    walked = set()
    while pairs:
        one, two = pair = tuple(sorted(pairs.pop()))
        if pair in walked:
            continue
        walked.add(pair)
        (part, rest), (other, tail) = parts[one], parts[two]
        if one == two:
            return f"two ways to come to {part!r}, {parts[rest]}"
        if not isinstance(part, str):
            pairs += [(option, two) for option in branches(one)]
        elif not isinstance(other, str):
            pairs += [(one, option) for option in branches(two)]
        elif one and part.startswith(other):
            pairs.append((link((part[len(other) :],) if part != other else (), rest), tail))
        elif one and other.startswith(part):
            pairs.append((rest, link((other[len(part) :],), tail)))
    return None


def test_no_text_is_derived_twice():
    assert ambiguity(stories_grammar()) is None


@pytest.mark.parametrize(
    "rules",
    [
        {"story": {"{a}{b}\n": 1}, "a": {"x": 1, "xx": 1}, "b": {"x": 1, "": 1}},
        {"story": {"{a}\n": 1, "one {b} three\n": 1}, "a": {"one two three": 1}, "b": {"two": 1, "too": 1}},
        RULES | {"mood": RULES["mood"] | {'"{oh}!" {cried} {hero.name} sadly.': 1}},
        RULES | {"gust": RULES["gust"] | {"the {storm} blew": 1}, "storm": {"wind": 1, "storm": 1}},
    ],
)
def test_that_proof_finds_a_text_derived_twice(rules):
    assert ambiguity(Grammar(rules, ROLES, UNLIKE))


def test_every_plot_uses_all_its_roles_whatever_is_chosen():
    grammar = stories_grammar()

    def told(text) -> set[str]:
        roles = set()
        for part in text:
            if isinstance(part, Mention):
                words = [record[part.form] for record in grammar.roles[part.role].records]
                roles |= {part.role} if len(set(words)) == len(words) else set()
            elif isinstance(part, Phrase):
                roles |= set.intersection(*(told(alternative) for alternative in grammar.texts[part.rule]))
        return roles

    for plot, cast in zip(grammar.texts["story"], grammar.casts, strict=True):
        assert told(plot) == set(cast)


def test_only_the_end_of_a_story_is_a_newline():
    assert all(plot.endswith("\n") and plot.count("\n") == 1 for plot in RULES["story"])
    others = [text for name, alternatives in RULES.items() if name != "story" for text in alternatives]
    assert not any("\n" in text for text in others)


@settings(max_examples=60)
@given(SEEDS)
def test_foreign_text_is_refused(seed):
    story = next(generate_stories(1, seed))
    hero = re.search(r"\b(" + "|".join(GENDER) + r")\b", story)[0]
    last = story.rindex(" ")
    foreign = [
        story[:-1],
        story + story,
        story.replace(hero, "Zorro"),
        story.replace(hero, "Zorro", 1),
        story.replace(" and ", " xor ", 1) if " and " in story else "",
        story[:last] + story[last + 1 :],
        story.upper(),
    ]
    for text in foreign:
        with pytest.raises(DataError, match="not a story of this grammar"):
            log_probability(text)


@pytest.mark.parametrize("text", ["", "\n", "It was a dark and stormy night.\n"])
def test_other_books_are_refused(text):
    with pytest.raises(DataError, match="not a story of this grammar"):
        log_probability(text)


def test_a_change_of_the_hero_in_midstory_is_refused():
    told = "Pip was a shy fox who lived by the river. One day, he found a huge turnip in a field. He pulled again and "
    told += 'again, but it would not move. "Oh no!" cried {0}. "Let me help," said a kind bear named Lily. '
    told += "Pip and Lily tugged, and soon out popped the turnip. Then they danced by {1}.\n"
    assert log_probability(told.format("Pip", "the river")) < -40
    for wrong in (("Sam", "the river"), ("Pip", "the lake")):
        with pytest.raises(DataError):
            log_probability(told.format(*wrong))


# Streams


def test_story_i_depends_on_seed_and_i_alone():
    assert list(generate_stories(40, 3))[:7] == list(generate_stories(7, 3))
    assert not set(generate_stories(200, 3)) & set(generate_stories(200, 4))


def test_another_process_writes_the_same_stories():
    code = (
        "import hashlib; from minigpt.data.stories.generator import generate_stories as g; "
        "print(hashlib.sha256(''.join(g(50, 11)).encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert there == hashlib.sha256("".join(generate_stories(50, 11)).encode()).hexdigest()


# What the stories are like


def test_stories_are_one_ascii_line_of_the_right_length_and_all_differ(sampled):
    stories = [story for story, _ in sampled]
    assert all(story.isascii() and story.endswith("\n") and story.count("\n") == 1 for story in stories)
    assert sum(250 <= len(story) <= 450 for story in stories) >= 0.999 * len(stories)
    assert not any("  " in story or " ." in story or " ," in story or "{" in story for story in stories)
    assert all(story.count('"') in (0, 2, 4) for story in stories)
    assert len(set(stories)) == len(stories)
    assert len(set("".join(stories))) <= 70


def test_every_alternative_and_record_gets_written(sampled):
    text = "".join(story for story, _ in sampled)
    for table in ROLES.values():
        for record in rows(table):
            assert all(re.search(rf"\b{re.escape(word)}\b", text) for f, word in record.items() if f.islower() and f != "weight")  # fmt: skip  # noqa: E501
    for name, alternatives in RULES.items():
        assert all(a in text for a in alternatives if "{" not in a), name


def test_a_compressor_does_not_beat_the_entropy():
    text = "".join(generate_stories(2000, 5)).encode()
    assert 8 * len(lzma.compress(text)) / len(text) > entropy().bits_per_byte


@settings(max_examples=300)
@given(SEEDS)
def test_articles_agree(seed):
    story = next(generate_stories(1, seed))
    for article, word in re.findall(r"\b([Aa]n?) (\w+)", story):
        assert (article.lower() == "an") == (word[0] in "aeiou" or word in ("hour", "honest")), story


@settings(max_examples=300)
@given(SEEDS)
def test_a_story_has_one_hero_one_friend_and_pronouns_that_agree(seed):
    story = next(generate_stories(1, seed))
    names = list(dict.fromkeys(re.findall(r"\b(?:" + "|".join(GENDER) + r")\b", story)))
    assert len(names) == 2
    hero, pal = names
    assert len(set(re.findall(r"\b(?:" + "|".join(KINDS) + r")\b", story))) == 2

    def genders(text: str) -> set[str]:
        return {PRONOUNS[word] for word in re.findall(r"\b(?:he|him|his|she|her)\b", text.lower())}

    assert genders(story[: story.index(pal)]) <= {GENDER[hero]}  # the friend is not there yet
    assert genders(story) <= {GENDER[hero], GENDER[pal]}


@settings(max_examples=300)
@given(SEEDS)
def test_things_and_places_recur_unchanged(seed):
    story = next(generate_stories(1, seed))

    def found(role: str, form: str = "noun") -> list[str]:
        return re.findall(r"\b(?:" + "|".join(record[form] for record in rows(ROLES[role])) + r")\b", story)

    opening = story[: story.index(".")]
    if re.search("but the (branch|twigs|wall|ditch|roof|water) w", story):
        assert len(found("toy")) == 2 and len(set(found("toy"))) == 1
        assert len(found("look", "word")) >= 2
    if " it would not move" in story:
        assert len(found("crop")) >= 2 and len(set(found("crop"))) == 1
    if re.search(r" (loved|liked|adored|dreamed of|always wanted) ", opening):
        assert len(found("treat")) == 2 and len(set(found("treat"))) == 1
    else:
        assert len(found("home")) + len(found("home", "at")) >= 2
        assert len({place.split()[-1] for place in found("home") + found("home", "at")}) == 1
