"""Learning rates: the defaults by width, and what the rates of an older config mean.

`learning_rate` is of the optimizer that `kind` names. What AdamW updates beside Muon has a share of it, `adamw_ratio`.
"""

from typing import Any, TypeGuard

MUON = 0.02


def default_rate(kind: str, embed_dim: int) -> float:
    """The peak rate of a kind of optimizer. AdamW's is by measurement at widths 64 and 128 (docs/LOG.md): a wider model
    wants a smaller one. Muon's needs no such rule: its updates have one size at any width.
    """
    return _two_digits(2e-3 * (256 / embed_dim) ** 0.5) if kind == "adamw" else MUON


def default_ratio(embed_dim: int) -> float:
    """AdamW's share beside Muon: of 4e-3 x sqrt(256 / width), by the same measurement, at Muon's default rate."""
    return _ratio(_beside_muon(embed_dim), MUON)


def with_one_rate(optimizer: dict[str, Any], embed_dim: int) -> dict[str, Any]:
    """The settings of an optimizer in today's form. In the old form, learning_rate is AdamW's even beside Muon:

    {"learning_rate": 6e-3, "muon_learning_rate": 0.03} -> {"learning_rate": 0.03, "adamw_ratio": 0.2}

    What is not of that form, or has no numbers there, stays as it is.
    """
    muon, adamw = optimizer.get("muon_learning_rate"), optimizer.get("learning_rate", _beside_muon(embed_dim))
    if "adamw_ratio" in optimizer or not (_is_rate(muon) and _is_rate(adamw)):
        return optimizer
    rest = {name: value for name, value in optimizer.items() if name != "muon_learning_rate"}
    if rest.get("kind", "muon") == "adamw":  # the rate of an optimizer that there is not
        return rest
    return rest | {"learning_rate": muon, "adamw_ratio": _ratio(adamw, muon)}


def _beside_muon(embed_dim: int) -> float:
    return _two_digits(4e-3 * (256 / embed_dim) ** 0.5)


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 < value < 1e300


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")


def _ratio(rate: float, other: float) -> float:
    """Without what rounding adds in the last digit: 0.0057 / 0.02 -> 0.285."""
    return float(f"{rate / other:.15g}")
