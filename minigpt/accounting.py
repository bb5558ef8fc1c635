"""What a model costs before it is built: parameters per part, FLOPs per token, memory, and the shapes on the way.

All counts come from the model itself, built on torch's meta device (shapes without numbers), so they cannot drift; what
a block keeps for its backward pass, which depends on kernels and precision, is seen in short passes of a real one.
"""

from dataclasses import dataclass

import torch
from torch import nn

from minigpt.config import ModelConfig
from minigpt.kernels.attention import scored
from minigpt.kernels.loss import at_once, chunk_logits
from minigpt.model.gpt import GPT
from minigpt.runtime import DTYPES, Runtime

PLAIN = Runtime(torch.device("cpu"), "fp32")


def build_meta(config: ModelConfig) -> GPT:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return GPT(config)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part; a tied head counts once, with the embedding. "total" is the sum.

    {"embedding": 38597376, "bigrams": 0, "positions": 786432, "attention": 28348416, ..., "total": 124439808}
    GPT-2's padded rows (50257 -> 50304) are part of it.
    """
    model = build_meta(config)
    table = {"embedding": 0, "bigrams": 0, "positions": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    for name, parameter in model.named_parameters():  # yields a tied weight once
        part = next((key for key in table if key in name.split(".")), "norms")
        table[part] += parameter.numel()
    return {**table, "total": sum(table.values())}


def flops_per_token(config: ModelConfig, training: bool = True) -> int:
    """Floating-point operations per token at full context (PaLM, Chowdhery et al., 2022, appendix B).

    2 per weight of each matrix product forward, twice that again backward, plus the two products of attention,
    12 x layers x heads x head_size x T in training (counted without the causal half, as the field does).
    """
    model = build_meta(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    attention = 2 * config.num_layers * config.num_heads * config.head_size * config.max_seq_len
    return (6 if training else 2) * (weights + attention)


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
        checkpointing: blocks keep their input only, and are computed anew in the backward pass.
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
    logits, chunk = tokens * vocab, chunk_logits(runtime.device)
    if at_once(logits, chunk):
        head = (12 if size == 4 else 14) * logits  # in fp32, and what they become
    else:  # in pieces: some logits at a time; the head's gradient twice, and the head in `size`
        a_logit, a_weight = (4, 8) if size == 4 else (10, 10)
        head = a_logit * min(logits, chunk) + a_weight * vocab * width
    return layers + 16 * width * tokens, head, passing


def up_rows(config: ModelConfig) -> int:
    """Outputs of the first matrix of a feed-forward part."""
    return config.hidden_dim * (2 if config.activation == "swiglu" else 1)


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


def inference_memory(config: ModelConfig, batch: int = 1, bytes_per_value: int = 4) -> Memory:
    """Weights, and a key/value cache of full context for `batch` sequences."""
    cache = 2 * config.num_layers * batch * config.kv_heads * config.max_seq_len * config.head_size
    return Memory(parameter_table(config)["total"] * bytes_per_value, 0, 0, 0, cache * bytes_per_value)


def shape_walk(config: ModelConfig, batch: int = 1) -> list[tuple[str, str, str]]:
    """(module, input shape, output shape) in order of execution, observed in a real forward pass without numbers.

    Only the first block is walked; the others are alike.
    """
    model = build_meta(config)
    rows: list[tuple[str, str, str]] = []

    def watch(name: str):
        def hook(_module, inputs, output):
            rows.append((name, str(list(inputs[0].shape)), str(list(output.shape))))

        return hook

    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList) and (not name.startswith("blocks.") or ".0" in name):
            module.register_forward_hook(watch(name))
    tokens = torch.zeros(batch, config.max_seq_len, dtype=torch.long, device="meta")
    logits = model(tokens)
    rows.append(("logits", str(list(tokens.shape)), str(list(logits.shape))))
    return rows
