"""Generate `stories`, an endless text of small children's stories whose entropy is known exactly.

A training loss alone says little: is 0.25 nats per character good? For real text, nobody knows the lowest loss that
a model could reach. But a small probabilistic grammar writes this text, so its lowest loss is known: the entropy of
the grammar. A student can see how near the loss comes to this floor.

How a story is written: choose a plot (an alternative of rule `story`); choose its cast once (the hero, the home, ...);
then write the plot's text, choosing an alternative wherever it names a rule. A choice with probability p costs -ln p
nats to predict; the rest of the text costs nothing. For example

    story: "The {pet.noun} {rested}. Good {pet.noun}!"    pet: cat (3/4), dog (1/4)    rested: "sat" (1/2), "lay" (1/2)

"The cat sat. Good cat!" has probability 3/4 x 1/2, which is 0.981 nats, and the expectation over all four texts is

    H(pet) + H(rested) = 0.562 + 0.693 = 1.255 nats per story, over 22 characters: 0.057 nats per character.

The second "cat" costs nothing for a reader who remembers the first. A model that cannot look back pays H(pet) again.
Only the choices are random, and expectations add up, so the exact expectations of -ln P and of the length are sums over
the grammar, without sampling. This is true if no text can be derived in two ways and every story mentions its whole
cast. The tests check both for the grammar of `stories_grammar`.
"""

import math
import random
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from minigpt.data.stories.grammar import ROLES, RULES, UNLIKE
from minigpt.errors import DataError


@dataclass(frozen=True)
class StoriesEntropy:
    """The lowest loss that any model can reach on stories, computed exactly.

    Stories are ASCII, so a character is a byte. The end-of-text token after a story costs no nats, since the story's
    newline predicts it, but it counts as a token. So `nats_per_token_char` is the floor of a character model's loss;
    `bits_per_byte` is the floor of any model's bits per byte.
    """

    nats_per_story: float
    """Expectation of -ln P(story)."""
    chars_per_story: float
    """Expected number of characters in a story, its newline included."""

    @property
    def nats_per_char(self) -> float:
        """Nats per character of text."""
        return self.nats_per_story / self.chars_per_story

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats_per_char / math.log(2)

    @property
    def nats_per_token_char(self) -> float:
        """Nats per token of a character tokenizer that ends each story with one end-of-text token."""
        return self.nats_per_story / (self.chars_per_story + 1)


class Phrase(NamedTuple):
    """A slot that a rule fills with a new choice each time: {when}."""

    rule: str


class Mention(NamedTuple):
    """A slot for a form of a role's chosen player: {hero.name}."""

    role: str
    form: str


Text = tuple[str | Phrase | Mention, ...]


class Choice:
    """A random draw among weighted options; the result is the index of an option."""

    def __init__(self, weights: Iterable[float]):
        weights = tuple(weights)
        self.weights = weights
        self.p = [weight / sum(weights) for weight in weights]
        self.log_p = [math.log(p) if p else -math.inf for p in self.p]
        self.entropy = -sum(p * log_p for p, log_p in zip(self.p, self.log_p, strict=True) if p)
        self._cumulative = list(accumulate(self.p))

    def draw(self, rng: random.Random) -> int:
        """Draw an index. It only uses rng.random(), which gives the same numbers in all versions of Python."""
        return bisect(self._cumulative, rng.random() * self._cumulative[-1])

    def without(self, index: int) -> "Choice":
        """The same choice without the option `index`."""
        return Choice(0 if i == index else weight for i, weight in enumerate(self.weights))


class Role:
    """Who or what may play a role: one record of forms each. A story chooses one, not the one that plays `unlike`."""

    def __init__(self, table: str, unlike: "Role | None" = None):
        lines = re.split(r"[\n;]", table.strip())
        header, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
        self.records = [dict(zip(header[1:], row[1:], strict=True)) for row in rows]
        for record in self.records:
            record |= {form.capitalize(): text[0].upper() + text[1:] for form, text in record.items()}
        prior = Choice(float(row[0]) for row in rows)
        self._given = [prior.without(i) for i in range(len(rows))] if unlike else [prior]
        weights = unlike.p if unlike else [1.0]
        self.p = [sum(w * c.p[i] for w, c in zip(weights, self._given, strict=True)) for i in range(len(rows))]
        self.entropy = sum(w * c.entropy for w, c in zip(weights, self._given, strict=True))

    def choice(self, other: int | None) -> Choice:
        """The draw, given the index that plays `unlike` (None: there is no such role)."""
        return self._given[other or 0]


class Grammar:
    """Rules and roles, with sampling, exact probabilities and exact expectations."""

    def __init__(
        self,
        rules: Mapping[str, Mapping[str, float]],
        roles: Mapping[str, str],
        unlike: Mapping[str, str],
        start: str = "story",
    ):
        self.start, self.unlike = start, unlike
        self.roles: dict[str, Role] = {}
        for name, table in roles.items():
            self.roles[name] = Role(table, self.roles[unlike[name]] if name in unlike else None)
        self.choices = {name: Choice(alternatives.values()) for name, alternatives in rules.items()}
        self.texts = {name: [_read(text) for text in alternatives] for name, alternatives in rules.items()}
        mentioned = [self._mentioned(text) for text in self.texts[start]]
        self.casts = [[role for role in self.roles if role in names] for names in mentioned]
        for cast in self.casts:
            if any(unlike.get(role, role) not in cast for role in cast):
                raise ValueError(f"a plot casts a role without the one it is unlike: {cast}")

    def _mentioned(self, text: Text) -> set[str]:
        """The roles that `text` and the rules in it can mention."""
        roles = {part.role for part in text if isinstance(part, Mention)}
        for part in text:
            if isinstance(part, Phrase):
                roles = roles.union(*(self._mentioned(alternative) for alternative in self.texts[part.rule]))
        return roles

    def sample(self, rng: random.Random) -> tuple[str, float]:
        """Draw a story. Returns it, and ln P of its choices."""
        plot = self.choices[self.start].draw(rng)
        log_p = self.choices[self.start].log_p[plot]
        cast: dict[str, int] = {}
        for role in self.casts[plot]:
            choice = self._casting(role, cast)
            cast[role] = choice.draw(rng)
            log_p += choice.log_p[cast[role]]
        pieces: list[str] = []
        log_p += self._write(self.texts[self.start][plot], cast, rng, pieces)
        return "".join(pieces), log_p

    def sentence(self, rule: str, rng: random.Random) -> tuple[str, dict[str, dict[str, str]]]:
        """Draw the text of one rule alone. Returns it, and the record of each role in it."""
        text = self.texts[rule][self.choices[rule].draw(rng)]
        cast: dict[str, int] = {}
        for role in sorted(self._mentioned(text)):
            cast[role] = self._casting(role, cast).draw(rng)
        pieces: list[str] = []
        self._write(text, cast, rng, pieces)
        return "".join(pieces), {role: self.roles[role].records[index] for role, index in cast.items()}

    def _casting(self, role: str, cast: Mapping[str, int]) -> Choice:
        return self.roles[role].choice(cast.get(self.unlike.get(role, "")))

    def _write(self, text: Text, cast: Mapping[str, int], rng: random.Random, pieces: list[str]) -> float:
        """Expand `text` and append it to `pieces`. Returns ln P of its choices."""
        log_p = 0.0
        for part in text:
            if isinstance(part, str):
                pieces.append(part)
            elif isinstance(part, Mention):
                pieces.append(self.roles[part.role].records[cast[part.role]][part.form])
            else:
                choice = self.choices[part.rule]
                index = choice.draw(rng)
                log_p += choice.log_p[index]
                log_p += self._write(self.texts[part.rule][index], cast, rng, pieces)
        return log_p

    def derivations(self, story: str) -> list[float]:
        """ln P of every way to derive `story` (one if the grammar is unambiguous). Raises DataError if there is none.

        This is a depth-first search. A state is (position in the story, rest of the text as a linked list, who plays
        the roles found so far, ln P of the choices). The first mention of a role tries every record; later ones try
        only the record found.
        """
        found: list[float] = []
        furthest = 0
        for plot, text in enumerate(self.texts[self.start]):
            agenda: list = [(0, _link(text, None), {}, self.choices[self.start].log_p[plot])]
            while agenda:
                at, ahead, cast, log_p = agenda.pop()
                furthest = max(furthest, at)
                if ahead is None:
                    if at == len(story):
                        found.append(log_p + sum(self._casting(r, cast).log_p[cast[r]] for r in self.casts[plot]))
                    continue
                part, ahead = ahead
                if isinstance(part, str):
                    if story.startswith(part, at):
                        agenda.append((at + len(part), ahead, cast, log_p))
                elif isinstance(part, Mention):
                    records = self.roles[part.role].records
                    known = cast.get(part.role)
                    for index in range(len(records)) if known is None else (known,):
                        word = records[index][part.form]
                        if story.startswith(word, at):
                            agenda.append((at + len(word), ahead, {**cast, part.role: index}, log_p))
                else:
                    for text, cost in zip(self.texts[part.rule], self.choices[part.rule].log_p, strict=True):
                        if not text or not isinstance(text[0], str) or story.startswith(text[0], at):
                            agenda.append((at, _link(text, ahead), cast, log_p + cost))
        if not found or max(found) == -math.inf:
            raise DataError(
                f"not a story of this grammar from character {furthest} on: {story[furthest : furthest + 30]!r}; "
                "log_probability needs one whole story from generate_stories, with its newline"
            )
        return found

    def expectation(self, text: Text) -> tuple[float, float]:
        """Exact expectations for `text` when expanded: (nats of its choices, characters)."""
        nats = chars = 0.0
        for part in text:
            if isinstance(part, str):
                chars += len(part)
            elif isinstance(part, Mention):
                role = self.roles[part.role]
                chars += sum(p * len(record[part.form]) for p, record in zip(role.p, role.records, strict=True))
            else:
                choice = self.choices[part.rule]
                nats += choice.entropy
                for p, alternative in zip(choice.p, self.texts[part.rule], strict=True):
                    more_nats, more_chars = self.expectation(alternative)
                    nats += p * more_nats
                    chars += p * more_chars
        return nats, chars

    def entropy(self) -> StoriesEntropy:
        """Exact entropy and expected length of a story: H(plot), plus for each plot its roles and its text."""
        choice = self.choices[self.start]
        nats, chars = choice.entropy, 0.0
        for p, text, cast in zip(choice.p, self.texts[self.start], self.casts, strict=True):
            text_nats, text_chars = self.expectation(text)
            nats += p * (text_nats + sum(self.roles[role].entropy for role in cast))
            chars += p * text_chars
        return StoriesEntropy(nats, chars)


def _read(text: str) -> Text:
    """ "The {pet.noun} {rested}." -> ("The ", Mention("pet", "noun"), " ", Phrase("rested"), ".")"""
    pieces = re.split(r"\{([\w.]+)\}", text)  # literals at even indices, slots at odd ones
    parts = [
        piece if i % 2 == 0 else Mention(*piece.split(".")) if "." in piece else Phrase(piece)
        for i, piece in enumerate(pieces)
    ]
    return tuple(part for part in parts if part)


def _link(text: Sequence[str | Phrase | Mention], ahead: tuple | None) -> tuple | None:
    """Put `text` in front of `ahead`, as a linked list: (part, (part, ... ahead))."""
    for part in reversed(text):
        ahead = (part, ahead)
    return ahead


@cache
def stories_grammar() -> Grammar:
    """The grammar of the built-in stories."""
    return Grammar(RULES, ROLES, UNLIKE)


def generate_stories(count: int, seed: int) -> Iterator[str]:
    """Yield `count` stories. Each ends with its only newline. Story i depends only on (seed, i)."""
    grammar = stories_grammar()
    for index in range(count):
        yield grammar.sample(random.Random((seed << 32) + index))[0]


def log_probability(story: str, grammar: Grammar | None = None) -> float:
    """Exact ln P(story), in nats, newline included. Raises DataError if the grammar cannot have written it."""
    found = (grammar or stories_grammar()).derivations(story)
    return math.log(sum(map(math.exp, found)))


def entropy(grammar: Grammar | None = None) -> StoriesEntropy:
    """The exact entropy of a story and its expected length, computed from the grammar."""
    return (grammar or stories_grammar()).entropy()
