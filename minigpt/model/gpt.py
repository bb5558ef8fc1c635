"""Define GPT, a decoder-only Transformer (Radford et al., 2019). Its variants are fields of ModelConfig, not classes.

The weights hold a vocabulary padded to a multiple of 64, for aligned matrix products. Logits have exactly vocab_size
columns, so a padded id is never predicted, sampled or counted in the loss. Initialisation is GPT-2's:
normal(0, init_std), with residual projections divided by sqrt(2 x num_layers). The weights are drawn from a generator
of their own. Dropout draws from torch's global generator, which the trainer seeds again at each step.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, first_names
from minigpt.model.cache import KVCache
from minigpt.model.heads import make_head, output_matrix
from minigpt.model.inputs import Places, Table, make_inputs
from minigpt.model.kernels.chunked_loss import Terms, head_loss, loss_terms
from minigpt.model.kernels.dropout import drop, word_dropout
from minigpt.model.parts import ATTENTION, Attention, Block, FeedForward, Norm, Rotary, rotary_tables
from minigpt.model.shared_row import SharedRow

Reader = Callable[["GPT", Tensor, KVCache | None, Tensor | None], Tensor]
"""(model, tokens [B, T], cache, pads) -> hidden [B, T, C]."""


def read(model: "GPT", tokens: Tensor, cache: KVCache | None = None, pads: Tensor | None = None) -> Tensor:
    """Compute `GPT.hidden`: the embedding, all blocks and the last norm."""
    length, start = tokens.shape[1], cache.length if cache is not None else 0
    end = start + length
    if end > model.config.max_seq_len:
        raise ValueError(f"{end} positions, but max_seq_len is {model.config.max_seq_len}")
    if cache is not None:
        cache.check_room(len(tokens), end)
    places: Places = slice(start, end)
    visible = None
    if pads is not None:
        column, pads = torch.arange(end, device=tokens.device), pads[:, None]
        places = (column[start:] - pads).clamp(min=0)  # [B, T]
        query, key = column[start:, None], column[None]
        # Padding sees only itself, since a softmax without any key would give NaN.
        visible = (key <= query) & (key >= pads[..., None]) | (key == query)  # [B, T, S]
        visible = visible[:, None]
    x = model.embed(tokens, places, cache)  # [B, T] -> [B, T, C]
    rotary = model.rotary(places)
    x = drop(x, model.input_drops, model.training)
    for layer, block in enumerate(model.blocks):
        x = block(x, rotary, cache.layer(layer) if cache is not None else None, visible)
    if cache is not None:
        cache.length = end
    return drop(model.norm(x), model.output_drops, model.training)


class GPT(nn.Module):
    """The model.

    Args:
        config: the model's shape; vocab_size must be set.
        seed: seed of the initial weights.
    """

    cos: Tensor  # [T, D], rope only
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.source: Path | None = None  # the run or directory that the weights came from
        self.loss_terms: Terms | None = None  # set by `compiled`: the compiled form
        self.shared: SharedRow | None = None  # set during a training run, and used in training mode only
        self.embedding: nn.Embedding = Table(config.padded_vocab_size, config.embed_dim)
        inputs = make_inputs(config)
        for name, module in inputs.items():
            self.add_module(name, module)
        self.inputs = tuple(inputs)
        self.input_drops, self.output_drops = config.drops("input"), config.drops("output")
        self.reader: Reader = read  # a model prepared for CUDA reads with its CUDA graphs instead
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = Norm(config, config.embed_dim)
        self.head = make_head(config)
        if config.tie_embeddings:
            output_matrix(self.head).weight = self.embedding.weight
        if config.position == "rope":
            cos, sin = rotary_tables(config.max_seq_len, config.head_size, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all weights: normal(0, init_std), residual projections smaller. Norms become one, biases zero."""
        if self.embedding.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = self.config.init_std
                if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                    std *= 0.0 if self.config.zero_init_residual else 1 / math.sqrt(2 * self.config.num_layers)
                parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(0.0, std, generator=generator))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, pads: Tensor | None = None) -> Tensor:
        """Token ids [B, T] -> the normalised residual stream [B, T, C], which the head reads.

        pads: [B]. The first pads[i] columns of row i, counted from the start of the cache, are padding that no token
        sees (default: no padding).
        """
        return self.reader(self, tokens, cache, pads)

    def embed(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """Token ids [B, T] and their positions -> [B, T, C], the input of the first block."""
        x = self.embedding(tokens)
        x = word_dropout(x, tokens, self.embedding.num_embeddings, self.config.word_dropout, self.training)
        for name in self.inputs:
            x = x + getattr(self, name)(tokens, places, cache)
        return x

    def rotary(self, places: Places) -> Rotary | None:
        """Cosines and sines: [T, D] for a slice of positions, [B, 1, T, D] for positions [B, T]. None without rope."""
        if self.config.position != "rope":
            return None
        dtype = self.compute_dtype
        cos, sin = self.cos[places].to(dtype), self.sin[places].to(dtype)
        return (cos, sin) if isinstance(places, slice) else (cos[:, None], sin[:, None])

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Token ids [B, T] -> logits [B, T, vocab_size] of the next token at each position.

        With a cache, `tokens` continue the text in the cache. Raises ValueError past max_seq_len or the cache's size.
        """
        return self.head(self.hidden(tokens, cache))[..., : self.config.vocab_size]  # [B, T, padded] -> [B, T, V]

    def loss(self, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Compute `next_token_loss` of tokens [B, T], a scalar. Many logits are computed and used piece by piece."""
        return head_loss(
            self.head,
            self.hidden(tokens),
            targets,
            cast(int, self.config.vocab_size),
            valid=valid,
            label_smoothing=label_smoothing,
            terms=self.loss_terms,
            shared=self.shared if self.training else None,
        )

    def use_attention(self, name: str) -> None:
        """Switch to another kernel of `parts.ATTENTION`. The results stay the same."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = ATTENTION[name]
            elif isinstance(module, (Norm, FeedForward)):
                module.fused = name == "fused"

    def compiled(self) -> Self:
        """Return a compiled model (torch.compile) that shares this model's weights. This model stays as it is.

        All blocks run the same code, so torch compiles one block instead of the whole model: several times faster.
        """
        view = copy.copy(self)
        blocks = [cast(nn.Module, torch.compile(block, dynamic=False)) for block in self.blocks]
        view._modules = {**self._modules, "blocks": nn.ModuleList(blocks)}
        view.loss_terms = torch.compile(loss_terms, dynamic=False)
        return view

    def make_cache(self, batch: int = 1) -> KVCache:
        """Make a cache for `batch` sequences, on the model's device and in the dtype of its attention."""
        return KVCache(self.config, batch, dtype=self.compute_dtype, device=self.embedding.weight.device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products: that of autocast if it is on, else that of the weights."""
        weight = self.embedding.weight
        kind = weight.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return weight.dtype

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> Self:
        """Load a model from a run, a checkpoint, or a Hugging Face directory (GPT-2, Qwen3, Llama), in evaluation mode.

        Raises:
            CheckpointError: the path has no model, is damaged, or holds another architecture.
        """
        from minigpt.weights.pretrained import read_pretrained

        config, weights = read_pretrained(Path(path))
        model = cls(config)
        model.load_weights(weights)
        model.source = Path(path)
        return model.to(device).eval()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy a state dict into the model. Raises CheckpointError for missing, unknown or wrongly shaped weights."""
        own = self.state_dict()
        problems = [f"{name} is missing" for name in own.keys() - weights.keys() if not self._tied(name)]
        problems += [f"{name} is unknown" for name in weights.keys() - own.keys()]
        problems += [
            f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            for name in own.keys() & weights.keys()
            if own[name].shape != weights[name].shape
        ]
        if problems:
            raise CheckpointError(f"the weights do not fit this model: {first_names(sorted(problems), '; ')}")
        self.load_state_dict(weights, strict=False)

    def weights(self) -> dict[str, Tensor]:
        """The state dict to save: a tied head is left out."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items() if not self._tied(name)}

    def _tied(self, name: str) -> bool:
        return name in ("head.weight", "head.logits.weight") and self.config.tie_embeddings
