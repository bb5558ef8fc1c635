"""Test the mixture of softmaxes: its formula, its loss in pieces, and all code that reads a model's head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from minigpt import evaluate_run, generate_text, load_config, load_run, quantize_run, train
from minigpt.config import ModelConfig
from minigpt.errors import ConfigError, MiniGPTError
from minigpt.evals.perplexity import rows_at_once
from minigpt.explanation.walk import steps
from minigpt.export import export_gguf, export_huggingface, export_onnx, export_page
from minigpt.generation.fast.prepare import PackedLinear, RowLinear, prepare_decoding
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token, parameter_table
from minigpt.model.heads import Mixture
from minigpt.model.kernels.chunked_loss import head_loss
from minigpt.model.loss import IGNORE, next_token_loss
from minigpt.runtime import autotune
from minigpt.runtime.device import Runtime
from minigpt.training.finetune.lora import LoRAConfig, add_lora

SHAPE = ModelConfig(vocab_size=50, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, softmaxes=3)
TOKENS = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))


def model(**settings: Any) -> GPT:
    """Weights ten times as large, so that the softmaxes differ."""
    built = GPT(SHAPE.model_copy(update={"init_std": 0.2, **settings}), seed=1).eval()
    assert isinstance(built.head, Mixture)
    return built


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_gives_the_logarithm_of_the_mixture(tied: bool) -> None:
    built = model(tie_embeddings=tied)
    head = built.head
    hidden = built.hidden(TOKENS)
    shares = (hidden @ head.shares.weight.T).softmax(-1)
    expected: Tensor = torch.zeros(3, 16, 50)
    for k, turn in enumerate(head.turns.weight.split(32)):
        logits = (hidden @ turn.T).tanh() @ head.logits.weight[:50].T
        expected = expected + shares[..., k : k + 1] * logits.softmax(-1)
    found = built(TOKENS)
    assert found.shape == (3, 16, 50)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 16))
    torch.testing.assert_close(head(hidden[0, 0]), found[0, 0])  # one position alone, as in searches
    assert (head.logits.weight is built.embedding.weight) == tied
    assert ("head.logits.weight" in built.weights()) != tied


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_some_rows_at_a_time_is_the_whole_ones(smoothing: float) -> None:
    built = model()
    hidden = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(2))
    targets = TOKENS.roll(-1, 1).masked_fill(TOKENS % 4 == 0, IGNORE)
    results = []
    for chunk in (None, 500, 1100, 1):
        at = hidden.clone().requires_grad_()
        built.zero_grad()
        if chunk is None:
            loss = next_token_loss(built.head(at), targets, valid=7, label_smoothing=smoothing)
        else:
            loss = head_loss(built.head, at, targets, 50, valid=7, label_smoothing=smoothing, chunk=chunk)
        loss.backward()
        results.append([loss.detach(), at.grad, *(p.grad for p in built.head.parameters())])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_at_a_time_never_hold_all_logits(smoothing: float) -> None:
    built, hidden, most = model(), torch.randn(3, 16, 32), 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            out = func(*args, **(kwargs or {}))
            weights = isinstance(out, Tensor) and len(out.shape) == 2 and out.shape[0] == 32  # transposed
            if isinstance(out, Tensor) and out.shape[-1:] in ((50,), (64,)) and not weights:
                most = max(most, out.numel())
            return out

    with Watch():
        head_loss(built.head, hidden, TOKENS, 50, valid=1, label_smoothing=smoothing, chunk=500).backward()
    assert 0 < most <= 3 * 64 * 3, "3 rows of 3 softmaxes over 64 padded ids"


def test_an_evaluation_of_the_mixture_computes_only_logits() -> None:
    built, hidden = model(), torch.randn(3, 16, 32)
    learned = head_loss(built.head, hidden, TOKENS, 50, valid=9, chunk=500)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluated = head_loss(built.head, hidden, TOKENS, 50, valid=9, chunk=500)
    assert torch.equal(evaluated, learned)
    assert counter.get_total_flops() == 2 * 48 * 32 * (3 * 64 + 3 * 32 + 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_fast_decoding_is_near_the_model(precision: str) -> None:
    plain, fast = model(), prepare_decoding(model(), precision)
    with torch.inference_mode():
        gap = (plain(TOKENS).softmax(-1) - fast(TOKENS).softmax(-1)).abs().max()
    assert gap < {"fp32": 1e-5, "bf16": 0.05, "int8": 0.1, "int4": 0.4}[precision]
    with pytest.raises(ValueError, match="prepared already"):
        prepare_decoding(fast)


def test_int4_keeps_the_head_in_int8() -> None:
    for built in (model(), GPT(SHAPE.model_copy(update={"softmaxes": 1}), seed=1)):
        head = prepare_decoding(built, "int4").head
        assert {part.weight.dtype for part in head.modules() if isinstance(part, RowLinear)} == {torch.int8}
        assert not any(isinstance(part, PackedLinear) for part in head.modules())


def test_an_evaluation_reads_fewer_windows_at_once() -> None:
    built, plain = model(), GPT(SHAPE.model_copy(update={"softmaxes": 1}))
    for device in ("cpu", "cuda"):
        assert rows_at_once(built, 16, device) == rows_at_once(plain, 16, device) // 3


def test_the_timed_loss_is_that_of_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[Any] = []
    monkeypatch.setattr(autotune, "head_loss", lambda head, *_, **__: heads.append(head))
    autotune._loss_pass(SHAPE, Runtime(torch.device("cpu"), "fp32"), 8, False)()
    assert isinstance(heads[0], Mixture)


def test_costs_count_every_softmax() -> None:
    plain, mixed = SHAPE.model_copy(update={"softmaxes": 1}), SHAPE
    more = parameter_table(mixed)["head"] - parameter_table(plain)["head"]
    assert more == 3 * 32 * 32 + 3 * 32
    assert flops_per_token(mixed) - flops_per_token(plain) == 6 * (more + 2 * 64 * 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "model.embed_dim": 32, "model.num_heads": 2, "model.num_layers": 1, "model.max_seq_len": 16,
        "model.softmaxes": 3, "data.source": "stories", "data.stories_count": 30, "schedule.warmup_steps": 2,
        "schedule.kind": "constant", "train.batch_size": 8, "train.sample_every": 2, "train.device": "cpu",
        "train.precision": "fp32", "train.compile": "off", "train.max_steps": 6, "train.eval_every": 3,
        "logging.plots": False, "logging.runs_dir": str(tmp_path_factory.mktemp("runs")),
    }  # fmt: skip
    done = train(load_config(None, settings), name="whole", quiet=True)
    train(load_config(None, settings | {"train.max_steps": 3}), name="parts", quiet=True)
    again = train(load_config(None, settings), name="parts", resume=True, quiet=True)
    for (name, one), two in zip(done.model.weights().items(), again.model.weights().values(), strict=True):
        assert torch.equal(one, two), f"resumed: {name}"
    return done.path


def test_a_run_learns_loads_quantises_and_explains_itself(run: Path) -> None:
    loaded = load_run(str(run), "cpu")
    assert isinstance(loaded.model.head, Mixture)
    packed = quantize_run(run, bits=8)
    gap = evaluate_run(load_run(str(packed.path), "cpu"))["loss"] - evaluate_run(loaded)["loss"]
    assert abs(gap) < 0.02
    last = steps(loaded.model, loaded.tokenizer, loaded.tokenizer.encode("the cat"))[-1].steps[-1]
    assert last.name == "logits" and "3 softmaxes" in last.about


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 4}])
def test_every_search_reads_the_mixture(search: dict[str, Any], run: Path) -> None:
    loaded = load_run(str(run), "cpu")
    settings = {"temperature": 0.0, "max_new_tokens": 8, **search}
    found = generate_text(loaded.model, "the cat", loaded.tokenizer, **settings)
    assert found


@pytest.mark.parametrize("export", [export_huggingface, export_gguf, export_page])
def test_exports_refuse_it_by_one_error(export: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(MiniGPTError, match="softmaxes"):
        export(load_run(str(run), "cpu"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_refuses_it(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(MiniGPTError, match="Hugging Face has no model with softmaxes"):
        export_onnx(load_run(str(run), "cpu"), out=tmp_path / "out")


def test_the_embedding_as_a_head_takes_no_adapter() -> None:
    with pytest.raises(ConfigError, match="the head is the embedding here"):
        add_lora(model(), LoRAConfig(rank=2, targets=("head.logits",)), 1)
