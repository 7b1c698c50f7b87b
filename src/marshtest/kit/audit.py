"""Is the dose still in the model? The verdict on models before and after unlearning."""

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from marshtest.kit.controls import undosed
from marshtest.kit.judging import Judged, Question, judge
from marshtest.kit.key import Key
from marshtest.kit.measure import measure
from marshtest.kit.noise import Scaling
from marshtest.kit.open_model import open_door
from marshtest.kit.scalings import suspected
from marshtest.metrics.dependence import SCORES
from marshtest.plumbing.device import pick_device
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, part, silent
from marshtest.plumbing.whole_files import write
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
from marshtest.reporting.tables import USE, number, plus_minus, with_interval

UNIT = "one training sample's input, replaced by the same base with other noise; labels and all else fixed"
EXIT_CODES = {"REMOVED": 0, "NOT REMOVED": 1, "INCONCLUSIVE": 3}


@dataclass(frozen=True)
class Audit:
    """The answer.

    Attributes:
        key: of the dose.
        question: what was asked.
        models: before, after unlearning (in the order given), and retrained where there is one.
    """

    key: Key
    question: Question
    models: tuple[Judged, ...]

    @property
    def answer(self) -> str:
        """The worst verdict over the models after unlearning; without any, that of the one before."""
        answers = {judged.verdict.answer for judged in self.models if judged.role == "after"}
        answers = answers or {self.models[0].verdict.answer}
        return next(a for a in ("NOT REMOVED", "INCONCLUSIVE", "REMOVED") if a in answers)

    @property
    def exit_code(self) -> int:
        """0 removed, 1 not, 3 inconclusive."""
        return EXIT_CODES[self.answer]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One line a model and poison."""
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
        """The scores that every model has: a black box has no GUS."""
        found = [set(judged.measured.dependences()) for judged in self.models]
        return [name for name in SCORES if all(name in names for names in found)]

    def table(self) -> pd.DataFrame:
        """One line a model, as text, without the columns that no model has anything for."""
        lines = pd.DataFrame([self._text(judged) for judged in self.models])
        return lines.loc[:, (lines != "–").any()]

    def _text(self, judged: Judged) -> dict[str, str]:
        measured, figures = judged.measured, judged.measured.figures
        text = {
            "model": f"{judged.role}: {measured.name}",
            "verdict": judged.verdict.answer,
            "accuracy": number(measured.accuracy, 3),
            "usable": judged.usable,
        }
        for name, shown in SCORES.items():
            value, error = (
                figures.get(f"{name}_{part}", math.nan) for part in ("dependence", "error")
            )
            text[shown.title] = plus_minus(value, error, 3)
        return text | {
            "TPR": with_interval(figures, "tpr", 3),
            "rank TPR": with_interval(figures, "tpr_rank", 3),
            "vanished": number(figures.get("vanished", math.nan), 0),
            "ties": number(figures["ties"], 0),
            "ε ≥": number(judged.epsilon, 2),
        }

    def sentences(self) -> list[str]:
        """The verdicts in words, with 95 % intervals given these models and what stands against each."""
        said = []
        for judged in self.models:
            line = f"{judged.role} {judged.measured.name}: {judged.verdict.answer}"
            if judged.role == "after" and judged.usable in USE:
                line += f", {USE[judged.usable]}"
            needed = judged.verdict.needed
            if needed is not None and not judged.reasons:
                line += f" ({needed:,} poisons would settle it)"
            for name, score in judged.measured.dependences().items():
                low, high = score.interval()
                where = f"in [{low:.3f}, {high:.3f}]" if score.n > 1 else "undefined"
                line += f"; {SCORES[name].title} {where}"
            said.append(f"{'; '.join([line, *judged.reasons])}.")
        notes = {
            note: judged.measured.name for judged in self.models for note in judged.measured.notes
        }
        said += [f"note on {name}: {note}." for note, name in notes.items()]
        return said

    def save(self, folder: Path) -> None:
        """Write audit.json, scores.parquet and the figures.

        Raises:
            MarshtestError: the folder holds something already, or cannot be written.
        """
        refuse_used(folder)
        write(self.to_json().encode(), folder / "audit.json")
        write(self.scores, folder / "scores.parquet")
        for name, figure in self.figures().items():
            save(figure, folder / name)

    def figures(self) -> dict[str, Figure]:
        """Dependence of each model; histograms of each score; trade-off curves where there is a GUS."""
        lines = [
            {
                "label": f"{j.role}: {j.measured.name}",
                "verdict": j.verdict.answer,
                **j.measured.figures,
            }
            for j in self.models
        ]
        scores = {name: SCORES[name] for name in self.names}
        found = {"dependence": dependence(pd.DataFrame(lines), scores, self.question.margin)}
        drawn = [
            (f"{j.role}: {j.measured.name[-24:]}", pd.DataFrame(j.measured.scores), colour)
            for j, colour in zip(
                self.models, cycle([ORANGE, BLUE, GREEN, BROWN, GREY]), strict=False
            )
        ]
        for name in self.names:
            told = [part for part in drawn if part[1][name].notna().any()]
            parts = [(title, scores[name], colour) for title, scores, colour in told]
            found[f"scores-{name}"] = histograms(parts, SCORES[name].title)
            if fresh := SCORES[name].fresh:
                curves = [
                    (title, of[[name, fresh]].set_axis(["own", "fresh"], axis=1), colour)
                    for title, of, colour in told
                ]
                found["tradeoff"] = tradeoffs(curves, self.question.fpr)
        return found

    def to_json(self) -> str:
        """All of it for machines; what is undefined is null."""
        content = {
            "format": "marshtest audit 1",
            "answer": self.answer,
            "exit_code": self.exit_code,
            "poisons": len(self.key.ids),
            "samples": self.key.samples,
            "variance": self.key.noise.variance,
            "input": self.key.input,
            "output": self.key.output,
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
            "judged_by": list(judged.scores),
            **measured.figures,
            "controls": measured.controls.figures(),
            "hidden": {name: score.hidden for name, score in measured.dependences().items()},
            "epsilon": {
                "lower_bound": judged.epsilon,
                "delta": self.question.delta,
                "confidence": self.question.confidence,
                "unit": UNIT,
            },
        }


def refuse_used(folder: Path) -> None:
    """Raise where the folder holds something; ask before the work, not after."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise MarshtestError(f"{folder}: holds something already. Choose another --out.")


def audit(
    key: Key | str | Path,
    data: str | Path,
    before: str,
    *after: str,
    retrained: str | None = None,
    scaling: Scaling | None = None,
    device: str = "auto",
    in_process: bool = False,
    progress: Progress = silent,
    **question: Any,
) -> Audit:
    """Ask whether the dose is still there.

    Args:
        key: of the dose.
        data: the data set as it was before dosing.
        before: the model trained on the dosed data, as the doors take it (see `marshtest.kit.open_model`).
        after: models after unlearning.
        retrained: one trained without the dosed samples: the check on the test itself.
        scaling: how values of the file become model inputs; see `open_door`.
        device: auto, cpu or cuda.
        in_process: let foreign callables and .pt2 programs run in this process; see `open_door`.
        progress: told each model that is asked and the share of the work that is done.
        question: fields of `Question`.

    Raises:
        MarshtestError: a key, data or model that do not go together.
    """
    key = key if isinstance(key, Key) else Key.read(key)
    asked = Question.parse(question, "test")
    bases = key.bases(data)
    clean = undosed(key, data, bases)
    chosen = pick_device(device)
    specs = [before, *after, *([retrained] if retrained else [])]
    doors = [open_door(spec, key, bases.values, scaling, chosen, in_process) for spec in specs]

    measured = []
    for place, door in enumerate(doors):
        done = part(progress, place / len(doors), 1 / len(doors), f"ask {door.name}")
        done(0.0)
        found = measure(door, bases, undosed=clean, draws=asked.draws, fpr=asked.fpr, progress=done)
        own_processor = scaling is None and Path(before).is_dir()
        if place == 0 and not own_processor:
            given = scaling or key.noise.scaling
            found = replace(found, misfed=suspected(door, given, bases, clean))
        if place == 0 and (found.controls.near_chance or (found.misfed and found.guesses)):
            raise MarshtestError(f"{before}: {'; '.join(found.doubts)}. It cannot be tested.")
        measured.append(found)
    roles = ["before", *["after"] * len(after), *(["retrained"] if retrained else [])]
    return Audit(key, asked, tuple(judge(roles, measured, asked)))


def _defined(value: Any) -> Any:
    """The same with null for what is not a number."""
    if isinstance(value, dict):
        return {name: _defined(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_defined(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
