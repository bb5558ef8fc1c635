"""Show how a model changed during training: record one prompt and measure the heads at each kept checkpoint.

A run keeps few checkpoints by default. Train with --train.keep-checkpoints 20 to see more steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.errors import CheckpointError, RunError
from minigpt.explanation.heads import KINDS, measure_heads
from minigpt.explanation.recording import record
from minigpt.files import read_lines
from minigpt.layout import RunFolder, step_of
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer

TIMELINE_KEYS = ("run", "ids", "steps", "samples")


def timeline(
    run: str | Path, tokenizer: Tokenizer, ids: list[int], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Record the prompt and measure the heads at each checkpoint that the run kept.

    Args:
        run: a run directory.
        tokenizer: the run's tokenizer.
        ids: [T], the prompt.
        progress: called with (checkpoints done, all checkpoints).

    Returns:
        A dict with TIMELINE_KEYS. steps, oldest first: step, loss (mean over the prompt, None for one token), top
        (the likeliest 5 tokens after it: [id, probability]), heads ({kind: [L][H] scores}), named ([L][H] kinds),
        attention_entropy ([L][H] means), pattern ([L][H][T]: where the last position looks). samples: the texts
        that the run generated during training: step, prompt, text.

    Raises:
        RunError: the run has no checkpoint.
        CheckpointError: a checkpoint is damaged, or holds only an adapter.
    """
    kept, found = RunFolder(Path(run)).steps(), []
    for done, folder in enumerate(kept, 1):
        try:
            model = GPT.from_pretrained(folder)
        except CheckpointError:
            if folder.exists():
                raise
            continue  # the run's process has deleted it since
        recording, heads = record(model, ids), measure_heads(model, exclude=tokenizer.special_tokens.values())
        likely = zip(recording.lens_ids[-1, -1, :5], recording.lens_probs[-1, -1, :5], strict=True)
        found.append(
            {
                "step": step_of(folder),
                "loss": float(recording.loss.mean()) if len(ids) > 1 else None,
                "top": [[int(id_), round(float(prob), 4)] for id_, prob in likely],
                "heads": {kind: _rounded(heads.scores[kind]) for kind in KINDS},
                "named": heads.names(),
                "attention_entropy": _rounded(recording.attention_entropy.mean(-1)),
                "pattern": _rounded(recording.attention[:, :, -1]),
            }
        )
        if progress:
            progress(done, len(kept))
    if not found:
        raise RunError(f"{run}: has no checkpoints; name a run directory, such as runs/my")
    samples = read_lines(RunFolder(Path(run)).samples)
    return {"run": str(run), "ids": list(ids), "steps": found, "samples": samples}


def _rounded(array: np.ndarray) -> list[Any]:
    return np.round(array.astype(float), 4).tolist()
