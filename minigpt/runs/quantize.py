"""Write a run whose matrices are packed into 8 or 4 bits (`weights.quantized`); every command can read it.

    runs/my-int4/
        config.yaml, tokenizer.json             the run's (and receipt.json, and template.json if it has one)
        checkpoints/last, step-00000500/
            model.safetensors                   blocks.0.attention.qkv.weight.int4 and .scale instead of .weight;
                                                norms and biases in fp32
            state.json                          the run's, and the settings of the packing under `quantization`
            manifest.json

Tables (embedding, positions, head) stay in 8 bits by default. In a character model of 870k weights, the embedding has
2 % of them; in int4 it did half as much harm as all other matrices together (KL divergence from fp32).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minigpt import tokenizers
from minigpt.config import DataConfig, RunConfig, comment, dump_config, load_config
from minigpt.errors import CheckpointError, ConfigError
from minigpt.files import new_folder, refuse_existing, write_text
from minigpt.layout import LAST, RECEIPT, TEMPLATE, TOKENIZER, RunFolder, no_such_run, step_name, step_of
from minigpt.weights import checkpoint, quantized
from minigpt.weights.checkpoint_state import IMPORTED, CheckpointState, TrainState
from minigpt.weights.pretrained import is_huggingface, read_pretrained


@dataclass(frozen=True)
class QuantizedRun:
    """The result of `quantize_run`. Bytes are the sizes of the weights' files; `weights` counts all parameters."""

    path: Path
    bits: int
    group: int | None
    embedding_bits: int
    weights: int
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight on the disk, scales and headers included."""
        return 8 * self.bytes_after / self.weights


def quantize_run(
    path: str | Path, bits: int = 4, group: int = 64, out: str | Path | None = None, embedding_bits: int = 8
) -> QuantizedRun:
    """Write a run's best weights in fewer bits, as a run of its own: `quantize_run("runs/my", bits=4)`.

    Args:
        path: a run, a checkpoint, or a Hugging Face directory.
        bits: bits of the matrices in the blocks, 8 or 4.
        group: numbers that share a scale in int4: 32, 64 or 128; a smaller group is more exact and costs 16 / group
            bits per number.
        out: the run to write (default: RUN-int8 or RUN-int4, next to the run).
        embedding_bits: bits of embedding, positions and head, 8 or 4; if bits is 8, all have 8.

    Raises:
        ConfigError: other bits, a group that does not divide a matrix.
        RunError: no such run, or `out` exists.
        CheckpointError: damaged, quantised already, an adapter, weights that are NaN or infinite.
        StorageError: the disk is full.
    """
    path = Path(path)
    if not path.exists():
        raise no_such_run(path)
    _check(bits, group, embedding_bits)
    foreign = is_huggingface(path)
    folder = path if foreign else RunFolder.of(path, TOKENIZER).path.resolve()
    out = folder.with_name(f"{folder.name}-int{bits}") if out is None else Path(out)
    refuse_existing(out)
    if foreign:
        step, (config, weights) = path, read_pretrained(path)
        state = CheckpointState(train=TrainState(finished=True, stop_reason=IMPORTED))
    else:
        step, state, (config, weights) = checkpoint.current(
            path, lambda step: (step, _state(step, path), read_pretrained(step))
        )
    packed = pack_weights(weights, bits, group, embedding_bits)
    done: dict[str, Any] = {"bits": 8, "group": None, "embedding_bits": 8}
    if bits == 4:
        done = {"bits": 4, "group": group, "embedding_bits": embedding_bits}
    model = state.model or config.model_dump(mode="json")
    state = replace(state, model=model, quantization={**done, "source": str(path)})
    name = step_name(0 if foreign else step_of(step))
    before = _weight_bytes(step, foreign) or sum(tensor.nbytes for tensor in weights.values())
    settings = RunConfig(model=config, data=DataConfig(source=str(path))) if foreign else None  # as import writes them
    size = _write(out, name, packed, state, _files(folder, settings))
    count = sum(tensor.numel() for tensor in weights.values())
    return QuantizedRun(out, **done, weights=count, bytes_before=before, bytes_after=size)


def pack_weights(weights: Mapping[str, Tensor], bits: int, group: int, embedding_bits: int) -> dict[str, Tensor]:
    """A state dict whose matrices are packed: "a.weight" becomes "a.weight.int4" and "a.weight.scale".

    Raises:
        ConfigError: a group that does not divide a matrix, naming one that does.
        CheckpointError: weights that are NaN or infinite.
    """
    kinds = {name: (bits if name.startswith("blocks.") else embedding_bits) if bits == 4 else 8 for name in weights}
    columns = {name: w.shape[1] for name, w in weights.items() if w.dim() == 2 and kinds[name] == 4}
    for name, count in columns.items():
        if count % group:
            fitting = [str(size) for size in quantized.GROUPS if not any(other % size for other in columns.values())]
            other = f"--group {' or '.join(fitting)}" if fitting else "--bits 8, as no group fits all matrices"
            raise ConfigError(f"group: {group} does not divide the {count} columns of {name}; use {other}")
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} holds numbers that are NaN or infinite; use an earlier checkpoint")
        if tensor.dim() == 2:
            parts = quantized.pack(tensor, kinds[name], group)
            packed |= {f"{name}.{part}": numbers for part, numbers in parts.items()}
        else:
            packed[name] = tensor.float()
    return packed


def _check(bits: int, group: int, embedding_bits: int) -> None:
    for name, value, choices in (
        ("bits", bits, (8, 4)),
        ("group", group, quantized.GROUPS),
        ("embedding_bits", embedding_bits, (8, 4)),
    ):
        if value not in choices:
            raise ConfigError(f"{name}: {value} is not possible; choose from {', '.join(map(str, choices))}")


def _state(step: Path, path: Path) -> CheckpointState:
    """The state of the checkpoint that `path` means. CheckpointError if it is damaged, quantised or an adapter."""
    saved = checkpoint.load(step, ())
    if before := saved.state.quantization:
        raise CheckpointError(
            f"{path} is quantised already, to int{before['bits']}; give the run that it was made of: {before['source']}"
        )
    if (saved.path / "adapter.safetensors").is_file():
        raise CheckpointError(f"{path} is an adapter; make it whole first: minigpt finetune --merge {path} --out DIR")
    return saved.state


def _files(folder: Path, settings: RunConfig | None) -> dict[str, str]:
    """The texts of tokenizer.json, receipt.json and template.json, where they exist, and of config.yaml: these
    settings, or the run's. Raises TokenizerError, ConfigError.
    """
    tokenizers.load(folder)
    names = [name for name in (TOKENIZER, RECEIPT, TEMPLATE) if (folder / name).is_file()]
    files = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    file = RunFolder(folder).config
    if settings or file.is_file():
        header = comment(f"The settings of {folder}; the weights here are the same in fewer bits")
        files[file.name] = header + dump_config(settings or load_config(file))
    return files


def _write(out: Path, name: str, packed: Mapping[str, Tensor], state: CheckpointState, files: dict[str, str]) -> int:
    """Write the run, completely or not at all; returns the bytes of its weights. Raises StorageError."""
    with new_folder(out) as work:
        folder = RunFolder(work).checkpoints
        saved = checkpoint.save(folder / name, {"model": packed}, state)
        checkpoint.point(folder, LAST, saved)
        for file, text in files.items():
            write_text(work / file, text)
        return (saved / "model.safetensors").stat().st_size


def _weight_bytes(path: Path, foreign: bool) -> int:
    """Bytes of the weights' files that were read; 0 for a checkpoint in parts, which also hold the optimizer."""
    if foreign:
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    files = [path / f"{part}.safetensors" for part in ("ema", "model")]
    return next((file.stat().st_size for file in files if file.is_file()), 0)
