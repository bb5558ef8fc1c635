"""Learn BPE merges from text (Sennrich et al., 2016, over bytes as in GPT-2).

Text is split into pre-tokens, and equal pre-tokens are counted. Then the most frequent pair of neighbouring symbols is
merged, again and again. Notable choices:
- All words are in one array with one place for each byte. A symbol of n bytes is written at the first and at the last
  of its n places, so its neighbours are found without a search, even in a long word.
- A merge visits only the places of its pair, from left to right, and updates the counts of the neighbouring pairs. A
  heap finds the next pair; an entry with an old count gets its new count when it comes out. This takes seconds;
  counting all pairs again for each merge (`learn_merges_reference`) takes hours.
- If two pairs are equally frequent, the pair with the smaller symbol numbers is merged first. Bytes are numbered in the
  order of their spelling (`byte_order`), and merges in the order they were made. So the merges equal those of Hugging
  Face's BpeTrainer.
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import regex

from minigpt.download import Progress
from minigpt.tokenizers.base import valid_unicode
from minigpt.tokenizers.cutter import CHUNK, Cutter
from minigpt.tokenizers.patterns import byte_order, expression, safe_cut

Pair = tuple[int, int]

BLOCK = CHUNK
"""Characters to split at a time."""
END = -1
"""Separates words, so that no pair crosses from one word to the next."""


def count_words(
    texts: Iterable[str], pattern: str, max_bytes: int | None = None, progress: Progress | None = None
) -> Counter[str]:
    """Count the pre-tokens in a stream of text. The chunks' boundaries do not change the counts.

    Args:
        texts: chunks of one text, read once.
        pattern: "gpt2", "gpt4", "gpt4o" or an expression.
        max_bytes: stop after this many bytes (UTF-8) of text.
        progress: called with (what, characters done, None).
    """
    find = regex.compile(expression(pattern)).findall
    counts: Counter[str] = Counter()
    done = 0
    for block in _blocks(_head(texts, max_bytes)):
        counts.update(find(block))
        done += len(block)
        if progress:
            progress("counting words", done, None)
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
            yield content[:left].decode(errors="ignore")  # drops a character that the limit cuts in two
            return
        left -= len(content)
        yield text


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The same stream in blocks of about BLOCK characters, cut where this does not change the pre-tokens."""
    cutter = Cutter(safe_cut, BLOCK)
    for text in texts:
        if block := cutter.add(text):
            yield block
    yield cutter.end()


def share_of_marks(words: Mapping[str, int]) -> float:
    """The share of combining marks (\\p{M}) in the characters of counted pre-tokens."""
    marks = sum(count * len(regex.findall(r"\p{M}", word)) for word, count in words.items())
    return marks / sum(count * len(word) for word, count in words.items())


def to_symbols(words: Mapping[str, int]) -> dict[str, int]:
    """Words as strings of symbols (bytes by their number in `byte_order`), with their counts."""
    table = {byte: chr(number) for number, byte in enumerate(byte_order())}
    return {word.encode().decode("latin-1").translate(table): count for word, count in words.items()}


def learn_merges(
    words: Mapping[str, int], num_merges: int, min_count: int = 2, progress: Progress | None = None
) -> list[Pair]:
    """Learn merges from counted words. Merge k makes symbol 256 + k.

    learn_merges({"aab": 3}, 2) -> [(number of a, number of a), (256, number of b)]

    Stops early when no pair occurs min_count times. `progress` is called after each merge.
    """
    symbols, weights = _in_a_row(words)
    lengths = [1] * 256  # bytes of each symbol
    counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, array[int]] = defaultdict(_positions)  # ascending places of each pair, now or earlier
    for place, (left, right) in enumerate(pairwise(symbols)):
        if left != END != right:
            counts[left, right] += weights[place]
            where[left, right].append(place)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        minus_count, pair = heapq.heappop(heap)
        count = counts[pair]
        if count < min_count:
            continue
        if count != -minus_count:  # rarer than when it was pushed (only new pairs become more frequent)
            heapq.heappush(heap, (-count, pair))
            continue
        left, right = pair
        new = 256 + len(merges)
        merges.append(pair)
        middle, length = lengths[left], lengths[left] + lengths[right]
        lengths.append(length)
        born: dict[Pair, array[int]] = defaultdict(_positions)
        for place in where.pop(pair):
            if symbols[place] != left or symbols[place + middle] != right:
                continue  # an earlier merge used one of the two symbols
            before, after, weight = symbols[place - 1], symbols[place + length], weights[place]
            if before != END:
                counts[before, left] -= weight
                counts[before, new] += weight
                born[before, new].append(place - lengths[before])
            if after != END:
                counts[right, after] -= weight
                counts[new, after] += weight
                born[new, after].append(place)
            symbols[place] = symbols[place + middle] = symbols[place + length - 1] = new
        del counts[pair]
        where.update(born)
        for neighbours in born:
            if counts[neighbours] >= min_count:
                heapq.heappush(heap, (-counts[neighbours], neighbours))
        if progress:
            progress("learning byte pairs", len(merges), num_merges)
    return merges


def _in_a_row(words: Mapping[str, int]) -> tuple["array[int]", "array[int]"]:
    """The symbols of all words with END around each word, and the count of the word at each place."""
    symbols, weights = array("i", [END]), array("q", [0])
    for word, count in to_symbols(words).items():
        symbols.extend([*map(ord, word), END])
        weights.extend([count] * (len(word) + 1))
    return symbols, weights


def _positions() -> "array[int]":
    return array("I")


def learn_merges_reference(words: Mapping[str, int], num_merges: int, min_count: int = 2) -> list[Pair]:
    """The textbook loop, which counts all pairs again for every merge; same result as `learn_merges`."""
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
    """Replace every occurrence of a pair, left to right.

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
