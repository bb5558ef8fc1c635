"""Talk with a model in the terminal: `minigpt chat`."""

import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.cli.generate import SAMPLING, asked_settings, load_draft, with_settings
from minigpt.config.presets import load_preset, presets_file
from minigpt.console import console, counted, loading, out, printer, whole_line_ends, write
from minigpt.errors import UserError


@dataclass(frozen=True)
class _Chat:
    """Talk with a model: type a text and see its answer, or /help for the commands.

    minigpt chat runs/my
    minigpt chat runs/my-tuned --system "Be brief." --session talk.json
    echo "Once upon a time" | minigpt chat runs/my --temperature 0.7

    A run that was fine-tuned on chats answers. Any other run continues what you type; an empty line makes it continue.
    Ctrl-C stops an answer and keeps the part that was written; at the prompt, Ctrl-C or Ctrl-D leaves. To continue on
    the next line, end a line with a backslash, or press Alt-Enter. When the context is full, the oldest turns are no
    longer read.
    """

    COMMON: ClassVar = (
        "session",
        "system",
        *SAMPLING,
        "preset",
        "device",
        "precision",
    )

    run: Positional[PathText]
    """A run directory, a checkpoint, or an exported Hugging Face directory."""
    session: PathText | None = None
    """A file for the conversation: continued if it exists, and saved after every answer."""
    system: str | None = None
    """An instruction that the model reads before all turns; for runs that were fine-tuned on chats."""
    preset: str | None = None
    """Settings saved by minigpt generate --save-preset; other flags override them."""
    draft: PathText | None = None
    """A smaller run with the same tokenizer that guesses ahead; the probabilities of the text do not change."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16", "int8", "int4", "auto"] = "fp32"
    """Precision of the weights: fewer bits write faster on a CPU, and change the text a little."""


Chat = with_settings(_Chat)


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Chat, argv, "chat")
    asked = asked_settings(args)
    loading(quiet=True)
    from minigpt.generation.chat import COMMANDS, Commands, load_session, save_session
    from minigpt.generation.chat.commands import SETTINGS
    from minigpt.generation.chat.saved import is_there
    from minigpt.generation.chat.terminal import EditedLines, PlainLines

    session = _session(args, asked)
    file = Path(args.session) if args.session else None
    if file and is_there(file):
        load_session(file, session)
        session.update(asked)
    if args.system is not None:
        session.set_system(args.system)

    def keep() -> None:
        if file:
            save_session(file, session, args.run)

    keep()  # if the file cannot be written, say so before the conversation starts
    commands = Commands(session, load_preset, args.run)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if not interactive:
        return _converse(commands, PlainLines(), keep, interactive)
    kind = "answers" if session.chat_format.roles else "continues what you type; an empty line makes it continue"
    _note(f"{args.run} {kind}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    if session.messages:
        _note(f"{counted(len(session.messages), 'message')} so far; the last:")
        out(session.messages[-1].content.strip())
    words = {f"/{name}": SETTINGS if name == "set" else () for name in COMMANDS} | {"/help": [*COMMANDS, *SETTINGS]}
    return _converse(commands, EditedLines(presets_file().parent / "chat_history", words), keep, interactive)


def _session(args: Any, asked: dict[str, Any]) -> Any:
    """Load the model, and decide how its chats are written. Raises UserError."""
    from minigpt.generation.chat import Session
    from minigpt.generation.fast.prepare import prepare_decoding
    from minigpt.runs.chat_format import chat_format_of
    from minigpt.runs.load import load_run

    run = load_run(args.run, args.device)
    draft = load_draft(args, run)
    prepare_decoding(run.model, args.precision)
    session = Session(
        run.model,
        run.tokenizer,
        run.config.generation.model_copy(update={"num_samples": 1, "logprobs": None}),
        chat_format_of(run),
        run.clean,
        draft,
    )
    session.update(asked)
    return session


def _converse(commands: Any, lines: Any, keep: Callable[[], None], interactive: bool) -> int:
    """Read and answer lines until there are no more. A wrong line prints one message and does not change the chat.

    Returns 2 if the lines came from a program and one of them was wrong, else 0.
    """
    from minigpt.generation.chat import Reply
    from minigpt.generation.text.prompts import tell_unknown

    code, cut, tokenizer = 0, False, commands.session.tokenizer
    while (line := lines.read()) is not None:
        reply = Reply()
        try:
            if not line.startswith("/") and (message := tell_unknown([commands.session.clean(line)], tokenizer)):
                _note(message)
            reply = commands.take(line)
            if reply.text:
                out(reply.text)
            if reply.answer:
                _show(commands.session, reply.answer, interactive)
                if commands.session.is_cut and not cut:
                    cut = True
                    limit = commands.session.model.config.max_seq_len
                    _note(f"the context of {counted(limit, 'token')} is full: the oldest text is no longer read")
            keep()
        except UserError as error:
            printer(console, "red")(f"minigpt: {error}")
            code = 0 if interactive else 2
        except KeyboardInterrupt:  # for a command that takes long
            _note("stopped")
        if reply.leave:
            break
    return code


def _show(session: Any, answer: Generator[str], interactive: bool) -> None:
    """Print an answer as it is written; Ctrl-C ends it after its next token, a second Ctrl-C at once."""

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        session.stop()

    before, last = signal.signal(signal.SIGINT, interrupt), "\n"
    try:
        with closing(answer):
            for piece in whole_line_ends(answer):
                write(piece)
                sys.stdout.flush()
                last = piece or last
    except KeyboardInterrupt:
        _note("stopped at once")
    finally:
        signal.signal(signal.SIGINT, before)
        if not last.endswith("\n"):
            out("")
    ended = session.ended
    if interactive and ended is not None:
        rate = ended.tokens / max(ended.seconds, 1e-9)
        _note(f"[{counted(ended.tokens, 'token')}, {rate:.1f} tokens/s, {ended.reason}]")


def _note(text: str) -> None:
    sys.stdout.flush()
    printer(console, "dim")(text)
