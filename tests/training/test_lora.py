"""Test LoRA: the same logits as peft, a base that does not change, adapters that know their base."""

import json
from pathlib import Path

import pytest
import torch
from foreign_model import twin
from safetensors.torch import save_file

from minigpt.config import GenerationConfig, ModelConfig, OptimizerConfig
from minigpt.config.finetune import LoRAConfig
from minigpt.errors import CheckpointError, ConfigError
from minigpt.generation import generate
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.model import GPT
from minigpt.runtime.device import make_runtime
from minigpt.training import accumulate, make_optimizer, update
from minigpt.training.finetune import (
    Adapters,
    LoRALinear,
    adapter,
    add_lora,
    find_adapters,
    fingerprint,
    load_adapter,
    load_saved,
    merge,
    remove,
    save_adapter,
    to_peft,
    unmerge,
)
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState
from minigpt.weights.huggingface import weights_from_hf, weights_to_hf

GPT2 = ModelConfig(
    shape="gpt2", vocab_size=70, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=24, ff_dim=72, init_std=0.2
)
MODERN = ModelConfig(
    shape="modern", vocab_size=70, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=10, ff_dim=72, num_layers=2,
    max_seq_len=24, tie_embeddings=False, init_std=0.2,
)  # fmt: skip
TOKENS = torch.randint(70, (3, 24), generator=torch.Generator().manual_seed(1))


def shaken(model: GPT, scale: float = 0.1, seed: int = 2) -> GPT:
    """Change an adapter as training would, so that its B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(shape: ModelConfig = MODERN, seed: int = 2, **fields: object) -> tuple[GPT, LoRAConfig]:
    config = LoRAConfig.model_validate({"rank": 3, "alpha": 5.0} | fields)
    return shaken(add_lora(GPT(shape, seed=4).eval(), config, seed), seed=seed), config


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    return model(TOKENS)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("shape", [GPT2, MODERN], ids=["gpt2", "modern"])
@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 4, "alpha": 12.0},
        {"rank": 6, "alpha": 3.0, "rslora": True},
        {"rank": 2, "targets": ["qkv", "blocks.1.*.down"]},
    ],
    ids=str,
)
def test_peft_gives_the_same_logits(shape: ModelConfig, fields: dict[str, object], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, config = adapted(shape, **fields)
    theirs_config, theirs_tensors = to_peft(shape, config, adapter(model))
    (tmp_path / "adapter_config.json").write_text(json.dumps(theirs_config))
    save_file(theirs_tensors, tmp_path / "adapter_model.safetensors")
    base = GPT(shape, seed=4).eval()
    other = twin(base)
    with torch.no_grad():
        plain = other(TOKENS).logits
        theirs = peft.PeftModel.from_pretrained(other, str(tmp_path)).eval()(TOKENS).logits
    ours = logits(model)
    print(f"ours to peft {distance(ours, theirs):.1e}; with and without the adapter {distance(theirs, plain):.1f}")
    assert distance(logits(base), plain) < 1e-5
    assert distance(ours, theirs) < 1e-5
    assert distance(theirs, plain) > 0.1


def test_the_head_too_goes_to_peft_without_its_padding(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, config = adapted(MODERN, targets="head")
    fields, tensors = to_peft(MODERN, config, adapter(model))
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    other = twin(GPT(MODERN, seed=4))
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(other, str(tmp_path)).eval()(TOKENS).logits
    assert adapter(model)["head.lora_B"].shape == (MODERN.padded_vocab_size, 3)
    assert distance(logits(model), theirs) < 1e-5


@pytest.mark.parametrize("shape", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_a_fresh_adapter_changes_nothing_at_all(shape: ModelConfig) -> None:
    base = logits(GPT(shape, seed=4).eval())
    model = add_lora(GPT(shape, seed=4).eval(), LoRAConfig(dropout=0.5))
    assert len([layer for layer in model.modules() if isinstance(layer, LoRALinear)]) == 4 * shape.num_layers
    assert torch.equal(logits(model), base)


def test_the_seed_decides_a_and_torchs_generator_is_left_alone() -> None:
    models = [GPT(MODERN) for _ in range(3)]
    before = torch.get_rng_state()
    one, again, other = (
        adapter(add_lora(model, LoRAConfig(rank=4), seed)) for model, seed in zip(models, (1, 1, 2), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), before)
    name = "blocks.1.feed_forward.down.lora_A"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    fan_in = one[name].shape[1]
    assert 0.9 * fan_in**-0.5 < one[name].abs().max() <= fan_in**-0.5
    reference = torch.nn.Linear(fan_in, 4000)  # torch's own linear layers are kaiming-uniform with a = sqrt(5)
    assert one[name].std() == pytest.approx(reference.weight.std().item(), rel=0.1)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_moves_a_and_b_and_nothing_else(kind: str) -> None:
    model = add_lora(GPT(MODERN, seed=4), LoRAConfig(rank=4, dropout=0.1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind, learning_rate=1e-2, weight_decay=0.1))
    runtime = make_runtime("cpu", "fp32")
    losses: list[float] = []
    for step in range(30):
        loss = accumulate(model.train(), [(TOKENS[:, :-1], TOKENS[:, 1:])], runtime=runtime, step=step)
        update(model, optimizer, runtime=runtime)
        losses.append(loss.item())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(adapter(model))
    assert {name for name, p in model.named_parameters() if p.grad is not None} == moved
    numbers = sum(tensor.numel() for tensor in adapter(model).values())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} by {numbers} of {sum(p.numel() for p in model.parameters())}")
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_are_those_of_the_formula() -> None:
    linear = torch.nn.Linear(7, 5, dtype=torch.float64)
    config = LoRAConfig(rank=3, alpha=2.0, rslora=True)
    layer = LoRALinear(linear, config, torch.Generator().manual_seed(0))
    layer.weight.requires_grad_(False)
    layer.lora_B.data.normal_()
    x = torch.randn(4, 7, dtype=torch.float64)
    layer(x).square().sum().backward()
    a, b = (part.detach().clone().requires_grad_() for part in (layer.lora_A, layer.lora_B))
    whole = torch.func.functional_call(linear, {"weight": linear.weight.detach() + 2 / 3**0.5 * b @ a}, (x,))
    whole.square().sum().backward()
    for part, wanted in ((layer.lora_A, a), (layer.lora_B, b)):
        torch.testing.assert_close(part.grad, wanted.grad, rtol=1e-12, atol=1e-12)
    assert layer.weight.grad is None


def test_dropout_acts_in_training_only_and_on_the_adapter_only() -> None:
    model, config = adapted(dropout=0.5)
    plain, _ = adapted()
    assert torch.equal(logits(model), logits(plain))
    model.train()
    assert distance(logits(model), logits(model)) > 1e-3
    for layer in (module for module in model.modules() if isinstance(module, LoRALinear)):
        layer.lora_B.data.zero_()
    assert torch.equal(logits(model), logits(GPT(MODERN, seed=4)))
    assert config.dropout == 0.5


@pytest.mark.parametrize("shape", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_merged_equals_adapted_and_going_back_is_exact_to_the_bit(shape: ModelConfig) -> None:
    base, (model, _) = GPT(shape, seed=4).eval(), adapted(shape)
    wanted, trained = logits(model), {name: t.clone() for name, t in model.state_dict().items()}
    aside = merge(model)
    print(f"merged to adapted: {distance(logits(model), wanted):.1e}; to base: {distance(wanted, logits(base)):.1f}")
    assert distance(logits(model), wanted) < 1e-5 < 0.1 < distance(wanted, logits(base))
    assert {type(m) for m in model.modules()} == {type(m) for m in base.modules()}
    assert all(p.requires_grad for p in model.parameters())
    unmerge(model, aside)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), wanted)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter(model))
    remove(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_merging_is_exact_up_to_rounding_and_not_undone_by_subtracting() -> None:
    model, _ = adapted()
    wanted = logits(model.double())
    name = "blocks.0.attention.qkv"
    base = model.float().get_submodule(name).weight
    layer = merge(model)[name]
    subtracted = model.get_submodule(name).weight - layer.scale * layer.lora_B @ layer.lora_A
    assert torch.equal(layer.weight, base)
    assert not torch.equal(subtracted, base), "subtracting does not give the same bits, so the weights are kept"
    double, _ = adapted()
    merge(double.double())
    assert distance(logits(double), wanted) < 1e-12


def test_a_checkpoint_of_the_merged_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model, _ = adapted()
    wanted = logits(model)
    merge(model)
    checkpoint.save(
        tmp_path / "merged", {"model": model.weights()}, CheckpointState(model=MODERN.model_dump(mode="json"))
    )
    back = GPT.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(back), logits(model))
    assert distance(logits(back), wanted) < 1e-5
    greedy = GenerationConfig(max_new_tokens=12, temperature=0)
    slow = torch.stack(list(generate(adapted()[0], TOKENS[:1, :4], greedy)))
    assert torch.equal(torch.stack(list(generate(prepare_decoding(back, "fp32"), TOKENS[:1, :4], greedy))), slow)


def test_a_training_checkpoint_with_its_adapter_resumes(tmp_path: Path) -> None:
    model, config = adapted()
    checkpoint.save(tmp_path / "step", {"model": model.weights()}, CheckpointState(model={}))
    again = add_lora(GPT(MODERN, seed=9).eval(), config)
    again.load_weights(checkpoint.load(tmp_path / "step").tensors["model"])
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_survives_the_disk_and_is_small(tmp_path: Path) -> None:
    model, config = adapted(rank=5, alpha=7.5, rslora=True, dropout=0.2, targets=("qkv", "blocks.0.*.up"))
    save_adapter(tmp_path / "run" / "adapters" / "pirate", model, config, base="runs/my")
    saved = load_saved(tmp_path / "run" / "adapters" / "pirate")
    assert (saved.config, saved.base, saved.sha256) == (config, "runs/my", fingerprint(GPT(MODERN, seed=4)))
    back = load_adapter(GPT(MODERN, seed=4).eval(), saved.tensors, saved.config)
    assert torch.equal(logits(back), logits(model))
    names = {path.name for path in saved.path.iterdir()}
    assert names == {"adapter.safetensors", "state.json", "manifest.json"}
    size = (saved.path / "adapter.safetensors").stat().st_size
    numbers = sum(tensor.numel() for tensor in adapter(model).values())
    assert 4 * numbers < size < 4 * numbers + 2000
    assert find_adapters(tmp_path / "run") == {"pirate": saved.path}


def test_adapters_of_one_base_are_switched_and_leave_it_alone(tmp_path: Path) -> None:
    made = {"one": adapted(seed=2), "two": adapted(seed=3, rank=6, alpha=2.0, targets=("up",), rslora=True)}
    wanted = {name: logits(model) for name, (model, _) in made.items()}
    for name, (model, config) in made.items():
        save_adapter(tmp_path / "adapters" / name, model, config)
    base = GPT(MODERN, seed=4).eval()
    plain = logits(base)
    adapters = Adapters(base)
    for name, path in find_adapters(tmp_path).items():
        adapters.load(name, path)
    assert torch.equal(logits(base), plain)
    for name in ("one", "two", "one", "one", "two"):
        assert torch.equal(logits(adapters.use(name)), wanted[name])
    assert torch.equal(logits(base), wanted["two"])  # the model is changed in place, so other references see the change
    assert torch.equal(logits(adapters.use(None)), plain)
    adapters.use("one")
    with pytest.raises(CheckpointError, match=r"no adapter is called 'tow'; did you mean two\?"):
        adapters.use("tow")
    assert torch.equal(logits(base), wanted["one"])
    assert fingerprint(base) == adapters.sha256


def test_an_adapter_for_another_base_is_refused_in_one_line(tmp_path: Path) -> None:
    model, config = adapted()
    save_adapter(tmp_path / "a", model, config, base="runs/my")
    other = Adapters(GPT(MODERN, seed=5))
    with pytest.raises(CheckpointError, match=r"another base \(its base: runs/my, sha256") as caught:
        other.load("a", tmp_path / "a")
    assert "\n" not in str(caught.value)
    merge(model)
    with pytest.raises(CheckpointError, match="another base"):
        Adapters(model).load("a", tmp_path / "a")
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(tmp_path / "b", model, config)


def test_a_base_is_known_again_after_hugging_face_and_by_every_bit() -> None:
    base = GPT(MODERN, seed=4)
    twin = GPT(MODERN)
    twin.load_weights(weights_from_hf(MODERN, weights_to_hf(MODERN, base.weights())))
    assert not torch.equal(twin.embedding.weight, base.embedding.weight), "the padding differs"
    assert fingerprint(twin) == fingerprint(base) == fingerprint(adapted()[0])
    with torch.no_grad():
        twin.norm.weight[3] = torch.nextafter(twin.norm.weight[3], torch.tensor(9.0))
    assert fingerprint(twin) != fingerprint(base)
    assert fingerprint(GPT(MODERN, seed=4).bfloat16()) != fingerprint(base)


def test_a_damaged_adapter_or_another_file_is_refused(tmp_path: Path) -> None:
    model, config = adapted()
    save_adapter(tmp_path / "a", model, config)
    data = bytearray((tmp_path / "a" / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a" / "adapter.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_saved(tmp_path / "a")
    checkpoint.save(
        tmp_path / "b", {"model": GPT(MODERN).weights()}, CheckpointState(model=MODERN.model_dump(mode="json"))
    )
    with pytest.raises(CheckpointError, match="not an adapter"):
        load_saved(tmp_path / "b")
    with pytest.raises(CheckpointError, match="no such"):
        load_saved(tmp_path / "c")


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was() -> None:
    model, config = adapted()
    wanted, tensors = logits(model), adapter(adapted()[0])
    more = {"rank": config.rank + 1}
    with pytest.raises(CheckpointError, match=r"lora_A is \(3, 40\), not \(4, 40\), and 15 more"):
        load_adapter(model, tensors, config.model_copy(update=more))
    tensors.pop("blocks.0.attention.qkv.lora_B")
    with pytest.raises(CheckpointError, match=r"qkv\.lora_B is missing, not"):
        load_adapter(model, tensors, config)
    with pytest.raises(ConfigError, match="upp"):
        load_adapter(model, tensors, config.model_copy(update={"targets": ("upp",)}))
    assert torch.equal(logits(model), wanted)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapter(model))


def test_targets_are_found_by_the_ends_of_names_and_mistakes_are_named() -> None:
    def found(*targets: str) -> set[str]:
        return {name[:-7] for name in adapter(add_lora(GPT(MODERN), LoRAConfig(targets=targets))) if name[-1] == "A"}

    assert found("qkv") == {"blocks.0.attention.qkv", "blocks.1.attention.qkv"}
    assert found("blocks.1.feed_forward.*", "head") == {
        "blocks.1.feed_forward.up",
        "blocks.1.feed_forward.down",
        "head",
    }
    assert len(found("*")) == 9
    with pytest.raises(ConfigError, match=r"no linear layer is called 'qvk'; did you mean qkv\?"):
        found("qkv", "qvk")
    for targets in ("head", "*"):
        with pytest.raises(ConfigError, match="the head is the embedding"):
            add_lora(GPT(GPT2), LoRAConfig.model_validate({"targets": targets}))
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(adapted()[0], LoRAConfig())
    with pytest.raises(ValueError, match="at least 1"):
        LoRAConfig(targets=())


def test_scale_is_that_of_the_papers() -> None:
    assert LoRAConfig(rank=16, alpha=4).scale == 0.25
    assert LoRAConfig(rank=16, alpha=4, rslora=True).scale == 1.0
    assert LoRAConfig().scale == 2.0


@pytest.mark.slow
def test_a_compiled_view_learns_as_the_eager_model_does() -> None:
    model, _ = adapted(MODERN.model_copy(update={"num_layers": 1}))
    grads = []
    for each in (model.compiled(), model):
        model.zero_grad(set_to_none=True)
        each.loss(TOKENS[:, :-1], TOKENS[:, 1:], valid=TOKENS.numel()).backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() == set(adapter(model))
    worst = max(distance(grads[0][name], grads[1][name]) for name in grads[0])
    print(f"compiled to eager: {worst:.1e} of {max(grad.abs().max().item() for grad in grads[1].values()):.2f}")
    assert worst < 1e-4


@pytest.mark.slow
def test_a_compiled_view_follows_a_switch(tmp_path: Path) -> None:
    shape = MODERN.model_copy(update={"num_layers": 1})
    model, config = adapted(shape)
    save_adapter(tmp_path / "one", model, config)
    base = GPT(shape, seed=4).eval()
    adapters, view, plain = Adapters(base), base.compiled(), logits(base)
    adapters.load("one", tmp_path / "one")
    for name, wanted in ((None, plain), ("one", logits(model)), (None, plain)):
        adapters.use(name)
        assert distance(logits(view), wanted) < 1e-4


def test_an_adapter_is_merged_before_decoding_is_prepared() -> None:
    model, _ = adapted()
    with pytest.raises(ValueError, match="carries an adapter; merge it first"):
        prepare_decoding(model, "fp32")
    merge(model)
    assert prepare_decoding(model, "fp32") is model
