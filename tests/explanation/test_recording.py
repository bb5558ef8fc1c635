"""Test the recording of a pass against independent code: transformers' attention, torch's formulas."""

import numpy as np
import pytest
import torch
from foreign_model import twin

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, GenerationError
from minigpt.evals import evaluate
from minigpt.explanation import record
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.model import GPT
from minigpt.runtime.device import make_runtime

SHAPES = {
    "gpt2": ModelConfig(shape="gpt2", vocab_size=211, embed_dim=48, num_heads=4, num_layers=3, max_seq_len=40),
    "qwen3, grouped heads, untied": ModelConfig(
        shape="modern", vocab_size=100, embed_dim=48, num_heads=4, num_kv_heads=2, head_dim=20, num_layers=2,
        max_seq_len=64, tie_embeddings=False, rope_theta=1e5,
    ),
    "sinusoidal, relu2": ModelConfig(
        shape="gpt2", vocab_size=50, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=40, position="sinusoidal",
        activation="relu2",
    ),
}  # fmt: skip
TWINS = [name for name in SHAPES if not name.startswith("sinusoidal")]


def shaken(config: ModelConfig) -> GPT:
    """A model whose every parameter is random and large enough for attention to be uneven."""
    model, generator = GPT(config), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def some_tokens(config: ModelConfig, length: int = 30) -> np.ndarray:
    return np.random.default_rng(2).integers(config.vocab_size or 0, size=length)


@pytest.mark.parametrize("name", TWINS)
def test_attention_and_stream_equal_those_of_transformers(name: str):
    model = shaken(SHAPES[name])
    other = twin(model, attn_implementation="eager")
    tokens = some_tokens(model.config)
    with torch.no_grad():
        theirs = other(torch.from_numpy(tokens)[None], output_attentions=True, output_hidden_states=True)
    ours = record(model, tokens)
    attention = torch.cat(theirs.attentions).numpy()  # L of [1, H, T, T] -> [L, H, T, T]
    furthest = np.abs(ours.attention - attention).max()
    print(f"{name}: attention differs by {furthest:.1e} at most; weights reach {attention[..., 1:, :].max():.2f}")
    assert ours.attention.shape == attention.shape
    assert furthest < 1e-5
    assert attention[..., 10:, :].max() > 0.3, "attention must be uneven for this to prove anything"
    # their hidden states are the stream before each block, and after the last block the output of the norm
    for layer, hidden in enumerate(theirs.hidden_states[:-1]):
        np.testing.assert_allclose(ours.stream_norm[2 * layer], hidden[0].norm(dim=-1), rtol=1e-4)
    probs = theirs.logits[0].softmax(-1)
    np.testing.assert_allclose(ours.lens_probs[-1], probs.topk(10).values, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_losses_sum_to_what_evaluation_counts(name: str):
    model = shaken(SHAPES[name])
    tokens = some_tokens(model.config)
    recording = record(model, tokens)
    score = evaluate(model, tokens, context=len(tokens) - 1, runtime=make_runtime("cpu", "fp32"))
    print(f"{name}: {recording.loss.sum():.5f} nats recorded, {score.nats.sum():.5f} by eval")
    assert recording.loss.shape == (len(tokens) - 1,) and score.tokens.sum() == len(tokens) - 1
    assert recording.loss.sum() == pytest.approx(score.nats.sum(), rel=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_each_figure_is_what_its_name_says(name: str):
    model = shaken(SHAPES[name])
    tokens, config = some_tokens(model.config), model.config
    recording = record(model, tokens, top=7)
    length, layers = len(tokens), config.num_layers
    np.testing.assert_allclose(recording.attention.sum(-1), 1, atol=1e-5)
    assert not recording.attention[:, :, *np.triu_indices(length, 1)].any(), "no position attends to a later one"
    weights = torch.from_numpy(recording.attention)
    entropy = torch.distributions.Categorical(probs=weights).entropy()
    np.testing.assert_allclose(recording.attention_entropy, entropy, atol=1e-4)
    with torch.no_grad():
        predicted = torch.distributions.Categorical(logits=model(torch.from_numpy(tokens)[None])[0])
    np.testing.assert_allclose(recording.entropy, predicted.entropy(), atol=1e-4)
    assert len(recording.parts) == len(recording.stream_norm) == len(recording.written_norm) == 2 * layers + 1
    assert recording.lens_ids.shape == recording.lens_probs.shape == (layers + 1, length, 7)
    # without blocks, the model's prediction is the lens after the embedding
    bare = GPT(config.model_copy(update={"num_layers": 1}))
    bare.blocks = torch.nn.ModuleList()
    bare.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        first = bare.eval()(torch.from_numpy(tokens)[None])[0].softmax(-1).topk(7)
    np.testing.assert_array_equal(recording.lens_ids[0], first.indices)
    np.testing.assert_allclose(recording.lens_probs[0], first.values, atol=1e-5)


def test_the_parts_write_what_the_stream_gains():
    model = shaken(SHAPES["gpt2"])
    written: list[torch.Tensor] = []
    for block in model.blocks:
        for part in (block.attention, block.feed_forward):
            part.register_forward_hook(lambda _module, _args, out: written.append(out[0]))
    recording = record(model, some_tokens(model.config))
    for norm, part in zip(recording.written_norm[1:], written, strict=True):
        np.testing.assert_allclose(norm, part.norm(dim=-1), rtol=1e-3)


def test_recording_leaves_the_model_as_it_was():
    model = shaken(SHAPES["gpt2"]).train()
    kernels = [block.attention.kernel for block in model.blocks]
    tokens = some_tokens(model.config)
    first, second = record(model, tokens), record(model, tokens)
    np.testing.assert_array_equal(first.attention, second.attention)
    assert model.training
    assert [block.attention.kernel for block in model.blocks] == kernels
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(GenerationError, match="1 to 40"):
        record(model, [0] * 41)
    assert [block.attention.kernel for block in model.blocks] == kernels


@pytest.mark.slow  # builds the kernels in C
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_model_made_ready_for_decoding_is_recorded_too(precision: str):
    config, tokens = SHAPES["gpt2"], some_tokens(SHAPES["gpt2"])
    exact = record(shaken(config), tokens)
    rough = record(prepare_decoding(shaken(config), precision), tokens)
    assert 0 < np.abs(rough.attention - exact.attention).max() < 0.1


def test_no_token_too_many_and_broken_weights_are_errors():
    model = shaken(SHAPES["gpt2"])
    with pytest.raises(GenerationError, match="0 tokens"):
        record(model, [])
    assert record(model, [3]).loss.shape == (0,)
    with torch.no_grad():
        model.blocks[1].norm1.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        record(model, [1, 2, 3])


def test_a_model_in_double_precision_is_recorded():
    torch.set_default_dtype(torch.float64)
    try:
        found = record(GPT(SHAPES["gpt2"]), [1, 2, 3])
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found.attention.sum(-1), 1, rtol=1e-6)
