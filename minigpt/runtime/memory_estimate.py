"""Estimate the memory that training and inference need, before they start.

What a block keeps for its backward pass depends on kernels and precision, so short passes of a real one are measured.
"""

from dataclasses import dataclass

import torch

from minigpt.config import ModelConfig, RunConfig
from minigpt.model import GPT
from minigpt.model.cost import build_meta, parameter_table, up_rows
from minigpt.model.kernels.attention import scored
from minigpt.model.kernels.chunked_loss import at_once, chunk_logits
from minigpt.runtime.device import DTYPES, Runtime, make_runtime

PLAIN = Runtime(torch.device("cpu"), "fp32")


@dataclass(frozen=True)
class Memory:
    """Estimated bytes at the moment when they are most.

    activations: what a forward and backward pass, or the optimizer's step, needs beside the others.
    average: the weights' running average, where one is kept.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    kv_cache: int
    average: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
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
    """Of training with `batch` sequences at a time, by torch's eager kernels; compiled ones need less.

    Args:
        config: the shape; `attention` says which kernel.
        batch: sequences of one forward pass: the micro-batch.
        runtime: device and precision; a block of this shape makes three short passes there, to see what it keeps.
        optimizer: adamw (two moments) or muon (one for the blocks' matrices, and room for its products).
        ema: whether a running average is kept.
        accumulates: whether gradients are there while the next micro-batch is at work.
        shards: ranks that divide weights, gradients, optimizer and average among them (FSDP).
        checkpointing: blocks keep their input only, and are computed again in the backward pass.
    """
    shapes = [(name, p.numel(), p.dim()) for name, p in build_meta(config).named_parameters()]
    total, muon = sum(count for _, count, _ in shapes), optimizer == "muon"
    matrices = sum(count for name, count, dim in shapes if muon and "blocks" in name and dim >= 2)
    pure = runtime.precision == "bf16-pure"
    size = DTYPES[runtime.precision].itemsize  # of a matrix product's numbers
    weights = gradients = total * (2 if pure else 4)
    moments = 8 * total - 4 * matrices + (4 * total if pure else 0)
    average = 4 * total if ema else 0
    kept, head, block = _pass_bytes(config, batch, runtime, checkpointing)
    forward = kept + max(head, block) + (gradients if accumulates else 0)
    stack = config.num_layers * up_rows(config) * config.embed_dim  # the largest that Muon orthogonalises together
    step = gradients + (4 * matrices + stack * (8 + 5 * size // 2) if muon else 0) + (6 * total if pure else 0)
    whole = 2 * weights // max(1, config.num_layers) if shards > 1 else 0  # two blocks are gathered at a time
    parts = [count // shards for count in (weights, gradients, moments, average)]
    activations = max(forward, step) - gradients + whole
    return Memory(parts[0], parts[1], parts[2], max(0, activations), 0, parts[3])


def memory_of_run(config: RunConfig) -> Memory:
    """`training_memory` of a run by its config, whose vocabulary is known; `auto` attention counts as sdpa."""
    settings, shape = config.train, config.model
    return training_memory(
        shape.model_copy(update={"attention": "sdpa" if shape.attention == "auto" else shape.attention}),
        settings.rows * settings.passes,
        make_runtime(settings.device, settings.precision),
        optimizer=config.optimizer.kind,
        ema=settings.averages,
        accumulates=settings.rows < settings.batch_size,
        checkpointing=config.parallel.activation_checkpointing,
    )


def _pass_bytes(config: ModelConfig, batch: int, runtime: Runtime, checkpointing: bool) -> tuple[int, int, int]:
    """Bytes kept for the backward pass, and needed for a while by the head with its loss, and by one block.

    What a block keeps is fixed + batch x (each T + pairs T^2), and three short passes tell the three numbers.
    """
    length, width, size = config.max_seq_len, config.embed_dim, DTYPES[runtime.precision].itemsize
    tokens, vocab, long = batch * length, config.padded_vocab_size, 32
    seen = (2, long), (4, long), (2, long // 2)  # a batch of one is laid out otherwise
    two, four, half = (kept_by_block(config, runtime, *shape) for shape in seen)
    fixed = 2 * two - four
    pairs = ((two - fixed) / 2 - (half - fixed)) / (long * long / 2)
    each = (two - fixed) / 2 / long - pairs * long
    kinds = {"reference": length, "blockwise": scored(length) / length}  # scores made for a token and a head
    wide = kinds.get(config.attention, 0.0)
    block = round(tokens * (each + pairs * (wide or length)))
    layers = config.num_layers * (4 * width * tokens if checkpointing else block)
    layers += config.num_layers * fixed + (block if checkpointing else 0)
    scores = round(config.num_heads * wide * size)
    passing = tokens * (up_rows(config) * size + 8 * width + scores)  # gradients on their way through a block
    logits, chunk = tokens * vocab * config.softmaxes, chunk_logits(runtime.device)
    if config.softmaxes > 1:
        head = 24 * min(logits, chunk)  # of each softmax, their logarithms, the sums, and the gradients
    elif at_once(logits, chunk):
        head = (12 if size == 4 else 14) * logits  # in fp32, and what they become
    else:  # in pieces: some logits at a time; the head's gradient twice, and the head in `size`
        a_logit, a_weight = (4, 8) if size == 4 else (10, 10)
        head = a_logit * min(logits, chunk) + a_weight * vocab * width
    return layers + 16 * width * tokens, head, passing


def kept_by_block(config: ModelConfig, runtime: Runtime, batch: int, length: int) -> int:
    """Bytes that autograd keeps of a block's forward pass over [batch, length], its input counted, weights not."""
    model = GPT(config.model_copy(update={"num_layers": 1, "vocab_size": 64, "max_seq_len": length}))
    model = model.to(runtime.device, DTYPES["bf16"] if runtime.precision == "bf16-pure" else None).train()
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
    del out  # until here it held on to what was kept, so that no address could be used twice
    return sum(kept.values()) - sum(kept.pop(part.untyped_storage().data_ptr(), 0) for part in ours)


def least_memory(config: ModelConfig, rows: int) -> tuple[int, int]:
    """Bytes that training cannot do without: (weights and their gradients, what enters the blocks). Takes no time."""
    one, two = (parameter_table(config.model_copy(update={"num_layers": layers}))["total"] for layers in (1, 2))
    weights = one + (config.num_layers - 1) * (two - one)
    return 8 * weights, 8 * rows * config.max_seq_len * config.embed_dim


def row_memory(config: ModelConfig) -> int:
    """Bytes of one text that is written: its keys and values in half precision at the least, and its logits."""
    return (
        4 * config.num_layers * config.kv_heads * config.max_seq_len * config.head_size + 4 * config.padded_vocab_size
    )


def inference_memory(config: ModelConfig) -> Memory:
    """Weights, and a key/value cache of full context for one sequence, in fp32."""
    cache = 2 * config.num_layers * config.kv_heads * config.max_seq_len * config.head_size
    return Memory(4 * parameter_table(config)["total"], 0, 0, 0, 4 * cache)
