"""Import a model of another program as a run, so that every command can use it.

    a Hugging Face directory            GPT-2, Qwen3, Llama: config.json, safetensors, tokenizer.json
    model.gguf                          the same architectures, in fp32, fp16, bf16, q8_0 or q4_0
    ckpt.pt, or the folder it is in     nanoGPT
    stories15M.bin                      llama2.c, with its tokenizer.bin

    runs/NAME/
        config.yaml, tokenizer.json     (and template.json, if the model has a chat template of minigpt)
        checkpoints/last, step-00000000/

No code in such a file is run, and nothing in it is trusted: shapes and counts are checked against the settings and the
file's size before memory is allocated for them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from minigpt import tokenizers
from minigpt.config import DataConfig, GenerationConfig, ModelConfig, RunConfig, comment, dump_config
from minigpt.errors import CheckpointError, RunError, TokenizerError
from minigpt.files import new_folder, read_text, refuse_existing, write_text
from minigpt.layout import LAST, MANIFEST, TEMPLATE, RunFolder, is_pointer, step_name
from minigpt.runs.load import check_vocabulary
from minigpt.tokenizers import CharTokenizer, Tokenizer
from minigpt.tokenizers.base import valid_unicode
from minigpt.tokenizers.chat_template import parse_template, read_template
from minigpt.tokenizers.gguf import from_gguf
from minigpt.tokenizers.sentencepiece import from_llama2c as from_llama2c_tokenizer
from minigpt.weights import checkpoint, gguf_file
from minigpt.weights.checkpoint_state import IMPORTED, CheckpointState, TrainState
from minigpt.weights.generation_settings import settings_from_gguf
from minigpt.weights.gguf import config_from_gguf, weights_from_gguf
from minigpt.weights.huggingface import cut_vocabulary
from minigpt.weights.llama2c import from_llama2c
from minigpt.weights.nanogpt import from_nanogpt
from minigpt.weights.pretrained import is_huggingface, read_generation, read_pretrained
from minigpt.weights.torch_file import is_torch_file, read_torch

PADDING = 64
"""nanoGPT pads the vocabulary to a multiple of this."""
GPT2_SIZES = (50257, 50304)
"""Sizes of a vocabulary that is GPT-2's; the second is padded."""


@dataclass(frozen=True)
class Imported:
    """The result of `import_model`. `kind`: huggingface, gguf, nanogpt or llama2.c; `tokenizer`: its kind."""

    path: Path
    kind: str
    weights: int
    tokenizer: str
    vocab_size: int


@dataclass(frozen=True)
class Foreign:
    """A model as it was read; its tokenizer is None if the file has none."""

    kind: str
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None = None
    template: str = ""
    generation: GenerationConfig = field(default_factory=GenerationConfig)


def import_model(source: str | Path, out: str | Path | None = None, tokenizer: str | Path | None = None) -> Imported:
    """Write a model of another program as a run: `import_model("stories15M.bin", "runs/stories")`.

    Args:
        source: a file or directory: see the top of this module.
        out: the run to write (default: runs/NAME, named after the file).
        tokenizer: a tokenizer.json, llama2.c's tokenizer.bin, or, for a nanoGPT model of characters, the text it was
            trained on (default: the model's own; GPT-2's if the vocabulary has its size).

    Raises:
        CheckpointError: not a model that can be read, damaged, or a model that minigpt cannot compute.
        TokenizerError: no tokenizer, or one that does not belong to the model.
        RunError: `out` exists.
        StorageError: it cannot be written.
    """
    source = Path(source)
    if RunFolder(source).is_run or (source / MANIFEST).is_file() or is_pointer(source):
        raise RunError(f"{source}: is a run of minigpt; every command can use it as it is")
    out = Path("runs", source.stem if source.is_file() else source.resolve().name) if out is None else Path(out)
    refuse_existing(out)
    given = None if tokenizer is None else _given(Path(tokenizer))
    found = _read(source)
    spoken = _own(found, source) if given is None else given
    config, weights = found.config, found.weights
    rows, padded = config.vocab_size or 0, -(-spoken.vocab_size // PADDING) * PADDING
    if spoken.vocab_size < rows and (tokenizer is None or rows == padded):
        config, weights = cut_vocabulary(config, weights, spoken.vocab_size)
    check_vocabulary(spoken, config, source, "give the model's own with --tokenizer")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds numbers that are NaN or infinite; get the model again")
    ended = TrainState(finished=True, stop_reason=IMPORTED)
    state = CheckpointState(model=config.model_dump(mode="json"), train=ended, tokenizer=spoken.fingerprint)
    settings = RunConfig(model=config, data=DataConfig(source=valid_unicode(str(source))), generation=found.generation)
    with new_folder(out) as work:
        folder = RunFolder(work).checkpoints
        checkpoint.point(folder, LAST, checkpoint.save(folder / step_name(0), {"model": weights}, state))
        spoken.save(work)
        write_text(work / "config.yaml", comment(f"Imported from {source}") + dump_config(settings))
        if found.template:
            write_text(work / TEMPLATE, found.template)
    unused = config.padded_vocab_size - spoken.vocab_size  # rows of zeros
    tables = len(weights.keys() & {"embedding.weight", "head.weight"})
    count = sum(tensor.numel() for tensor in weights.values()) - unused * tables * config.embed_dim
    return Imported(out, found.kind, count, spoken.kind, spoken.vocab_size)


def _read(source: Path) -> Foreign:
    """Read the model of a file or directory. Raises CheckpointError, RunError."""
    if not source.exists():
        raise RunError(f"no such file: {source}; give a model's file or directory")
    if source.is_dir() and not (source / "config.json").is_file() and (source / "ckpt.pt").is_file():
        source = source / "ckpt.pt"
    try:
        if source.is_dir():
            return _huggingface(source)
        if not source.is_file():
            raise CheckpointError(f"{source}: is not a file or directory; give a model's file or directory")
        with source.open("rb") as file:
            magic = file.read(4)
        if magic == gguf_file.MAGIC:
            return _gguf(source)
        if is_torch_file(source):
            return Foreign("nanogpt", *from_nanogpt(read_torch(source), source))
        if source.suffix == ".bin":
            return Foreign("llama2.c", *from_llama2c(source))
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror or error})") from None
    raise CheckpointError(
        f"{source}: is not a model that minigpt can read; give a Hugging Face directory, a .gguf, nanoGPT's ckpt.pt, "
        "or llama2.c's .bin"
    )


def _huggingface(source: Path) -> Foreign:
    if not is_huggingface(source):
        raise CheckpointError(f"{source}: holds no model of another program: no config.json, no ckpt.pt; name its file")
    template = source / TEMPLATE
    text = read_template(template).to_json() if template.is_file() else ""
    has_one = (source / "tokenizer.json").is_file()
    own = tokenizers.load(source) if has_one else None
    return Foreign("huggingface", *read_pretrained(source), own, text, read_generation(source))


def _gguf(source: Path) -> Foreign:
    file = gguf_file.read(source)
    try:
        config = config_from_gguf(file)
        weights = weights_from_gguf(config, file)
        tokenizer, generation = from_gguf(file.settings), settings_from_gguf(file.settings)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{source}: {error}") from None
    given = file.settings.get("minigpt.template")
    template = parse_template(given, f"{source}: minigpt.template").to_json() if isinstance(given, str) else ""
    return Foreign("gguf", config, weights, tokenizer, template, generation)


def _given(path: Path) -> Tokenizer:
    """The tokenizer of a file, or of the characters of a text. Raises TokenizerError."""
    if path.is_dir() or path.suffix == ".json":
        return tokenizers.load(path)
    if path.suffix == ".bin":
        return from_llama2c_tokenizer(path)
    if path.suffix == ".pkl":
        raise TokenizerError(
            f"{path}: is a pickle, which can run code; give the text that its characters are from (input.txt)"
        )
    try:
        return CharTokenizer.from_texts([read_text(path)], unknown="error", ends=False)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise TokenizerError(f"{path}: cannot be read as text ({why}); give --tokenizer another file") from None


def _own(found: Foreign, source: Path) -> Tokenizer:
    """The model's own tokenizer, or GPT-2's. Raises TokenizerError."""
    if found.tokenizer is not None:
        return found.tokenizer
    if found.kind == "llama2.c" and (file := source.with_name("tokenizer.bin")).is_file():
        return from_llama2c_tokenizer(file)
    if found.config.vocab_size in GPT2_SIZES:
        return tokenizers.gpt2_tokenizer()
    raise TokenizerError(
        f"{source}: has {found.config.vocab_size} tokens but no tokenizer; give it with --tokenizer: a tokenizer.json, "
        "or, for characters, the text that the model was trained on"
    )
