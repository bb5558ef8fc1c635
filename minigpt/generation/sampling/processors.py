"""Change logits with one pure function per setting. Each setting has a value that turns it off.

Rows are independent. `history` has a 1-D tensor of ids for each row, prompt first; lengths may differ. A token with a
logit of -inf is banned, and no function lifts a ban.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError


@dataclass(frozen=True)
class Rules:
    """The settings that are written as text, turned into a tokenizer's ids."""

    eos_id: int | None = None
    """The end-of-text id, which min_new_tokens bans at first."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Id -> number added to its logit; -inf bans the id."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids, none empty, that are never generated."""


class Written(NamedTuple):
    """The input of `ADJUSTMENTS`: each row's tokens, prompt first; how many of them were generated; the settings."""

    history: Sequence[Tensor]
    new: int
    config: GenerationConfig
    rules: Rules


BANNED = float("-inf")
TINY = 1e-30  # smallest temperature and top_p: in float32 a setting of 1e-50 would be 0


def logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add bias[id] to the logits [B, V] of single tokens (OpenAI's API reference, logit_bias). {}: off.

    Raises:
        GenerationError: an id is not in the vocabulary.
    """
    if not bias:
        return logits
    _check_ids(bias, logits.shape[-1], "logit_bias")
    added = torch.zeros_like(logits[0])
    added[list(bias)] = torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
    return logits + added


def repetition_penalty(logits: Tensor, history: Sequence[Tensor], penalty: float) -> Tensor:
    """Make tokens of the history less likely, however often they occurred (Keskar et al., 2019, section 4.1). 1: off.

    Positive logits [B, V] are divided by the penalty, negative ones multiplied. The paper divides those too, which
    makes them likelier; other implementations multiply them, as here. With penalty 2: [3, -1] -> [1.5, -2].
    """
    if penalty == 1:
        return logits
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(occurrences(history, logits.shape[-1]) > 0, penalized, logits)


def frequency_penalty(logits: Tensor, history: Sequence[Tensor], new: int, penalty: float) -> Tensor:
    """Subtract penalty x count from each logit [B, V], where count is how often its token was generated. 0: off.

    The prompt does not count, only the last `new` tokens of each row (OpenAI's API reference, frequency_penalty).
    With penalty 0.5 and generated tokens 7 7 9, token 7 loses 1.0 and token 9 loses 0.5.
    """
    if penalty == 0 or new == 0:
        return logits
    counts = occurrences([ids[-new:] for ids in history], logits.shape[-1])
    return logits - penalty * counts.to(logits.dtype)


def presence_penalty(logits: Tensor, history: Sequence[Tensor], new: int, penalty: float) -> Tensor:
    """Subtract the penalty once from the logits [B, V] of all tokens that were generated. 0: off.

    Like `frequency_penalty`, but in its example 7 and 9 both lose 0.5.
    """
    if penalty == 0 or new == 0:
        return logits
    counts = occurrences([ids[-new:] for ids in history], logits.shape[-1])
    return logits - penalty * (counts > 0).to(logits.dtype)


def no_repeat_ngram(logits: Tensor, history: Sequence[Tensor], size: int) -> Tensor:
    """Ban tokens that would repeat a sequence of `size` tokens, prompt included (Paulus et al., 2018, section 2.5).

    0: off. With size 3 and history 1 2 3 1 2, token 3 of the logits [B, V] is banned, since it would repeat 1 2 3.
    """
    if size == 0:
        return logits
    none, followers = logits.shape[-1], []  # for each row, the tokens that earlier followed its last size - 1 tokens
    for ids in history:
        if len(ids) < size:
            followers.append(ids[:0])
            continue
        runs = ids.unfold(0, size, 1)  # [T] -> [T - size + 1, size]
        again = (runs[:, :-1] == ids[len(ids) - size + 1 :]).all(-1)
        followers.append(torch.where(again, runs[:, -1], none))
    return logits.masked_fill(occurrences(followers, none) > 0, BANNED)


def bad_words(logits: Tensor, history: Sequence[Tensor], words: Sequence[Sequence[int]]) -> Tensor:
    """Ban the last token of each word (a sequence of ids) in rows that end in the word's other tokens. (): off.

    With words (5,) and (1, 2, 3), the logits [B, V] of 5 are always banned, those of 3 only after 1 2. The prompt
    counts too.

    Raises:
        GenerationError: an id is not in the vocabulary.
    """
    if not words:
        return logits
    _check_ids((word[-1] for word in words), logits.shape[-1], "bad_words")
    longest, banned = max(map(len, words)) - 1, []
    for ids in history:
        tail = tuple(ids[max(0, len(ids) - longest) :].tolist())
        ends = [word[-1] for word in words if _ends_in(tail, tuple(word[:-1]))]
        banned.append(torch.tensor(ends, dtype=torch.long, device=logits.device))
    return logits.masked_fill(occurrences(banned, logits.shape[-1]) > 0, BANNED)


def min_new_tokens(logits: Tensor, new: int, least: int, eos_id: int | None) -> Tensor:
    """Ban the end-of-text token from the logits [B, V] until `least` tokens are generated. 0, or no eos_id: off."""
    if new >= least or eos_id is None:
        return logits
    return logits.index_fill(-1, torch.tensor([eos_id], device=logits.device), BANNED)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row [..., V]; the others become -inf. 0, or k >= V, keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, BANNED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p (Holtzman et al., 2020). 1: off.

    top_p(log([0.5, 0.3, 0.2]), 0.6) keeps the first two: 0.5 < 0.6 <= 0.5 + 0.3.
    """
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    return _keep_first(logits, index, ordered.softmax(-1), p)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens [..., V] that are at least p times as likely as the likeliest one (Nguyen et al., 2024). 0: off.

    The likeliest token is always kept. min_p(log([0.5, 0.3, 0.2]), 0.5) keeps the first two: 0.2 < 0.5 * 0.5.
    """
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), BANNED)


def typical_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens with the most typical surprise, until their probabilities sum to at least p. 1: off.

    Locally typical sampling (Meister et al., 2023). The surprise of a token is -log(probability). Its mean is the
    entropy, and the tokens nearest to the mean are kept first. The nearest one is always kept; it need not be the
    likeliest. typical_p(log([0.5, 0.3, 0.2]), 0.2) keeps the second token: the surprises are 0.69, 1.20 and 1.61, and
    their mean is 1.03.
    """
    if p >= 1.0:
        return logits
    surprise = -logits.log_softmax(-1)
    chances = (-surprise).exp()
    average = torch.special.entr(chances).sum(-1, keepdim=True)  # entr(0) is 0; 0 * inf would be NaN
    index = (surprise - average).abs().argsort(dim=-1, stable=True)
    return _keep_first(logits, index, chances.gather(-1, index), p)


def _keep_first(logits: Tensor, index: Tensor, chances: Tensor, p: float) -> Tensor:
    """Keep the first tokens in the order `index`, until their `chances` sum to at least p. All are [..., V]."""
    before = chances.cumsum(-1) - chances  # probability of all earlier tokens
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= max(p, TINY))
    return logits.masked_fill(dropped, BANNED)


ADJUSTMENTS: dict[str, Callable[[Tensor, Written], Tensor]] = {
    "logit_bias": lambda logits, w: logit_bias(logits, w.rules.bias),
    "repetition_penalty": lambda logits, w: repetition_penalty(logits, w.history, w.config.repetition_penalty),
    "frequency_penalty": lambda logits, w: frequency_penalty(logits, w.history, w.new, w.config.frequency_penalty),
    "presence_penalty": lambda logits, w: presence_penalty(logits, w.history, w.new, w.config.presence_penalty),
    "no_repeat_ngram_size": lambda logits, w: no_repeat_ngram(logits, w.history, w.config.no_repeat_ngram_size),
    "bad_words": lambda logits, w: bad_words(logits, w.history, w.rules.bad_words),
    "min_new_tokens": lambda logits, w: min_new_tokens(logits, w.new, w.config.min_new_tokens, w.rules.eos_id),
}
"""Setting -> function, applied in this order before the temperature."""
CUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "top_k": lambda logits, k: top_k(logits, int(k)),
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
}
"""Setting -> function, applied in this order after the temperature. To add a rule, write a function, a row here or
above, and its setting in `config.generation.GenerationConfig`."""


def occurrences(rows: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Count how often each token occurs in each row: B rows of ids, of any lengths -> [B, V]. The id V is not counted.

    occurrences([tensor([1, 1]), tensor([2])], 3) -> [[0, 2, 0], [0, 0, 1]]
    """
    ids = pad_sequence(list(rows), batch_first=True, padding_value=vocab_size)  # [B, T]
    counts = torch.zeros(len(rows), vocab_size + 1, dtype=torch.long, device=ids.device)
    return counts.scatter_add(1, ids, torch.ones_like(ids))[:, :vocab_size]


def _ends_in(ids: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return len(ids) >= len(end) and ids[len(ids) - len(end) :] == end


def _check_ids(ids: Iterable[int], vocab_size: int, setting: str) -> None:
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise GenerationError(f"{setting}: there is no token {wrong[0]}; ids go from 0 to {vocab_size - 1}")
