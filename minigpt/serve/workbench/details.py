"""Collect what the page shows of one run."""

import codecs
import math
from pathlib import Path
from typing import Any

from minigpt import tokenizers
from minigpt.config import DataConfig, TrainConfig
from minigpt.data.clean import clean_text
from minigpt.data.inspect.report import inspect_data
from minigpt.errors import DataError, RunError
from minigpt.evals.floors import run_floors
from minigpt.explanation.analysis import token_text
from minigpt.explanation.metrics import read_floors
from minigpt.explanation.surprise import surprises
from minigpt.layout import BEST, LAST, step_of
from minigpt.runs.data import prepare_data
from minigpt.runs.lock import holder
from minigpt.runs.record import RunRecord
from minigpt.runs.repeat import receipt_line
from minigpt.runs.settings import essential
from minigpt.serve.models import Loaded
from minigpt.serve.workbench.notes import read_note
from minigpt.serve.workbench.process import usage_of
from minigpt.tokenizers.base import valid_unicode
from minigpt.training.finetune.records import holds_records

MOST_TOKENS = 5000
"""Most tokens of a text that are shown one by one."""


def brief(run: RunRecord) -> dict[str, Any]:
    """A row of the list of runs."""
    pid = holder(run.folder.lock)
    process = None if pid is None else {"pid": pid, "usage": usage_of(pid)}
    return run.summary() | {"path": str(run.path), "process": process} | read_note(run.folder)


def full(run: RunRecord) -> dict[str, Any]:
    """Everything except the figures."""
    return brief(run) | {
        "settings": essential(run.config),
        "generation": run.config.generation.model_dump(mode="json"),
        "prompt": run.config.train.sample_prompt,
        "chats": run.folder.template.is_file(),
        "context": run.config.model.max_seq_len,
        "command": receipt_line(run),
        "receipt": run.receipt,
        "floors": read_floors(run.path, bits=True),
        "checkpoints": [found for folder in run.checkpoints if (found := kept(run, folder))],
        "samples": run.samples[-200:],
        "limits": limits(run.config.train),
    }


def limits(config: TrainConfig) -> dict[str, float]:
    """The limits that end the run, by the name of the figure that counts up to each."""
    found = {
        "step": config.max_steps,
        "epoch": config.max_epochs,
        "tokens": config.max_tokens,
        "seconds": config.max_minutes and 60 * config.max_minutes,
    }
    return {name: float(value) for name, value in found.items() if value}


def figures(run: RunRecord, after: float) -> dict[str, Any]:
    """The lines of metrics.jsonl after a step, and what went wrong; `last` shows whether the run rolled back."""
    return {
        "lines": [_finite(line) for line in run.lines if line["step"] > after],
        "last": run.lines[-1]["step"] if run.lines else -1,
        "incidents": run.incidents,
    }


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """The line without values that JSON cannot hold."""
    return {name: value for name, value in line.items() if math.isfinite(value)}


def kept(run: RunRecord, folder: Path) -> dict[str, Any] | None:
    """A checkpoint; None if the run's process has deleted it since it was listed."""
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:
        return None
    pointed = [name for name in (BEST, LAST) if _points(run.folder.checkpoints / name, folder)]
    return {"step": step_of(folder), "bytes": size, "is": pointed}


def _points(pointer: Path, folder: Path) -> bool:
    return pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == folder.name


def measure_floors(run: RunRecord) -> dict[str, float]:
    """The losses of simpler models on the run's validation text, in bits per byte: from the cache, else measured now.

    Raises:
        RunError: the run learns from records, not from a text.
        DataError: the text is not there any more.
    """
    if known := read_floors(run.path, bits=True):
        return known
    data = run.config.data
    if run.config.finetune.base and holds_records(data.source, data.encoding, data.text_field):
        raise RunError(f"{run.name} learns from records, so that simpler models cannot be measured on its text")
    try:
        tokenizer = tokenizers.load(run.path)
        return run_floors(prepare_data(run.config, tokenizer), tokenizer, "val")
    except OSError as error:
        raise DataError(f"{data.source}: cannot be read ({error.strerror}); put the text back") from None


def inspected(config: DataConfig, run: RunRecord | None) -> dict[str, Any]:
    """The report of `minigpt data inspect` on a text; tokens are counted with a run's tokenizer. Raises DataError."""
    return dict(inspect_data(config, tokenizers.load(run.path) if run else None))


def tokens(run: RunRecord, text: str) -> dict[str, Any]:
    """The tokens of a text by a run's tokenizer: `bytes` in hex, `special` for tokens that stand for no
    text.
    """
    tokenizer, text = tokenizers.load(run.path), clean_text(valid_unicode(text), run.config.data.clean)
    ids = tokenizer.encode(text)
    special = set(tokenizer.special_tokens.values())
    rows = [
        {
            "id": id_,
            "text": token_text(tokenizer, id_),
            "bytes": tokenizer.token_bytes(id_).hex(" "),
            "special": id_ in special,
        }
        for id_ in ids[:MOST_TOKENS]
    ]
    kind = {"kind": tokenizer.kind, "vocabulary": tokenizer.vocab_size}
    return {**kind, "count": len(ids), "bytes": len(text.encode()), "tokens": rows}


def why(loaded: Loaded, text: str, ids: list[int]) -> dict[str, Any]:
    """The last tokens of a text that fit into the context: how surprising each was, and which tokens were likelier.

    `begin` counts the characters of the text before a token, with the unknown ones. A tokenizer of words gives the text
    as it was read.
    """
    tokenizer = loaded.run.tokenizer
    text = text if tokenizer.keeps_text else tokenizer.decode(ids)
    shown = ids[-loaded.run.model.config.max_seq_len :]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    left_out = b"".join(tokenizer.shown(id_, skip_special=True) for id_ in ids[: len(ids) - len(shown)])
    begin = len(decoder.decode(left_out))
    rows = []
    for place, found in enumerate(surprises(loaded.run.model, shown)):
        own = shown[place] if place < len(shown) else None
        rows.append(
            {
                "id": own,
                "text": None if own is None else token_text(tokenizer, own),
                "loss": found.loss,
                "rank": found.rank,
                "begin": begin,
                "likeliest": [
                    {"id": id_, "text": token_text(tokenizer, id_), "plain": tokenizer.decode([id_]), "probability": p}
                    for id_, p in found.likeliest
                ],
            }
        )
        begin += 0 if own is None else len(decoder.decode(tokenizer.shown(own, skip_special=True)))
    return {"text": text, "left_out": len(ids) - len(shown), "vocabulary": tokenizer.vocab_size, "tokens": rows}
