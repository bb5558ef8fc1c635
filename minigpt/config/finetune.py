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
    """The update is scaled by alpha / rank; kept when the rank changes, as the learning rate then may be (Hu et
    al., 4.1)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that a large rank learns as fast as a small one (Kalajdzievski, 2023)."""
    dropout: Fraction = 0.0
    """Probability of zeroing an input of A in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("qkv", "out", "up", "down")
    """Linear layers to adapt, by the end of their dotted names, with * and ?: qkv, attention.*, blocks.[01].*.qkv,
    head. All of the blocks' by default, which a full finetune's quality needs (Dettmers et al., 2023, 4)."""

    _names = field_validator("targets", mode="before")(names)

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class AdapterConfig(LoRAConfig):
    """The LoRA adapter of a fine-tuning, if it has one."""

    rank: Annotated[int, Field(ge=0, le=MOST_SIZE)] = 0
    """Rows of A and columns of B; 0 trains the weights themselves, without an adapter."""


class FinetuneConfig(Section):
    """Training that goes on from a model."""

    base: OptionalPath = None
    """The run, checkpoint or Hugging Face directory to start from."""
    freeze: tuple[str, ...] = ()
    """Parameters or parts that stay as they are, by name, with * and ?: embedding,blocks.0,blocks.*.norm? (a tied head
    is the embedding)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer learns at this times the rate of the one above it; the head and last norm at the full rate."""
    seq_len: Size | None = None
    """Tokens of a row (default: the model's context)."""
    pack: bool = False
    """Fill rows with several records each: faster where records are short, but a record sees those before it."""
    val_source: OptionalPath = None
    """Records to validate on (default: a share of the data, data.val_fraction)."""
    dpo_beta: NonNegativeFloat = 0.0
    """Learn from rejected answers too, by DPO, held to the base with this strength: 0.1 is usual (0: the chosen answers
    alone are learned). A row is then a pair, and losses are of pairs."""
    teacher: tuple[PathText, ...] = ()
    """A run, checkpoint or Hugging Face directory of the same vocabulary whose probabilities are learned too; several,
    with commas between, teach the mean of their probabilities."""
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the teachers in the loss; the rest is the data's."""
    teacher_temperature: PositiveFloat = 1.0
    """Divides all models' logits before they are compared; 2 shows more of what the teachers hold for unlikely."""
    template: OptionalPath = None
    """A template.json that says how chats are spelled (default: the base's own, else User: and Assistant:)."""

    _names = field_validator("freeze", mode="before")(names)

    @field_validator("teacher", mode="before")
    @classmethod
    def _teachers(cls, given: Any) -> Any:
        """Configs of runs that began when there was one teacher at most say null for none."""
        return () if given is None else names(given)
