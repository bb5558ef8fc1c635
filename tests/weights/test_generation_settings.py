"""Test that a model brings its generation settings along, from files that other programs or minigpt wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
from page_run import make_run

from minigpt.config import GenerationConfig
from minigpt.errors import CheckpointError
from minigpt.export import export_gguf, export_huggingface
from minigpt.runs.importing import import_model
from minigpt.runs.load import load_run
from minigpt.weights.generation_settings import settings_from_gguf
from minigpt.weights.pretrained import read_generation

OURS = GenerationConfig()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
         {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"repetition_penalty": 1.3, "max_new_tokens": 7}, {"repetition_penalty": 1.3, "max_new_tokens": 7}),
        ({}, {}),
    ],
)  # fmt: skip
def test_what_transformers_saves_is_read(theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    transformers.GenerationConfig(eos_token_id=3, **theirs).save_pretrained(tmp_path)
    assert read_generation(tmp_path) == OURS.model_copy(update=ours)


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_an_exported_model_comes_back_with_its_settings(temperature: float, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", temperature=temperature, top_k=9, max_new_tokens=33), "cpu")
    theirs = export_huggingface(run, tmp_path / "hf").path
    expected = (
        run.config.generation if temperature else OURS.model_copy(update={"temperature": 0, "max_new_tokens": 33})
    )
    assert load_run(theirs, "cpu").config.generation == expected
    assert load_run(import_model(theirs, tmp_path / "back").path, "cpu").config.generation == expected
    back = import_model(export_gguf(run, tmp_path / "my.gguf").path, tmp_path / "gguf").path
    assert load_run(back, "cpu").config.generation == OURS.model_copy(update={"temperature": temperature, "top_k": 9})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "generation_config.json is damaged"),
        ("{", "generation_config.json is damaged"),
        (json.dumps({"do_sample": True, "top_p": 7}), "generation_config.json: generation.top_p: .* correct it, or"),
        (json.dumps({"max_new_tokens": "many"}), "generation.max_new_tokens"),
    ],
)
def test_wrong_settings_are_one_error_with_the_file(text: str, words: str, tmp_path: Path) -> None:
    assert read_generation(tmp_path) == OURS
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_generation(tmp_path)


def test_wrong_settings_of_a_gguf_file_are_an_error() -> None:
    assert settings_from_gguf({"general.name": "x", "general.sampling.temp": 0.800000012}).temperature == 0.8
    with pytest.raises(CheckpointError, match=r"general\.sampling: generation\.top_k"):
        settings_from_gguf({"general.sampling.top_k": "all"})
