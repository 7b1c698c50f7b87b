"""What every configuration object shares: frozen, typed, and closed to unknown keys."""

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from marshtest.plumbing.errors import MarshtestError, unknown


class Settings(BaseModel):
    """Base of recipes, attacks, unlearners and models: the configuration is the object that computes."""

    # Frozen, since the hash of a recipe stands for it; closed, since a mistyped key would be a default.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate `values`; a failure is a MarshtestError that starts with the key's full name."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise MarshtestError(_first_line(cls, error, where)) from None


def _first_line(cls: type[Settings], error: ValidationError, where: str) -> str:
    """Pydantic's first error as one line: key, fault, and the value that was given."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
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
