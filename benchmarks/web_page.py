"""Measure how large the web page of a run is, and how fast the model in it writes, in Chromium and in node.

    python benchmarks/web_page.py runs/my
    python benchmarks/web_page.py --width 512 --layers 8        # random weights: 25.9 M

Put `taskset -c 0` before it to use one core. Chromium writes as a reader would see it, with sampling and drawing; node
runs only the model, with WebAssembly and in the readable form of model.js.
"""

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import sync_playwright

from minigpt import GPT, ModelConfig, export_page, load_run
from minigpt.config import RunConfig
from minigpt.export.page.check import ask
from minigpt.tokenizers import ByteTokenizer, Tokenizer

TOKENS = 400


@dataclass(frozen=True)
class RandomRun:
    """An untrained model, to measure its speed."""

    path: Path
    model: GPT
    tokenizer: Tokenizer
    config: RunConfig


def random_run(width: int, layers: int) -> RandomRun:
    tokenizer = ByteTokenizer()
    shape = {"embed_dim": width, "num_layers": layers, "num_heads": width // 64, "max_seq_len": 512}
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)).eval()
    return RandomRun(Path(tempfile.mkdtemp()) / "random", model, tokenizer, RunConfig(model=model.config))


def in_chromium(page: Path) -> str:
    """The status that the page shows below its text."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_context(offline=True).new_page()
        opened.goto(page.as_uri())
        opened.wait_for_selector("html[data-ready]", timeout=120_000)
        opened.fill("#max_new_tokens", str(TOKENS))
        opened.click("#settings summary")
        opened.uncheck("#stop_at_eos")
        opened.click("#write")
        opened.wait_for_selector("#more:not([hidden])", timeout=600_000)
        status = opened.inner_text("#write-status")
        browser.close()
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--precision", default="int8")
    args = parser.parse_args()
    run = load_run(args.run, "cpu") if args.run else random_run(args.width, args.layers)
    out = Path(tempfile.mkdtemp()) / "page.html"
    done = export_page(run, out, args.precision)
    print(f"{done.weights:,} weights in {done.precision}: {done.bytes / 1e6:.2f} MB")
    for _ in range(3):
        simd, plain = ask(out, {"speed": 150})["speeds"]
        print(f"node: {simd:,.0f} tokens/s, readable form {plain:,.0f}; Chromium: {in_chromium(out)}")
    shutil.rmtree(out.parent)


if __name__ == "__main__":
    main()
