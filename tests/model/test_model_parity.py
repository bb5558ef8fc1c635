"""Test the model against code that we did not write: Hugging Face's GPT-2 and Qwen3, and torch's own formulas."""

import math

import pytest
import torch
from foreign_model import twin

from minigpt.config import ModelConfig, load_config
from minigpt.model import GPT
from minigpt.model.loss import next_token_loss
from minigpt.weights.huggingface import config_from_hf, config_to_hf, weights_from_hf, weights_to_hf

transformers = pytest.importorskip("transformers")


def shaken(config: ModelConfig) -> GPT:
    """A model whose every parameter is random (norms and biases too), so that a misplaced one shows."""
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


SHAPES = {
    "gpt2": ModelConfig(shape="gpt2", vocab_size=211, embed_dim=48, num_heads=4, num_layers=3, max_seq_len=40),
    "gpt2 with its own ff_dim": ModelConfig(
        shape="gpt2", vocab_size=64, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, ff_dim=72, norm_eps=1e-4
    ),
    "modern": ModelConfig(shape="modern", vocab_size=211, embed_dim=48, num_heads=4, num_layers=3, max_seq_len=40),
    "modern, grouped heads, wide heads, untied": ModelConfig(
        shape="modern", vocab_size=100, embed_dim=48, num_heads=4, num_kv_heads=2, head_dim=20, ff_dim=80,
        num_layers=2, max_seq_len=64, tie_embeddings=False, rope_theta=1e6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_hugging_face(name: str) -> None:
    model = shaken(SHAPES[name])
    config = model.config
    tokens = torch.randint(config.vocab_size, (3, config.max_seq_len), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(tokens), twin(model)(tokens).logits
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1, "the logits must differ from each other for this to prove anything"


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_config_survive_the_round_trip_to_hugging_face(name: str) -> None:
    model = shaken(SHAPES[name])
    config = config_from_hf(config_to_hf(model.config))
    back = GPT(config)
    back.load_weights(weights_from_hf(config, weights_to_hf(model.config, model.weights())))
    tokens = torch.arange(16)[None] % model.config.vocab_size
    assert torch.equal(model(tokens), back.eval()(tokens))


@pytest.mark.slow
def test_step_zero_loss_of_gpt2_124m_is_that_of_a_uniform_guess() -> None:
    config = load_config("gpt2-124m").model.model_copy(update={"vocab_size": 50257})
    model = GPT(config, seed=1).eval()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808 + (50304 - 50257) * 768
    tokens = torch.randint(50257, (2, 513), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    print(f"loss at step 0: {loss:.4f}, ln 50257 = {math.log(50257):.4f}")
    assert abs(loss.item() - math.log(50257)) < 0.15
