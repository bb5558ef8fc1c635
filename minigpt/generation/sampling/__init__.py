"""Choose a token from logits with pure functions, in the order given in `order`."""

from minigpt.generation.sampling.order import NO_RULES, Rules, adjust, draw, probabilities, sample

__all__ = ["NO_RULES", "Rules", "adjust", "draw", "probabilities", "sample"]
