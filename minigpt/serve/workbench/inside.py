"""Look inside a model while it reads a text, also with parts switched off: the numbers that `minigpt explain` draws.

The engine may write with the same run at the same time, so this part loads its own model; the last one is kept.
"""

from collections.abc import Mapping
from typing import Any

from minigpt.explanation.analysis import describe
from minigpt.explanation.heads import Heads, measure_heads
from minigpt.explanation.html import pack_attention
from minigpt.explanation.intervene import scaled
from minigpt.explanation.recording import record
from minigpt.runs.load import LoadedRun, load_run
from minigpt.serve.models import Key, Listed, key_of

MOST = 96
"""Most tokens to look at: the answer has a number for each pair of them."""


class Inside:
    """Keeps the last model that was looked into. Only one thread at a time may use it."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._kept: tuple[LoadedRun, Heads] | None = None

    def look(self, listed: Listed, text: str, factors: Mapping[str, float]) -> dict[str, Any]:
        """The object of `minigpt.explain`, with packed attention, for the last tokens of a text.

        `left_out` counts the tokens before them. Raises UserError for a part that the model does not have.
        """
        run, heads = self._load(listed)
        ids = run.tokenizer.encode(run.clean(text))
        shown = ids[-min(MOST, run.model.config.max_seq_len) :]
        with scaled(run.model, factors):
            recording = record(run.model, shown)
        found = describe(recording, heads, run.model, run.tokenizer)
        return found | {
            "run": listed.name,
            "step": run.step,
            "attention": pack_attention(found["attention"]),
            "left_out": len(ids) - len(shown),
        }

    def _load(self, listed: Listed) -> tuple[LoadedRun, Heads]:
        key = key_of(listed)
        if self._kept is None or self._key != key:
            self._kept = None  # free its memory first
            run = load_run(key[0], "cpu")
            self._kept = (run, measure_heads(run.model, exclude=run.tokenizer.special_tokens.values()))
            self._key = key
        return self._kept
