"""A suite: recipes by which one unlearner is scored, and the rows of the unlearners that are known there.

    description: …
    recipes:                          # names of shipped recipes, or YAML files; changes to each
      digits-gaussian: {seeds: 10}
    unlearners: [ssd]                 # known by their rows, beside those of each recipe

Rows of the known lie in the folder beside the suite's file that is called as the suite is, a Parquet file a
recipe. Read without torch.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import as_list, file_name, read_yaml, set_key, shipped
from marshtest.results.merging import read_one
from marshtest.results.summary import Results

SHIPPED = Path(str(resources.files("marshtest") / "shipped" / "suites"))


class Suite(Settings):
    """Recipes, each with its changes, and further unlearners that are known."""

    name: Annotated[str, AfterValidator(file_name)]
    description: str = ""
    recipes: dict[str, dict[str, Any]] = Field(min_length=1)
    unlearners: list[Any] = []
    rows: Path = Field(exclude=True)  # the folder of the known's rows

    def values(self, recipe: str) -> dict[str, Any]:
        """The raw values of a recipe; its unlearners are all that are known."""
        values = read_yaml(self._source(recipe), "recipes")
        for key, value in self.recipes[recipe].items():
            set_key(values, key, value)
        listed = as_list(values.get("unlearners") or [])
        _refuse_unnamed(f"suite {self.name}, recipes.{recipe}.unlearners", listed)
        names = {_name(entry) for entry in listed}
        more = [entry for entry in self.unlearners if _name(entry) not in names]
        return {**values, "unlearners": [*listed, *more]}

    def known(self, recipe: str) -> Results | None:
        """The rows of the known unlearners on a recipe; None where there are none.

        Raises:
            MarshtestError: they cannot be read.
        """
        file = self.rows / f"{Path(recipe).stem}.parquet"
        return read_one(file) if file.is_file() else None

    def entry(self, recipe: str, name: str) -> dict[str, Any]:
        """The name and the hyper-parameters by which an unlearner is known on a recipe, if it is."""
        entries = (e for e in self.values(recipe)["unlearners"] if _name(e) == name)
        entry = next(entries, name)
        return dict(entry) if isinstance(entry, dict) else {"name": name}

    def _source(self, recipe: str) -> str:
        """A shipped recipe by its name, any other by its path from the suite's file."""
        return recipe if recipe in shipped("recipes") else str(self.rows.parent / recipe)


def read_suite(source: str | Path) -> Suite:
    """Read a shipped suite by its name, or a user's by the path of its YAML file.

    Raises:
        MarshtestError: there is none, or it is no suite, in one line.
    """
    values = read_yaml(source, "suites")
    path = SHIPPED / str(source) if str(source) in shipped("suites") else Path(source)
    if not isinstance(values.get("recipes"), dict):
        raise MarshtestError(
            f"{source}: a suite has `recipes`: their names, and changes to each ({{}} for none)."
        )
    suite = Suite.parse({**values, "rows": path.with_suffix("")}, str(source))
    _refuse_unnamed(f"{source}: unlearners", suite.unlearners)
    return suite


def _refuse_unnamed(where: str, entries: list[Any]) -> None:
    if unnamed := [entry for entry in entries if not isinstance(_name(entry), str)]:
        raise MarshtestError(
            f"{where}: {unnamed[0]!r} names no unlearner. Give its name, or a mapping with `name`."
        )


def _name(entry: Any) -> Any:
    return entry.get("name") if isinstance(entry, dict) else entry
