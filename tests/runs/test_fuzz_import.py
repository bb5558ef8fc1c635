"""Test damaged, foreign and hostile files of other programs: one clear line each, no code run, memory bounded."""

import os
import pickle
import random
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from fuzz_watch import Watch
from mostly_slow import mostly_slow
from test_import import CHARS, bytes_file, llama2c, nano

from minigpt import GPT, ModelConfig, import_model
from minigpt.config import load_config
from minigpt.errors import UserError
from minigpt.tokenizers import ByteTokenizer
from minigpt.tokenizers.gguf import to_gguf
from minigpt.weights import gguf_file
from minigpt.weights.gguf import config_to_gguf, weights_to_gguf


def refused(path: Path, *words: str, tokenizer: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        import_model(path, path.with_name("made"), tokenizer)
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    assert not path.with_name("made").exists()
    return said


def small_gguf(path: Path, **changed: object) -> Path:
    config = ModelConfig(shape="gpt2", vocab_size=259, embed_dim=32, num_heads=2, num_layers=1, max_seq_len=16)
    settings = config_to_gguf(config) | to_gguf(ByteTokenizer())
    del settings["tokenizer.huggingface.json"]
    settings |= {name.replace("__", "."): value for name, value in changed.items()}
    gguf_file.write(path, settings, weights_to_gguf(config, GPT(config).weights(), "q8_0"))
    return path


class Runs:
    """A pickle that would run code."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder, _ = nano(tmp_path / "out", config=Runs(trap))
    refused(folder / "ckpt.pt", "could run code", tokenizer=folder / "input.txt")
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Runs(trap)))
    refused(bare, "is not a model that minigpt can read")
    meta = tmp_path / "meta.pkl"
    meta.write_bytes(pickle.dumps({"stoi": {}}))
    folder, _ = nano(tmp_path / "good")
    refused(folder / "ckpt.pt", "is a pickle, which can run code", tokenizer=meta)
    assert not trap.exists()


def test_nanogpt_checkpoints_that_are_not_whole(tmp_path: Path) -> None:
    folder, model = nano(tmp_path / "out")
    file, text = folder / "ckpt.pt", folder / "input.txt"
    saved = torch.load(file, weights_only=True)

    def write(**changed: object) -> Path:
        torch.save(saved | changed, file)
        return file

    weights = dict(saved["model"])
    args = saved["model_args"]
    wide = torch.zeros(1).expand(10**6, 10**6)  # a tensor of 4 TB, stored in four bytes
    head = {"transformer.wte.weight": wide, "lm_head.weight": wide}
    for changed, words in (
        ({"model_args": args | {"n_layer": 3}}, "lack transformer.h.2."),
        ({"model_args": args | {"n_embd": "16"}}, "model_args.n_embd is 16"),
        ({"model_args": args | {"n_layer": 10**9}}, "model_args: model.num_layers"),
        ({"model_args": args | {"n_embd": 10**5}}, "but model_args says"),
        ({"model_args": args | {"block_size": 10**9}}, "a context of 1000000000 is more than"),
        ({"model_args": args | {"softcap": 15}}, "cannot compute a model with model_args.softcap"),
        ({"model_args": None}, "lacks model_args"),
        ({"model": weights | {"extra": torch.ones(2)}}, "this model has no weights extra"),
        ({"model": weights | head, "model_args": args | {"n_embd": 10**6}}, "larger than the file"),
        ({"model": weights | {"lm_head.weight": weights["lm_head.weight"] + 1}}, "is not the embedding"),
        ({"model": weights | {"transformer.wte.weight": "text"}}, "is not a plain tensor"),
        ({"model": [1, 2]}, "has no named weights"),
    ):  # fmt: skip
        refused(write(**changed), words, tokenizer=text)
    torch.save({"transformer.h.0.attn.c_q.weight": torch.ones(2, 2), "lm_head.weight": torch.ones(2, 2)}, file)
    refused(file, "is a model of nanochat", "15 tanh", tokenizer=text)
    write()
    short = tmp_path / "short.txt"
    short.write_text("abc")
    refused(file, "the tokenizer has 3 ids, the model", tokenizer=short)
    refused(file, f"has {len(CHARS)} tokens but no tokenizer", "--tokenizer")
    with zipfile.ZipFile(file) as held:
        parts = {name: held.read(name) for name in held.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as held:
        for name, content in parts.items():
            held.writestr(name, content)
    refused(file, "not packed in the way of torch.save", tokenizer=text)
    assert model


def test_gguf_settings_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert import_model(small_gguf(path), tmp_path / "run").weights
    for changed, words in (
        ({"general__architecture": "mamba"}, "architecture 'mamba' is not one we can read"),
        ({"gpt2__block_count": 10**6}, "model.num_layers"),
        ({"gpt2__block_count": 2}, "lack blk.1."),
        ({"gpt2__embedding_length": 64}, "but its header says"),
        ({"gpt2__context_length": 2**31}, "is more than"),
        ({"gpt2__attention__head_count": 0}, "gpt2.attention.head_count is 0; a number is needed"),
        ({"gpt2__attention__head_count": "two"}, "gpt2.attention.head_count is two; a number is needed"),
        ({"gpt2__attention__sliding_window": 8}, "cannot compute a model with gpt2.attention.sliding_window 8"),
        ({"general__alignment": 0}, "general.alignment is 0"),
        ({"tokenizer__ggml__model": "rwkv"}, "its tokenizer is of the kind 'rwkv'"),
        ({"tokenizer__ggml__pre": "tekken"}, "its pre-tokenizer is 'tekken'"),
        ({"tokenizer__ggml__tokens": ["a"] * 259}, "two of its tokens have the same text"),
        ({"tokenizer__ggml__tokens": ["a", "b"]}, "its tokenizer cannot be read"),
        ({"tokenizer__ggml__token_type": ["a"] * 259}, "its tokenizer cannot be read"),
        ({"tokenizer__ggml__merges": ["a"]}, "its tokenizer cannot be read"),
        ({"tokenizer__huggingface__json": "{"}, "its tokenizer cannot be read"),
        ({"tokenizer__huggingface__json": '{"a":' * 5000}, "its tokenizer cannot be read"),
    ):
        refused(small_gguf(path, **changed), words)


HUGE = 2**63


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<IQQ", 3, HUGE, 0),
        struct.pack("<IQQ", 3, 0, HUGE),
        struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", HUGE),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, HUGE),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, HUGE),
        struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1) * 10**5,
        struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0),
        struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, 2**32, 2**32, 8, HUGE),
        struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 2**31),
        struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 32, 14, 0) + bytes(999),
        struct.pack("<IQQ", 2**24 * 3, 0, 0),
        b"",
    ],
)
def test_gguf_counts_that_lie(body: bytes, tmp_path: Path) -> None:
    watch = Watch()
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + body)
    with watch.example():
        refused(path, "model.gguf: ")
    watch.end("huge counts")


def test_two_tensors_may_not_show_the_same_bytes(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "model.gguf")
    content = path.read_bytes()
    at = content.index(b"position_embd.weight") + 20 + 4 + 16 + 4
    path.write_bytes(content[:at] + struct.pack("<Q", 0) + content[at + 8 :])
    refused(path, "overlaps another tensor or the file")


def test_llama2c_headers_that_lie(tmp_path: Path) -> None:
    path, _, _ = llama2c(tmp_path / "stories.bin")
    whole, tokenizer = path.read_bytes(), bytes_file(tmp_path)
    for content, words in (
        (b"", "is not a model of llama2.c"),
        (whole[:20], "is not a model of llama2.c"),
        (whole[:-1], "does not have the length"),
        (whole + b"x", "does not have the length"),
        (struct.pack("<7i", *[2**31 - 1] * 7), "is not a model of llama2.c"),
        (struct.pack("<7i", 10**4, 10**4, 999, 4, 4, 10**4, 10**4), "does not have the length"),
        (struct.pack("<7i", 24, 40, -2, 4, 2, 259, 32), "is not a model of llama2.c"),
        (struct.pack("<Ii", 0x616B3432, 2) + bytes(300), "version 2"),
        (struct.pack("<Ii", 0x616B3432, 1) + bytes(9), "is not a model of llama2.c"),
    ):
        path.write_bytes(content)
        refused(path, words, tokenizer=tokenizer)
    assert "no such file" in refused(tmp_path / "none.bin")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").endswith("no ckpt.pt; name its file")
    lost = tmp_path / "lost.txt"  # said before the weights are read
    words = f"{lost}: cannot be read as text (No such file or directory); give --tokenizer another file"
    assert refused(path, tokenizer=lost) == words
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a model that minigpt can read" in refused(tmp_path / "notes.txt")


@pytest.mark.parametrize("examples", mostly_slow([60, 1500]))
@pytest.mark.parametrize("kind", ["gguf", "nanogpt", "llama2.c"])
def test_a_file_changed_at_random_is_refused_in_one_line_or_read(kind: str, examples: int, tmp_path: Path) -> None:
    draw = random.Random(5)
    if kind == "gguf":
        path, tokenizer = small_gguf(tmp_path / "model.gguf"), None
    elif kind == "nanogpt":
        folder, _ = nano(tmp_path / "out")
        path, tokenizer = folder / "ckpt.pt", folder / "input.txt"
    else:
        path, tokenizer = llama2c(tmp_path / "stories.bin")[0], bytes_file(tmp_path)
    whole = path.read_bytes()
    watch, counts = Watch(), Counter()
    for index in range(examples):
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(min(len(changed), draw.choice([64, 3000, len(changed)])))
            changed[place : place + 1] = draw.choice([b"", b"\xff", b"\x00\x00", draw.randbytes(1), draw.randbytes(8)])
        path.write_bytes(changed[: draw.choice([len(changed)] * 3 + [draw.randrange(len(changed))])])
        with watch.example():
            try:
                import_model(path, tmp_path / f"run{index}", tokenizer)
                counts["read"] += 1
            except UserError as error:
                assert "\n" not in str(error)
                counts["refused"] += 1
    assert counts["refused"]
    watch.end(f"{kind}: {dict(counts)}")


def test_a_small_pickle_makes_no_large_object(tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    doubled = b"c_codecs\nencode\n(c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0ascii" + b"tRX\x03\0\0\0hextR."
    for content in (b"cbuiltins\nbytearray\nK\x09\x85R.", doubled):
        for name in ("data.pkl", "DATA.PKL"):
            with zipfile.ZipFile(file, "w") as held:
                held.writestr(f"a/{name}", b"\x80\x02" + content)
                held.writestr("a/version", "3\n")
                held.writestr("a/byteorder", "little")
            refused(file, "holds more than tensors and plain values")


def test_a_zip_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    torch.save({}, file)
    content = bytearray(file.read_bytes())
    content[content.find(b"PK\x01\x02") + 6] = 99
    file.write_bytes(content)
    refused(file, "is not a whole file of torch.save")


@pytest.mark.skipif(os.name != "posix", reason="needs any name")
@pytest.mark.parametrize("name", ["a\nnosuch: 1", "a\udcff", "a\x07\u2028"])
def test_the_name_of_a_file_does_not_change_the_settings(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.gguf"
    try:
        small_gguf(file)
    except OSError:
        pytest.skip("this file system allows no such name")
    import_model(file, tmp_path / "made")
    assert load_config(tmp_path / "made/config.yaml").model.embed_dim == 32


def test_a_gguf_template_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(small_gguf(tmp_path / "a.gguf", minigpt__template="[1]"), "minigpt.template: is not an object")
