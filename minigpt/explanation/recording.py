"""Record one forward pass over a prompt as arrays: attention, residual stream, each layer's prediction, the loss.

Everything comes from one forward pass (`trace.py`) in the model's own precision. Losses and entropies are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.console import counted
from minigpt.errors import CheckpointError, GenerationError
from minigpt.explanation.trace import Trace, traced
from minigpt.model import GPT

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """What a model computed for T tokens. L layers, H heads, P = 2 L + 1 parts, K most likely tokens per position."""

    tokens: npt.NDArray[np.int64]
    """[T] ids."""
    parts: tuple[str, ...]
    """P names: embedding, then attention and feed-forward of each layer."""
    attention: Floats
    """[L, H, T, T] row t: the weights of position t on positions 0 to t; they sum to 1."""
    attention_entropy: Floats
    """[L, H, T] entropy of each row: 0 if one position gets all weight, ln(t + 1) if all get the same."""
    stream_norm: Floats
    """[P, T] length of the residual stream's vector after each part."""
    written_norm: Floats
    """[P, T] length of the vector that each part added to the stream."""
    lens_ids: npt.NDArray[np.int64]
    """[L + 1, T, K] most likely next tokens if the network ended after the embedding (row 0) or after layer l - 1
    (row l): the logit lens (nostalgebraist, 2020). The last row is the model's real prediction."""
    lens_probs: Floats
    """[L + 1, T, K] probabilities of `lens_ids`."""
    lens_loss: Floats
    """[L + 1, T - 1] -ln p of the token after each of positions 0 to T - 2, by the same predictions."""
    lens_entropy: Floats
    """[L + 1, T] entropy of the same predictions."""

    @property
    def loss(self) -> Floats:
        """[T - 1] nats for tokens[1:]; `minigpt eval` counts the same losses for these tokens."""
        return self.lens_loss[-1]

    @property
    def entropy(self) -> Floats:
        """[T] loss in nats that the model itself expects at each next token."""
        return self.lens_entropy[-1]


@torch.no_grad()
def record(model: GPT, tokens: Sequence[int] | npt.NDArray[Any], top: int = 10) -> Recording:
    """Record one pass: `record(run.model, run.tokenizer.encode("Once upon a time"))`.

    Args:
        model: any loaded GPT, on any device; it is not changed.
        tokens: [T] ids, 1 to max_seq_len of them.
        top: number of most likely tokens to keep, K.

    Raises:
        GenerationError: no token, or more than the model's context.
        CheckpointError: the model computes NaN or infinite numbers.
    """
    check_tokens(model, tokens)
    ids = np.asarray(tokens, np.int64)
    with traced(model) as trace:
        model(torch.from_numpy(ids)[None].to(model.embedding.weight.device))
    layers = range(len(trace.queries))
    weights = torch.stack([trace.weights(layer)[0] for layer in layers])  # [L, H, T, T]
    stream = torch.stack([part[0].float() for part in trace.stream])  # [P, T, C]
    written = torch.cat([stream[:1], stream[1:] - stream[:-1]])
    lens = [_predict(model, trace, layer, ids, top) for layer in range(len(layers) + 1)]
    if not all(torch.isfinite(row[-1]).all() for row in lens):
        raise CheckpointError(
            "the model's loss is NaN or infinite: its weights are damaged, or its training diverged; take another "
            "checkpoint of the run"
        )
    top_ids, top_probs, losses, entropies = (torch.stack(column) for column in zip(*lens, strict=True))
    return Recording(
        tokens=ids,
        parts=("embedding", *(f"{part} {layer}" for layer in layers for part in ("attention", "feed-forward"))),
        attention=_array(weights),
        attention_entropy=_array(torch.special.entr(weights).sum(-1)),
        stream_norm=_array(stream.norm(dim=-1)),
        written_norm=_array(written.norm(dim=-1)),
        lens_ids=top_ids.cpu().numpy(),
        lens_probs=_array(top_probs),
        lens_loss=_array(losses),
        lens_entropy=_array(entropies),
    )


def check_tokens(model: GPT, tokens: Sequence[int] | npt.NDArray[Any]) -> None:
    """Raise GenerationError if there is no token, or if there are more tokens than the context takes."""
    limit = model.config.max_seq_len
    if not 1 <= len(tokens) <= limit:
        raise GenerationError(f"the text has {counted(len(tokens), 'token')}; this model takes 1 to {limit} at once")


def _predict(model: GPT, trace: Trace, layer: int, ids: npt.NDArray[np.int64], top: int) -> tuple[Tensor, ...]:
    """Predict from the stream before block `layer`.

    Returns (top ids [T, K], their probabilities [T, K], losses [T - 1], entropies [T]).
    """
    logits = model.head(model.norm(trace.stream[2 * layer]))[0, :, : model.config.vocab_size].float()  # [T, V]
    log_probs = logits.log_softmax(-1)
    likely = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    targets = torch.from_numpy(ids[1:]).to(logits.device)
    losses = F.nll_loss(log_probs[:-1], targets, reduction="none")
    return likely.indices, likely.values.exp(), losses, torch.special.entr(log_probs.exp()).sum(-1)


def _array(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()
