"""Generate questions about the first sentences of stories, with answers: a small data set for fine-tuning.

    user:      Sam was a shy fox who lived by the river. Where is the home of Sam?
    assistant: by the river

The answer is always in the text of the question, so a model must learn to read, not to remember. Question i depends
only on (seed, i).
"""

import random
from collections.abc import Iterator

from minigpt.data.stories.generator import stories_grammar

ASKED = {
    "at_home": (("Who is this about?", "hero", "name"), ("Which animal is {name}?", "kind", "noun"),
                ("Where is the home of {name}?", "home", "at")),
    "fond": (("Who is this about?", "hero", "name"), ("Which animal is {name}?", "kind", "noun"),
             ("What does {name} want?", "treat", "noun")),
}  # fmt: skip
"""Rule of the stories' grammar -> (question, role, the role's form that is the answer)."""


def question(seed: int, index: int) -> tuple[str, str]:
    """Make (sentence and a question about it, answer)."""
    rng = random.Random((seed << 32) + index)
    rule = sorted(ASKED)[int(rng.random() * len(ASKED))]  # only random() is the same in every Python
    sentence, cast = stories_grammar().sentence(rule, rng)
    words, role, form = ASKED[rule][int(rng.random() * len(ASKED[rule]))]
    return f"{sentence} {words.format(name=cast['hero']['name'])}", cast[role][form]


def questions(count: int, seed: int = 0) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield `count` different chats of a question and its answer: {"messages": [{"role", "content"}, ...]}."""
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        asked, answer = question(seed, index)
        index += 1
        if asked not in seen:
            seen.add(asked)
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
