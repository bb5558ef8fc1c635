"""Explain a model's pass over a prompt as one JSON object. docs/explain.md describes each key."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.explanation.heads import KINDS, NAMED_FROM, Heads, measure_heads, score_heads
from minigpt.explanation.recording import Recording, record
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer

FORMAT = 1
KEYS = (
    "format", "run", "step", "model", "ids", "texts", "loss", "entropy", "attention", "attention_entropy", "look_back",
    "parts", "stream_norm", "written_norm", "lens", "vocabulary", "heads",
)  # fmt: skip


def explain(model: GPT, tokenizer: Tokenizer, ids: list[int], run: str = "", step: int = 0) -> dict[str, Any]:
    """Record a pass over the ids and measure the heads: `explain(run.model, run.tokenizer, ids)["loss"]`.

    Returns:
        A dict with KEYS; its values are lists, numbers and texts, ready for JSON: see docs/explain.md.

    Raises: the errors of `record` and `measure_heads`.
    """
    recording = record(model, ids)
    heads = measure_heads(model, exclude=tokenizer.special_tokens.values())
    return describe(recording, heads, model, tokenizer) | {"run": run, "step": step}


def describe(recording: Recording, heads: Heads, model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """Make the object of `explain` from a recording and measured heads."""
    shown = {*recording.tokens.tolist(), *recording.lens_ids.flat}
    return {
        "format": FORMAT,
        "run": "",
        "step": 0,
        "model": describe_model(model),
        "ids": recording.tokens.tolist(),
        "texts": token_texts(tokenizer, recording.tokens.tolist()),
        "loss": [None, *_plain(recording.loss)],
        "entropy": _plain(recording.entropy),
        "attention": [[_triangle(head) for head in layer] for layer in recording.attention],
        "attention_entropy": _plain(recording.attention_entropy),
        "look_back": _plain(look_back(recording.attention)),
        "parts": list(recording.parts),
        "stream_norm": _plain(recording.stream_norm),
        "written_norm": _plain(recording.written_norm),
        "lens": {
            "ids": recording.lens_ids.tolist(),
            "probs": _plain(recording.lens_probs),
            "loss": [[None, *row] for row in _plain(recording.lens_loss)],
            "entropy": _plain(recording.lens_entropy),
        },
        "vocabulary": {str(id_): token_text(tokenizer, int(id_)) for id_ in sorted(shown)},  # keys of JSON are texts
        "heads": describe_heads(heads)
        | {"here": {kind: _plain(score) for kind, score in score_heads(recording.attention, recording.tokens).items()}},
    }


def describe_model(model: GPT) -> dict[str, Any]:
    """The shape of a model, with the names that the page uses."""
    config = model.config
    return {
        "layers": config.num_layers,
        "heads": config.num_heads,
        "kv_heads": config.kv_heads,
        "width": config.embed_dim,
        "head_size": config.head_size,
        "context": config.max_seq_len,
        "vocabulary": config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "norm": config.norm,
        "position": config.position,
        "activation": config.activation,
        "tie_embeddings": config.tie_embeddings,
        "softmaxes": config.softmaxes,
    }


def describe_heads(heads: Heads) -> dict[str, Any]:
    """The kind of each head, and its score for each kind."""
    return {
        "kinds": list(KINDS),
        "scores": {kind: _plain(heads.scores[kind]) for kind in KINDS},
        "here": {},
        "chance": {kind: _figure(chance) for kind, chance in heads.chance.items()},
        "named_from": NAMED_FROM,
        "named": heads.names(),
        "sequences": heads.sequences,
        "length": heads.length,
    }


def look_back(attention: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[L, H, T, T] -> [L, H]: the mean number of tokens that a head looks back, weighted by its attention."""
    t, s = np.indices(attention.shape[-2:])
    return (attention * (t - s)).sum(-1).mean(-1)


def token_text(tokenizer: Tokenizer, id_: int) -> str:
    """The text of a token, or its name if it is special. Part of a character, or a control character: <e2 82>."""
    piece = tokenizer.token_bytes(id_)
    try:
        text = piece.decode() or tokenizer.decode([id_], skip_special=False)
    except UnicodeDecodeError:
        return f"<{piece.hex(' ')}>"
    return f"<{piece.hex(' ')}>" if len(text) == 1 and not (text.isprintable() or text.isspace()) else text


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token in a list of ids."""
    return [token_text(tokenizer, id_) for id_ in ids]


def visible(text: str) -> str:
    """Make the spaces of a token visible: " the" -> "␣the"."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")


def _triangle(weights: npt.NDArray[np.float32]) -> list[list[float | None]]:
    """[T, T] -> rows of 1 to T weights, without those above the diagonal, which are always zero."""
    return [_plain(row[: t + 1]) for t, row in enumerate(weights)]


def _plain(array: npt.NDArray[np.float32]) -> list[Any]:
    """Nested lists of numbers with 4 significant digits."""
    if array.ndim > 1:
        return [_plain(row) for row in array]
    return [_figure(float(value)) for value in array]


def _figure(value: float) -> float | None:
    """Round: 0.123456 -> 0.1235. NaN, which JSON does not have, -> None."""
    return None if math.isnan(value) else float(f"{value:.4g}")
