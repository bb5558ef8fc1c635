"""Write a run as one web page that works offline: it holds the weights, the tokenizer and inference in JavaScript.

    page.html       the frame; {{name}} marks the place of a part
    app.js, app.css what the reader sees; it draws with the scripts of `minigpt explain`
    worker.js       runs the model in its own thread: jobs in, pieces of text and recordings out
    simd.js         the products of model.js in WebAssembly, if the browser has it
    model.js, tokenizer.js, sampling.js, chat.js, explain.js
                    the same as model/, tokenizers/, generation/ and explanation/, small enough to read
    check.js        for node: asks a page what it computes

The result is checked: if node is installed, it runs the code of the written page. Logits, ids and texts are compared
with minigpt's, before the file is renamed to its final name.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.errors import ConfigError, UserError
from minigpt.explanation import html as pictures
from minigpt.explanation.analysis import describe_heads, describe_model
from minigpt.explanation.heads import NAMED_FROM, measure_heads
from minigpt.export.huggingface import Run
from minigpt.export.page.check import check_page
from minigpt.export.page.pack import (
    PRECISIONS,
    chat_data,
    check_size,
    rounded,
    settings_data,
    shape_data,
    tensors_data,
    tokenizer_data,
)
from minigpt.files import new_file, refuse_existing
from minigpt.layout import TOKENIZER, RunFolder
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.chat_template import load_template

FOLDER = Path(__file__).parent
WORKER = ("tokenizer.js", "model.js", "simd.js", "sampling.js", "chat.js", "explain.js", "worker.js")


@dataclass(frozen=True)
class Page:
    """The result of `export_page`.

    `difference` is the largest |logit of the page - minigpt's logit| for the same rounded weights, None if node is not
    installed.
    """

    path: Path
    precision: str
    weights: int
    bytes: int
    difference: float | None


def export_page(run: Run, out: str | Path | None = None, precision: str = "int8") -> Page:
    """Write a loaded run as one web page: `export_page(load_run("runs/my"))`.

    Args:
        run: from `load_run`.
        out: the file to write (default: RUN.html, next to the run).
        precision: precision of the matrices in the page: int8, fp16 or fp32.

    Raises:
        ConfigError: another precision, or a field or a tokenizer that a page cannot run.
        CheckpointError: weights that are NaN or infinite.
        RunError: `out` exists.
        StorageError: it cannot be written.
        MiniGPTError: the page computes or encodes differently from minigpt; nothing is left behind.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: {precision} is not possible; choose from {', '.join(PRECISIONS)}")
    folder = RunFolder.of(run.path, TOKENIZER).path.resolve()
    out = folder.with_name(f"{folder.name}.html") if out is None else Path(out)
    refuse_existing(out)
    check_size(sum(parameter.numel() for parameter in run.model.parameters()), precision)
    about = describe_run(run, folder, precision)
    text = make_page(about, tensors_data(run.model, precision))
    with new_file(out) as work:
        work.write_text(text, encoding="utf-8", newline="\n")
        difference = check_page(work, rounded(run.model, precision), run.tokenizer)
        size = work.stat().st_size
    return Page(out, precision, about["model"]["parameters"], size, difference)


def describe_run(run: Run, folder: Path, precision: str) -> dict[str, Any]:
    """Everything about a run except its weights, as the scripts read it. Raises ConfigError naming what a page cannot
    run.
    """
    model, tokenizer = run.model, run.tokenizer
    has_chat = RunFolder(folder).template.is_file()
    return {
        "name": folder.name,
        "precision": precision,
        "shape": shape_data(model.config),
        "model": describe_model(model),
        "tokenizer": tokenizer_data(tokenizer),
        "heads": measured(model, tokenizer),
        "clean": run.config.data.clean,
        "prompt": run.config.train.sample_prompt,
        "chat": chat_data(load_template(folder), tokenizer.eos_id is not None) if has_chat else None,
        **settings_data(run.config.generation.cleaned(run.clean), tokenizer),
    }


def measured(model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """The kinds of the heads; no kinds if the context or the vocabulary is too small to measure them."""
    try:
        return describe_heads(measure_heads(model, exclude=tokenizer.special_tokens.values()))
    except UserError:
        none = [[None] * model.config.num_heads] * model.config.num_layers
        return {"kinds": [], "scores": {}, "chance": {}, "named_from": NAMED_FROM, "named": none}


def make_page(about: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """The page. A browser runs only the scripts whose sha256 is in its head, and makes no network request."""
    parts = {
        "title": html.escape(f"{about['name']}: a language model on one page"),
        "style": pictures.read("page.css") + "\n" + _read("app.css"),
        "symbols": pictures.read("symbols.html"),
        "sections": pictures.read("sections.html"),
        "script": "\n".join([pictures.read("tools.js"), pictures.read("pictures.js"), _read("app.js")]),
        "about": json.dumps(about, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "worker": "\n".join(_read(name) for name in WORKER),
        "weights": "\n".join(
            f'<script type="text/base64" data-name="{html.escape(name)}" data-kind="{t["kind"]}" '
            f'data-rows="{t["rows"]}" data-columns="{t["columns"]}">{t["base64"]}</script>'
            for name, t in tensors.items()
        ),
    }
    for kind in ("script", "style"):
        digest = hashlib.sha256(f"\n{parts[kind]}\n".encode()).digest()
        parts[f"{kind}_sha256"] = base64.b64encode(digest).decode()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").rstrip("\n")
