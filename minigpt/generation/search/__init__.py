"""Search for continuations by other methods than plain sampling: beams, contrastive search, speculative decoding."""

from minigpt.generation.search.beam import Hypothesis, beam_search
from minigpt.generation.search.contrastive import contrastive_search
from minigpt.generation.search.speculative import Drafter, LookupDrafter, ModelDrafter, speculate

__all__ = [
    "Drafter",
    "Hypothesis",
    "LookupDrafter",
    "ModelDrafter",
    "beam_search",
    "contrastive_search",
    "speculate",
]
