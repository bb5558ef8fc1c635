"""Choose, among all sizes and batches that the rule allows, the one for which the law predicts the lowest loss."""

import math
from dataclasses import dataclass
from functools import cached_property

from minigpt.config import RunConfig
from minigpt.errors import ConfigError
from minigpt.runs.budget import rule
from minigpt.runs.budget.law import LAWS, Text
from minigpt.runs.budget.overhead import Overhead
from minigpt.runs.budget.rule import Size
from minigpt.runs.budget.speed import Configure, Speed

WEIGHTS_PER_BYTE = 10
"""Most weights per byte of training text; the runs that the law was fitted to had at most 6."""
FEWEST = 100
"""A batch is made larger than the rule's only if the run keeps this many steps."""
BYTES_PER_WEIGHT = 50
"""Most bytes of text per weight, if there is a choice. The law was fitted on at most 49 of them; without this limit the
plan would be to train the smallest model on more text."""


@dataclass(frozen=True)
class Plan:
    """A run that fits into the budget.

    Attributes:
        config: all settings except its length.
        size: its size, which sets the cost.
        steps: number of steps that fit into the time.
        step_seconds: seconds per step on this machine.
        train_seconds: seconds of the trainer's clock: all steps, and the evaluations and checkpoints between them.
        after_seconds: seconds for the last evaluation and checkpoint, the plot, and the end of the process.
        loss: predicted loss on the validation text, in nats per token.
        limited: the run ends before the budget is used up, since more passes over such a small text would not help.
    """

    config: RunConfig
    size: Size
    steps: int
    step_seconds: float
    train_seconds: float
    after_seconds: float
    loss: float
    limited: bool = False

    @property
    def tokens(self) -> int:
        """Number of training tokens; repeated ones count each time."""
        return self.steps * self.config.train.batch_size * self.config.model.max_seq_len

    @property
    def flops(self) -> float:
        """FLOPs of training, without Muon's."""
        once = self.tokens * self.size.token_flops(self.config.model.max_seq_len)
        return float(self.config.train.passes * once)


@dataclass(frozen=True)
class Chooser:
    """Finds the best plan.

    Args:
        text: what is known about the text.
        speed: the speed of this machine.
        configure: adds the person's settings, which limit the choice.
        seconds: seconds until the end of the command.
        flops: budget of training, in FLOPs.
        compiled: whether blocks are compiled, which makes the first step slow.
    """

    text: Text
    speed: Speed
    configure: Configure
    seconds: float = math.inf
    flops: float = math.inf
    compiled: bool = False

    @cached_property
    def micro_batch(self) -> int:
        """The person's micro-batch size, of which every batch is a multiple; 1 if there is none."""
        size = self.configure({}).train.micro_batch_size
        return size if isinstance(size, int) else 1

    def best(self) -> Plan:
        """The plan with the lowest loss. Raises ConfigError if no size fits the person's settings."""
        best: Plan | None = None
        worse, problem = 0, ConfigError("--budget: no size fits")
        heaviest = WEIGHTS_PER_BYTE * self.text.train_tokens * self.text.bytes_per_token
        for layers, width in rule.LADDER:
            try:
                plan = self._best_batch(layers, width)
                if best and plan.size.parameters > heaviest:
                    break
            except ConfigError as error:  # this size does not fit the person's settings; another one may
                problem = error
                continue
            starved = best is not None and self._trained_out(best) and not self._trained_out(plan)
            if best is None or starved or plan.loss < best.loss:
                best, worse = plan, 0
            elif (worse := worse + 1) == 3:  # beyond the best size the loss only grows
                break
        if best is None:
            raise problem
        return best

    def _trained_out(self, plan: Plan) -> bool:
        return plan.tokens * self.text.bytes_per_token > BYTES_PER_WEIGHT * plan.size.parameters

    def _best_batch(self, layers: int, width: int) -> Plan:
        """Try larger batches as long as they help: they save the part of a step's cost that is not arithmetic."""
        best = self.plan(layers, width)
        for times in (2, 4, 8, 16, 32, 64, 128):
            plan = self.plan(layers, width, times)
            if plan.loss >= best.loss or plan.steps < FEWEST:
                break
            best = plan
        return best

    def plan(self, layers: int, width: int, times: int = 1) -> Plan:
        """Plan one size with a multiple of the rule's smallest batch.

        Context and batch depend on the number of tokens. This number depends on them through the time per step. A few
        rounds find values that fit.
        """
        tokens, plan = 1e6, self._fill(layers, width, times, 1e6)
        for _ in range(5):
            if 0.7 < plan.tokens / tokens < 1.4:
                break
            tokens = float(plan.tokens)
            plan = self._fill(layers, width, times, tokens)
        return plan

    def _fill(self, layers: int, width: int, times: int, tokens: float) -> Plan:
        """As many steps as the time allows, with the context and the batch of a run of `tokens`."""
        text = self.text
        seq_len = min(rule.context(tokens), 2 ** int(math.log2(max(2, min(text.train_tokens, text.val_tokens) - 1))))
        chosen = rule.shape(layers, width, seq_len, text.vocab_size)
        smallest = -(-rule.smallest_batch(tokens, seq_len) // self.micro_batch) * self.micro_batch
        chosen["train.batch_size"] = times * smallest
        config = self.configure(chosen)
        seq_len, batch = config.model.max_seq_len, config.train.batch_size  # the person's values, if given
        size, times_read = Size.of(config.model), config.train.passes  # 2 if the person gives masked_inputs
        step = times_read * self.speed.step(size, seq_len, batch)
        affordable = self.flops / (times_read * batch * seq_len * size.token_flops(seq_len))
        total = min(self.seconds, affordable * step)
        overhead = Overhead.of(config, size, text.val_tokens, step, total, self.compiled)
        steps = max(1, int(min((self.seconds - overhead.between - overhead.after) / step, affordable)))
        law = LAWS[text.kind]
        most = math.ceil(law.enough(text, size.parameters) / (batch * seq_len))
        limited = most < steps
        if steps >= 2 * most and times_read == 1:  # time is left for a second pass of each step, on masked inputs
            chosen["train.masked_inputs"] = rule.MASKED
            step *= self.configure(chosen).train.passes  # 1 if the person wants none
        steps = min(most, steps)
        passes, density = steps * batch * seq_len / text.train_tokens, size.parameters / text.train_tokens
        chosen |= rule.rates(steps, passes, density) | overhead.settings(steps, step)
        loss = law.loss(text, size.parameters, steps * batch * seq_len, steps)
        train_seconds = steps * step + overhead.between
        return Plan(self.configure(chosen), size, steps, step, train_seconds, overhead.after, loss, limited)
