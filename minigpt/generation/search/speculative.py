"""Decode faster with guesses: a drafter guesses some tokens, and one pass of the model accepts or rejects them.

This is speculative decoding. Guess x is accepted with probability min(1, p(x) / q(x)). p is the distribution from which
plain sampling would draw at this position; q is the one from which x was drawn. The first rejected guess is replaced by
a draw from the positive part of p - q. If all are accepted, the same pass gives one more token. So the text has the
same distribution as plain sampling with the same settings, however good the drafter is. A bad drafter only costs time.
Sources: Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding", 2.3; Chen et al., 2023,
"Accelerating Large Language Model Decoding with Speculative Sampling", algorithm 2.

Not guaranteed: with a temperature, the tokens differ from those of plain sampling with the same seed. And one pass over
many positions rounds differently than many passes over one, so greedy decoding may decide a near tie differently, most
likely in bf16 or int8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.engine import id_rows, window_start
from minigpt.generation.sampling import NO_RULES, Rules, adjust, draw, probabilities
from minigpt.model import GPT

LONGEST_MATCH = 3  # most tokens that prompt look-up compares


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one text are drawn.

    Args:
        prompt: number of tokens in the prompt.
        config, rules: settings.
        generator: used for all draws, also those of the drafter.
    """

    prompt: int
    config: GenerationConfig
    rules: Rules
    generator: torch.Generator

    def chances(self, logits: Tensor, history: Tensor) -> Tensor:
        """The distribution [V] of the token after `history` [T], from the model's logits [V]."""
        new = len(history) - self.prompt
        return probabilities(adjust(logits[None], [history], new, self.config, self.rules), self.config)[0]


class Draft(NamedTuple):
    """k guessed ids, and the distributions [k, V] from which they were drawn (None: they were not drawn)."""

    ids: list[int]
    chances: Tensor | None = None


class Drafter(Protocol):
    """Guesses the next tokens. One drafter may serve several texts, also alternately."""

    @property
    def vocab_size(self) -> int | None:
        """Number of ids that it may guess. None: it only guesses ids that are in the text."""
        ...

    def draft(self, tokens: Sequence[int], room: int, sampling: Sampling) -> Draft:
        """Guess at most `room` tokens after `tokens`."""
        ...


class Pass:
    """Reads a text that grows and whose end may change, and computes only the positions not in the cache.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: GPT):
        self.model, self.cache = model, model.make_cache()
        self.held: list[int] = []  # tokens whose keys and values are in the cache

    def logits(self, tokens: Sequence[int], last: int = 1) -> Tensor:
        """Logits [last, V] after each of the `last` last tokens, all read in the window of the whole text."""
        window = list(tokens[window_start(len(tokens), self.model.config.max_seq_len) :])
        self.cache.length = min(common(self.held, window), len(window) - last)
        ids = torch.tensor([window[self.cache.length :]], device=self.model.embedding.weight.device)  # [1, T]
        hidden = self.model.hidden(ids, self.cache)[0, -last:]  # [1, T, C] -> [last, C]
        self.held = window
        return self.model.head(hidden)[:, : self.model.config.vocab_size]


class LookupDrafter:
    """Guesses that the text repeats itself (Saxena, 2023, "Prompt Lookup Decoding"). It costs almost no time.

    It looks for the latest earlier place with the same last three tokens (or two, or one), and guesses what followed
    there. LookupDrafter(4) after 1 2 3 4 5 1 2 guesses 3 4 5 1; after 7 8 7 8 it guesses 7 8 7 8.

    Args:
        size: largest number of tokens to guess at once.
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
            text.append(text[place])  # text[place] may be a guess too
        return Draft(text[len(tokens) :])


class ModelDrafter:
    """Guesses with a smaller model, with the same settings.

    Args:
        model: has the same vocabulary and device, and is in evaluation mode; its context length may differ.
        size: largest number of tokens to guess at once.
    """

    def __init__(self, model: GPT, size: int):
        self.model, self.size = model, size
        self.reader = Pass(model)

    @property
    def vocab_size(self) -> int | None:
        """The model's vocabulary size."""
        return self.model.config.vocab_size

    def draft(self, tokens: Sequence[int], room: int, sampling: Sampling) -> Draft:
        """See `Drafter`."""
        text, chances = list(tokens), []
        for _ in range(min(self.size, room)):
            history = torch.tensor(text, device=sampling.generator.device)
            try:
                row = sampling.chances(self.reader.logits(text)[0], history)
            except GenerationError:  # no token may follow this guess; it may be rejected anyway
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
    """Yield the ids that each pass of the model adds: the accepted guesses, and one more.

    Args:
        model: in evaluation mode.
        prompt: ids, at least one.
        config: sampling settings.
        drafter: guesses the tokens.
        eos_id: the id that ends the text; it is yielded too.
        rules: biased and banned ids.
        seed: seed of all draws (default: config.seed).

    Raises:
        GenerationError: the prompt is empty or has an unknown id, the drafter has another vocabulary, or the settings
            leave no token.
    """
    (tokens,) = id_rows([prompt], model)
    if drafter.vocab_size not in (None, model.config.vocab_size):
        raise GenerationError(
            f"the draft model has {drafter.vocab_size} ids, the model {model.config.vocab_size}; "
            "take a draft model with the same tokenizer"
        )
    device, limit = model.embedding.weight.device, model.config.max_seq_len
    generator = torch.Generator(device).manual_seed(config.seed if seed is None else seed)
    sampling, reader = Sampling(len(tokens), config, rules, generator), Pass(model)
    end = len(tokens) + config.max_new_tokens
    while len(tokens) < end:
        # One pass reads all positions in one window, so a draft ends where plain generation would move the window.
        room = min(end - len(tokens) - 1, window_start(len(tokens), limit) + limit - len(tokens))
        draft = drafter.draft(tokens, room, sampling)
        guessed = tokens + draft.ids
        chosen = verify(reader.logits(guessed, len(draft.ids) + 1), guessed, draft, sampling, eos_id)
        tokens += chosen
        yield chosen
        if chosen[-1] == eos_id:
            return


def verify(logits: Tensor, guessed: Sequence[int], draft: Draft, sampling: Sampling, eos_id: int | None) -> list[int]:
    """Accept or reject guesses; returns 1 to k + 1 tokens: the accepted guesses, then a draw from the model.

    It ends at the first guess that is rejected or ends the text.

    Args:
        logits: [k + 1, V], before each guess and after the last one.
        guessed: the text with the guesses.
        draft: the guesses.
    """
    ids, count = torch.tensor(guessed, device=logits.device), len(draft.ids)
    known = len(guessed) - count
    drafted = draft.chances
    if drafted is None:
        drafted = F.one_hot(ids[known:], logits.shape[1])
    # One position at a time: after a rejected guess the settings may leave no token, which would be an error.
    for place, guess in enumerate(draft.ids):
        chances = sampling.chances(logits[place], ids[: known + place])
        token = judge(chances, drafted[place], guess, sampling.generator)
        if token != guess or token == eos_id:
            return [*draft.ids[:place], token]
    return [*draft.ids, int(draw(sampling.chances(logits[-1], ids), sampling.generator))]


def judge(chances: Tensor, drafted: Tensor, guess: int, generator: torch.Generator) -> int:
    """Accept the guess, drawn from `drafted` [V], or draw another token, so that the result follows `chances` [V]."""
    if torch.rand((), generator=generator, device=chances.device) * drafted[guess] < chances[guess]:
        return guess
    rest = (chances - drafted).clamp(min=0)
    return int(draw(rest if rest.any() else chances, generator))  # rest is 0 if both are equal up to rounding


def latest_occurrence(tokens: Sequence[int], longest: int = LONGEST_MATCH) -> int | None:
    """Find an earlier place that ends in the same tokens as the text does, and return the index after its end.

    It takes the longest match, up to `longest` tokens, and of equal ones the latest. None if the last token is new.
    latest_occurrence([1, 2, 3, 9, 2, 3]) -> 3, since 2 3 ends before index 3.
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
    """Length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
