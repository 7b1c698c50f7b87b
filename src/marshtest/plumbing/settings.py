"""What every configuration object shares: frozen, typed, and closed to unknown keys."""

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from marshtest.plumbing.errors import MarshtestError, unknown

TRUTH = "truth_value"  # type of a pydantic error: true or false where a number is asked for


class Settings(BaseModel):
    """Base of recipes, attacks, unlearners and models: the configuration is the object that computes."""

    # Frozen, since the hash of a recipe stands for it; closed, since a mistyped key would be a default.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any) -> Any:
        """Refuse true and false where a number is asked for: pydantic would take them for 1 and 0."""
        for key in cls.model_fields.keys() & given if isinstance(given, Mapping) else ():
            value, asked = given[key], _types(cls.model_fields[key].annotation)
            several = value if isinstance(value, list | tuple) else (value,)
            number = asked & {int, float} and not asked & {bool, Any}
            if number and any(isinstance(one, bool) for one in several):
                raise PydanticCustomError(TRUTH, "truth", {"key": key, "value": value})
        return given

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate `values`; a failure is a MarshtestError that starts with the key's full name."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise MarshtestError(_first_line(cls, error, where)) from None


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, at any depth."""
    return {annotation}.union(*map(_types, get_args(annotation)))


def _first_line(cls: type[Settings], error: ValidationError, where: str) -> str:
    """Pydantic's first error as one line: key, fault, and the value that was given."""
    first = error.errors(include_url=False)[0]
    key = [first["ctx"]["key"]] if first["type"] == TRUTH else []
    place = ".".join(str(part) for part in (where, *first["loc"], *key) if part != "")
    if key:
        return f"{place}: a number is needed, not true or false. Got {first['ctx']['value']!r}."
    if first["type"] == "extra_forbidden":
        owner: Any = cls  # becomes the nested class that lacks the key, whose keys the line names
        for part in first["loc"][:-1]:
            fields = getattr(owner, "model_fields", {})
            owner = fields[part].annotation if part in fields else [owner, *get_args(owner)][-1]
        known = getattr(owner, "model_fields", cls.model_fields)
        return f"{place}: {unknown('key', str(first['loc'][-1]), known)}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # raised by a validator of ours, which names the place
    return f"{place}: {first['msg']}. Got {first['input']!r}."
