"""Estimate the memory that training and inference need, before they start.

The memory that a block keeps for its backward pass depends on kernels and precision, so it is measured on short passes
of a real block.
"""

from dataclasses import dataclass

import torch

from minigpt.config import ModelConfig, RunConfig
from minigpt.model import GPT
from minigpt.model.cost import build_meta, parameter_table, up_rows
from minigpt.model.kernels import fused
from minigpt.model.kernels.attention import scored
from minigpt.model.kernels.chunked_loss import at_once, chunk_logits, kernels_for, piece
from minigpt.runtime.device import DTYPES, Runtime, make_runtime

PLAIN = Runtime(torch.device("cpu"), "fp32")


@dataclass(frozen=True)
class Memory:
    """Estimated bytes at the moment of highest use.

    activations: what a forward and backward pass, or the optimizer's step, needs in addition to the other fields.
    average: the running average of the weights, if there is one.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    kv_cache: int
    average: int = 0

    @property
    def total(self) -> int:
        """The sum of all fields."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.kv_cache + self.average


def training_memory(
    config: ModelConfig,
    batch: int,
    runtime: Runtime = PLAIN,
    *,
    optimizer: str = "adamw",
    ema: bool = False,
    accumulates: bool = False,
    shards: int = 1,
    checkpointing: bool = False,
) -> Memory:
    """Estimate the memory of training with `batch` sequences at a time, without torch.compile, which needs less.

    Args:
        config: the shape; `attention` is the kernel.
        batch: number of sequences in one forward pass, the micro-batch.
        runtime: device and precision. A block of this shape makes four short passes there, to measure what it keeps.
        optimizer: adamw (two moments), or muon, normuon (one for the blocks' matrices, and memory for its products).
        ema: whether there is a running average of the weights.
        accumulates: whether gradients are kept while the next micro-batch is computed.
        shards: number of ranks that share weights, gradients, optimizer and average (FSDP).
        checkpointing: blocks keep only their input, and are computed again in the backward pass.
    """
    shapes = [(name, p.numel(), p.dim()) for name, p in build_meta(config).named_parameters()]
    total, muon = sum(count for _, count, _ in shapes), optimizer != "adamw"
    matrices = sum(count for name, count, dim in shapes if muon and "blocks" in name and dim >= 2)
    pure = runtime.precision == "bf16-pure"
    size = DTYPES[runtime.precision].itemsize  # bytes of a number in a matrix product
    weights = gradients = total * (2 if pure else 4)
    moments = 8 * total - 4 * matrices + (4 * total if pure else 0)
    average = 4 * total if ema else 0
    kept, head, block = _pass_bytes(config, batch, runtime, checkpointing)
    forward = kept + max(head, block) + (gradients if accumulates else 0)
    stack = config.num_layers * up_rows(config) * config.embed_dim  # most that Muon orthogonalises together
    step = gradients + (4 * matrices + stack * (8 + 5 * size // 2) if muon else 0) + (6 * total if pure else 0)
    whole = 2 * weights // max(1, config.num_layers) if shards > 1 else 0  # two blocks are gathered at a time
    parts = [count // shards for count in (weights, gradients, moments, average)]
    activations = max(forward, step) - gradients + whole
    return Memory(parts[0], parts[1], parts[2], max(0, activations), 0, parts[3])


def memory_of_run(config: RunConfig) -> Memory:
    """`training_memory` of a run, from its config. vocab_size must be set; `auto` attention counts as sdpa."""
    settings, shape = config.train, config.model
    return training_memory(
        shape.model_copy(update={"attention": "sdpa" if shape.attention == "auto" else shape.attention}),
        settings.rows * settings.passes,
        make_runtime(settings.device, settings.precision),
        optimizer=config.optimizer.kind,
        ema=bool(settings.average),
        accumulates=settings.rows < settings.batch_size,
        checkpointing=config.parallel.activation_checkpointing,
    )


def _pass_bytes(config: ModelConfig, batch: int, runtime: Runtime, checkpointing: bool) -> tuple[int, int, int]:
    """Bytes kept for the backward pass, bytes needed by the head and the loss, and bytes needed by one block.

    A block keeps fixed + batch x (row + each T + pairs T^2) bytes; `row` has the masks of locked dropouts. Four short
    passes determine these four numbers.
    """
    length, width, dtype = config.max_seq_len, config.embed_dim, DTYPES[runtime.precision]
    size = dtype.itemsize
    tokens, vocab, short = batch * length, config.padded_vocab_size, 16
    seen = (2, short), (2, 2 * short), (2, 3 * short), (4, short)  # a batch of one has another memory layout
    one, two, three, twice = (kept_by_block(config, runtime, *shape) for shape in seen)
    fixed = 2 * one - twice
    pairs = (three - 2 * two + one) / 2 / (2 * short**2)  # a second difference
    each = (two - one) / 2 / short - 3 * short * pairs
    row = (one - fixed) / 2 - short * (each + short * pairs)
    kinds = {"reference": length, "blockwise": scored(length) / length}  # scores computed per token and head
    wide = kinds.get(config.attention, 0.0)
    block = round(batch * row + tokens * (each + pairs * (wide or length)))
    layers = config.num_layers * (4 * width * tokens if checkpointing else block)
    layers += config.num_layers * fixed + (block if checkpointing else 0)
    scores = round(config.num_heads * wide * size)
    passing = tokens * (up_rows(config) * size + 8 * width + scores)  # gradients inside one block
    copies, chunk = config.softmaxes, chunk_logits(runtime.device)
    logits = tokens * vocab * copies
    if at_once(logits, chunk):  # logits in fp32, and the results computed from them
        head = (24 if copies > 1 else 12 if size == 4 else 14) * logits
    else:  # in chunks: some logits at a time; the head's gradient twice, and the head in the product's dtype
        in_c = kernels_for(runtime.device, dtype) is not None
        a_logit, a_weight = (size if in_c or size == 4 else 10), (8 if size == 4 else 10)
        head = vocab * (a_logit * copies * piece(tokens, vocab * copies, chunk, dtype, in_c) + a_weight * width)
        head += 16 * tokens * copies * width if copies > 1 else 0  # the turned vectors and their gradients
    return layers + 16 * width * tokens, head, passing


def kept_by_block(config: ModelConfig, runtime: Runtime, batch: int, length: int) -> int:
    """Bytes that autograd keeps from a block's forward pass over [batch, length], with its input, without weights."""
    model = GPT(config.model_copy(update={"num_layers": 1, "vocab_size": 64, "bigrams": 0, "max_seq_len": length}))
    model = model.to(runtime.device, DTYPES["bf16"] if runtime.precision == "bf16-pure" else None).train()
    if config.attention == "fused":
        fused.library()  # loaded here, since its check keeps tensors too
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(batch, length, config.embed_dim, device=runtime.device, dtype=model.embedding.weight.dtype)
    with torch.enable_grad(), runtime.autocast():
        rotary = model.rotary(slice(length))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = model.blocks[0](x.requires_grad_(), rotary)
    ours = [*model.parameters(), *(rotary or ())]
    del out  # kept until now, so that the saved tensors stay alive and no address is used twice
    return sum(kept.values()) - sum(kept.pop(part.untyped_storage().data_ptr(), 0) for part in ours)


def least_memory(config: ModelConfig, rows: int) -> tuple[int, int]:
    """The least bytes of training, computed at once: (weights and their gradients, inputs of the blocks)."""
    one, two = (parameter_table(config.model_copy(update={"num_layers": layers}))["total"] for layers in (1, 2))
    weights = one + (config.num_layers - 1) * (two - one)
    return 8 * weights, 8 * rows * config.max_seq_len * config.embed_dim


def row_memory(config: ModelConfig) -> int:
    """The least bytes of one text during generation: its keys and values in half precision, and its logits."""
    return (
        4 * config.num_layers * config.kv_heads * config.max_seq_len * config.head_size + 4 * config.padded_vocab_size
    )


def inference_memory(config: ModelConfig) -> Memory:
    """The memory of inference in fp32: weights, and a key/value cache of one sequence with full context."""
    cache = 2 * config.num_layers * config.kv_heads * config.max_seq_len * config.head_size
    return Memory(4 * parameter_table(config)["total"], 0, 0, 0, 4 * cache)
