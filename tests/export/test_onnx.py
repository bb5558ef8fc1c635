"""Test that onnxruntime computes the same as minigpt: at once, with the cache, and with padding."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_run import json_of
from node_run import PACKAGES, needs_node
from page_run import save_run
from test_export import SHAPES, TEXT, fails, make_run

from minigpt import export_onnx, load_run
from minigpt.cli import main
from minigpt.config import TokenizerConfig
from minigpt.errors import ConfigError, MiniGPTError, RunError, UserError
from minigpt.export import onnx_directory as ours
from minigpt.export.huggingface import write_model, write_usage
from minigpt.export.page.pack import rounded
from minigpt.tokenizers import build

onnx = pytest.importorskip("onnx")
if importlib.util.find_spec("onnxruntime") is None:  # minigpt imports it itself, after switching its telemetry off
    pytest.skip("onnxruntime is not installed", allow_module_level=True)
onnx_graph = importlib.import_module("minigpt.export.onnx_graph")
CASES = [("gpt2", "byte", "fp32"), ("modern", "char", "int8"), ("untied", "bpe", "fp16"), ("llama", "bpe", "fp32"),
         ("modern", "word", "fp32")]  # fmt: skip


@pytest.mark.parametrize(("shape", "kind", "precision"), CASES)
def test_onnxruntime_computes_what_we_do(shape: str, kind: str, precision: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, kind), "cpu")
    done = export_onnx(run, precision=precision)
    assert done.path == tmp_path / "my-onnx" and done.difference < 1e-4
    assert done.bytes < {"fp32": 4, "fp16": 2, "int8": 1}[precision] * done.weights + 30_000
    file = done.path / "onnx" / ours.FILES[precision]
    onnx.checker.check_model(onnx.load(file), full_check=True)
    model, config = rounded(run.model, precision), run.model.config
    ids = torch.tensor([run.tokenizer.encode(TEXT)[:40], run.tokenizer.encode(TEXT[5:])[:40]])
    session = ours.Session(file, config, batch=2)
    with torch.inference_mode():
        expected = model(ids)
        for start, end in ((0, 7), (7, 8), (8, 20), (20, 40)):
            torch.testing.assert_close(session(ids[:, start:end]), expected[:, start:end], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "gelu"},
        {"activation": "relu2", "tie_embeddings": False},
        {"activation": "relu", "max_seq_len": 1},
    ],
)
def test_other_fields_that_a_twin_allows(fields: dict, tmp_path: Path) -> None:
    tokenizer = build(TokenizerConfig(kind="char"), [TEXT])
    run = load_run(save_run(tmp_path / "my", tokenizer, SHAPES["gpt2"] | fields, {}), "cpu")
    assert export_onnx(run).difference < 1e-4


@pytest.mark.parametrize("shape", ["gpt2", "modern"])
def test_a_shorter_row_is_padded_on_its_left(shape: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape), "cpu")
    done = export_onnx(run)
    long, short = run.tokenizer.encode(TEXT[:12]), run.tokenizer.encode(TEXT[20:25])
    pads = len(long) - len(short)
    ids = torch.tensor([long, [0] * pads + short])
    mask = torch.ones_like(ids)
    mask[1, :pads] = 0
    session = ours.Session(done.path / "onnx/model.onnx", run.model.config, batch=2)
    found = session(ids, mask)
    with torch.inference_mode():
        torch.testing.assert_close(found[0], run.model(ids[:1])[0], rtol=0, atol=1e-4)
        alone = run.model(torch.tensor([[*short, 3]]))[0]
        torch.testing.assert_close(found[1, pads:], alone[:-1], rtol=0, atol=1e-4)
        torch.testing.assert_close(session(torch.tensor([[1], [3]]))[1], alone[-1:], rtol=0, atol=1e-4)


JAVASCRIPT = """import fs from "fs";
const [packages, folder, text] = process.argv.slice(2);
const read = (name) => JSON.parse(fs.readFileSync(`${folder}/${name}`));
const { Tokenizer } = await import(`${packages}/@huggingface/tokenizers/dist/tokenizers.mjs`);
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const { ids } = tokenizer.encode(text, { add_special_tokens: false });
console.log(JSON.stringify({ ids, text: tokenizer.decode(ids, { skip_special_tokens: true }) }));
"""


@needs_node("@huggingface/tokenizers")
def test_the_tokenizer_of_transformers_js_reads_words_as_we_do(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", "modern", "word"), "cpu")
    done = export_onnx(run)
    text = " the cat\u3000sat\r\n\n zebra\x1fthe \t "
    (tmp_path / "ask.mjs").write_text(JAVASCRIPT)
    command = ["node", str(tmp_path / "ask.mjs"), str(PACKAGES), str(done.path), text]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    ids = run.tokenizer.encode(text)
    assert run.tokenizer.unk_id in ids
    assert found == {"ids": ids, "text": run.tokenizer.decode(ids)}


def test_readers_find_what_they_look_for(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", "modern", "bpe", temperature=0.7), "cpu")
    done = export_onnx(run, tmp_path / "out", "int8")
    twin = tmp_path / "hf"
    twin.mkdir()
    write_model(twin, run.model, run.tokenizer, "fp32")
    write_usage(twin, run)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (done.path / name).read_bytes() == (twin / name).read_bytes()
    config = json.loads((done.path / "config.json").read_text())
    assert config.pop("transformers.js_config") == {"dtype": "q8"}
    assert config | {"dtype": "float32"} == json.loads((twin / "config.json").read_text())
    graph = onnx.load(done.path / "onnx/model_quantized.onnx").graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    cache = ["batch", 2, "past", 16]
    assert list(shapes) == [
        "input_ids", "attention_mask", "position_ids",
        *(f"past_key_values.{i}.{kind}" for i in (0, 1) for kind in ("key", "value")),
        "logits", *(f"present.{i}.{kind}" for i in (0, 1) for kind in ("key", "value")),
    ]  # fmt: skip
    assert shapes["past_key_values.1.key"] == cache and shapes["logits"] == [
        "batch",
        "length",
        run.tokenizer.vocab_size,
    ]


def test_the_command(tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "my", "gpt2", "byte")
    report = json_of(capsys, "export", folder, "--to", "onnx")
    assert list(report) == ["run", "path", "architecture", "precision", "weights", "bytes", "difference"]
    assert report["path"] == str(tmp_path / "my-onnx") and report["precision"] == "fp32"
    assert (
        main(["export", str(folder), "--to", "onnx", "--out", str(tmp_path / "deep/out"), "--precision", "int8"]) == 0
    )
    line = capsys.readouterr().out
    assert "out: gpt2, " in line and "onnxruntime's logits equal minigpt's within" in line and line.count("\n") == 1


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, capsys, monkeypatch) -> None:
    said = fails(capsys, make_run(tmp_path / "mixed", "mixed"), "--to", "onnx")
    assert "this model mixes their fields: nearest is gpt2, but: bias False" in said
    folder = make_run(tmp_path / "my")
    run = load_run(folder, "cpu")
    with pytest.raises(ConfigError, match="choose from fp32, fp16, int8"):
        export_onnx(run, precision="bf16")
    said = fails(capsys, folder, "--to", "onnx", "--precision", "q8_0")
    assert "--precision q8_0 is for --to gguf; for --to onnx choose fp32, fp16 or int8" in said
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="nothing is overwritten"):
        export_onnx(run, tmp_path / "there")
    with torch.no_grad():
        run.model.blocks[0].feed_forward.up.weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"fp16 cannot hold the numbers of blocks\.0\.feed_forward\.up\.weight"):
        export_onnx(run, precision="fp16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is not installed; .*pip install 'minigpt\[onnx\]'"):
        export_onnx(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed", "my", "there"]


def test_a_wrong_graph_is_found_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    run = load_run(make_run(tmp_path / "my"), "cpu")
    monkeypatch.setattr(onnx_graph, "HIDDEN", 0.0)  # now a query sees later tokens
    with pytest.raises(MiniGPTError, match=r"onnxruntime(.s logits differ from| writes other tokens than)"):
        export_onnx(run)
    assert [path.name for path in tmp_path.iterdir()] == ["my"]
