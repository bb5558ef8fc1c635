"""Shrink a recipe to check that it works."""

import math
from collections.abc import Iterable

from minigpt.config import RunConfig, validate


def tiny(config: RunConfig, kept: Iterable[str] = ()) -> RunConfig:
    """The same recipe shrunk to about a minute of CPU, to check that everything works before the long run.

    `kept` are dotted paths of settings that do not change: those that the person gave.
    """
    tree, kept = config.model_dump(), set(kept)
    shape = tree["model"]
    heads = shape["num_heads"] if kept & {"model.num_heads", "model.num_kv_heads"} else math.gcd(shape["num_heads"], 4)
    width = max(1, min(shape["embed_dim"], 64) // (2 * heads)) * 2 * heads  # an even head size, for rope
    shape |= {
        "num_layers": min(shape["num_layers"], 2),
        "embed_dim": width,
        "vocab_size": None,
        "num_heads": heads,
        "num_kv_heads": math.gcd(config.model.kv_heads, heads),
        "head_dim": None,
        "ff_dim": None,
        "max_seq_len": min(shape["max_seq_len"], 64),
    }
    tree["tokenizer"] |= {
        "vocab_size": min(config.tokenizer.vocab_size, 1024),
        "max_train_bytes": min(config.tokenizer.max_train_bytes, 2_000_000),
    }
    tree["data"]["stories_count"] = min(config.data.stories_count, 500)
    tree["schedule"]["warmup_steps"] = min(config.schedule.warmup_steps, 10)
    tree["train"] |= {"max_steps": 100, "max_epochs": None, "max_tokens": None, "max_minutes": None}
    micro = config.train.micro_batch_size
    micro = micro if "train.micro_batch_size" in kept and isinstance(micro, int) else 1
    batch = min(config.train.batch_size, max(1, 8 // micro) * micro)
    tree["train"] |= {"batch_size": batch, "micro_batch_size": None}
    tree["train"] |= {"eval_every": 50, "eval_batches": 8, "sample_every": 50, "save_every": 50}
    for path in kept:
        section, _, field = path.partition(".")
        tree[section][field] = getattr(getattr(config, section), field)
    return validate(tree)
