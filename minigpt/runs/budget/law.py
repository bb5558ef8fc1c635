"""The law: which loss a model of N weights reaches with D bytes of training on a text that has U bytes of its own.

    loss = G (E + A / N^a + B / D'^b)        nats a byte (Hoffmann et al., 2022, "Chinchilla", section 3.3)
    D'   = (U1 + U R (1 - exp(-r / R))) S^2 / (S^2 + S0^2),   U1 = min(U, D), r = D / U - 1 (0 at least) repetitions
    S0   = s D^0.35

G is what a 5-gram model of the same text gives, which tells how hard the text is. What is read again is worth less and
less, R times the text at most (Muennighoff et al., 2023, section 3.1), and hardly anything to a model with so many
weights for each byte that it learns the text by heart: R = 4 / (1 + (N / (M U))^c). S steps: a run of few large steps
is worth less than one of many small ones (in the sense of McCandlish et al., 2018; the form is ours), and the more it
reads, the more steps it wants. N in 100,000, D and D' in millions.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """What the law wants to know of a text.

    Attributes:
        train_tokens, val_tokens: of its splits.
        vocab_size: ids of its tokenizer.
        bytes_per_token: bytes of a validation token.
        five_gram: nats per byte that a 5-gram model of a million of its bytes gives to the validation text.
        kind: "text" as people write it, or "stories", whose sentences a grammar made.
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
        """Nats a token of the validation text.

        Args:
            text: what is known of it.
            parameters: weights in the blocks, N.
            tokens: of training, repeated ones as often as they are read.
            steps: they are read in.
        """
        enough = self.steps * (tokens * text.bytes_per_token / 1e6) ** STEPS_POWER
        worth = self.worth(text, parameters, tokens) * steps**2 / (steps**2 + enough**2)
        by_size, by_data = (
            self.size * (parameters / 1e5) ** -self.size_power,
            self.data * (worth / 1e6) ** -self.data_power,
        )
        return text.five_gram * text.bytes_per_token * (self.floor + by_size + by_data)

    def worth(self, text: Text, parameters: float, tokens: float) -> float:
        """Bytes of new text that so many tokens are worth."""
        unique, read = text.train_tokens * text.bytes_per_token, tokens * text.bytes_per_token
        most = self._most(unique, parameters)
        return min(unique, read) + unique * most * (1 - math.exp(-max(0.0, read / unique - 1) / most))

    def enough(self, text: Text, parameters: float) -> float:
        """Tokens beyond which repetitions bring no more (98 % of what they are worth at most is had), or do harm."""
        unique = text.train_tokens * text.bytes_per_token
        return text.train_tokens * (1 + 4 * self._most(unique, parameters) if parameters <= HEART * unique else FEW)

    def _most(self, unique: float, parameters: float) -> float:
        return REPEATS / (1 + (parameters / (self.memory * unique)) ** self.memory_power)


STEPS_POWER = 0.35
"""How the steps that a run can use grow with what it reads: the exponent of the batch's rule, docs/LOG.md."""
REPEATS = 4.0
"""Times the text that its repetitions are worth at most, in a model that is small beside it. Muennighoff et al. find 15
for large models; our runs of up to 20 passes fit equally well with 4 to 10, and the least promises the least."""
HEART, FEW = 2.5, 3.0
"""A model with more weights for each byte than this may see a text this often only. Measured: 8 passes with 2.1 of them
and 20 with 1.6 did no harm; 20 with 5.3 led to 2.61 nats a character, where the smaller model came to 2.19."""
LAWS = {
    "text": Law(0.4, 0.2002, 0.2501, 0.49, 0.1737, 6.654, 5.33, 156.1),
    "stories": Law(0.293, 0.1734, 1.118, 0.2047, 0.7319, 5, 4, 338.8),
}
"""By kind of text, from `python benchmarks/scaling.py fit benchmarks/scaling.jsonl`: runs on commits 16be5f5
and 149ac90, 2 cores of a 2.8 GHz Xeon, fp32. 41 runs of text: mean error 1.4 %; 8 of stories: 2.1 %.
No run of stories repeats them, so their M and c are where the fit began."""
