"""Speculative decoding: a drafter guesses some tokens, and one pass of the model over all of them says which stand.

Guess x stands with probability min(1, p(x) / q(x)): p is what plain sampling would draw from at its place, q what x was
drawn from. The first guess that falls is replaced by a draw from the positive part of p - q; if none does, one more
token comes for free (Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding", 2.3; Chen et
al., 2023, "Accelerating Large Language Model Decoding with Speculative Sampling", algorithm 2). So whatever the
drafter is worth, what is written has the law of plain sampling with the same settings; a bad one only costs time.

Not guaranteed: with a temperature, the tokens of plain sampling from the same seed. And one pass over many positions
rounds otherwise than many over one, so that greedy may decide a near tie differently, most likely in bf16 or int8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.engine import window_start
from minigpt.generation.sampling import NO_RULES, Rules, adjust, draw, probabilities
from minigpt.model import GPT

LONGEST_MATCH = 3  # tokens that prompt look-up compares


@dataclass(frozen=True)
class Sampling:
    """How one text is drawn.

    Args:
        prompt: number of its tokens.
        config, rules: settings.
        generator: of all draws, the drafter's too.
    """

    prompt: int
    config: GenerationConfig
    rules: Rules
    generator: torch.Generator

    def chances(self, logits: Tensor, history: Tensor) -> Tensor:
        """The distribution [V] of the token after `history` [T], given the logits [V] there."""
        new = len(history) - self.prompt
        return probabilities(adjust(logits[None], [history], new, self.config, self.rules), self.config)[0]


class Draft(NamedTuple):
    """Guesses of the next tokens: k ids, and the distributions [k, V] they were drawn from (None: no draw, certain)."""

    ids: list[int]
    chances: Tensor | None = None


class Drafter(Protocol):
    """What guesses. It may be used for one text after another, also in turn."""

    @property
    def vocab_size(self) -> int | None:
        """Ids it may guess; None: only such as are in the text."""
        ...

    def draft(self, tokens: Sequence[int], room: int, sampling: Sampling) -> Draft:
        """At most `room` guesses of what follows the tokens."""
        ...


class Pass:
    """A model that reads a text which grows, and whose end may change: it computes only what its cache does not hold.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: GPT):
        self.model, self.cache = model, model.make_cache()
        self.held: list[int] = []  # tokens whose keys and values are in the cache

    def logits(self, tokens: Sequence[int], last: int = 1) -> Tensor:
        """Logits [last, V] after each of the last tokens, all read in the window of the longest text."""
        window = list(tokens[window_start(len(tokens), self.model.config.max_seq_len) :])
        self.cache.length = min(common(self.held, window), len(window) - last)
        ids = torch.tensor([window[self.cache.length :]], device=self.model.embedding.weight.device)  # [1, T]
        hidden = self.model.hidden(ids, self.cache)[0, -last:]  # [1, T, C] -> [last, C]
        self.held = window
        return self.model.head(hidden)[:, : self.model.config.vocab_size]


class LookupDrafter:
    """Guesses that the text repeats itself: what followed the latest earlier occurrence of the last three tokens, or
    else of the last two, or the last one (Saxena, 2023, "Prompt Lookup Decoding"). Costs next to nothing.

    LookupDrafter(4) after 1 2 3 4 5 1 2 guesses 3 4 5 1; after 7 8 7 8 it guesses 7 8 7 8.

    Args:
        size: most tokens to guess at once.
    """

    vocab_size = None

    def __init__(self, size: int):
        self.size = size

    def draft(self, tokens: Sequence[int], room: int, sampling: Sampling) -> Draft:
        """See `Drafter`."""
        source = latest_occurrence(tokens)
        if source is None:
            return Draft([])
        text = list(tokens)
        for place in range(source, source + min(self.size, room)):
            text.append(text[place])  # which may be a guess itself
        return Draft(text[len(tokens) :])


class ModelDrafter:
    """Guesses what a smaller model would write with the same settings.

    Args:
        model: of the same vocabulary, on the same device, in evaluation mode; its context may be another.
        size: most tokens to guess at once.
    """

    def __init__(self, model: GPT, size: int):
        self.model, self.size = model, size
        self.reader = Pass(model)

    @property
    def vocab_size(self) -> int | None:
        """The model's."""
        return self.model.config.vocab_size

    def draft(self, tokens: Sequence[int], room: int, sampling: Sampling) -> Draft:
        """See `Drafter`."""
        text, chances = list(tokens), []
        for _ in range(min(self.size, room)):
            history = torch.tensor(text, device=sampling.generator.device)
            try:
                row = sampling.chances(self.reader.logits(text)[0], history)
            except GenerationError:  # nothing may follow this guess, which need not stand
                break
            chances.append(row)
            text.append(int(draw(row, sampling.generator)))
        return Draft(text[len(tokens) :], torch.stack(chances) if chances else None)


@torch.inference_mode()
def speculate(
    model: GPT,
    prompt: Sequence[int],
    config: GenerationConfig,
    drafter: Drafter,
    eos_id: int | None = None,
    *,
    rules: Rules = NO_RULES,
    seed: int | None = None,
) -> Iterator[list[int]]:
    """Yield the ids that each pass of the model adds: the guesses that stand, and one more.

    Args:
        model: in evaluation mode.
        prompt: ids, at least one.
        config: sampling settings.
        drafter: what guesses.
        eos_id: ends the text, and is its last id then.
        rules: what is allowed, in ids.
        seed: of all draws (default: config.seed).

    Raises:
        GenerationError: an empty prompt, a drafter of another vocabulary, or no token that may be written.
    """
    if not prompt:
        raise GenerationError("the prompt is empty; give at least one token")
    if drafter.vocab_size not in (None, model.config.vocab_size):
        raise GenerationError(
            f"the draft model knows {drafter.vocab_size} ids, the model {model.config.vocab_size}; "
            "draft with a model of the same tokenizer"
        )
    device, limit = model.embedding.weight.device, model.config.max_seq_len
    generator = torch.Generator(device).manual_seed(config.seed if seed is None else seed)
    sampling = Sampling(len(prompt), config, rules, generator)
    reader, tokens = Pass(model), list(prompt)
    end = len(tokens) + config.max_new_tokens
    while len(tokens) < end:
        # All places of one pass are read in one window, so a draft ends where plain generation would move it.
        room = min(end - len(tokens) - 1, window_start(len(tokens), limit) + limit - len(tokens))
        draft = drafter.draft(tokens, room, sampling)
        guessed = tokens + draft.ids
        chosen = verify(reader.logits(guessed, len(draft.ids) + 1), guessed, draft, sampling, eos_id)
        tokens += chosen
        yield chosen
        if chosen[-1] == eos_id:
            return


def verify(logits: Tensor, guessed: Sequence[int], draft: Draft, sampling: Sampling, eos_id: int | None) -> list[int]:
    """The tokens that stand, 1 to k + 1: guesses up to the first that falls or ends the text, and a draw of our own.

    Args:
        logits: [k + 1, V], before each guess and after the last.
        guessed: the text with the guesses.
        draft: the guesses.
    """
    ids, count = torch.tensor(guessed, device=logits.device), len(draft.ids)
    known = len(guessed) - count
    drafted = draft.chances
    if drafted is None:
        drafted = F.one_hot(ids[known:], logits.shape[1])
    # Place by place: after a guess that falls, the settings may leave no token at all, which is an error.
    for place, guess in enumerate(draft.ids):
        chances = sampling.chances(logits[place], ids[: known + place])
        token = judge(chances, drafted[place], guess, sampling.generator)
        if token != guess or token == eos_id:
            return [*draft.ids[:place], token]
    return [*draft.ids, int(draw(sampling.chances(logits[-1], ids), sampling.generator))]


def judge(chances: Tensor, drafted: Tensor, guess: int, generator: torch.Generator) -> int:
    """The token of one place, with the law `chances` [V]: the guess, drawn from `drafted` [V], or another."""
    if torch.rand((), generator=generator, device=chances.device) * drafted[guess] < chances[guess]:
        return guess
    rest = (chances - drafted).clamp(min=0)
    return int(draw(rest if rest.any() else chances, generator))  # none is left where both are equal but for rounding


def latest_occurrence(tokens: Sequence[int], longest: int = LONGEST_MATCH) -> int | None:
    """Where the latest earlier occurrence of the last tokens ends, of as many of them as occur, `longest` at most.

    latest_occurrence([1, 2, 3, 9, 2, 3]) -> 3: 2 3 stood before there; None where the last token is new.
    """
    best, found = 0, None
    for end in range(len(tokens) - 1, 0, -1):
        if tokens[end - 1] != tokens[-1]:
            continue
        same = 1
        while same < min(longest, end) and tokens[end - 1 - same] == tokens[-1 - same]:
            same += 1
        if same > best:
            best, found = same, end
            if best == longest:
                break
    return found


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
