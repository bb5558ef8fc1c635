"""Write a run with 8 or 4 bits per weight: `minigpt quantize`."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from minigpt.cli.arguments import PathText, Positional, parse, refuse
from minigpt.console import console, counted, loading, out, out_json
from minigpt.errors import ConfigError, UserError


@dataclass(frozen=True)
class Quantize:
    """Write a run again with its weights in 8 or 4 bits: a quarter or a seventh of the size, nearly the same model.

    minigpt quantize runs/my
    minigpt quantize runs/my --group 32 --out runs/small
    minigpt generate runs/my-int4 --precision int4

    The result is a run that every command can use. Generating with --precision int8 or int4 uses the integers
    themselves; all other commands turn them into fp32. You cannot resume training from it, but you can fine-tune it.
    """

    run: Positional[PathText]
    """A run directory, a checkpoint, or an exported Hugging Face directory."""
    bits: Literal["8", "4"] = "4"
    """Bits of the matrices in the blocks; 8 bits lose almost nothing."""
    group: Literal["32", "64", "128"] = "64"
    """With 4 bits: numbers that share a scale. Smaller groups are more exact, and cost 16/group bits per number."""
    embedding_bits: Literal["8", "4"] = "8"
    """With 4 bits: bits of the embedding, the positions and the head, which lose more with 4."""
    out: PathText | None = None
    """The run to write (default: RUN-int4 or RUN-int8, next to the run)."""
    tokens: int = 16384
    """Tokens of the validation text to measure bits per byte on, before and after; 0: do not measure."""
    json: bool = False
    """Print one JSON object: run, path, bits, group (null with 8 bits), embedding_bits, weights (how many),
    bytes_before, bytes_after, bits_per_weight (on the disk), bits_per_byte_before, bits_per_byte_after (null if not
    measured), tokens (measured on)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Quantize, argv, "quantize")
    if args.bits == "8":
        refuse(args, ("group", "embedding_bits"), "only with 4 bits; leave it out")
    if args.tokens < 0 or args.tokens == 1:
        raise ConfigError(f"tokens: {args.tokens} cannot be measured on; choose 0 for none, or 2 or more")
    loading()
    from minigpt.runs.quantize import quantize_run

    done = quantize_run(args.run, int(args.bits), int(args.group), args.out, int(args.embedding_bits))
    before, after, count = _measure(args.run, str(done.path), args.tokens)
    report: dict[str, Any] = {"run": args.run, **asdict(done), "path": str(done.path)}
    report |= {"bits_per_weight": done.bits_per_weight, "bits_per_byte_before": before, "bits_per_byte_after": after}
    report["tokens"] = count
    if args.json:
        out_json(report)
        return 0
    sizes = f"{done.bytes_before / 1e6:,.2f} MB -> {done.bytes_after / 1e6:,.2f} MB"
    line = f"{done.path}: {sizes}, {done.bits_per_weight:.2f} bits per weight"
    if before is not None:
        line += f"; bits per byte {before:.4f} -> {after:.4f} on {counted(count, 'validation token')}"
    out(line)
    return 0


def _measure(before: str, after: str, count: int) -> tuple[float | None, float | None, int]:
    """(bits per byte of the first run, of the second, tokens); None, None, 0, and a line, if the run has no own text.

    Bytes are those of the source, as in `minigpt eval`, also where the tokens do not keep it all: unknown words.
    """
    from minigpt.data.counts import token_counts
    from minigpt.evals import TokenText, evaluate
    from minigpt.runs.load import load_run

    if not count:
        return None, None, 0
    try:
        run = load_run(before)
        prepared, tokenizer, context = run.prepared(), run.tokenizer, run.model.config.max_seq_len
        whole, lengths = prepared.splits["val"].tokens, TokenText(tokenizer).lengths
        tokens = whole[:count]
        first, second = (
            evaluate(each.model, tokens, context=context, runtime=each.runtime, token_lengths=lengths)
            for each in (run, load_run(after))
        )
    except UserError as error:
        console.print(f"bits per byte not measured: {error}")
        return None, None, 0
    kept = int(token_counts(whole[1:], tokenizer.vocab_size) @ lengths)  # the first token is not predicted
    per_byte = kept / prepared.predicted_bytes("val", tokenizer) / math.log(2) / max(1, int(first.bytes.sum()))
    return float(first.nats.sum()) * per_byte, float(second.nats.sum()) * per_byte, len(tokens) - 1
