"""Write a model as one GGUF file for llama.cpp and the programs built on it (Ollama, LM Studio, Jan).

The file holds the weights, the tokenizer, the chat template, and the run's generation settings. It is written under a
temporary name, read back and checked, and then renamed: its tokenizer must give the same ids, its weights must equal
the run's within the rounding of their precision, and its logits and greedy ids are compared.
`tests/export/test_llama_cpp.py` tests that llama.cpp computes the same.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minigpt.errors import ConfigError, MiniGPTError
from minigpt.export.huggingface import Exported, Run, run_template
from minigpt.files import new_file, refuse_existing
from minigpt.layout import TOKENIZER, RunFolder
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.gguf import from_gguf, to_gguf
from minigpt.weights import gguf_file
from minigpt.weights.generation_settings import settings_to_gguf
from minigpt.weights.gguf import (
    FILE_TYPES,
    architecture_in_gguf,
    config_from_gguf,
    config_to_gguf,
    weights_from_gguf,
    weights_to_gguf,
)

LABELS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""minigpt's names of the precisions, and their names in file names."""
STEPS = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 200, "q4_0": 1 / 7.9}
"""Largest change of a number by rounding, as a share of the largest number in its row."""


@dataclass(frozen=True)
class ExportedGGUF(Exported):
    """The result of `export_gguf`.

    `difference` is the largest |logit of the file's weights - logit of the run| on random ids: the effect of rounding.
    `same` is the share of these ids after which the likeliest next id is the run's.
    """

    same: float


def export_gguf(run: Run, out: str | Path | None = None, precision: str = "fp16") -> ExportedGGUF:
    """Write a loaded run for llama.cpp: `export_gguf(load_run("runs/my"), precision="q8_0")`.

    Args:
        run: from `load_run`. An adapter is part of its weights already.
        out: the file to write (default: RUN-F16.gguf, next to the run).
        precision: precision of the matrices: fp32, fp16, bf16, q8_0 (8.5 bits per number) or q4_0 (4.5).

    Raises:
        CheckpointError: fields for which llama.cpp has no architecture; the error names them.
        TokenizerError: a tokenizer whose split llama.cpp does not know.
        ConfigError: another precision.
        RunError: `out` exists.
        StorageError: it cannot be written.
        MiniGPTError: the file reads back differently; nothing is left behind.
    """
    if precision not in LABELS:
        raise ConfigError(f"precision: {precision} is not possible; choose from {', '.join(LABELS)}")
    config, folder = run.model.config, RunFolder.of(run.path, TOKENIZER).path.resolve()
    kind = architecture_in_gguf(config)
    vocabulary = to_gguf(run.tokenizer)
    out = folder.with_name(f"{folder.name}-{LABELS[precision]}.gguf") if out is None else Path(out)
    refuse_existing(out)
    settings = config_to_gguf(config)
    settings |= {"general.name": folder.name, "general.file_type": FILE_TYPES[precision]}
    settings |= {"general.quantization_version": 2} | settings_to_gguf(run.config.generation) | vocabulary
    if template := run_template(folder):
        jinja = template.jinja(run.tokenizer.eos_id is not None)
        settings |= {"tokenizer.chat_template": jinja, "minigpt.template": template.to_json()}
    weights = run.model.weights()
    tensors = weights_to_gguf(config, weights, precision)
    with new_file(out) as work:
        gguf_file.write(work, settings, tensors)
        difference, same = _compare(run, work, weights, precision)
        size = work.stat().st_size
    count = sum(tensor.numel() for tensor, _ in tensors.values())
    return ExportedGGUF(out, kind, precision, count, size, difference, same)


def _compare(run: Run, path: Path, expected: dict[str, Tensor], precision: str) -> tuple[float, float]:
    """Compare a file with its run: (largest difference of the logits, share of likeliest ids that are the same).

    Raises MiniGPTError: another tokenizer, shape, or number than was written.
    """
    file = gguf_file.read(path)
    _compare_ids(run.tokenizer, from_gguf(file.settings))
    config = config_from_gguf(file)
    found = weights_from_gguf(config, file)
    rows = config.vocab_size
    for name, tensor in expected.items():
        ours, theirs = tensor.float().cpu()[:rows], found[name][:rows]
        room = STEPS[precision] * ours.abs().amax(-1, keepdim=True) + (2**-24 if precision != "fp32" else 0)
        if not ((ours - theirs).abs() <= room).all():
            raise MiniGPTError(f"the file holds other numbers of {name} than the run; please report it")
    model = GPT(config)
    model.load_weights(found)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(run.tokenizer.vocab_size, (2, min(64, config.max_seq_len)), generator=draw)
    with torch.inference_mode():
        want, have = run.model.eval()(ids.to(run.model.embedding.weight.device)).float().cpu(), model.eval()(ids)
    return (want - have).abs().max().item(), (want.argmax(-1) == have.argmax(-1)).float().mean().item()


def _compare_ids(ours: Tokenizer, theirs: Tokenizer) -> None:
    if theirs.fingerprint != ours.fingerprint:
        raise MiniGPTError("the file holds another tokenizer than the run; please report it")
