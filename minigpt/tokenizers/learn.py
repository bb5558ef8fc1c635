"""Learning BPE merges from text (Sennrich et al., 2016, over bytes as in GPT-2).

Text is split into pre-tokens, equal ones are counted once, and the most frequent adjacent pair of symbols
is merged again and again. Notable choices:
- A word is a `str` of symbols, chr(symbol number): a merge is then `split` and `join` at C speed, left to
  right and without overlap, just as BPE wants it, and a pair is a 2-character string.
- Counts of pairs change only in the words that a merge touches, and a heap with lazy invalidation finds
  the next pair: seconds where recounting everything (`learn_merges_reference`) takes hours.
- Ties go to the smallest pair of symbol numbers, as in Hugging Face's BpeTrainer: bytes are numbered in the
  order of their spelling (`byte_order`), merges in the order they were made. So merges equal theirs.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import regex

from minigpt.tokenizers.base import valid_unicode
from minigpt.tokenizers.cutter import CHUNK, Cutter
from minigpt.tokenizers.patterns import byte_order, expression, safe_cut

Pair = tuple[int, int]

BLOCK = CHUNK
"""Characters to split at a time."""


def count_words(texts: Iterable[str], pattern: str, max_bytes: int | None = None) -> Counter[str]:
    """Pre-tokens of a stream of text, counted. Where the stream is cut into chunks does not matter.

    Args:
        texts: chunks of one text, read once.
        pattern: "gpt2", "gpt4" or an expression.
        max_bytes: stop after so many bytes (UTF-8) of text.
    """
    find = regex.compile(expression(pattern)).findall
    counts: Counter[str] = Counter()
    for block in _blocks(_head(texts, max_bytes)):
        counts.update(find(block))
    return counts


def _head(texts: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    left = max_bytes
    for text in texts:
        text = valid_unicode(text)
        if left is None:
            yield text
            continue
        content = text.encode()
        if len(content) >= left:
            yield content[:left].decode(errors="ignore")  # less a character that the limit cuts in two
            return
        left -= len(content)
        yield text


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The same stream in blocks of about BLOCK characters that split apart as they do together."""
    cutter = Cutter(safe_cut, BLOCK)
    for text in texts:
        if block := cutter.add(text):
            yield block
    yield cutter.end()


def to_symbols(words: Mapping[str, int]) -> dict[str, int]:
    """Words as strings of symbols (bytes by their number in `byte_order`), with their counts."""
    table = {byte: chr(number) for number, byte in enumerate(byte_order())}
    return {word.encode().decode("latin-1").translate(table): count for word, count in words.items()}


def learn_merges(words: Mapping[str, int], num_merges: int, min_count: int = 2) -> list[Pair]:
    """The merges that these counted words teach, in order; merge k makes symbol 256 + k.

    learn_merges({"aab": 3}, 2) -> [(number of a, number of a), (256, number of b)]

    Stops early when no pair is left that occurs min_count times.
    """
    symbols = to_symbols(words)
    spelt, counts = list(symbols), list(symbols.values())
    pair_counts: dict[str, int] = defaultdict(int)
    where: dict[str, list[int]] = defaultdict(list)  # words that hold a pair, or held it once
    for index, (word, count) in enumerate(zip(spelt, counts, strict=True)):
        for pair in map(str.__add__, word, word[1:]):
            pair_counts[pair] += count
            where[pair].append(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        minus_count, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count < min_count:
            continue
        if count != -minus_count:  # rarer than when it was pushed (no pair but a new one becomes more frequent)
            heapq.heappush(heap, (-count, pair))
            continue
        new = chr(256 + len(merges))
        merges.append((ord(pair[0]), ord(pair[1])))
        born: set[str] = set()
        for index in where.pop(pair):
            parts = spelt[index].split(pair)
            if len(parts) > 1:
                spelt[index] = new.join(parts)
                _recount(pair, new, parts, counts[index], pair_counts)
                for neighbour in _pairs_of(new, spelt[index]):
                    where[neighbour].append(index)
                    born.add(neighbour)
        del pair_counts[pair]
        for neighbour in born:
            if pair_counts[neighbour] >= min_count:
                heapq.heappush(heap, (-pair_counts[neighbour], neighbour))
    return merges


def _pairs_of(symbol: str, word: str) -> Iterator[str]:
    """The pairs of a word that hold this symbol."""
    place = word.find(symbol)
    while place >= 0:
        if place and word[place - 1] != symbol:
            yield word[place - 1 : place + 1]
        if place + 1 < len(word):
            yield word[place : place + 2]
        place = word.find(symbol, place + 1)


def _recount(pair: str, new: str, parts: list[str], count: int, pair_counts: dict[str, int]) -> None:
    """Change the counts of pairs for a word parts[0] + pair + parts[1] + ... whose pairs become `new`."""
    if len(parts) == 2:  # nearly always: only the neighbours change
        left, right = parts
        if left:
            pair_counts[left[-1] + pair[0]] -= count
            pair_counts[left[-1] + new] += count
        if right:
            pair_counts[pair[1] + right[0]] -= count
            pair_counts[new + right[0]] += count
        return
    for word, change in ((pair.join(parts), -count), (new.join(parts), count)):
        for each in map(str.__add__, word, word[1:]):
            pair_counts[each] += change


def learn_merges_reference(words: Mapping[str, int], num_merges: int, min_count: int = 2) -> list[Pair]:
    """The textbook loop, which counts all pairs anew for every merge. Same result as `learn_merges`."""
    spelt = [([ord(symbol) for symbol in word], count) for word, count in to_symbols(words).items()]
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pair_counts: Counter[Pair] = Counter()
        for word, count in spelt:
            for left, right in pairwise(word):
                pair_counts[left, right] += count
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair), default=None)
        if best is None or pair_counts[best] < min_count:
            break
        spelt = [(merge(word, best, 256 + len(merges)), count) for word, count in spelt]
        merges.append(best)
    return merges


def merge(word: list[int], pair: Pair, new: int) -> list[int]:
    """Replace a pair wherever it stands, left to right.

    merge([1, 1, 1, 2], (1, 1), 9) -> [9, 1, 2]
    """
    merged: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged
