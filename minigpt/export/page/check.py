"""Check that a page computes what minigpt does: node runs the page's own code."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from minigpt.config import GenerationConfig
from minigpt.errors import MiniGPTError
from minigpt.generation.engine import generate
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.simple import CharTokenizer

TOLERANCE = 1e-4  # share of the largest logit: sums in another order differ by about 1e-6 in fp32
READ, WRITTEN = 32, 16
PROBE = " The cat's 3.14 naïve\r\n\n  mats — 漢字 🙂,   THEY'RE\tgone! "


def ask(page: Path, questions: dict[str, Any], seconds: float = 600) -> dict[str, Any]:
    """The answers of check.js. Raises MiniGPTError if it fails."""
    command = ["node", str(Path(__file__).with_name("check.js")), str(page)]
    try:
        done = subprocess.run(
            command, input=json.dumps(questions), capture_output=True, encoding="utf-8", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise MiniGPTError(f"the page took longer than {seconds:.0f} s to answer; please report it") from None
    if done.returncode:
        wrong = re.search(r"^\w*Error.*", done.stderr, re.MULTILINE)
        reason = wrong[0].strip() if wrong else f"node exits with {done.returncode}"
        raise MiniGPTError(f"the page does not run: {reason}; please report it")
    return json.loads(done.stdout)


def check_page(page: Path, model: GPT, tokenizer: Tokenizer) -> float | None:
    """The largest difference between the page's logits and those of `model`; None without node.

    Raises MiniGPTError: a difference above TOLERANCE, other greedy ids, or a text that is encoded differently.
    """
    if shutil.which("node") is None:
        return None
    words = [id_ for id_ in range(tokenizer.vocab_size) if id_ not in tokenizer.special_tokens.values()]
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor(words)[torch.randint(len(words), (READ,), generator=draw)][: model.config.max_seq_len].tolist()
    text = PROBE
    if isinstance(tokenizer, CharTokenizer):
        text = "".join(char for char in PROBE if char in tokenizer.characters)
    greedy = {"ids": ids[:4], "count": WRITTEN}
    answers = ask(page, {"logits": [ids[:1], ids], "greedy": [greedy], "encode": [text], "decode": [ids]})
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, [0, -1]]
    rows = [*answers["logits"], *answers["plain"]]  # computed with WebAssembly, and in the readable form
    found = torch.tensor([[math.nan if value is None else value for value in row] for row in rows])
    difference = (found - expected.repeat(2, 1)).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise MiniGPTError(f"the page's logits differ from minigpt's by up to {difference:.2g}; please report it")
    config = GenerationConfig(temperature=0.0, max_new_tokens=WRITTEN)
    if answers["greedy"] != [[int(step) for step in generate(model, [ids[:4]], config)]]:
        raise MiniGPTError("the page writes other tokens than the model; please report it")
    if answers["encoded"] != [tokenizer.encode(text)] or answers["decoded"] != [tokenizer.decode(ids)]:
        raise MiniGPTError("the page encodes or decodes a text differently from the run's tokenizer; please report it")
    return difference
