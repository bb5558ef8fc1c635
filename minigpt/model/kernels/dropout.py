"""Dropout (Srivastava et al., 2014), with a cheap source of chance for compiled models."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, training: bool, locked: bool = False) -> Tensor:
    """Zero numbers at random and scale up the rest, as F.dropout does; compiled, with a cheaper source of chance.

    Locked, one draw serves all positions of a sequence of x [B, T, C] (Gal and Ghahramani, 2016; AWD-LSTM, 2017).

    There torch's Philox generator costs a third of a small model's step. One number drawn from it, and the place of
    each element, mixed by murmur3's finaliser (Appleby, 2011), serve as well, within the kernels at hand.
    """
    if not training or not probability:
        return x
    if locked:
        return x * dropout(torch.ones_like(x[:, :1]), probability, training)
    if not torch.compiler.is_compiling():
        return F.dropout(x, probability)
    key = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=x.device)
    place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    return x * (mixed(place, key) >= round(probability * 2**31)) / (1 - probability)


def drop(x: Tensor, how: tuple[float, bool], training: bool) -> Tensor:
    """`dropout` as `ModelConfig.drops` says it: (probability, locked)."""
    return dropout(x, how[0], training, how[1]) if training else x


def word_dropout(x: Tensor, tokens: Tensor, vocab_size: int, probability: float, training: bool) -> Tensor:
    """Zero the embeddings x [B, T, C] of some tokens [B, T], drawn from the vocabulary; scale up the rest."""
    if not training or not probability:
        return x
    return x * dropout(x.new_ones(vocab_size, 1), probability, training)[tokens]


def mixed(place: Tensor, key: Tensor) -> Tensor:
    """Numbers 0 .. 2^31 - 1 that look random, one for each int32 of `place`; overflow wraps."""
    # 2^32 / golden ratio: neighbours are far apart. Times the sum, since inductor would multiply strides of `place`
    # itself by it, and triton takes no number that is not an int32.
    bits = (place + key) * -1640531527
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * -2048144789
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * -1028477387
    return (bits ^ ((bits >> 16) & 0xFFFF)) & 0x7FFFFFFF
