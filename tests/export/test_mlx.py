"""Test that the real mlx-lm gives our logits, ids and greedy texts from an exported directory."""

from pathlib import Path

import pytest
import torch
from page_run import SHAPES, TEXT, save_run

from minigpt import export_huggingface, generate_text, load_run
from minigpt.config import TokenizerConfig
from minigpt.tokenizers import build

LLAMA = {"shape": "modern", "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "qk_norm": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kind"), [("gpt2", "char"), ("gpt2", "bpe"), ("modern", "char"), ("modern", "bpe"), ("llama", "byte")]
)
def test_mlx_computes_and_writes_what_we_do(shape: str, kind: str, tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core", reason="needs pip install 'mlx-lm[cpu]'")
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs pip install 'mlx-lm[cpu]'")
    mlx.set_default_device(mlx.cpu)
    tokenizer = build(TokenizerConfig(kind=kind, vocab_size=300), [TEXT])  # type: ignore[arg-type]
    run = load_run(save_run(tmp_path / "my", tokenizer, {**SHAPES, "llama": LLAMA}[shape], {}), "cpu")
    model, theirs = mlx_lm.load(str(export_huggingface(run).path))
    ids = run.tokenizer.encode(TEXT)[:30]
    assert theirs.encode(TEXT[:25], add_special_tokens=False) == run.tokenizer.encode(TEXT[:25])
    with torch.inference_mode():
        expected = run.model(torch.tensor([ids]))
    torch.testing.assert_close(torch.tensor(model(mlx.array([ids])).tolist()), expected, rtol=0, atol=1e-4)
    written = mlx_lm.generate(model, theirs, prompt="The cat", max_tokens=20)  # greedy
    assert written == generate_text(run.model, "The cat", run.tokenizer, max_new_tokens=20, temperature=0.0)
