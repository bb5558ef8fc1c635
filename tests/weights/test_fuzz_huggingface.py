"""Test that a randomly changed Hugging Face directory is refused or gives the logits of transformers."""

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from foreign_model import make
from fuzz_watch import Watch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow
from safetensors.torch import load_file, save_file

from minigpt import GPT
from minigpt.errors import UserError

transformers = pytest.importorskip("transformers")
VALUES = st.sampled_from(
    [None, True, False, 0, 1, 2, 4, 10**9, 10**20, 1e-3, 0.5, -1, "relu", "gelu", "gelu_fast", "silu", "x", [], {}, [1]]
)
NEW = ("rope_scaling", "rope_theta", "quantization_config", "sliding_window", "partial_rotary_factor", "pruned_heads")
CHANGES = ("field", "fields", "lose", "add", "shape", "tie", "dtype", "none")
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind, tied in (("gpt2", True), ("gpt2", False), ("qwen3", True), ("qwen3", False)):
        path = make(tmp_path_factory.mktemp("hf"), kind, tie_word_embeddings=tied)
        made[kind, tied] = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    return made


def change(draw, config: dict, weights: dict) -> None:
    kind = draw(st.sampled_from(CHANGES))
    name = draw(st.sampled_from(sorted(weights)))
    if kind in ("field", "fields"):
        for _ in range(1 if kind == "field" else 2):
            config[draw(st.sampled_from([*sorted(config), *NEW]))] = draw(VALUES)
    if kind == "lose":
        del weights[name]
    if kind == "add":
        weights[draw(st.sampled_from(["lm_head.weight", f"{name}.x", "score.weight"]))] = torch.ones(70, 8)
    if kind == "shape":
        weights[name] = weights[name][:-1].clone()
    if kind == "tie":
        config["tie_word_embeddings"] = not config["tie_word_embeddings"]
    if kind == "dtype":
        weights[name] = weights[name].to(draw(st.sampled_from([torch.float16, torch.bfloat16, torch.int8])))


def compare(path: Path) -> None:
    ids = torch.arange(10)[None] * 7 % 70
    try:
        ours = GPT.from_pretrained(path)
    except UserError as error:
        assert "\n" not in str(error)
        COUNTS["refused"] += 1
        return
    ids = ids[:, : ours.config.max_seq_len]
    try:
        with torch.inference_mode():
            theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(ids).logits
    except Exception:  # noqa: BLE001 - many classes: a setting of a wrong type that does not change the result
        COUNTS["only minigpt reads it"] += 1
        return
    with torch.inference_mode():
        assert (ours(ids) - theirs).abs().max() < 1e-4
    COUNTS["equal"] += 1


@pytest.mark.parametrize("examples", mostly_slow([150, 3000]))
def test_a_changed_directory_is_refused_or_computes_the_same(examples, models, tmp_path):
    COUNTS.clear()
    watch = Watch()
    healthy = {"suppress_health_check": list(HealthCheck), "deadline": None, "derandomize": True}

    @settings(max_examples=examples, phases=[Phase.generate], **healthy)
    @given(key=st.sampled_from(sorted(models)), data=st.data())
    def run(key, data):
        config, weights = copy.deepcopy(models[key][0]), dict(models[key][1])
        change(data.draw, config, weights)
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with watch.example():
            compare(tmp_path)

    run()
    watch.end(f"Hugging Face directories: {dict(COUNTS)}")
    assert COUNTS["equal"] > examples // 20 and COUNTS["refused"] > examples // 20
