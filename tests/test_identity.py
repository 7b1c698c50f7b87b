"""A callable's digest: the same for what does the same, another for whatever does something else."""

import functools
import subprocess
import sys
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.identity import digest

RATE = 0.1


def told(function: Callable[..., Any]) -> str:
    return digest(function, "unlearners")


def captures(value: Any) -> Callable[..., Any]:
    return lambda: value


def with_default(value: Any) -> Callable[..., Any]:
    def inner(rate: Any = value) -> Any:
        return rate

    return inner


def with_keyword(value: Any) -> Callable[..., Any]:
    def inner(*, rate: Any = value) -> Any:
        return rate

    return inner


def with_attribute(value: Any) -> Callable[..., Any]:
    def inner() -> Any:
        return inner.rate  # type: ignore[attr-defined]

    inner.rate = value  # type: ignore[attr-defined]
    return inner


def decorated(value: Any) -> Callable[..., Any]:
    @torch.no_grad()
    def inner() -> Any:
        return value

    return inner


class Method:
    """An object with a hyper-parameter."""

    def __init__(self, rate: Any) -> None:
        self.rate = rate

    def __call__(self) -> Any:
        return self.rate

    def step(self) -> Any:
        return self.rate


class Slotted:
    """The same without a dictionary."""

    __slots__ = ("rate",)

    def __init__(self, rate: Any) -> None:
        self.rate = rate

    def __call__(self) -> Any:
        return self.rate


def in_a_partial(value: Any) -> Callable[..., Any]:
    return functools.partial(captures, value)


def by_keyword(value: Any) -> Callable[..., Any]:
    return functools.partial(captures, value=value)


def remembered(value: Any) -> Callable[..., Any]:
    return functools.lru_cache(captures(value))


def a_class(value: Any) -> Callable[..., Any]:
    class Inner:
        rate = value

        def __call__(self) -> Any:
            return self.rate

    return Inner()


def a_local_helper(value: Any) -> Callable[..., Any]:
    def helper() -> Any:
        return value

    def inner() -> Any:
        return [helper() for _ in range(3)]

    return inner


def by_a_decorator_that_copies_names(value: Any) -> Callable[..., Any]:
    class Wrapped:
        def __init__(self, function: Callable[..., Any]) -> None:
            functools.update_wrapper(self, function)
            self.value = value

        def __call__(self) -> Any:
            return self.value

    return Wrapped(linear)


def by_a_dunder(value: Any) -> Callable[..., Any]:
    class Called:
        def step(self, rate: Any) -> Any:
            return rate

        __call__ = functools.partialmethod(step, value)

    return Called()


def of_a_metaclass(value: Any) -> Callable[..., Any]:
    class Meta(type):
        rate = value

    class Made(metaclass=Meta):
        def __call__(self) -> Any:
            return type(self).rate

    return Made()


def behind_a_state(value: Any) -> Callable[..., Any]:
    class Hides:
        def __init__(self) -> None:
            self.value = value

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def __call__(self) -> Any:
            return self.value

    return Hides()


def in_a_module(value: Any) -> Callable[..., Any]:
    module = types.ModuleType("a_users_settings")
    vars(module)["rate"] = value
    return captures(module)


def on_a_tensor(value: Any) -> Callable[..., Any]:
    tensor = torch.zeros(2)
    tensor.rate = value  # type: ignore[attr-defined]
    return captures(tensor)


def first_of_a_dict(value: Any) -> Callable[..., Any]:
    return captures(dict.fromkeys([0.1, 0.2] if value == 0.1 else [0.2, 0.1]))


@dataclass
class Plan:
    rate: float = 0.1

    def __call__(self) -> float:
        return self.rate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Rows(torch.utils.data.Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Given(BaseModel):
    rate: float = 0.1

    def __call__(self) -> float:
        return self.rate


class Abstract(ABC):
    @abstractmethod
    def step(self) -> None: ...


class Kind(Enum):
    ONE = 1


def test_usual_classes_can_be_told() -> None:
    kinds = [
        Plan,
        Plan(),
        Given,
        Given(),
        Net,
        Rows,
        Abstract,
        Kind,
        Kind.ONE,
        Plan(0.2),
        Given(rate=0.2),
    ]
    assert len({told(captures(kind)) for kind in kinds}) == len(kinds)


def linear(value: float) -> nn.Module:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, value)
    nn.init.zeros_(module.bias)
    return module


WAYS = [
    *(captures, with_default, with_keyword, with_attribute, decorated, Method, Slotted),
    *(in_a_partial, by_keyword, remembered, a_class, a_local_helper),
    lambda value: Method(value).step,
    lambda value: captures([{"rate": (value,)}]),
    lambda value: captures(torch.tensor([0.0, value])),
    lambda value: captures(torch.tensor([0.0, value]).numpy()),
    lambda value: captures(linear(value)),
    lambda value: Method(Method(value)),
    lambda value: captures({value, "other"}),
    *(by_a_decorator_that_copies_names, by_a_dunder, of_a_metaclass, behind_a_state),
    *(in_a_module, on_a_tensor, first_of_a_dict),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_value_tells_two_callables_apart_wherever_it_sits(way: Callable[..., Any]) -> None:
    assert told(way(0.1)) == told(way(0.1))
    assert told(way(0.1)) != told(way(0.2))


def test_two_lambdas_of_one_line_are_two() -> None:
    one, other = (lambda: 1), (lambda: 2)
    assert told(one) != told(other)


def test_tensors_of_the_same_bytes_and_other_shapes_are_two() -> None:
    flat = torch.zeros(4)
    assert told(captures(flat)) != told(captures(flat.reshape(2, 2)))
    assert told(captures(flat)) != told(captures(flat.to(torch.int32)))


def uses_a_global() -> float:
    return RATE


def calls_a_helper() -> float:
    return uses_a_global()


def test_globals_count_through_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = told(calls_a_helper)
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert told(calls_a_helper) != before


def ping(n: int) -> int:
    return n and pong(n - 1)


def pong(n: int) -> int:
    return n and ping(n - 1)


def test_functions_that_call_each_other_and_objects_that_hold_themselves_have_an_end() -> None:
    holder = Method(None)
    holder.rate = holder
    assert told(ping) == told(ping)
    assert told(holder) == told(holder)


# Sources of two versions of a user's code: {0} stands where they differ. The callable is `mine.f`.
LATER: dict[str, dict[str, str]] = {
    "a submodule, imported inside": {
        "mine": "def f():\n from pk import sub\n return sub.rate()",
        "pk.sub": "def rate(): return {0}",
    },
    "a relative submodule, imported inside": {
        "mine": "from pk.own import f",
        "pk.own": "def f():\n from . import sub\n return sub.rate()",
        "pk.sub": "def rate(): return {0}",
    },
    "a module behind one that is imported inside": {
        "mine": "def f():\n import near\n return near.rate()",
        "near": "from far import rate",
        "far": "def rate(): return {0}",
    },
    "a module as an argument": {
        "mine": "import cfg, tr\ndef f(): return tr.rate(cfg)",
        "tr": "def rate(c): return c.LR",
        "cfg": "LR = {0}",
    },
    "a module under another name": {
        "mine": "import cfg\ndef f():\n c = cfg\n return c.LR",
        "cfg": "LR = {0}",
    },
    "a package as an argument": {
        "mine": "import pk\ndef f(): return rate(pk)\ndef rate(p): return p.sub.LR",
        "pk.sub": "LR = {0}",
    },
    "a lazy attribute": {
        "mine": "import cfg\ndef f(): return cfg.LR",
        "cfg": "def __getattr__(name): return {0}",
    },
    "a field's default": {
        "mine": "from pydantic import BaseModel\n"
        "class C(BaseModel):\n lr: int = {0}\n"
        "def f(): return C().lr",
    },
    "a field's bound": {
        "mine": "from pydantic import BaseModel, Field\n"
        "class C(BaseModel):\n lr: int = Field(0, le={0})\n"
        "def f(): return C().lr",
    },
    "a field's factory": {
        "mine": "from pydantic import BaseModel, Field\n"
        "class C(BaseModel):\n lr: int = Field(default_factory=lambda: {0})\n"
        "def f(): return C().lr",
    },
    "a validator's place": {
        "mine": "from pydantic import BaseModel, field_validator\n"
        "class C(BaseModel):\n lr: int = 1\n"
        " @field_validator('lr', mode=('before', 'after')[{0} % 2])\n"
        " def _(cls, v): return v\n"
        "def f(): return C().lr",
    },
    "a factory of missing values": {
        "mine": "from collections import defaultdict\nD = defaultdict(lambda: {0})\n"
        "def f(): return D[0]",
    },
    "an attribute of a mapping": {
        "mine": "class D(dict): pass\nd = D()\nd.lr = {0}\ndef f(): return d.lr",
    },
    "a pattern": {"mine": "import re\nP = re.compile('{0}')\ndef f(): return P"},
    "a NumPy generator": {
        "mine": "import numpy as np\nR = np.random.default_rng({0})\ndef f(): return R",
    },
    "a data frame": {
        "mine": "import pandas as pd\nD = pd.DataFrame({{'a': [{0}]}})\ndef f(): return D",
    },
    "a function by the type of its argument": {
        "mine": "from functools import singledispatch\n@singledispatch\ndef g(x): return 0\n"
        "@g.register\ndef _(x: int): return {0}\ndef f(): return g(1)",
    },
    "a sparse tensor": {
        "mine": "import torch\nT = (torch.eye(2) * {0}).to_sparse()\ndef f(): return T",
    },
    "code beside an import of what is missing": {
        "mine": "def f():\n try: import not_there\n except ImportError: pass\n return {0}",
    },
}


def digest_of(folder: Path, sources: dict[str, str], before: str = "") -> str:
    """The digest of `mine.f` in a fresh process, which runs the statement `before` first."""
    for module, source in sources.items():
        path = folder / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    script = (
        f"import sys; sys.path.insert(0, sys.argv[1]); {before}\n"
        "import mine\nfrom marshtest.plumbing.identity import digest\n"
        "already = set(sys.modules)\nprint(digest(mine.f, ''))\n"
        "assert {'pk.sub', 'near', 'far'}.isdisjoint(set(sys.modules) - already)"
    )
    command = [sys.executable, "-B", "-c", script, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return said.stdout.strip()


@pytest.mark.parametrize("name", LATER)
def test_a_change_behind_a_callable_is_seen(name: str, tmp_path: Path) -> None:
    def version(value: int) -> dict[str, str]:
        return {module: source.format(value) for module, source in LATER[name].items()}

    one = digest_of(tmp_path, version(1))
    assert digest_of(tmp_path, version(2)) != one
    modules = [module for module in LATER[name] if module not in ("mine", "pk.own")]
    imported = f"import {', '.join(modules)}" if modules else ""
    assert digest_of(tmp_path, version(1), imported) == one  # whatever is imported already


def test_comments_and_docstrings_are_no_part_of_a_callable(tmp_path: Path) -> None:
    bare = {
        "mine": "class C:\n def g(self):\n  return None\ndef f():\n import pk.sub\n return C().g()",
        "pk.sub": "def rate():\n return 1",
    }
    explained = {
        "mine": "'a'\nclass C:\n 'b'\n def g(self):\n  'c'\n  return None\n"
        "def f():\n 'd'\n import pk.sub  # e\n return C().g()",
        "pk.sub": "'a'\ndef rate():\n 'b'\n return 1",
    }
    assert digest_of(tmp_path, bare) == digest_of(tmp_path, explained)


MAIN = """
import helpers
from helpers import scale
def f(): return helpers.{used}() * scale
def local():
    from package.deep import rate
    return rate
def notes():
    "A comment alone changes nothing."
    return 1{comment}
"""


def digests(folder: Path, used: str = "step", comment: str = "") -> dict[str, str]:
    """Of functions of modules in a folder, in a fresh process."""
    (folder / "mine.py").write_text(MAIN.format(used=used, comment=comment))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mine\n"
        "from marshtest.plumbing.identity import digest\n"
        "for name in ('f', 'local', 'notes'): print(name, digest(getattr(mine, name), ''))"
    )
    command = [sys.executable, "-B", "-c", script, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split() for line in said.stdout.splitlines())


def test_modules_of_the_users_count_by_what_is_used_of_them(tmp_path: Path) -> None:
    helpers, deep = tmp_path / "helpers.py", tmp_path / "package" / "deep.py"
    deep.parent.mkdir()
    (deep.parent / "__init__.py").touch()
    helpers.write_text("scale = 1\ndef step(): return 1\ndef other(): return 2\n")
    deep.write_text("rate = 1\n")
    before = digests(tmp_path)
    assert digests(tmp_path, comment="  # a comment") == before  # and in another process
    helpers.write_text("scale = 1\ndef step(): return 1\ndef other(): return 3\n")
    assert digests(tmp_path) == before
    helpers.write_text("scale = 1\ndef step(): return 4\ndef other(): return 2\n")
    assert digests(tmp_path)["f"] != before["f"]
    helpers.write_text("scale = 2\ndef step(): return 1\ndef other(): return 2\n")
    assert digests(tmp_path)["f"] != before["f"]
    deep.write_text("rate = 2\n")
    assert digests(tmp_path)["local"] != before["local"]
    assert digests(tmp_path)["notes"] == before["notes"]


LOCK = threading.Lock()


def locks() -> None:
    LOCK.acquire()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (locks, "cannot pickle '_thread.lock'"),
        (captures(sys.stdout), "cannot pickle"),
        (captures(x for x in ()), "cannot pickle 'generator'"),
        (len, "compiled"),
        ([].append, "compiled"),
        (torch.relu, "compiled"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(MarshtestError, match=rf"^unlearners: .*{says}.*Make it a Python") as error:
        told(function)
    assert "\n" not in str(error.value)


def test_library_functions_are_known_by_name() -> None:
    assert told(lambda: torch.relu) != told(lambda: torch.tanh)
    assert told(nn.Linear) == told(nn.Linear) != told(nn.Conv2d)
