"""Compute logits from the last hidden vectors, with one linear layer or a mixture of softmaxes."""

from typing import cast

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig


class Mixture(nn.Module):
    """p = sum over k of share_k x softmax(W tanh(H_k h)): Yang et al., 2018, "Breaking the Softmax Bottleneck".

    The logits of one softmax have at most rank C, for any vocabulary; a mixture of several softmaxes has no such limit.
    The outputs are log-probabilities, so they can be used in place of a plain head's logits.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.count, self.vocab_size = config.softmaxes, cast(int, config.vocab_size)
        self.shares = nn.Linear(config.embed_dim, self.count, bias=False)
        self.turns = nn.Linear(config.embed_dim, self.count * config.embed_dim, bias=False)
        self.logits = nn.Linear(config.embed_dim, config.padded_vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., C] -> log-probabilities [..., V] in fp32."""
        turned, shares = self.turned(hidden)
        each = self.logits(turned)[..., : self.vocab_size].float().log_softmax(-1)  # [..., K, V]
        return torch.logsumexp(each + shares, -2)

    def turned(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[..., C] -> tanh(H_k h) [..., K, C], and ln of the shares [..., K, 1] in fp32."""
        turned = self.turns(hidden).tanh().unflatten(-1, (self.count, -1))  # [..., K C] -> [..., K, C]
        return turned, self.shares(hidden).float().log_softmax(-1)[..., None]


def make_head(config: ModelConfig) -> nn.Module:
    """Make the head for a config."""
    if config.softmaxes > 1:
        return Mixture(config)
    return nn.Linear(config.embed_dim, config.padded_vocab_size, bias=False)


def output_matrix(head: nn.Module) -> nn.Linear:
    """The layer of a head with one row per token, which may be tied to the embedding."""
    return cast(nn.Linear, head.logits if isinstance(head, Mixture) else head)
