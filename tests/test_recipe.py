"""Recipes: what ships loads; what is wrong is one line that names the place and the mend."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from pydantic_core import PydanticUndefined

from marshtest.attacks import ATTACKS
from marshtest.experiment.recipe import DataSettings, Recipe, VerdictSettings, load_recipe
from marshtest.hypotheses.table import parse_hypothesis
from marshtest.models.table import MODELS
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import shipped
from marshtest.sweeps.settings import read_sweep
from marshtest.training.loop import Training
from marshtest.unlearning import UNLEARNERS

SMALL = "hypothesis-orthogonality-small"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load_and_survive_their_own_yaml(name: str) -> None:
    recipe = load_recipe(name)
    again = Recipe.parse(yaml.safe_load(recipe.to_yaml()), "")
    assert again == recipe
    assert again.hash == recipe.hash
    assert recipe.description


def test_the_papers_recipe_is_the_papers() -> None:
    """§5.1 and A.2."""
    recipe = load_recipe("paper-cifar10-gaussian")
    assert recipe.poison_budgets == (0.015, 0.02, 0.025)
    assert recipe.budgets == (0.04, 0.06, 0.08, 0.1)
    assert (recipe.training.epochs, recipe.seeds, recipe.attack.variance) == (100, 8, 0.32)  # type: ignore[attr-defined]
    trials = {t.name: t for trials in recipe.unlearners for t in trials}
    gd = trials["gd"].model_dump()
    assert (gd["lr"], gd["momentum"], gd["weight_decay"]) == (1e-3, 0.9, 5e-4)
    assert trials["euk"].model_dump()["k"] == trials["cfk"].model_dump()["k"] == 3
    assert trials["neggrad+"].model_dump()["beta"] == 0.999
    scrub = trials["scrub"].model_dump()
    weights = (scrub["kl_weight"], scrub["forget_weight"], scrub["loss_weight"])
    assert weights == (0.999, 0.001, 0.99)  # α, β, γ
    noise = [
        t.model_dump()["noise_variance"] for ts in recipe.unlearners for t in ts if t.name == "ngd"
    ]
    assert noise == [1e-7, 1e-6]


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("paper-")])
def test_the_papers_two_noises_are_two_rows(name: str) -> None:
    """A.2.2: σ² of 1e-7 and 1e-6, each with the others' rates."""
    ngd = [trials for trials in load_recipe(name).unlearners if trials[0].name == "ngd"]
    noises = [{trial.model_dump()["noise_variance"] for trial in trials} for trials in ngd]
    assert noises == [{1e-7}, {1e-6}]


def test_the_papers_attacks_are_the_papers() -> None:
    """§5.1, A.1.1 to A.1.3, Algorithm 2, Table 2."""
    targeted = load_recipe("paper-cifar10-targeted").attack.model_dump()
    assert (targeted["target_class"], targeted["adversarial_label"]) == (9, None)  # a truck; drawn
    assert (targeted["epsilon"], targeted["targets"]) == (16, 1)
    recipe = load_recipe("paper-cifar10-indiscriminate")
    canceling = recipe.attack.model_dump()
    assert (canceling["optimizer"], canceling["weighting"], canceling["lr"]) == ("sgd", "mean", 0.1)
    assert (canceling["radius"], canceling["epsilon"], canceling["steps"]) == (1.0, None, 1000)
    assert (canceling["parameters"], canceling["place"]) == ("all", "replace")
    assert recipe.budget_unit == "epochs"
    assert [round(100 * share) for share in recipe.budgets] == [2, 4, 6, 8, 10]
    trigger = load_recipe("paper-imdb-trigger")
    assert trigger.attack.model_dump()["cut"] == "ignore"
    prompt = trigger.model.model_dump()["prompt"]
    assert prompt["template"] == "{text}. The sentiment of the review is: {label}"
    assert prompt["training_template"] == "{text}. The sentiment of the review is {label}"
    others = [load_recipe(name).budget_unit for name in shipped() if name != recipe.name]
    assert set(others) == {"compute"}


def test_overrides_reach_any_depth_and_change_the_hash() -> None:
    plain = load_recipe("digits-gaussian")
    recipe = load_recipe(
        "digits-gaussian",
        *(
            "training.epochs=5",
            "attack.variance=0.5",
            "model=mlp",
            "budgets=[0.04, 0.1]",
            "seeds=2",
        ),
    )
    assert recipe.training.epochs == 5
    assert recipe.attack.variance == 0.5  # type: ignore[attr-defined]
    assert recipe.budgets == (0.04, 0.1)
    assert recipe.hash != plain.hash
    assert load_recipe("digits-gaussian", "description=other").hash == plain.hash


def test_unlearners_are_added_to_those_of_the_recipe() -> None:
    own = load_recipe("digits-gaussian").unlearners
    added = ["unlearners+=ssd", "unlearners+=[{name: euk, k: 1}, certified]"]
    more = load_recipe("digits-gaussian", *added)
    assert more.unlearners[: len(own)] == own
    assert [of[0].name for of in more.unlearners[len(own) :]] == ["ssd", "euk", "certified"]
    (variant,) = read_sweep("digits-gaussian", *added).variants()
    assert load_recipe(variant.values).hash == more.hash
    with pytest.raises(MarshtestError, match="unlearners: gd is given twice"):
        load_recipe("digits-gaussian", "unlearners+={name: gd, lr: 0.1}")


def test_of_overrides_the_last_word_counts(tmp_path: Path) -> None:
    base = "digits-gaussian"
    recipe = load_recipe(base, "training.epochs=5", "training={epochs: 1}", "training.epochs=7")
    assert recipe.training.epochs == 7

    def names(*overrides: str, source: str = base) -> list[str]:
        (variant,) = read_sweep(source, *overrides).variants()
        return [of[0].name for of in load_recipe(variant.values).unlearners]

    assert names("unlearners+=npo", "unlearners=[retrain]", "unlearners+=scrub-repository") == [
        "retrain",
        "scrub-repository",
    ]
    assert names("unlearners=[retrain]", "unlearners+=npo", "unlearners=[ssd]") == ["ssd"]
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"recipe: {base}\nchange: {{unlearners+: [{{name: random-labels}}]}}\n")
    own = names(source=str(sweep))
    assert own[-1] == "random-labels"
    assert names("unlearners+=npo", source=str(sweep)) == [*own, "npo"]
    assert names("change.unlearners+=[npo]", source=str(sweep)) == [*own, "npo"]
    assert names("unlearners=[ssd]", source=str(sweep)) == ["ssd"]


def test_data_may_be_a_name_or_a_path() -> None:
    recipe = load_recipe("cifar10-small-gaussian", "data=/some/folder")
    assert (recipe.data.name, recipe.data.path, recipe.data.train) == (
        "cifar10",
        "/some/folder",
        4000,
    )
    assert recipe.hash == load_recipe("cifar10-small-gaussian").hash  # same data, elsewhere
    assert load_recipe("digits-gaussian", "data=cifar10").data.name == "cifar10"


CLASSES: list[type[Settings]] = [
    Training,
    DataSettings,
    VerdictSettings,
    *MODELS.values(),
    *ATTACKS.values(),
    *UNLEARNERS.values(),
]
NUMBERS = [
    (cls, name)
    for cls in CLASSES
    for name, field in cls.model_fields.items()
    if field.annotation in (int, float) or "int |" in str(field.annotation)
]


def good(cls: type[Settings]) -> dict[str, Any]:
    needed = {n: f for n, f in cls.model_fields.items() if f.default is PydanticUndefined}
    return {n: "one" if f.annotation is str else 1 for n, f in needed.items()}


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
@pytest.mark.parametrize("bad", ["much", -1, math.nan, math.inf, [1]])
def test_every_number_of_every_section_refuses_wrong_types_and_values(
    cls: type[Settings], name: str, bad: object
) -> None:
    with pytest.raises(MarshtestError, match=rf"^section\.{name}: .*Got ") as error:
        cls.parse({**good(cls), name: bad}, "section")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
@pytest.mark.parametrize("bad", [True, False])
def test_true_and_false_are_no_numbers(cls: type[Settings], name: str, bad: bool) -> None:
    with pytest.raises(MarshtestError, match=rf"^here\.{name}: a number is needed") as raised:
        cls.parse({name: bad}, "here")
    assert str(raised.value).endswith(f"Got {bad}.")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_section_refuses_unknown_keys_with_the_nearest(cls: type[Settings]) -> None:
    known = list(cls.model_fields)[-1]
    typo = known[:-1] + "_" + known[-1]
    with pytest.raises(MarshtestError, match=f"unknown key '{typo}'. Did you mean '{known}'"):
        cls.parse({**good(cls), typo: 1}, "section")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("bugdets=0.1", "bugdets: unknown key 'bugdets'. Did you mean 'budgets'"),
        ("training.epoch=5", "training.epoch: unknown key 'epoch'. Did you mean 'epochs'"),
        ("training.epochs=many", "training.epochs: Input should be a valid integer.* Got 'many'"),
        ("budgets=1.5", "budgets.0: Input should be less than or equal to 1. Got 1.5"),
        ("budgets=0", "budgets.0: Input should be greater than 0. Got 0"),
        ("budgets=[]", "budgets: "),
        ("poison_budgets=1", "poison_budgets: 1 leaves no sample to retain. Lower it."),
        (
            "poison_budgets=1.5",
            "poison_budgets.0: Input should be less than or equal to 1. Got 1.5",
        ),
        ("attack=gausian", "attack.name: unknown attack 'gausian'. Did you mean 'gaussian'"),
        ("model=resnet19", "model.name: unknown model 'resnet19'. Did you mean 'resnet18'"),
        ("unlearners=[gdd]", "unlearners: unknown unlearner 'gdd'. Did you mean 'gd'"),
        ("unlearners=[{name: gd, rl: 1}]", "unlearners.gd.rl: unknown key 'rl'. Did you mean 'lr'"),
        ("unlearners=[{name: gd, lr: [1, 2]}]", "gd is given several values.* Set data.validation"),
        ("unlearners=[gd, {name: gd, lr: 1.0e-3}]", "unlearners: gd is given twice"),
        ("budgets=[0.1, 0.05, 0.1]", "budgets: 0.1 is given twice"),
        ("poison_budgets=[0.3, 0.3]", "poison_budgets: 0.3 is given twice"),
        ("unlearners=['nomod:f']", "unlearners: cannot import 'nomod'"),
        ("unlearners=['math:nothing']", "module 'math' has no 'nothing'"),
        ("unlearners=['math:pi']", "'math:pi' is a float, not a callable"),
        ("verdict.alpha=2", "verdict.alpha: Input should be less than 1. Got 2"),
        ("device=tpu", "device: Input should be 'auto', 'cpu' or 'cuda'. Got 'tpu'"),
        ("budget_unit=steps", "budget_unit: Input should be 'compute' or 'epochs'. Got 'steps'"),
        ("known=true", "known: a number is needed, not true or false. Got True"),
        ("known=[0.5, true]", "known: a number is needed.* Got .0.5, True."),
        ("requests=true", "requests: a number is needed"),
        ("repeats=true", "repeats: a number is needed"),
        ("seeds=true", "seeds: a number is needed"),
        ("poison_budgets=[0.1, false]", "poison_budgets: a number is needed"),
        ("states=[{trained_on: true}]", "states: trained_on: a whole number of passes"),
        ("unlearners=[{name: gd, lr: true}]", "unlearners.gd.lr: a number is needed"),
        ("seeds", "has the form key=value"),
        ("seeds.x=1", "seeds has no keys below it"),
    ],
)
def test_bad_overrides_are_one_clear_line(override: str, says: str) -> None:
    with pytest.raises(MarshtestError, match=says) as error:
        load_recipe({**TINY, "seeds": 1}, override)
    assert "\n" not in str(error.value)


def test_unknown_recipes_and_bad_files_are_refused(tmp_path: Any) -> None:
    with pytest.raises(
        MarshtestError, match="unknown recipe 'digit-gaussian'. Did you mean 'digits-"
    ):
        load_recipe("digit-gaussian")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(MarshtestError, match="bad.yaml: not YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(MarshtestError, match="a recipe is a mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "short.yaml").write_text("data: digits")
    with pytest.raises(MarshtestError, match="model: Field required"):
        load_recipe(tmp_path / "short.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("unlearners=[[gd]]", "unlearners: an entry is a name, a mapping.* Got 'gd'"),
        ("unlearners=gd", "unlearners: a list of unlearners is needed. Got 'gd'"),
        ("unlearners={name: gd}", "unlearners: a list of unlearners is needed"),
        ("unlearners=[null]", "unlearners: an entry is a name, a mapping.* Got None"),
        ("unlearners=[[]]", r"unlearners: an entry is a name, a mapping.* Got \[\]"),
        ("unlearners=[{lr: 1}]", "unlearners: an entry is a name, a mapping"),
        ("unlearners=[{name: gd, lr: []}]", "unlearners.gd.lr: holds no value"),
        ("unlearners=@none.yaml", "unlearners: no file 'none.yaml'"),
        ("model=null", "model: must be a name, or a mapping with a name. Got None"),
        ("attack=3", "attack: a name, or a mapping with a name, is needed. Got 3"),
        ("seeds=1e400", "seeds: Input should be a valid integer"),
        ("seeds=1.0e+400", "seeds: Input should be a finite number"),
        ("seeds=1000000000000", "seeds: Input should be less than"),
        ("first_seed=1000000000000000000000", "first_seed: Input should be less than"),
        ("model={name: gpt2, layers: 1000000000}", "model.layers: Input should be less than"),
        ("description=2020-01-01", "is a date, not a text or a number. Put it in quotes"),
        ("seeds=!!binary aGVq", "is a bytes, not a text"),
        ("training={epochs: 1, epochs: 2}", "line 1 gives 'epochs' twice"),
        ("training={on: 2}", "the key True is no text. Put it in quotes"),
        ("unlearners=" + "[" * 3000, "is nested too deeply"),
        ("unlearners=" + "[" * 60 + "]" * 60, "is nested too deeply"),
    ],
)
def test_misshapen_values_are_one_clear_line(override: str, says: str) -> None:
    with pytest.raises(MarshtestError, match=says) as error:
        load_recipe({**TINY, "seeds": 1}, override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["../../x", "a/b", "/x", "a\\b", "a\0b", "a\nb", "x" * 300, "..", ".", "", " ", "\ud800"],
)
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(MarshtestError, match="name: .* cannot be the name of a folder"):
        load_recipe({**TINY, "name": name})
    with pytest.raises(MarshtestError, match="name: .* cannot be the name of a folder"):
        read_sweep({"name": name, "recipe": TINY})
    with pytest.raises(MarshtestError, match="name: .* cannot be the name of a folder"):
        parse_hypothesis({**yaml.safe_load(shipped("hypotheses")[SMALL]), "name": name})


@pytest.mark.parametrize("name", ["a.b", "v1.2 final", "größe", "x" * 100])
def test_other_names_stay(name: str) -> None:
    assert load_recipe({**TINY, "name": name}).name == name


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB.encode(), "holds more than 20,000 values once its aliases are followed"),
        (b"a: &a [*a]", "is nested too deeply"),
        (b"a: " + b"[" * 100_000, "is nested too deeply"),
        ("name: café".encode("latin-1"), "is not text in UTF-8 .* Save it as UTF-8"),
        (b"a: \0", "is not text in UTF-8"),
        (b"model: mlp\ndata: digits\nmodel: resnet18", "line 3 gives 'model' twice"),
        (b"model: mlp\ntraining: {epochs: 1,\n epochs: 3}", "line 3 gives 'epochs' twice"),
        (b"description: 2020-13-45", "not YAML"),
        (b"a: 1" + b"0" * 5000, "not YAML"),
        (b"? [1, 2]\n: 3", "line 1 has a key that is no text"),
        (b"", "a recipe is a mapping of keys to values"),
    ],
)
def test_files_that_are_no_recipes_are_one_line_with_the_place(
    content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(MarshtestError, match=f"bad.yaml: .*{says}") as error:
        load_recipe(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_a_description_says_what_was_changed() -> None:
    said = load_recipe("digits-gaussian").description
    changed = load_recipe("digits-gaussian", "seeds=2", "attack.variance=3", "name=mine")
    assert changed.description == f"{said} (changed: seeds, attack.variance)"
    assert load_recipe("digits-gaussian", "name=mine").description == said
    assert load_recipe("digits-gaussian", "seeds=2", "description=Mine").description == "Mine"


def test_anchors_and_utf_16_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump({**TINY, "description": "größe"}, allow_unicode=True)
    text = text.replace("seeds: 2", "seeds: &two 2\nfirst_seed: *two")
    (tmp_path / "r.yaml").write_bytes(text.encode("utf-16"))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.first_seed, recipe.description) == (2, "größe")


def test_a_list_of_unlearners_may_lie_in_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is the recipe's folder's; in an override, the current folder's."""
    entries = ["gd", {"name": "euk", "k": 1}]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text(yaml.safe_dump(entries))
    expected = load_recipe({**TINY, "unlearners": entries})
    recipe = {**TINY, "unlearners": "@mine.yaml"}
    (tmp_path / "sub" / "r.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "sub" / "s.yaml").write_text(
        yaml.safe_dump({"recipe": recipe, "grid": {"seeds": [1, 2]}})
    )
    monkeypatch.chdir(tmp_path)
    assert load_recipe("sub/r.yaml").hash == expected.hash
    assert load_recipe("sub/r.yaml", "unlearners=@sub/mine.yaml").hash == expected.hash
    assert load_recipe(TINY, "unlearners=@sub/mine.yaml").hash == expected.hash
    for of in (read_sweep("sub/s.yaml"), read_sweep("sub/r.yaml", "unlearners=@sub/mine.yaml")):
        assert of.variants()[-1].values["unlearners"] == entries
    more = load_recipe("sub/r.yaml", "unlearners=[ga]", "unlearners+=@sub/mine.yaml")
    assert more.hash == load_recipe({**TINY, "unlearners": ["ga", *entries]}).hash
    (tmp_path / "sub" / "mine.yaml").write_text("name: gd")
    with pytest.raises(MarshtestError, match="mine.yaml: a file of unlearners holds a list"):
        load_recipe("sub/r.yaml")
