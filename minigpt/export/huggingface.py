"""Write a model as a Hugging Face directory: transformers loads it without minigpt, and minigpt loads it too.

    my-hf/
        config.json               the architecture and its sizes: GPT2LMHeadModel or Qwen3ForCausalLM
        model.safetensors         the weights, with transformers' names and layout (GPT-2's matrices are transposed)
        generation_config.json    the run's generation settings, as far as transformers has them
        tokenizer.json            as it is in the run
        tokenizer_config.json     the special tokens and, if the run was tuned on chats, the chat template
        template.json             the same template in minigpt's form
        README.md                 the model card, made from the run's receipt and score

The result is checked: if transformers is installed, it loads the directory, and its logits and ids are compared with
minigpt's, before the directory is renamed to its final name.
"""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigpt.config import GenerationConfig
from minigpt.errors import ConfigError, MiniGPTError
from minigpt.export.card import CARD, Run, model_card
from minigpt.files import new_folder, refuse_existing
from minigpt.layout import TEMPLATE, TOKENIZER, RunFolder
from minigpt.model import GPT
from minigpt.tokenizers import BOS, EOS, PAD, UNK, Tokenizer
from minigpt.tokenizers.chat_template import Template, read_template
from minigpt.weights.checkpoint import write_tensors
from minigpt.weights.generation_settings import settings_to_hf
from minigpt.weights.huggingface import architecture, config_to_hf, weights_to_hf

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-4  # share of the largest logit: sums in another order differ by about 1e-6 in fp32


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    `difference` is the largest |logit of the other tool - minigpt's logit| on random ids, None if the tool is not
    installed.
    """

    path: Path
    architecture: str
    precision: str
    weights: int
    bytes: int
    difference: float | None


def export_huggingface(run: Run, out: str | Path | None = None, precision: str = "fp32") -> Exported:
    """Write a loaded run for transformers: `export_huggingface(load_run("runs/my"))`.

    An adapter is part of the loaded weights already. The integers of a quantised run are written as floats.

    Args:
        run: from `load_run`.
        out: the directory to write (default: RUN-hf, next to the run).
        precision: precision of the weights in the file: fp32, bf16 or fp16.

    Raises:
        CheckpointError: a shape that transformers cannot compute.
        ConfigError: another precision.
        RunError: `out` exists.
        StorageError: it cannot be written.
        MiniGPTError: transformers computes or encodes differently from minigpt; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: {precision} is not possible; choose from {', '.join(PRECISIONS)}")
    folder = RunFolder.of(run.path, TOKENIZER).path.resolve()
    kind = architecture(run.model.config)
    out = folder.with_name(f"{folder.name}-hf") if out is None else Path(out)
    refuse_existing(out)
    with new_folder(out) as work:
        count = write_model(work, run.model, run.tokenizer, precision)
        write_usage(work, run)
        (work / CARD).write_text(model_card(run, kind, precision, out.name), encoding="utf-8")
        difference = _compare(work, run.tokenizer) if importlib.util.find_spec("transformers") else None
        size = (work / "model.safetensors").stat().st_size
    return Exported(out, kind, precision, count, size, difference)


def write_json(path: Path, tree: Any) -> None:
    """A tree as JSON that people can read."""
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, model: GPT, tokenizer: Tokenizer, precision: str) -> int:
    """Write config.json and model.safetensors; returns the number of weights.

    GPT-2's names have no "transformer." before them, like OpenAI's own: mlx-lm knows only these.
    """
    config, dtype = model.config, PRECISIONS[precision]
    named = weights_to_hf(config, model.weights())
    weights = {
        name.removeprefix("transformer."): tensor.to("cpu", dtype).contiguous() for name, tensor in named.items()
    }
    tree = config_to_hf(config, tokenizer.eos_id) | {"dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", tree)
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})  # transformers needs the format
    return sum(tensor.numel() for tensor in weights.values())


def write_tokenizer(folder: Path, run: Run, also: Mapping[str, Any] | None = None) -> None:
    """Write the tokenizer's files, and the chat template of a run that was tuned on chats.

    `also` is added to tokenizer_config.json.

    Raises DataError, CheckpointError.
    """
    source = RunFolder.of(run.path, TOKENIZER).path
    tree = _special(run.tokenizer, run.model.config.max_seq_len) | dict(also or {})
    if template := run_template(source):
        tree["chat_template"] = template.jinja(run.tokenizer.eos_id is not None)
    write_json(folder / "tokenizer_config.json", tree)
    for name in (TOKENIZER, TEMPLATE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_usage(folder: Path, run: Run, also: Mapping[str, Any] | None = None) -> None:
    """Write the directory's other files: the generation settings and the tokenizer. `also`: as in `write_tokenizer`."""
    write_json(folder / "generation_config.json", _generation(run.config.generation, run.tokenizer))
    write_tokenizer(folder, run, also)


def _special(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json. A model without a padding token pads with the end of text, as is usual."""
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    known = {key: name for key, name in names.items() if name in tokenizer.special_tokens}
    if "eos_token" in known:
        known.setdefault("pad_token", known["eos_token"])
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return fixed | {"model_max_length": max_seq_len} | known


def run_template(folder: Path) -> Template | None:
    """The chat template of a run that was tuned on chats. Raises DataError for a damaged one."""
    file = RunFolder(folder).template
    return read_template(file) if file.is_file() else None


def _generation(ours: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json."""
    out = settings_to_hf(ours)
    if tokenizer.eos_id is not None:
        out |= {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}  # a text without a prompt begins so
        out |= {"pad_token_id": tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id}
    return out


def load_in_transformers(path: Path) -> Any:
    """transformers' model of a directory, in fp32, loaded without a progress bar."""
    import transformers
    from transformers.utils import logging

    if showing := logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    if showing:
        logging.enable_progress_bar()
    return model.eval()


def _compare(path: Path, tokenizer: Tokenizer) -> float:
    """The largest difference between transformers' logits and minigpt's for the written model, both in fp32.

    Raises MiniGPTError: a difference above TOLERANCE, or a text that transformers encodes differently.
    """
    import transformers

    ours = GPT.from_pretrained(path)
    words = [id_ for id_ in range(tokenizer.vocab_size) if id_ not in tokenizer.special_tokens.values()]
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor(words)[torch.randint(len(words), (2, min(64, ours.config.max_seq_len)), generator=draw)]
    theirs = load_in_transformers(path)
    with torch.inference_mode():
        expected, found = ours(ids).float(), theirs(ids).logits
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise MiniGPTError(f"transformers' logits of the export differ by up to {difference:.2g}; please report it")
    text = tokenizer.decode(ids[0, : ids.shape[1] // 3].tolist())  # a single byte becomes U+FFFD, three bytes
    encoder = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    if encoder.encode(text, add_special_tokens=False) != tokenizer.encode(text):
        raise MiniGPTError("transformers encodes a text into other ids than the run's tokenizer does; please report it")
    return difference
