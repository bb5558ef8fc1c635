"""Test decoding by CUDA graphs: the recorded step is the model's own. Without a GPU it runs without a graph."""

import copy
from threading import Thread

import pytest
import torch
from graph_stand_in import CUDA, replayed

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.generation import generate
from minigpt.generation.engine import Reader
from minigpt.generation.fast import cuda_graphs
from minigpt.generation.fast.cuda_graphs import PATIENCE, Replay
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.model import GPT
from minigpt.model.cost import build_meta
from minigpt.model.gpt import read
from minigpt.model.kernels.attention import fast_attention

SHAPE = ModelConfig(
    vocab_size=70, embed_dim=40, num_heads=4, num_kv_heads=2, num_layers=3, max_seq_len=24, init_std=0.3
)
VARIANTS = [
    {},
    {"shape": "gpt2", "norm": "layernorm", "bias": True, "position": "learned", "activation": "gelu_tanh"},
    {"position": "sinusoidal", "num_kv_heads": 1, "qk_norm": False, "tie_embeddings": False},
    {"bigrams": 300},
]


def make(monkeypatch: pytest.MonkeyPatch, **fields: object) -> tuple[GPT, GPT, list[int]]:
    """The model, itself with graphs, and a list that grows by one at each replay; on a GPU if one is here."""
    plain = GPT(ModelConfig.model_validate(SHAPE.model_dump() | fields), seed=4).eval().to("cuda" if CUDA else "cpu")
    return plain, *replayed(plain, monkeypatch)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("pads", [[0], [0, 0, 0], [3, 0, 2]], ids=str)
def test_a_recorded_step_gives_the_models_logits(fields: dict[str, object], pads: list[int], monkeypatch) -> None:
    plain, fast, replays = make(monkeypatch, **fields)
    tokens = torch.randint(70, (len(pads), 24), generator=torch.Generator().manual_seed(1)).to(plain.head.weight.device)
    with torch.inference_mode():
        right, ours = Reader(plain, pads), Reader(fast, pads)
        for end in range(4, 25):
            torch.testing.assert_close(ours.logits(tokens[:, :end]), right.logits(tokens[:, :end]), rtol=0, atol=2e-4)
    assert len(replays) == (0 if "bigrams" in fields else 20 - PATIENCE)


def write(gpt: GPT, prompts: list[list[int]], new: int = 40) -> list[list[int]]:
    steps = generate(gpt, prompts, GenerationConfig(max_new_tokens=new, temperature=0))
    return torch.stack(list(steps), dim=1).tolist()


def test_texts_across_the_limit_and_one_after_another_are_the_same(monkeypatch) -> None:
    plain, fast, replays = make(monkeypatch)
    for prompts in ([[1, 2]], [[1, 2], [3, 4, 5, 6]], [[7]], [[1, 2]]):
        assert write(fast, prompts) == write(plain, prompts)
    assert replays


def test_two_texts_in_turn_do_not_mix(monkeypatch) -> None:
    plain, fast, _ = make(monkeypatch)
    config = GenerationConfig(max_new_tokens=12, temperature=0)
    both = [generate(fast, [[1, 2]], config), generate(fast, [[9, 3, 4]], config)]
    pairs = list(zip(*both, strict=True))
    assert [pair[0].item() for pair in pairs] == write(plain, [[1, 2]], 12)[0]
    assert [pair[1].item() for pair in pairs] == write(plain, [[9, 3, 4]], 12)[0]


def test_two_threads_do_not_mix(monkeypatch) -> None:
    plain, fast, _ = make(monkeypatch)
    recorded, found = cuda_graphs.record, []
    other = Thread(target=lambda: found.extend(write(fast, [[9, 3, 4], [5]], 12)))

    def record(step) -> cuda_graphs.Recorded:
        if other.ident is None:  # the other thread reads while this one records
            other.start()
            other.join(0.5)
        return recorded(step)

    monkeypatch.setattr(cuda_graphs, "record", record)
    assert write(fast, [[1, 2]], 12) == write(plain, [[1, 2]], 12)
    other.join()
    assert found == write(plain, [[9, 3, 4], [5]], 12)


def test_a_copy_is_a_model_of_its_own_and_gradients_go_through_the_model(monkeypatch) -> None:
    plain, fast, replays = make(monkeypatch)
    other = copy.deepcopy(fast)
    other.embedding.weight.data += 1
    assert write(fast, [[1, 2]]) == write(plain, [[1, 2]]) != write(other, [[1, 2]])
    before, cache = len(replays), fast.make_cache()
    for token in range(6):
        hidden = fast.hidden(torch.tensor([[token]], device=cache.keys.device), cache)
    assert hidden.requires_grad and len(replays) == before


def test_weights_that_have_moved_are_read_where_they_are(monkeypatch) -> None:
    plain, fast, replays = make(monkeypatch)
    cache, right = fast.make_cache(), plain.make_cache()
    with torch.inference_mode():
        for token in range(8):
            if token == 5:
                before = len(replays)
                for parameter in fast.parameters():
                    parameter.data = parameter.data.clone()
            ids = torch.tensor([[token]], device=cache.keys.device)
            torch.testing.assert_close(fast.hidden(ids, cache), plain.hidden(ids, right), rtol=0, atol=2e-4)
    assert before and len(replays) == before + 3 - PATIENCE  # the first steps of a new cache run without a graph


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_a_model_that_was_trained_with_another_kernel_takes_the_one_for_graphs(attention: str) -> None:
    model = prepare_decoding(build_meta(SHAPE.model_copy(update={"attention": attention})), "fp32")
    assert {block.attention.kernel for block in model.blocks} == {fast_attention}


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prepared_models_write_by_graphs_what_they_write_without(precision: str, monkeypatch) -> None:
    plain, fast, replays = make(monkeypatch, attention="reference")
    prepare_decoding(fast, precision)
    wanted = write(prepare_decoding(plain, precision), [[1, 2, 3]])
    assert replays and isinstance(fast.reader, Replay)
    plain.reader = read
    if precision == "fp32":
        assert write(plain, [[1, 2, 3]]) == wanted == write(fast, [[1, 2, 3]])
