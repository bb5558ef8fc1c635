"""Search for the likeliest whole continuations with beams, instead of choosing the likeliest next token.

Each group keeps its best beams at every step. A beam whose last token is eos is complete. It leaves the group, and its
score is log-probability / length ** length_penalty (eos counted). The rules are those of `generate` in transformers 5:
- Penalties and bans change log-probabilities, which are not normalised again.
- The search looks at twice as many candidates as beams, so that enough remain when some are complete. Only the first
  num_beams candidates may become complete.
- A group ends when it has num_beams complete hypotheses and its best beam, if it were complete now, would score below
  all of them. With early_stopping the second condition is dropped. This is a heuristic: with a length_penalty above 0
  a longer hypothesis might still have won.

With a temperature above 0, candidates are drawn without replacement from the distribution over all of them, by the
Gumbel-top-k trick (Kool et al., 2019, section 2.2): take the largest of log-probability + Gumbel noise.

Diverse beam search (Vijayakumar et al., 2018, algorithm 1): groups choose one after another. A token costs
diversity_penalty for each beam of an earlier group that chose it at this step. As in the paper, a group ranks its
beams by scores that include these costs. The hypotheses of all groups are ranked by the model's scores, without them.
"""

import time
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.engine import Reader, id_rows
from minigpt.generation.sampling import NO_RULES, Rules, adjust, probabilities
from minigpt.model import GPT


class Hypothesis(NamedTuple):
    """A continuation that beam search found."""

    ids: list[int]
    """The new tokens, without eos."""
    score: float
    """logprob / length ** length_penalty; higher is better."""
    logprob: float
    """Sum of the tokens' log-probabilities, eos included, after penalties and temperature."""
    ended: bool
    """True: it ended with eos. False: it was cut."""


class Beam(NamedTuple):
    """A hypothesis that is not complete. `worth`: logprob minus the costs of diversity; `row`: its row in the batch."""

    row: int
    ids: list[int]
    logprob: float
    worth: float


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    eos_id: int | None = None,
    *,
    rules: Rules = NO_RULES,
    seeds: Sequence[int] | None = None,
    deadline: float | None = None,
) -> list[list[Hypothesis]]:
    """Find the num_samples best hypotheses of each prompt, best first; fewer if the search finds fewer.

    Args:
        model: in evaluation mode.
        prompts: rows of ids of any lengths, none empty; the beams of all prompts form one batch.
        config: num_beams, length_penalty, early_stopping, num_beam_groups, diversity_penalty and sampling settings.
        eos_id: the id that completes a hypothesis.
        rules: biased and banned ids.
        seeds: one for each prompt (default: config.seed + the prompt's index).
        deadline: a value of time.monotonic(); the step that reaches it is the last.

    Raises:
        GenerationError: a prompt is empty or has an unknown id, the settings leave no token, or scores are NaN or
            infinite.
    """
    prompts = id_rows(prompts, model)
    device, width = model.embedding.weight.device, max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * pad + [*ids] for pad, ids in zip(pads, prompts, strict=True)], device=device)
    seeds = range(config.seed, config.seed + len(prompts)) if seeds is None else seeds
    groups: list[Group] = []  # prompt after prompt
    for row, seed in zip(range(len(prompts)), seeds, strict=True):
        generator = torch.Generator(device).manual_seed(seed) if config.temperature else None
        groups += [Group(row, config, eos_id, generator) for _ in range(config.num_beam_groups)]
    reader = Reader(model, pads)
    for new in range(config.max_new_tokens):
        last = new + 1 == config.max_new_tokens or (deadline is not None and time.monotonic() >= deadline)
        logprobs = reader.logits(tokens).float().log_softmax(-1)  # [B, V], a row for each beam
        history = [row[pad:] for row, pad in zip(tokens, reader.pads, strict=True)]
        scores = scale_and_filter(adjust(logprobs, history, new, config, rules), config)
        taken: list[list[int]] = [[] for _ in prompts]  # tokens of the prompt's earlier groups at this step
        for group in groups:
            group.step(scores, taken[group.prompt], last)
            taken[group.prompt] += [beam.ids[-1] for beam in group.beams]
        grown = [beam for group in groups for beam in group.beams]
        if not grown:
            break
        rows = torch.tensor([beam.row for beam in grown], device=device)
        reader.select(rows)
        tokens = torch.cat([tokens[rows], torch.tensor([beam.ids[-1:] for beam in grown], device=device)], dim=1)
        place = count()
        for group in groups:
            group.beams = [beam._replace(row=next(place)) for beam in group.beams]
    found: list[list[Hypothesis]] = [[] for _ in prompts]
    for group in groups:
        found[group.prompt] += [hypothesis for _, hypothesis in group.complete]
    return [sorted(each, key=lambda one: -one.score)[: config.num_samples] for each in found]


def scale_and_filter(logprobs: Tensor, config: GenerationConfig) -> Tensor:
    """Divide log-probabilities [B, V] by the temperature, and set tokens that a filter drops to -inf.

    The result is not normalised again. The two likeliest tokens of a row are always kept, so that one remains if the
    other is eos.
    """
    if config.temperature == 0:
        return logprobs
    kept = probabilities(logprobs, config) > 0
    kept.scatter_(-1, logprobs.topk(min(2, logprobs.shape[-1])).indices, True)
    return (logprobs / config.temperature).masked_fill(~kept, float("-inf"))


class Group:
    """The beams of one group of one prompt, and its complete hypotheses.

    Args:
        prompt: the prompt's index in the batch.
        generator: draws the candidates; None: take the best ones.
    """

    def __init__(self, prompt: int, config: GenerationConfig, eos_id: int | None, generator: torch.Generator | None):
        self.prompt, self.config, self.eos_id, self.generator = prompt, config, eos_id, generator
        self.size = config.num_beams // config.num_beam_groups
        self.beams = [Beam(prompt, [], 0.0, 0.0)]  # best first; empty: the search has ended
        self.complete: list[tuple[float, Hypothesis]] = []  # (worth / length ** length_penalty, hypothesis)

    def step(self, scores: Tensor, taken: Sequence[int], last: bool) -> None:
        """Extend the beams by one token.

        Args:
            scores: [B, V], scores of the next token for all beams of all groups.
            taken: tokens that cost diversity_penalty; a token that is listed twice costs it twice.
            last: whether all chosen beams become complete.
        """
        if not self.beams:
            return
        chosen = self.candidates(scores, taken)
        if not chosen:
            raise GenerationError(
                "no beam has a finite score: temperature is too low, use 0; or the weights are damaged"
            )
        length = len(self.beams[0].ids) + 1
        going: list[Beam] = []
        for rank, beam in enumerate(chosen):
            ended = beam.ids[-1] == self.eos_id
            if not ended and not last:
                going.append(beam)
            elif rank < self.size:
                score = self.rate(beam.logprob, length)
                hypothesis = Hypothesis(beam.ids[: length - ended], score, beam.logprob, ended)
                self.complete.append((self.rate(beam.worth, length), hypothesis))
        going = sorted(going, key=lambda beam: -beam.worth)[: self.size]  # drawn candidates are not in order of worth
        self.complete = sorted(self.complete, key=lambda each: -each[0])[: self.size]
        full = len(self.complete) == self.size
        if full and going and not self.config.early_stopping:
            full = self.rate(going[0].worth, length) <= self.complete[-1][0]
        self.beams = [] if full else going

    def candidates(self, scores: Tensor, taken: Sequence[int]) -> list[Beam]:
        """The 2 x size best continuations, best first, or 2 x size draws in their order; fewer if many are banned."""
        scores = scores[[beam.row for beam in self.beams]]  # [B, V] -> [beams, V]
        worths = torch.tensor([beam.worth for beam in self.beams], device=scores.device)[:, None] + scores
        for token in taken:
            worths[:, token] -= self.config.diversity_penalty
        keys = worths
        if self.generator is not None:
            keys = worths - torch.empty_like(worths).exponential_(generator=self.generator).log()
        best = keys.flatten().topk(min(2 * self.size, keys.numel())).indices  # indices into [beams x V]
        parents, tokens = (best // scores.shape[1]).tolist(), (best % scores.shape[1]).tolist()
        gains, worth = scores.flatten()[best].tolist(), worths.flatten()[best].tolist()
        chosen = []
        for place, parent, token in zip(range(len(best)), parents, tokens, strict=True):
            if worth[place] > float("-inf"):
                beam = self.beams[parent]
                chosen.append(Beam(beam.row, [*beam.ids, token], beam.logprob + gains[place], worth[place]))
        return chosen

    def rate(self, logprob: float, length: int) -> float:
        """The score by which complete hypotheses are ranked."""
        return logprob / length**self.config.length_penalty
