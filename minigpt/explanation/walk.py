"""Follow one token through the network, step by step, with the real numbers and shapes of a model, for teaching.

`steps` takes the numbers from one recorded pass of the model itself; `walk` formats them for a terminal.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import UserError
from minigpt.explanation.analysis import token_text, visible
from minigpt.explanation.recording import check_tokens
from minigpt.explanation.trace import Trace, traced
from minigpt.model import GPT
from minigpt.model.activations import ACTIVATIONS
from minigpt.model.norms import NORMS
from minigpt.tokenizers import Tokenizer

_LOOKS, _GUESSES = 5, 5


@dataclass(frozen=True)
class Step:
    """One vector, or a matrix for several heads, inside the network."""

    name: str
    formula: str
    values: Tensor
    about: str
    """What it is, in one sentence."""


@dataclass(frozen=True)
class AttendedPosition:
    """One head's attention to one position: product = q k, score = product / sqrt(D), weight = softmax(score)."""

    position: int
    text: str
    product: float
    score: float
    weight: float


@dataclass(frozen=True)
class Stage:
    """The embedding, a block, or the head: its steps, where one head looked, and the next token it would predict."""

    title: str
    steps: list[Step]
    head: int | None = None
    attended: list[AttendedPosition] = field(default_factory=list)
    others: list[tuple[int, str, float]] = field(default_factory=list)
    """For each other head: (head, the token that it looks at most, weight)."""
    guesses: list[tuple[str, float, float]] = field(default_factory=list)
    """(token, logit, probability) if the network ended here; the likeliest first."""


@torch.no_grad()
def steps(model: GPT, tokenizer: Tokenizer, ids: Sequence[int], position: int = -1) -> list[Stage]:
    """Record the L + 2 stages of the token at `position` (negative: from the end).

    Raises:
        UserError: there is no such position.
        GenerationError: no token, or more than the context.
    """
    check_tokens(model, ids)
    if not -len(ids) <= position < len(ids):
        raise UserError(f"position {position} is not in the text; choose 0 to {len(ids) - 1}, or -1 for the last")
    at, config = position % len(ids), model.config
    with traced(model) as trace:
        logits = model(torch.tensor([list(ids)], device=model.embedding.weight.device))[0, at].float()
    texts = [token_text(tokenizer, id_) for id_ in ids]
    stages = [_embedding(model, trace, ids, at)]
    for layer in range(config.num_layers):
        stream = trace.stream[2 * layer + 2][0, at]
        by_now = model.head(model.norm(stream))[: config.vocab_size].float()
        stages.append(_block(config, trace, layer, at, texts, _likely(by_now, tokenizer)))
    return [*stages, _head(config, trace, logits, _likely(logits, tokenizer), at)]


def _embedding(model: GPT, trace: Trace, ids: Sequence[int], at: int) -> Stage:
    id_, tokens = ids[at], torch.tensor([list(ids)], device=model.embedding.weight.device)
    x, row = trace.stream[0][0, at].float(), model.embedding(tokens)[0, at].float()
    made = [Step("embedding", f"E[{id_}]", row, f"row {id_} of a table with a row for each token")]
    summed, rest = "E", x - row
    for table in (cast(Any, model.get_submodule(name)) for name in model.inputs):
        if not table.looks_back:
            continue
        name, letter, words = table.step
        index = int(table.rows(tokens, slice(None))[0, at])
        row, summed = table.weight[index].detach().float(), f"{summed} + {letter}"
        made.append(Step(name, f"{letter}[{index}]", row, words))
        rest = rest - row
    if model.config.position != "rope":
        summed += " + P"
        made.append(Step("position", f"P[{at}]", rest, f"row {at} of a table with a row for each position"))
    if len(made) > 1:
        made.append(Step("x", summed, x, "their sum enters the residual stream"))
    return Stage("Embedding", made)


def _block(
    config: ModelConfig, trace: Trace, layer: int, at: int, texts: list[str], guesses: list[tuple[str, float, float]]
) -> Stage:
    before, between, after = (part[0, at].float() for part in trace.stream[2 * layer : 2 * layer + 3])
    query, key, value = (part[layer][0, :, at] for part in (trace.queries, trace.keys, trace.values))  # [H | KV, D]
    turned = (", normalised" if config.qk_norm else "") + (", rotated" if config.position == "rope" else "")
    norm, inner = NORMS[config.norm].formula, ACTIVATIONS[config.activation].formula
    made = [
        Step("norm", norm, trace.normed[2 * layer][0, at], "the stream, scaled; the stream itself does not change"),
        Step("q", f"W n{turned}", query, "what each head looks for, one query per head"),
        Step("k", f"W n{turned}", key, "what makes queries find this token"),
        Step("v", "W n", value, "what a query gets from this token when it finds it"),
        Step("mix", "Σ weight · v", trace.mixed[layer][0, :, at], "what the heads collected from where they looked"),
        Step("out", "W mix", between - before, "the outputs of all heads as one vector"),
        Step("x", "x + out", between, "added to the stream"),
        Step("norm", norm, trace.normed[2 * layer + 1][0, at], "the stream, scaled again"),
        Step("hidden", inner, trace.hidden[layer][0, at], "the features that feed-forward finds, one number each"),
        Step("out", "W hidden", after - between, "what these features add, as one vector"),
        Step("x", "x + out", after, "added to the stream; the next block reads it"),
    ]
    weights = trace.weights(layer)[0, :, at, : at + 1]  # [H, t + 1]
    head = int(torch.special.entr(weights).sum(-1).argmin())
    shared = config.num_heads // config.kv_heads
    products = trace.keys[layer][0, head // shared, : at + 1].float() @ query[head].float()  # [t + 1, D] @ [D]
    most = weights[head].topk(min(_LOOKS, at + 1)).indices.tolist()
    attended = [
        AttendedPosition(
            s, texts[s], float(products[s]), float(products[s]) / math.sqrt(config.head_size), float(weights[head, s])
        )
        for s in most
    ]
    best = weights.max(-1)
    others = [(h, texts[int(best.indices[h])], float(best.values[h])) for h in range(len(weights)) if h != head]
    return Stage(f"Block {layer}", made, head, attended, others, guesses)


def _likely(logits: Tensor, tokenizer: Tokenizer) -> list[tuple[str, float, float]]:
    """(token, logit, probability) of the likeliest tokens by logits [V]."""
    likely, probs = logits.topk(min(_GUESSES, len(logits))), logits.softmax(-1)
    return [
        (token_text(tokenizer, id_), float(logit), float(probs[id_]))
        for id_, logit in zip(likely.indices.tolist(), likely.values, strict=True)
    ]


def _head(config: ModelConfig, trace: Trace, logits: Tensor, guesses: list[tuple[str, float, float]], at: int) -> Stage:
    table = "the table E" if config.tie_embeddings else "its own table"
    made = [
        Step("norm", "norm(x)", trace.normed[-1][0, at], "the stream, scaled for the last time"),
        Step("logits", "W norm(x)", logits, f"one number per token: how well x fits the token's row in {table}"),
    ]
    if config.softmaxes > 1:
        about = f"{config.softmaxes} softmaxes of W tanh(H norm(x)), mixed: the logarithm of each token's probability"
        made[-1] = Step("logits", "ln p", logits, about)
    return Stage("Head", made, guesses=guesses)


def walk(model: GPT, tokenizer: Tokenizer, ids: Sequence[int], position: int = -1) -> Iterator[RenderableType]:
    """Format the stages for a terminal of 80 columns or more, one after the other. Raises the errors of `steps`."""
    stages = steps(model, tokenizer, ids, position)
    texts, at = [token_text(tokenizer, id_) for id_ in ids], position % len(ids)
    line = Text("".join(texts[max(0, at - 60) : at]), style="dim")
    line.append(visible(texts[at]), style="bold reverse")
    line.append("".join(texts[at + 1 : at + 20]), style="dim")
    about = f"token {at} (first 0, last {len(ids) - 1}), id {ids[at]}; ␣ is a space, ↵ the end of a line"
    symbols = "x: the token's vector; n: norm(x), x scaled; W: a learned table, a different one at each step"
    yield Group(line, Text(about, "dim"), Text(symbols, "dim"), "")
    for number, stage in enumerate(stages):
        yield _show(stage, explained=number <= 1 or number == len(stages) - 1)


def _show(stage: Stage, explained: bool) -> RenderableType:
    parts: list[RenderableType] = [Rule(Text(stage.title, "bold"), align="left", style="dim")]
    for step in stage.steps:
        values = step.values.float()
        figures = "".join(f"{value:7.2f}" for value in values.flatten()[:3].tolist())
        length = f"length={float(values.norm()):.4g}" if values.dim() == 1 else ""
        line = Text(f"{step.name:<10}", "bold")
        line.append(f"{step.formula:<25}", "cyan")
        line.append(f"{list(values.shape)!s:<9}", "green")
        parts.append(line.append(f"{figures} … ", "default").append(length, "dim"))
        if explained:
            parts.append(Text(f"{'':<10}{step.about}", "italic dim"))
        if step.name == "v":
            parts.append(Padding(_looks(stage, explained), (1, 0, 1, 10)))
    if stage.guesses and stage.head is not None:
        said = "   ".join(f"{visible(text)} {prob:.2f}" for text, _, prob in stage.guesses)
        parts.append(Text(f"{'':<10}would predict now  {said}", "dim"))
    elif stage.guesses:
        parts.append(Padding(_guesses(stage.guesses), (1, 0, 0, 10)))
    return Group(*parts, "")


def _looks(stage: Stage, explained: bool) -> RenderableType:
    """A table with bars of where the most focused head looked; below it one line about the other heads."""
    table = _table(f"head {stage.head} looks at", "place", "q · k", "÷ √D", "softmax")
    for look in stage.attended:
        row = (visible(look.text), str(look.position), f"{look.product:.2f}", f"{look.score:.2f}", f"{look.weight:.3f}")
        table.add_row(*row, _bar(look.weight))
    other = "   ".join(f"{head}: {visible(text)} {weight:.2f}" for head, text, weight in stage.others)
    parts: list[RenderableType] = [table]
    if explained:
        about = "the head with the lowest entropy; over all tokens its weights sum to 1"
        parts.append(Text(about, "italic dim"))
    return Group(*parts, Text(f"other heads look most at   {other}", "dim") if other else "")


def _guesses(guesses: list[tuple[str, float, float]]) -> RenderableType:
    table = _table("next token", "logit", "softmax")
    for text, logit, prob in guesses:
        table.add_row(visible(text), f"{logit:.2f}", f"{prob:.3f}", _bar(prob))
    return table


def _table(first: str, *figures: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True, style="bold", max_width=18)
    for name in figures:
        table.add_column(name, justify="right")
    table.add_column("")
    return table


def _bar(share: float) -> Text:
    return Text("█" * round(24 * share) or "▏", "blue")
