"""The command line: parse, call one function of the library, print."""

import inspect
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from marshtest.attacks import ATTACKS
from marshtest.data import LOADERS, TEXTS
from marshtest.errors import MarshtestError
from marshtest.explain import expected_cost
from marshtest.gate import check_unlearner
from marshtest.kit import audit as kit_audit
from marshtest.kit import calibration as kit_calibration
from marshtest.kit import dose as kit_dose
from marshtest.kit.noise import Scaling
from marshtest.models import MODELS
from marshtest.plan import Plan, effects_of, effects_of_audit, poisons_of_one_run, save_plan
from marshtest.protocol import Report
from marshtest.recipe import load_recipe, shipped
from marshtest.report.hypotheses import hypothesis_table
from marshtest.report.page import sentences
from marshtest.report.tables import SCORE_NAMES, legend, table
from marshtest.results import Results
from marshtest.run import run as run_recipe
from marshtest.run import samples_of
from marshtest.study import study
from marshtest.unlearning import UNLEARNERS, parse_trials

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does an unlearning algorithm really remove the data? Poison it first, and look.",
)
console = Console()
if not console.is_terminal:
    console.width = 120

RecipeArgument = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides, such as training.epochs=5 or data=PATH.")
]
REFERENCES = {
    "none": "The initial model as it is: no unlearning; must come out NOT REMOVED.",
    "shuffled": "Trained on crafted poisons' perturbations in random order: what blind noise does.",
    "retrain (full)": "From scratch on the retain set at full compute; must come out REMOVED.",
}
LINE_SECONDS = 30  # between two plain lines that say how one stage stands
WRAPPED = {"what", "verdict", "model"}  # columns of running text
METRICS = ["accuracy", "gus", "privacy", "rank", "tradeoff", "verdict"]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/NAME-HASH.")] = None,
) -> None:
    """Poison, train, unlearn, measure: write rows, figures and a report.

    Example: marshtest run digits-gaussian seeds=2
    """
    resolved = load_recipe(recipe, overrides or [])
    with _progress() as report:
        results = run_recipe(resolved, out=out, report=report)
    shown = table(results)
    if console.width < 100:
        shown = shown.drop(columns=["spent", "TPR", "rank TPR"])
    console.print(_rich(shown, resolved.name))
    console.print(legend(results), style="dim")
    for sentence in sentences(results):
        console.print(sentence, style="bold")
    for name in ("rows.parquet", "figures", "report.html"):
        console.print(f"  {results.folder / name}", soft_wrap=True)


@app.command()
def hypotheses(
    hypothesis: Annotated[str, typer.Argument(help="A shipped hypothesis's name, or a YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/NAME-HASH.")] = None,
) -> None:
    """Ask why unlearning fails (paper, section 6), and say whether the hypothesis holds.

    Example: marshtest hypotheses hypothesis-orthogonality-small
    """
    with _progress() as report:
        done = study(hypothesis, *(overrides or []), out=out, report=report)
    console.print(_rich(hypothesis_table(done.settings.hypothesis, done.rows), done.settings.name))
    console.print(done.statement, style="bold")
    console.print(f"  {done.folder / 'figures'}", soft_wrap=True)


@app.command()
def check(
    unlearner: Annotated[str, typer.Argument(help="Yours, 'pkg.mod:name', or one of ours.")],
) -> None:
    """Tell what is wrong with an unlearner before any long run; exit 1 if anything is.

    Example: marshtest check mypkg.unlearning:my_unlearner
    """
    facts = check_unlearner(parse_trials(unlearner)[0])
    for fact in facts:
        mark = "[green]ok[/]  " if fact.holds else "[red]FAIL[/]"
        console.print(f"{mark} {fact.name}" + (f": {fact.detail}" if fact.detail else ""))
    raise typer.Exit(0 if all(fact.holds for fact in facts) else 1)


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Name every attack, unlearner, data set, model, metric and recipe.

    Example: marshtest list --json
    """
    lines = list(_catalogue())
    if as_json:
        print(json.dumps(lines, indent=2))
        return
    console.print(_rich(pd.DataFrame(lines), "marshtest"))


@app.command()
def explain(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Show the resolved recipe, what each step is, and its expected cost on this machine.

    Example: marshtest explain digits-gaussian budgets=0.05
    """
    resolved = load_recipe(recipe, overrides or [])
    console.print(resolved.to_yaml(), highlight=False, markup=False)
    costs = expected_cost(
        resolved, *samples_of(resolved.data, resolved.model, resolved.attack.trigger())
    )
    text = costs.assign(
        passes=[f"{passes:.3g}" for passes in costs["passes"]],
        seconds=[f"{seconds:,.1f}" for seconds in costs["seconds"]],
    )
    console.print(_rich(text, f"{resolved.name}: expected on this machine"))
    for _, line in costs[costs["stage"] == "craft"].iterrows():
        console.print(f"A step of the attack takes about {line['seconds'] / line['count']:.2g} s.")
    total = costs["seconds"].sum()
    console.print(f"In all about {total:,.0f} s ({total / 3600:.2f} h).")


@app.command()
def plan(
    pilot: Annotated[
        Path | None, typer.Option(help="Folder of a finished run, or an audit.json.")
    ] = None,
    gus: Annotated[float, typer.Option(help="Expected dependence by GUS.")] = 0.0,
    rank: Annotated[float, typer.Option(help="Expected dependence by the rank score.")] = 0.0,
    samples: Annotated[int | None, typer.Option(help="Training samples of one run.")] = None,
    fraction: Annotated[float, typer.Option(help="Share of them that will be poisons.")] = 0.015,
    alpha: Annotated[float, typer.Option(help="Error rate over all unlearners.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to find a true answer.")] = 0.9,
    margin: Annotated[float, typer.Option(help="Share that REMOVED may leave.")] = 0.2,
    unlearners: Annotated[int, typer.Option(help="How many are judged together.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the curve and its table.")] = None,
) -> None:
    """Tell how many poisons a verdict needs, before anything is spent.

    Example: marshtest plan --gus 1.0 --rank 1.7 --samples 50000 --fraction 0.015
    """
    guessed = {name: value for name, value in (("gus", gus), ("rank", rank)) if value}
    effects = guessed
    if pilot is not None:
        audited = pilot.suffix == ".json"
        effects = effects_of_audit(pilot) if audited else effects_of(Results.read(pilot))
    planned = Plan(effects, alpha, power, margin, unlearners)
    shown = planned.table()
    if samples is not None:
        each = poisons_of_one_run(samples, fraction)
        shown["runs to show removal"] = np.ceil(shown["poisons to show removal"] / each)
    shown["expected dependence"] = (
        shown["expected dependence"].map("{:.3g}".format).replace("nan", "–")
    )
    counts = shown.columns[2:]
    shown[counts] = shown[counts].map("{:,.0f}".format)
    console.print(_rich(shown, "plan"))
    if out is not None:
        save_plan(planned, out)


KeyOption = Annotated[Path, typer.Option(help="The key that `marshtest dose` wrote.")]
DataOption = Annotated[Path, typer.Option(help="The data as they were before dosing.")]
ScalingOption = Annotated[
    str | None, typer.Option(help="Values to model inputs: unit, pixels or MEAN,…/STD,…")
]


@app.command()
def dose(
    source: Annotated[Path, typer.Argument(help="Parquet, image folder, .npz or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The dosed data: a new folder or file.")],
    fraction: Annotated[float, typer.Option(help="Share of training samples that get a dose.")],
    variance: Annotated[float, typer.Option(help="ε², in squared units of scaled inputs.")] = 0.32,
    scaling: ScalingOption = None,
    seed: Annotated[int | None, typer.Option(help="Default: one that nobody can guess.")] = None,
    key: Annotated[Path | None, typer.Option(help="Default: OUT.key.json.")] = None,
    forget: Annotated[Path | None, typer.Option(help="Default: OUT.forget.csv.")] = None,
) -> None:
    """Put a dose into a data set on disk; write the forget request and the key.

    Example: marshtest dose images dosed --fraction 0.1 --variance 0.32
    """
    with console.status("dosing"):
        done = kit_dose.dose(
            source,
            out,
            fraction=fraction,
            variance=variance,
            scaling=_scaling(scaling),
            seed=seed,
            key_file=key,
            forget_file=forget,
        )
    noise = done.key.noise
    console.print(f"{len(done.key.ids):,} of {done.key.samples:,} samples dosed, ε² = {variance:g}")
    console.print(f"scaling: mean {list(noise.scaling.mean)}, std {list(noise.scaling.std)}")
    if noise.pixels:
        console.print(f"rounding and clipping left {done.power:.0%} of the noise's variance")
    for path, what in (
        (done.out, "for training"),
        (done.forget_file, "the forget request, for when the model is trained"),
        (done.key_file, "the key: keep it, and show it to nobody"),
    ):
        console.print(f"  {path}  {what}", soft_wrap=True, highlight=False)


@app.command(name="test")
def ask(
    before: Annotated[str, typer.Argument(help="The model trained on the dosed data.")],
    after: Annotated[list[str] | None, typer.Argument(help="Models after unlearning.")] = None,
    *,
    key: KeyOption,
    data: DataOption,
    retrained: Annotated[str | None, typer.Option(help="Trained without the dose.")] = None,
    scaling: ScalingOption = None,
    draws: Annotated[int, typer.Option(help="Fresh noises a poison, K.")] = 199,
    alpha: Annotated[float, typer.Option(help="Error rate over all models after.")] = 0.05,
    margin: Annotated[float, typer.Option(help="Share that REMOVED may leave.")] = 0.2,
    delta: Annotated[float, typer.Option(help="δ of the privacy bound.")] = 1e-5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, scores, figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Tell whether the dose is still in a model: exit 0 removed, 1 not, 3 inconclusive.

    A model is a .safetensors checkpoint of ours, a .pt2 program, a Hugging Face folder,
    'pkg.mod:load', or a black box 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'.

    Example: marshtest test before.pt2 after.pt2 --key dosed.key.json --data images
    """
    if out is not None:
        kit_audit.refuse_used(out)
    asked = {"draws": draws, "alpha": alpha, "margin": margin, "delta": delta}
    with _progress() as report:
        done = kit_audit.audit(
            key,
            data,
            before,
            *(after or []),
            retrained=retrained,
            scaling=_scaling(scaling),
            device=device,
            report=report,
            **asked,
        )
    if out is not None:
        done.save(out)
    if as_json:
        print(done.to_json(), end="")
    else:
        console.print(_rich(done.table(), f"{len(done.key.ids):,} poisons"))
        for sentence in done.sentences():
            console.print(sentence, highlight=False, markup=False)
        console.print(done.answer, style="bold")
    raise typer.Exit(done.exit_code)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="The model trained on the dosed data.")],
    *,
    key: KeyOption,
    data: DataOption,
    keys: Annotated[int, typer.Option(help="Null keys to try.")] = 200,
    scaling: ScalingOption = None,
    draws: Annotated[int, typer.Option(help="Fresh noises a poison, K.")] = 19,
    alpha: Annotated[float, typer.Option(help="Error rate that verdicts promise.")] = 0.05,
    margin: Annotated[float, typer.Option(help="Share that REMOVED may leave.")] = 0.2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the figure and all keys.")] = None,
) -> None:
    """Count the verdict's errors where the truth is known, with noise that no model has seen.

    Example: marshtest calibrate before.pt2 --key dosed.key.json --data images
    """
    with _progress() as report:
        done = kit_calibration.calibrate(
            key,
            data,
            model,
            keys=keys,
            scaling=_scaling(scaling),
            device=device,
            report=report,
            draws=draws,
            alpha=alpha,
            margin=margin,
        )
    shown = done.table()
    shares = ["share", "low", "high", "promised"]
    shown[shares] = shown[shares].map("{:.3f}".format)
    console.print(_rich(shown, f"{keys:,} keys"))
    for name, p in done.uniformity().items():
        console.print(f"{SCORE_NAMES[name]}: p-values uniform? Kolmogorov–Smirnov p = {p:.3f}")
    if out is not None:
        done.save(out)


def _scaling(text: str | None) -> Scaling | None:
    return None if text is None else Scaling.of(text, "--scaling")


def _catalogue() -> Iterator[dict[str, str]]:
    """Kind, name, one line, and the module that it comes from."""
    classes: dict[str, dict[str, Any]] = {
        "attack": ATTACKS,
        "unlearner": UNLEARNERS,
        "data": LOADERS | TEXTS,
        "model": MODELS,
        "metric": {name: import_module(f"marshtest.metrics.{name}") for name in METRICS},
    }
    for kind, found in classes.items():
        for name, thing in found.items():
            module = thing if inspect.ismodule(thing) else inspect.getmodule(thing)
            line = (inspect.getdoc(thing) or "").splitlines()[0]
            yield {"kind": kind, "name": name, "what": line, "source": module.__name__}  # type: ignore[union-attr]
    for name, line in REFERENCES.items():
        yield {"kind": "reference", "name": name, "what": line, "source": "marshtest.protocol"}
    for name, text in shipped().items():
        line = str(yaml.safe_load(text).get("description", ""))
        yield {"kind": "recipe", "name": name, "what": line, "source": f"recipes/{name}.yaml"}
    for name, text in shipped("hypotheses").items():
        line = str(yaml.safe_load(text)["description"])
        yield {
            "kind": "hypothesis",
            "name": name,
            "what": line,
            "source": f"hypotheses/{name}.yaml",
        }


def _rich(frame: pd.DataFrame, title: str) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in frame.columns:
        width = 12 if column in WRAPPED else None
        shown.add_column(
            str(column), overflow="fold", min_width=width, no_wrap=column not in WRAPPED
        )
    for line in frame.itertuples(index=False):
        shown.add_row(*(str(cell).replace("[", r"\[") for cell in line))
    return shown


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar over the whole run; plain lines where there is no terminal."""
    if not console.is_terminal:
        last, due = "", 0.0

        def line(stage: str, done: float) -> None:
            nonlocal last, due
            name, _, said = stage.partition(": ")
            now = time.monotonic()
            if name != last or (said and now >= due):
                print(f"{done:4.0%} {stage}", file=sys.stderr, flush=True)
                due = now + LINE_SECONDS if said else now
            last = name

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("loading data", total=1.0)
        yield lambda stage, done: bars.update(bar, description=stage, completed=done)


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    sys.path.insert(0, "")  # a user's "pkg.mod:name" in the current folder
    try:
        app(standalone_mode=True)
    except MarshtestError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print(
            "marshtest: stopped; a `run` that is started again goes on after its last finished seed.",
            file=sys.stderr,
        )
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.filename or 'output'}: {error.strerror or error}.")


def _fail(line: str) -> None:
    print(f"marshtest: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
