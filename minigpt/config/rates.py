"""Choose default learning rates by width, and translate the rates of older configs.

`learning_rate` belongs to the optimizer that `kind` names. With Muon, AdamW updates the other weights; their rate is
learning_rate x `adamw_ratio`.
"""

from typing import Any, TypeGuard

MUON = 0.02


def default_rate(kind: str, embed_dim: int) -> float:
    """The peak rate for a kind of optimizer. AdamW's was measured at widths 64 and 128 (docs/LOG.md): a wider model
    needs a smaller rate. Muon needs no such rule: its updates have the same size at any width.
    """
    return _two_digits(2e-3 * (256 / embed_dim) ** 0.5) if kind == "adamw" else MUON


def default_ratio(embed_dim: int) -> float:
    """`adamw_ratio` at Muon's default rate. AdamW's rate is 4e-3 x sqrt(256 / width), from the same measurement."""
    return _ratio(_adamw_rate_with_muon(embed_dim), MUON)


def with_one_rate(optimizer: dict[str, Any], embed_dim: int) -> dict[str, Any]:
    """The settings of an optimizer in today's form. In the old form, learning_rate is AdamW's even with Muon:

    {"learning_rate": 6e-3, "muon_learning_rate": 0.03} -> {"learning_rate": 0.03, "adamw_ratio": 0.2}

    Settings in another form, or whose rates are not numbers, are returned unchanged.
    """
    muon, adamw = optimizer.get("muon_learning_rate"), optimizer.get("learning_rate", _adamw_rate_with_muon(embed_dim))
    if "adamw_ratio" in optimizer or not (_is_rate(muon) and _is_rate(adamw)):
        return optimizer
    rest = {name: value for name, value in optimizer.items() if name != "muon_learning_rate"}
    if rest.get("kind", "muon") == "adamw":  # the run does not use Muon, so its rate is dropped
        return rest
    return rest | {"learning_rate": muon, "adamw_ratio": _ratio(adamw, muon)}


def _adamw_rate_with_muon(embed_dim: int) -> float:
    return _two_digits(4e-3 * (256 / embed_dim) ** 0.5)


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < 1e300


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")


def _ratio(rate: float, other: float) -> float:
    """rate / other, without the rounding error in the last digit: 0.0057 / 0.02 -> 0.285."""
    return float(f"{rate / other:.15g}")
