"""Measure peak memory and speed of preparing a large text, next to tiktoken alone on one core.

    python benchmarks/prepare_memory.py --megabytes 2000 --workers 1

Writes stories of that size to a temporary directory (with some emoji, so that Python needs 4 bytes per character: the
worst case for memory), prepares them with the gpt2 tokenizer in a new process, and compares that process's peak memory
with that of a bare interpreter. tiktoken's speed is that of `encode_ordinary` on the first 50 MB, in pieces of 1 MB, in
one thread. Needs gpt2's two files (MINIGPT_DATA, or the network).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak_memory() -> float:
    """Largest resident memory of this process so far, in bytes.

    Linux's getrusage would be wrong: it gives a child its parent's peak, and the parent here is larger.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * float(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_text(path: Path, megabytes: int) -> None:
    """Write stories: the same 20 MB over and over, up to the size."""
    from minigpt.data.stories.generator import generate_stories

    stories = []
    for number, story in enumerate(generate_stories(55_000, 1)):
        stories.append(story)
        if number % 500 == 0:
            stories.append("The end 😀\n")
    block = "".join(stories).encode()
    with path.open("wb") as file:
        left = megabytes * 10**6
        while left > 0:
            file.write(block[:left])
            left -= len(block)


def prepare_once(path: str, cache: str, workers: int) -> dict[str, float]:
    """In the child process: prepare, and return the time and the size of the process."""
    from minigpt.config import DataConfig, TokenizerConfig
    from minigpt.data import prepare
    from minigpt.tokenizers import build, safe_cut

    tokenizer = build(TokenizerConfig(kind="gpt2"), [])
    start, work = time.perf_counter(), time.process_time()
    prepared = prepare(DataConfig(source=path, cache_dir=cache), tokenizer, safe_cut, workers=workers)
    return {
        "seconds": time.perf_counter() - start,
        "work": time.process_time() - work,
        "tokens": sum(file.count for file in prepared.splits.values()),
        "peak": peak_memory(),
    }


def tiktoken_alone(path: Path) -> tuple[float, float, float]:
    """(tokens/s, bytes/s, bytes/s of processor time) of tiktoken in one thread."""
    import tiktoken

    from minigpt.config import TokenizerConfig
    from minigpt.tokenizers import build

    tokenizer = build(TokenizerConfig(kind="gpt2"), [])
    ranks = {tokenizer.token_bytes(id_): id_ for id_ in range(tokenizer.vocab_size) if id_ != tokenizer.eos_id}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # GPT-2's
    encoding = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    with path.open("rb") as file:
        texts = [file.read(1 << 20).decode(errors="ignore") for _ in range(48)]
    start, work = time.perf_counter(), time.process_time()
    count = sum(len(encoding.encode_ordinary(text)) for text in texts)
    seconds, work = time.perf_counter() - start, time.process_time() - work
    size = sum(len(text.encode()) for text in texts)
    return count / seconds, size / seconds, size / work


def child(*arguments: str) -> dict[str, float]:
    """Run this file in a fresh interpreter; returns its JSON."""
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """Run all measurements and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1, help="threads that encode")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == ["", ""]:
        print(json.dumps({"peak": peak_memory()}))
        return
    if args.child:
        print(json.dumps(prepare_once(*args.child, args.workers)))
        return
    interpreter = child(__file__, "--child", "", "")["peak"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.txt")
        write_text(path, args.megabytes)
        raw_tokens, raw_bytes, raw_work = tiktoken_alone(path)
        found = child(__file__, "--workers", str(args.workers), "--child", str(path), str(Path(folder, "cache")))
        size = path.stat().st_size
    seconds = found["seconds"]
    print(f"text                     {size / 1e6:,.0f} MB, {found['tokens']:,.0f} tokens, {args.workers} worker(s)")
    print(f"peak memory              {(found['peak'] - interpreter) / 1e6:,.0f} MB above a bare interpreter's")
    print(
        f"prepare, both passes     {found['tokens'] / seconds:,.0f} tokens/s, {size / seconds / 1e6:.1f} MB/s, "
        f"{size / found['work'] / 1e6:.1f} MB per second of processor time"
    )
    print(
        f"tiktoken alone, 1 thread {raw_tokens:,.0f} tokens/s, {raw_bytes / 1e6:.1f} MB/s, "
        f"{raw_work / 1e6:.1f} MB per second of processor time"
    )


if __name__ == "__main__":
    main()
