"""Save, load and switch adapters. An adapter is a small directory that records which base model it belongs to.

    runs/NAME/adapters/
        pirate/
            adapter.safetensors     A and B of each layer
            state.json              the LoRAConfig, the path of the base, and the sha256 of its weights
            manifest.json           as in every checkpoint

Notable: the base is identified by its weights, not by its path, so an exported or copied model is the same base.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.config.finetune import LoRAConfig
from minigpt.errors import CheckpointError, nearest
from minigpt.layout import ADAPTERS
from minigpt.model import GPT
from minigpt.training.finetune.lora import PARTS, adapter, load_adapter, remove
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState
from minigpt.weights.huggingface import architecture


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that was read: settings, tensors by name, path of the base, and sha256 of the base's weights."""

    path: Path
    config: LoRAConfig
    tensors: dict[str, Tensor]
    base: str
    sha256: str


def fingerprint(model: GPT) -> str:
    """sha256 over names, shapes, dtypes and bytes of the base's weights, without adapter and vocabulary padding.

    A model that was cast to another dtype, or merged, has another fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.weights().items()):
        if name.endswith(PARTS):
            continue
        if name in ("embedding.weight", "head.weight"):
            tensor = tensor[: model.config.vocab_size]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(path: Path, model: GPT, config: LoRAConfig, base: Path | str | None = None) -> Path:
    """Write the model's adapter into the directory `path`, atomically.

    Args:
        config: the settings that the adapter was added with.
        base: the path of the base, for the reader (default: the path that the model was loaded from).

    Raises:
        StorageError: disk full or unwritable; an older adapter there is not changed.
        ValueError: the model has no adapter.
    """
    tensors = adapter(model)
    if not tensors:
        raise ValueError("the model has no adapter to save; it may be merged")
    where = str(base or model.source or "")
    found = {"path": where, "sha256": fingerprint(model)}
    state = CheckpointState(lora=config.model_dump(mode="json"), base=found)
    return checkpoint.save(path, {"adapter": tensors}, state)


def load_saved(path: Path) -> SavedAdapter:
    """Read an adapter. Raises CheckpointError: missing, damaged, or not an adapter."""
    read = checkpoint.load(path, parts=("adapter",))
    state = read.state
    try:
        if state.lora is None or state.base is None:
            raise KeyError("lora")
        return SavedAdapter(
            read.path, LoRAConfig(**state.lora), read.tensors["adapter"], state.base["path"], state.base["sha256"]
        )
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not an adapter; give a directory that a LoRA finetune has written") from None


def find_adapters(run: Path) -> dict[str, Path]:
    """The adapters of a run, RUN/adapters/NAME, by name."""
    return {path.parent.name: path.parent for path in sorted((run / ADAPTERS).glob("[!.]*/adapter.safetensors"))}


class Adapters:
    """Several adapters of one base, kept in memory; at most one is in use.

    adapters = Adapters(model)
    adapters.load("pirate", Path("runs/my/adapters/pirate"))
    adapters.use("pirate")
    adapters.use(None)  # the base

    A switch copies only A and B. Do not switch while the model generates. After a switch, a `compiled()` view of the
    model is compiled again.
    """

    def __init__(self, model: GPT):
        self.model, self.sha256 = model, fingerprint(model)
        self.saved: dict[str, SavedAdapter] = {}

    def load(self, name: str, path: Path) -> SavedAdapter:
        """Read an adapter, to switch to it by `use`. Raises CheckpointError if it is unreadable or for another base."""
        saved = load_saved(path)
        if saved.sha256 != self.sha256:
            base = saved.base or "unknown"
            raise CheckpointError(
                f"{path}: an adapter for another base (its base: {base}, sha256 {saved.sha256[:12]}; "
                f"this model: {self.sha256[:12]}); load it on the base it was trained on"
            )
        self.saved[name] = saved
        return saved

    def use(self, name: str | None) -> GPT:
        """Give the model this adapter instead of the one in use; None gives the base without an adapter.

        Raises CheckpointError if no adapter has this name (with the nearest name), or if it does not fit. The model is
        unchanged then.
        """
        if name is None:
            return remove(self.model)
        if name not in self.saved:
            hint = nearest(name, self.saved) if self.saved else "none is loaded"
            raise CheckpointError(f"no adapter is called {name!r}; {hint}")
        return load_adapter(self.model, self.saved[name].tensors, self.saved[name].config)


# our layer -> the modules of the same layer in Hugging Face's models (Llama has Qwen3's names). If our layer stacks
# several modules, they share A and split the rows of B.
_TWINS = {
    "attention.qkv": {"gpt2": ("attn.c_attn",), "qwen3": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    "attention.out": {"gpt2": ("attn.c_proj",), "qwen3": ("self_attn.o_proj",)},
    "feed_forward.up": {"gpt2": ("mlp.c_fc",), "qwen3": ("mlp.gate_proj", "mlp.up_proj")},
    "feed_forward.down": {"gpt2": ("mlp.c_proj",), "qwen3": ("mlp.down_proj",)},
}


def to_peft(
    model: ModelConfig, lora: LoRAConfig, tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter for the model's Hugging Face export: peft's adapter_config.json and adapter_model.safetensors.

    A stacked matrix (q, k, v; gate, up) has one A, and its rows are the rows of B. Each part gets a copy of A and its
    own rows of B, which is the same update. The way back is not always possible: in peft q, k and v may each have
    their own A.

    Raises CheckpointError: Hugging Face has no model of this shape.
    """
    kind = "gpt2" if architecture(model) == "gpt2" else "qwen3"  # Llama has Qwen3's names
    out: dict[str, Tensor] = {}
    modules: list[str] = []
    for name in (name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")):
        first, second = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]  # [r, K], [N, r]
        if name == "head":
            theirs, pieces = ["lm_head"], [second[: model.vocab_size]]
        else:
            _, layer, inner = name.split(".", 2)
            block = f"transformer.h.{layer}" if kind == "gpt2" else f"model.layers.{layer}"
            theirs = [f"{block}.{module}" for module in _TWINS[inner][kind]]
            key = model.kv_heads * model.head_size
            query = model.num_heads * model.head_size
            sizes = [query, key, key] if len(theirs) == 3 else [len(second) // len(theirs)] * len(theirs)
            pieces = second.split(sizes)
        for module, piece in zip(theirs, pieces, strict=True):
            out[f"base_model.model.{module}.lora_A.weight"] = first.clone()  # safetensors holds no shared tensors
            out[f"base_model.model.{module}.lora_B.weight"] = piece.contiguous()
            modules.append(module)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": modules,
        "fan_in_fan_out": kind == "gpt2",  # Conv1D keeps [in, out]
        "bias": "none",
    }
    return config, out
