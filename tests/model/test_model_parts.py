"""Test each fast part against its reference, the cache against the full pass; dropout, padding and initialisation."""

import math
import pickle

import pytest
import torch
from torch.nn import functional as F

from minigpt.config import ModelConfig
from minigpt.config.finetune import LoRAConfig
from minigpt.errors import CheckpointError
from minigpt.model import GPT, KVCache, reference
from minigpt.model.activations import ACTIVATIONS
from minigpt.model.cost import flops_per_token, parameter_table, shape_walk
from minigpt.model.inputs import sinusoids
from minigpt.model.kernels.attention import scored
from minigpt.model.norms import NORMS
from minigpt.model.parts import blockwise_attention, fast_attention, rotary_tables, rotate
from minigpt.runtime.memory_estimate import inference_memory, training_memory
from minigpt.training.finetune import add_lora

VARIANTS = {
    "gpt2": {"shape": "gpt2"},
    "modern": {"shape": "modern"},
    "grouped": {"num_kv_heads": 2, "head_dim": 10},
    "sinusoidal relu2": {"position": "sinusoidal", "activation": "relu2", "qk_norm": False, "tie_embeddings": False},
    "layernorm rope gelu": {"norm": "layernorm", "activation": "gelu", "bias": True},
    "rmsnorm learned reference": {"position": "learned", "attention": "reference"},
    "bigrams": {"bigrams": 71 * 70},
    "gpt2 with shared bigrams": {"shape": "gpt2", "bigrams": 97},
}


def small(**fields) -> ModelConfig:
    return ModelConfig(
        **{"vocab_size": 70, "embed_dim": 32, "num_heads": 4, "num_layers": 2, "max_seq_len": 24, **fields}
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("queries", "keys", "kv_heads"), [(7, 7, 4), (1, 7, 4), (3, 7, 4), (7, 7, 2), (3, 9, 1)])
def test_fast_attention_equals_the_explicit_softmax(queries: int, keys: int, kv_heads: int) -> None:
    query, key, value = (
        random(2, 4, queries, 8),
        random(2, kv_heads, keys, 8, seed=1),
        random(2, kv_heads, keys, 8, seed=2),
    )
    torch.testing.assert_close(fast_attention(query, key, value), reference.attention(query, key, value))


@pytest.mark.parametrize(
    ("length", "kv_heads", "scored_share"), [(128, 4, 1.0), (256, 2, 0.75), (300, 1, 0.693), (1024, 2, 0.625)]
)
def test_blockwise_attention_equals_the_whole_with_gradients(length: int, kv_heads: int, scored_share: float) -> None:
    sides = [random(1, heads, length, 8, seed=i) for i, heads in enumerate((4, kv_heads, kv_heads))]
    back, found = random(1, 4, length, 8, seed=3), []
    for kernel in (reference.attention, blockwise_attention):
        inputs = [side.clone().requires_grad_() for side in sides]
        out = kernel(*inputs)
        found.append([out, *torch.autograd.grad(out, inputs, back)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert scored(length) / length**2 == pytest.approx(scored_share, abs=0.001)


def test_reference_attention_equals_a_loop_over_positions() -> None:
    query, key, value = random(1, 1, 4, 8), random(1, 1, 4, 8, seed=1), random(1, 1, 4, 8, seed=2)
    for t in range(4):
        weights = torch.tensor([math.exp(float(query[0, 0, t] @ key[0, 0, s]) / math.sqrt(8)) for s in range(t + 1)])
        expected = (weights / weights.sum()) @ value[0, 0, : t + 1]
        torch.testing.assert_close(reference.attention(query, key, value)[0, 0, t], expected)


def test_norms_equal_torchs() -> None:
    x, weight, bias = random(5, 16), random(16, seed=1), random(16, seed=2)
    torch.testing.assert_close(reference.layer_norm(x, weight, bias, 1e-5), F.layer_norm(x, (16,), weight, bias, 1e-5))
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-6), F.rms_norm(x, (16,), weight, 1e-6))


def test_rotation_equals_its_pairwise_definition_and_is_relative() -> None:
    cos, sin = rotary_tables(10, 8, 10000.0)
    x = random(1, 1, 10, 8)
    turned = rotate(x, cos, sin)
    for position in range(10):
        torch.testing.assert_close(turned[0, 0, position], reference.rotate(x[0, 0, position], position, 10000.0))
    query, key = random(8), random(8, seed=1)
    products = [float(reference.rotate(query, p + 3, 100.0) @ reference.rotate(key, p, 100.0)) for p in range(5)]
    assert max(products) - min(products) < 1e-4


def test_sinusoids_follow_the_formula() -> None:
    table = sinusoids(6, 8)
    for t in range(6):
        for i in range(4):
            assert table[t, 2 * i] == pytest.approx(math.sin(t / 10000 ** (2 * i / 8)), abs=1e-6)
            assert table[t, 2 * i + 1] == pytest.approx(math.cos(t / 10000 ** (2 * i / 8)), abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_chunks_give_the_logits_of_one_pass(name: str) -> None:
    model = GPT(small(**VARIANTS[name]), seed=3).eval()
    tokens = torch.randint(70, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, cache = model(tokens), model.make_cache(2)
        pieces = [model(piece, cache) for piece in tokens.split([7, 1, 5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)
    assert cache.length == 20


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_never_sees_those_after_it(name: str) -> None:
    model = GPT(small(**VARIANTS[name]), seed=3).eval()
    tokens = torch.randint(70, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 70
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12], after[:, 12])


def test_each_bigram_has_its_own_row_where_there_is_room() -> None:
    model, seen = GPT(small(bigrams=71 * 70), seed=3).eval(), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pairs = torch.cartesian_prod(torch.arange(70), torch.arange(70))  # all pairs, [4900, 2]
    with torch.no_grad():
        model(pairs)
        both = seen[0] - model.embedding(pairs)  # [4900, 2, C]
    rows = model.bigrams.weight
    assert torch.equal(model.bigrams.rows(pairs, slice(None)).unique(), torch.arange(71 * 70)), "each pair has a row"
    torch.testing.assert_close(both[:, 1], rows[:4900])
    torch.testing.assert_close(both[:, 0], rows[4900 + pairs[:, 0]])
    shared = GPT(small(bigrams=97)).bigrams.rows(pairs, slice(None))[:, 1].bincount(minlength=97)
    assert shared.min() > 40 and shared.max() < 61, "the pairs share 97 rows evenly"


def test_padded_vocabulary_is_inside_only() -> None:
    model = GPT(small())
    assert model.embedding.weight.shape[0] == 128
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 70)


def test_initialisation_is_gpt2s_and_a_function_of_the_seed() -> None:
    config = small(embed_dim=256, num_layers=8, init_std=0.019, bias=True)
    model, again, other = GPT(config, seed=1), GPT(config, seed=1), GPT(config, seed=2)
    block = model.blocks[3]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.019, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(0.019 / 4, rel=0.05)
    assert block.feed_forward.down.weight.std().item() == pytest.approx(0.019 / 4, rel=0.05)
    assert block.attention.qkv.bias.abs().max() == 0
    assert torch.equal(model.embedding.weight, again.embedding.weight)
    assert not torch.equal(model.embedding.weight, other.embedding.weight)


def test_dropout_works_in_training_only_and_follows_torchs_seed() -> None:
    model = GPT(small(dropout=0.3))
    tokens = torch.zeros(1, 5, dtype=torch.long)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(tokens)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    model = GPT(small())
    weights = model.weights()
    del weights["blocks.0.attention.qkv.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attention\.qkv\.weight is missing"):
        GPT(small()).load_weights(weights)
    with pytest.raises(CheckpointError, match=r"out\.weight is \(32, 32\), not \(64, 64\)"):
        GPT(small(embed_dim=64)).load_weights(model.weights())
    with pytest.raises(CheckpointError, match="stranger is unknown"):
        GPT(small()).load_weights({**model.weights(), "stranger": torch.zeros(1)})


@pytest.mark.parametrize("name", VARIANTS)
def test_accounting_equals_the_built_model(name: str) -> None:
    config = small(**VARIANTS[name])
    total = sum(p.numel() for p in GPT(config).parameters())
    assert parameter_table(config)["total"] == total
    assert inference_memory(config).weights == 4 * total
    assert training_memory(config, 3).optimizer == 8 * total


def test_flops_equal_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = small(attention="reference")
    model, counter = GPT(config).eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 24, dtype=torch.long))
    assert counter.get_total_flops() == flops_per_token(config, training=False) * 24


def test_shape_walk_is_observed() -> None:
    rows = {name: out for name, _, out in shape_walk(small())}
    assert rows["embedding"] == "[1, 24, 32]"
    assert rows["blocks.0.attention.qkv"] == "[1, 24, 96]"
    assert rows["logits"] == "[1, 24, 70]"


def test_too_many_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="25 positions, but max_seq_len is 24"):
        GPT(small())(torch.zeros(1, 25, dtype=torch.long))


def test_a_cache_takes_no_more_than_it_has_room_for() -> None:
    model, ids = GPT(small()).eval(), torch.zeros(1, 4, dtype=torch.long)
    cache = KVCache(model.config, size=4)
    with torch.no_grad():
        model(ids, cache)
        with pytest.raises(ValueError, match="1 x 5 positions do not fit a cache of 1 x 4"):
            model(ids[:, :1], cache)
        with pytest.raises(ValueError, match="2 x 1 positions do not fit a cache of 1 x 24"):
            model(ids[:, :1].expand(2, 1), model.make_cache())


def test_bigrams_of_int32_ids_are_those_of_int64() -> None:
    ids = torch.tensor([[50000, 49999, 12]])  # 50000 x 50257 is more than an int32 holds
    model = GPT(small(vocab_size=50257, bigrams=1000)).eval()
    with torch.no_grad():
        assert torch.equal(model(ids.int()), model(ids))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_model_can_be_pickled(norm: str, activation: str) -> None:
    model = GPT(ModelConfig.model_validate(small().model_dump() | {"norm": norm, "activation": activation})).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(ids), model(ids))


def test_weights_are_drawn_on_the_cpu_whatever_the_default_device_is() -> None:
    model, other = GPT(small(), seed=1), GPT(small(), seed=2)
    with torch.device("meta"):
        other.initialise(1)
        add_lora(other, LoRAConfig(rank=2))
    assert torch.equal(other.embedding.weight, model.embedding.weight)
