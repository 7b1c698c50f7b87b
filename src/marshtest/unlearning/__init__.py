"""The unlearners by the names that recipes give them, and how an entry of `unlearners` is read.

A new unlearner is one file beside these and one line in `_ALL`.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from marshtest.plumbing.choice import Choices
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.identity import name_of
from marshtest.plumbing.imports import check_spec
from marshtest.unlearning.bad_teacher import BadTeacher
from marshtest.unlearning.base import Custom, Unlearner
from marshtest.unlearning.certified import Certified
from marshtest.unlearning.distill import Distill, Undo
from marshtest.unlearning.elsewhere import Elsewhere
from marshtest.unlearning.gradient_ascent import GradientAscent, NegGradPlus, NegGradPlusRepository
from marshtest.unlearning.gradient_descent import GradientDescent, NoisyGradientDescent
from marshtest.unlearning.l1_sparse import L1Sparse
from marshtest.unlearning.last_layers import CFk, EUk
from marshtest.unlearning.newton import Newton
from marshtest.unlearning.npo import NPO, SimNPO
from marshtest.unlearning.outside import Outside
from marshtest.unlearning.random_labels import RandomLabels
from marshtest.unlearning.retrain import Retrain, RetrainTuned
from marshtest.unlearning.salun import SalUn
from marshtest.unlearning.scrub import Scrub, ScrubRepository
from marshtest.unlearning.shrink_perturb import ShrinkPerturb
from marshtest.unlearning.sisa import Sisa
from marshtest.unlearning.ssd import ASSD, SSD

__all__ = [
    "UNLEARNERS",
    "Custom",
    "Unlearner",
    "is_anytime",
    "is_own",
    "looks_back",
    "parse_trials",
]

_ALL: tuple[type[Unlearner], ...] = (
    Retrain,
    RetrainTuned,
    GradientDescent,
    NoisyGradientDescent,
    GradientAscent,
    EUk,
    CFk,
    Scrub,
    ScrubRepository,
    NegGradPlus,
    NegGradPlusRepository,
    ShrinkPerturb,
    Distill,
    Undo,
    NPO,
    SimNPO,
    Certified,
    RandomLabels,
    SalUn,
    SSD,
    ASSD,
    L1Sparse,
    BadTeacher,
    Newton,
    Sisa,
    Outside,
    Elsewhere,
)
UNLEARNERS: dict[str, type[Unlearner]] = {cls.model_fields["name"].default: cls for cls in _ALL}
CHOICES: Choices[Unlearner] = Choices("unlearner", Unlearner, UNLEARNERS, Custom.parse)


def is_own(unlearner: Unlearner) -> bool:
    """Whether it is one of the package's, of which tests prove what it claims of itself.

    A user's subclass inherits the claims, and may do something else.
    """
    return type(unlearner) in UNLEARNERS.values()


def is_anytime(unlearner: Unlearner) -> bool:
    """Whether the models of smaller budgets are sure to lie on its way to a larger one's."""
    return is_own(unlearner) and unlearner.anytime


def looks_back(unlearner: Unlearner) -> bool:
    """Whether what it returns may hang on the model passed in or on the forget set."""
    return unlearner.looks_back or not is_own(unlearner)


Entry = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[..., Any]


def parse_trials(entry: Entry) -> tuple[Unlearner, ...]:
    """The trials of one entry of a recipe's `unlearners`; a user's callable is not imported yet.

    Args:
        entry: a name, a mapping of a name and hyper-parameters, or a Python callable. A list as the value
            of a hyper-parameter is a search: the entry becomes one trial for each combination of values.

    Raises:
        MarshtestError: the entry names no unlearner, or a hyper-parameter is bad.
    """
    if isinstance(entry, Unlearner) or inspect.isclass(entry):
        return (_parse(entry),)
    if isinstance(entry, str):
        return (_parse({"name": entry}),)
    if isinstance(entry, Mapping):
        return tuple(map(_parse, _combinations(entry)))
    if callable(entry):
        return (Custom.wrap(entry),)
    if not isinstance(entry, Sequence) or not entry:
        raise _misshapen(entry)
    return tuple(map(_parse, entry))  # the form in which a recipe stores a search


def _combinations(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the entry with every combination of its hyper-parameters' values."""
    axes = [value if isinstance(value, list) else [value] for value in entry.values()]
    for key, values in zip(entry, axes, strict=True):
        if not values:
            raise MarshtestError(
                f"unlearners.{entry.get('name')}.{key}: holds no value. Give some, or leave the key out."
            )
    for combination in itertools.product(*axes):
        yield dict(zip(entry, combination, strict=True))


def _misshapen(entry: Any) -> MarshtestError:
    return MarshtestError(
        f"unlearners: an entry is a name, a mapping with a name, or a list of such mappings. Got {entry!r}."
    )


def _parse(values: Any) -> Unlearner:
    if isinstance(values, Custom):
        return values
    name = values.get("name") if isinstance(values, Mapping) else None
    cls = name or values
    if isinstance(values, Unlearner) or (inspect.isclass(cls) and issubclass(cls, Unlearner)):
        named = cls if inspect.isclass(cls) else type(values)
        return CHOICES.parse(values, f"unlearners.{name_of(named)}")
    if inspect.isclass(cls):
        return Custom.wrap(cls)
    if not isinstance(name, str):
        raise _misshapen(values)
    if ":" in name:
        check_spec(name, "unlearners")
        if "options" in values:  # the long form, in which recipes are stored
            return Custom.parse(values, "unlearners")
        # The digest stands among the values where a stored recipe names a class.
        options = {key: value for key, value in values.items() if key not in ("name", "source")}
        return Custom(name=name, source=values.get("source", ""), options=options)
    if name not in UNLEARNERS:
        raise MarshtestError(
            f"unlearners: {unknown('unlearner', name, UNLEARNERS)} Or one of yours, 'pkg.mod:name'."
        )
    return UNLEARNERS[name].parse(values, f"unlearners.{name}")
