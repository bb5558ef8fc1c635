"""Test that models prepared for decoding write what the model itself writes, and int8 what its reference writes."""

import copy

import pytest
import torch
from mostly_slow import mostly_slow
from torch import nn

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import ConfigError
from minigpt.generation import generate
from minigpt.generation.engine import Reader
from minigpt.generation.fast import rows
from minigpt.generation.fast.prepare import (
    WORTH,
    Lookup,
    RowBlock,
    RowLinear,
    prepare_decoding,
    quantised,
    row_attention,
)
from minigpt.model import GPT
from minigpt.model import reference as readable
from minigpt.model.activations import ACTIVATIONS

SHAPE = ModelConfig(
    vocab_size=70, embed_dim=36, num_heads=4, num_kv_heads=2, head_dim=10, num_layers=3, max_seq_len=16, init_std=0.3
)
VARIANTS = [
    {},
    {"norm": "layernorm", "bias": True, "position": "learned", "activation": "gelu_tanh", "qk_norm": False},
    {"norm": "layernorm", "bias": True, "position": "rope", "activation": "gelu", "qk_norm": True, "num_kv_heads": 4},
    {"bias": True, "position": "sinusoidal", "activation": "relu2", "num_kv_heads": 1, "tie_embeddings": True},
    {"position": "learned", "activation": "swiglu", "ff_dim": 50, "num_layers": 1, "tie_embeddings": False},
    {"bigrams": 300},
]
GREEDY = GenerationConfig(max_new_tokens=40, temperature=0)


def model(**fields: object) -> GPT:
    """A model whose biases are not zero, and whose norms are not one."""
    gpt = GPT(ModelConfig.model_validate(SHAPE.model_dump() | fields), seed=4).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in gpt.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return gpt


def write(gpt: GPT, batch: int = 1, config: GenerationConfig = GREEDY, use_cache: bool = True) -> list[list[int]]:
    prompt = torch.arange(2 * batch).view(batch, 2) % 70
    return torch.stack(list(generate(gpt, prompt, config, use_cache=use_cache)), dim=1).tolist()


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the readable forms from here on: dequantised weights, no C."""
    monkeypatch.setattr(rows, "library", lambda: None)
    monkeypatch.setattr(RowLinear, "forward", RowLinear.reference)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("batch", mostly_slow([3, 1, 20]))
def test_fp32_writes_what_the_model_writes_uncached_across_the_limit(fields: dict[str, object], batch: int) -> None:
    gpt = model(**fields)
    wanted = write(gpt, batch, use_cache=False)
    assert write(prepare_decoding(copy.deepcopy(gpt), "fp32"), batch) == wanted
    sampled = GenerationConfig(max_new_tokens=30, temperature=0.9, top_k=20, seed=3)
    assert write(prepare_decoding(gpt, "fp32"), batch, sampled) == write(model(**fields), batch, sampled)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_block_in_c_is_the_block_in_torch(fields, precision, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = prepare_decoding(model(**fields), precision)
    tokens = torch.randint(70, (2, 12), generator=torch.Generator().manual_seed(1))

    def logits() -> torch.Tensor:
        reader = Reader(gpt, [0, 0])
        with torch.inference_mode():
            return torch.stack([reader.logits(tokens[:, :end]) for end in range(1, 13)])

    fast = logits()
    slowly(monkeypatch)
    slow = logits()
    # If the sum of a key or value differs in its last bit, it may round to the bf16 number next to the expected one.
    torch.testing.assert_close(fast, slow, rtol=0, atol=2e-4 if precision == "fp32" else 3e-2)
    assert slow.std() > 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_block_in_c_passes_nan_on(activation: str) -> None:
    gpt = model(activation=activation)
    gpt.get_parameter("blocks.1.feed_forward.up.weight").data[3] = float("nan")
    with torch.inference_mode():
        assert prepare_decoding(gpt, "fp32")(torch.tensor([[1]]), gpt.make_cache()).isnan().all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("batch", [1, 3])
def test_fewer_bits_write_what_their_dequantised_reference_writes(precision, batch, monkeypatch) -> None:
    gpt = prepare_decoding(model(), precision)
    fast = write(gpt, batch)
    slowly(monkeypatch)
    assert fast == write(gpt, batch)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_fewer_bits_come_near_the_model(precision: str, fields: dict[str, object]) -> None:
    gpt, tokens = model(**fields), torch.randint(70, (2, 16), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        right = gpt(tokens)
        near = prepare_decoding(gpt, precision)(tokens)
    assert (near - right).std() < 0.05 * right.std()


def test_int8_is_symmetric_and_loses_half_a_step_at_most() -> None:
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    weight[4] = 0
    numbers, scale = quantised(weight)
    assert numbers.dtype == torch.int8 and (numbers.abs().amax(1) == 127).sum() == 29
    assert ((rows.dequantised(numbers, scale) - weight).abs() <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize(("kind", "wide"), rows.FEW)
def test_any_number_of_vectors_agrees_and_few_go_through_c(kind: torch.dtype, wide: torch.dtype, monkeypatch) -> None:
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}[kind]
    layer = RowLinear(nn.Linear(24, 30), precision, wide)
    kernels, counts = rows.library(), []

    class Counted:
        def linear(self, matrix: rows.Matrix, x: torch.Tensor) -> torch.Tensor:
            counts.append(x.numel() // 24)
            assert kernels is not None
            return kernels.linear(matrix, x)

    if kernels is not None:
        monkeypatch.setattr(rows, "library", Counted)
    for count in (1, 6, 7, 15, 16, 17, 24, 32, 33, WORTH - 1, WORTH, 120):
        x = torch.randn(1, count, 24, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            near, right = layer(x), layer.reference(x)
        tolerance = 1e-5
        if count > layer.few and (wide == torch.bfloat16 or (kind == torch.bfloat16 and count < WORTH)):
            tolerance = 2e-2  # a product in bf16
        elif count <= layer.few and kind == torch.int8:
            tolerance = 1e-4  # C rounds the vectors to 16 bits
        torch.testing.assert_close(near, right, rtol=max(1e-4, tolerance), atol=tolerance)
    assert kernels is None or counts == [n for n in (1, 6, 7, 15, 16, 17, 24, 32) if n <= layer.few]


@pytest.mark.parametrize(("length", "total"), [(1, 9), (4, 9), (9, 9)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_attention_over_a_cache_is_the_reference(length: int, total: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, length, 6, generator=generator)
    key, value = torch.randn(2, 2, 2, total, 6, generator=generator).to(kind)
    right = readable.attention(query, key.float(), value.float())
    torch.testing.assert_close(row_attention(query, key, value), right, rtol=1e-4, atol=1e-5)


def test_a_tied_head_shares_its_bf16_table_and_int8_halves_the_matrices() -> None:
    gpt = prepare_decoding(model(tie_embeddings=True), "bf16")
    assert isinstance(gpt.embedding, Lookup) and gpt.head.weight.data_ptr() == gpt.embedding.weight.data_ptr()
    assert gpt.make_cache().keys.dtype == torch.bfloat16
    gpt = prepare_decoding(model(tie_embeddings=True), "int8")
    assert gpt.head.weight.dtype == torch.int8 and gpt.embedding.weight.dtype == torch.bfloat16
    assert gpt.embedding(torch.tensor([[3]])).dtype == torch.float32


def test_a_copy_uses_its_own_weights() -> None:
    gpt = prepare_decoding(model(), "int8")
    wanted = write(gpt)
    twin = copy.deepcopy(gpt)
    for parameter in gpt.parameters():
        parameter.data.zero_()
    assert write(twin) == wanted != write(gpt)


def test_gradients_are_followed_through_torch() -> None:
    gpt = prepare_decoding(model(tie_embeddings=False), "fp32")
    gpt(torch.tensor([[1]])).sum().backward()
    assert gpt.embedding.weight.grad is not None and gpt.embedding.weight.grad.abs().sum() > 0


def test_a_cast_after_the_preparation_is_refused_not_misread() -> None:
    for precision in ("fp32", "int8"):
        gpt = prepare_decoding(model(), precision)
        write(gpt)
        gpt.blocks.bfloat16()
        with pytest.raises(TypeError, match="bfloat16"):
            write(gpt)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="fp8"):
        prepare_decoding(model(), "fp8")
    gpt = prepare_decoding(model().train(), "auto")
    assert not gpt.training and isinstance(gpt.blocks[0], RowBlock) and gpt.head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="prepared already"):
        prepare_decoding(gpt)
