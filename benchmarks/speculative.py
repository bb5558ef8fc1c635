"""Compare speculative and plain greedy decoding: a draft model's guesses, and prompt look-up on a repetitive text.

    python benchmarks/speculative.py --run runs/large --draft runs/small
    python benchmarks/speculative.py                    # random weights

Both sides take turns; each figure is a median over the rounds, and so is the ratio of the two in a round. Without --run
the weights are random, and the draft model is the model's own first blocks. The time of a pass is then real, but the
share of accepted guesses says nothing about trained models.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.generation import generate
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.generation.search import Drafter, LookupDrafter, ModelDrafter, speculate
from minigpt.machine.bench.timing import Spread, alternate, rounded, speed_ratio, stopwatch
from minigpt.model import GPT
from minigpt.runs.load import load_run

REPEATED = "Once upon a time there was a little girl who had a red ball. She liked to play with her red ball. "


def models(args: argparse.Namespace) -> tuple[GPT, GPT | None, list[int], list[int]]:
    """The model, the draft model, and two prompts: some text, and a text that repeats itself."""
    if args.run is not None:
        run = load_run(args.run, args.device)
        draft = load_run(args.draft, args.device).model if args.draft else None
        room = max(1, run.model.config.max_seq_len - args.new_tokens)  # so that the window never moves
        repetitive = run.tokenizer.encode(REPEATED * 8)[-room:]
        return run.model, draft, run.tokenizer.encode(args.prompt)[-room:], repetitive
    shape = ModelConfig(
        vocab_size=args.vocab_size, embed_dim=args.width, num_heads=max(1, args.width // 64), num_layers=args.layers,
        max_seq_len=args.new_tokens + 128,
    )  # fmt: skip
    model = GPT(shape).to(args.device).eval()
    draft = GPT(shape.model_copy(update={"num_layers": args.draft_layers})).to(args.device).eval()
    draft.load_weights({name: model.weights()[name] for name in draft.weights()})
    return model, draft, list(range(1, 17)), list(range(1, 17)) * 8


def compare(name: str, model: GPT, prompt: list[int], drafter: Drafter, args: argparse.Namespace) -> None:
    """Print one line of JSON."""
    config = GenerationConfig(max_new_tokens=args.new_tokens, temperature=0)
    written: dict[str, list[list[int]]] = {}

    def write(side: str, pieces: Callable[[], Iterable[list[int]]]) -> None:
        written[side] = list(pieces())

    plain = partial(write, "plain", lambda: ([int(ids)] for ids in generate(model, [prompt], config)))
    guessed = partial(write, "speculative", lambda: speculate(model, prompt, config, drafter))
    sides = {side: partial(stopwatch, job) for side, job in (("plain", plain), ("speculative", guessed))}
    for side in sides.values():
        side()  # warm up
    seconds = alternate(sides, args.rounds, lambda _: None)
    passes = written["speculative"]
    texts = [list(itertools.chain.from_iterable(pieces)) for pieces in written.values()]
    row = {
        "drafter": name,
        "prompt_tokens": len(prompt),
        "new_tokens": args.new_tokens,
        "ms_per_token": {side: Spread.of(s).figures(1e3 / args.new_tokens) for side, s in seconds.items()},
        "ratio": rounded(speed_ratio(seconds["speculative"], seconds["plain"])),
        "passes": len(passes),
        "guesses_that_stood": args.new_tokens - len(passes),
        "same_tokens": texts[0] == texts[1],
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    """Measure all pairs of models and texts, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the large model's run")
    parser.add_argument("--draft", type=Path, help="the small model's run, with the same tokenizer")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--size", type=int, default=4, help="guesses of one draft")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="precision, as in minigpt generate: fp32, bf16, int8, auto")
    parser.add_argument("--width", type=int, default=768, help="of random weights")
    parser.add_argument("--layers", type=int, default=12, help="of random weights")
    parser.add_argument("--draft-layers", type=int, default=2, help="of random weights")
    parser.add_argument("--vocab-size", type=int, default=50257, help="of random weights")
    args = parser.parse_args()
    model, draft, prompt, repetitive = models(args)
    for each in filter(None, (model, draft)):
        prepare_decoding(each, args.precision)
    if draft is not None:
        compare("model", model, prompt, ModelDrafter(draft, args.size), args)
    compare("look-up", model, repetitive, LookupDrafter(args.size), args)


if __name__ == "__main__":
    main()
