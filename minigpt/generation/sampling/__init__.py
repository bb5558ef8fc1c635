"""From logits to a token, as pure functions in one stated order: see `order`."""

from minigpt.generation.sampling.order import NO_RULES, Rules, adjust, draw, probabilities, sample

__all__ = ["NO_RULES", "Rules", "adjust", "draw", "probabilities", "sample"]
