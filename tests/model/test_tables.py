"""Test every norm with every activation in all code that uses them, also for a new row that C does not know."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from foreign_model import twin
from graph_stand_in import replayed
from mostly_slow import mostly_slow

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError
from minigpt.generation.engine import Reader
from minigpt.generation.fast.cuda_graphs import PATIENCE
from minigpt.generation.fast.prepare import RowBlock, prepare_decoding
from minigpt.model import GPT
from minigpt.model.activations import ACTIVATIONS, Activation
from minigpt.model.loss import next_token_loss
from minigpt.model.norms import NORMS, NormKind
from minigpt.runs.quantize import pack_weights
from minigpt.weights.huggingface import architecture
from minigpt.weights.quantized import unpack_all

NEW_NORM = NormKind(
    reference=lambda x, weight, bias, eps: x / (x.abs().amax(-1, keepdim=True) + eps) * weight,
    torch=lambda x, weight, bias, eps: F.normalize(x, p=torch.inf, dim=-1, eps=eps) * weight,
    has_bias=False,
    in_c=None,
    formula="x / max |x| · w",
)
NEW_ACTIVATION = Activation(
    reference=lambda x: x / (1 + x.abs()), torch=F.softsign, in_c=None, formula="W₁n / (1 + |W₁n|)"
)
PAIRS = [*product([*NORMS, "new"], [*ACTIVATIONS, "new"])]
every_pair = pytest.mark.parametrize(("norm", "activation"), PAIRS)


@pytest.fixture(autouse=True)
def _new_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "new", NEW_NORM)
    monkeypatch.setitem(ACTIVATIONS, "new", NEW_ACTIVATION)


def make(norm: str, activation: str, **fields: object) -> GPT:
    """A model whose every parameter is random, norms and biases too, so that a misplaced one shows."""
    shape = ModelConfig(vocab_size=60, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=16, bias=True, init_std=0.3)
    config = shape.model_copy(update={"norm": norm, "activation": activation, **fields})  # without checking the names
    model, generator = GPT(config, seed=1).eval(), torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def known_to_c(norm: str, activation: str) -> bool:
    return None not in (NORMS[norm].in_c, ACTIVATIONS[activation].in_c)


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(60, (rows, 16), generator=torch.Generator().manual_seed(3))


def stepwise(model: GPT) -> torch.Tensor:
    """Logits of all but the first three positions, read one after another with a cache."""
    reader, ids = Reader(model, [0, 0]), tokens()
    with torch.inference_mode():
        return torch.stack([reader.logits(ids[:, :end]) for end in range(4, 17)], 1)


def at_once(model: GPT) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens())[:, 3:]


def test_the_tables_have_the_names_that_a_recipe_may_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for table, field in ((NORMS, "norm"), (ACTIVATIONS, "activation")):
        choices = ModelConfig.model_json_schema()["properties"][field]["enum"]
        assert sorted(table) == sorted(choices)
        with pytest.raises(ValueError, match=f"(?s){field}.*" + ".*".join(choices)):
            ModelConfig.model_validate({field: "new"})


@every_pair
def test_training_is_that_of_the_readable_forms(norm: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> torch.Tensor:
        model, ids, found = make(norm, activation).train(), tokens(4), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(4):
            loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
            found.append(loss.detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(found)

    fast = losses()
    monkeypatch.setitem(NORMS, norm, NORMS[norm]._replace(torch=NORMS[norm].reference))
    monkeypatch.setitem(
        ACTIVATIONS, activation, ACTIVATIONS[activation]._replace(torch=ACTIVATIONS[activation].reference)
    )
    torch.testing.assert_close(fast, losses(), rtol=1e-4, atol=1e-4)
    assert fast[-1] < fast[0] - 0.05, "it must learn for this to prove anything"


@every_pair
@pytest.mark.parametrize("precision", mostly_slow(["fp32", "int8", "bf16", "int4"], [0, 1]))
def test_decoding_on_a_cpu_is_the_model(norm: str, activation: str, precision: str) -> None:
    model = make(norm, activation)
    fast = prepare_decoding(copy.deepcopy(model), precision)
    in_c = precision != "int4" and known_to_c(norm, activation)
    assert all(isinstance(block, RowBlock) == in_c for block in fast.blocks)
    right, ours = at_once(model), stepwise(fast)
    error = (ours - right).norm() / right.norm()
    assert error < {"fp32": 1e-5, "bf16": 0.03, "int8": 0.05, "int4": 0.4}[precision]


@every_pair
def test_recorded_steps_are_the_model(norm: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(norm, activation)
    fast, replays = replayed(model, monkeypatch)
    torch.testing.assert_close(stepwise(fast), at_once(model), rtol=0, atol=2e-4)
    assert len(replays) == 12 - PATIENCE


@every_pair
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_the_models(norm: str, activation: str, bits: int) -> None:
    model = make(norm, activation, ff_dim=64)
    weights = unpack_all(pack_weights(model.weights(), bits, group=32, embedding_bits=8))
    fewer = GPT(model.config).eval()
    fewer.load_weights(weights)
    error = (at_once(fewer) - at_once(model)).norm() / at_once(model).norm()
    assert 0 < error < (0.05 if bits == 8 else 0.4)
    torch.testing.assert_close(stepwise(prepare_decoding(fewer, "fp32")), at_once(fewer), rtol=0, atol=2e-4)


@every_pair
@pytest.mark.parametrize("shape", ["gpt2", "modern"])
def test_an_export_is_the_model_or_is_refused(shape: str, norm: str, activation: str) -> None:
    family = {"gpt2": {"position": "learned", "qk_norm": False}, "modern": {"bias": False}}[shape]
    model = make(norm, activation, **family)
    theirs = {"gpt2": ("layernorm", ("gelu", "gelu_tanh", "relu", "relu2")), "modern": ("rmsnorm", ("swiglu",))}[shape]
    if norm != theirs[0] or activation not in theirs[1]:
        with pytest.raises(CheckpointError, match="the shapes gpt2 and modern only"):
            architecture(model.config)
        return
    with torch.inference_mode():
        torch.testing.assert_close(twin(model)(tokens()).logits, model(tokens()), rtol=0, atol=2e-4)


FIELDS = {
    "norm": [*NORMS],
    "activation": [*ACTIVATIONS],
    "position": ["learned", "sinusoidal", "rope"],
    "bias": [False, True],
    "qk_norm": [False, True],
    "num_kv_heads": [1, 4],
}


@pytest.mark.parametrize(("norm", "activation"), [*product(FIELDS["norm"], FIELDS["activation"])])
def test_every_combination_of_fields_decodes_in_c_as_in_torch(norm: str, activation: str) -> None:
    others = {name: values for name, values in FIELDS.items() if name not in ("norm", "activation")}
    for values in product(*others.values()):
        fields = dict(zip(others, values, strict=True))
        model = make(norm, activation, num_layers=1, **fields)
        fast = prepare_decoding(copy.deepcopy(model), "fp32")
        assert isinstance(fast.blocks[0], RowBlock) == known_to_c(norm, activation)
        torch.testing.assert_close(stepwise(fast), at_once(model), rtol=0, atol=2e-4, msg=str(fields))
