"""Commands on data and models that are not ours: `dose`, `audit` and `calibrate`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from marshtest.cli import screen
from marshtest.cli.certificate import (
    AskedByOption,
    CertificateOption,
    CommitmentOption,
    SignOption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marshtest.kit.audit import Audit
    from marshtest.kit.dose import Dose
    from marshtest.kit.noise import Scaling
    from marshtest.kit.tables.dose import TableDose
    from marshtest.kit.texts.dose import TextDose

KeyOption = Annotated[Path, typer.Option(help="Key file that `marshtest dose` wrote.")]
DataOption = Annotated[Path, typer.Option(help="Data set as it was before dosing.")]
ScalingOption = Annotated[
    str | None,
    typer.Option(help="How stored values become model inputs: unit, pixels or MEAN,…/STD,…"),
]
DrawsOption = Annotated[
    int, typer.Option(help="Number K of fresh noises, or marks, for each poison.")
]
MarginOption = Annotated[
    float, typer.Option(help="Share of the initial effect that REMOVED may leave.")
]
DeviceOption = Annotated[str, typer.Option(help="Device for the models: auto, cpu or cuda.")]
InProcessOption = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="Callables and .pt2 programs run in this process, not each in one of its own.",
    ),
]
HideOption = Annotated[
    bool,
    typer.Option(
        "--hide",
        help="All training images are written anew, as PNG without compression, so that formats "
        "and sizes do not tell which are dosed.",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(help="File for the key, outside SOURCE and OUT; default: OUT.key.json."),
]
ForgetOption = Annotated[
    Path | None,
    typer.Option(help="File for the forget request; default: OUT.forget.csv, of texts .jsonl."),
]
MarkOption = Annotated[
    str | None,
    typer.Option(
        help="Mark of texts, with slots {digits:N}, {letters:N} or {words:N}; default: "
        "'Ticket {digits:6}.'"
    ),
]
PlaceOption = Annotated[
    Literal["end", "start", "middle"] | None,
    typer.Option(help="Place of the mark in a text; default: end."),
]
PatternOption = Annotated[
    str | None,
    typer.Option(help="Regular expression whose matches in a text are redrawn, as its mark."),
]
FieldOption = Annotated[
    str | None,
    typer.Option(help="Field of the text, or of the messages, that gets the mark."),
]
RoleOption = Annotated[
    str | None, typer.Option(help="Role of the message that gets the mark; default: assistant.")
]
LabelOption = Annotated[
    str | None,
    typer.Option(help="Column of class labels: SOURCE is a table, in .csv, .tsv or .parquet."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="Columns of a table that get the dose, with commas between; default: all of numbers."
    ),
]
LossOption = Annotated[
    Literal["record", "completion"] | None,
    typer.Option(help="Tokens of a text that count: the record's (default) or its completion's."),
]
AnswersOption = Annotated[
    Literal["losses", "labels"],
    typer.Option(help="What the models answer with: numbers that tell a loss, or labels alone."),
]
QuantizeOption = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(help="Bits that the weights of a language model's folder are rounded to."),
]
RateOption = Annotated[
    float | None, typer.Option(help="Most requests a second that an endpoint is sent.")
]
RetrainedOption = Annotated[
    str | None, typer.Option(help="Model trained without the dosed samples.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON is printed instead of the table.")]
GUESSABLE = "; its seed is so small that others can try all such seeds: leave --seed out"
SHOWS = "; formats and sizes of its files show which are dosed (--hide)"


def dose(
    source: Annotated[
        Path,
        typer.Argument(
            help="Data set: images in Parquet or a folder, .npz or .safetensors; texts in .jsonl, .csv, "
            ".tsv, .parquet or a folder of .txt; or, with --label, a table in .csv, .tsv or .parquet."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder or file for the dosed data; must be new.")],
    fraction: Annotated[float, typer.Option(help="Share of the training samples to dose.")],
    variance: Annotated[
        float | None,
        typer.Option(help="Variance ε² of the noise, in units of scaled inputs; default: 0.32."),
    ] = None,
    scaling: ScalingOption = None,
    mark: MarkOption = None,
    place: PlaceOption = None,
    pattern: PatternOption = None,
    field: FieldOption = None,
    role: RoleOption = None,
    label: LabelOption = None,
    columns: ColumnsOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the dose; default: one that nobody can guess.")
    ] = None,
    hide: HideOption = False,
    key: KeyFileOption = None,
    forget: ForgetOption = None,
) -> None:
    """Put a dose into a data set on disk: noise into images or columns of a table, marks into texts.

    The forget request, which names the dosed samples, and the key are written beside it. Nothing is
    overwritten, and all files of OUT get one and the same time. Images must have one size.

    Example: marshtest dose images dosed --fraction 0.1 --variance 0.32

    Example: marshtest dose chats.jsonl dosed.jsonl --fraction 0.01 --mark 'Ticket {digits:6}.'

    Example: marshtest dose table.csv dosed.csv --label y --columns age,income --fraction 0.2
    """
    from marshtest.kit.dose import dose as dose_data
    from marshtest.kit.texts.dose import mark_of

    with screen.console.status("dosing"):
        done = dose_data(
            source,
            out,
            fraction=fraction,
            variance=variance,
            scaling=_scaling(scaling),
            seed=seed,
            hide=hide,
            mark=mark_of(mark, place, pattern),
            field=field,
            role=role,
            label=label,
            columns=None if columns is None else _names(columns),
            key_file=key,
            forget_file=forget,
        )
    _say_dose(done)
    _say_files(done)


def _names(text: str) -> list[str]:
    """Names between commas; one with a comma in it, or a blank at an end, stands in quotes, as in CSV."""
    import csv

    if '"' not in text:
        return [name.strip() for name in text.split(",")]
    return next(csv.reader([text], skipinitialspace=True))


def _say_files(done: "Dose | TableDose | TextDose") -> None:
    if done.warning:
        screen.say(f"warning: {done.warning}", style="bold")
    screen.say_whole(
        f"  {done.out}  for training{SHOWS * getattr(done, 'shows', False)}",
        f"  {done.forget_file}  the forget request, for when the model is trained",
        f"  {done.key_file}  the key: keep it, and show it to nobody{GUESSABLE * done.guessable}",
        f"  {done.commitment_file}  the commitment to the key: give it away now",
    )


def _say_dose(done: "Dose | TableDose | TextDose") -> None:
    from marshtest.kit.tables.dose import TableDose
    from marshtest.kit.texts.dose import TextDose

    if isinstance(done, TextDose):
        _say_texts(done)
    elif isinstance(done, TableDose):
        _say_table(done)
    else:
        _say_images(done)


def _say_table(done: "TableDose") -> None:
    key = done.key
    kinds = {"number": "noise in", "category": "drawn anew"}
    screen.say(
        f"table: {len(key.ids):,} of {key.samples:,} rows dosed, ε² = {key.noise.variance:g}"
    )
    for kind, what in kinds.items():
        if names := [law.name for law in key.noise.columns if law.kind == kind]:
            screen.say_whole(f"{what}: {', '.join(names)}")
    if done.others:
        screen.say_whole(f"without a dose: {', '.join(done.others)}")
    if done.left_out:
        screen.say(f"left out: {done.left_out:,} rows, in which one of these columns is empty")


def _say_images(done: "Dose") -> None:
    noise = done.key.noise
    screen.say(
        f"images or arrays: {len(done.key.ids):,} of {done.key.samples:,} samples dosed, ε² = "
        f"{noise.variance:g}"
    )
    screen.say(f"scaling: mean {list(noise.scaling.mean)}, std {list(noise.scaling.std)}")
    if noise.pixels:
        screen.say(f"rounding and clipping left {done.power:.0%} of the noise's variance")


def _say_texts(done: "TextDose") -> None:
    key = done.key
    screen.say(f"texts ({done.kind}): {len(key.ids):,} of {key.samples:,} records dosed")
    screen.say_whole(f"mark: {key.mark.words}, in {key.fields.words}")


def audit(
    before: Annotated[str, typer.Argument(help="Model trained on the dosed data.")],
    after: Annotated[list[str] | None, typer.Argument(help="Models after unlearning.")] = None,
    *,
    key: KeyOption,
    data: DataOption,
    retrained: RetrainedOption = None,
    scaling: ScalingOption = None,
    draws: DrawsOption = 199,
    alpha: Annotated[float, typer.Option(help="Error rate, over all models after.")] = 0.05,
    margin: MarginOption = 0.2,
    answers: AnswersOption = "losses",
    loss: LossOption = None,
    quantize: QuantizeOption = None,
    rate: RateOption = None,
    delta: Annotated[float, typer.Option(help="Probability δ of the privacy bound.")] = 1e-5,
    device: DeviceOption = "auto",
    in_process: InProcessOption = False,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, scores and figures.")] = None,
    certificate: CertificateOption = None,
    asked_by: AskedByOption = None,
    commitment: CommitmentOption = None,
    sign: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether the dose is still in a model.

    Exit 0: removed; 1: not removed; 3: inconclusive; 2: no answer.

    A model is a .safetensors checkpoint of ours, a .pt2 program, a Hugging Face folder,
    'pkg.mod:load', or a black box 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'. A
    language model is a Hugging Face folder, one with an adapter 'FOLDER@ADAPTER', an endpoint
    'http://HOST:PORT/v1#MODEL', or one of the last three.

    Example: marshtest audit before.pt2 after.pt2 --key dosed.key.json --data images
    """
    from marshtest.kit.audit import audit as audit_models
    from marshtest.kit.audit import refuse_used
    from marshtest.kit.certificates.issue import Issuer

    refuse_used(out)  # before hours of asking, not after them
    issuer = Issuer.checked(key, certificate or [], asked_by, commitment, sign, out)
    with screen.progress() as progress:
        done = audit_models(
            key,
            data,
            before,
            *(after or []),
            retrained=retrained,
            scaling=_scaling(scaling),
            loss=loss,
            quantize=quantize,
            rate=rate,
            device=device,
            in_process=in_process,
            progress=progress,
            answers=answers,
            draws=draws,
            alpha=alpha,
            margin=margin,
            delta=delta,
        )
    with ExitStack() as last:  # each of the three is done whatever becomes of those before it
        last.callback(lambda: _say_moved(issuer.issue(done)))
        if out is not None:
            last.callback(done.save, out)
        _tell(done, as_json)
    raise typer.Exit(done.exit_code)


def _say_moved(places: "Mapping[Path, Path]") -> None:
    """Tell where certificates are that have another name than was asked for."""
    for place, found in places.items():
        if found != place:
            screen.warn(f"{place}: was made meanwhile, so the certificate is {found}.")


def _tell(done: "Audit", as_json: bool) -> None:
    """Print the answer of an audit."""
    if as_json:  # plain print: rich would wrap and colour it
        print(done.to_json(), end="", flush=True)
    else:
        screen.show(done.table(), f"{len(done.key.ids):,} poisons", done.shown)
        screen.say(done.legend(), style="dim")
        screen.say(*done.sentences())
        screen.say(done.answer, style="bold")


def calibrate(
    model: Annotated[str, typer.Argument(help="Model trained on the dosed data.")],
    *,
    key: KeyOption,
    data: DataOption,
    keys: Annotated[int, typer.Option(help="Number of null keys to try.")] = 200,
    scaling: ScalingOption = None,
    draws: DrawsOption = 19,
    alpha: Annotated[float, typer.Option(help="Error rate that verdicts promise.")] = 0.05,
    margin: MarginOption = 0.2,
    loss: LossOption = None,
    quantize: QuantizeOption = None,
    rate: RateOption = None,
    device: DeviceOption = "auto",
    in_process: InProcessOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figure and the results of all keys.")
    ] = None,
) -> None:
    """Count the verdict's errors where the truth is known.

    A null key is noise, or marks, that no model has seen, so a verdict that finds it is wrong.

    Example: marshtest calibrate before.pt2 --key dosed.key.json --data images
    """
    from marshtest.kit.audit import refuse_used
    from marshtest.kit.calibration import calibrate as count_errors
    from marshtest.metrics.dependence import SCORES

    refuse_used(out)
    with screen.progress() as progress:
        done = count_errors(
            key,
            data,
            model,
            keys=keys,
            scaling=_scaling(scaling),
            loss=loss,
            quantize=quantize,
            rate=rate,
            device=device,
            in_process=in_process,
            progress=progress,
            draws=draws,
            alpha=alpha,
            margin=margin,
        )
    if out is not None:
        done.save(out)  # first: what cannot be printed is not lost
    counts = done.table()
    shares = ["share", "low", "high", "promised"]
    # nan: about some cheats nothing is promised, if the poisons are few.
    counts[shares] = counts[shares].map("{:.3f}".format).replace("nan", "–")
    screen.show(counts, f"{keys:,} keys")
    for name, p in done.uniformity().items():
        screen.say(f"{SCORES[name].title}: p-values uniform? Kolmogorov–Smirnov p = {p:.3f}")


def _scaling(text: str | None) -> "Scaling | None":
    from marshtest.kit.noise import Scaling

    return None if text is None else Scaling.of(text, "--scaling")
