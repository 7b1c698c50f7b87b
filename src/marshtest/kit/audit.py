"""Is the dose still in the model? Verdicts on models before and after unlearning."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from marshtest.attacks.gaussian import PRESENTATION
from marshtest.commands.plan import VERDICT, Plan, deviation_shown, effects_shown
from marshtest.kit.certificates.provenance import Provenance
from marshtest.kit.controls import Controls, undosed
from marshtest.kit.judging import Judged, Question, judge, rests_of
from marshtest.kit.key import Key, NoiseKey
from marshtest.kit.keys import AnyKey, read_key
from marshtest.kit.measure import Measured, measure
from marshtest.kit.noise import Scaling
from marshtest.kit.records.base import Door, Loss
from marshtest.kit.scalings import suspected
from marshtest.kit.tables.key import TableKey
from marshtest.kit.tables.opening import open_any
from marshtest.kit.texts.key import TextKey
from marshtest.kit.texts.measure import Questions, measure_texts, name_of
from marshtest.kit.texts.opening import Quantize, open_all
from marshtest.metrics.labels import OF_AUDITS
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.device import functions_device, pick_device
from marshtest.plumbing.errors import MarshtestError, refuse_options
from marshtest.plumbing.progress import Progress, part, silent
from marshtest.plumbing.whole_files import refuse_unwritable, write
from marshtest.reporting.figures import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    dependence,
    histograms,
    save,
    tradeoffs,
)
from marshtest.reporting.tables import USE, number, plus_minus, rests_in_words, with_interval

EXIT_CODES = {"REMOVED": 0, "NOT REMOVED": 1, "INCONCLUSIVE": 3}  # 2 is that of no answer
RATES = {name: column for name, column in PRESENTATION.columns.items() if column.title}
LABEL = 24  # characters of a model's name in a figure
EPSILONS = {
    "ε ≥": Column(title="ε ≥"),
    "ε ≥ if Gaussian": Column(title="ε ≥ if Gaussian", room=120),
}
COUNTS = {name: Column(title=name, room=100) for name in ("vanished", "ties", "untestable")}


@dataclass(frozen=True)
class Audit:
    """The answer to whether the dose is still in the models."""

    key: AnyKey
    question: Question  # what was asked, with its error rates
    models: tuple[Judged, ...]  # before, after in the order given, retrained if there is one
    # digests of key and models, and the options that they were asked with
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def answer(self) -> str:
        """The worst verdict on a model after unlearning; on the model before, if there is none after."""
        answers = {judged.verdict.answer for judged in self.models if judged.role == "after"}
        answers = answers or {self.models[0].verdict.answer}
        return next(a for a in ("NOT REMOVED", "INCONCLUSIVE", "REMOVED") if a in answers)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 for REMOVED, 1 for NOT REMOVED, 3 for INCONCLUSIVE."""
        return EXIT_CODES[self.answer]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores of the poisons, a line for each model and poison."""
        frames = [
            pd.DataFrame(
                {
                    "role": judged.role,
                    "model": judged.measured.name,
                    "id": list(self.key.ids),
                    **judged.measured.scores,
                }
            )
            for judged in self.models
        ]
        return pd.concat(frames, ignore_index=True)

    @property
    def names(self) -> list[str]:
        """Names of the scores that every model has: a black box has no GUS."""
        common = set.intersection(*(set(judged.measured.dependences()) for judged in self.models))
        return [name for name in OF_AUDITS if name in common]

    def table(self) -> pd.DataFrame:
        """A line of text for each model, without the columns in which no model has a value."""
        lines = pd.DataFrame([self._text(judged) for judged in self.models])
        return lines.loc[:, (lines != "–").any()]

    def _text(self, judged: Judged) -> dict[str, str]:
        measured, figures = judged.measured, judged.measured.figures
        text = {
            "model": f"{judged.role}: {measured.name}",
            "verdict": judged.verdict.answer,
            "accuracy": number(measured.accuracy, 3),
            "perplexity": number(measured.perplexity, 2),
            "usable": judged.usable,
        }
        for name, score in OF_AUDITS.items():
            value = figures.get(f"{name}_dependence", math.nan)
            error = figures.get(f"{name}_error", math.nan)
            text[score.title] = plus_minus(value, error, 3)
        for name, column in RATES.items():
            text[column.title] = with_interval(figures, name, column.digits)
        for name in COUNTS:  # a black box has no gradient that could vanish
            text[name] = number(figures.get(name, math.nan), 0)
        proved = judged.privacy.largest, judged.privacy.gaussian
        return text | dict(zip(EPSILONS, (number(bound, 2) for bound in proved), strict=True))

    def legend(self) -> str:
        """The meaning of the columns of `table`."""
        asked, table = self.question, self.table()
        has_goal = any(judged.role == "retrained" for judged in self.models)
        goal = "retrained model" if has_goal else "model before unlearning"
        kept = "log perplexity" if "perplexity" in table else "accuracy"
        meanings = (
            (["accuracy"], "on the dosed samples as they were before dosing"),
            (["perplexity"], "a word, on records without a dose"),
            (
                ["usable"],
                f"{kept} is surely within {asked.accuracy:g} of the {goal}'s (yes), surely not (no), or "
                "neither (unclear); unknown where a model does not tell",
            ),
            (
                [score.title for score in OF_AUDITS.values()],
                "what is left of the dose (dependence), ± its standard error given these models; 0 in "
                "expectation where a model does not depend on the dose",
            ),
            (
                [column.title for column in RATES.values()],
                f"share of the poisons that the score's test at FPR {asked.fpr:g} finds, with the exact "
                "95 % interval",
            ),
            (["vanished"], "poisons of which GUS says nothing, since the gradient vanishes"),
            (["ties"], f"poisons whose loss equals one with {self.key.fresh}"),
            (["untestable"], "poisons whose label is right with all noises, or wrong with all"),
            (
                [*EPSILONS],
                "lower bound on the ε of differential privacy for a replaced sample, at δ = "
                f"{asked.delta:g} and confidence {asked.confidence:.0%}: of any mechanism, and of one that "
                "is private as Gaussian noise is",
            ),
        )
        clauses = ((", ".join(t for t in titles if t in table), what) for titles, what in meanings)
        # A symbol stays as it is: a capital ε would be an E.
        explained = [
            f"{t[0].upper() if t.isascii() else t[0]}{t[1:]}: {what}." for t, what in clauses if t
        ]
        return " ".join([*explained, f"REMOVED rests on {self._grounds()}."])

    def _grounds(self) -> str:
        """What REMOVED rests on, in words."""
        before = self.models[0].measured
        shown = before.evidence(before.dependences())
        return rests_in_words(rests_of(shown, self._after, self.question), OF_AUDITS)

    @property
    def _after(self) -> int:
        """The number of models after unlearning."""
        return sum(judged.role == "after" for judged in self.models)

    @property
    def shown(self) -> list[Column | Score]:
        """The columns of `table` that say what room they need on a terminal; audit.json has all."""
        return [*OF_AUDITS.values(), *RATES.values(), *COUNTS.values(), *EPSILONS.values()]

    def sentences(self) -> list[str]:
        """Verdicts in words, with 95 % intervals given these models, and what each rests on."""
        sentences = []
        for judged in self.models:
            clause = f"{judged.role} {judged.measured.name}: {judged.verdict.answer}"
            if judged.role == "after" and judged.usable in USE:
                clause += f", {USE[judged.usable]}"
            needed = judged.verdict.needed
            # A doubt about a model is not settled by more poisons.
            if needed is not None and set(judged.reasons) <= set(judged.verdict.reasons):
                clause += f" (about {needed:,} poisons would settle it)"
            for name, score in judged.measured.dependences().items():
                low, high = score.interval()
                where = f"in [{low:.3f}, {high:.3f}]" if score.n > 1 else "undefined"
                clause += f"; {OF_AUDITS[name].title} {where}"
            sentences.append(f"{'; '.join([clause, *judged.reasons])}.")
        sentences += self._outlook()
        # A note that several models share, such as how samples are fed, is given once.
        notes = {
            note: judged.measured.name for judged in self.models for note in judged.measured.notes
        }
        # A note may quote a file or a server, whose line breaks are to begin no line of ours.
        return sentences + [
            f"note on {name}: {' '.join(note.split())}." for note, name in notes.items()
        ]

    def _outlook(self) -> list[str]:
        """Whether a model that never saw the dose would get REMOVED, where no answer was found."""
        effects = effects_shown(self.models[0].measured.figures)
        if not effects or self.answer != "INCONCLUSIVE":
            return []
        asked, poisons = self.question, len(self.key.ids)
        power, family = min(0.9, 1 - 2 * asked.alpha), max(1, self._after)
        deviation = deviation_shown(self.models[0].measured.figures)
        plan = Plan(effects, asked.alpha, power, asked.margin, family, deviation=deviation)
        likely = plan.tests[VERDICT][1](poisons)
        if likely >= power:
            return []
        return [
            f"{poisons:,} poisons are few: a model that never saw the dose gets REMOVED in {likely:.0%} of "
            f"the cases; with about {plan.poisons:,} in {power:.0%} (`marshtest plan`)."
        ]

    def save(self, folder: Path) -> None:
        """Write audit.json, scores.parquet and the figures into a new or empty folder.

        Raises:
            MarshtestError: the folder holds something already, or cannot be written.
        """
        refuse_used(folder)
        write(self.to_json().encode(), folder / "audit.json")
        write(self.scores, folder / "scores.parquet")
        for name, figure in self.figures().items():
            save(figure, folder / name)

    def figures(self) -> dict[str, Figure]:
        """Figures by file name: dependences, a histogram for each score, and trade-off curves of GUS."""
        # Of a long name its end: that is where paths of several models differ.
        lines = [
            {
                "label": f"{j.role}: {j.measured.name[-LABEL:]}",
                "verdict": j.verdict.answer,
                **j.measured.figures,
            }
            for j in self.models
        ]
        scores = {name: OF_AUDITS[name] for name in self.names}
        figures = {"dependence": dependence(pd.DataFrame(lines), scores, self.question.margin)}
        samples = [
            (f"{j.role}: {j.measured.name[-LABEL:]}", pd.DataFrame(j.measured.scores), colour)
            for j, colour in zip(
                self.models, cycle([ORANGE, BLUE, GREEN, BROWN, GREY]), strict=False
            )
        ]
        for name in self.names:
            defined = [sample for sample in samples if sample[1][name].notna().any()]
            columns = [(title, values[name], colour) for title, values, colour in defined]
            figures[f"scores-{name}"] = histograms(columns, OF_AUDITS[name].title)
            if fresh := OF_AUDITS[name].fresh:
                curves = [
                    (title, values[[name, fresh]].set_axis(["own", "fresh"], axis=1), colour)
                    for title, values, colour in defined
                ]
                figures["tradeoff"] = tradeoffs(curves, self.question.fpr)
        return figures

    def to_json(self) -> str:
        """The audit as JSON for programs; undefined numbers are null."""
        content = {
            "format": "marshtest audit 1",
            "answer": self.answer,
            "exit_code": self.exit_code,
            "poisons": len(self.key.ids),
            "samples": self.key.samples,
            **self.key.summary(),
            "question": self.question.model_dump(),
            "models": [self._line(judged) for judged in self.models],
        }
        return json.dumps(_defined(content), indent=2) + "\n"

    def _line(self, judged: Judged) -> dict[str, Any]:
        verdict, measured = judged.verdict, judged.measured
        return {
            "role": judged.role,
            "model": measured.name,
            "verdict": verdict.answer,
            "reasons": list(judged.reasons),
            "notes": list(measured.notes),
            "usable": judged.usable,
            "p_removed": verdict.p_removed,
            "p_not_removed": verdict.p_not_removed,
            "poisons_needed": verdict.needed,
            "base_accuracy": measured.accuracy,
            **({} if math.isnan(measured.perplexity) else {"perplexity": measured.perplexity}),
            "judged_by": list(judged.scores),
            **measured.figures,
            "controls": measured.controls.figures(),
            "hidden": {name: score.hidden for name, score in measured.dependences().items()},
            "epsilon": {
                **judged.privacy.figures(),
                "delta": self.question.delta,
                "confidence": self.question.confidence,
                "unit": self.key.unit,
            },
        }


def refuse_used(folder: Path | None) -> None:
    """Raise if the folder holds something or cannot be made, before hours of work and not after."""
    if folder is None:
        return
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise MarshtestError(f"{folder}: exists and is not an empty folder. Choose another --out.")
    refuse_unwritable(folder)


def audit(
    key: AnyKey | str | Path,
    data: str | Path,
    before: str | Door,
    *after: str | Door,
    retrained: str | Door | None = None,
    scaling: Scaling | None = None,
    loss: Loss | None = None,
    quantize: Quantize | None = None,
    rate: float | None = None,
    device: str = "auto",
    in_process: bool = False,
    progress: Progress = silent,
    **question: Any,
) -> Audit:
    """Test whether models still depend on a dose.

    Args:
        key: the key of the dose, or its file.
        data: the data set as it was before dosing.
        before: the model trained on the dosed data, in one of the forms of `marshtest.kit.open_model`; for
            texts of `marshtest.kit.texts.opening`, or a function from questions to losses.
        *after: models after unlearning, in the same forms.
        retrained: a model trained without the dosed samples, which checks the test itself.
        scaling: how values of the file become model inputs; by default a Hugging Face folder's own image
            processor, and the key's scaling for all other models.
        loss: which tokens of a text count: those of the whole "record" (the default), or of its
            "completion" alone.
        quantize: weights of a folder's language model are rounded to int8 or int4.
        rate: the most requests a second that an endpoint is sent; by default as many as it takes.
        device: auto, cpu or cuda; auto asks a function that is no module on the CPU.
        in_process: let foreign callables and .pt2 programs run in this process, not in one of their own.
        progress: told each model that is asked, and the fraction of the work that is done.
        **question: draws (K, fresh noises or marks a poison), fpr, alpha, margin, accuracy, delta,
            confidence: the fields of `marshtest.kit.judging.Question`.

    Raises:
        MarshtestError: key, data and models do not fit together, or the model before does no better than
            chance.
    """
    file, key = key, read_key(key) if isinstance(key, str | Path) else key
    parsed = Question.parse(question, "audit")
    specs = [before, *after, *([retrained] if retrained else [])]
    provenance = Provenance.of(file, specs, scaling=scaling, loss=loss, quantize=quantize)
    torch_device = pick_device(device)
    answers = parsed.answers if parsed.answers != "losses" else None
    if isinstance(key, TextKey):
        refuse_options("audit: the key is of texts", scaling=scaling, answers=answers)
        questions = Questions.of(key.bases(data), loss or "record", parsed.draws)
        opened = open_all(specs, torch_device, quantize=quantize, rate=rate, in_process=in_process)
        doors = list(zip(map(name_of, specs), opened, strict=True))
        asked = _of_texts(questions, doors, parsed, progress)
    else:
        refuse_options("audit: the key is of no texts", loss=loss, quantize=quantize, rate=rate)
        if isinstance(key, TableKey):
            refuse_options("audit: the key is of a table", scaling=scaling, answers=answers)
        paths = [str(spec) for spec in specs]
        where = torch_device, in_process, functions_device(device)
        asked = _of_noise(key, data, paths, parsed, scaling, where, progress)
    roles = ["before", *["after"] * len(after), *(["retrained"] if retrained else [])]
    return Audit(key, parsed, tuple(judge(roles, list(asked), parsed)), provenance)


def _of_noise(
    key: NoiseKey,
    data: str | Path,
    specs: Sequence[str],
    question: Question,
    scaling: Scaling | None,
    where: tuple[torch.device, bool, torch.device],
    progress: Progress,
) -> Iterator[Measured]:
    """What each model shows of a dose of noise."""
    bases, kind = key.bases(data), question.answers
    clean = undosed(key, data, bases)
    # All are opened before the first is asked: a wrong path fails at once.
    models = open_any(specs, key, data, bases.values, scaling, *where, kind)
    for index, model in enumerate(models):
        report = part(progress, index / len(models), 1 / len(models), f"ask {model.name}")
        report(0.0)
        draws, fpr = question.draws, question.fpr
        shown = measure(
            model, bases, undosed=clean, draws=draws, fpr=fpr, answers=kind, progress=report
        )
        if index == 0:
            own_processor = scaling is None and Path(specs[0]).is_dir()
            if isinstance(key, Key) and not own_processor:
                used = scaling or key.noise.scaling
                shown = replace(shown, misfed=suspected(model, used, bases, clean))
            # Now, and not at the end: hours of asking the other models would be for nothing.
            _refuse_untestable(specs[0], shown)
        yield shown


def _of_texts(
    questions: Questions, doors: Sequence[tuple[str, Door]], question: Question, progress: Progress
) -> Iterator[Measured]:
    """What each model shows of a dose of marks."""
    for index, (name, door) in enumerate(doors):
        report = part(progress, index / len(doors), 1 / len(doors), f"ask {name}")
        report(0.0)
        yield measure_texts(name, door, questions, fpr=question.fpr, progress=report)


def _refuse_untestable(name: str, before: Measured) -> None:
    """Raise if the model before unlearning shows nothing: no model after it could be judged."""
    controls = before.controls
    if (isinstance(controls, Controls) and controls.near_chance) or (
        before.misfed and before.guesses
    ):
        raise MarshtestError(f"{name}: {'; '.join(before.doubts)}. It cannot be tested.")


def _defined(value: Any) -> Any:
    """The value with null for every number that is undefined: JSON has no nan."""
    if isinstance(value, dict):
        return {name: _defined(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
