"""Check a certificate: its seals, what was committed to, the files it names, and by asking again.

Whoever has an unsigned certificate can write another one, digest and all; only asking again tells.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from marshtest.kit.certificates.certificate import (
    Certificate,
    Committed,
    Content,
    File,
    current_versions,
    read_certificate,
)
from marshtest.kit.certificates.commitment import Commitment, key_digest, sha256
from marshtest.kit.certificates.forms import rendered
from marshtest.kit.certificates.page import Page, moment, shown, worst
from marshtest.kit.certificates.provenance import parts_of
from marshtest.kit.certificates.signing import Signature, public_key_of
from marshtest.kit.judging import Question
from marshtest.kit.layouts.folders import digest
from marshtest.metrics.labels import OF_AUDITS
from marshtest.plumbing.errors import MarshtestError, placed, refused
from marshtest.plumbing.progress import Progress, silent

Result = Literal["holds", "FAILS", "not checked"]
TOLERANCE = 0.25  # standard errors that what is left may differ by, on another machine
DRAWN_BY = {
    ".html": ("marshtest", "jinja2"),
    ".pdf": ("marshtest", "fpdf2", "fonttools", "matplotlib", "zlib"),
}
UNSEEN = "an edited page would not be noticed, so trust what stands below"
SEALS = ("content", "signature", "signer")  # checks without which the others mean nothing
NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")
UNTOLD = {"model", "notes"}  # names depend on where the files lie


@dataclass(frozen=True)
class Check:
    """A check of a certificate, its result, and what was seen."""

    name: str
    result: Result
    what: str

    @classmethod
    def of(cls, name: str, holds: bool, what: str, fault: str) -> "Check":
        """A check that was made: `what` if it holds, else `fault`."""
        return cls(name, "holds" if holds else "FAILS", what if holds else fault)


@dataclass(frozen=True)
class Verified:
    """A certificate with the checks that were made of it."""

    certificate: Certificate
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether no check fails."""
        return all(check.result != "FAILS" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 if no check fails, else 1."""
        return 0 if self.holds else 1

    def table(self) -> pd.DataFrame:
        """A line of text for each check."""
        frame = pd.DataFrame([vars(check) for check in self.checks])
        return frame.rename(columns={"name": "check"})

    @property
    def conclusion(self) -> str:
        """What came of the checks, in a sentence."""
        counts = Counter(check.result for check in self.checks)
        failed = [check.name for check in self.checks if check.result == "FAILS"]
        if failed:
            return f"FAILS: {', '.join(failed)}"
        if self.certificate.signature is None and self.checks[-1].result != "holds":
            return "no check fails, but it is not signed, and so proves nothing against its author"
        left_out = f", {counts['not checked']} were not made" if counts["not checked"] else ""
        unseen = any(check.what.endswith(UNSEEN) for check in self.checks)
        return (
            f"{counts['holds']} checks hold, none fails{left_out}{', the page among them' * unseen}"
        )

    def statement(self) -> list[str]:
        """What the certificate says, in lines; a page that looks otherwise is not to be trusted."""
        if failed := [c.name for c in self.checks if c.name in SEALS and c.result == "FAILS"]:
            return [f"Nothing that it says counts, since its {failed[0]} fails."]
        content = self.certificate.parsed
        by = "" if content.asked_by is None else f", asked for by {shown(content.asked_by)}"
        return [
            f"It says, on {moment(content.date)}{by}: {content.audit['answer']}, where REMOVED may leave "
            f"{content.audit['question']['margin']:.3g} of the effect.",
            *(
                f"  {shown(model['role'])}: {shown(model['model'], 80)}: {model['verdict']}"
                for model in content.audit["models"]
            ),
        ]


def verify(
    certificate: str | Path,
    *models: str,
    key: str | Path | None = None,
    data: str | Path | None = None,
    commitment: str | Path | None = None,
    public_key: str | Path | None = None,
    device: str = "auto",
    in_process: bool = False,
    rate: float | None = None,
    progress: Progress = silent,
) -> Verified:
    """Check a certificate; where key, data and models are given, its models are asked again.

    Args:
        certificate: a file that `marshtest audit --certificate` wrote: .pdf, .html or .json.
        *models: all models of the certificate, in its order: before, after, retrained.
        key: the key of the dose.
        data: the data before dosing, or (to compare digests alone) after it.
        commitment: the commitment that was given away on the day of dosing.
        public_key: the public Ed25519 key, in PEM, of whoever is said to have signed.
        device: as in `audit`, as are in_process, rate and progress.

    Raises:
        MarshtestError: a file cannot be read or is no certificate, or there are more or fewer models than
            in it.
    """
    found, stated, written = read_certificate(certificate)
    seals = _seals(found, stated, public_key)
    if any(check.result == "FAILS" for check in seals):
        return Verified(found, tuple(seals))
    with placed(certificate), refused("is no certificate that marshtest wrote"):
        content = found.parsed
        Page.of(found)  # needs all that is looked at below
        _refuse_odd(content.audit)
        checks = [*seals, _page(found, written)]
    if models and len(models) != len(content.files):
        raise MarshtestError(
            f"{certificate}: is of {len(content.files)} models, not of {len(models)}. Give all, in "
            "its order, or none."
        )
    checks += [
        _key(content, key),
        _commitment(content, commitment),
        _data(content, data),
        *_models(content, models),
    ]
    given = {"KEY": key, "DATA": data, "MODELS": models}
    missing = [name for name, value in given.items() if not value]
    failed = [check.name for check in checks if check.result == "FAILS"]
    if missing or failed:
        why = f"without {' and '.join(missing)}" if missing else f"since {failed[0]} fails"
        checks.append(Check("asked again", "not checked", why))
    else:
        assert key is not None
        assert data is not None
        asked = {"device": device, "in_process": in_process, "rate": rate, "progress": progress}
        checks.append(_asked_again(content, key, data, models, asked))
    return Verified(found, tuple(checks))


def _refuse_odd(audit: dict[str, Any]) -> None:
    """Raise if an audit could not have these models in these roles, or this answer by their verdicts."""
    roles = [model["role"] for model in audit["models"]]
    after, retrained = ["after"] * roles.count("after"), ["retrained"] * ("retrained" in roles)
    if roles != ["before", *after, *retrained]:
        raise MarshtestError(
            "its models are not one before, those after, one retrained. "
            "Give an untouched certificate."
        )
    verdicts = [model["verdict"] for model in audit["models"] if model["role"] == "after"]
    if audit["answer"] != worst(verdicts or [audit["models"][0]["verdict"]]):
        raise MarshtestError("its answer is none by its verdicts. Give an untouched certificate.")


def _seals(found: Certificate, stated: str, public_key: str | Path | None) -> list[Check]:
    """Digest and signature, and whose it is."""
    wanted = None if public_key is None else public_key_of(public_key)
    whole = Check.of(
        "content",
        found.digest == stated,
        f"its SHA-256 is {stated}",
        "was changed after it was certified: its SHA-256 is another than stated",
    )
    signature = found.signature
    if signature is None:
        line = (
            "it is not signed: whoever has it could change it, digest and all. Ask again, or ask for a "
            "signed one"
        )
        signed = [Check("signature", "not checked" if wanted is None else "FAILS", line)]
    else:
        signed = [
            Check.of(
                "signature",
                signature.fits(found.canonical),
                f"made by the Ed25519 key {signature.public_key}",
                "is not one of this content by the key that it names",
            ),
            _signer(signature, found, wanted),
        ]
    return [whole, *signed]


def _signer(signature: Signature, found: Certificate, wanted: str | None) -> Check:
    """Whether the key that signed is the one that was given."""
    if wanted is None:
        return Check("signer", "not checked", "whose key it is: give --public-key")
    if wanted == signature.public_key and not signature.fits(found.canonical):
        return Check("signer", "not checked", "the signature does not fit")
    return Check.of(
        "signer",
        wanted == signature.public_key,
        "the public key that was given",
        f"another key than the one that was given ({wanted[:12]}…)",
    )


def _page(found: Certificate, written: bytes) -> Check:
    """Whether the page says what its content says: it is drawn anew, and compared."""
    name = "page"
    kind = {b"%PDF-": ".pdf"}.get(written[:5], ".html" if written.lstrip()[:1] == b"<" else "")
    if not kind:
        return Check(name, "not checked", "the file is JSON, without a page")
    here, there = current_versions(), found.parsed.versions
    other = [name for name in DRAWN_BY[kind] if here.get(name) != there.get(name)]
    if kind == ".pdf" and "fpdf2" not in here:
        return Check(name, "not checked", "fpdf2 is not installed, which draws it")
    if rendered(found, kind) == written:
        return Check(name, "holds", "is drawn from the content, byte for byte")
    if other:
        versions = ", ".join(f"{name} {there.get(name)}" for name in other)
        line = f"was drawn with {shown(versions)}, which are not installed: {UNSEEN}"
        return Check(name, "not checked", line)
    return Check(name, "FAILS", "is not what is drawn from its content: it was edited")


def _key(content: Content, key: str | Path | None) -> Check:
    if key is None:
        return Check("key", "not checked", "no --key")
    with refused(f"{key}: cannot be read", kinds=OSError):
        now = key_digest(key)
    return Check.of(
        "key", now == content.key, "the certified one", "is another than the certified one"
    )


def _commitment(content: Content, file: str | Path | None) -> Check:
    name, committed = "commitment", content.commitment
    if file is None:
        why = "no --commitment" if committed else "the certificate has none, and no --commitment"
        return Check(name, "not checked", why)
    now = Commitment.read(Path(file))
    if now.key != content.key:
        return Check(name, "FAILS", "is to another key than the certified one")
    same = committed is None or committed == Committed(
        sha256=sha256(Path(file).read_bytes()), date=now.date, output=now.output
    )
    return Check.of(
        name,
        same,
        f"of {moment(now.date)}, to the certified key; whoever received it then knows the date",
        "is another file than the certified one",
    )


def _data(content: Content, data: str | Path | None) -> Check:
    if data is None:
        return Check("data", "not checked", "no --data")
    now, audit = digest(Path(data)).whole, content.audit
    committed = content.commitment.output if content.commitment else None
    if now in (audit.get("output"), committed):
        return Check("data", "holds", "the certified ones after dosing")
    return Check.of(
        "data",
        now == audit["input"],
        "the certified ones before dosing",
        "are neither the certified ones before dosing nor after it",
    )


def _models(content: Content, models: Sequence[str]) -> Iterator[Check]:
    """Whether each model is the certified one."""
    lines = content.audit["models"]
    for place, files in enumerate(content.files):
        name = f"{shown(lines[place]['role'])}: {shown(lines[place]['model'], 40)}"
        if not models:
            yield Check(name, "not checked", "no MODEL")
        elif not files:
            yield Check(name, "not checked", "has no digest: it was known by its answers alone")
        else:
            yield _model(name, models[place], files)


def _model(name: str, model: str, files: Sequence[File]) -> Check:
    now = [part.sha256 for part in parts_of(model)]
    if not now:
        raise MarshtestError(f"{model}: no such model. Give the file or folder that was certified.")
    same = now == [file.sha256 for file in files]
    return Check.of(name, same, "the certified one", f"{model} is another than the certified one")


def _asked_again(
    content: Content,
    key: str | Path,
    data: str | Path,
    models: Sequence[str],
    asked: dict[str, Any],
) -> Check:
    """Ask the models again, as they were asked then, and compare the answers."""
    from marshtest.kit.audit import audit

    name, then = "asked again", content.audit
    if digest(Path(data)).whole != then["input"]:
        return Check(name, "not checked", "the data are those after dosing: give those before it")
    # Of a checked kind each: the file may be anybody's, and names a model to `audit` as well as a number.
    options = dict(content.options) | dict(Question.parse(then["question"], "certificate"))
    before, *after = models
    if then["models"][-1]["role"] == "retrained":
        options["retrained"] = after.pop()
    done = audit(key, data, before, *after, **options, **asked)
    now = json.loads(done.to_json())
    if content.compared_with != done.key.fresh:
        return Check(name, "FAILS", "compared_with is now another")
    difference = differs(then, now)
    if not difference:
        return Check(name, "holds", f"{now['answer']}, and every number to the last bit")
    other = _beyond(then, now)
    return Check.of(
        name,
        not other,
        f"{now['answer']}, and all numbers but those in reasons within what another machine or version may "
        f"change; the first that differs is {difference}",
        other,
    )


def _beyond(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs by more than another machine may change, in words; empty if nothing does.

    Facts of the dose and the question must be the same, and so must verdicts. Scores are numbers that each
    machine rounds in its own way.
    """
    for place, (one, other) in enumerate(zip(then["models"], now["models"], strict=True)):
        for name in ("role", "verdict", "usable"):
            if one[name] != other[name]:
                who, was = shown(one["model"], 60), shown(str(one[name]))
                return f"{who}: {name} is now {other[name]}, and was {was}"
        if _words(one["reasons"]) != _words(other["reasons"]):
            return f"models.{place}.reasons are now others"
        for name, allowed in _allowed(other).items():
            if not _close(_at(one, name), _at(other, name), allowed):
                return f"models.{place}.{name} is now another"
    facts, facts_now = ({**one, "models": None} for one in (then, now))
    found = differs(facts, facts_now)
    return found and f"{found} is now another"


def _words(reasons: Sequence[str]) -> list[str]:
    """Reasons without their numbers, which each machine rounds in its own way."""
    return [NUMBER.sub("#", reason) for reason in reasons]


def _allowed(now: dict[str, Any]) -> dict[str, float]:
    """How much the numbers that a page shows of a model may differ."""
    allowed = dict.fromkeys(("epsilon.unit", "epsilon.delta", "epsilon.confidence"), 0.0)
    for name in OF_AUDITS:
        error = now.get(f"{name}_error") or 0.0
        allowed |= {f"{name}_dependence": TOLERANCE * error, f"{name}_error": 0.1 * error}
    return allowed | {"epsilon.lower_bound": 0.25, "base_accuracy": 0.01}


def _at(line: Any, name: str) -> Any:
    """The value in a place such as "epsilon.unit"; None if there is none."""
    for part in name.split("."):
        line = line.get(part) if isinstance(line, dict) else None
    return line


def _close(one: Any, other: Any, allowed: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= allowed
    return bool(one == other)


def differs(then: Any, now: Any, place: str = "") -> str:
    """The first place in which two answers differ, names of models apart; empty if there is none."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted((then.keys() | now.keys()) - UNTOLD):
            if name not in then or name not in now:
                return f"{place}{name}"
            if found := differs(then[name], now[name], f"{place}{name}."):
                return found
        return ""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        inside = (differs(one, other, f"{place}{index}.") for index, (one, other) in pairs)
        return next(filter(None, inside), "")
    return "" if type(then) is type(now) and then == now else place.removesuffix(".")
