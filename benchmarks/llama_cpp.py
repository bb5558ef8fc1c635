"""Compare the speed of `generate` with that of llama.cpp (node-llama-cpp of npm), for one greedy sequence.

    make .venv/installed-node
    python benchmarks/llama_cpp.py --rounds 5
    python benchmarks/llama_cpp.py --shape modern --layers 2 --width 64 --tokens 8 --rounds 1    # does it run?

A model of GPT-2's size with random weights is exported, and both sides write from the same prompt in turn: llama.cpp
in F16 next to minigpt in bf16, and Q8_0 next to int8. llama.cpp runs in a new process each time. The time counts from
the first new token. Prints one line of JSON per precision, with the median tokens per second of each side and the
median ratio over the rounds (above 1: minigpt is faster).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minigpt import GPT, GenerationConfig, ModelConfig, RunConfig, export_gguf, generate, load_run, prepare_decoding
from minigpt.config import dump_config
from minigpt.tokenizers import gpt2_tokenizer
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

PACKAGES = Path(os.environ.get("MINIGPT_NODE", Path(sys.prefix) / "node")) / "node_modules"
PROMPT = list(range(300, 316))


def make_run(folder: Path, args: argparse.Namespace) -> Path:
    """A run of random weights with GPT-2's tokenizer."""
    tokenizer = gpt2_tokenizer()
    model = ModelConfig(
        shape=args.shape, vocab_size=tokenizer.vocab_size, embed_dim=args.width, num_heads=max(1, args.width // 64),
        num_layers=args.layers, max_seq_len=1024,
    )  # fmt: skip
    state = CheckpointState(model=model.model_dump(mode="json"))
    checkpoint.save(folder / "checkpoints/step-00000000", {"model": GPT(model).weights()}, state)
    tokenizer.save(folder)
    (folder / "config.yaml").write_text(dump_config(RunConfig(model=model)))
    return folder


def theirs(file: Path, args: argparse.Namespace) -> float:
    """Tokens per second of llama.cpp."""
    asked = {"packages": str(PACKAGES), "model": str(file), "texts": [], "prompts": [PROMPT], "count": args.tokens}
    script = Path(__file__).with_suffix(".mjs")
    asked["threads"] = args.threads
    done = subprocess.run(["node", script], input=json.dumps(asked), capture_output=True, text=True, check=True)
    return (args.tokens - 1) / json.loads(done.stdout)["seconds"][0]


def ours(model: GPT, args: argparse.Namespace) -> float:
    """Tokens per second of `generate`."""
    walk = generate(model, [PROMPT], GenerationConfig(max_new_tokens=args.tokens, temperature=0.0))
    next(walk)
    start = time.perf_counter()
    count = sum(1 for _ in walk)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("gpt2", "modern"), default="gpt2")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work:
        run = make_run(Path(work) / "run", args)
        for precision, mine in (("fp16", "bf16"), ("q8_0", "int8")):
            made = export_gguf(load_run(run, "cpu"), Path(work) / f"{precision}.gguf", precision)
            model = prepare_decoding(load_run(run, "cpu").model, mine)
            ours(model, args), theirs(made.path, args)  # warm up
            rounds = [(ours(model, args), theirs(made.path, args)) for _ in range(args.rounds)]
            figures = {"ours": mine, "llama_cpp": precision, "weights": made.weights, "threads": args.threads}
            figures |= {"tokens_per_second": round(statistics.median(own for own, _ in rounds), 1)}
            figures |= {"llama_cpp_tokens_per_second": round(statistics.median(their for _, their in rounds), 1)}
            print(json.dumps(figures | {"ratio": round(statistics.median(own / their for own, their in rounds), 3)}))


if __name__ == "__main__":
    main()
