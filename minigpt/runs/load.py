"""Load a run: from a path to a model, a tokenizer and a config."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath

from minigpt import tokenizers
from minigpt.config import ModelConfig, RunConfig, load_config
from minigpt.data import Prepared
from minigpt.data.clean import clean_text
from minigpt.errors import CheckpointError, ConfigError, DataError, RunError
from minigpt.files import find
from minigpt.layout import CHECKPOINTS, STATE, RunFolder, no_such_run, step_of
from minigpt.model import GPT
from minigpt.runs.data import check_known, prepare_data
from minigpt.runs.receipt import read_receipt, text_has_changed
from minigpt.runtime.device import Runtime, make_runtime
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.base import valid_unicode
from minigpt.training.finetune import SavedAdapter, fingerprint, load_adapter, load_saved, merge
from minigpt.training.finetune.records import holds_records
from minigpt.weights import checkpoint
from minigpt.weights.aside import kept_for_others
from minigpt.weights.checkpoint_state import IMPORTED, CheckpointState, read_state
from minigpt.weights.pretrained import is_huggingface, read_generation


@dataclass(frozen=True)
class LoadedRun:
    """A model with its tokenizer and config.

    `path` is the path that was given, `checkpoint` the directory of its weights, `step` the step of that checkpoint.
    """

    path: Path
    checkpoint: Path
    step: int
    model: GPT
    tokenizer: Tokenizer
    config: RunConfig
    runtime: Runtime

    def clean(self, text: str) -> str:
        """Clean a text as the training text was, and replace halves of characters."""
        return clean_text(valid_unicode(text), self.config.data.clean)

    def prepared(self, source: str | Path | None = None) -> Prepared:
        """The run's own data as token files (written again if the cache was cleared).

        source: another text, such as `train` takes, to be cleaned and split like the run's own.

        Warns if the run's text has changed since training, or if the tokenizer does not know a part of the source.
        Raises DataError for records, and for a model alone or an imported run, which have no text of their own.
        """
        if source is not None:
            return self._prepared_from(str(source))
        data, state, folder = self.config.data, self.checkpoint / STATE, RunFolder.of(self.path)
        train = read_state(self.checkpoint).train if state.is_file() else None
        alone = is_huggingface(self.path) or not folder.is_run  # an export may lie in a run's folder
        if alone or (train and train.stop_reason == IMPORTED):
            raise DataError(
                f"{self.path}: {'is a model alone' if alone else 'was imported'}, so it has no text of its own; score "
                f"another: minigpt eval {self.path} --data FILE"
            )
        if self.config.finetune.base and holds_records(data.source, data.encoding, data.text_field):
            raise DataError(
                f"{data.source}: holds records, not a text; score them: minigpt eval {self.path}; "
                "or score a text, with --data FILE"
            )
        prepared = prepare_data(self.config, self.tokenizer)
        if text_has_changed(folder.path, prepared.sha256):
            warnings.warn(
                f"{data.source}: has changed since {folder.path} was trained, so its validation split is another now, "
                "and may hold text that the model has learned",
                stacklevel=2,
            )
        return prepared

    def _prepared_from(self, source: str) -> Prepared:
        config = self.config.changed(data={"source": source})
        prepared = prepare_data(config, self.tokenizer)
        if caveat := check_known(config, self.tokenizer, prepared, prepared.splits):
            warnings.warn(caveat, stacklevel=3)
        return prepared

    @cached_property
    def name(self) -> str:
        """A short name for tables."""
        return RunFolder.of(self.path).path.name


def load_run(path: str | Path, device: str = "auto", precision: str = "fp32") -> LoadedRun:
    """Load a run directory (its best checkpoint), a checkpoint directory, or a Hugging Face directory.

    Raises:
        CheckpointError: damaged, foreign, or its vocabulary is not the tokenizer's.
        RunError: no such run.
    """
    path = Path(path)
    try:
        there = find(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if not there:
        raise no_such_run(path)
    runtime = make_runtime(device, precision)
    if is_huggingface(path):
        model, tokenizer = GPT.from_pretrained(path, str(runtime.device)), tokenizers.load(path)
        check_vocabulary(tokenizer, model.config, path)
        config = RunConfig(model=model.config, generation=read_generation(path))
        return LoadedRun(path, path, 0, model, tokenizer, config, runtime)
    step_folder, state, model = checkpoint.current(path, lambda step: (step, *_read(step, path, runtime)))
    folder = RunFolder.of(path)
    tokenizer = tokenizers.load(folder.path)
    check_vocabulary(tokenizer, model.config, path)
    config = load_config(folder.config) if folder.config.is_file() else RunConfig(model=model.config)
    check_same_tokenizer(tokenizer, state, path)
    return LoadedRun(path, step_folder, step_of(step_folder), model, tokenizer, config, runtime)


def _read(step: Path, path: Path, runtime: Runtime) -> tuple[CheckpointState, GPT]:
    """The state and the model of a checkpoint, which `path` means now."""
    if (step / "adapter.safetensors").is_file():
        model = _adapted(step, path).to(runtime.device)
    else:
        model = GPT.from_pretrained(step, str(runtime.device))
    model.source = path
    return read_state(step), model


def load_alike(
    path: str | Path, like: LoadedRun, length: int, what: str, flag: str, device: str = "cpu", precision: str = "fp32"
) -> LoadedRun:
    """Load a run that has the same tokenizer as another run and can read as many tokens.

    Args:
        length: tokens that it must read.
        what: the setting that names the run, for the errors.
        flag: the setting that makes the length smaller, for the errors.

    Raises ConfigError if it does not fit, and the errors of `load_run`.
    """
    run = load_run(path, device, precision)
    if run.tokenizer.fingerprint != like.tokenizer.fingerprint:
        raise ConfigError(f"{what}: {path} has another tokenizer than {like.path}; it must have the same")
    if (limit := run.model.config.max_seq_len) < length:
        raise ConfigError(f"{what}: {path} reads {limit} tokens at most; set {flag} {limit}")
    return run


def _adapted(step: Path, path: Path) -> GPT:
    """The base of an adapter, with the adapter merged into its weights. `step`: the checkpoint that `path` means now.

    On the CPU, as when an adapter is trained: if the base has an adapter too, a GPU's sum has other last digits, and
    the weights another fingerprint.
    """
    saved = load_saved(step)
    base = find_base(path, saved)
    models = (load_run(each, "cpu").model for each in (base, *kept_for_others(base)))
    model = next((model for model in models if fingerprint(model) == saved.sha256), None)
    if model is None:
        raise CheckpointError(f"{path}: an adapter for another base than {base} is now; put its own base back")
    load_adapter(model, saved.tensors, saved.config)
    merge(model)
    return model


def find_base(path: Path, saved: SavedAdapter) -> Path:
    """Find the base of the adapter at `path`. Raises CheckpointError if it is gone."""
    run = RunFolder.of(path).path.absolute()
    parts = PureWindowsPath(saved.base).parts  # splits at / and at \ of Windows
    inside = path.absolute().relative_to(run).parts[:1]
    own = run if inside in ((), (CHECKPOINTS,)) else path  # adapters may lie in the folder of their base
    newer = read_receipt(own).get("base", {}).get("path", saved.base)  # if --resume named the base at another path
    # moved with the run, or with its sweep: SWEEP/BASE/checkpoints/STEP, BASE/checkpoints/STEP or DIRECTORY
    moved = (folder.joinpath(*parts[-count:]) for folder in run.parents[:2] for count in (4, 3, 1))
    for place in (Path(newer), Path(saved.base), *moved):
        if place.exists() and not place.resolve().is_relative_to(own.resolve()):  # not itself
            return place
    raise CheckpointError(f"{path}: an adapter whose base is gone; put it back at {saved.base}")


def check_same_tokenizer(tokenizer: Tokenizer, state: CheckpointState, where: Path) -> None:
    """Raise CheckpointError if the tokenizer is not the one that the checkpoint was trained with."""
    if state.tokenizer not in (None, tokenizer.fingerprint):
        raise CheckpointError(
            f"{where}: tokenizer.json is another tokenizer; put back the tokenizer.json that the run was trained with"
        )


def check_vocabulary(
    tokenizer: Tokenizer,
    model: ModelConfig,
    where: Path,
    fix: str = "put back the tokenizer.json that the run was trained with",
) -> None:
    """Raise CheckpointError if the tokenizer's ids are not the model's."""
    if tokenizer.vocab_size != model.vocab_size:
        ids = f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.vocab_size}"
        raise CheckpointError(f"{where}: {ids}; {fix}")
