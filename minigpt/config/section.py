"""Define the base class of the configuration's sections, and the types of their fields."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from minigpt.errors import UserError
from minigpt.files import expand_home
from minigpt.layout import check_name

MOST, MOST_SIZE, SEEDS = 2**53, 2**24, 2**62
Positive = Annotated[int, Field(gt=0, le=MOST)]
Size = Annotated[int, Field(gt=0, le=MOST_SIZE)]
"""A size that costs memory: a width, a vocabulary, a batch. Whether it fits in memory is checked later."""
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _checked(check: Callable[[str], str]) -> AfterValidator:
    """A pydantic validator that runs `check` on a text; None passes."""

    def validate(text: str | None) -> str | None:
        try:
            return None if text is None else check(text)
        except UserError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(validate)


_IS_PATH = Field(json_schema_extra={"format": "path"})
_AS_TEXT = BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)
PathText = Annotated[str, _AS_TEXT, _checked(expand_home), _IS_PATH]
OptionalPath = Annotated[str | None, _AS_TEXT, _checked(expand_home), _IS_PATH]
"""Paths of files and folders, where ~ is the home folder."""
RunName = Annotated[str | None, _checked(check_name)]


def one_or_many(given: Any) -> Any:
    """Turn a single text into a list of one; a validator that runs before pydantic's own."""
    return [given] if isinstance(given, str) else given


def names(given: Any) -> Any:
    """Split a text of names at its commas into a list; a validator that runs before pydantic's own."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


class Section(BaseModel):
    """A section of the configuration: frozen, unknown keys are errors, the fields' docstrings are their help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_boolean(cls, given: Any, info: ValidationInfo) -> Any:
        """Pydantic reads true as 1, but a person who writes true for a number has made a mistake."""
        found = [each for each in (given.values() if isinstance(given, dict) else [given]) if isinstance(each, bool)]
        if found and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"give a number, not {str(found[0]).lower()}")
        return given


def _is_number(kind: Any) -> bool:
    """Whether a type is a number, a number or None, or a container of numbers."""
    return kind in (int, float) or any(map(_is_number, get_args(kind)))
