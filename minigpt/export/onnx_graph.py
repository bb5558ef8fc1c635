"""Build a model as one ONNX graph with a cache of keys and values, node by node.

Inputs and outputs have the names that Hugging Face's optimum uses for decoders, so that other tools can use them:

    input_ids [batch, length]               the new tokens
    attention_mask [batch, past + length]   0 for padding, cached tokens included
    position_ids [batch, length]            the position of each new token in its row
    past_key_values.N.key, .value           [batch, kv heads, past, head size]; past is 0 at the beginning
    logits [batch, length, vocabulary]
    present.N.key, .value                   [batch, kv heads, past + length, head size]

Only operators of plain ONNX are used. B batch, T length, S past + length, C embed_dim, H heads, KV, D head size.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.model.parts import rotary_tables

OPSET, IR = 17, 8
"""Versions of operators and file format; every onnxruntime since 1.12 reads them."""
HIDDEN = -1e9
"""Added to the score of a key that a query must not see. Not infinity, because a row of padding sees no key at all."""


def build(config: ModelConfig, weights: dict[str, Tensor]) -> onnx.ModelProto:
    """The graph of a model that Hugging Face has an architecture for.

    Its `weights` are those of `GPT.weights`, in fp32; matrices may be fp16, or packed by `weights.quantized` to int8.
    """
    graph = _Graph(config, weights)
    ids, mask, places = (graph.input(name, TensorProto.INT64, size) for name, size in _INPUTS.items())
    embedding = graph.matrix("embedding.weight")
    x = graph("Gather", embedding, ids)  # [B, T, C]
    rotary = None
    if config.position == "rope":
        tables = rotary_tables(config.max_seq_len, config.head_size, config.rope_theta)
        rotary = [
            graph("Unsqueeze", graph("Gather", graph.constant(table), places), graph.constant([1])) for table in tables
        ]
    else:
        x = graph("Add", x, graph("Gather", graph.matrix("positions.weight"), places))
    hidden = _hidden(graph, ids, mask)
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        x = graph("Add", x, _attention(graph, i, graph.norm(f"{block}.norm1", x), rotary, hidden))
        x = graph("Add", x, _feed_forward(graph, block, graph.norm(f"{block}.norm2", x)))
    head = embedding if config.tie_embeddings else graph.matrix("head.weight")
    logits = graph("MatMul", graph.norm("norm", x), graph("Transpose", head, perm=[1, 0]))
    graph.output("logits", logits, ["batch", "length", config.vocab_size or 0])
    graph.outputs.insert(0, graph.outputs.pop())  # the logits come first, as is usual
    return graph.model()


_INPUTS: dict[str, list[str | int]] = {
    "input_ids": ["batch", "length"],
    "attention_mask": ["batch", "total"],
    "position_ids": ["batch", "length"],
}


def _hidden(graph: "_Graph", ids: str, mask: str) -> str:
    """[B, 1, 1, T, S]: added to the scores; 0 if a query sees a key, else HIDDEN."""
    zero, one = graph.constant(0), graph.constant(1)
    length = graph("Gather", graph("Shape", ids), one)
    total = graph("Gather", graph("Shape", mask), one)
    column = graph("Range", zero, total, one)  # [S]
    query = graph("Range", graph("Sub", total, length), total, one)  # [T]
    causal = graph("LessOrEqual", column, graph("Unsqueeze", query, graph.constant([1])))  # [T, S]
    real = graph("Unsqueeze", graph("Cast", mask, to=TensorProto.BOOL), graph.constant([1, 2, 3]))  # [B, 1, 1, 1, S]
    return graph("Where", graph("And", causal, real), graph.constant(0.0), graph.constant(HIDDEN))


def _attention(graph: "_Graph", layer: int, x: str, rotary: list[str] | None, hidden: str) -> str:
    """[B, T, C] -> [B, T, C]. Query heads that share a key have an axis of their own, so keys broadcast."""
    config, name = graph.config, f"blocks.{layer}.attention"
    heads, kv_heads, size = config.num_heads, config.kv_heads, config.head_size
    sizes = graph.constant([heads * size, kv_heads * size, kv_heads * size])
    parts = graph.several("Split", graph.linear(f"{name}.qkv", x), sizes, outputs=3, axis=-1)
    for i, count in enumerate((heads, kv_heads, kv_heads)):
        split = graph("Reshape", parts[i], graph.constant([0, 0, count, size]))
        parts[i] = graph("Transpose", split, perm=[0, 2, 1, 3])  # [B, H, T, D]
    for i, norm in enumerate(("q_norm", "k_norm")):
        if config.qk_norm:
            parts[i] = graph.norm(f"{name}.{norm}", parts[i])
        if rotary:
            parts[i] = _rotate(graph, parts[i], *rotary)
    query, *pair = parts
    for i, kind in enumerate(("key", "value")):
        axes = ["batch", kv_heads, "past", size]
        past = graph.input(f"past_key_values.{layer}.{kind}", TensorProto.FLOAT, axes)
        present = graph("Concat", past, pair[i], axis=2)  # [B, KV, S, D]
        graph.output(f"present.{layer}.{kind}", present, ["batch", kv_heads, "total", size])
        pair[i] = graph("Unsqueeze", present, graph.constant([2]))  # [B, KV, 1, S, D]
    key, value = pair
    query = graph("Mul", query, graph.constant(1 / math.sqrt(size)))
    query = graph("Reshape", query, graph.constant([0, kv_heads, heads // kv_heads, -1, size]))  # [B, KV, H/KV, T, D]
    scores = graph("MatMul", query, graph("Transpose", key, perm=[0, 1, 2, 4, 3]))  # [B, KV, H/KV, T, S]
    mixed = graph("MatMul", graph("Softmax", graph("Add", scores, hidden), axis=-1), value)  # [B, KV, H/KV, T, D]
    mixed = graph("Transpose", mixed, perm=[0, 3, 1, 2, 4])  # [B, T, KV, H/KV, D]
    return graph.linear(f"{name}.out", graph("Reshape", mixed, graph.constant([0, 0, heads * size])))


def _rotate(graph: "_Graph", x: str, cos: str, sin: str) -> str:
    """Rotate [B, H, T, D] by the angles of [B, 1, T, D], as `model.parts.rotate` does."""
    first, second = graph.several("Split", x, outputs=2, axis=-1)
    turned = graph("Concat", graph("Neg", second), first, axis=-1)
    return graph("Add", graph("Mul", x, cos), graph("Mul", turned, sin))


def _feed_forward(graph: "_Graph", block: str, x: str) -> str:
    """[B, T, C] -> [B, T, C]."""
    wide = graph.linear(f"{block}.feed_forward.up", x)
    return graph.linear(f"{block}.feed_forward.down", _ACTIVATIONS[graph.config.activation](graph, wide))


def _gelu(graph: "_Graph", x: str) -> str:
    erf = graph("Erf", graph("Div", x, graph.constant(math.sqrt(2))))
    return graph("Mul", graph("Mul", x, graph("Add", erf, graph.constant(1.0))), graph.constant(0.5))


def _gelu_tanh(graph: "_Graph", x: str) -> str:
    cube = graph("Mul", graph("Mul", graph("Mul", x, x), x), graph.constant(0.044715))
    tanh = graph("Tanh", graph("Mul", graph("Add", x, cube), graph.constant(math.sqrt(2 / math.pi))))
    return graph("Mul", graph("Mul", x, graph("Add", tanh, graph.constant(1.0))), graph.constant(0.5))


def _relu(graph: "_Graph", x: str) -> str:
    return graph("Relu", x)


def _relu2(graph: "_Graph", x: str) -> str:
    positive = graph("Relu", x)
    return graph("Mul", positive, positive)


def _swiglu(graph: "_Graph", x: str) -> str:
    gate, hidden = graph.several("Split", x, outputs=2, axis=-1)
    return graph("Mul", graph("Mul", gate, graph("Sigmoid", gate)), hidden)


_ACTIVATIONS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu, "relu2": _relu2, "swiglu": _swiglu}


class _Graph:
    """The nodes so far. A call adds a node and returns the name of its output: graph("Add", x, y)."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]):
        self.config, self.weights = config, weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def input(self, name: str, kind: int, shape: list[str | int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, source: str, shape: list[str | int]) -> None:
        self.nodes.append(helper.make_node("Identity", [source], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, value: Any) -> str:
        """Store a number, a list of whole numbers, or a tensor; floats are fp32. The same number is stored only
        once.
        """
        values = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        name = f"tensor_{len(self.constants)}" if values.ndim > 1 else f"{values.dtype}_{values.tolist()}"
        return self._store(name, values)

    def weight(self, name: str) -> str:
        """Store a weight, or a part of one, as it is."""
        return self._store(name, self.weights[name].numpy())

    def matrix(self, name: str) -> str:
        """A matrix in fp32. onnxruntime widens a smaller type once, when it loads the file."""
        if f"{name}.int8" in self.weights:
            whole = self("Cast", self.weight(f"{name}.int8"), to=TensorProto.FLOAT)
            return self("Mul", whole, self.weight(f"{name}.scale"))
        if self.weights[name].dtype == torch.float16:
            return self("Cast", self.weight(name), to=TensorProto.FLOAT)
        return self.weight(name)

    def linear(self, name: str, x: str) -> str:
        """Multiply with a matrix; minigpt's are [out, in]."""
        y = self("MatMul", x, self("Transpose", self.matrix(f"{name}.weight"), perm=[1, 0]))
        return self("Add", y, self.weight(f"{name}.bias")) if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: str) -> str:
        weight, eps = self.weight(f"{name}.weight"), self.config.norm_eps
        if self.config.norm == "layernorm":
            bias = [self.weight(f"{name}.bias")] if f"{name}.bias" in self.weights else []
            return self("LayerNormalization", x, weight, *bias, axis=-1, epsilon=eps)
        mean = self("ReduceMean", self("Mul", x, x), axes=[-1])
        root = self("Sqrt", self("Add", mean, self.constant(eps)))
        return self("Mul", self("Div", x, root), weight)

    def _store(self, name: str, values: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def model(self) -> onnx.ModelProto:
        """The file's content with all nodes."""
        graph = helper.make_graph(self.nodes, "minigpt", self.inputs, self.outputs, list(self.constants.values()))
        return helper.make_model(
            graph, producer_name="minigpt", ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)]
        )
