"""Settings of finetuning."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from minigpt.config.section import (
    MOST_SIZE,
    Fraction,
    NonNegativeFloat,
    OptionalPath,
    PathText,
    PositiveFloat,
    Section,
    Size,
    names,
)


class LoRAConfig(Section):
    """A low-rank update of frozen matrices: W x + scale B A x (Hu et al., 2021)."""

    rank: Size = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank. Keep alpha when you change the rank; then the learning rate can stay too
    (Hu et al., 4.1)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that a large rank learns as fast as a small one (Kalajdzievski, 2023)."""
    dropout: Fraction = 0.0
    """Probability of zeroing an input of A in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("qkv", "out", "up", "down")
    """Linear layers to adapt, by the end of their dotted names, with * and ?: qkv, attention.*, blocks.[01].*.qkv,
    head. The default, all layers in the blocks, is needed to equal full fine-tuning (Dettmers et al., 2023, 4)."""

    _names = field_validator("targets", mode="before")(names)

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class AdapterConfig(LoRAConfig):
    """The LoRA adapter of a fine-tuning run, if it has one."""

    rank: Annotated[int, Field(ge=0, le=MOST_SIZE)] = 0
    """Rows of A and columns of B; 0 trains the weights themselves, without an adapter."""


class FinetuneConfig(Section):
    """Training that starts from a trained model."""

    base: OptionalPath = None
    """The run, checkpoint or Hugging Face directory to start from."""
    freeze: tuple[str, ...] = ()
    """Parameters or parts that are not trained, by name, with * and ?: embedding,blocks.0,blocks.*.norm? (a tied head
    is the embedding)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's rate is the rate of the layer above it times this; the head and last norm have the full rate (a tied
    head is the embedding, the lowest layer)."""
    seq_len: Size | None = None
    """Tokens in a row of a batch (default: the model's context)."""
    pack: bool = False
    """Fill rows with several records each: faster where records are short, but a record sees those before it."""
    val_source: OptionalPath = None
    """Records to validate on (default: a share of the data, data.val_fraction)."""
    dpo_beta: NonNegativeFloat = 0.0
    """Learn from rejected answers too, by DPO. This strength keeps the model near the base: 0.1 is usual (0: only the
    chosen answers are learned). Each row is then a pair of answers, and the loss is that of pairs."""
    teacher: tuple[PathText, ...] = ()
    """A run, checkpoint or Hugging Face directory with the same vocabulary. Its probabilities are learned too. Several
    names, separated by commas, teach the mean of their probabilities."""
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teachers in the loss, 0 to 1; the data has the rest."""
    teacher_temperature: PositiveFloat = 1.0
    """Divides the logits of all models before they are compared; 2 gives more weight to the unlikely tokens."""
    template: OptionalPath = None
    """A template.json that says how chats are spelled (default: the base's own, else User: and Assistant:)."""

    _names = field_validator("freeze", mode="before")(names)

    @field_validator("teacher", mode="before")
    @classmethod
    def _teachers(cls, given: Any) -> Any:
        """Older configs allow at most one teacher; null means none."""
        return () if given is None else names(given)

    @property
    def loss_unit(self) -> str:
        """What the loss is divided by: "pair" with DPO, else "token"."""
        return "pair" if self.dpo_beta else "token"
