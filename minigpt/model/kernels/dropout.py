"""Apply dropout (Srivastava et al., 2014), with a cheap random generator for compiled models."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, training: bool, locked: bool = False) -> Tensor:
    """Zero numbers at random and scale up the rest, as F.dropout does.

    locked: use one draw for all positions of a sequence of x [B, T, C] (Gal and Ghahramani, 2016; AWD-LSTM, 2017).

    In a compiled model torch's Philox generator would cost a third of a small model's step. There we draw one number
    from it and mix that with the index of each element by murmur3's finaliser (Appleby, 2011). The compiler puts this
    into the kernels that it makes anyway.
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
    """Apply `dropout` with the pair (probability, locked) that `ModelConfig.drops` returns."""
    return dropout(x, how[0], training, how[1]) if training else x


def word_dropout(x: Tensor, tokens: Tensor, vocab_size: int, probability: float, training: bool) -> Tensor:
    """Draw some ids of the vocabulary, zero their embeddings in x [B, T, C], and scale up the rest. tokens: [B, T]."""
    if not training or not probability:
        return x
    return x * dropout(x.new_ones(vocab_size, 1), probability, training)[tokens]


def mixed(place: Tensor, key: Tensor) -> Tensor:
    """Hash each int32 of `place` to a number 0 .. 2^31 - 1 that looks random. Overflow wraps around."""
    # The factor is 2^32 / golden ratio, which puts neighbours far apart. It multiplies the sum, not `place` alone:
    # inductor would multiply the strides of `place` by it, and triton accepts only int32 numbers.
    bits = (place + key) * -1640531527
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * -2048144789
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * -1028477387
    return (bits ^ ((bits >> 16) & 0xFFFF)) & 0x7FFFFFFF
