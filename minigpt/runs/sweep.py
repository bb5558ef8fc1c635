"""Run a sweep: the same run with every combination of some values, each in its own process.

The folder runs/SWEEP holds the runs, their output (NAME.log), and sweep.json: the grid, the names, the states. If a run
fails, its state says so and the sweep continues; the same command continues an interrupted sweep.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from minigpt.config import RunConfig, load_config, recipe_settings
from minigpt.config.unused import without_effect
from minigpt.console import counted, ending_signals, leave_terminal, own_group, passed_on
from minigpt.errors import ConfigError, RunError, UserError
from minigpt.files import parse_json, write_text
from minigpt.layout import RunFolder, check_name
from minigpt.runs.lock import run_lock
from minigpt.runs.record import RunRecord, find_runs, read_run
from minigpt.runs.settings import as_flag, flat

Settings = Mapping[str, Any]
FILE = "sweep.json"
PROGRAM = (sys.executable, "-m", "minigpt")


@dataclass(frozen=True)
class Sweep:
    """What to run.

    command: train or finetune; `words` are its positional arguments.
    fixed: settings of all runs.
    grid: values to combine, by dotted path.
    flags: flags of the command for all runs: --tiny-run, or --budget and its amount.
    trials: the settings of each run in addition to `fixed`, by the run's name.
    base: the settings that all runs have in common, resolved; if the recipe changes, they differ.
    """

    path: Path
    command: str
    words: tuple[str, ...]
    flags: tuple[str, ...]
    fixed: Settings
    grid: Mapping[str, Sequence[Any]]
    trials: Mapping[str, Settings]
    base: Settings

    def argv(self, name: str) -> list[str]:
        """The arguments of `minigpt` that train a trial."""
        settings = {**self.fixed, **self.trials[name], "logging.runs_dir": str(self.path)}
        flags = ["=".join(as_flag(path, value)) for path, value in settings.items()]
        return [self.command, *self.words, *self.flags, *flags, "--name", name]


def combine(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """All combinations, under names that contain their values; the last setting varies fastest.

    combine({"optimizer.learning_rate": [0.01, 0.03], "train.seed": [1]})
        -> {"learning_rate=0.01,seed=1": {"optimizer.learning_rate": 0.01, "train.seed": 1}, ...}
    """
    trials: dict[str, dict[str, Any]] = {}
    short = [path.split(".")[-1] for path in grid]
    labels = [label if short.count(label) == 1 else path for label, path in zip(short, grid, strict=True)]
    for values in itertools.product(*grid.values()):
        name = ",".join(f"{label}={_word(value)}" for label, value in zip(labels, values, strict=True))
        while name in trials:  # values that differ only in characters that a file name cannot hold
            name += "+"
        trials[name] = dict(zip(grid, values, strict=True))
    return trials


def _word(value: Any) -> str:
    """A value as a part of a file name."""
    each = value if isinstance(value, list) else [value]
    texts = [part if isinstance(part, str) else json.dumps(part) for part in each]
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", "+".join(texts))[:40].strip("-") or "none"


def check(trials: Mapping[str, Settings], resolve: Callable[[Settings], RunConfig]) -> dict[str, RunConfig]:
    """The config of each trial. Raises ConfigError with the mistakes of all trials, each mistake once."""
    configs, problems = {}, {}
    for name, settings in trials.items():
        try:
            configs[name] = resolve(settings)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return configs


def plan_sweep(
    command: str,
    words: Sequence[str],
    fixed: Settings,
    grid: Mapping[str, Sequence[Any]],
    resolve: Callable[[Settings], RunConfig],
    name: str | None,
    default_name: str,
    flags: Sequence[str] = (),
) -> Sweep:
    """Decide what to run and in which folder: a new one, or that of the same sweep, to continue it.

    Args:
        command, words, fixed, grid, flags: as in `Sweep`.
        resolve: turns settings (fixed ones and a trial's) into a config; raises ConfigError.
        name: the sweep's name; another sweep of that name is an error.
        default_name: used if no name is given; if it is taken, the next free one.

    Raises:
        ConfigError: every mistake in the grid, or settings that no run would use. RunError: the folder holds something
            else.
    """
    trials = combine(grid)
    configs = check(trials, lambda settings: resolve({**fixed, **settings}))
    if "--budget" not in flags:  # its plan may choose the settings on which others depend
        unused = [without_effect(config, grid) for config in configs.values()]
        if never := [line for path, line in unused[0].items() if all(path in each for each in unused)]:
            raise ConfigError(never)
    tables = [flat(config) for config in configs.values()]
    base = {
        path: value
        for path, value in tables[0].items()
        if not path.startswith("logging.") and all(table[path] == value for table in tables)
    }
    folder, number = Path(tables[0]["logging.runs_dir"]), 2
    path = folder / check_name(name or default_name)
    while RunFolder(path).in_use():
        there = _written(path / FILE) if (path / FILE).is_file() else None
        wanted = {"command": command, "grid": _plain(grid), "base": base, "flags": list(flags)}
        if there and {"flags": [], **there}.items() >= wanted.items():
            break
        if name is not None:
            raise RunError(f"{path} exists and is {'another sweep' if there else 'not a sweep'}; choose a new --name")
        path, number = folder / f"{default_name}-{number}", number + 1
    return Sweep(path, command, tuple(words), tuple(flags), dict(fixed), _plain(grid), trials, base)


def _written(file: Path) -> dict[str, Any]:
    """What a sweep's folder says about it. Raises RunError."""
    try:
        return dict(parse_json(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error}); delete its folder, or choose another --name") from None


def _plain(value: Any) -> Any:
    """The value as JSON reads it back."""
    return json.loads(json.dumps(value))


@dataclass
class Progress:
    """The states of the trials: waiting, running, finished, interrupted or failed, and why; saved in sweep.json."""

    sweep: Sweep
    states: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        there = {record.name: record.state for record in self.records()}
        self.states = {name: there.get(name, "waiting") for name in self.sweep.trials}

    def records(self) -> list[RunRecord]:
        """The runs that exist, in the grid's order."""
        found = {run.name: run for run in find_runs(self.sweep.path)} if self.sweep.path.is_dir() else {}
        return [found[name] for name in self.sweep.trials if name in found]

    def note(self, name: str, state: str, error: str = "") -> None:
        """Write a change down."""
        with self.lock:
            self.states[name] = state
            self.errors.pop(name, None)
            if error:
                self.errors[name] = error
            self.write()

    def write(self) -> None:
        """Write sweep.json, completely or not at all. Raises StorageError."""
        sweep = self.sweep
        runs = {
            name: {"state": self.states[name], "settings": settings, "error": self.errors.get(name)}
            for name, settings in sweep.trials.items()
        }
        report = {"command": sweep.command, "words": sweep.words, "fixed": sweep.fixed, "grid": sweep.grid}
        report |= {"flags": sweep.flags, "runs": runs, "base": sweep.base}
        write_text(sweep.path / FILE, json.dumps(report, indent=2) + "\n")


def environment(device: str | None) -> dict[str, str]:
    """The variables that let a process see one device: cuda:1 -> CUDA_VISIBLE_DEVICES=1; cpu -> no device. None changes
    nothing.
    """
    if device is None:
        return {}
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = device.partition(":")[2]
    if shown and number:
        return {"CUDA_VISIBLE_DEVICES": shown.split(",")[int(number)]}
    return {"CUDA_VISIBLE_DEVICES": number}


def check_devices(devices: Sequence[str]) -> None:
    """Raise UserError for a word that is not a device, or for a device that is missing."""
    import torch

    for device in devices:
        if not re.fullmatch(r"cpu|cuda:\d+", device):
            raise UserError(f"--devices {device}: write cpu or cuda:0, and commas between several")
        if device != "cpu" and int(device[5:]) >= torch.cuda.device_count():
            here = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            problem = f"this machine has {counted(len(here), 'CUDA device')}"
            raise UserError(f"--devices {device}: {problem}; choose from {', '.join([*here, 'cpu'])}")


def run_sweep(
    sweep: Sweep, devices: Sequence[str | None], say: Callable[[str], object], show: Callable[[str], object]
) -> tuple[Progress, int]:
    """Run every trial that is not finished, one at a time on each device; a trial that fails does not end the others.

    Ctrl-C, SIGTERM and SIGHUP are passed on to the processes, which save; waiting trials stay waiting.

    Args:
        sweep: from `plan_sweep`.
        devices: None means whatever device a process finds; see `environment`.
        say: prints one line; called for each run that has ended.
        show: shows what happens now, in the place of the last text.

    Returns:
        (states of the trials, the signal that ended the sweep or 0).

    Raises:
        RunError: another process runs the sweep.
    """
    with run_lock(sweep.path):
        return _run_all(sweep, devices, say, show)


def _run_all(
    sweep: Sweep, devices: Sequence[str | None], say: Callable[[str], object], show: Callable[[str], object]
) -> tuple[Progress, int]:
    """Do the work of `run_sweep`, while the folder is locked against other processes."""
    progress, running, free = Progress(sweep), list[subprocess.Popen[str]](), SimpleQueue[str | None]()
    progress.write()
    for device in devices:
        free.put(device)
    todo = [name for name, state in progress.states.items() if state != "finished"]
    if len(todo) < len(sweep.trials):
        say(f"{len(sweep.trials) - len(todo)} of {len(sweep.trials)} runs are finished already")
    stopped = 0

    def stop(number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = number
        leave_terminal()
        for process in running:
            process.send_signal(passed_on(number))  # has no effect on a process that has ended

    def started(process: subprocess.Popen[str]) -> None:
        running.append(process)
        if stopped:  # if the sweep was stopped while the process started
            process.send_signal(passed_on(stopped))

    def trial(name: str) -> None:
        device = free.get()
        try:
            if not stopped:
                place = f"{todo.index(name) + 1} of {len(todo)}"
                show(f"{place}: {name}{f' on {device}' if device else ''}")
                _run_one(progress, name, device, started, lambda line: show(f"{place}  {line}"))
                say(f"{place}: {outcome(progress, name)}")
        finally:
            free.put(device)

    before = {number: signal.signal(number, stop) for number in ending_signals()}
    try:
        with ThreadPoolExecutor(len(devices)) as pool:
            jobs = [pool.submit(trial, name) for name in todo]
            while wait(jobs, 0.2).not_done:  # on Windows `stop` would not be called during a wait without a limit
                continue
            for job in jobs:
                job.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return progress, stopped


def outcome(progress: Progress, name: str) -> str:
    """One line on how a run ended: learning_rate=0.003,seed=1  val 1.4321 (2.066 bits/byte)  1.2 min."""
    state = progress.states[name]
    path = progress.sweep.path / name
    record = read_run(path) if RunFolder(path).is_run else None
    if state == "failed" or record is None or not record.best:
        return f"{name}  {state}{f': {why}' if (why := progress.errors.get(name)) else ''}"
    row = record.summary()
    bits = f" ({row['bits_per_byte']:.3f} bits/byte)" if row["bits_per_byte"] is not None else ""
    ending = "" if state == "finished" else f"  {state}"
    return f"{name}  val {row['best_val_loss']:.4f}{bits}  {row['minutes']:.1f} min{ending}"


def _run_one(
    progress: Progress,
    name: str,
    device: str | None,
    started: Callable[[subprocess.Popen[str]], None],
    show: Callable[[str], object],
) -> None:
    """Train one trial to its end. Ctrl-C reaches its process only once, through `run_sweep`."""
    sweep = progress.sweep
    progress.note(name, "running")
    on_cpu = ["--train.device=cpu"] if device == "cpu" and sys.platform == "darwin" else []  # no variable hides mps
    last = ""
    with (
        (sweep.path / f"{name}.log").open("a", encoding="utf-8") as log,
        subprocess.Popen(
            [*PROGRAM, *sweep.argv(name), *on_cpu],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace",
            env={"COLUMNS": "160", "WANDB_RUN_GROUP": sweep.path.name, **os.environ, **environment(device)},
            start_new_session=True, creationflags=own_group(),
        ) as process,
    ):  # fmt: skip
        started(process)
        for line in process.stderr or ():
            log.write(line)
            log.flush()
            show(line.rstrip("\n"))
            last = line.strip() or last
    code = process.returncode
    if code in {each for number in ending_signals() for each in (128 + number, -number)}:
        progress.note(name, "interrupted")
    elif code:
        progress.note(name, "failed", last.removeprefix("minigpt: ") or f"ended with exit code {code}")
    else:
        progress.note(name, "finished")


def resolver(recipe: str | None) -> Callable[[Settings], RunConfig]:
    """The `resolve` of `plan_sweep` for training from scratch."""

    def resolve(settings: Settings) -> RunConfig:
        config = load_config(recipe, settings)
        if given := [path for path in settings if path.startswith(("finetune.", "lora."))]:
            raise ConfigError(
                [f"{path}: is for finetuning; name a run to start from before the data" for path in given]
            )
        return config

    return resolve


def tuning_resolver(base: str, recipe: str | None) -> Callable[[Settings], RunConfig]:
    """The `resolve` of `plan_sweep` for fine-tuning: it finds the mistakes that `fine_tune` would find before it reads
    the data.
    """
    from minigpt.runs.finetune import finetune_config
    from minigpt.runs.load import load_run

    start = load_run(base, "cpu")

    def resolve(settings: Settings) -> RunConfig:
        load_config(recipe, settings)
        return finetune_config(start, {**recipe_settings(recipe, settings), **settings})

    return resolve
