"""Many prompts from a file, answers as JSON lines."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt.cli.arguments import unreadable
from minigpt.config import GenerationConfig
from minigpt.console import console, progress_bars
from minigpt.data.clean import clean_text
from minigpt.errors import GenerationError, storage_error
from minigpt.generation.text import Writing
from minigpt.generation.text.prompts import encode_prompts
from minigpt.model import GPT
from minigpt.runs.load import LoadedRun


def read_prompts(file: str) -> list[dict[str, Any]]:
    """[{"prompt": ..., more of the line's keys}] of a .jsonl, or of a text with a prompt a line; empty ones are none.

    Raises GenerationError with the line's number.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(line, f"{file}:{number}") if file.endswith(".jsonl") else {"prompt": line.rstrip("\r")}
        found.append(record)
    if not found:
        raise GenerationError(f"{file}: holds no prompt; write one a line")
    return found


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise GenerationError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"]:
        raise GenerationError(f'{where}: needs a text under "prompt"')
    seed = record.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise GenerationError(f'{where}: "seed" is {seed!r}; give a whole number from 0 on')
    return record


def answer_all(
    file: str, out: str | None, batch_size: int, run: LoadedRun, config: GenerationConfig, draft: GPT | None
) -> int:
    """Write {"prompt", "seed", "samples": [{"text", "reason", "tokens", ...}], other keys of the line} for each prompt.

    Raises GenerationError, StorageError; what was answered before stays written.
    """
    if batch_size < 1:
        raise GenerationError(f"--batch-size {batch_size}: give 1 or more")
    records = read_prompts(file)
    if out is not None and Path(out).exists():
        raise GenerationError(f"{out} exists; choose another --out, or remove it")
    place = Path(out).open("w", encoding="utf-8") if out else nullcontext(sys.stdout)  # noqa: SIM115
    try:
        with place as target, progress_bars(console) as report:
            for done, line in enumerate(_answers(records, batch_size, run, config, draft), 1):
                target.write(json.dumps(line, ensure_ascii=False) + "\n")
                target.flush()
                report("prompts", done, len(records))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise storage_error(Path(out or "standard output"), error) from None
    return 0


def _answers(
    records: list[dict[str, Any]], batch_size: int, run: LoadedRun, config: GenerationConfig, draft: GPT | None
) -> Iterator[dict[str, Any]]:
    texts = [clean_text(record["prompt"], run.config.data.clean) for record in records]
    prompts = encode_prompts(texts, run.tokenizer, run.model.config.max_seq_len)  # all at once: a warning comes once
    for first in range(0, len(records), batch_size):
        some = records[first : first + batch_size]
        seeds = [record.get("seed", config.seed) for record in some]
        writing = Writing(run.model, run.tokenizer, prompts[first : first + batch_size], config, seeds, draft)
        for record, seed, samples in zip(some, seeds, writing.finish(), strict=True):
            shown = [
                {key: value for key, value in asdict(sample).items() if value not in (None, [])} for sample in samples
            ]
            yield record | {"seed": seed, "samples": shown}
