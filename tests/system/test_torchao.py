"""Test that torchao (pip install minigpt[fp8]) makes the blocks' layers fp8 and keeps weights and names."""

import pytest
import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.runtime.precision import use_fp8

SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16)


def test_fp8_is_put_into_the_blocks_and_keeps_weights_and_names() -> None:
    float8 = pytest.importorskip("torchao.float8.float8_linear")
    model, odd = GPT(SHAPE), GPT(SHAPE.model_copy(update={"ff_dim": 24}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    use_fp8(model)
    use_fp8(odd)
    swapped = [name for name, module in model.named_modules() if isinstance(module, float8.Float8Linear)]
    assert len(swapped) == 4 * SHAPE.num_layers
    assert "head" not in swapped
    assert len([m for m in odd.modules() if isinstance(m, float8.Float8Linear)]) == 3 * SHAPE.num_layers
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True)), "an optimizer holds these"
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
