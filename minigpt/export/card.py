"""Write README.md of an exported directory: the model card that the Hugging Face hub shows.

It says what the run itself knows: from the receipt, the settings, and the score in eval.json. It contains no path of
this computer, only the name of the file that the run was trained on.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import yaml

from minigpt.config import RunConfig
from minigpt.console import counted, scored_on
from minigpt.evals.report import FLOOR_NAMES, Report
from minigpt.layout import RunFolder
from minigpt.model import GPT
from minigpt.runs.receipt import read_receipt
from minigpt.runs.score import kept_score
from minigpt.tokenizers import Tokenizer
from minigpt.weights.checkpoint_state import read_state
from minigpt.weights.huggingface import weights_to_hf

CARD = "README.md"


class Run(Protocol):
    """What export needs from a loaded run."""

    @property
    def path(self) -> Path: ...
    @property
    def model(self) -> GPT: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def checkpoint(self) -> Path: ...
    @property
    def step(self) -> int: ...
    def clean(self, text: str) -> str: ...


def model_card(run: Run, kind: str, precision: str, name: str) -> str:
    """The card of a whole model in the directory `name`; kind: gpt2, qwen3 or llama. Raises RunError: a damaged
    receipt."""
    load = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
prompt = tokenizer("Once", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt)[0]))"""
    front = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    return _card(run, name, front, [("architecture", f"{kind}, weights in {precision}")], load)


def adapter_card(run: Run, name: str, base: str, rank: int) -> str:
    """The card of a LoRA adapter in peft's format, for the Hugging Face directory `base` next to it."""
    load = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
    front = {"library_name": "peft", "pipeline_tag": "text-generation", "base_model": base}
    return _card(run, name, front, [("adapter", f"LoRA of rank {rank}, for {_code(base)}")], load)


def _card(run: Run, name: str, front: dict[str, Any], first: list[tuple[str, str]], load: str) -> str:
    known = _trained(run)
    front = front | {"tags": ["minigpt"]} | ({"datasets": [run.config.data.source[3:]]} if _on_hub(run) else {})
    score = kept_score(RunFolder.of(run.path).path, run.step)
    does = "It continues a text; it was not trained to answer questions or to follow instructions."
    if run.config.finetune.base:
        does = "It was fine-tuned, and continues a text in the style of the data that it was fine-tuned on."
    if RunFolder.of(run.path).template.is_file():
        does = "It answers in chats."
    parts = [
        "---\n" + yaml.safe_dump(front, allow_unicode=True, sort_keys=False) + "---",
        f"# {name}",
        f"A small language model made with minigpt. {does}",
        _table([*first, *_shape(run), *known]),
        "## How well it predicts",
        _score_table(score, _name(run.config.data.source)) if score else _unscored(run),
        "## How to load it",
        f"```python\n{load}\n```",
        "## Intended use",
        "Study and play: to see what a model of this size learns from its text.",
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(run)),
    ]
    return "\n\n".join(parts) + "\n"


def _shape(run: Run) -> list[tuple[str, str]]:
    model = run.model.config
    count = sum(tensor.numel() for tensor in weights_to_hf(model, run.model.weights()).values())
    size = f"{counted(model.num_layers, 'layer')}, {counted(model.num_heads, 'head')}, width {model.embed_dim:,}"
    return [
        ("parameters", f"{count:,}"),
        ("shape", size),
        ("context", counted(model.max_seq_len, "token")),
        ("tokenizer", f"{run.tokenizer.kind}, {counted(run.tokenizer.vocab_size, 'id')}"),
    ]


def _trained(run: Run) -> list[tuple[str, str]]:
    """What the run knows about its training; nothing for a model that was trained elsewhere."""
    receipt = read_receipt(RunFolder.of(run.path).path)
    if not receipt:
        return [("training", "not known here")]
    rows = [("data", _code(_name(run.config.data.source)))]
    if base := run.config.finetune.base:
        rows.append(("fine-tuned from", _code(Path(base).name)))
    if sha := receipt["data"]["sha256"].get("train"):
        rows.append(("sha256 of the training text", _code(str(sha))))
    if (run.checkpoint / "state.json").is_file() and (train := read_state(run.checkpoint).train):
        rows.append(("trained on", f"{counted(train.tokens, 'token')} in {counted(train.step, 'step')}"))
    return [*rows, ("seed", str(run.config.train.seed))]


def _score_table(score: Report, data: str) -> str:
    """The score as a table, with the floors of the same text below it."""
    interval = score["confidence_interval"]
    between = {key: " (95 % in {:.4f} to {:.4f})".format(*pair) for key, pair in dict(interval or {}).items()}  # type: ignore[misc]
    rows = [
        ("loss, nats per token", f"{score['loss']:.4f}{between.get('loss', '')}"),
        ("bits per byte", f"{score['bits_per_byte']:.4f}{between.get('bits_per_byte', '')}"),
        *(
            (f"bits per byte of {FLOOR_NAMES.get(key, key)}", f"{value:.4f}")
            for key, value in sorted(score["floors"].items(), key=lambda item: -item[1])
        ),
    ]
    where = f"On the {scored_on(score['split'])}, of {_code(data)}: {counted(score['tokens'], 'token')}."
    return f"{where} Fewer bits are better; the lower lines are simpler models of the same text.\n\n{_table(rows)}"


def _unscored(run: Run) -> str:
    state = read_state(run.checkpoint).train if (run.checkpoint / "state.json").is_file() else None
    if state is None or state.val_loss is None:
        return "It was not scored."
    where, unit = scored_on("val", run.config.train.eval_batches), run.config.finetune.loss_unit
    loss = f"{state.val_loss:.4f} nats per {unit} ({where}; step {state.eval_step:,})"
    return f"It was not scored. Its last validation loss in training was {loss}."


def _limits(run: Run) -> list[str]:
    lines = [
        "It knows the text that it was trained on, and nothing else. What it writes may be false.",
        "It can repeat parts of that text word for word, also private or copyrighted parts.",
        "Nothing filters what it writes.",
        f"It reads {counted(run.model.config.max_seq_len, 'token')} at most.",
    ]
    if run.tokenizer.unk_id is not None and run.tokenizer.kind in ("char", "word"):
        lines.append(f"It reads only the {run.tokenizer.unit}s of its training text; all others are unknown to it.")
    return lines


def _on_hub(run: Run) -> bool:
    """Whether the data is a data set of the hub by its full name, hf:OWNER/NAME."""
    return run.config.data.source.startswith("hf:") and run.config.data.source.count("/") == 1


def _name(source: str) -> str:
    """The name of a source, without the folders of this computer."""
    return source if source.startswith("hf:") or "://" in source else Path(source).name


def _code(text: str) -> str:
    """A name as code in a table, whatever characters it has."""
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
