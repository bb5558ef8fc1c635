"""minigpt: train a small GPT from scratch on your own text, understand it, sample from it, take it anywhere.

This is the public API. Its parts are imported at first use, so `import minigpt` is fast:

    from minigpt import GPT, ModelConfig, generate_text, load_config, train
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "GPT": "minigpt.model",
    "KVCache": "minigpt.model",
    "ModelConfig": "minigpt.config",
    "RunConfig": "minigpt.config",
    "GenerationConfig": "minigpt.config",
    "load_config": "minigpt.config",
    "train": "minigpt.runs.train",
    "train_within": "minigpt.runs.budget.within",
    "fine_tune": "minigpt.runs.finetune",
    "load_run": "minigpt.runs.load",
    "load_template": "minigpt.tokenizers.chat_template",
    "Adaptation": "minigpt.evals",
    "adapted": "minigpt.evals",
    "at_temperature": "minigpt.evals",
    "averaged": "minigpt.evals",
    "fit_temperature": "minigpt.evals",
    "evaluate_run": "minigpt.evals",
    "evaluate_records": "minigpt.evals",
    "evaluate_tasks": "minigpt.evals",
    "explain": "minigpt.explanation",
    "generate": "minigpt.generation",
    "generate_text": "minigpt.generation.text",
    "stream_text": "minigpt.generation.text",
    "next_token_loss": "minigpt.model.loss",
    "load_tokenizer": "minigpt.tokenizers",
    "prepare_decoding": "minigpt.generation.fast.prepare",
    "quantize_run": "minigpt.runs.quantize",
    "export_gguf": "minigpt.export",
    "export_huggingface": "minigpt.export",
    "export_onnx": "minigpt.export",
    "export_page": "minigpt.export",
    "export_peft": "minigpt.export",
    "import_model": "minigpt.runs.importing",
    "MiniGPTError": "minigpt.errors",
    "UserError": "minigpt.errors",
}

__all__ = [
    "GPT",
    "Adaptation",
    "GenerationConfig",
    "KVCache",
    "MiniGPTError",
    "ModelConfig",
    "RunConfig",
    "UserError",
    "__version__",
    "adapted",
    "at_temperature",
    "averaged",
    "evaluate_records",
    "evaluate_run",
    "evaluate_tasks",
    "explain",
    "export_gguf",
    "export_huggingface",
    "export_onnx",
    "export_page",
    "export_peft",
    "fine_tune",
    "fit_temperature",
    "generate",
    "generate_text",
    "import_model",
    "load_config",
    "load_run",
    "load_template",
    "load_tokenizer",
    "next_token_loss",
    "prepare_decoding",
    "quantize_run",
    "stream_text",
    "train",
    "train_within",
]

if TYPE_CHECKING:
    from minigpt.config import GenerationConfig, ModelConfig, RunConfig, load_config
    from minigpt.errors import MiniGPTError, UserError
    from minigpt.evals import (
        Adaptation,
        adapted,
        at_temperature,
        averaged,
        evaluate_records,
        evaluate_run,
        evaluate_tasks,
        fit_temperature,
    )
    from minigpt.explanation import explain
    from minigpt.export import export_gguf, export_huggingface, export_onnx, export_page, export_peft
    from minigpt.generation import generate
    from minigpt.generation.fast.prepare import prepare_decoding
    from minigpt.generation.text import generate_text, stream_text
    from minigpt.model import GPT, KVCache
    from minigpt.model.loss import next_token_loss
    from minigpt.runs.budget.within import train_within
    from minigpt.runs.finetune import fine_tune
    from minigpt.runs.importing import import_model
    from minigpt.runs.load import load_run
    from minigpt.runs.quantize import quantize_run
    from minigpt.runs.train import train
    from minigpt.tokenizers import load as load_tokenizer
    from minigpt.tokenizers.chat_template import load_template


def __dir__() -> list[str]:
    """All public names, also those that are not imported yet, so that a notebook completes them."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name from its module. Raises AttributeError."""
    if name not in _HOME:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    importlib.import_module("minigpt.before_torch").prepare()
    module = importlib.import_module(_HOME[name])
    value = getattr(module, "load" if name == "load_tokenizer" else name)
    globals()[name] = value
    return value
