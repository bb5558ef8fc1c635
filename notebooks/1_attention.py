# %% [markdown]
# # 1 · Attention, on numbers that fit on paper
#
# A word means little alone. In *the cat saw it* the word *it* has to look back to find what it stands for. Attention is
# how a Transformer looks back. Every token takes a mean of what the earlier tokens offer, and decides how much to take
# from each.
#
# We do it with four tokens and vectors of four numbers. Take a pencil: you can check every number by hand. Then we ask
# minigpt's own code, and it must give the same numbers.
#
# Paper: Vaswani et al., 2017, *Attention Is All You Need*, section 3.2.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import math

import matplotlib.pyplot as plt
import torch
from torch.testing import assert_close

from minigpt import GPT, KVCache, ModelConfig
from minigpt.explanation.canvas import COLOURS, GRID, INK, QUIET
from minigpt.model import parts, reference

torch.set_printoptions(precision=2, sci_mode=False)
plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}

# %% [markdown]
# ## Query, key, value
#
# Every token has three vectors:
#
# - a **query** $q$: what it looks for,
# - a **key** $k$: how other tokens find it,
# - a **value** $v$: what it gives to the tokens that look at it.
#
# A trained model learns these vectors. Here we choose them, so that each of the four numbers has a meaning: *noun*,
# *verb*, *article*, *pronoun*. `saw` looks for a noun, its subject. `cat` looks for an article. `it` looks for a noun,
# and a little for a verb. `the` looks for nothing.

# %%
words = ["the", "cat", "saw", "it"]
#                   noun verb article pronoun
query = torch.tensor([[0.0, 0, 0, 0], [0, 0, 2, 0], [2, 0, 0, 0], [2, 1, 0, 0]])
key = torch.tensor([[0.0, 0, 2, 0], [2, 0, 0, 0], [0, 2, 0, 0], [1, 0, 0, 1]])
value = torch.tensor([[1.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])

for word, *rows in zip(words, query, key, value, strict=True):
    print(f"{word:4}", "   ".join(f"{name} {row.int().tolist()}" for name, row in zip("qkv", rows, strict=True)))

# %% [markdown]
# ## Scores: how well does a query fit a key?
#
# The score is their dot product, divided by the root of their length $D = 4$:
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt D}$$
#
# By hand, for `it` and `cat`: $(2 \cdot 2 + 1 \cdot 0 + 0 \cdot 0 + 0 \cdot 0) / 2 = 2$.

# %%
size = query.shape[1]
scores = query @ key.T / math.sqrt(size)  # [4, D] @ [D, 4] -> [4, 4]
print(scores)

# %% [markdown]
# ## The mask: no token sees a later one
#
# The model learns to guess the next token, so no token may look at a later one. The scores of later tokens become
# $-\infty$. This is what makes attention *causal*.

# %%
visible = torch.ones(4, 4, dtype=torch.bool).tril()
masked = scores.masked_fill(~visible, -math.inf)
print(masked)

# %% [markdown]
# ## Softmax: from scores to weights
#
# $$w_{ij} = \frac{e^{s_{ij}}}{\sum_{j' \le i} e^{s_{ij'}}}$$
#
# By hand, the row of `it`: its scores are $0, 2, 1, 1$. $e^0 = 1$, $e^2 \approx 7.39$, $e^1 \approx 2.72$, together
# $1 + 7.39 + 2.72 + 2.72 = 13.83$. So `cat` gets $7.39 / 13.83 = 0.53$. And $e^{-\infty} = 0$: the future gets nothing.

# %%
weights = masked.softmax(-1)
print(weights)
assert_close(weights.sum(-1), torch.ones(4))  # each row sums to exactly 1
assert round(weights[3, 1].item(), 2) == 0.53


# %%
def draw(axes, matrix, title, most=1.0):
    """A matrix [4, 4] as tiles with their numbers; the future stays empty."""
    tiles = matrix.masked_fill(~visible, math.nan)
    axes.pcolormesh(tiles, cmap="Blues", vmin=0, vmax=most, edgecolors="white", linewidth=3)
    for i in range(4):
        for j in range(i + 1):
            number = tiles[i, j].item()
            colour = "white" if number > 0.6 * most else INK
            axes.text(j + 0.5, i + 0.5, f"{number:.2f}", ha="center", va="center", color=colour)
    axes.set(xlim=(0, 4), ylim=(4, 0), aspect="equal")
    axes.set_xticks([0.5, 1.5, 2.5, 3.5], words)
    axes.set_yticks([0.5, 1.5, 2.5, 3.5], words)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=11)
    axes.spines[:].set_visible(False)


figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
draw(left, masked, "scores", most=2.5)
draw(right, weights, "weights: each row sums to 1")
left.set_ylabel("who looks")
figure.supxlabel("who is looked at", fontsize=10)
plt.show()

# %% [markdown]
# `saw` and `it` look at `cat`, `cat` looks at `the`. `the` is the first token, so it can only look at itself: the first
# row of every causal attention is a single 1.
#
# ## The mean of the values
#
# $$o_i = \sum_{j \le i} w_{ij} \, v_j$$
#
# By hand, `saw` gets $0.11 \cdot v_{\text{the}} + 0.79 \cdot v_{\text{cat}} + 0.11 \cdot v_{\text{saw}}$. The second
# of its four numbers is $0.79 \cdot 4 \approx 3.15$.

# %%
out = weights @ value  # [4, 4] @ [4, D] -> [4, D]
print(out)
assert round(out[2, 1].item(), 2) == 3.15

# %% [markdown]
# ## minigpt says the same
#
# All of this is one function, `minigpt.model.reference.attention`, on tensors with two more axes: the sentences of a
# batch, and heads. It is also one module, `minigpt.model.parts.Attention`, which computes $q$, $k$ and $v$ with one
# matrix. We put our vectors into that matrix: if the tokens are $(1,0,0,0)$, $(0,1,0,0)$ and so on, the matrix product
# picks the rows of the matrix.


# %%
def attention_module(heads, **fields):
    """minigpt's own module, with our queries, keys and values as its weights."""
    config = ModelConfig(embed_dim=4, num_heads=heads, num_layers=1, qk_norm=False, position="learned", **fields)
    module = parts.Attention(config).requires_grad_(False)
    module.qkv.weight.copy_(torch.cat([query, key, value], dim=1).T)  # [12, 4]
    module.out.weight.copy_(torch.eye(4))
    return module, config


tokens = torch.eye(4)[None]  # [1, 4, 4]: one sentence, four tokens
module, _ = attention_module(heads=1)

assert_close(reference.attention(query[None, None], key[None, None], value[None, None])[0, 0], out)
assert_close(module(tokens)[0], out)
print(module(tokens)[0])

# %% [markdown]
# ## Why divide by $\sqrt D$?
#
# The dot product of two random vectors of length $D$ has a standard deviation of $\sqrt D$. Real heads have $D = 64$ or
# more. Without the division the scores are so far apart that softmax gives nearly all weight to one token: the model is
# too sure too early, and hard to train.

# %%
generator = torch.Generator().manual_seed(0)
print("   D   spread of q·k   largest of 8 weights: without the division, with it")
for size in (4, 64, 1024):
    some_queries, some_keys = torch.randn(2, 2000, 8, size, generator=generator)
    products = (some_queries[:, :1] * some_keys).sum(-1)  # one query, eight keys, 2000 times
    plain, divided = (each.softmax(-1).amax(-1).mean().item() for each in (products, products / math.sqrt(size)))
    print(f"{size:4} {products.std():10.1f} {plain:30.2f} {divided:14.2f}")
assert plain > 0.9 and divided < 0.5

# %% [markdown]
# ## Causality, tested
#
# We change the last token as much as we like. No earlier output may change. Without the mask, the outputs of all tokens
# that look at it change.

# %%
other_key, other_value = key.clone(), value.clone()
other_key[3], other_value[3] = torch.tensor([9.0, 9, 9, 9]), torch.tensor([-5.0, 5, -5, 5])


def changed_rows(visible):
    """Which tokens' outputs change when the last token changes."""
    before = reference.attention(*(x[None, None] for x in (query, key, value)), visible=visible)
    after = reference.attention(*(x[None, None] for x in (query, other_key, other_value)), visible=visible)
    return [word for word, moved in zip(words, (before != after).any(-1)[0, 0], strict=True) if moved]


print("with the mask:   ", changed_rows(visible))
print("without the mask:", changed_rows(torch.ones(4, 4, dtype=torch.bool)))
assert changed_rows(visible) == ["it"]

# %% [markdown]
# ## Several heads
#
# One softmax can hardly look for two things at once. So the vectors are cut into pieces, and each piece has its own
# attention, a **head**. With two heads, head 0 gets the numbers for *noun* and *verb*, head 1 those for *article* and
# *pronoun*. The results are joined again, so the matrices do not get larger.


# %%
def heads_of(x, heads):
    """[T, C] -> [1, H, T, D]: cut each vector into H pieces."""
    return x.view(1, len(x), heads, -1).transpose(1, 2)


def weights_of(query, key):
    """[1, H, T, D] -> [H, T, T]. With the identity as values, the result is the weights themselves."""
    identity = torch.eye(query.shape[2]).expand(*query.shape[:2], -1, -1)
    return reference.attention(query, key, identity)[0]


per_head = weights_of(heads_of(query, 2), heads_of(key, 2))
figure, panels = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
draw(panels[0], per_head[0], "head 0: noun, verb")
draw(panels[1], per_head[1], "head 1: article, pronoun")
plt.show()

module2, _ = attention_module(heads=2)
both = reference.attention(*(heads_of(x, 2) for x in (query, key, value)))  # [1, 2, 4, 2]
assert_close(module2(tokens)[0], both[0].transpose(0, 1).reshape(4, 4))
assert module2.qkv.weight.shape == module.qkv.weight.shape  # the same number of parameters

# %% [markdown]
# Head 0 finds the cat, head 1 finds the article. If a head has nothing to look for, such as head 1 at `saw`, it looks
# everywhere equally.
#
# ## Positions
#
# Attention does not know the order of the tokens that it sees. We swap `the` and `cat`, with all their vectors: `it`
# gets the same result as before.

# %%
swap = [1, 0, 2, 3]
swapped = reference.attention(*(x[swap][None, None] for x in (query, key, value)))[0, 0]
assert_close(swapped[3], out[3])
print("it, before:", out[3], "\nit, after: ", swapped[3])

# %% [markdown]
# **Rotary positions** (Su et al., 2021) rotate queries and keys before their dot product. A vector of two numbers at
# position $t$ is rotated by the angle $t$ (in longer vectors, each further pair by a smaller angle). Rotating both
# vectors by the same angle does not change their dot product, so the score depends only on the *distance* of two
# tokens:
#
# $$R(m)\,q \cdot R(n)\,k = q \cdot R(n - m)\,k$$

# %%
arrow = torch.tensor([1.0, 0.0])
turned = torch.stack([reference.rotate(arrow, position, theta=10000.0) for position in range(6)])  # [6, 2]
products = turned @ turned.T  # [6, 6]: q = k = (1, 0) at all positions
print(products)

for m in range(5):
    for n in range(5):
        assert_close(products[m + 1, n + 1], products[m, n])  # one step further, the same distance

cosines, sines = parts.rotary_tables(6, 2, theta=10000.0)  # the fast form: all positions at once
assert_close(parts.rotate(arrow.expand(1, 1, 6, 2), cosines, sines)[0, 0], turned)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
left.add_patch(plt.Circle((0, 0), 1, fill=False, color=GRID))
for position, (x, y) in enumerate(turned.tolist()):
    left.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": COLOURS[0], "shrinkA": 0, "shrinkB": 0})
    left.text(1.15 * x, 1.15 * y, position, ha="center", va="center")
left.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
left.set_title("(1, 0) at positions 0 to 5", fontsize=11, pad=22)
left.spines[:].set_visible(False)

curves = parts.rotary_tables(41, 8, theta=10000.0)[0]  # [41, 8]: cosines of the angles after 0 to 40 steps
for pair in range(3):
    right.plot(curves[:, pair], color=COLOURS[pair], marker=".", markersize=4, label=f"pair {pair}")
right.set_title("score by distance, with D = 8", fontsize=11, pad=22)
right.set_xlabel("distance", color=QUIET)
right.axhline(0, color=GRID, zorder=0)
right.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=3, fontsize=9)
right.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The fast pair tells neighbours apart, the slow ones tell near tokens from distant ones.
#
# ## The cache: one row at a time
#
# When a model writes, one token is added at each step. The keys and values of earlier tokens do not change
# (causality!), so they are kept. Each step then computes only one row. It is the same row as before.

# %%
module, config = attention_module(heads=1)
cache, rows = KVCache(config, size=4), []
for step in range(4):
    rows.append(module(tokens[:, step : step + 1], cache=cache.layer(0)))  # [1, 1, 4]: this token alone
    cache.length += 1  # GPT does this itself, after its last layer
    print(f"step {step}: {words[step]:4} sees keys of {words[: cache.length]}")
assert_close(torch.cat(rows, dim=1)[0], out)
assert_close(cache.keys[0, 0, 0], key)  # layer 0, row 0, head 0: exactly our keys

# %% [markdown]
# The same holds for a whole GPT, with random weights, four heads that share two sets of keys and values, and rotary
# positions:

# %%
gpt = GPT(ModelConfig(vocab_size=50, embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, init_std=0.3)).eval()
ids, cache = torch.tensor([[7, 3, 9, 3, 1]]), gpt.make_cache()
with torch.no_grad():
    one_by_one = torch.cat([gpt(ids[:, t : t + 1], cache) for t in range(5)], dim=1)
    assert_close(one_by_one, gpt(ids), atol=1e-5, rtol=1e-5)
print("logits", list(one_by_one.shape), "one token at a time = all at once")

# %% [markdown]
# ## Exercise 1
#
# The query of `saw` is doubled, to $(4, 0, 0, 0)$. What is its weight on `cat` now? First by hand, then with
# `reference.attention`.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# Scores 0, 4, 0: the weight is e^4 / (1 + e^4 + 1) = 54.6 / 56.6 = 0.96. A longer query makes the head surer.
by_hand = math.exp(4) / (2 + math.exp(4))
louder = query.clone()
louder[2] *= 2
found = weights_of(louder[None, None], key[None, None])[0, 2, 1].item()
print(f"by hand {by_hand:.4f}, by minigpt {found:.4f}")
assert abs(found - by_hand) < 1e-6
assert 0.96 < found < 0.97

# %% [markdown]
# ## Exercise 2
#
# Choose queries and keys of length 4 so that each of four tokens looks at the one before it, with a weight above 0.99,
# whatever the words are. (Trained models learn such *previous-token heads* by themselves.)

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# The key says "I am at position t", the query "I look for t - 1". If both are long enough, only that counts.
place = 20 * torch.eye(4)
previous_query, previous_key = place.roll(1, dims=0), place  # row t asks for t - 1
previous = weights_of(previous_query[None, None], previous_key[None, None])[0]
print(previous)
assert all(previous[t, t - 1] > 0.99 for t in (1, 2, 3))
assert previous[0, 0] == 1  # the first token can only look at itself

# %% [markdown]
# ## Exercise 3
#
# A model has 4 layers, 4 heads of size 32 and a context of 128 tokens, in numbers of 4 bytes. How large is its cache
# for one text? How large is it if all four query heads share one key and value head (`num_kv_heads=1`)?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# Keys and values (2), for each layer, head, position and number of the head: 2 * 4 * 4 * 128 * 32 * 4 bytes.
for kv_heads in (4, 1):
    shape = ModelConfig(embed_dim=128, num_heads=4, num_kv_heads=kv_heads, num_layers=4, max_seq_len=128)
    cache = KVCache(shape)
    counted = cache.keys.nbytes + cache.values.nbytes
    print(f"{kv_heads} key and value heads: {counted:,} bytes")
    assert counted == 2 * 4 * kv_heads * 128 * 32 * 4

# %% [markdown]
# ## Exercise 4
#
# Two tokens at positions 3 and 5 have some score under rotary positions. The second moves to 105. Where must the first
# one be, so that the score stays the same? Show it for random vectors of length 8.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# At 103: only the distance counts.
first, second = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


def score_at(m, n):
    return reference.rotate(first, m, 10000.0) @ reference.rotate(second, n, 10000.0)


print(f"{score_at(3, 5):.4f} {score_at(103, 105):.4f}, but {score_at(3, 105):.4f}")
assert_close(score_at(3, 5), score_at(103, 105), atol=1e-4, rtol=1e-4)
assert abs(score_at(3, 5) - score_at(3, 105)) > 0.1

# %% [markdown]
# **Further:** `minigpt explain` draws these matrices for your own model. Notebook 3 trains one and looks inside.
