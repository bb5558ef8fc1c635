"""How a run is talked with: by its chat template, or as one text where it has none."""

from minigpt.errors import RunError
from minigpt.generation.chat import Plain, Turns
from minigpt.runs.load import LoadedRun
from minigpt.tokenizers.chat_template import encode_question, load_template


def spelling_of(run: LoadedRun) -> Plain | Turns:
    """`Turns` of a run that was tuned on chats, else `Plain`. Raises DataError for a damaged template."""
    try:
        template = load_template(run.path)
    except RunError:
        return Plain(run.tokenizer)
    before, after = template.assistant.split("{}")
    end = after + template.user.split("{}")[0].rstrip()  # "\nUser:", where a model forgets to end its answer
    stop = {end} if run.tokenizer.eos_id is not None else {end, after}
    return Turns(
        run.tokenizer,
        lambda messages: encode_question(messages, template, run.tokenizer),
        before.removeprefix(template.lead),
        tuple(sorted(stop - {""})),
    )
