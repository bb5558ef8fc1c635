"""Test that transformers.js in a real browser without a network writes the same text (make .venv/installed-node)."""

import mimetypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser_run import IN_CHROMIUM
from node_run import PACKAGES, needs_node
from test_export import make_run

from minigpt import export_onnx, load_run
from minigpt.export.page.pack import rounded
from minigpt.generation.text import complete

pytestmark = [
    *IN_CHROMIUM,
    pytest.mark.skipif(
        not (find_spec("onnx") and find_spec("onnxruntime")), reason="needs pip install 'minigpt[onnx]'"
    ),
    needs_node("@huggingface/transformers"),
]
SITE = "https://here.test"
CASES = [("modern", "bpe", "fp32"), ("gpt2", "char", "int8"), ("llama", "byte", "fp16"), ("untied", "bpe", "int8"),
         ("modern", "word", "fp32")]  # fmt: skip
PROMPTS, COUNT = ["The cat", "And the old mill\nwent 42", "a"], 40
WRITE = """async ({names, prompts, count}) => {
    const {pipeline, env} = await import("/packages/@huggingface/transformers/dist/transformers.js");
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.localModelPath = "./";
    env.backends.onnx.wasm.wasmPaths = location.origin + "/packages/onnxruntime-web/dist/";
    const settings = {max_new_tokens: count, do_sample: false, return_full_text: false};
    const found = [];
    for (const name of names) {
        const write = await pipeline("text-generation", name);
        const ids = prompts.map((text) => write.tokenizer.encode(text, {add_special_tokens: false}));
        const written = [];
        for (const prompt of prompts) written.push((await write(prompt, settings))[0].generated_text);
        found.push({ids, written});
    }
    return found;
}"""


def answer(route: Any, folder: Path) -> None:
    """Answer a request of the page with a file of this folder, since there is no network."""
    path = route.request.url.removeprefix(f"{SITE}/")
    file = PACKAGES / path.removeprefix("packages/") if path.startswith("packages/") else folder / path
    if not path:
        route.fulfill(body="<title>here</title>", content_type="text/html")
    elif route.request.url.startswith(SITE) and file.is_file():
        route.fulfill(path=file, content_type=mimetypes.guess_type(file)[0] or "application/octet-stream")
    else:
        route.fulfill(status=404)


def test_it_writes_what_we_do(browser, tmp_path: Path) -> None:
    runs = [
        load_run(make_run(tmp_path / f"{shape}-{kind}", shape, kind, max_seq_len=80), "cpu") for shape, kind, _ in CASES
    ]
    for run, (_, _, precision) in zip(runs, CASES, strict=True):
        export_onnx(run, precision=precision)
    page = browser.new_page()
    page.route("**/*", lambda route: answer(route, tmp_path))
    page.goto(SITE)
    names = [f"{shape}-{kind}-onnx" for shape, kind, _ in CASES]
    found = page.evaluate(WRITE, {"names": names, "prompts": PROMPTS, "count": COUNT})
    for run, case, theirs in zip(runs, CASES, found, strict=True):
        assert theirs["ids"] == [run.tokenizer.encode(prompt) for prompt in PROMPTS], case
        model = rounded(run.model, case[2])
        ours = complete(model, PROMPTS, run.tokenizer, max_new_tokens=COUNT, temperature=0.0)
        assert theirs["written"] == [rows[0].text for rows in ours], case
