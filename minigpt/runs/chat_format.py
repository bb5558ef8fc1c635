"""Decide how to talk with a run: by its chat template, or as one continued text if it has none."""

from minigpt.errors import RunError
from minigpt.generation.chat import Plain, Turns
from minigpt.runs.load import LoadedRun
from minigpt.tokenizers.chat_template import encode_question, load_template


def chat_format_of(run: LoadedRun) -> Plain | Turns:
    """`Turns` for a run that was tuned on chats, else `Plain`. Raises DataError for a damaged template."""
    try:
        template = load_template(run.path)
    except RunError:
        return Plain(run.tokenizer)
    return Turns(
        run.tokenizer,
        lambda messages: encode_question(messages, template, run.tokenizer),
        template.begin,
        template.stops(run.tokenizer.eos_id is not None),
    )
