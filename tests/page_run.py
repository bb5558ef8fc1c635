"""Make a run directory of random weights, of any shape, with any tokenizer, for tests of the web page."""

from pathlib import Path
from typing import Any

from minigpt import GPT, GenerationConfig, ModelConfig
from minigpt.config import RunConfig, TokenizerConfig, dump_config
from minigpt.tokenizers import Tokenizer, build
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

TEXT = "The cat sat on a mat, said Zoë’s dog; “why?” 42 times!\nAnd the old mill went round.\n" * 30
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"shape": "gpt2", "embed_dim": 48, "num_heads": 4},
    "modern": {"shape": "modern", "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "rope_theta": 5000.0},
    "mixed": {
        "shape": "gpt2", "embed_dim": 48, "num_heads": 4, "position": "sinusoidal", "activation": "relu2",
        "qk_norm": True, "bigrams": 97, "tie_embeddings": False,
    },
    "odd": {"embed_dim": 42, "num_heads": 3, "head_dim": 10, "activation": "gelu", "position": "learned", "bias": True},
}  # fmt: skip
"""Together they use each value of each field of a model."""


def make_run(folder: Path, shape: str = "modern", kind: str | Tokenizer = "char", **generation: object) -> Path:
    """The run; `kind` names a tokenizer, or is one."""
    settings: Any = {"kind": kind, "vocab_size": 300}
    tokenizer = kind if isinstance(kind, Tokenizer) else build(TokenizerConfig(**settings), [TEXT])
    return save_run(folder, tokenizer, SHAPES[shape], generation)


def save_run(folder: Path, tokenizer: Tokenizer, shape: dict[str, Any], generation: dict[str, Any]) -> Path:
    """A run directory of random weights, large enough that its logits differ."""
    fields = {"num_layers": 2, "max_seq_len": 40, "init_std": 0.2, "vocab_size": tokenizer.vocab_size} | shape
    model = ModelConfig.model_validate(fields)
    config = RunConfig(model=model, generation=GenerationConfig.model_validate(generation))
    saved = checkpoint.save(
        folder / "checkpoints/step-00000007",
        {"model": GPT(model, seed=3).weights(), "optimizer": {}},
        CheckpointState(model=model.model_dump(mode="json")),
    )
    checkpoint.point(folder / "checkpoints", "last", saved)
    tokenizer.save(folder / "tokenizer.json")
    (folder / "config.yaml").write_text(dump_config(config))
    return folder
