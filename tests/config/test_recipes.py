"""Test the shipped recipes: each loads, is short, says what it is, and holds only what differs from the defaults."""

import contextlib
import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main
from minigpt.config import ModelConfig, load_config, parse_yaml, recipes, split_flags, validate
from minigpt.errors import ConfigError
from minigpt.model.cost import parameter_table

ALL = recipes()
WANTED = {
    "demo",
    "shakespeare-char",
    "shakespeare-char-cpu",
    "nanogpt-shakespeare-char",
    "nanogpt-shakespeare-char-cpu",
    "wikitext2-22m",
    "tiny-6.7m",
    "small-25m",
    "gpt2-124m",
}
every_recipe = pytest.mark.parametrize("path", ALL.values(), ids=ALL)


def header(path: Path) -> list[str]:
    """The comment at the start of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]


def tree(path: Path) -> dict[str, dict[str, Any]]:
    """The recipe as written."""
    return parse_yaml(path.read_text(encoding="utf-8"))


def leaves(path: Path) -> list[tuple[str, str]]:
    """(section, field) of every value in it."""
    return [(section, name) for section, fields in tree(path).items() for name in fields]


def parameters(path: Path) -> int:
    """Parameters of the recipe's model; a character vocabulary is taken as Tiny Shakespeare's, 65 and some specials."""
    config = load_config(path)
    sizes = {"gpt2": 50257, "bpe": config.tokenizer.vocab_size, "char": 70, "word": 33_278}
    shape = config.model.model_copy(update={"vocab_size": sizes[config.tokenizer.kind]})
    return parameter_table(shape)["total"]


def redundant(fields: dict[str, dict[str, Any]]) -> list[str]:
    """Values that can be left out without changing the resolved config (a value is needed if the config is invalid
    without it).
    """
    whole = validate(fields)
    found = []
    for section, values in fields.items():
        for name in values:
            without = copy.deepcopy(fields)
            del without[section][name]
            with contextlib.suppress(ConfigError):
                if validate(without) == whole:
                    found.append(f"{section}.{name}")
    return found


def test_all_are_here():
    assert set(ALL) >= WANTED


def test_each_is_listed_by_the_command_and_in_the_docs(capsys: pytest.CaptureFixture[str]):
    assert main(["config", "recipes"]) == 0
    listed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: Path(path.strip()) for name, path in listed.items()} == dict(ALL)
    for page in ("cheat-sheet.md", "howto/normal-loss.md"):
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        assert not [name for name in ALL if f"`{name}`" not in text], page


@every_recipe
def test_it_is_at_most_40_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


@every_recipe
def test_it_holds_only_what_differs_from_the_defaults(path: Path):
    kept = ["tokenizer.kind"] if "-char" in path.stem else []  # a budget would choose byte pairs
    assert redundant(tree(path)) == kept


def test_a_default_value_in_a_recipe_would_be_found():
    fields = {"model": {"shape": "gpt2", "bias": True, "dropout": 0.1}, "train": {"grad_clip": 1.0, "batch_size": 5}}
    assert redundant(fields) == ["model.bias", "train.grad_clip"]


@every_recipe
def test_it_opens_with_command_time_expectation_and_size(path: Path):
    top = header(path)
    command = "demo" if path.stem == "demo" else f"train {path.stem}"
    assert top[0].startswith(f"# minigpt {command}")
    assert re.search(r"Time: \w", top[1])
    assert re.search(r"GPU|CPU", top[1])
    assert re.search(r"Expect: \w", top[1])
    assert top[2].startswith("# Size: ")


@every_recipe
def test_the_size_in_its_header_is_the_size_of_its_model(path: Path):
    stated = re.search(r"Size: ([\d.]+) M parameters", "\n".join(header(path)))
    assert stated
    assert float(stated[1]) == round(parameters(path) / 1e6, 1)


@pytest.mark.parametrize(("name", "millions"), [("tiny-6.7m", 6.7), ("small-25m", 25), ("gpt2-124m", 124)])
def test_the_size_in_its_name_is_the_size_of_its_model(name: str, millions: float):
    assert parameters(ALL[name]) / 1e6 == pytest.approx(millions, rel=0.035)


@pytest.mark.parametrize(
    ("name", "batch", "steps", "dropout"),
    [("nanogpt-shakespeare-char", 64, 5000, 0.2), ("nanogpt-shakespeare-char-cpu", 12, 2000, 0.0)],
)
def test_the_nanogpt_recipes_have_nanogpts_settings(name: str, batch: int, steps: int, dropout: float):
    """The settings of config/train_shakespeare_char.py, train.py and model.py, and of the README's flags for a CPU."""
    config = load_config(name)
    model, optimizer, schedule = config.model, config.optimizer, config.schedule
    assert (model.norm, model.norm_eps, model.position, model.activation) == ("layernorm", 1e-5, "learned", "gelu")
    assert (model.bias, model.qk_norm, model.tie_embeddings, model.init_std) == (False, False, True, 0.02)
    assert (optimizer.kind, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 1e-3, 0.1)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.99, 1e-8)
    assert (schedule.kind, schedule.warmup_steps, schedule.min_lr_ratio) == ("cosine", 100, 0.1)
    assert (model.dropout, config.train.batch_size, config.train.max_steps) == (dropout, batch, steps)
    assert (config.train.grad_clip, config.train.eval_every, config.data.val_fraction) == (1.0, 250, 0.1)


def test_the_command_in_gpt2_124m_trains_a_gpt2_as_nanogpt_does():
    """The length, split and evaluations of nanoGPT's config/train_gpt2.py; the recipe's own end far too soon."""
    text = " ".join(line.removeprefix("#").strip() for line in header(ALL["gpt2-124m"])[3:])
    flags, words = split_flags(shlex.split(text.partition("2.85):")[2]))
    config = load_config("gpt2-124m", flags)
    train, schedule = config.train, config.schedule
    assert words[:3] == ["minigpt", "train", "gpt2-124m"] and words[3].startswith("hf:")
    assert (train.max_steps, train.max_epochs, train.early_stopping) == (600_000, None, None)
    assert (train.batch_size, train.eval_every, config.data.val_fraction) == (480, 1000, 0.0005)
    assert (config.model.dropout, config.optimizer.learning_rate, schedule.warmup_steps) == (0, 6e-4, 2000)


def test_gpt2_124m_has_the_parameters_of_openais():
    """124,439,808 in transformers' GPT2LMHeadModel; ours has 47 more rows, which pad the vocabulary to 64."""
    assert parameters(ALL["gpt2-124m"]) == 124_439_808 + (50304 - 50257) * 768


@pytest.mark.parametrize(
    ("name", "layers", "heads", "width", "context", "hidden", "tokenizer"),
    [
        ("shakespeare-char", 4, 2, 128, 256, 384, "char"),
        ("shakespeare-char-cpu", 2, 2, 128, 256, 384, "char"),
        ("nanogpt-shakespeare-char", 6, 6, 384, 256, 1536, "char"),
        ("nanogpt-shakespeare-char-cpu", 4, 4, 128, 64, 512, "char"),
        ("wikitext2-22m", 4, 8, 256, 128, 1024, "gpt2"),
        ("tiny-6.7m", 2, 4, 128, 512, 512, "gpt2"),
        ("small-25m", 6, 8, 512, 1024, 2048, "bpe"),
        ("gpt2-124m", 12, 12, 768, 1024, 3072, "gpt2"),
    ],
)
def test_it_has_the_shape_it_is_known_for(
    name: str, layers: int, heads: int, width: int, context: int, hidden: int, tokenizer: str
):
    config = load_config(name)
    model: ModelConfig = config.model
    found = (model.num_layers, model.num_heads, model.embed_dim, model.max_seq_len, model.hidden_dim)
    assert (*found, config.tokenizer.kind) == (layers, heads, width, context, hidden, tokenizer)
