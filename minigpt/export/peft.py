"""Write a run's LoRA adapter as a directory for peft: a small addition to the base that `--to hf` writes.

    my-lora-peft/
        adapter_config.json, adapter_model.safetensors    as peft writes them
        tokenizer.json, tokenizer_config.json             with the chat template, which the base may not have
        README.md                                         the model card

If peft and transformers are installed, they load the adapter on the base, and their logits are compared with
minigpt's, before the directory is renamed to its final name.
"""

import importlib.util
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minigpt.errors import CheckpointError, MiniGPTError
from minigpt.export.card import CARD, Run, adapter_card
from minigpt.export.huggingface import (
    TOLERANCE,
    Exported,
    load_in_transformers,
    write_json,
    write_model,
    write_tokenizer,
)
from minigpt.files import new_folder, refuse_existing
from minigpt.layout import TOKENIZER, RunFolder
from minigpt.model import GPT
from minigpt.runs.load import find_base, load_run
from minigpt.training.finetune import load_saved, to_peft
from minigpt.weights.checkpoint import write_tensors
from minigpt.weights.huggingface import architecture


def export_peft(run: Run, out: str | Path | None = None) -> Exported:
    """Write the adapter of a loaded run for peft: `export_peft(load_run("runs/my-lora"))`.

    Args:
        run: from `load_run`; a fine-tuned run that holds an adapter, whose base is still there.
        out: the directory to write (default: RUN-peft, next to the run).

    Raises:
        CheckpointError: a run without an adapter; a shape that transformers cannot compute; the base is gone.
        RunError: `out` exists.
        StorageError: it cannot be written.
        MiniGPTError: peft computes differently from minigpt; nothing is left behind.
    """
    if not (run.checkpoint / "adapter.safetensors").is_file():
        raise CheckpointError(f"{run.path}: has no adapter; --to hf writes a whole model")
    saved, folder = load_saved(run.checkpoint), RunFolder.of(run.path, TOKENIZER).path.resolve()
    base = find_base(run.path, saved)
    home = RunFolder.of(base, TOKENIZER).path
    name = f"{home.name}-hf" if RunFolder(home).is_run else home.name  # the name that --to hf gives it
    config, tensors = to_peft(run.model.config, saved.config, saved.tensors)
    out = folder.with_name(f"{folder.name}-peft") if out is None else Path(out)
    refuse_existing(out)
    with new_folder(out) as work:
        write_json(work / "adapter_config.json", config | {"base_model_name_or_path": name, "inference_mode": True})
        write_tensors(work / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_tokenizer(work, run)
        (work / CARD).write_text(adapter_card(run, out.name, name, saved.config.rank), encoding="utf-8")
        here = all(importlib.util.find_spec(package) for package in ("peft", "transformers"))
        difference = _compare(run, load_run(base, "cpu").model, work) if here else None
        size = (work / "adapter_model.safetensors").stat().st_size
    count = sum(tensor.numel() for tensor in tensors.values())
    return Exported(out, architecture(run.model.config), "fp32", count, size, difference)


def _compare(run: Run, base: GPT, path: Path) -> float:
    """The largest difference between peft's logits and minigpt's. Raises MiniGPTError if it is above TOLERANCE."""
    import peft

    limit = min(64, base.config.max_seq_len)
    ids = torch.randint(run.tokenizer.vocab_size, (2, limit), generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_model(Path(folder), base, run.tokenizer, "fp32")
        theirs = load_in_transformers(Path(folder))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses an old name of transformers
        found = peft.PeftModel.from_pretrained(theirs, str(path)).eval()(ids).logits
        expected = run.model.eval()(ids.to(run.model.embedding.weight.device)).float().cpu()
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise MiniGPTError(f"peft computes other logits of the adapter, by up to {difference:.2g}; please report it")
    return difference
