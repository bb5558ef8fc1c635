"""Predict the loss of a model of N weights after D bytes of training on a text that has U bytes: the law.

    loss = G (E + A / N^a + B / D'^b)        nats per byte (Hoffmann et al., 2022, "Chinchilla", section 3.3)
    D'   = (U1 + U R (1 - exp(-r / R))) S^2 / (S^2 + S0^2),   U1 = min(U, D), r = D / U - 1 (at least 0) repetitions
    S0   = s D^0.35

G is the loss of a 5-gram model of the same text; it says how hard the text is. Repeated text is worth less with each
pass, at most R times the text (Muennighoff et al., 2023, section 3.1). If a model has many weights per byte, it
memorises the text, and repetition is worth almost nothing: R = 4 / (1 + (N / (M U))^c). S is the number of steps: a run
with few large steps is worth less than a run with many small steps (in the sense of McCandlish et al., 2018; the form
is ours), and a run that reads more needs more steps. N is in units of 100,000, D and D' in millions; in R, N counts
weights and U bytes.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """What the law needs to know about a text.

    Attributes:
        train_tokens, val_tokens: sizes of its splits.
        vocab_size: ids of its tokenizer.
        bytes_per_token: bytes per validation token.
        five_gram: nats per byte of the validation text, by a 5-gram model fitted on a million bytes of training text.
        kind: "text" that people write, or "stories", whose sentences a grammar made.
    """

    train_tokens: int
    val_tokens: int
    vocab_size: int
    bytes_per_token: float
    five_gram: float
    kind: str = "text"


@dataclass(frozen=True)
class Law:
    """The constants: E, A, a, B, b, M, c, s."""

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float
    memory: float
    memory_power: float
    steps: float

    def loss(self, text: Text, parameters: float, tokens: float, steps: float) -> float:
        """Nats per token of the validation text.

        Args:
            text: what is known about it.
            parameters: weights in the blocks, N.
            tokens: number of training tokens; repeated ones count each time.
            steps: number of steps that read them.
        """
        enough = self.steps * (tokens * text.bytes_per_token / 1e6) ** STEPS_POWER
        worth = self.worth(text, parameters, tokens) * steps**2 / (steps**2 + enough**2)
        by_size, by_data = (
            self.size * (parameters / 1e5) ** -self.size_power,
            self.data * (worth / 1e6) ** -self.data_power,
        )
        return text.five_gram * text.bytes_per_token * (self.floor + by_size + by_data)

    def worth(self, text: Text, parameters: float, tokens: float) -> float:
        """How many bytes of new text these tokens are worth."""
        unique, read = text.train_tokens * text.bytes_per_token, tokens * text.bytes_per_token
        most = self._most(unique, parameters)
        return min(unique, read) + unique * most * (1 - math.exp(-max(0.0, read / unique - 1) / most))

    def enough(self, text: Text, parameters: float) -> float:
        """The number of tokens after which repetitions bring little more: 90 % of their largest worth is reached."""
        most = self._most(text.train_tokens * text.bytes_per_token, parameters)
        return text.train_tokens * (1 + math.log(10) * most)

    def _most(self, unique: float, parameters: float) -> float:
        return REPEATS / (1 + (parameters / (self.memory * unique)) ** self.memory_power)


STEPS_POWER = 0.35
"""How the steps that a run can use grow with what it reads: the exponent of the batch's rule, docs/LOG.md."""
REPEATS = 4.0
"""The repetitions of a text are worth at most this many times the text, in a model that is small compared with it.
Muennighoff et al. find 15 for large models; our runs of up to 33 passes fit equally well with 4 to 10, and the smallest
value gives the most cautious prediction."""
LAWS = {
    "text": Law(0.4, 0.1459, 0.3529, 0.5439, 0.1563, 17, 1.426, 158.9),
    "stories": Law(0.293, 0.1734, 1.118, 0.2047, 0.7319, 5, 4, 338.8),
}
"""For each kind of text, from `python benchmarks/scaling.py fit benchmarks/scaling.jsonl`: runs on commits 16be5f5 and
149ac90, 2 cores of a 2.8 GHz Xeon, fp32, and four runs of 8 to 33 passes with the rule's dropout on one core of another
Xeon. 45 runs of text: mean error 1.5 %; 8 of stories: 2.1 %. No run of stories repeats them, so their M and c keep the
values at which the fit started."""
