"""Test weights in 8 and 4 bits: exact round trips, bounded errors, and runs on the disk that every command can use."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from tuned_run import make_base

from minigpt import GPT, ModelConfig, load_run, load_template, prepare_decoding, quantize_run
from minigpt.cli import main
from minigpt.errors import CheckpointError, ConfigError, DataError, RunError
from minigpt.generation.fast import prepare
from minigpt.generation.fast.prepare import PackedLinear, RowLinear
from minigpt.runs.compare import cautions, grouped
from minigpt.runs.finetune import merge_run
from minigpt.runs.quantize import pack_weights
from minigpt.runs.record import read_run
from minigpt.weights import checkpoint
from minigpt.weights.huggingface import config_to_hf, weights_to_hf
from minigpt.weights.quantized import GROUPS, pack, packed_group, unpack, unpack_all

WORDS = "the cat sat on a mat and saw the dog who ran to the red barn by the old mill".split()
SHAPE = ModelConfig(vocab_size=70, embed_dim=64, num_heads=4, num_layers=2, max_seq_len=32, init_std=0.3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


# --- matrices ------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.sampled_from([(8, 64), *((4, group) for group in GROUPS)]),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(-34, 30),
    st.sampled_from(["normal", "sparse", "one sign", "outlier", "zero"]),
    st.integers(0, 10**6),
)
def test_what_is_packed_comes_back_bit_for_bit(kind, rows: int, groups: int, power: int, shape: str, seed: int) -> None:
    bits, group = kind
    weight = normal(rows, groups * group, seed=seed)
    if shape == "sparse":
        weight *= normal(*weight.shape, seed=seed + 1) > 1
    elif shape == "one sign":
        weight = weight.abs() + 1
    elif shape == "outlier":
        weight[0, -1] = -1e4
    elif shape == "zero":
        weight.zero_()
    packed = pack(weight * 10.0**power, bits, group)
    whole = unpack(packed)
    assert same(pack(whole, bits, group), packed)
    assert torch.equal(unpack(pack(whole, bits, group)), whole)
    assert bits == 8 or (packed_group(whole) or 0) >= group, "the group size is found from the weights"


@settings(max_examples=100)
@given(st.sampled_from(GROUPS), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
def test_no_group_loses_more_than_its_largest_number_allows(group: int, rows: int, count: int, seed: int) -> None:
    weight = normal(rows, count * group, seed=seed)
    error = (unpack(pack(weight, 4, group)) - weight).unflatten(1, (-1, group))
    parts = weight.unflatten(1, (-1, group))
    step = parts.abs().amax(2, keepdim=True) / 8
    steps = parts / step * -parts.gather(2, parts.abs().argmax(2, keepdim=True)).sign()  # the largest is at -8
    first = torch.where(steps > 7.48, 1.04, 0.52) * step  # the largest error of the first scale, rounded to bf16
    assert (error.square().sum(2) <= first.square().sum(2)).all(), "a smaller scale is taken where it is better"
    assert (error.abs() <= 0.31 * 8 * step).all(), "no number is clipped below 0.7 of the largest"
    halves = (unpack(pack(weight, 8)) - weight).abs()
    assert (halves <= 0.505 * weight.abs().amax(1, keepdim=True) / 127).all()


def test_a_hand_made_matrix_packs_as_the_docstring_says() -> None:
    small = pack(torch.tensor([[1.0, -127.0]]), 8)
    assert small["int8"].tolist() == [[1, -127]] and small["scale"].tolist() == [1]
    row = torch.zeros(1, 32)
    row[0, :4] = torch.tensor([8.0, -7.0, 3.0, 0.4])
    packed = pack(row, 4, 32)  # 8 becomes -8 times a scale of -1
    assert packed["scale"].tolist() == [[-1]] and packed["int4"].shape == (1, 16)
    assert packed["int4"][0, :3].tolist() == [0 | (7 + 8) << 4, (8 - 3) | 8 << 4, 8 | 8 << 4]
    assert unpack(packed)[0, :5].tolist() == [8, -7, 3, 0, 0]


def test_int8_is_what_torchs_quantiser_gives_for_our_scales() -> None:
    weight = normal(40, 96)
    packed = pack(weight, 8)
    zeros = torch.zeros(40, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, packed["scale"].float(), zeros, 0, -127, 127)
    assert torch.equal(theirs, unpack(packed))


def test_smaller_groups_and_more_bits_are_nearer() -> None:
    weight = normal(64, 256)
    losses = [(unpack(pack(weight, *kind)) - weight).std().item() for kind in ((4, 128), (4, 64), (4, 32), (8, 64))]
    print(f"int4 in 128, 64, 32, int8: errors of {', '.join(f'{loss:.4f}' for loss in losses)}")
    assert losses == sorted(losses, reverse=True) and losses[2] < 0.09 and losses[3] < 0.01


def test_what_pack_never_made_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide 48"):
        pack(normal(4, 48), 4, 32)
    for weight, bits in ((normal(4, 64) / 0, 4), (normal(4, 64) * math.nan, 8), (normal(64), 8), (normal(4, 64), 5)):
        with pytest.raises(ValueError, match="finite numbers can be packed"):
            pack(weight, bits)
    good = pack(normal(4, 64), 4, 32)
    for wrong in (
        {"int4": good["int4"]},
        {"scale": good["scale"]},
        good | {"int8": good["int4"]},
        good | {"scale": good["scale"].float()},
        good | {"scale": good["scale"][:, :1].repeat(1, 3)},
        good | {"int4": good["int4"][:, :5]},
        good | {"int4": good["int4"].to(torch.int8)},
        {"int8": good["int4"].to(torch.int8), "scale": good["scale"]},
        {"int8": torch.zeros((), dtype=torch.int8), "scale": good["scale"]},
    ):
        with pytest.raises(ValueError, match=r"a\.weight"):
            unpack_all({f"a.weight.{part}": tensor for part, tensor in wrong.items()})


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bias", [True, False])
def test_torchs_int4_kernel_equals_the_reference(group: int, bias: bool) -> None:
    if not prepare._int4_kernel():
        pytest.skip("torch has no int4 kernel here")
    linear = nn.Linear(256, 48, bias=bias)
    linear.weight.data = normal(48, 256)
    whole = unpack(pack(linear.weight.detach(), 4, group))
    with torch.inference_mode():
        for shape in ((256,), (1, 256), (2, 5, 256), (70, 256)):
            x = normal(*shape, seed=1)
            right = F.linear(
                x.bfloat16().double(), whole.double(), None if linear.bias is None else linear.bias.double()
            )
            size = F.linear(x.abs(), whole.abs())
            made = PackedLinear(linear, group)(x)
            assert made.shape == right.shape and made.dtype == torch.float32
            assert ((made - right).abs() <= right.abs() / 256 + 1e-5 * size + 1e-6).all(), "bf16 rounds the result"


def logits(model: GPT) -> torch.Tensor:
    tokens = torch.randint(70, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model(tokens)


def test_fewer_bits_are_further_from_fp32_but_not_far() -> None:
    right, distance = logits(GPT(SHAPE, seed=4)), {}
    for precision in ("int8", "int4"):
        made = logits(prepare_decoding(GPT(SHAPE, seed=4), precision))
        distance[precision] = ((made - right).std() / right.std()).item()
    print(f"logits differ by {distance} of their deviation")
    assert 0 < distance["int8"] < 0.05 < distance["int4"] < 0.5, "random weights make the error of int4 larger"


def test_without_the_kernel_int4_is_its_numbers_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    native = logits(prepare_decoding(GPT(SHAPE, seed=4), "int4"))
    monkeypatch.setattr(prepare, "_int4_kernel", lambda: False)
    model = prepare_decoding(GPT(SHAPE, seed=4), "int4")
    assert all(type(module) is not PackedLinear for module in model.modules())
    weight = GPT(SHAPE, seed=4).blocks[1].feed_forward.up.weight.detach()
    up = model.blocks[1].feed_forward.up
    assert up.weight.dtype == torch.float32 and torch.equal(up.weight, unpack(pack(weight, 4, 64)))
    assert ((logits(model) - native).std() / native.std()) < 0.03  # the kernel rounds vectors to bf16


def test_a_kernel_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: torch.zeros(3, 32))
    prepare._int4_kernel.cache_clear()
    with pytest.warns(UserWarning, match="computes wrongly"):
        assert not prepare._int4_kernel()
    prepare._int4_kernel.cache_clear()


def test_a_model_too_narrow_for_int4_is_reported_and_left_unchanged() -> None:
    model = GPT(SHAPE.model_copy(update={"ff_dim": 50}), seed=4)
    right = logits(model)
    with pytest.raises(ConfigError, match=r"feed_forward\.down have 50; use int8"):
        prepare_decoding(model, "int4")
    assert torch.equal(logits(model), right)
    with pytest.raises(ValueError, match="prepared already"):
        prepare_decoding(prepare_decoding(GPT(SHAPE), "int4"), "int4")


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a character model, about 100k weights; tests copy it before they break it."""
    folder = tmp_path_factory.mktemp("quantize")
    lines = [" ".join(WORDS[(3 * i + j * (1 + i % 4)) % len(WORDS)] for j in range(9)) + ".\n" for i in range(400)]
    (folder / "cats.txt").write_text("".join(lines))
    argv = ["train", folder / "cats.txt", "--logging.runs-dir", folder, "--name", "cats", "--logging.plots", "false"]
    argv += "--model.embed-dim 64 --model.num-heads 2 --model.num-layers 2 --model.max-seq-len 32".split()
    argv += "--train.batch-size 8 --train.max-steps 40 --train.device cpu --train.precision fp32".split()
    argv += "--train.compile off --schedule.warmup-steps 5 --optimizer.learning-rate 2e-2".split()
    assert main([str(word) for word in argv]) == 0
    return folder / "cats"


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 0
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a UserError prints."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("minigpt: ") and said.out == "", said
    return lines[0]


def numbers(model: GPT) -> dict[str, torch.Tensor]:
    """The int8 integers that a prepared model multiplies by."""
    return {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, RowLinear)}


def test_the_command_writes_a_run_that_every_command_takes(trained: Path, tmp_path: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    bits_per_byte = json.loads(run(capsys, "eval", trained, "--json"))["bits_per_byte"]
    lost, sizes = {}, {}
    for kind in (["--bits", "8"], ["--bits", "4", "--group", "32"], ["--embedding-bits", "4"]):
        out = tmp_path / "-".join(kind).strip("-")
        report = json.loads(run(capsys, "quantize", trained, *kind, "--out", out, "--json", "--tokens", "1000000"))
        assert list(report) == [
            "run", "path", "bits", "group", "embedding_bits", "weights", "bytes_before", "bytes_after",
            "bits_per_weight", "bits_per_byte_before", "bits_per_byte_after", "tokens",
        ]  # fmt: skip
        assert report["bits_per_byte_before"] == pytest.approx(bits_per_byte, abs=1e-6)
        again = json.loads(run(capsys, "eval", out, "--json"))
        assert again["bits_per_byte"] == pytest.approx(report["bits_per_byte_after"], abs=1e-6) and again["step"] == 40
        file = next(out.rglob("model.safetensors"))
        assert file.stat().st_size == report["bytes_after"]
        packed = load_file(file)
        kept = sum(tensor.numel() for tensor in packed.values() if tensor.dtype == torch.float32)
        # sizes without the file's header, about 100 bytes a tensor, and without norms and biases
        matrices = sum(tensor.nbytes for tensor in packed.values()) - 4 * kept
        sizes[out.name] = round(8 * matrices / (report["weights"] - kept), 2)
        lost[out.name] = again["bits_per_byte"] - bits_per_byte
    for path in (out, out / "checkpoints/last", next(out.glob("checkpoints/step-*"))):
        text = run(capsys, "generate", path, "--prompt", "the cat", "--max-new-tokens", "20")
        assert text.startswith("the cat") and len(text) == 28
    print(f"bits per weight {sizes}, bits per byte lost {lost}")
    eight, four, all_four = sizes.values()
    assert 8.1 < eight < 8.3 and 4.5 < four < 5.0 and all_four == 4.25
    assert abs(lost["bits-8"]) < 1e-3 < lost["bits-4---group-32"] < 0.06
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_the_line_says_sizes_and_bits_per_byte(trained: Path, tmp_path: Path, capsys) -> None:
    line = run(capsys, "quantize", trained, "--out", tmp_path / "a", "--tokens", 100)
    assert line.count("\n") == 1 and "MB -> " in line and "bits per weight; bits per byte" in line
    assert line.endswith(" on 99 validation tokens\n")
    assert "byte" not in run(capsys, "quantize", trained, "--out", tmp_path / "b", "--tokens", 0).split("weight")[-1]


def test_int8_decoding_uses_the_integers_on_the_disk(trained: Path, tmp_path: Path) -> None:
    done = quantize_run(trained, bits=8, out=tmp_path / "int8")
    stored = load_file(next(done.path.rglob("model.safetensors")))
    model = prepare_decoding(GPT.from_pretrained(done.path), "int8")
    used = {name.removesuffix(".int8"): weight for name, weight in stored.items() if name.endswith(".int8")}
    for name, layer in model.named_modules():
        if isinstance(layer, RowLinear):
            key = f"{name.replace('.block.', '.')}.weight"
            key = key if key in used else "embedding.weight"  # a tied head
            assert torch.equal(layer.weight, used[key]) and torch.equal(layer.scale, stored[f"{key}.scale"].float())
    first = GPT.from_pretrained(trained)
    assert numbers(model).keys() == numbers(prepare_decoding(first, "int8")).keys()
    assert len(numbers(model)) == 9 and all(map(torch.equal, numbers(model).values(), numbers(first).values()))


@pytest.mark.parametrize("group", [32, 64])
def test_int4_decoding_uses_the_integers_on_the_disk(trained: Path, tmp_path: Path, group: int, capsys) -> None:
    done = quantize_run(trained, 4, group, tmp_path / "int4", embedding_bits=4)
    loaded = GPT.from_pretrained(done.path)
    whole = loaded.blocks[0].attention.qkv.weight.detach().clone()
    assert packed_group(whole) == group == packed_group(loaded.head.weight)
    assert packed_group(GPT.from_pretrained(trained).head.weight) is None
    model = prepare_decoding(loaded, "int4")
    if prepare._int4_kernel():
        layer = model.blocks[0].attention.qkv
        assert isinstance(layer, PackedLinear) and isinstance(model.head, PackedLinear) and layer.group == group
        with torch.inference_mode():
            made = layer(torch.eye(64)) - (0 if layer.bias is None else layer.bias)
        torch.testing.assert_close(made.T, whole, rtol=1 / 256, atol=0)  # bf16 results
    assert run(capsys, "generate", done.path, "--precision", "int4", "--prompt", "the cat").startswith("the cat")


def test_packing_a_loaded_run_again_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    for bits, embedding_bits in ((8, 8), (4, 8), (4, 4)):
        done = quantize_run(trained, bits, 32, tmp_path / f"{bits}{embedding_bits}", embedding_bits)
        assert read_run(done.path).parameters == read_run(trained).parameters, "weights are counted, not bits"
        again = pack_weights(GPT.from_pretrained(done.path).weights(), bits, 32, embedding_bits)
        assert same(again, load_file(next(done.path.rglob("model.safetensors"))))


def test_a_hugging_face_directory_is_quantised_too(trained: Path, tmp_path: Path, capsys) -> None:
    fields = {"shape": "gpt2", "vocab_size": load_run(trained, "cpu").tokenizer.vocab_size}
    model = GPT(ModelConfig.model_validate(SHAPE.model_dump(include={"embed_dim", "num_heads", "init_std"}) | fields))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(config_to_hf(model.config)))
    save_file(weights_to_hf(model.config, model.weights()), tmp_path / "hf/model.safetensors")
    shutil.copy(trained / "tokenizer.json", tmp_path / "hf")
    line = run(capsys, "quantize", tmp_path / "hf", "--bits", "8")
    assert line.startswith(f"{tmp_path}/hf-int8: ") and "byte" not in line.split("weight")[-1]
    ids = torch.arange(20)[None] % fields["vocab_size"]
    with torch.inference_mode():
        right, made = model.eval()(ids), load_run(tmp_path / "hf-int8", "cpu").model(ids)
    assert ((made - right).std() / right.std()) < 0.05


def test_a_quantised_hugging_face_directory_is_a_run_like_an_imported_one(tmp_path: Path, capsys) -> None:
    base, theirs = make_base(tmp_path / "base"), tmp_path / "hf"
    theirs.mkdir()
    model = GPT.from_pretrained(base)
    (theirs / "config.json").write_text(json.dumps(config_to_hf(model.config)))
    save_file(weights_to_hf(model.config, model.weights()), theirs / "model.safetensors")
    shutil.copy(base / "tokenizer.json", theirs)
    made = quantize_run(theirs, 8).path
    assert (read_run(made).state, read_run(made).config.model.embed_dim) == ("finished", 32)
    for path in (made, made / "checkpoints/last"):
        with pytest.raises(DataError, match="was imported, so it has no text of its own"):
            load_run(path, "cpu").prepared()
    assert main(["quantize", str(theirs), "--out", str(tmp_path / "small"), "--group", "32", "--tokens", "100"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"bits per byte not measured: {theirs}: is a model alone, so it has no text of its own" in said


def test_a_checkpoint_in_parts_is_quantised_like_a_whole_one(trained: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    parts = tmp_path / "parts"
    shutil.copytree(trained, parts)
    step = checkpoint.resolve(parts)
    saved = checkpoint.load(step, ("model", "optimizer"))
    named = {f"{part}/{name}": tensor for part, some in saved.tensors.items() for name, tensor in some.items()}
    work = tmp_path / "work"
    save(named, storage_writer=HuggingFaceStorageWriter(str(work), save_distributed=True), no_dist=True)
    checkpoint.seal(work, step, saved.state)
    assert not (step / "model.safetensors").exists()
    whole, done = (quantize_run(run, 8, out=tmp_path / f"{run.name}-8") for run in (trained, parts))
    assert checkpoint.load(done.path).weights.keys() == checkpoint.load(whole.path).weights.keys()
    assert done.bytes_after == whole.bytes_after
    assert done.bytes_before == 4 * done.weights


def test_fine_weights_are_the_ones_that_were_averaged(trained: Path, tmp_path: Path) -> None:
    """If a run keeps an average of its weights, the average is packed."""
    saved = checkpoint.load(trained)
    average = {name: 2 * tensor for name, tensor in saved.weights.items()}
    target = checkpoint.save(tmp_path / "run/checkpoints/step-00000040", {**saved.tensors, "ema": average}, saved.state)
    shutil.copy(trained / "tokenizer.json", tmp_path / "run")
    (tmp_path / "run/template.json").write_text('{"user": "Ask: {}\\n"}')
    done = quantize_run(tmp_path / "run", 8)
    assert load_template(done.path).user == "Ask: {}\n", "the chat template stays the same"
    assert done.path == tmp_path / "run-int8" and done.bytes_before == (target / "ema.safetensors").stat().st_size
    assert torch.allclose(GPT.from_pretrained(done.path).norm.weight, average["norm.weight"])


def test_a_copy_keeps_the_receipt_and_is_no_seed_of_its_run(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    receipt = {"data": {"sha256": {"train": "1", "val": "2"}}}
    (base / "receipt.json").write_text(json.dumps(receipt))
    runs = [read_run(path) for path in (base, quantize_run(base, 8).path, merge_run(base, tmp_path / "merged"))]
    assert runs[1].receipt == receipt and cautions(runs) == []
    with pytest.raises(CheckpointError, match="training cannot continue from it; fine-tune it"):
        assert checkpoint.load(runs[1].path).train
    assert [[run.name for run in group.runs] for group in grouped(runs)] == [["base"], ["base-int8"], ["merged"]]


def test_mistakes_are_named_in_one_line(trained: Path, tmp_path: Path, capsys) -> None:
    quantize_run(trained, 4, 64, tmp_path / "int4")
    assert "quantised already, to int4; give the run" in fails(capsys, "quantize", tmp_path / "int4", "--bits", "8")
    said = fails(capsys, "quantize", trained, "--out", tmp_path / "int4")
    assert "exists, and nothing is overwritten" in said and "--out" in said
    assert "no such run" in fails(capsys, "quantize", tmp_path / "nowhere")
    assert "--group 32 or 64" in fails(capsys, "quantize", trained, "--group", "128")
    assert "64" in fails(capsys, "quantize", trained, "--group", "48")
    assert "tokens: 1" in fails(capsys, "quantize", trained, "--tokens", "1")
    assert not (tmp_path / "cats-int4").exists()
    for bits, group, embedding_bits in ((3, 64, 8), (4, 16, 8), (4, 64, 2)):
        with pytest.raises(ConfigError, match="is not possible; choose from"):
            quantize_run(trained, bits, group, tmp_path / "never", embedding_bits)
    narrow = {"blocks.0.attention.qkv.weight": torch.ones(2, 36), "embedding.weight": torch.ones(2, 36)}
    with pytest.raises(ConfigError, match=r"does not divide the 36 columns of blocks\.0.* --bits 8"):
        pack_weights(narrow, 4, 32, 8)
    assert len(pack_weights(narrow, 8, 32, 4)) == 4
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        pack_weights({"norm.weight": torch.tensor([math.nan])}, 8, 64, 8)
    with pytest.raises(RunError):
        quantize_run(trained, out=tmp_path)
    saved = checkpoint.load(trained)
    checkpoint.save(tmp_path / "lora/checkpoints/step-00000040", {"adapter": saved.weights}, saved.state)
    assert "is an adapter" in fails(capsys, "quantize", tmp_path / "lora")
    shutil.rmtree(tmp_path / "lora")
    assert {path.name for path in tmp_path.iterdir()} == {"int4"}, "no half-written run stays"


def test_a_damaged_quantised_run_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    quantize_run(trained, 4, 64, tmp_path / "int4")
    folder = next((tmp_path / "int4").glob("checkpoints/step-*"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "damaged" in fails(capsys, "generate", tmp_path / "int4", "--prompt", "a")
    (folder / "model.safetensors").write_bytes(whole)
    saved = checkpoint.load(folder)
    lacking = {name: tensor for name, tensor in saved.weights.items() if name != "blocks.1.attention.out.weight.scale"}
    checkpoint.save(folder, {"model": lacking}, saved.state)  # the manifest is right, but a tensor is missing
    said = fails(capsys, "eval", tmp_path / "int4")
    assert "packed weights do not fit" in said and "blocks.1.attention.out.weight" in said


def test_help_and_the_command_need_no_torch_until_it_works() -> None:
    code = "import sys; from minigpt.cli import quantize; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "False\n"
