"""Write one shell line that repeats a run."""

from typing import Any

from minigpt.config.unused import without_effect
from minigpt.runs.record import RunRecord
from minigpt.runs.settings import as_flag, essential, flat, quoted
from minigpt.weights.checkpoint_state import IMPORTED


def receipt_line(run: RunRecord, flags: bool = False) -> str:
    """The line: minigpt train runs/my/config.yaml --name my-again  # minigpt 0.1.0, torch 2.13.0, ...; data sha256 ...

    Args:
        run: the run to repeat.
        flags: write every setting as a flag, instead of the path of the run's config: for another machine.

    The line of a run that was imported, quantised or merged makes it again from what it was made of.
    """
    name = f"{run.path.absolute().name}-again"
    if origin := _other_origin(run):
        return f"minigpt {origin} --out {quoted(str(run.path.parent / name))}"
    config, tuned = run.config, run.config.finetune.base is not None
    words = ["minigpt", "finetune" if tuned else "train"]
    if flags:
        words += [quoted(word) for word in (config.finetune.base, config.data.source) if word]
        spelled = (as_flag(path, value) for path, value in _spelled(run).items())
        words += [f"{flag}={quoted(text)}" for flag, text in spelled]
    else:
        words.append(quoted(str(run.folder.config)))
    line = f"{' '.join(words)} --name {quoted(name)}"
    versions = ", ".join(f"{name} {number}" for name, number in run.receipt.get("versions", {}).items())
    hashes = run.receipt.get("data", {}).get("sha256", {})
    data = ", ".join(f"{split} {sha256}" for split, sha256 in hashes.items())
    return f"{line}  # {versions}; data sha256: {data}" if run.receipt else line


def _other_origin(run: RunRecord) -> str | None:
    """The command, without --out, that made a run from another model; None for a run that was trained."""
    state = run.saved
    if state and state.quantization:
        packing = state.quantization
        line = f"quantize {quoted(packing['source'])} --bits {packing['bits']}"
        more = f" --group {packing['group']} --embedding-bits {packing['embedding_bits']}"
        return line + (more if packing["bits"] == 4 else "")
    if state and state.train and state.train.stop_reason == IMPORTED:
        return f"import {quoted(run.config.data.source)}"
    merged = run.receipt.get("merged")
    return f"finetune --merge {quoted(merged)}" if merged else None


def _spelled(run: RunRecord) -> dict[str, Any]:
    """The settings to write: as few as possible, but all that it uses for a fine-tuning, whose defaults depend on its
    base.
    """
    tuned = run.config.finetune.base is not None
    settings = flat(run.config) if tuned else essential(run.config)
    unused = without_effect(run.config, settings) if tuned else ()
    left_out = {"data.source", "finetune.base", "logging.name", *unused}
    return {path: value for path, value in settings.items() if path not in left_out or path.startswith("generation.")}
