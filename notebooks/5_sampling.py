# %% [markdown]
# # 5 · Sampling: from probabilities to text
#
# A model does not write. It gives every token a probability to be the next one. Writing needs a choice among the
# tokens, and this choice decides whether the same model is boring, surprising or talks nonsense.
#
# We look at the choices on a list of eight words, where you can check every number. Then we look at a small model that
# we train here, in half a minute.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import math
import tempfile
import textwrap
from collections import Counter

import matplotlib.pyplot as plt
import regex
import torch
from torch.testing import assert_close

from minigpt import GPT, GenerationConfig, ModelConfig, generate, generate_text, load_config, train
from minigpt.data.stories.generator import generate_stories
from minigpt.explanation.canvas import COLOURS, GRID, INK, QUIET, quiet
from minigpt.generation.sampling import NO_RULES, adjust, draw, probabilities
from minigpt.generation.search import ModelDrafter, beam_search, speculate

torch.set_num_threads(1)  # the same sums for any number of cores; at this size it is not slower
plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}

# %% [markdown]
# ## Eight words
#
# *The cat sat on the …* Our model is a list. Its logits are the logarithms of the probabilities, so that softmax gives
# the probabilities back:
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}$$

# %%
words = ["mat", "chair", "floor", "roof", "bed", "table", "moon", "idea"]
chances = torch.tensor([0.40, 0.20, 0.15, 0.10, 0.06, 0.04, 0.03, 0.02])
logits = chances.log()
assert_close(logits.softmax(-1), chances)


def chances_with(logits=logits, temperature=1.0, **settings):
    """The distribution to draw from, with these settings."""
    return probabilities(logits, GenerationConfig(temperature=temperature, **settings))


def entropy(p):
    """Mean surprise, in nats: 0 is certain, ln 8 = 2.08 are eight equal chances."""
    return torch.special.entr(p).sum().item()


def show(panels, before=chances):
    """Bars: the probabilities after. Outlines: before."""
    _, row = plt.subplots(1, len(panels), figsize=(2.05 * len(panels), 2.6), layout="constrained", sharey=True)
    for axes, (title, after) in zip(row, panels.items(), strict=True):
        axes.barh(words, after, color=COLOURS[0], height=0.7)
        axes.barh(words, before, color="none", edgecolor=QUIET, linewidth=0.9, height=0.7)
        quiet(axes, title, grid="x")
        axes.set(xlim=(0, 1.02), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    row[0].invert_yaxis()
    plt.show()


# %% [markdown]
# ## Temperature
#
# $$p_i \propto e^{z_i / \tau} = p_i^{1 / \tau}$$
#
# Below 1 likely words become likelier, above 1 all become more equal. At 0 only the likeliest is left: *greedy*.
#
# By hand: $\tau = 0.5$ squares the probabilities. The squares sum to $0.239$, so `mat` has $0.16 / 0.239 = 0.67$.

# %%
panels = {}
for temperature in (0, 0.5, 1, 2):
    panels[f"temperature {temperature}"] = after = chances_with(temperature=temperature)
    print(f"temperature {temperature:3}: mat {after[0]:.2f}, entropy {entropy(after):.2f} nats")
show(panels)

squares = chances**2
assert_close(chances_with(temperature=0.5), squares / squares.sum())
entropies = [entropy(after) for after in panels.values()]
assert entropies[0] == 0 and entropies == sorted(entropies)

# %% [markdown]
# ## Cut the tail
#
# `moon` and `idea` are unlikely, but a real model knows thousands of such words, and one of them spoils a sentence.
# Four rules drop them:
#
# | rule | what it keeps | paper |
# |---|---|---|
# | `top_k` | the $k$ likeliest | Fan et al., 2018 |
# | `top_p` | the likeliest ones, as few as possible, that together have at least $p$ | Holtzman et al., 2020 |
# | `min_p` | those at least $p$ times as likely as the likeliest | Nguyen et al., 2024 |
# | `typical_p` | those whose surprise $-\ln p_i$ is nearest the mean surprise | Meister et al., 2023 |
#
# By hand: `top_p=0.7` needs three words, since $0.4 + 0.2 < 0.7 \le 0.4 + 0.2 + 0.15$. `min_p=0.2` keeps words with at
# least $0.2 \cdot 0.4 = 0.08$: four words.

# %%
rules = ({"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.2}, {"typical_p": 0.4})
show({"  ".join(f"{name} {value}" for name, value in rule.items()): chances_with(**rule) for rule in rules})

kept = [[word for word, p in zip(words, chances_with(**rule), strict=True) if p > 0] for rule in rules]
for rule, some in zip(rules, kept, strict=True):
    print(f"{rule!s:20} {some}")
assert [len(some) for some in kept] == [2, 3, 4, 3]
assert "mat" not in kept[3] and round(entropy(chances), 2) == 1.68

# %% [markdown]
# The remaining probabilities are scaled to sum to 1 again. The typical words do not include the likeliest one: the mean
# surprise is $1.68$ nats, `chair` with $-\ln 0.2 = 1.61$ is nearest to it, and `mat` with $0.92$ surprises too little.
#
# **Sure or not?** A good rule keeps few words if the model is sure, and many if it is not. `top_k` cannot do that:

# %%
sure = torch.tensor([0.93, 0.02, 0.015, 0.01, 0.009, 0.007, 0.005, 0.004])
unsure = torch.linspace(0.135, 0.115, 8)
print(f"{'words kept':14} {'sure':>6} {'as above':>10} {'unsure':>8}")
table = {}
for name, value in (("top_k", 2), ("top_p", 0.9), ("min_p", 0.2)):
    numbers = [int((chances_with(p.log(), **{name: value}) > 0).sum()) for p in (sure, chances, unsure)]
    table[name] = numbers
    print(f"{name} {value:<8} {numbers[0]:6} {numbers[1]:10} {numbers[2]:8}")
assert table == {"top_k": [2, 2, 2], "top_p": [1, 5, 8], "min_p": [1, 4, 8]}

# %% [markdown]
# ## The order
#
# Settings act in a fixed order (`minigpt/generation/sampling/order.py`): penalties, temperature, then `top_k`, `top_p`,
# `min_p`, `typical_p`. So a cut sees the probabilities *after* the temperature, and at a high temperature the same
# `top_p` keeps more words:

# %%
left = [int((chances_with(temperature=value, top_p=0.7) > 0).sum()) for value in (0.5, 1, 2)]
print("top_p 0.7 at temperature 0.5, 1, 2 keeps", left, "words")
assert left == [2, 3, 4]

# %% [markdown]
# ## Against repetition
#
# Three penalties lower the logits of words that were already written. Say `mat` was written three times, and `chair`
# once:
#
# - `repetition_penalty` $r$: $z_i \to z_i / r$, and $z_i \cdot r$ where $z_i$ is negative (Keskar et al., 2019);
# - `frequency_penalty` $f$: $z_i \to z_i - f \cdot n_i$, where $n_i$ counts how often the word was written;
# - `presence_penalty` $g$: $z_i \to z_i - g$, once.

# %%
history = [torch.tensor([0, 0, 0, 1])]  # one text: mat mat mat chair


def after_history(logits=logits, **settings):
    """The probabilities after the penalties have seen the history, all of it generated."""
    config = GenerationConfig(temperature=1.0, **settings)
    return probabilities(adjust(logits[None], history, len(history[0]), config, NO_RULES), config)[0]


panels = {
    "repetition 1.5": after_history(repetition_penalty=1.5),
    "frequency 0.5": after_history(frequency_penalty=0.5),
    "presence 0.5": after_history(presence_penalty=0.5),
}
show(panels)
for name, p in panels.items():
    print(f"{name:15} mat {p[0]:.2f}, chair {p[1]:.2f}")
by_frequency = panels["frequency 0.5"]
assert_close(by_frequency[0] / by_frequency[2], 0.40 * math.exp(-3 * 0.5) / torch.tensor(0.15))
ratio = panels["repetition 1.5"] / chances
assert ratio[1] < ratio[0] < 1

# %% [markdown]
# The frequency penalty takes most from `mat`, which was written three times. The repetition penalty does something odd:
# it takes more from `chair`, which was written once. See exercise 3.

# %% [markdown]
# ## A model of our own
#
# It has two layers, a width of 64, and 300 steps on minigpt's stories. It is small enough to make every mistake.

# %%
with tempfile.TemporaryDirectory() as folder:
    config = load_config(
        overrides={
            "data.source": "stories",
            "data.stories_count": 2000,
            "tokenizer.kind": "bpe",
            "tokenizer.vocab_size": 600,
            "model.embed_dim": 64,
            "model.num_layers": 2,
            "model.max_seq_len": 64,
            "model.attention": "sdpa",  # fixed: the fastest kernel could be another one at the next run
            "train.max_steps": 300,
            "train.batch_size": 12,
            "train.eval_every": 300,
            "train.sample_every": 0,
            "train.device": "cpu",
            "train.precision": "fp32",
            "train.compile": "off",
            "schedule.warmup_steps": 20,
            "logging.plots": False,
            "logging.runs_dir": folder,
        }
    )
    run = train(config, name="tiny", quiet=True)
model = run.model.eval()


def write(**settings):
    """What the model writes after "Once upon a time", one story after another."""
    return generate_text(model, "Once upon a time", run.tokenizer, stop_at_eos=False, **settings)


for temperature in (0, 0.7, 1.5):
    text = write(max_new_tokens=160, temperature=temperature)
    print(textwrap.fill(f"temperature {temperature}: Once upon a time{text}", 110), "\n")

# %% [markdown]
# Greedy writing sounds right, but repeats itself: when the same words come back, it continues in the same way. A high
# temperature breaks words. We measure both, over 200 tokens of four texts at each temperature: the share of four-word
# sequences that appeared before, and the share of words that are in no story.

# %%
known = {word for story in generate_stories(2000, seed=0) for word in regex.findall(r"\w+", story)}


def measure(text):
    """Shares of repeated four-word sequences and of unknown words."""
    said = regex.findall(r"\w+", text)
    runs = [*zip(said, said[1:], said[2:], said[3:], strict=False)]
    return 1 - len({*runs}) / len(runs), sum(word not in known for word in said) / len(said)


temperatures = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
repeated, unknown = [], []
for temperature in temperatures:
    texts = write(max_new_tokens=200, temperature=temperature, num_samples=4)
    measured = torch.tensor([measure(text) for text in texts]).mean(0).tolist()
    repeated.append(measured[0])
    unknown.append(measured[1])

figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for values, colour, name in ((repeated, COLOURS[0], "repeated runs"), (unknown, COLOURS[1], "unknown words")):
    axes.plot(temperatures, [100 * value for value in values], color=colour, marker="o", markersize=4.5, label=name)
quiet(axes, "per cent", "temperature")
axes.legend(frameon=False, loc="upper center")
plt.show()

texts = write(max_new_tokens=200, temperature=1, min_p=0.1, num_samples=4)
cut = sum(measure(text)[1] for text in texts) / 4
print(f"unknown words at temperature 1: {100 * unknown[4]:.1f} %; with min_p 0.1: {100 * cut:.1f} %")
assert repeated[0] > 2 * repeated[4] and unknown[-1] > unknown[1] and cut < unknown[4]

# %% [markdown]
# Between the two there is a range in which both are low. Cutting the tail makes it wider: fewer broken words at the
# same temperature.
#
# ## Beam search: the likeliest text is not made of the likeliest words
#
# Greedy takes the best word now and may miss the best sentence. Beam search keeps the $n$ best beginnings. Here is a
# table of probabilities where that matters. To search in it we need a model, and a table *is* one: a GPT whose blocks
# add nothing. Each token's embedding $e_i = (0, \dots, 1, \dots, 0)$ then goes straight to the head, which looks up its
# row.


# %%
def table_model(rows):
    """A GPT that predicts row i after token i: probabilities [V, V], V at most 8."""
    config = ModelConfig(
        vocab_size=len(rows), embed_dim=8, num_heads=1, num_layers=1, tie_embeddings=False, zero_init_residual=True
    )
    gpt = GPT(config).eval().requires_grad_(False)
    gpt.embedding.weight[:8] = torch.eye(8)
    norm = gpt.norm(torch.eye(8))[0, 0]  # what the last norm does to a 1
    gpt.head.weight[: len(rows), : len(rows)] = rows.clamp(min=1e-12).log().T / norm
    return gpt


names = ["the", "small", "old", "cat", "dog", "bird", "king"]
tree = {
    "the": {"small": 0.6, "old": 0.4},
    "small": {"cat": 0.4, "dog": 0.3, "bird": 0.3},
    "old": {"king": 0.9, "cat": 0.1},
}
rows = torch.eye(7)
for word, following in tree.items():
    rows[names.index(word)] = torch.tensor([following.get(name, 0.0) for name in names])
tree_model = table_model(rows)

greedy = [int(step) for step in generate(tree_model, [[0]], GenerationConfig(temperature=0, max_new_tokens=2))]
settings = GenerationConfig(temperature=0, max_new_tokens=2, num_beams=2, num_samples=2)
beams = beam_search(tree_model, [[0]], settings)[0]

print("greedy:", [names[id_] for id_ in greedy], f"chance {rows[0, greedy[0]] * rows[greedy[0], greedy[1]]:.2f}")
for beam in beams:
    print("beam:  ", [names[id_] for id_ in beam.ids], f"chance {math.exp(beam.logprob):.2f}")
assert [names[id_] for id_ in greedy] == ["small", "cat"]
assert [names[id_] for id_ in beams[0].ids] == ["old", "king"]
assert abs(math.exp(beams[0].logprob) - 0.4 * 0.9) < 1e-4

# %%
places = {"the": (0, 2), "small": (1, 3), "old": (1, 0.5)}
leaves = {("small", "cat"): 4, ("small", "dog"): 3, ("small", "bird"): 2, ("old", "king"): 1, ("old", "cat"): 0}
lines = [("the", "small", places["small"]), ("the", "old", places["old"])]
lines += [(parent, child, (2, height)) for (parent, child), height in leaves.items()]
paths = {("the", "small"): 0, ("small", "cat"): 0, ("the", "old"): 1, ("old", "king"): 1}

figure, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
for parent, child, (x, y) in lines:
    chance, colour = tree[parent][child], paths.get((parent, child))
    shade = GRID if colour is None else COLOURS[colour]
    axes.plot([places[parent][0], x], [places[parent][1], y], color=shade, linewidth=1 + 6 * chance, zorder=0)
    middle = (x - 0.4, places[parent][1] + 0.6 * (y - places[parent][1]))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(*middle, f"{chance:.1f}", ha="center", va="center", color=QUIET, fontsize=9, bbox=box)
    box = {"facecolor": "white", "edgecolor": shade, "boxstyle": "round,pad=0.35"}
    axes.text(x, y, child, ha="center", va="center", bbox=box)
    if x == 2:
        total = tree["the"][parent] * chance
        weight = "bold" if (parent, child) in paths else "normal"
        axes.text(2.17, y, f"{total:.2f}", va="center", color=QUIET if colour is None else shade, weight=weight)
axes.text(0, 2, "the", ha="center", va="center", bbox={"facecolor": "white", "boxstyle": "round,pad=0.35"})
axes.text(2.4, 4, "greedy", color=COLOURS[0], va="center")
axes.text(2.4, 1, "two beams", color=COLOURS[1], va="center")
axes.set(xlim=(-0.15, 2.75), ylim=(-0.5, 4.5))
axes.axis("off")
plt.show()

# %% [markdown]
# Beam search is for tasks with one right answer, such as translation. The likeliest possible story is dull.
#
# ## Speculative sampling: faster, and the same
#
# A small model guesses a token, drawn from its probabilities $q$. The large model, with probabilities $p$, checks the
# guess $x$:
#
# - it is kept with probability $\min(1, p_x / q_x)$,
# - else a token is drawn from $\max(0, p - q)$, scaled to sum to 1.
#
# The written tokens have exactly the probabilities $p$, whatever $q$ is. (By hand: token $x$ comes out as a kept guess
# with $q_x \min(1, p_x/q_x) = \min(p_x, q_x)$, and the second way adds exactly what is missing to $p_x$.) A better
# guesser only makes it faster: several guesses are checked in one pass. Leviathan et al., 2023; Chen et al., 2023.

# %%
guesses = torch.tensor([0.25, 0.25, 0.05, 0.20, 0.10, 0.05, 0.05, 0.05])  # the small model's
overlap = torch.minimum(chances, guesses)
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
places = torch.arange(8)
axes.bar(places - 0.2, chances, width=0.38, color=COLOURS[0], label="p, the large model")
axes.bar(places + 0.2, guesses, width=0.38, color=COLOURS[4], label="q, the small model")
axes.hlines(overlap, places - 0.4, places + 0.4, color=INK, linewidth=1.6, label="both: the guess stands")
axes.set_xticks(places, words)
quiet(axes)
axes.legend(frameon=False)
plt.show()
print(f"a guess stands with probability {overlap.sum():.2f}")

# %% [markdown]
# We draw 2000 first tokens in this way, and count them. If the distribution is $p$, the statistic $\chi^2 = \sum_i
# (\text{count}_i - n p_i)^2 / (n p_i)$ is 7 on average, and above 24.3 once in a thousand times. If we kept every
# guess, it would be far above:

# %%
large, small = (table_model(p.expand(8, 8)) for p in (chances, guesses))
drafter, settings, number = ModelDrafter(small, 1), GenerationConfig(temperature=1.0, max_new_tokens=2), 2000
first, stood = Counter(), 0
for seed in range(number):
    # the guess and one more token, or only another token
    ids = next(speculate(large, [0], settings, drafter, seed=seed))
    first[ids[0]] += 1
    stood += len(ids) == 2


def chi_square(counts):
    """How far the counts of the eight words are from what p predicts."""
    return sum((counts[i] - number * p) ** 2 / (number * p) for i, p in enumerate(chances.tolist()))


generator = torch.Generator().manual_seed(0)
kept = Counter(int(draw(guesses, generator)) for _ in range(number))
print(f"speculative: chi-square {chi_square(first):6.1f}, {100 * stood / number:.0f} % of the guesses stood")
print(f"guesses:     chi-square {chi_square(kept):6.1f}")
assert chi_square(first) < 24.3 < chi_square(kept)
assert abs(stood / number - overlap.sum()) < 0.04

# %% [markdown]
# ## Seeds
#
# The same seed gives the same text. Sample $i$ of a call draws with `seed + i`, from its own generator, so it does not
# depend on the number of other samples:

# %%
three = write(max_new_tokens=12, temperature=1.0, num_samples=3, seed=7)
for text in three:
    print(repr(text))
assert write(max_new_tokens=12, temperature=1.0, seed=9) == three[2]

# %% [markdown]
# ## Exercise 1
#
# Two tokens have the probabilities 0.8 and 0.2. What is the probability of the first one at temperature 0.5? And at
# which temperature is it $2/3$? Calculate it on paper.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# 0.64 / (0.64 + 0.04) = 0.94. The odds are 4 : 1, and a temperature t turns them into 4^(1/t), which is 2 for t = 2.
two = torch.tensor([0.8, 0.2]).log()
cold, hot = chances_with(two, temperature=0.5)[0].item(), chances_with(two, temperature=2)[0].item()
print(f"{cold:.3f} {hot:.3f}")
assert abs(cold - 0.64 / 0.68) < 1e-6
assert abs(hot - 2 / 3) < 1e-6

# %% [markdown]
# ## Exercise 2
#
# What is the probability of `mat` with `top_p=0.7`, after the rest is dropped? Which `min_p` keeps exactly the same
# words?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# 0.4 / 0.75 = 0.53. min_p must lie between 0.10 / 0.40 = 0.25 and 0.15 / 0.40 = 0.375, for example 0.3.
by_top_p, by_min_p = chances_with(top_p=0.7), chances_with(min_p=0.3)
print(f"{by_top_p[0]:.3f}")
assert abs(by_top_p[0] - 0.4 / 0.75) < 1e-6
assert_close(by_top_p, by_min_p)

# %% [markdown]
# ## Exercise 3
#
# Add 10 to every logit. The probabilities stay the same. Which of the three penalties now acts differently, and why?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# The repetition penalty: it multiplies, so it depends on where zero is, and the probabilities do not. The others
# subtract.
assert_close(chances_with(logits + 10), chances, atol=1e-5, rtol=1e-5)
for penalty in ({"repetition_penalty": 1.5}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.5}):
    before, after = after_history(**penalty), after_history(logits + 10, **penalty)
    print(penalty, f"mat {before[0]:.3f}, with 10 more {after[0]:.3f}")
    assert torch.allclose(before, after, atol=1e-5) == ("repetition_penalty" not in penalty)

# %% [markdown]
# ## Exercise 4
#
# Each guess is kept with a probability of 0.8, and four guesses are made at a time. How many tokens does one pass of
# the large model write on average? Simulate it to check.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# The guesses up to the first that is rejected, and one more token: 1 + 0.8 + 0.8^2 + 0.8^3 + 0.8^4 = 3.36.
by_hand = sum(0.8**k for k in range(5))
stands = torch.rand(100_000, 4, generator=torch.Generator().manual_seed(3)) < 0.8
simulated = 1 + stands.cumprod(dim=1).sum(1).float().mean().item()
print(f"by hand {by_hand:.2f}, simulated {simulated:.2f}")
assert abs(simulated - by_hand) < 0.02

# %% [markdown]
# **Further:** `minigpt generate --help` lists every setting, in the order in which they act.
