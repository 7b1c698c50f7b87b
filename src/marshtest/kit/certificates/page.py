"""The certificate in words, for a reader who was not there: HTML and PDF show nothing else."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from marshtest.kit.certificates.certificate import Certificate, Content, File
from marshtest.metrics.labels import OF_AUDITS

MEANINGS = {
    "REMOVED": "What is left of the dose in each model after unlearning is surely within the threshold.",
    "NOT REMOVED": "A model after unlearning still depends on the data that it was told to forget.",
    "INCONCLUSIVE": "Neither removal nor its failure was shown. The reasons stand with the models.",
}
ALONE = {  # of the model before unlearning, where it is the only one
    "REMOVED": "The model shows no dose. No model after unlearning was asked.",
    "NOT REMOVED": "The model depends on the dose, as one before unlearning should. No other was asked.",
    "INCONCLUSIVE": "Nothing is shown of the model. No model after unlearning was asked.",
}
METHOD = (
    "Before training, a dose (random noise, random marks or random categories) was put into a random part "
    "of the data. Whether a model depends on the dose tells whether it depends on the data that had it: a "
    "model that never saw them cannot know the dose."
)
UNPROVEN = (
    "That every trace of these data is gone, or that the procedure removes other data as well. Only the "
    "dosed samples were asked about, by the measurements named above.",
    "That the procedure was honest. Whoever recognises dosed samples, or holds the list of what to forget, "
    "may treat just these specially.",
    "That the models named here are the ones in use, or that no other model or copy holds the data. Only "
    "models with a digest can be recognised again.",
    "Anything about trainings to come: the answer is one about these very models.",
    "Compliance with any law. It is a measurement, which others may weigh.",
)
MEASURES = {
    "gus": "its gradients",
    "rank": "the ranks of its losses",
    "label": "how often its labels are right",
}
SEVERITY = ("NOT REMOVED", "INCONCLUSIVE", "REMOVED")
MONTHS = "January February March April May June July August September October November December"


@dataclass(frozen=True)
class Line:
    """A model on the page."""

    model: str  # role and name
    verdict: str
    left: str  # what is left of the dose, by each score
    epsilon: str
    usable: str
    digest: str  # SHA-256 of its files, or why there is none
    reasons: str


@dataclass(frozen=True)
class Page:
    """The words of a certificate's page, in the order in which they stand."""

    issued: str  # when, by what, for whom
    answer: str
    meaning: str
    method: str  # what was done, in two sentences
    facts: tuple[tuple[str, str], ...]  # (name, text)
    models: tuple[Line, ...]
    legend: str
    unproven: tuple[str, ...]
    again: str  # how to check it
    seals: tuple[tuple[str, str], ...]  # (name, text)

    @classmethod
    def of(cls, certificate: Certificate) -> "Page":
        """The page of a certificate."""
        content, audit = certificate.parsed, certificate.parsed.audit
        after = [model for model in audit["models"] if model["role"] == "after"]
        meanings = MEANINGS if after else ALONE
        asked_by = (
            "" if content.asked_by is None else f"  ·  Asked for by {shown(content.asked_by)}"
        )
        return cls(
            issued=f"Issued {moment(content.date)} by marshtest {content.versions['marshtest']}{asked_by}",
            answer=audit["answer"],
            meaning=meanings[audit["answer"]],
            method=METHOD,
            facts=(
                ("Data", _data(content)),
                ("Dose", _dose(content)),
                ("Key", _key(content)),
                ("What was asked", _asked(content)),
                ("Documented threshold", _threshold(content)),
                ("Error rates", _errors(content, len(after))),
                ("Privacy bound", _epsilon(content)),
                ("After-care", _after_care(content)),
            ),
            models=tuple(
                _line(model, audit["models"][0], files)
                for model, files in zip(audit["models"], content.files, strict=True)
            ),
            legend=_legend(audit["models"]),
            unproven=UNPROVEN,
            again=_again(content),
            seals=(
                ("Content", f"SHA-256 {certificate.digest}"),
                ("Signature", _signed(certificate)),
            ),
        )

    def fewer(self, most: int) -> "Page":
        """The page with at most so many models: the first, then those with the worst verdicts."""
        if len(self.models) <= most:
            return self
        worst = sorted(self.models[1:], key=lambda line: SEVERITY.index(line.verdict))
        kept = {id(line) for line in (self.models[0], *worst[: most - 1])}
        lines = tuple(line for line in self.models if id(line) in kept)
        others = f"{len(self.models) - most:,} more models are in the attached certificate.json. "
        return Page(**{**vars(self), "models": lines, "legend": others + self.legend})


def worst(verdicts: Sequence[str]) -> str:
    """The worst of several verdicts."""
    return min(verdicts, key=SEVERITY.index)


def shown(text: str, most: int = 200) -> str:
    """A text of others as one line: what cannot be seen, or turns the line round, is spelt out.

    Of a longer text than `most` characters beginning and end are kept.
    """
    # Other, format, surrogate and private characters, and line breaks, might show something else.
    parts = [
        f"\\u{ord(one):04x}"
        if unicodedata.category(one)[0] in "C" or one in "\u2028\u2029"
        else one
        for one in text
    ]
    line = "".join(parts)
    if len(line) <= most:
        return line
    half = (most - 1) // 2
    return f"{line[:half]}…{line[-half:]}"


def moment(date: str) -> str:
    """A date such as 2026-01-31T12:00:00Z in words."""
    year, month, day = date[:10].split("-")
    return f"{int(day)} {MONTHS.split()[int(month) - 1]} {year}, {date[11:16]} UTC"


def _data(content: Content) -> str:
    audit = content.audit
    output = audit.get("output") or (content.commitment.output if content.commitment else None)
    after = f"\nwith the dose: SHA-256 {output}" if output else ""
    return f"{audit['samples']:,} samples\nbefore dosing: SHA-256 {audit['input']}{after}"


def _dose(content: Content) -> str:
    audit = content.audit
    count, samples = audit["poisons"], audit["samples"]
    doses = []
    if "columns" in audit:
        doses.append(_of_columns(audit))
    elif "variance" in audit:
        doses.append(f"random noise of variance ε² = {audit['variance']:g}, in scaled units")
    if "mark" in audit:
        mark = audit["mark"]
        doses.append(f"a mark, '{shown(str(mark.get('text') or mark.get('pattern')), 80)}'")
    return (
        f"{count:,} of the {samples:,} ({count / samples:.1%}), drawn at random, got "
        f"{' and '.join(doses) or 'a dose'}. Only the key tells which, and what each got."
    )


def _of_columns(audit: Mapping[str, Any]) -> str:
    """The dose of a table's rows."""
    return (
        f"random noise of variance ε² = {audit['variance']:g}, in units of each column's variance, or a "
        f"category drawn anew, in the columns {shown(', '.join(audit['columns']))}"
    )


def _key(content: Content) -> str:
    digest = f"SHA-256 {content.key}\n"
    if content.commitment is None:
        return f"{digest}No commitment was given: nothing here shows that the key is as old as the dose."
    return (
        f"{digest}Committed to on {moment(content.commitment.date)}, as the dose was made, by a file with "
        f"SHA-256 {content.commitment.sha256}. Whoever received that file then knows that the key was not "
        "chosen later."
    )


def _asked(content: Content) -> str:
    question, models = content.audit["question"], content.audit["models"]
    gradients = any("gus_dependence" in model for model in models)
    measures = "losses and their gradients" if gradients else "losses, or probabilities, alone"
    if question.get("answers") == "labels":
        measures = "the labels that they answer with, alone"
    return (
        "In random order: how each model judges every dosed sample as it was given out for training, and "
        f"the same sample with {shown(content.compared_with)}, {question['draws']} times. A model that "
        f"never saw the dose cannot tell these apart. Known of the models were {measures}. Control "
        "questions tell whether a model is behind the answers."
    )


def _threshold(content: Content) -> str:
    percent = f"{100 * content.audit['question']['margin']:.3g} %"
    return (
        f"{percent}. A model is REMOVED only if what is left of the dose's effect is surely at most "
        f"{percent} of what the model before unlearning shows."
    )


def _errors(content: Content, after: int) -> str:
    percent = f"{100 * content.audit['question']['alpha']:.3g} %"
    over = f" over all {after} models after unlearning together" if after > 1 else ""
    return (
        f"At most {percent} each{over}: the answer REMOVED though more than the threshold is left of the "
        "effects that it rests on; NOT REMOVED though nothing depends on the dose."
    )


def _epsilon(content: Content) -> str:
    bound = content.audit["models"][0]["epsilon"]
    return (
        f"ε ≥ is a lower bound on the ε of differential privacy of whatever made the model, at δ = "
        f"{bound['delta']:g} and confidence "
        f"{100 * bound['confidence']:.3g} %. Unit: {shown(bound['unit'], 300)}. 0 proves nothing."
    )


def _after_care(content: Content) -> str:
    if bits := content.options.quantize:
        return f"The models' weights were rounded to {bits} before asking. Further training: not measured."
    return "Not measured: whether data come back as weights are rounded, or as training goes on."


def _line(model: Mapping[str, Any], before: Mapping[str, Any], files: Sequence[File]) -> Line:
    left = [
        _left(name, model, before) for name in OF_AUDITS if _known(model.get(f"{name}_dependence"))
    ]
    bound = model["epsilon"]["lower_bound"]
    digests = [
        f"{shown(file.path, 40)}: {file.sha256}" if len(files) > 1 else file.sha256
        for file in files
    ]
    return Line(
        model=f"{shown(model['role'])}: {shown(model['model'], 60)}",
        verdict=SEVERITY[SEVERITY.index(model["verdict"])],  # raises if it is none
        left="\n".join(left) or "not known",
        epsilon=f"{bound:.2f}" if _known(bound) else "–",
        usable=shown(model["usable"]),
        digest=f"SHA-256 {'; '.join(digests)}"
        if digests
        else "No digest: known by its answers alone",
        reasons=shown("; ".join(model["reasons"]), 320),
    )


def _left(name: str, model: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What is left of the dose by one score; of a model after unlearning also as a share."""
    value, error = model[f"{name}_dependence"], model.get(f"{name}_error")
    initial = before.get(f"{name}_dependence")
    text = f"{OF_AUDITS[name].title} {value:.3f} ± {error:.3f}" if _known(error) else "undefined"
    if model is not before and _known(initial) and initial > 0:
        text += f", {value / initial:.0%}"
    return text.replace("-", "−")


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _legend(models: Sequence[Mapping[str, Any]]) -> str:
    names = " and ".join(
        f"{MEASURES[name]} ({score.title})"
        for name, score in OF_AUDITS.items()
        if any(_known(model.get(f"{name}_dependence")) for model in models)
    )
    return (
        f"Left of the dose, by {names or 'no measure'}: 0 is expected of a model that never saw it; ± is "
        "the standard error given these models, and % the share of what the model before shows. Usable: "
        "whether accuracy was kept."
    )


def _again(content: Content) -> str:
    models = " ".join(["MODEL"] * min(len(content.files), 3)) + " …" * (len(content.files) > 3)
    return (
        "With pip install 'marshtest[certificate]': marshtest verify THIS-FILE --public-key PUBLIC.pem "
        f"--commitment FILE --key KEY --data DATA {models} (each may be left out). With key, data "
        "and models, the models are asked again and the answers compared; without, digests and signature "
        "are checked."
    )


def _signed(certificate: Certificate) -> str:
    if certificate.signature is None:
        return "none. Whoever has this file could have changed it; only asking again proves it."
    return f"Ed25519, by the key {certificate.signature.public_key}"
