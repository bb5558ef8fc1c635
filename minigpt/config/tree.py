"""Define the typed configuration. A field's docstring is its help in the command line, the JSON Schema and the docs.

Sections are frozen, and unknown keys are errors. `shape` names an architecture and fills in those of its fields that
the recipe leaves out, so a resolved config always holds every field.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from minigpt.config.finetune import AdapterConfig, FinetuneConfig
from minigpt.config.generation import GenerationConfig
from minigpt.config.parallel import ParallelConfig
from minigpt.config.rates import default_rate, default_ratio
from minigpt.config.recovery import RecoveryConfig
from minigpt.config.section import (
    MOST_SIZE,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OptionalPath,
    PathText,
    Positive,
    PositiveFloat,
    RunName,
    Section,
    Seed,
    Size,
    names,
)

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "position": "learned",
        "activation": "gelu_tanh",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": True,
    },
    "modern": {
        "norm": "rmsnorm",
        "norm_eps": 1e-6,
        "position": "rope",
        "activation": "swiglu",
        "qk_norm": True,
        "bias": False,
        "tie_embeddings": True,
    },
}


GATED = ("swiglu",)
"""Activations whose first matrix has twice as many rows, for gates and values."""


class ModelConfig(Section):
    """The Transformer's shape."""

    vocab_size: Size | None = None
    """Number of token ids (default: the tokenizer's)."""
    max_seq_len: Size = 128
    """Context length T, in tokens."""
    embed_dim: Size = 128
    """Width C of the residual stream."""
    num_heads: Size = 4
    """Attention (query) heads H."""
    num_kv_heads: Size | None = None
    """Key/value heads; fewer than num_heads is grouped-query attention (default: num_heads)."""
    head_dim: Size | None = None
    """Size D of one head (default: embed_dim / num_heads)."""
    num_layers: Annotated[int, Field(gt=0, le=1000)] = 4
    """Transformer blocks."""
    ff_dim: Size | None = None
    """Hidden width of the feed-forward part (default: 4 x embed_dim; swiglu: 8/3 x embed_dim, rounded up to a multiple
    of 64)."""
    dropout: Fraction = 0.0
    """Dropout: probability of zeroing a number in training. It is the default of input_dropout, attention_dropout and
    block_dropout."""
    word_dropout: Fraction = 0.0
    """Dropout of a token's whole embedding: each micro-batch (and each rank) draws tokens of the vocabulary and zeroes
    them everywhere."""
    input_dropout: Fraction | None = None
    """Dropout of the first block's input."""
    qkv_dropout: Fraction = 0.0
    """Dropout of queries, keys and values, before rotation and norm."""
    attention_dropout: Fraction | None = None
    """Dropout of the attention weights."""
    hidden_dropout: Fraction = 0.0
    """Dropout of the hidden layer of the feed-forward part."""
    block_dropout: Fraction | None = None
    """Dropout of what the attention and feed-forward parts add to the residual stream."""
    output_dropout: Fraction = 0.0
    """Dropout of the head's input."""
    locked_dropout: tuple[Literal["input", "qkv", "hidden", "block", "output"], ...] = ()
    """Dropouts that draw one mask for all positions of a sequence; the others draw for each number."""

    _names = field_validator("locked_dropout", mode="before")(names)

    shape: Literal["gpt2", "modern"] = "modern"
    """Named architecture, which sets the defaults of the fields below: gpt2 (OpenAI's) or modern (Qwen3's)."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation before each part of a block."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the variance inside a norm."""
    position: Literal["learned", "sinusoidal", "rope"] = "rope"
    """How the model knows positions: a learned table, fixed sinusoids, or rotated queries and keys."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary wavelengths."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"] = "swiglu"
    """Non-linearity of the feed-forward part."""
    qk_norm: bool = True
    """Normalise queries and keys per head before their product."""
    bias: bool = False
    """Biases in linear layers and norms."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head as well."""
    bigrams: Annotated[int, Field(ge=0, le=MOST_SIZE)] = 0
    """Rows of a second embedding, for each pair of a token and the one before it. If there are more pairs than rows,
    they share rows by a hash. 0: none. A short run learns faster with it, but no other tool can run the model."""
    softmaxes: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of softmaxes that the head mixes: 3 to 5 for a small text of words. Each computes all logits. 1: a plain
    head. No other tool can run a mixture."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights (residual projections are divided by sqrt(2 x num_layers))."""
    zero_init_residual: bool = False
    """Start the residual projections at zero: each block begins as the identity."""
    attention: Literal["auto", "reference", "blockwise", "sdpa", "fused"] = "auto"
    """Attention kernel: reference (readable code), blockwise (up to four parts that skip what the causal mask hides),
    sdpa (torch's scaled_dot_product_attention), fused (C code, on a CPU in fp32), or auto (in training the fastest on
    this machine, by timing; else sdpa)."""

    @model_validator(mode="before")
    @classmethod
    def _apply_shape(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return SHAPES.get(str(given.get("shape", "modern")), {}) | given

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.head_dim is None and self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; "
                f"try embed_dim {-(-self.embed_dim // self.num_heads) * self.num_heads}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            problems.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            problems.append(f"rope needs an even head size, not {self.head_size}; set head_dim")
        if self.num_heads * self.head_size > MOST_SIZE:
            problems.append(f"num_heads {self.num_heads} x head size {self.head_size} is more than {MOST_SIZE}")
        if self.position == "sinusoidal" and self.embed_dim % 2:
            problems.append(f"sinusoidal positions need an even embed_dim, not {self.embed_dim}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def drops(self, place: Literal["input", "qkv", "attention", "hidden", "block", "output"]) -> tuple[float, bool]:
        """The dropout at a place: (probability, whether it draws one mask for all positions)."""
        probability: float | None = getattr(self, f"{place}_dropout")
        return self.dropout if probability is None else probability, place in self.locked_dropout

    @property
    def head_size(self) -> int:
        """D, resolved."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def gates(self) -> int:
        """Outputs of the first feed-forward matrix per hidden number: 2 for a gated activation, else 1."""
        return 2 if self.activation in GATED else 1

    @property
    def hidden_dim(self) -> int:
        """Feed-forward width, resolved."""
        if self.ff_dim:
            return self.ff_dim
        if self.gates == 2:
            return -(-self.embed_dim * 8 // 3 // 64) * 64
        return 4 * self.embed_dim

    @property
    def padded_vocab_size(self) -> int:
        """vocab_size rounded up to a multiple of 64: the number of rows in the embedding."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not set; give it, or let the tokenizer set it")
        return -(-self.vocab_size // 64) * 64


class TokenizerConfig(Section):
    """How text becomes ids."""

    kind: Literal["char", "byte", "bpe", "word", "gpt2", "auto"] = "char"
    """char, byte, bpe (trained on your text), word (whole words, as WikiText counts them), gpt2 (OpenAI's), or auto
    (gpt2 if its files are available, else char)."""
    vocab_size: Size = 4096
    """bpe: number of ids to learn, special tokens included. word: the most ids (default: all words of the text)."""
    pattern: Literal["gpt2", "gpt4", "gpt4o"] = "gpt4"
    """bpe: how text is split before merging; gpt4o keeps words with combining marks (Hindi, Thai) whole."""
    unknown: Literal["token", "error"] = "token"
    """char: a character outside the vocabulary becomes the unk token (token), or is an error (error)."""
    max_train_bytes: Positive = 200_000_000
    """bpe: learn merges from this many bytes of text; the rest of a larger text is only encoded."""
    path: OptionalPath = None
    """A tokenizer.json to use; no tokenizer is made then."""

    @model_validator(mode="before")
    @classmethod
    def _all_words(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("kind") == "word":
            return {"vocab_size": MOST_SIZE} | given
        return given


class DataConfig(Section):
    """Which text to train on, and how it is cleaned and split."""

    source: PathText = "stories"
    """stories, shakespeare, wikitext-2, wikitext-103, tinystories, text8, enwik8, hf:NAME, or a file, directory, glob,
    .jsonl, .gz, or - for standard input."""
    text_field: str = "text"
    """JSON and hf: the field that holds the text."""
    encoding: str = "utf-8"
    """Encoding of the files."""
    clean: tuple[Literal["ascii", "nfc", "lower", "newlines"], ...] = ()
    """Cleaning, in the order given: ascii (drop all other characters), nfc (Unicode normal form), lower (lower case),
    newlines (\\r\\n to \\n)."""

    _names = field_validator("clean", mode="before")(names)

    split_at: str = ""
    """A text that separates documents, such as <|endoftext|>. It is removed; each part is a document and gets the
    tokenizer's end-of-text token."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share held out for validation if the source has no published split."""
    stories_count: Size = 8000
    """stories: how many stories to generate."""
    cache_dir: OptionalPath = None
    """Directory of prepared token files (default: $MINIGPT_CACHE, else ~/.cache/minigpt)."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter, 2019), or Muon (Jordan et al., 2024) for the matrices inside the blocks."""

    kind: Literal["adamw", "muon", "normuon"] = "muon"
    """muon (adamw still updates embeddings, head, norms and biases), normuon (the same with rows of equal size), or
    adamw for all weights."""
    learning_rate: PositiveFloat = 0.02
    """Peak learning rate. For muon and normuon: the spectral norm of one update of a square matrix (normuon: about).
    For adamw: its usual rate (default: 2e-3 x sqrt(256 / embed_dim)). The rates of all weights are multiples of it."""
    adamw_ratio: PositiveFloat = 0.2
    """muon, normuon: the rate of the weights that adamw updates, as a share of learning_rate (a run's default: by
    width, 0.2 x sqrt(256 / embed_dim))."""
    momentum: Fraction = 0.95
    """muon, normuon: decay of the gradient's running mean."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices (embeddings too); norms and biases are not decayed."""
    beta1: Fraction = 0.9
    """Decay of the gradient's running mean."""
    beta2: Fraction = 0.95
    """Decay of the squared gradient's running mean. normuon: of a row's mean square too."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    @property
    def has_muon(self) -> bool:
        """Whether Muon, with or without even rows, updates the matrices inside the blocks."""
        return self.kind != "adamw"


class ScheduleConfig(Section):
    """Learning rate, weight decay, and length of the context, over time."""

    kind: Literal["constant", "linear", "cosine", "trapezoidal", "cosine+plateau"] = "cosine"
    """Shape of the rate after warm-up. cosine+plateau continues after the budget (if min_lr_ratio is above 0), and cuts
    the rate each time that the validation loss stops falling."""
    warmup_steps: NonNegativeInt = 100
    """Steps over which the rate rises from 0 to learning_rate."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final rate, as a share of learning_rate; not for constant."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.3
    """trapezoidal: the rate falls over this last share of the steps after warm-up."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """cosine+plateau: each stall multiplies the rate by this."""
    plateau_patience: Positive = 2
    """cosine+plateau: this many evaluations in a row without a better validation loss are a stall."""
    plateau_max_steps: NonNegativeInt = 1000
    """cosine+plateau: the most steps after the budget of steps. train.max_minutes ends the run in any case."""
    weight_decay: Literal["constant", "follow", "opposite"] = "constant"
    """optimizer.weight_decay over time: constant, follow (it changes as the rate does), or opposite (smallest where the
    rate is highest, in full where the rate is lowest)."""
    context_warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the run with a shorter context: in its first half each window is split into four, in its second half
    into two. These steps cost less, and early in training they teach as much."""


LENGTHS = ("train.max_steps", "train.max_epochs", "train.max_tokens", "train.max_minutes")
"""The settings that set the length of a run."""


class TrainConfig(Section):
    """The training loop: budget, batches, evaluation, checkpoints."""

    max_steps: Positive | None = None
    """Optimizer steps; the first budget reached ends the run (default: 2000 if no other budget is set)."""
    max_epochs: PositiveFloat | None = None
    """Passes over the training tokens."""
    max_tokens: Positive | None = None
    """Training tokens."""
    max_minutes: PositiveFloat | None = None
    """Minutes of training; the schedule follows the clock."""
    batch_size: Size = 32
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: Size | Literal["auto"] | None = None
    """Sequences per forward pass; fewer than batch_size accumulates gradients (default: batch_size). auto: on a GPU the
    most that fit in memory, on a CPU the fastest number that fits. The result is the same except for rounding
    and the draws of dropout and masks."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient (0: no clipping)."""
    label_smoothing: Fraction = 0.0
    """Share of the target's probability that is spread evenly over the vocabulary."""
    share_unused: bool = True
    """From scratch: if 4,096 or more ids of the tokenizer do not occur in the training text, they share one row of the
    output matrix while the model is trained. A step then computes fewer logits: with gpt2 and a small text, less than
    half. No effect with label smoothing or parallel.kind fsdp."""
    masked_inputs: Fraction = 0.0
    """Learn from each batch a second time with some input tokens masked; for texts that are read many times. The masked
    share of each sequence is drawn from 0 to this, such as 0.5 (0: off). A step takes twice the time."""
    masked_weight: PositiveFloat = 0.4
    """masked_inputs: weight of the second loss; `loss` in the metrics is the first loss only."""
    ema_decay: Fraction = 0.0
    """Decay of a running average of the weights, used for evaluation and sampling (0: off)."""
    average_last: Fraction = 0.0
    """Average the weights of all steps in this last share of the run, with equal weight; the mean is used for
    evaluation and sampling (0: off). 0.2: the last fifth. Use it instead of ema_decay."""
    eval_every: Positive | Literal["auto"] = "auto"
    """Steps between evaluations; auto: after each tenth of the budget. The start and the end of the run are always
    evaluated, and if max_epochs is set, the end of each epoch too."""
    eval_batches: Positive | None = None
    """Validation batches, of micro_batch_size sequences, per evaluation; spread evenly over the split (default: all of
    it)."""
    early_stopping: Positive | None = None
    """End the run after this many evaluations in a row without a better validation loss (default: never)."""
    sample_every: NonNegativeInt = 500
    """Steps between samples (0: none)."""
    sample_prompt: str = "\n"
    """Prompt of the samples."""
    save_every: Positive = 250
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints to keep, besides the best."""
    seed: Seed = 1337
    """Seed of initialisation, data order and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "bf16-pure", "fp8"] = "auto"
    """Precision of the matrix products. Weights stay fp32, except with bf16-pure: bf16 weights, with an fp32 copy in
    the optimizer. tf32: fp32 numbers with faster, less exact products, on NVIDIA. fp8: on Hopper, with the extra fp8.
    auto takes bf16 if the device is fast at it. The precision is compared with fp32 at the start."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile; auto uses it in runs that are long enough to gain time, by measurement. If compiling fails
    under auto, training continues without it and says so in one line."""

    @model_validator(mode="before")
    @classmethod
    def _default_budget(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(length.removeprefix("train.")) is None for length in LENGTHS):
            return given | {"max_steps": 2000}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.rows:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.ema_decay and self.average_last:
            raise ValueError("average_last: a run keeps only one average; set ema_decay or average_last to 0")
        if self.precision == "bf16-pure" and self.average:
            raise ValueError(f"{self.average}: bf16 weights cannot hold an average; leave it 0, or set precision bf16")
        return self

    @property
    def average(self) -> Literal["", "ema_decay", "average_last"]:
        """The setting that makes the run keep an average of its weights; "" if there is none."""
        return "ema_decay" if self.ema_decay else "average_last" if self.average_last else ""

    @property
    def passes(self) -> int:
        """How many times a step reads its batch."""
        return 2 if self.masked_inputs else 1

    @property
    def rows(self) -> int:
        """Sequences per forward pass; batch_size while auto has not found the number yet."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else self.batch_size


class LoggingConfig(Section):
    """What a run writes and prints."""

    runs_dir: PathText = "runs"
    """Directory of all runs."""
    name: RunName = None
    """Name of this run (default: from the data, or the recipe)."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    csv: bool = False
    """Write metrics.csv too, at the end."""
    plots: bool = True
    """Plot loss and perplexity at the end (needs the plot extra)."""
    track: tuple[Literal["wandb", "tensorboard", "trackio", "mlflow"], ...] = ()
    """Tools that also get the metrics, comma-separated: wandb, tensorboard, trackio, mlflow (each needs its extra)."""

    _names = field_validator("track", mode="before")(names)


class RunConfig(Section):
    """Everything that defines a run."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
    logging: LoggingConfig = LoggingConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    lora: AdapterConfig = AdapterConfig()
    parallel: ParallelConfig = ParallelConfig()
    recovery: RecoveryConfig = RecoveryConfig()

    @property
    def seq_len(self) -> int:
        """Tokens of a training window: finetune.seq_len, else the model's context."""
        return self.finetune.seq_len or self.model.max_seq_len

    def changed(self, **sections: dict[str, Any]) -> Self:
        """A copy with other values of some settings, which are not checked: changed(train={"max_steps": 5})."""
        parts = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=parts)

    @model_validator(mode="after")
    def _windows_divide(self) -> Self:
        if self.schedule.context_warmup and self.model.max_seq_len % 4:
            raise ValueError(
                f"schedule.context_warmup cuts windows into four, but model.max_seq_len is {self.model.max_seq_len}; "
                f"make that {-(-self.model.max_seq_len // 4) * 4}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _rates_by_width(cls, given: Any) -> Any:
        model, optimizer = (
            (given.get(name, {}) for name in ("model", "optimizer")) if isinstance(given, dict) else ({}, None)
        )
        if not isinstance(optimizer, dict) or not isinstance(model, dict):
            return given
        width = model.get("embed_dim", ModelConfig().embed_dim)
        if not isinstance(width, int) or width <= 0:  # reported by the model's own check
            return given
        rates = {
            "learning_rate": default_rate(optimizer.get("kind", "muon"), width),
            "adamw_ratio": default_ratio(width),
        }
        return given | {"optimizer": rates | optimizer}
