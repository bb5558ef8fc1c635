"""Run the command line: each subcommand is one file, imported only when it is used."""

import importlib
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from importlib import metadata
from typing import Any

from minigpt import before_torch, torchrun
from minigpt.console import console, harmless, open_streams, printer
from minigpt.errors import ConfigError, MiniGPTError, UserError, first_line, nearest

COMMANDS = {
    "demo": "train on generated stories for 72 seconds; then write stories",
    "train": "train on a text, a folder, a named data set, or by a recipe",
    "finetune": "train a model further: on a text, questions and answers, chats",
    "eval": "loss, perplexity, bits per byte, next to simpler models",
    "generate": "continue a prompt",
    "chat": "talk with a model in the terminal",
    "quantize": "write a run again with its weights in 8 or 4 bits",
    "serve": "open your runs in the browser; serve them through OpenAI's API",
    "export": "write a run for transformers, llama.cpp, onnxruntime, or as one web page",
    "import": "import a model of another tool: Hugging Face, GGUF, nanoGPT, llama2.c",
    "explain": "look inside a model while it reads a text",
    "sweep": "train with every combination of some settings' values",
    "runs": "list, show, compare runs; print the command that repeats one",
    "plot": "draw loss and perplexity of one or more runs",
    "prepare": "turn text into token files without training",
    "data": "inspect a text; make questions to fine-tune on",
    "tokenizer": "train, inspect or compare tokenizers",
    "model": "inspect a model: parameters, FLOPs, memory, shapes",
    "bench": "measure the speed of training, generation, tokenizing, data",
    "config": "print the JSON Schema, the defaults, or a recipe in full",
    "doctor": "check this machine, and say what to fix",
}


_SECRET = re.compile(r"://[^/@\s]*@|(?<=hf_)\w+|(?i:(?<=token=)|(?<=key=)|(?<=password=)).+")
_SECRET_FOLLOWS = re.compile(r"--\S*(?:token|key|password)", re.I)


def usage() -> str:
    """The text of `minigpt --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "minigpt: train a small GPT from scratch on your own text\n\n"
        "usage: minigpt COMMAND [...]\n\n"
        f"{rows}\n\n"
        "first steps:\n"
        "  minigpt demo\n"
        "  minigpt train my.txt\n"
        '  minigpt generate runs/my --prompt "Once upon a time"\n\n'
        "minigpt COMMAND -h shows the options that people use most, --help all of them\n"
    )


def _print_warning(message: Any, *place: Any, **more: Any) -> None:
    """Print a warning as one line, without its place in the program."""
    printer(console)(str(message))


def _print_error(text: str) -> None:
    """Print an error as one line, even if names in it contain line ends or control characters."""
    printer(console)("minigpt: " + harmless(text).replace("\n", "\\n"))


def _as_typed(problem: str, argv: list[str]) -> str:
    """Spell a config mistake as the person typed it: "train.max_minuts: ..." becomes "--train.max-minuts: ..." if argv
    has that.
    """
    head = re.match(r"(\w+)\.(\w+): ", problem)
    typed = {word.partition("=")[0].replace("_", "-") for word in argv}
    flags = [f"--{name}".replace("_", "-") for name in (f"{head[1]}.{head[2]}", head[2])] if head else []
    if not head or not (flag := next((flag for flag in flags if flag in typed), None)):
        return problem
    rest = problem[head.end() :]
    if near := re.search(r"no such setting; did you mean (?:(\w+)\.)?(\w+)\?", rest):
        rest = f"no such setting; did you mean --{near[1] or head[1]}.{near[2].replace('_', '-')}?"
    return f"{flag}: {rest}"


def _run(argv: list[str], own_process: bool) -> int:
    """Run a command; its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] == "--version":
        from minigpt import __version__

        print(f"minigpt {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"no such command: {argv[0]}; {nearest(argv[0], COMMANDS, 'see minigpt --help')}")
    if not {"-h", "--help"} & set(argv):  # help computes nothing
        before_torch.prepare()
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        command = importlib.import_module(f"minigpt.cli.{argv[0]}").main
        return command(argv[1:], own_process) if argv[0] == "train" else command(argv[1:])


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 a mistake that the person can fix.

    Args:
        argv: the words (default: those that this process was started with).
    """
    own_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    open_streams()
    try:
        try:
            return _run(argv, own_process)
        finally:
            print(end="", flush=True)  # here, so that a closed pipe is not found at the exit, where it is an error
    except MiniGPTError as error:
        if torchrun.rank() and not error.alone:
            time.sleep(30)  # if the first process has the same error, it prints it, and torchrun ends this process
        for line in error.problems if isinstance(error, ConfigError) else [str(error)]:
            _print_error(_as_typed(line, argv))
        return error.exit_code
    except BrokenPipeError:  # `minigpt ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("minigpt: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a path that the system refuses, wherever the person gave it
        place = error.filename if error.filename is not None else "the system refuses"
        _print_error(f"{os.fsdecode(place) if isinstance(place, str | bytes) else place}: {error.strerror or error}")
        return UserError.exit_code
    except Exception as error:  # noqa: BLE001  any error that nothing above expects
        _print_error(_unexpected_error(error, argv))
        return 1


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # minigpt may run from its folder
        return "not installed"


def _unexpected_error(error: Exception, argv: list[str]) -> str:
    """The message for an unexpected error: its kind, and the file that has its details."""
    ended = isinstance(error, MemoryError)
    if "torch" in sys.modules:
        from minigpt.runtime.device import out_of_memory

        ended = out_of_memory(error)
    if ended:
        return "memory ran out; make the model, the batch or the text smaller, or end other programs"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; use fewer levels"
    text = "".join(traceback.format_exception(error))
    about = [f"python {sys.version}", *(f"{name} {_version(name)}" for name in ("minigpt", "torch"))]
    words = [
        "***" if _SECRET_FOLLOWS.fullmatch(before) else _SECRET.sub("***", word)
        for before, word in zip(["", *argv], argv, strict=False)
    ]
    said = f"this is a bug in minigpt ({type(error).__name__}: {first_line(error)[:200]})"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="minigpt-bug-", suffix=".txt", delete=False,
                                         encoding="utf-8", errors="backslashreplace") as file:  # fmt: skip
            file.write("\n".join([shlex.join(["minigpt", *words]), *about, text]))
    except OSError as unwritten:
        print(text, file=sys.stderr)
        return f"{said}; its details are above, since they cannot be written to a file ({unwritten.strerror})"
    return f"{said}; its details are in {file.name}: please report it with that file"
