"""The command line: parse, call one function of the library, print."""

import inspect
import json
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from marshtest.plumbing.errors import NOTE, MarshtestError, first_line
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.progress import Progress as Told
from marshtest.plumbing.yaml_files import shipped
from marshtest.sweeps import ledger
from marshtest.sweeps.settings import read_sweep
from marshtest.sweeps.store import Store

if TYPE_CHECKING:  # a command imports what it needs as it runs: torch alone takes seconds
    import pandas as pd

    from marshtest.kit.noise import Scaling
    from marshtest.unlearning.check import Fact


class Commands(TyperGroup):
    """The commands, with one rule for how they end.

    Only a command's own `typer.Exit` gives 1 or 3, which are answers. Bad input is one line and 2, Ctrl-C
    one line and 130, and 2 is what becomes of everything else, whoever raised it.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            given = super().invoke(ctx)
            sys.stdout.flush()  # a full disk or a closed pipe is told here, not as Python ends
            return given
        except MarshtestError as error:
            _fail(str(error))
        except OSError as error:
            if error.filename is None:
                _forget_output()
            _fail(f"{error.filename or 'output'}: {error.strerror or error}.")
        except KeyboardInterrupt:
            goes_on = "; the same command goes on where this one was"
            print(
                f"marshtest: stopped{goes_on if ctx.invoked_subcommand in GO_ON else ''}.",
                file=sys.stderr,
            )
            sys.exit(130)
        except MemoryError:
            _fail("out of memory.")
        except SystemExit as error:
            _fail(f"something that was called tried to end the command (SystemExit: {error}).")
        except (Exception, BaseExceptionGroup) as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # an exit, help, or wrong use, which typer tells
            traceback.print_exc()
            _fail(
                f"a fault of marshtest itself ({type(error).__name__}: {first_line(error)}). "
                "Please report it with the traceback above."
            )


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does an unlearning algorithm really remove the data? Poison it first, and look.",
)
console = Console(markup=False, emoji=False)  # what is printed is data
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
GO_ON = {"run", "sweep"}  # commands that keep what is finished, and begin there again
LINE_SECONDS = 30  # between two plain lines that say how one stage stands
WRAPPED = {"what", "verdict", "model", "unlearner"}  # columns of running text
PAIRS = {"GUS", "rank score"}  # columns of a number with its errors, the second below it if need be
LEFT_OUT = {  # columns that a narrower terminal has no room for; summary.md or audit.json has them
    160: ["spent", "TPR", "rank TPR"],
    100: ["cost", "trainings", "vanished", "ties"],
}
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
    from marshtest.commands.run import run as run_recipe
    from marshtest.experiment.recipe import load_recipe
    from marshtest.reporting.page import sentences
    from marshtest.reporting.tables import explained, legend, table

    resolved = load_recipe(recipe, overrides or [])
    with _progress() as progress:
        results = run_recipe(resolved, out=out, progress=progress)
    console.print(_rich(_fitting(table(results)), resolved.name))
    console.print(legend(results), style="dim")
    for sentence in sentences(results):
        console.print(sentence, style="bold")
    for sentence in explained(results):
        console.print(sentence, highlight=False, markup=False)
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
    from marshtest.commands.study import study
    from marshtest.reporting.hypotheses import hypothesis_table

    with _progress() as progress:
        done = study(hypothesis, *(overrides or []), out=out, progress=progress)
    console.print(_rich(hypothesis_table(done.settings.hypothesis, done.rows), done.settings.name))
    console.print(done.statement, style="bold")
    console.print(f"  {done.folder / 'figures'}", soft_wrap=True)


@app.command()
def check(
    unlearner: Annotated[str, typer.Argument(help="Yours, 'pkg.mod:name', or one of ours.")],
    hyperparameters: Annotated[
        list[str] | None, typer.Argument(help="Hyper-parameters, such as lr=0.05.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Data it is made for: images, features, text; repeat. Default: all."),
    ] = None,
) -> None:
    """Tell what is wrong with an unlearner before any long run; exit 1 if anything is.

    Example: marshtest check mypkg.unlearning:my_unlearner lr=0.01 --on images
    """
    from marshtest.plumbing.yaml_files import parse_override
    from marshtest.unlearning import parse_trials
    from marshtest.unlearning.check import KINDS, check_unlearner

    given = {"name": unlearner} | dict(map(parse_override, hyperparameters or []))
    made, *more = parse_trials(given)
    if more:
        raise MarshtestError("check: a hyper-parameter has one value here. Check one at a time.")
    facts = check_unlearner(made, on or KINDS)
    for line in _checked(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(fact.holds for fact in facts) else 1)


def _checked(facts: "list[Fact]") -> Iterator[str]:
    """Facts by kind of data, within 80 columns, and what was asked."""
    from marshtest.unlearning.check import KINDS, RUNS

    kinds = list(dict.fromkeys(fact.kind for fact in facts))
    for kind in kinds:
        yield kind
        for fact in (fact for fact in facts if fact.kind == kind):
            yield f"  {'ok  ' if fact.holds else 'FAIL'}  {fact.name}"
            yield from textwrap.wrap(
                fact.detail, 80, initial_indent=" " * 8, subsequent_indent=" " * 8
            )
    failed = sum(not fact.holds for fact in facts)
    left_out = [kind for kind in KINDS if kind not in kinds]
    yield f"{len(facts) - failed} of {len(facts)} facts hold on {', '.join(kinds)}."
    if left_out:
        yield f"Not asked: {', '.join(left_out)}."
    broken = {fact.kind for fact in facts if fact.name == RUNS and not fact.holds}
    sound = [kind for kind in kinds if kind not in broken]
    if broken and sound:
        options = " ".join(f"--on {kind}" for kind in sound)
        yield f"If it is not made for {' and '.join(sorted(broken))}, check it with {options}."


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Name every attack, unlearner, data set, model, metric and recipe.

    Example: marshtest list --json
    """
    import pandas as pd

    lines = list(_catalogue())
    if as_json:
        print(json.dumps(lines, indent=2))
        return
    console.print(_rich(pd.DataFrame(lines), "marshtest"))


@app.command()
def explain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or sweep, or a YAML file.")],
    overrides: Overrides = None,
    gpu_tflops: Annotated[
        float, typer.Option(min=0.001, help="What a GPU is taken to sustain, for the GPU hours.")
    ] = 20.0,
) -> None:
    """Show the resolved recipe or sweep, what each step is, what is shared, and the expected cost.

    Example: marshtest explain digits-gaussian budgets=0.05
    """
    from marshtest.commands.explain import expected_cost, foreign_model
    from marshtest.experiment.prospects import family_of, needs
    from marshtest.sweeps.planned import plan_sweep

    planned = plan_sweep(read_sweep(recipe, overrides or []), imports=False)
    name = planned.sweep.name
    console.print(planned.keys[0].recipe.to_yaml(), highlight=False, markup=False)
    if len(planned.variants) > 1:
        console.print(f"and {len(planned.variants) - 1} more like it, in all:")
        for variant in planned.variants:
            console.print(f"  {variant.label}", highlight=False, markup=False)
    if (factory := foreign_model(planned)) is not None:
        console.print(
            f"What it costs cannot be told: it rests on {factory}, and explaining a recipe runs nothing of "
            "yours."
        )
        return
    costs = expected_cost(planned)
    shown = costs.drop(columns="flops")
    shown["passes"] = shown["passes"].map("{:.3g}".format)
    shown["seconds"] = shown["seconds"].map("{:,.1f}".format)
    console.print(_rich(shown, f"{name}: expected on this machine"))
    for _, line in costs[costs["stage"] == "craft"].iterrows():
        console.print(f"A step of the attack takes about {line['seconds'] / line['count']:.2g} s.")
    console.print(
        f"{len(planned.cells):,} rows from {len(planned.jobs):,} jobs; if nothing were shared, "
        f"{planned.unshared:,} jobs."
    )
    for text in dict.fromkeys(needs(k.recipe, family_of(k.recipe)) for k in planned.keys):
        console.print(text, highlight=False, markup=False)
    hours, flops = costs["seconds"].sum() / 3600, costs["flops"].sum()
    console.print(
        f"In all about {3600 * hours:,.0f} s ({hours:.2f} h) here, one job at a time; {flops:.2g} "
        f"floating-point operations, {flops / gpu_tflops / 3.6e15:.2g} h of a GPU that sustains "
        f"{gpu_tflops:g} TFLOP/s."
    )


StoreOption = Annotated[str, typer.Option(help="Folder, or what fsspec takes, of what is done.")]
SweepArgument = Annotated[
    str | None, typer.Argument(help="Its name; not needed if it is the only.")
]


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(help="A shipped sweep or recipe, or a YAML file.")],
    overrides: Overrides = None,
    *,
    store: StoreOption = "runs/store",
    engine: Annotated[str, typer.Option(help="in-process, processes or ray.")] = "in-process",
    workers: Annotated[int | None, typer.Option(help="Of processes; default all cores.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, HOST:PORT or auto.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try again what failed before.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the rows; default runs/NAME-HASH.")
    ] = None,
) -> None:
    """Run a recipe over grids; kill it at any time, and the same command goes on. Exit 1 if jobs failed.

    Example: marshtest sweep digits-budgets --engine processes --workers 2
    """
    asked, started = read_sweep(sweep, overrides or []), time.monotonic()
    folder = out if out is not None else Path("runs") / asked.id
    place = Store(store)
    if not retry_failed and (folder / "rows.parquet").exists() and ledger.is_done(place, asked):
        seconds = time.monotonic() - started
        console.print(f"{asked.id}: all is done already, in {store} ({seconds:.1f} s).")
        console.print(f"  {folder / 'rows.parquet'}", soft_wrap=True, highlight=False)
        return
    from marshtest.commands.sweep import sweep as drive

    with _progress() as progress:
        done = drive(
            asked,
            store=store,
            engine=engine,
            workers=workers,
            address=address,
            retry_failed=retry_failed,
            out=out,
            progress=progress,
        )
    counts = f"{done.done:,} jobs done, {done.reused:,} were done before"
    console.print(f"{asked.id}: {counts}; {done.seconds:,.1f} s.")
    console.print(f"  {done.folder / 'rows.parquet'}", soft_wrap=True, highlight=False)
    for what in done.damaged:
        console.print(f"{what} was damaged, and is made again", markup=False)
    for label, fault in done.failed.items():
        console.print(f"failed: {label}: {fault}", style="bold", markup=False)
    if done.failed:
        console.print(
            f"{len(done.failed)} failed, {done.blocked} wait for them. `marshtest status {asked.id} "
            "--failures` shows the tracebacks; --retry-failed tries again.",
            markup=False,
        )
        raise typer.Exit(1)


@app.command()
def status(
    sweep: SweepArgument = None,
    *,
    store: StoreOption = "runs/store",
    watch: Annotated[bool, typer.Option(help="Until it is done or nobody is at work.")] = False,
    failures: Annotated[bool, typer.Option(help="Tracebacks of what failed.")] = False,
) -> None:
    """Tell what of a sweep is done, at work, failed, and how long the rest will take.

    Example: marshtest status digits-budgets
    """
    place = Store(store)
    planned = ledger.Ledger.read(place, ledger.find(place, sweep))
    if failures:
        for failed in ledger.failures(place, planned).values():
            console.print(f"{failed['job']}: {failed['fault']}", style="bold", markup=False)
            console.print(failed["traceback"], markup=False, highlight=False)
        return
    found = ledger.standing(place, planned)
    if watch and console.is_terminal:
        with Live(_standing(planned.id, found), console=console) as live:
            while any(of.running for of in found.values()):
                time.sleep(1)
                found = ledger.standing(place, planned)
                live.update(_standing(planned.id, found))
        return
    console.print(_standing(planned.id, found))


@app.command()
def rows(
    sweep: SweepArgument = None,
    filters: Annotated[
        list[str] | None, typer.Argument(help="Such as unlearner=gd seed=0.")
    ] = None,
    *,
    store: StoreOption = "runs/store",
    out: Annotated[Path | None, typer.Option(help="A .parquet, .csv or .json file.")] = None,
) -> None:
    """Give the rows of a sweep as far as they are there; CSV on standard output without --out.

    Example: marshtest rows digits-budgets unlearner=gd budget=0.1 --out gd.parquet
    """
    import pandas as pd

    from marshtest.experiment.row_file import write_rows
    from marshtest.plumbing.whole_files import write

    given = list(filters or [])
    if sweep is not None and "=" in sweep:
        given, sweep = [sweep, *given], None
    place = Store(store)
    planned = ledger.Ledger.read(place, ledger.find(place, sweep))
    found, damaged = ledger.rows(place, planned)
    frame = pd.DataFrame(ledger.matching(found, given))
    if damaged:
        print(
            f"marshtest: {len(damaged)} rows are damaged in the store and left out; start the sweep "
            "again to make them anew.",
            file=sys.stderr,
        )
    if out is None:
        print(frame.to_csv(index=False), end="")
    elif out.suffix == ".json":
        write(frame.to_json(orient="records", indent=1).encode(), out)
    elif out.suffix == ".csv":
        write(frame, out)
    elif out.suffix == ".parquet":
        write_rows(frame, out, planned.runs)
    else:
        raise MarshtestError(f"--out: {out} ends in none of .parquet, .csv, .json.")


@app.command()
def clean(
    sweeps: Annotated[list[str] | None, typer.Argument(help="Sweeps to forget as well.")] = None,
    *,
    store: StoreOption = "runs/store",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
) -> None:
    """Remove from a store what no sweep refers to and what killed drivers left.

    Example: marshtest clean --dry-run
    """
    place = Store(store)
    if not place.exists:
        raise MarshtestError(f"store: {store} holds no store. Give --store.")
    forgotten = [ledger.find(place, name) for name in sweeps or []]
    found = ledger.rubbish(place, forgotten)
    for name in found:
        console.print(name, highlight=False, markup=False, soft_wrap=True)
        if not dry_run:
            place.remove(name)
    console.print(f"{len(found)} {'would be removed' if dry_run else 'removed'}.")


ROWS = "Runs, sweeps, hypotheses, files of rows, or folders of them."


@app.command()
def report(
    rows: Annotated[list[Path], typer.Argument(help=ROWS)],
    out: Annotated[Path, typer.Option(help="Folder of the page, figures and tables.")],
) -> None:
    """Draw every figure and table that rows can fill, and a page that explains itself.

    Rows that can be compared are merged. Exit 2 if rows are missing; the report then says which.

    Example: marshtest report runs/one runs/two --out report
    """
    from marshtest.reporting.write import report_rows

    merged = report_rows(*rows, out=out)
    for line in merged.said:
        console.print(line, highlight=False, markup=False)
    for path in (out / "report.html", out / "figures", out / "tables"):
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    gaps = [gap for results in merged.results for gap in results.gaps]
    if gaps:
        more = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise MarshtestError(
            f"{', '.join(map(str, rows))}: rows are missing: {gaps[0]}{more}. The report is drawn without "
            "them and says so; run the recipe to its end for a whole one."
        )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A run, or its rows.")],
    b: Annotated[Path, typer.Argument(help="Another of the same recipe but for its unlearners.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the table and the figure.")] = None,
) -> None:
    """Set two runs side by side, cell by cell, with a paired test: which version is better?

    Example: marshtest compare runs/before runs/after
    """
    from marshtest.reporting.tables import comparison_table
    from marshtest.results.comparison import LEGEND, sentences
    from marshtest.results.comparison import compare as compare_runs
    from marshtest.results.merging import read_one

    compared = compare_runs(read_one(a), read_one(b))
    console.print(_rich(comparison_table(compared), f"A {a}, B {b}"))
    console.print(LEGEND, style="dim")
    for sentence in sentences(compared):
        console.print(sentence, style="bold", highlight=False, markup=False)
    if out is not None:
        from marshtest.reporting.write import write_comparison

        write_comparison(compared, out)
        console.print(f"  {out}", soft_wrap=True, highlight=False)


@app.command()
def leaderboard(
    rows: Annotated[list[Path], typer.Argument(help=ROWS)],
    out: Annotated[Path | None, typer.Option(help="Folder for the table.")] = None,
) -> None:
    """Rank unlearners over attacks by what is left and what it cost; overlapping intervals are ties.

    Example: marshtest leaderboard runs
    """
    from marshtest.reporting.tables import ranking_table, write_table
    from marshtest.results.leaderboard import LEGEND
    from marshtest.results.merging import read_all

    merged = read_all(rows)
    for line in merged.said:
        console.print(line, highlight=False, markup=False)
    shown = ranking_table(merged.results)
    if shown.empty:
        raise MarshtestError(
            f"{', '.join(map(str, rows))}: no experiment shows an effect of its poison beside rows of its "
            "initial and its retrained model, so nothing can be ranked. Give such rows."
        )
    console.print(_rich(shown, "leaderboard"))
    console.print(LEGEND, style="dim")
    if out is not None:
        write_table(shown, out / "leaderboard", LEGEND)
        console.print(f"  {out}", soft_wrap=True, highlight=False)


@app.command()
def plan(
    pilot: Annotated[
        Path | None, typer.Option(help="Folder of a finished run, or an audit.json.")
    ] = None,
    gus: Annotated[float | None, typer.Option(help="Expected dependence by GUS.")] = None,
    rank: Annotated[
        float | None, typer.Option(help="Expected dependence by the rank score.")
    ] = None,
    works: Annotated[
        float | None,
        typer.Option(
            help="Share of trainings in which an attack without a null law works: asks for seeds."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples of one run.")] = None,
    fraction: Annotated[float, typer.Option(help="Share of them that will be poisons.")] = 0.015,
    alpha: Annotated[float, typer.Option(help="Error rate over all unlearners.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to find a true answer.")] = 0.9,
    margin: Annotated[float, typer.Option(help="Share that REMOVED may leave.")] = 0.2,
    unlearners: Annotated[int, typer.Option(help="How many are judged together.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for the curve and its table.")] = None,
) -> None:
    """Tell how many poisons, or trainings, a verdict needs, before anything is spent.

    Example: marshtest plan --gus 1.0 --rank 1.7 --samples 50000 --fraction 0.015
    """
    import numpy as np

    from marshtest.commands import plan as planning
    from marshtest.results.summary import Results

    levels = {"alpha": alpha, "power": power, "margin": margin}
    each = None if samples is None else planning.poisons_of_one_run(samples, fraction)
    if works is not None:
        seeds = planning.trainings_table(works, unlearners=unlearners, **levels)
        console.print(_rich(seeds.astype(str), "plan"))
        return
    guessed = {name: value for name, value in (("gus", gus), ("rank", rank)) if value is not None}
    effects = guessed
    if pilot is not None:
        audited = pilot.suffix == ".json"
        effects = (
            planning.effects_of_audit(pilot)
            if audited
            else planning.effects_of(Results.read(pilot))
        )
    planned = planning.Plan(effects, unlearners=unlearners, **levels)
    shown = planned.table()
    if each is not None:
        shown["runs to show removal"] = np.ceil(shown["poisons to show removal"] / each)
    shown["expected dependence"] = (
        shown["expected dependence"].map("{:.3g}".format).replace("nan", "–")
    )
    counts = shown.columns[2:]
    shown[counts] = shown[counts].map("{:,.0f}".format)
    console.print(_rich(shown, "plan"))
    if out is not None:
        planning.save_plan(planned, out)


KeyOption = Annotated[Path, typer.Option(help="The key that `marshtest dose` wrote.")]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Run callables and .pt2 programs in this process.")
]
DataOption = Annotated[Path, typer.Option(help="The data as they were before dosing.")]
ScalingOption = Annotated[
    str | None, typer.Option(help="Values to model inputs: unit, pixels or MEAN,…/STD,…")
]

SHOWS = "; formats and sizes of its files show which are dosed (--hide)"


@app.command()
def dose(
    source: Annotated[Path, typer.Argument(help="Parquet, image folder, .npz or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The dosed data: a new folder or file.")],
    fraction: Annotated[float, typer.Option(help="Share of training samples that get a dose.")],
    variance: Annotated[float, typer.Option(help="ε², in squared units of scaled inputs.")] = 0.32,
    scaling: ScalingOption = None,
    seed: Annotated[int | None, typer.Option(help="Default: one that nobody can guess.")] = None,
    hide: Annotated[
        bool,
        typer.Option(
            "--hide",
            help="Write all training images anew, as PNG without compression: "
            "formats and sizes no longer tell which are dosed.",
        ),
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="The key, outside SOURCE and OUT. Default: OUT.key.json.")
    ] = None,
    forget: Annotated[
        Path | None, typer.Option(help="The forget request. Default: OUT.forget.csv.")
    ] = None,
) -> None:
    """Put a dose into a data set on disk; write the forget request and the key.

    Nothing is overwritten, and all files of OUT get one and the same time. Images must have one size.

    Example: marshtest dose images dosed --fraction 0.1 --variance 0.32
    """
    from marshtest.kit.dose import dose as dose_data

    with console.status("dosing"):
        done = dose_data(
            source,
            out,
            fraction=fraction,
            variance=variance,
            scaling=_scaling(scaling),
            seed=seed,
            hide=hide,
            key_file=key,
            forget_file=forget,
        )
    noise = done.key.noise
    console.print(f"{len(done.key.ids):,} of {done.key.samples:,} samples dosed, ε² = {variance:g}")
    console.print(f"scaling: mean {list(noise.scaling.mean)}, std {list(noise.scaling.std)}")
    if noise.pixels:
        console.print(f"rounding and clipping left {done.power:.0%} of the noise's variance")
    for path, what in (
        (done.out, f"for training{SHOWS * done.shows}"),
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
    in_process: InProcessOption = False,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, scores, figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Tell whether the dose is still in a model: exit 0 removed, 1 not, 3 inconclusive, 2 no answer.

    A model is a .safetensors checkpoint of ours, a .pt2 program, a Hugging Face folder,
    'pkg.mod:load', or a black box 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'.

    Example: marshtest test before.pt2 after.pt2 --key dosed.key.json --data images
    """
    from marshtest.kit.audit import audit, refuse_used

    if out is not None:
        refuse_used(out)
    asked = {"draws": draws, "alpha": alpha, "margin": margin, "delta": delta}
    with _progress() as progress:
        done = audit(
            key,
            data,
            before,
            *(after or []),
            retrained=retrained,
            scaling=_scaling(scaling),
            device=device,
            in_process=in_process,
            progress=progress,
            **asked,
        )
    if as_json:  # printed before it is saved: a full disk does not lose the answer
        print(done.to_json(), end="", flush=True)
    else:
        console.print(_rich(_fitting(done.table()), f"{len(done.key.ids):,} poisons"))
        for sentence in done.sentences():
            console.print(sentence, highlight=False, markup=False)
        console.print(done.answer, style="bold")
    if out is not None:
        done.save(out)
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
    in_process: InProcessOption = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the figure and all keys.")] = None,
) -> None:
    """Count the verdict's errors where the truth is known, with noise that no model has seen.

    Example: marshtest calibrate before.pt2 --key dosed.key.json --data images
    """
    from marshtest.kit.calibration import calibrate as count_errors
    from marshtest.metrics.dependence import SCORES

    with _progress() as progress:
        done = count_errors(
            key,
            data,
            model,
            keys=keys,
            scaling=_scaling(scaling),
            device=device,
            in_process=in_process,
            progress=progress,
            draws=draws,
            alpha=alpha,
            margin=margin,
        )
    shown = done.table()
    shares = ["share", "low", "high", "promised"]
    shown[shares] = shown[shares].map("{:.3f}".format).replace("nan", "–")
    console.print(_rich(shown, f"{keys:,} keys"))
    for name, p in done.uniformity().items():
        console.print(f"{SCORES[name].title}: p-values uniform? Kolmogorov–Smirnov p = {p:.3f}")
    if out is not None:
        done.save(out)


def _scaling(text: str | None) -> "Scaling | None":
    from marshtest.kit.noise import Scaling

    return None if text is None else Scaling.of(text, "--scaling")


def _catalogue() -> Iterator[dict[str, str]]:
    """Kind, name, one line, and the module that it comes from."""
    from marshtest.attacks import ATTACKS
    from marshtest.data.load import LOADERS
    from marshtest.data.texts import TEXTS
    from marshtest.models.table import MODELS
    from marshtest.unlearning import UNLEARNERS

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
        yield {
            "kind": "reference",
            "name": name,
            "what": line,
            "source": "marshtest.experiment.protocol",
        }
    for name, text in shipped().items():
        line = str(yaml.safe_load(text).get("description", ""))
        yield {"kind": "recipe", "name": name, "what": line, "source": f"recipes/{name}.yaml"}
    for folder, kind in (("hypotheses", "hypothesis"), ("sweeps", "sweep")):
        for name, text in shipped(folder).items():
            line = str(yaml.safe_load(text)["description"])
            yield {"kind": kind, "name": name, "what": line, "source": f"{folder}/{name}.yaml"}


def _standing(name: str, found: dict[str, ledger.Standing]) -> Table:
    """How far a sweep is, by kind of job, and how long the rest will take."""
    left = ledger.remaining(found)
    text = "" if left is None else f"; about {left:,.0f} s to go as it runs now"
    shown = Table(title=f"{name}{text}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("jobs", "done", "at work", "failed", "waiting", "seconds each", "now"):
        shown.add_column(column)
    for kind, of in found.items():
        seconds = "–" if of.seconds is None else f"{of.seconds:.2f}"
        counts = (of.done, of.running, of.failed, of.waiting)
        shown.add_row(kind, *map(str, counts), seconds, "; ".join(of.at_work[:2]))
    return shown


def _fitting(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The columns that the terminal has room for."""
    for width, columns in LEFT_OUT.items():
        if console.width < width:
            frame = frame.drop(columns=columns, errors="ignore")
    return frame


def _rich(frame: "pd.DataFrame", title: str) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in frame.columns:
        width = 12 if column in {*WRAPPED, *PAIRS} else None
        shown.add_column(str(column), overflow="fold", min_width=width, no_wrap=width is None)
    for line in frame.itertuples(index=False):
        shown.add_row(*map(str, line))
    return shown


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar over the whole run; plain lines where there is no terminal."""
    if not console.is_terminal:
        last, due = "", 0.0

        def line(done: float, stage: str = "", /) -> None:
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("loading data", total=1.0)

        def told(done: float, stage: str = "", /) -> None:
            if stage.startswith(NOTE):
                bars.console.print(stage, markup=False, highlight=False)
            else:
                bars.update(bar, description=stage, completed=done)

        yield told


def main() -> None:
    """Entry point."""
    keep_freed_memory()
    app()


def _forget_output() -> None:
    """Let what could not be written go nowhere; Python would try again as it ends, and exit with 120."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str) -> NoReturn:
    print(f"marshtest: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)
