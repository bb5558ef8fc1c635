"""Write a model as a directory for onnxruntime: for transformers.js in a browser, optimum in Python, and others.

    my-onnx/
        onnx/model.onnx           the graph and the weights; model_fp16.onnx, or model_quantized.onnx for int8
        config.json and others    as in the directory for transformers, see `huggingface.py`

The graph is written node by node (`onnx_graph.py`) and not by torch.onnx: tracing needs one more package and minutes
for large models, and its result would have to be rewritten to hold the cache under the names that other tools expect.
onnxruntime runs the graph, and logits and greedy ids are compared with minigpt's, before the directory is renamed to
its final name.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import ConfigError, MiniGPTError, UserError
from minigpt.export.card import Run
from minigpt.export.huggingface import TOLERANCE, Exported, write_json, write_usage
from minigpt.export.page.pack import rounded, without_padding
from minigpt.files import new_folder, refuse_existing
from minigpt.layout import TOKENIZER, RunFolder
from minigpt.model import GPT
from minigpt.runs.quantize import pack_weights
from minigpt.tokenizers.words import UNKNOWN
from minigpt.weights.huggingface import architecture, config_to_hf

FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
"""For each precision, the name under which transformers.js looks for the file."""
DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}
"""The names of the precisions in transformers.js."""
LARGEST = 2**31 - 1
"""Largest file of this format, in bytes."""
TIE = 1e-5
"""If two logits are nearer to each other than this, either may be the larger one: sums are in another order."""
READ, WRITTEN = 64, 16


def export_onnx(run: Run, out: str | Path | None = None, precision: str = "fp32") -> Exported:
    """Write a loaded run for onnxruntime: `export_onnx(load_run("runs/my"))`.

    Args:
        run: from `load_run`. An adapter is part of its weights already.
        out: the directory to write (default: RUN-onnx, next to the run).
        precision: precision of the matrices in the file: fp32, fp16 or int8.

    Raises:
        UserError: onnx or onnxruntime is not installed.
        CheckpointError: a shape that transformers cannot compute, or weights that are NaN or infinite.
        ConfigError: another precision, or weights that it cannot hold.
        RunError: `out` exists.
        StorageError: it cannot be written.
        MiniGPTError: onnxruntime computes differently from minigpt; nothing is left behind.
    """
    if precision not in FILES:
        raise ConfigError(f"precision: {precision} is not possible; choose from {', '.join(FILES)}")
    _onnxruntime()
    kind = architecture(run.model.config)
    folder = RunFolder.of(run.path, TOKENIZER).path.resolve()
    out = folder.with_name(f"{folder.name}-onnx") if out is None else Path(out)
    refuse_existing(out)
    weights = _weights(run.model, precision)
    size = sum(tensor.nbytes for tensor in weights.values())
    if size > LARGEST - 2**20:  # the nodes need some space
        smaller = "use precision fp16 or int8" if precision == "fp32" else "use precision int8, or --to gguf"
        raise ConfigError(f"{size / 1e9:.1f} GB of weights are too much for one ONNX file of 2 GB; {smaller}")
    from minigpt.export.onnx_graph import build

    with new_folder(out) as work:
        tree = config_to_hf(run.model.config, run.tokenizer.eos_id)
        write_json(work / "config.json", tree | {"transformers.js_config": {"dtype": DTYPES[precision]}})
        # transformers.js finds the name of unk only here; elsewhere it would be found inside of words too
        write_usage(work, run, {"unk_token": UNKNOWN} if run.tokenizer.unit == "word" else None)
        file = work / "onnx" / FILES[precision]
        file.parent.mkdir()
        file.write_bytes(build(run.model.config, weights).SerializeToString())
        difference = _compare(file, rounded(run.model, precision), run.tokenizer.vocab_size)
        size = file.stat().st_size
    count = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(".scale"))
    return Exported(out, kind, precision, count, size, difference)


def _onnxruntime() -> ModuleType:
    """The package, with its telemetry switched off. Raises UserError if it, or onnx, is not installed."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        importlib.import_module("onnx")
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; install it with: pip install 'minigpt[onnx]'") from None


def _weights(model: GPT, precision: str) -> dict[str, Tensor]:
    """The weights as the file holds them; vectors are fp32. Raises CheckpointError, ConfigError."""
    weights = without_padding(model)
    packed = pack_weights(weights, 8, 64, 8)  # raises for weights that are NaN or infinite, for every precision
    if precision == "int8":
        return {name: tensor.float()[:, None] if name.endswith(".scale") else tensor for name, tensor in packed.items()}
    if precision == "fp16":
        weights = {name: tensor.half() if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
        if name := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
            raise ConfigError(f"precision: fp16 cannot hold the numbers of {name}; use int8 or fp32")
    return weights


class Session:
    """A graph with what it has read so far: `Session(...)(ids)` gives the logits of ids [B, T] that follow it."""

    def __init__(self, file: Path, config: ModelConfig, batch: int):
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.mask = torch.zeros(batch, 0, dtype=torch.long)
        empty = torch.zeros(batch, config.kv_heads, 0, config.head_size).numpy()
        self.past = {node.name: empty for node in self.session.get_inputs() if node.name.startswith("past")}

    def __call__(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]; `mask` is 0 for padding."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if mask is None else mask], dim=1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids.numpy(), "attention_mask": self.mask.numpy(), "position_ids": places.numpy()}
        logits, *present = self.session.run(None, feeds | self.past)
        self.past = dict(zip(self.past, present, strict=True))
        return torch.from_numpy(logits)


def _compare(file: Path, model: GPT, vocabulary: int) -> float:
    """The largest difference between onnxruntime's logits and minigpt's: for ids read at once, then with the cache.

    Raises MiniGPTError: a difference above TOLERANCE, or other greedy ids.
    """
    config = model.config
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, min(READ, config.max_seq_len)), generator=draw)
    begun = max(1, min(4, config.max_seq_len - WRITTEN))
    session, cache = Session(file, config, 2), model.make_cache(2)
    found = [Session(file, config, 2)(ids)]
    with torch.inference_mode():
        expected = [model(ids)]
        ids = ids[:, :begun]
        for _ in range(min(WRITTEN, config.max_seq_len - begun + 1)):
            found.append(session(ids))
            expected.append(model(ids, cache))
            ours, theirs = expected[-1][:, -1], found[-1][:, -1]
            ids = ours.argmax(-1, keepdim=True)
            if (ours.gather(1, ids) - ours.gather(1, theirs.argmax(-1, keepdim=True))).max() > TIE:
                raise MiniGPTError("onnxruntime writes other tokens than the model; please report it")
    difference = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    if not difference <= TOLERANCE * max(1.0, max(logits.abs().max().item() for logits in expected)):
        raise MiniGPTError(f"onnxruntime's logits differ from minigpt's by up to {difference:.2g}; please report it")
    return difference
