"""Score a model's answers to records: the loss of the expected answers, and the share that it generates exactly.

    loss          nats per token of the expected answers, with the end-of-text tokens: fine-tuning's val_loss
    exact_match   share of the answers that greedy decoding writes exactly; white space around an answer is ignored

Each reply in a chat is one answer; its prompt is the record's text before it. In a preference record the chosen answer
is the expected one. The loss counts all records; only the first `ask` answers are generated, since that takes longer.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

from minigpt.config import RunConfig
from minigpt.errors import UserError, nearest
from minigpt.evals.perplexity import non_finite_loss
from minigpt.evals.report import Run
from minigpt.generation.text import complete
from minigpt.generation.text.prompts import tell_unknown
from minigpt.layout import RunFolder
from minigpt.model.loss import IGNORE
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.chat_template import Template, encode, load_template
from minigpt.training.finetune.records import Record, holds_records, read_sides
from minigpt.training.finetune.row_batches import Row, fit, row_eval_batches
from minigpt.training.step import target_losses

ASK = 200
"""Default number of answers to generate."""
BATCH = 32
ROOM = 16  # extra tokens allowed beyond the longest expected answer of a batch


class Answer(TypedDict):
    """One answer: the prompt (in a chat, the message before the reply), the expected text, the model's text."""

    prompt: str
    expected: str
    got: str
    exact: bool


class RecordReport(TypedDict):
    """The result of `evaluate_records`; exact_match is None if no answer was generated."""

    loss: float
    perplexity: float | None
    exact_match: float | None
    records: int
    tokens: int
    answers: list[Answer]
    split: str
    checkpoint: str
    step: int
    data: str


RECORD_KEYS = tuple(RecordReport.__annotations__)


class RecordRun(Run, Protocol):
    """What evaluation needs from a loaded run."""

    @property
    def config(self) -> RunConfig: ...


class Question(NamedTuple):
    """The prompt's ids, the prompt's text, the expected answer, and the number of the answer's ids."""

    ids: list[int]
    prompt: str
    expected: str
    length: int


def scores_records(run: RecordRun, source: str | None = None) -> bool:
    """Whether the data (default: the run's own) are records, not plain text. Raises DataError."""
    data = run.config.data
    if source is None and not run.config.finetune.base:
        return False
    return holds_records(source or data.source, data.encoding, data.text_field)


def evaluate_records(
    run: RecordRun,
    *,
    source: str | None = None,
    split: str = "val",
    ask: int = ASK,
    progress: Callable[[int, int], None] | None = None,
) -> RecordReport:
    """Score a run on records: `evaluate_records(load_run("runs/answers"))["exact_match"]`.

    Args:
        run: from `load_run`; fine-tuned or not, so that you can compare before and after.
        source: records to use instead of the run's own; they are split as fine-tuning splits them.
        split: val (held out) or train.
        ask: most answers to generate; 0 computes only the loss.
        progress: called with (answers generated so far, their total).

    Raises:
        UserError: no such split, or `ask` below 0.
        DataError: records that cannot be read.
        CheckpointError: the loss is NaN or infinite.
    """
    if ask < 0:
        raise UserError(f"{ask} answers cannot be written; give 0 or more")
    config, template = run.config, _template(run)
    if source is not None:
        config = config.changed(data={"source": source}, finetune={"val_source": None, "dpo_beta": 0.0})
    sides = dict(zip(("train", "val"), read_sides(config), strict=True))
    if split not in sides:
        raise UserError(f"records have no {split} split; {nearest(split, sides)}")
    texts = (piece.text for record in sides[split] for piece in record.pieces(template, True))
    if message := tell_unknown(texts, run.tokenizer):
        warnings.warn(message, stacklevel=2)
    seq_len = min(config.finetune.seq_len or run.model.config.max_seq_len, run.model.config.max_seq_len)
    loss, tokens = _loss(run, sides[split], template, seq_len)
    answers = _write(run, list(islice(_questions(sides[split], template, run.tokenizer), ask)), progress)
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "exact_match": sum(answer["exact"] for answer in answers) / len(answers) if answers else None,
        "records": len(sides[split]),
        "tokens": tokens,
        "answers": answers,
        "split": split,
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "data": config.data.source if split == "train" else config.finetune.val_source or config.data.source,
    }


def _template(run: RecordRun) -> Template:
    """The run's own template, or the default one if the run was never tuned on chats."""
    return load_template(run.path) if RunFolder.of(run.path).template.is_file() else Template()


def _loss(run: RecordRun, records: Sequence[Record], template: Template, seq_len: int) -> tuple[float, int]:
    """(nats per token, tokens) of the expected answers."""
    eos = run.tokenizer.eos_id is not None
    rows = [fit(Row(*encode(record.pieces(template, eos), run.tokenizer)), seq_len + 1) for record in records]
    nats, tokens = 0.0, 0
    for targets, losses in target_losses(run.model, row_eval_batches(rows, seq_len, BATCH), run.runtime):
        nats, tokens = nats + float(losses.sum()), tokens + int((targets != IGNORE).sum())
    if not np.isfinite(nats):
        raise non_finite_loss()
    return nats / max(1, tokens), tokens


def _questions(records: Sequence[Record], template: Template, tokenizer: Tokenizer) -> Iterator[Question]:
    """The records' learned answers, except those with nothing before them."""
    for record in records:
        pieces = record.pieces(template, tokenizer.eos_id is not None)
        replies = [at for at, piece in enumerate(pieces) if piece.learned]
        for at, prompt in zip(replies, record.asked(), strict=True):
            text = pieces[at].text
            if at:
                ids = encode(pieces[:at], tokenizer)[0].tolist()
                yield Question(ids, prompt, text.strip(), len(tokenizer.encode(text)))


def _write(run: RecordRun, questions: Sequence[Question], progress: Callable[[int, int], None] | None) -> list[Answer]:
    """Generate the model's answers, greedily."""
    limit, out = run.model.config.max_seq_len, []
    for first in range(0, len(questions), BATCH):
        some = questions[first : first + BATCH]
        room = max(question.length for question in some) + ROOM
        prompts = [question.ids[-limit:] for question in some]
        written = complete(run.model, prompts, run.tokenizer, temperature=0.0, max_new_tokens=room)
        for question, [completion] in zip(some, written, strict=True):
            got = completion.text.strip()
            if run.tokenizer.eos_id is None:  # nothing ends an answer, so as many tokens as expected are compared
                most = len(run.tokenizer.encode_next(question.expected))
                got = run.tokenizer.decode(run.tokenizer.encode_next(got)[:most]).strip()
            exact = got == question.expected
            out.append(Answer(prompt=question.prompt, expected=question.expected, got=got, exact=exact))
        if progress:
            progress(len(out), len(questions))
    return out
