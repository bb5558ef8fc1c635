"""Answer many prompts from a file, as JSON lines."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt.cli.arguments import unreadable
from minigpt.config import GenerationConfig
from minigpt.config.section import SEEDS
from minigpt.console import console, progress_bars
from minigpt.data.json_rows import form_of, json_rows
from minigpt.errors import GenerationError, storage_error
from minigpt.files import check_writable, find, read_text, write_text
from minigpt.generation.text import Writing
from minigpt.generation.text.prompts import encode_prompts
from minigpt.model import GPT
from minigpt.runs.load import LoadedRun
from minigpt.tokenizers.base import valid_unicode

MOST = 1 << 26
"""Largest file of prompts, in bytes."""
OTHER = "choose another --out"


def read_prompts(file: str) -> list[dict[str, Any]]:
    """[{"prompt": ..., more of the row's keys}] from a JSON file, or from a text with one prompt per line; empty lines
    are skipped.

    Raises UserError with the line's number.
    """
    try:
        text = read_text(file, MOST)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from None
    if form := form_of(Path(file).name, text):
        rows = json_rows(iter((text,)), form, file, example=', like {"prompt": "..."}')
        found = [_record(row, where) for where, row in rows]
    else:
        found = [{"prompt": line} for line in text.split("\n") if line.strip()]
    if not found:
        raise GenerationError(f"{file}: holds no prompt; write one per line")
    return found


def _record(row: Any, where: str) -> dict[str, Any]:
    record = {"prompt": row} if isinstance(row, str) else row
    if not isinstance(record.get("prompt"), str) or not record["prompt"]:
        raise GenerationError(f'{where}: needs a text under "prompt"')
    seed = record.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise GenerationError(f'{where}: "seed" is {seed!r}; give a whole number from 0 on, below 2^62')
    return record | {"prompt": valid_unicode(record["prompt"])}


def asked_prompts(file: str, out: str | None, batch_size: int) -> list[dict[str, Any]]:
    """The prompts of `read_prompts`. Raises UserError for all that can be wrong before a model is loaded."""
    if batch_size < 1:
        raise GenerationError(f"--batch-size {batch_size}: give 1 or more")
    if out:
        _check_free(Path(out))
    return read_prompts(file)


def answer_all(
    records: list[dict[str, Any]],
    out: str | None,
    batch_size: int,
    run: LoadedRun,
    config: GenerationConfig,
    draft: GPT | None,
) -> int:
    """Write {"prompt", "seed", "samples": [{"text", "reason", "tokens", ...}], other keys of the line} for each prompt.

    Raises UserError. The file `out` is written at the end, completely or not at all.
    """
    target = Path(out) if out else None
    lines: list[str] = []
    with progress_bars(console) as report:
        for done, answer in enumerate(_answers(records, batch_size, run, config, draft), 1):
            line = valid_unicode(json.dumps(answer, ensure_ascii=False)) + "\n"
            if target:
                lines.append(line)
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
            report("prompts", done, len(records))
    if target:
        write_text(target, "".join(lines), OTHER, parents=True)
    return 0


def _check_free(target: Path) -> None:
    """Raise UserError if the file exists or cannot be made, before the work begins."""
    try:
        exists = find(target)
    except OSError as error:
        raise storage_error(target, error, OTHER) from None
    if exists:
        raise GenerationError(f"{target} exists; choose another --out, or remove it")
    check_writable(target, OTHER)


def _answers(
    records: list[dict[str, Any]], batch_size: int, run: LoadedRun, config: GenerationConfig, draft: GPT | None
) -> Iterator[dict[str, Any]]:
    texts = [run.clean(record["prompt"]) for record in records]
    # all together, so that a warning comes once
    prompts = encode_prompts(texts, run.tokenizer, run.model.config.max_seq_len)
    for first in range(0, len(records), batch_size):
        some = records[first : first + batch_size]
        seeds = [record.get("seed", config.seed) for record in some]
        writing = Writing(run.model, run.tokenizer, prompts[first : first + batch_size], config, seeds, draft)
        for record, seed, samples in zip(some, seeds, writing.finish(), strict=True):
            shown = [
                {key: value for key, value in asdict(sample).items() if value not in (None, [])} for sample in samples
            ]
            yield record | {"seed": seed, "samples": shown}
