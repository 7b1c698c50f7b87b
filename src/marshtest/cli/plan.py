"""Commands that tell what an experiment needs before anything is spent: `explain` and `plan`."""

from pathlib import Path
from typing import Annotated

import typer

from marshtest.cli import screen
from marshtest.cli.audit import MarginOption
from marshtest.cli.run import Overrides

RightOption = Annotated[
    float | None,
    typer.Option(
        help="Share of noisy samples that a model answers rightly, of an audit by labels alone; with "
        "--rank."
    ),
]


def explain(
    recipe: Annotated[
        str, typer.Argument(help="Name of a shipped recipe or sweep, or a YAML file.")
    ],
    overrides: Overrides = None,
    gpu_tflops: Annotated[
        float,
        typer.Option(min=0.001, help="Speed that a GPU is taken to sustain, for the GPU hours."),
    ] = 20.0,
) -> None:
    """Show a recipe or a sweep in full, and what it will cost.

    Each kind of step is described, with its time on this machine. Nothing is trained.

    Example: marshtest explain digits-gaussian budgets=0.05
    """
    from marshtest.commands.explain import explain as explain_recipe

    explanation = explain_recipe(recipe, *(overrides or []), gpu_tflops=gpu_tflops)
    screen.say(*explanation.recipes())
    if explanation.costs is not None:
        screen.show(explanation.table(), f"{explanation.name}: expected on this machine")
    screen.say(*explanation.sentences())


def plan(
    pilot: Annotated[
        Path | None,
        typer.Option(help="Folder of a finished run, or an audit.json, that shows what to expect."),
    ] = None,
    gus: Annotated[
        float | None, typer.Option(help="Dependence by GUS that the initial model will have.")
    ] = None,
    rank: Annotated[
        float | None, typer.Option(help="Dependence by the rank score that it will have.")
    ] = None,
    works: Annotated[
        float | None,
        typer.Option(
            help="Share of trainings in which the attack works; gives the number of seeds, for "
            "attacks without Gaussian noise."
        ),
    ] = None,
    marks: Annotated[
        bool, typer.Option("--marks", help="Records that each studied mark needs, of texts.")
    ] = False,
    right: RightOption = None,
    samples: Annotated[int | None, typer.Option(help="Training samples of one run.")] = None,
    fraction: Annotated[
        float, typer.Option(help="Share of the training samples to poison.")
    ] = 0.015,
    alpha: Annotated[float, typer.Option(help="Error rate, over all unlearners.")] = 0.05,
    power: Annotated[float, typer.Option(help="Probability to find a true answer.")] = 0.9,
    margin: MarginOption = 0.2,
    unlearners: Annotated[int, typer.Option(help="Unlearners that are judged together.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table, and the curve behind it.")
    ] = None,
) -> None:
    """Say how many poisons, or trainings, a verdict needs.

    Give the effect to expect: by --gus and --rank, by a --pilot, by --works, or by --marks.

    Example: marshtest plan --gus 1.0 --rank 1.7 --samples 50000 --fraction 0.015
    """
    from marshtest.commands.plan import plan as plan_verdict
    from marshtest.plumbing.whole_files import refuse_unwritable

    if out is not None:
        refuse_unwritable(out)
    planned = plan_verdict(
        pilot=pilot,
        gus=gus,
        rank=rank,
        works=works,
        marks=marks,
        right=right,
        samples=samples,
        fraction=fraction,
        alpha=alpha,
        power=power,
        margin=margin,
        unlearners=unlearners,
    )
    screen.show(planned.texts(), "plan")
    screen.say(*planned.sentences())
    if out is not None:
        planned.save(out)
