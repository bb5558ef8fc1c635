"""One pass over a prompt, as plain arrays: attention, the residual stream, what each layer would predict, the loss.

Everything is read off one forward pass (`trace.py`) in the model's own precision; all is in nats.
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
    """What a model did with T tokens. L layers, H heads, P = 2 L + 1 parts, K the most likely tokens that are kept."""

    tokens: npt.NDArray[np.int64]
    """[T] ids."""
    parts: tuple[str, ...]
    """P names: embedding, then attention and feed-forward of each layer."""
    attention: Floats
    """[L, H, T, T] row t: the weights with which position t looks at positions 0 to t; they sum to 1."""
    attention_entropy: Floats
    """[L, H, T] entropy of each row: 0 where one position gets all, ln(t + 1) where all get the same."""
    stream_norm: Floats
    """[P, T] length of the residual stream's vector after each part."""
    written_norm: Floats
    """[P, T] length of what each part added to it."""
    lens_ids: npt.NDArray[np.int64]
    """[L + 1, T, K] most likely next tokens if the network ended after the embedding (row 0) or after layer l - 1:
    the logit lens (nostalgebraist, 2020). The last row is what the model really predicts."""
    lens_probs: Floats
    """[L + 1, T, K] their probabilities."""
    lens_loss: Floats
    """[L + 1, T - 1] -ln p of the token that follows positions 0 to T - 2, by the same predictions."""
    lens_entropy: Floats
    """[L + 1, T] entropy of the same predictions."""

    @property
    def loss(self) -> Floats:
        """[T - 1] nats for tokens[1:]; their sum is what `minigpt eval` counts for these tokens."""
        return self.lens_loss[-1]

    @property
    def entropy(self) -> Floats:
        """[T] nats that the model expects to lose at each next token."""
        return self.lens_entropy[-1]


@torch.no_grad()
def record(model: GPT, tokens: Sequence[int] | npt.NDArray[Any], top: int = 10) -> Recording:
    """Record one pass: `record(run.model, run.tokenizer.encode("Once upon a time"))`.

    Args:
        model: any GPT, as it is loaded, on any device; it is left as it was.
        tokens: [T] ids, 1 to max_seq_len of them.
        top: most likely tokens to keep.

    Raises:
        GenerationError: no token, or more than the model's context.
        CheckpointError: the model computes numbers that are none.
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
        raise CheckpointError("the model's loss is not a number: its weights are damaged, or its training blew up")
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
    """Raises GenerationError if there is no token, or more than the context takes."""
    limit = model.config.max_seq_len
    if not 1 <= len(tokens) <= limit:
        raise GenerationError(f"the text has {counted(len(tokens), 'token')}; this model takes 1 to {limit} at once")


def _predict(model: GPT, trace: Trace, layer: int, ids: npt.NDArray[np.int64], top: int) -> tuple[Tensor, ...]:
    """(top ids [T, K], their probabilities, losses [T - 1], entropies [T]) by the stream before block `layer`."""
    logits = model.head(model.norm(trace.stream[2 * layer]))[0, :, : model.config.vocab_size].float()  # [T, V]
    log_probs = logits.log_softmax(-1)
    likely = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    targets = torch.from_numpy(ids[1:]).to(logits.device)
    losses = F.nll_loss(log_probs[:-1], targets, reduction="none")
    return likely.indices, likely.values.exp(), losses, torch.special.entr(log_probs.exp()).sum(-1)


def _array(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()
