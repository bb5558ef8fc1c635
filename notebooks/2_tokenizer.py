# %% [markdown]
# # 2 · A tokenizer, by hand
#
# A model reads whole numbers, not letters. The table that turns a text into numbers is made before any training. It
# decides how long a text is for the model, which words are one unit, and what the model can spell at all.
#
# We make such a table step by step: bytes, pairs, merges. Then we measure what it saves, and why the losses of two
# tokenizers cannot be compared, but their *bits per byte* can.
#
# Papers: Sennrich, Haddow and Birch, 2016, *Neural Machine Translation of Rare Words with Subword Units*;
# Radford et al., 2019 (GPT-2): the same over bytes.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import inspect
import math
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import regex

from minigpt.data.stories.generator import entropy, generate_stories
from minigpt.evals import compute_floors
from minigpt.explanation.canvas import COLOURS, INK, QUIET, quiet
from minigpt.model import gpt
from minigpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, TextStream
from minigpt.tokenizers.learn import learn_merges, learn_merges_reference, merge, to_symbols
from minigpt.tokenizers.patterns import PATTERNS, byte_order

plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}

# %% [markdown]
# ## A text is bytes
#
# A file holds bytes, numbers from 0 to 255. UTF-8 writes a character as one to four of them: English letters take one,
# `é` two, `你` three, most emoji four.

# %%
for character in "Aé你🙂":
    content = character.encode()
    print(f"{content.hex(' '):12} {len(content)} {'byte ' if len(content) == 1 else 'bytes'}  {character}")
assert [len(character.encode()) for character in "Aé你🙂"] == [1, 2, 3, 4]

# %% [markdown]
# So the simplest tokenizer has 256 ids, and it can read every text. The next simplest one gives every *character* of
# its training text a number. It can meet characters that it does not know.

# %%
byte, char = ByteTokenizer(), CharTokenizer.from_texts(["a cat sat"])

print("byte:", byte.encode("a 🐈 sat"))
print("char:", char.encode("a 🐈 sat"), "->", char.decode(char.encode("a 🐈 sat")))
assert byte.decode(byte.encode("a 🐈 sat")) == "a 🐈 sat"
assert char.unk_id in char.encode("a 🐈 sat")  # id 0: a character that was not there

# %% [markdown]
# A model that writes bytes may stop in the middle of a character. Text shown during writing must wait for the rest:

# %%
stream = TextStream(byte)
shown = [stream.push(id_) for id_ in "a 🐈".encode()]
print(shown)
assert shown == ["a", " ", "", "", "", "🐈"]

# %% [markdown]
# ## Count the pairs
#
# Bytes make texts long. **Byte pair encoding** joins symbols that are often next to each other. Its paper has this
# example: a text with *low* 5 times, *lower* 2, *newest* 6 and *widest* 3 times. We count every pair of neighbours.

# %%
words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}

pairs = Counter()
for word, count in words.items():
    for left, right in pairwise(word):
        pairs[left + right] += count
print(pairs.most_common(9))
assert pairs["es"] == pairs["st"] == 6 + 3  # in newest and in widest

# %% [markdown]
# ## Merge the most frequent, again and again
#
# 1. The most frequent pair becomes a new symbol. (`es` and `st` tie: the pair with the smaller numbers wins.)
# 2. It replaces that pair everywhere.
# 3. All pairs are counted anew. Back to 1.
#
# This is all of `minigpt.tokenizers.learn.learn_merges_reference`. Training uses `learn_merges`, which recounts only
# what changed, and finds the same merges.

# %%
merges = learn_merges_reference(words, num_merges=10)
assert merges == learn_merges(words, num_merges=10)

names = [chr(number) for number in byte_order()]  # symbol to text: 256 bytes, then the merged symbols
steps = [{word: [*map(ord, symbols)] for word, symbols in zip(words, to_symbols(words), strict=True)}]
for number, (left, right) in enumerate(merges):
    print(f"{number + 1:2}  {names[left]:>4} + {names[right]:4} -> {names[left] + names[right]}")
    names.append(names[left] + names[right])
    steps.append({word: merge(symbols, (left, right), 256 + number) for word, symbols in steps[-1].items()})

assert names[256:258] == ["es", "est"]

# %%
figure, axes = plt.subplots(figsize=(8.2, 4.2), layout="constrained")
for row, spelt in enumerate(steps):
    start = 0.0
    for word in words:
        x = start
        for symbol in spelt[word]:
            width = len(names[symbol])
            shade = "#f1f1f1" if width == 1 else plt.cm.Blues(0.12 + 0.09 * width)
            axes.add_patch(plt.Rectangle((x + 0.05, row + 0.08), width - 0.1, 0.84, color=shade, linewidth=0))
            axes.text(x + width / 2, row + 0.52, names[symbol], ha="center", va="center", family="monospace")
            x += width
        start += len(word) + 1
labels = ["bytes", *(f"{number}: {names[255 + number]}" for number in range(1, len(steps)))]
axes.set(xlim=(0, start - 1), ylim=(len(steps), 0), xticks=[])
axes.set_yticks([row + 0.5 for row in range(len(steps))], labels)
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
axes.set_title("what each merge does to the four words", fontsize=11)
plt.show()

# %% [markdown]
# The merges found `low` and `est`, a word and an ending. Nobody told them about words and endings: both are just
# frequent.
#
# ## Encode a new word
#
# To encode a text, apply the merges in the order in which they were learned. *lowest* was not in the text, but its
# parts were.

# %%
text = "\n".join(word for word, count in words.items() for _ in range(count))
toy = BPETokenizer.train([text], vocab_size=4 + 256 + 10)  # special tokens, bytes, merges
pieces = [toy.token_bytes(id_).decode() for id_ in toy.encode("lowest")]
print("lowest ->", pieces, toy.encode("lowest"))
assert pieces == ["low", "est"]

# %% [markdown]
# ## Words first
#
# Real text has spaces and punctuation, and `e the` is a frequent string of English too. So the text is first cut into
# **pre-tokens** by a regular expression, and a merge never crosses a cut. GPT-2's and GPT-4's expressions differ in how
# they treat numbers and capital letters. GPT-4o's also keeps a word with combining marks whole (Hindi, Thai):

# %%
sentence = "I'll pay $12345 now.  YOU'LL SEE!"
for name, pattern in PATTERNS.items():
    print(f"{name}: {regex.findall(pattern, sentence)}")
# at most three digits, and 'LL is treated as 'll
assert {"123", "45", "'LL"} <= {*regex.findall(PATTERNS["gpt4"], sentence)}

# %% [markdown]
# What if nothing is cut? We learn from some of minigpt's own stories, with the cuts and without.

# %%
stories = [*generate_stories(800, seed=1)]
train, held_out = "".join(stories[:600]), "".join(stories[600:])
some = {
    "with cuts": BPETokenizer.train(stories[:40], vocab_size=500),
    "without": BPETokenizer.train(["".join(stories[:40])], vocab_size=500, pattern=r"(?s).+"),
}
for name, tokenizer in some.items():
    learned = [tokenizer.token_bytes(id_).decode() for id_ in range(260, 500)]
    print(f"{name:10}", sorted(learned, key=len)[-5:])
    assert any(" " in piece.strip() for piece in learned) == (name == "without")

# %% [markdown]
# Without cuts whole phrases become tokens. The text becomes shorter, but the same word is part of many tokens, and the
# model has to learn it many times.
#
# ## How many tokens?
#
# More merges give fewer tokens for a text. We measure bytes per token on stories that were not in the training text,
# and on a very different text: the source of minigpt's `gpt.py`.

# %%
code = inspect.getsource(gpt)
sizes = [260, 300, 400, 600, 800, 1100, 1400]
bytes_per_token = {"stories, held out": [], "Python source": []}
for size in sizes:
    tokenizer = BPETokenizer.train([train], vocab_size=size)
    for name, sample in zip(bytes_per_token, (held_out, code), strict=True):
        bytes_per_token[name].append(len(sample.encode()) / len(tokenizer.encode(sample)))

print(f"{'vocabulary':18}", *(f"{size:6}" for size in sizes))
for name, values in bytes_per_token.items():
    print(f"{name:18}", *(f"{value:6.2f}" for value in values))

counts = [len(held_out.encode()) / value for value in bytes_per_token["stories, held out"]]
saved = -np.diff(counts) / np.diff(sizes)
print(f"{'saved by a merge':18}", f"{'':6}", *(f"{value:6.0f}" for value in saved), "tokens of the held-out stories")

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for (name, values), colour in zip(bytes_per_token.items(), COLOURS, strict=False):
    axes.plot(sizes, values, color=colour, marker="o", markersize=4.5)
    axes.text(sizes[-1] + 15, values[-1], name, color=colour, va="center")
axes.set(xlim=(200, 1750), ylim=(0, None), xticks=sizes[::2])
quiet(axes, "bytes per token, learned from stories", "vocabulary")
plt.show()

own, other = bytes_per_token.values()
assert own == sorted(own) and own[-1] > 4 and other[-1] < 0.6 * own[-1]
assert (np.diff(saved) < 0).all()

# %% [markdown]
# Each merge saves less than those before it. And a tokenizer fits its text: on code the same table saves little.
#
# A larger vocabulary is not free. Each id has a row in the embedding, and occurs less often in training:

# %%
for size in (300, 1400, 50257):
    print(f"{size:6} ids x 128 numbers = {size * 128:9,} parameters")

# %% [markdown]
# ## Special tokens
#
# Some ids stand for no text, such as `<|endoftext|>` between two documents. If a document *contains* the characters
# `<|endoftext|>`, they are read as plain text. Otherwise anybody could end a text by writing them.

# %%
bpe = BPETokenizer.train([train], vocab_size=1000)
said = "The end.<|endoftext|>"
print(bpe.special_tokens)
print("as text:   ", [bpe.token_bytes(id_).decode() for id_ in bpe.encode(said)])
print("as a token:", bpe.encode(said, special=True)[-1:], "stands for", bpe.token_bytes(bpe.eos_id))
assert bpe.eos_id not in bpe.encode(said)
assert bpe.encode(said, special=True)[-1] == bpe.eos_id

# %% [markdown]
# ## Bits per byte
#
# The simplest language model predicts every token by how frequent it was, whatever comes before it. We fit it on the
# training text with three tokenizers (with one added to each count, so that nothing is impossible), and compute its
# loss on the held-out text, in nats per token:
#
# $$\text{loss} = -\frac{1}{N} \sum_i \ln p(t_i)$$


# %%
def unigram_loss(tokenizer):
    """Nats per token on the held-out text, and the number of its tokens."""
    counts = np.bincount(tokenizer.encode_array(train), minlength=tokenizer.vocab_size) + 1
    tokens = tokenizer.encode_array(held_out)
    return float(-np.log(counts / counts.sum())[tokens].mean()), len(tokens)


tokenizers = {"char": CharTokenizer.from_texts([train]), "bpe 400": BPETokenizer.train([train], 400)}
tokenizers["bpe 1000"] = bpe
size = len(held_out.encode())
losses, bits = {}, {}
for name, tokenizer in tokenizers.items():
    losses[name], count = unigram_loss(tokenizer)
    bits[name] = losses[name] * count / math.log(2) / size
    print(f"{name:9} {losses[name]:.2f} nats x {count:6,} tokens / (ln 2 x {size:,} bytes) = {bits[name]:.2f}")

# %% [markdown]
# By the loss, characters are best, and the largest vocabulary is worst. But a token of the largest vocabulary is
# several letters long, so each guess predicts more text. We can compare the loss of the whole text, divided by its
# bytes, which no tokenizer changes:
#
# $$\text{bits per byte} = \frac{\text{sum of all losses}}{\ln 2 \cdot \text{bytes}}$$
#
# Now the order is reversed. To show which values are good, `minigpt eval` prints floors: a five-gram model, the program
# `xz`, and for these stories the entropy of the grammar that wrote them, which no model can beat.

# %%
raw = [np.frombuffer(part.encode(), dtype=np.uint8) for part in (train, held_out)]
floors = compute_floors(raw[0], raw[0], raw[1]) | {"entropy": entropy().bits_per_byte}
print({name: round(value, 2) for name, value in floors.items()})

figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3), layout="constrained")
for axes, values, title in ((left, losses, "loss, nats per token"), (right, bits, "bits per byte")):
    bars = axes.bar(values.keys(), values.values(), width=0.6, color=COLOURS[:3])
    axes.bar_label(bars, fmt="%.2f", padding=2)
    quiet(axes, title)
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.margins(y=0.12)
for name, value in (("five-gram", floors["five_gram"]), ("entropy", floors["entropy"])):
    right.axhline(value, color=QUIET, linewidth=0.9, linestyle="dashed", zorder=0)
    right.text(2.45, value, f"{name} {value:.2f}", color=QUIET, va="center", fontsize=9)
right.set_xlim(-0.5, 2.4)
plt.show()

assert losses["char"] < losses["bpe 400"] < losses["bpe 1000"]
assert bits["char"] > bits["bpe 400"] > bits["bpe 1000"] > floors["entropy"]

# %% [markdown]
# ## Exercise 1
#
# A text has *aaab* twice and *ab* three times. Which two merges come first? Count on paper, then ask `learn_merges`.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# aa: 2 + 2 = 4 times, ab: 2 + 3 = 5 times, so ab is first. Then aaab is a, a, ab: the pairs aa and a+ab both occur
# twice. The tie goes to the smaller numbers: aa.
answer, told = [], [chr(number) for number in byte_order()]
for left, right in learn_merges({"aaab": 2, "ab": 3}, num_merges=2):
    told.append(told[left] + told[right])
    answer.append(told[-1])
print(answer)
assert answer == ["ab", "aa"]

# %% [markdown]
# ## Exercise 2
#
# The family 👩‍👩‍👧 is three emoji, joined by two joiners (U+200D). How many bytes does it take? How many tokens
# with a tokenizer that learned from English only?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# 4 bytes for each emoji, 3 for each joiner: 4 + 3 + 4 + 3 + 4 = 18. English text teaches no merge of these bytes, so
# there are as many tokens.
family = "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
print(len(family.encode()), "bytes,", len(bpe.encode(family)), "tokens")
assert len(family.encode()) == len(bpe.encode(family)) == 18
assert bpe.decode(bpe.encode(family)) == family  # long, but nothing is lost

# %% [markdown]
# ## Exercise 3
#
# One model has a loss of 1.9 nats per token, and its tokens are 2 bytes long on average. Another reads bytes and has a
# loss of 0.9. Which is better?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
first, second = 1.9 / math.log(2) / 2, 0.9 / math.log(2)
print(f"{first:.2f} and {second:.2f} bits per byte: the second is better")
assert second < first

# %% [markdown]
# ## Exercise 4
#
# Somebody has a tokenizer with 1000 ids and wants one with 400 for the same text. Must they train again? Show your
# answer.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# No: merge k does not depend on how many come after it, so the smaller table is the beginning of the larger.
smaller = tokenizers["bpe 400"]
assert smaller.merges == bpe.merges[: len(smaller.merges)]
assert [smaller.token_bytes(id_) for id_ in range(400)] == [bpe.token_bytes(id_) for id_ in range(400)]
print(len(smaller.merges), "merges, all of them the first of", len(bpe.merges))

# %% [markdown]
# **Further:** `minigpt tokenizer train my.txt` trains one on your text, `minigpt tokenizer compare` compares several.
