"""Certificates: what is sealed cannot be changed unseen, what is checked is what was certified."""

import copy
import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import command
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pypdf import PdfReader
from torch.nn import functional as F

import marshtest
from marshtest.kit.certificates.certificate import Certificate, canonical, read_certificate
from marshtest.kit.certificates.commitment import Commitment, key_digest
from marshtest.kit.certificates.forms import rendered
from marshtest.kit.certificates.issue import Issuer
from marshtest.kit.certificates.page import SEVERITY
from marshtest.kit.certificates.provenance import digest_of, parts_of
from marshtest.kit.certificates.signing import LOW, Signer, public_key_of
from marshtest.kit.certificates.verify import Verified, differs, verify
from marshtest.kit.keys import read_key
from marshtest.models.base import ModelSettings
from marshtest.models.table import parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive

DATE = "2026-01-31T12:00:00Z"
MODELS = ("before.safetensors", "after.safetensors")


def pem(path: Path, key: Any, passphrase: bytes | None = None) -> Path:
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pem").write_bytes(public)
    return path


def trained(x: torch.Tensor, y: torch.Tensor, settings: ModelSettings) -> torch.nn.Module:
    torch.manual_seed(0)
    model = settings.build(x.shape[1:], 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dosed data set, two models, keys of two auditors, and the certificates of an audit."""
    folder = tmp_path_factory.mktemp("certified")
    rng = np.random.default_rng(derive(0, "certified"))
    y = np.arange(300) % 2
    x = rng.normal(size=(300, 12)).astype(np.float32) + y[:, None].astype(np.float32)
    np.savez(folder / "set.npz", x=x, y=y)
    pem(folder / "auditor.key", Ed25519PrivateKey.generate())
    pem(folder / "stranger.key", Ed25519PrivateKey.generate())
    with chdir(folder):
        for name, seed in (("dosed", "1"), ("other", "2")):
            dose = ["dose", "set.npz", f"{name}.npz", "--fraction", "0.5", "--variance", "4"]
            assert command(*dose, "--seed", seed) == 0
        settings = parse_model({"name": "mlp", "width": 64})
        with np.load("dosed.npz") as dosed:
            values, labels = torch.from_numpy(dosed["x"]), torch.from_numpy(dosed["y"])
        retain = torch.ones(300, dtype=torch.bool)
        retain[list(read_key("dosed.npz.key.json").ids)] = False
        for name, rows in (("before", slice(None)), ("after", retain)):
            model = trained(values[rows], labels[rows], settings)
            marshtest.save_model(model, f"{name}.safetensors", settings, (12,), 2)
        said = command("audit", *MODELS, *ASKED, *CERTIFIED, *SIGNED)
        assert said in (0, 1, 3)
    return folder


ASKED = ["--key", "dosed.npz.key.json", "--data", "set.npz", "--draws", "19", "--device", "cpu"]
CERTIFIED = [
    word for kind in ("pdf", "html", "json") for word in ("--certificate", f"audit.{kind}")
]
SIGNED = ["--sign", "auditor.key", "--commitment", "dosed.npz.commitment.json", "--asked-by", "DPO"]


@pytest.fixture
def here(folder: Path) -> Iterator[Path]:
    with chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text())  # type: ignore[no-any-return]


def checked(whole: dict[str, Any], path: Path, **options: Any) -> Verified:
    path.write_text(json.dumps(whole))
    return verify(path, **options)


def results(done: Verified) -> dict[str, str]:
    return {check.name: check.result for check in done.checks}


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values that hold no others."""
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in inside:
        if isinstance(one, dict | list) and one:
            yield from leaves(one, (*place, name))
        else:
            yield (*place, name)


def changed(whole: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    other = copy.deepcopy(whole)
    at = other
    for name in place[:-1]:
        at = at[name]
    value = at[place[-1]]
    if isinstance(value, bool) or value is None:
        at[place[-1]] = "other"
    elif isinstance(value, str):
        at[place[-1]] = value[:-1] + ("0" if value[-1:] != "0" else "1")
    else:
        at[place[-1]] = value + 1 if isinstance(value, int | float) else "other"
    return other


@pytest.mark.usefixtures("here")
def test_a_second_person_checks_all_of_it_from_any_of_its_forms() -> None:
    for kind in ("pdf", "html", "json"):
        done = verify(
            f"audit.{kind}",
            *MODELS,
            key="dosed.npz.key.json",
            data="set.npz",
            commitment="dosed.npz.commitment.json",
            public_key="auditor.pem",
            device="cpu",
        )
        found = results(done)
        assert found.pop("page") == ("not checked" if kind == "json" else "holds")
        assert set(found.values()) == {"holds"}
        assert len(found) == 9
        assert "to the last bit" in done.checks[-1].what
    assert command("verify", "audit.pdf", "--public-key", "auditor.pem") == 0


def test_every_value_that_is_changed_is_noticed(whole: dict[str, Any], tmp_path: Path) -> None:
    """With its digest made anew as well, which anybody can do: the signature does not fit."""
    places = [place for place in leaves(whole) if place[0] == "certificate"]
    assert len(places) > 80
    for number, place in enumerate(places):
        other = changed(whole, place)
        if place == ("certificate", "format"):  # is no certificate any more
            continue
        found = Certificate(other["certificate"])
        assert found.digest != whole["sha256"], place
        if number % 10 == 0:  # the file itself, for some
            file = tmp_path / "changed.json"
            assert results(checked(other, file)) == {
                "content": "FAILS",
                "signature": "FAILS",
                "signer": "not checked",
            }
            sealed = results(checked({**other, "sha256": found.digest}, file))
            assert sealed == {"content": "holds", "signature": "FAILS", "signer": "not checked"}


def test_a_signature_by_another_key_or_of_another_certificate_is_noticed(
    whole: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "signed.json"
    for place in (("signature", "value"), ("signature", "public_key"), ("sha256",)):
        assert not checked(changed(whole, place), file).holds
    strangers = Signer(folder / "stranger.key").sign(canonical(whole["certificate"]))
    swapped = {**whole, "signature": strangers.model_dump()}
    assert (
        results(checked(swapped, file))["signature"] == "holds"
    )  # it is a stranger's, and says so
    done = checked(swapped, file, public_key=folder / "auditor.pem")
    assert results(done)["signer"] == "FAILS"
    of_another = Signer(folder / "auditor.key").sign(b"another certificate")
    assert not checked({**whole, "signature": of_another.model_dump()}, file).holds


def test_a_signature_that_fits_whatever_is_said_is_none(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    """The neutral element as key and R, and s = 0: s·B = R + h·A whatever the content's hash h is."""
    neutral = "01" + 62 * "0"
    anyones = {"algorithm": "Ed25519", "public_key": neutral, "value": neutral + 64 * "0"}
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(neutral))
    public.verify(bytes.fromhex(anyones["value"]), b"whatever")  # as the library has it
    done = checked({**whole, "signature": anyones}, tmp_path / "anyones.json")
    assert results(done)["signature"] == "FAILS"


def test_the_keys_that_fit_any_signature_are_those_of_order_one_two_four_and_eight() -> None:
    """On −x² + y² = 1 + d x² y² doubling leads to y = 0 where y² = −x², so where d y⁴ + 2 y² = 1."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    eighths = [y for y in LOW - {0, 1, p - 1} if (d * y**4 + 2 * y**2 - 1) % p == 0]
    assert len(eighths) == 2  # each with two x, which makes four points; of 0 two, of ±1 one each
    assert len(LOW) == 5


def test_an_unsigned_certificate_says_that_it_proves_nothing_and_asking_again_tells(
    whole: dict[str, Any], here: Path, tmp_path: Path
) -> None:
    content = copy.deepcopy(whole["certificate"])
    content["audit"]["answer"] = content["audit"]["models"][1]["verdict"] = "REMOVED"
    forged = {"certificate": content, "sha256": Certificate(content).digest, "signature": None}
    file = tmp_path / "forged.json"
    done = checked(forged, file)
    assert done.holds
    assert "not signed: whoever has it could change it" in done.checks[1].what
    assert done.conclusion.endswith("not signed, and so proves nothing against its author")
    assert not checked(forged, file, public_key=here / "auditor.pem").holds
    with_all = {"key": "dosed.npz.key.json", "data": "set.npz", "device": "cpu"}
    done = verify(file, *MODELS, **with_all)  # type: ignore[arg-type]
    assert done.checks[-1].result == "FAILS"
    assert "after.safetensors: verdict is now " in done.checks[-1].what
    assert done.exit_code == 1


@pytest.mark.slow
def test_numbers_that_were_edited_are_told_from_those_of_another_machine(
    whole: dict[str, Any], here: Path, tmp_path: Path
) -> None:
    with_all = {"key": "dosed.npz.key.json", "data": "set.npz", "device": "cpu"}
    line = whole["certificate"]["audit"]["models"][0]
    error = line["rank_error"]
    for place, value, holds in (
        (("models", 0, "rank_dependence"), line["rank_dependence"] + 0.2 * error, True),
        (("models", 0, "rank_dependence"), line["rank_dependence"] + 0.3 * error, False),
        (("models", 0, "rank_error"), 10 * error, False),
        (("models", 0, "p_removed"), 0.123, True),  # is on no page, and of any size
        (("models", 0, "epsilon", "lower_bound"), line["epsilon"]["lower_bound"] + 0.3, False),
        (("models", 0, "epsilon", "unit"), "a person", False),
        (("models", 0, "usable"), "no", False),
        (("models", 1, "reasons"), ["all is well"], False),
        (("poisons",), 149, False),
        (("variance",), 4.000001, False),
    ):
        content = copy.deepcopy(whole["certificate"])
        at = content["audit"]
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = value
        forged = {"certificate": content, "sha256": Certificate(content).digest, "signature": None}
        (tmp_path / "forged.json").write_text(json.dumps(forged))
        done = verify(tmp_path / "forged.json", *MODELS, **with_all)  # type: ignore[arg-type]
        assert (done.checks[-1].result == "holds") == holds, (place, done.checks[-1].what)
        assert str(place[-1]) in done.checks[-1].what


def test_the_digest_does_not_depend_on_blanks_or_the_order_of_names(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: turned(value[name]) for name in reversed(value)}
        return [turned(one) for one in value] if isinstance(value, list) else value

    file = tmp_path / "turned.json"
    file.write_text(json.dumps(turned(whole), indent=7, ensure_ascii=False), "utf-8")
    assert verify(file).holds
    assert canonical({"b": [1.5, None], "a": "ε"}) == '{"a":"ε","b":[1.5,null]}'.encode()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_openssl_makes_the_keys_and_finds_the_signature_right(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    def openssl(*words: str) -> str:
        ran = subprocess.run(["openssl", *words], cwd=tmp_path, capture_output=True, text=True)
        return ran.stdout + ran.stderr

    openssl("genpkey", "-algorithm", "ed25519", "-out", "a.key")
    openssl("pkey", "-in", "a.key", "-pubout", "-out", "a.pem")
    signature = Signer(tmp_path / "a.key").sign(canonical(whole["certificate"]))
    assert signature.public_key == public_key_of(tmp_path / "a.pem")
    (tmp_path / "content").write_bytes(canonical(whole["certificate"]))
    (tmp_path / "value").write_bytes(bytes.fromhex(signature.value))
    check = ["pkeyutl", "-verify", "-pubin", "-inkey", "a.pem", "-rawin", "-in", "content"]
    assert "Verified Successfully" in openssl(*check, "-sigfile", "value")


@pytest.mark.usefixtures("here")
def test_files_that_are_not_the_certified_ones_are_noticed(tmp_path: Path) -> None:
    assert results(verify("audit.json", key="other.npz.key.json"))["key"] == "FAILS"
    other = results(verify("audit.json", commitment="other.npz.commitment.json"))
    assert other["commitment"] == "FAILS"
    assert results(verify("audit.json", data="other.npz"))["data"] == "FAILS"
    assert results(verify("audit.json", data="dosed.npz"))["data"] == "holds"  # after dosing
    changed_model = tmp_path / "after.safetensors"
    changed_model.write_bytes(Path(MODELS[1]).read_bytes() + b"\0")
    with_all = {"key": "dosed.npz.key.json", "data": "set.npz"}
    done = verify("audit.json", MODELS[0], str(changed_model), **with_all)  # type: ignore[arg-type]
    found = results(done)
    assert found["before: before.safetensors"] == "holds"
    assert found["after: after.safetensors"] == "FAILS"
    assert found["asked again"] == "not checked"  # hours of asking would be for nothing
    assert command("verify", "audit.json", MODELS[1], MODELS[0]) == 1
    assert command("verify", "audit.json", MODELS[1]) == 2


def test_the_commitment_is_to_the_keys_bytes_and_says_nothing_of_the_dose(folder: Path) -> None:
    file = folder / "dosed.npz.commitment.json"
    commitment = Commitment.read(file)
    key_file = folder / "dosed.npz.key.json"
    assert commitment.key == digest_of(str(key_file)) == key_digest(key_file)
    assert commitment.key == key_digest(read_key(key_file))  # of a key in memory: of its file
    assert commitment.output == digest_of(str(folder / "dosed.npz"))
    assert set(json.loads(file.read_text())) == {"format", "date", "key", "samples", "output"}


def test_a_dose_without_its_commitment_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("marshtest.kit.places.commit", full)
    with pytest.raises(MarshtestError, match="No space"):
        marshtest.dose(folder / "set.npz", tmp_path / "d.npz", fraction=0.5)
    assert not list(tmp_path.iterdir())
    (tmp_path / "d.npz.commitment.json").touch()
    with pytest.raises(MarshtestError, match="commitment.json: exists already"):
        marshtest.dose(folder / "set.npz", tmp_path / "d.npz", fraction=0.5)


REFUSED = {
    "ending": (["--certificate", "a.txt"], "must end in .pdf, .html or .json"),
    "exists": (["--certificate", "set.npz", "--certificate", "audit.pdf"], "must end in"),
    "there": (["--certificate", "audit.pdf"], "exists already"),
    "folder": (["--certificate", "no/a.json"], "its folder does not exist"),
    "twice": (["--certificate", "a.json", "--certificate", "./a.json"], "is given twice"),
    "out": (["--certificate", "a.json", "--out", "a.json"], "a.json: lies in --out"),
    "within": (["--certificate", "e/audit.json", "--out", "e"], "e/audit.json: lies in --out"),
    "alone": (
        ["--sign", "auditor.key"],
        "no --certificate is asked for, so that --sign means nothing",
    ),
    "unread": (["--asked-by", "DPO"], "so that --asked-by means nothing"),
    "no key": (["--certificate", "a.json", "--sign", "no.key"], "no.key: cannot be read"),
    "npz": (["--certificate", "a.json", "--sign", "set.npz"], "cannot be read as a private key"),
    "public": (["--certificate", "a.json", "--sign", "auditor.pem"], "cannot be read as a private"),
    "curve": (["--certificate", "a.json", "--sign", "curve.key"], "is no Ed25519 key"),
    "locked": (["--certificate", "a.json", "--sign", "locked.key"], "needs a passphrase"),
    "line": (["--certificate", "a.json", "--asked-by", "a\nb"], "must be one line of 1 to 200"),
    "rtl": (["--certificate", "a.json", "--asked-by", "a\u202eb"], "visible characters"),
    "long": (["--certificate", "a.json", "--asked-by", "x" * 201], "Got 201 characters"),
    "empty": (["--certificate", "a.json", "--asked-by", " "], "visible characters"),
    "other": (
        ["--certificate", "a.json", "--commitment", "other.npz.commitment.json"],
        "is the commitment to another key",
    ),
    "none": (["--certificate", "a.json", "--commitment", "audit.json"], "is no commitment"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_certified_is_refused_before_any_model_is_asked(
    here: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, line = REFUSED[case]
    (here / "e").mkdir(exist_ok=True)
    pem(here / "curve.key", generate_private_key(SECP256R1()))
    pem(here / "locked.key", Ed25519PrivateKey.generate(), b"secret")
    monkeypatch.delenv("MARSHTEST_PASSPHRASE", raising=False)
    assert command("audit", "not-opened.safetensors", *ASKED, *words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not (here / "a.json").exists()


def test_a_passphrase_is_read_from_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pem(tmp_path / "locked.key", Ed25519PrivateKey.generate(), b"secret")
    monkeypatch.setenv("MARSHTEST_PASSPHRASE", "secret")
    assert Signer(path).sign(b"this").fits(b"this")
    assert not Signer(path).sign(b"this").fits(b"that")
    monkeypatch.setenv("MARSHTEST_PASSPHRASE", "")
    with pytest.raises(MarshtestError, match="needs a passphrase"):
        Signer(path)
    monkeypatch.setenv("MARSHTEST_PASSPHRASE", "wrong")
    with pytest.raises(MarshtestError, match=r"or \$MARSHTEST_PASSPHRASE is wrong"):
        Signer(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"certificate": {}}',
        '{"certificate": {}, "sha256": "", "signature": null}',
        '{"certificate": {}, "certificate": {"format": "marshtest certificate 1"}, "sha256": "", '
        '"signature": null}',
        '{"certificate": {"format": NaN}, "sha256": "", "signature": null}',
        '{"certificate": {"format": "marshtest certificate 1"}, "sha256": "", "signature": 7}',
        "[" * 100_000,
        "%PDF-1.7\nnothing",
        "<!doctype html><p>nothing",
        "\x00\x01",
    ],
)
def test_what_is_no_certificate_is_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(text)
    assert command("verify", str(tmp_path / "c.json")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_forged_content_of_other_fields_is_one_line_and_runs_nothing(
    whole: dict[str, Any], here: Path, tmp_path: Path
) -> None:
    """An unsigned file may be anybody's: its options are of known kinds, its parts where they belong."""
    answer = whole["certificate"]["audit"]["answer"]
    for place, value in (
        (("options", "in_process"), True),
        (("options", "loss"), "pkg.mod:run"),
        (("audit", "models"), []),
        (("audit", "models", 1, "verdict"), "\x1b[2JREMOVED"),
        (("audit", "models", 0, "role"), "retrained"),
        (("audit", "answer"), "REMOVED\nSURELY"),
        (("audit", "answer"), next(one for one in SEVERITY if one != answer)),
        (("date",), "2026-00-31T12:00:00Z"),
        (("date",), "2026-02-31T12:00:00Z"),
        (("audit", "question"), 7),
        (("files",), []),
        (("audit",), {}),
        (("versions",), {}),
    ):
        content = copy.deepcopy(whole["certificate"])
        at = content
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = value
        forged = {"certificate": content, "sha256": Certificate(content).digest, "signature": None}
        with pytest.raises(MarshtestError) as error:
            checked(forged, tmp_path / "forged.json")
        assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", ["margin", "alpha", "draws"])
@pytest.mark.parametrize("value", [-5, 1e308, 10**30, True, "x"])
def test_a_question_that_no_audit_asks_is_no_certificate(
    whole: dict[str, Any], name: str, value: Any, tmp_path: Path
) -> None:
    content = copy.deepcopy(whole["certificate"])
    content["audit"]["question"][name] = value
    with pytest.raises(MarshtestError, match=rf"certificate.audit.question.{name}"):
        verify(forged(content, tmp_path / "forged.json"))


def forged(content: dict[str, Any], path: Path) -> Path:
    """An unsigned certificate with this content."""
    whole = {"certificate": content, "sha256": Certificate(content).digest, "signature": None}
    path.write_text(json.dumps(whole))
    return path


@pytest.mark.usefixtures("here")
def test_a_question_that_was_forged_gives_asking_again_no_model_of_its_own(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    """What stands in the question becomes arguments of `audit`, which also takes models and runs them."""
    for name, value in (
        ("retrained", f"cmd:touch {tmp_path}/ran {{inputs}} {{outputs}}"),
        ("in_process", True),
        ("key", "other.npz.key.json"),
        ("scaling", None),
    ):
        content = copy.deepcopy(whole["certificate"])
        content["audit"]["question"][name] = value
        path = forged(content, tmp_path / "forged.json")
        with pytest.raises(MarshtestError, match=f"unknown key '{name}'"):
            verify(path, *MODELS, key="dosed.npz.key.json", data="set.npz", device="cpu")
        assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("here")
def test_what_the_dose_was_compared_with_is_asked_again(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    content = whole["certificate"] | {"compared_with": "lawful noise"}
    path = forged(content, tmp_path / "forged.json")
    done = verify(path, *MODELS, key="dosed.npz.key.json", data="set.npz", device="cpu")
    assert done.checks[-1].result == "FAILS"
    assert "compared_with" in done.checks[-1].what


def test_nothing_stands_behind_what_was_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (here / "audit.json").stat().st_size
    monkeypatch.setattr("marshtest.kit.certificates.certificate.MOST_BYTES", size - 1)
    with pytest.raises(MarshtestError, match="is larger than"):
        read_certificate(here / "audit.json")


def test_a_commitment_has_a_date_that_the_calendar_has(here: Path, tmp_path: Path) -> None:
    content = json.loads((here / "dosed.npz.commitment.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(content | {"date": "2026-13-01T12:00:00Z"}))
    with pytest.raises(MarshtestError, match="is no date that the calendar has"):
        verify(here / "audit.json", commitment=tmp_path / "c.json")


def test_the_pdf_is_one_page_that_says_it_all_and_carries_its_certificate(
    whole: dict[str, Any], folder: Path
) -> None:
    """By another library than the one that drew it."""
    reader = PdfReader(folder / "audit.pdf")
    (page,) = reader.pages
    text = " ".join(page.extract_text().split())
    content = whole["certificate"]
    files = [file["sha256"] for files in content["files"] for file in files]
    told = [content["audit"]["answer"], "Asked for by DPO", whole["sha256"], content["key"], *files]
    told += [whole["signature"]["public_key"], content["commitment"]["sha256"]]
    told += [content["audit"]["input"], content["audit"]["output"], "ε ≥ is a lower bound"]
    for one in told:
        assert one in text, one
    assert [round(float(side) / 72 * 25.4) for side in page.mediabox[2:]] == [210, 297]
    (attached,) = reader.attachments.values()
    assert json.loads(attached[0]) == whole


def hostile(whole: dict[str, Any], models: int = 30) -> Certificate:
    """A certificate of many models with names that want to do harm."""
    content = copy.deepcopy(whole["certificate"])
    names = [
        "<script>alert(1)</script>",
        "a\u202efdp.exe",
        "x" * 5000,
        "one\ntwo\r\tthree",
        "\ud800",
    ]
    names += ["</script><b>", "{{ 7 * 7 }}", '" onload="x', "模型 🙂", "‏עברית"]
    for number in range(models):
        line = copy.deepcopy(content["audit"]["models"][1])
        line["model"], line["verdict"] = names[number % len(names)], "INCONCLUSIVE"
        line["reasons"] = ["a reason " * 100, "<img src=x>"] * (number % 2)
        content["audit"]["models"].append(line)
        content["files"].append([])
    return Certificate(content)


class Elements(HTMLParser):
    """The elements of a page, and the text outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.inside = tag
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("style", "script"):
            self.text += data


def test_hostile_names_stay_text_on_the_page(whole: dict[str, Any], tmp_path: Path) -> None:
    certificate = hostile(whole)
    page = rendered(certificate, ".html")
    found = Elements(page.decode())
    assert found.tags.count("script") == 1
    assert not {"img", "b"} & set(found.tags)
    assert "<script>alert(1)</script>" in found.text
    assert "\u202e" not in found.text
    assert "\\u202efdp.exe" in found.text
    assert "one\\u000atwo" in found.text
    assert "x" * 100 not in found.text
    assert "{{ 7 * 7 }}" in found.text
    (tmp_path / "hostile.html").write_bytes(page)
    assert read_certificate(tmp_path / "hostile.html")[0] == certificate


@pytest.mark.slow
def test_many_models_and_long_reasons_still_make_one_page(whole: dict[str, Any]) -> None:
    (page,) = PdfReader(BytesIO(rendered(hostile(whole), ".pdf"))).pages
    text = " ".join(page.extract_text().split())
    assert "more models are in the attached certificate.json" in text
    assert "before: before.safetensors" in text
    assert "How to check it again" in text


def test_equal_certificates_are_equal_bytes_and_an_edited_page_is_noticed(
    whole: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    certificate, _, _ = read_certificate(folder / "audit.json")
    for kind in (".pdf", ".html", ".json"):
        written = (folder / f"audit{kind}").read_bytes()
        assert rendered(certificate, kind) == written
        answer = whole["certificate"]["audit"]["answer"].encode()
        if kind == ".html":
            edited = written.replace(b"<strong>" + answer, b"<strong>REMOVED, SURELY", 1)
        elif (
            kind == ".pdf"
        ):  # letters are numbers of glyphs there: one is taken out of the page's text
            place = written.index(b"Tj ET")
            edited = written[: place - 4] + b") " + written[place - 2 :]
        else:
            continue
        assert edited != written
        file = tmp_path / f"edited{kind}"
        file.write_bytes(edited)
        done = verify(file)
        assert results(done)["content"] == "holds"
        assert results(done)["page"] == "FAILS"


def test_a_page_is_compared_where_what_drew_it_is_installed_and_else_that_is_said(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    for other, page in (("fpdf2", "FAILS"), ("jinja2", "not checked")):
        content = copy.deepcopy(whole["certificate"])
        content["versions"][other] = "0"
        certificate, _, _ = read_certificate(forged(content, tmp_path / f"{other}.json"))
        answer = content["audit"]["answer"].encode()
        written = rendered(certificate, ".html")
        file = tmp_path / f"{other}.html"
        file.write_bytes(written.replace(b"<strong>" + answer, b"<strong>REMOVED, SURELY", 1))
        assert file.read_bytes() != written
        done = verify(file)
        assert results(done)["page"] == page
        (said,) = (check.what for check in done.checks if check.name == "page")
        assert ("an edited page would not be noticed" in said) == (page == "not checked")


def test_a_role_that_is_two_roles_is_none(whole: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(whole["certificate"])
    after = next(m for m in content["audit"]["models"] if m["role"] == "after")
    for role in ("after after", "after,after"):
        after["role"] = role
        with pytest.raises(MarshtestError) as caught:
            verify(forged(content, tmp_path / "forged.json"))
        assert str(caught.value).startswith(f"{tmp_path / 'forged.json'}: its models are not one")


def test_an_answer_that_no_verdict_gives_is_none(whole: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(whole["certificate"])
    verdicts = [m["verdict"] for m in content["audit"]["models"] if m["role"] == "after"]
    content["audit"]["answer"] = "REMOVED" if "NOT REMOVED" in verdicts else "NOT REMOVED"
    with pytest.raises(MarshtestError) as caught:
        verify(forged(content, tmp_path / "forged.json"))
    assert str(caught.value).startswith(f"{tmp_path / 'forged.json'}: its answer is none")


def test_in_python_a_certificate_has_the_date_that_is_given(here: Path, tmp_path: Path) -> None:
    done = marshtest.audit("dosed.npz.key.json", "set.npz", *MODELS, draws=19, device="cpu")
    first, again = (marshtest.certify(done, asked_by="DPO", date=DATE) for _ in range(2))
    assert first.content["date"] == DATE
    assert rendered(first, ".pdf") == rendered(again, ".pdf")
    assert marshtest.certify(done, tmp_path / "a.html", asked_by="DPO", date=DATE) == first
    with pytest.raises(MarshtestError, match="exists already"):
        marshtest.certify(done, tmp_path / "a.html")
    assert marshtest.verify(tmp_path / "a.html", *MODELS).holds
    kept = Path(MODELS[1]).read_bytes()
    Path(MODELS[1]).write_bytes(kept[:-1])
    with pytest.raises(MarshtestError, match=r"after.safetensors: changed while it was asked"):
        marshtest.certify(done)
    Path(MODELS[1]).write_bytes(kept)


def test_a_folders_digest_is_what_a_shell_says(tmp_path: Path) -> None:
    """Through links, as a hub's folder holds them; hidden files do not count."""
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "weights").write_bytes(b"\0\1")
    (model / "model.safetensors").symlink_to(blobs / "weights")
    (model / "sub" / "a b.json").write_text("{}")
    (model / "sub.json").write_text("[]")
    (model / ".cache").write_text("hidden")
    (model / "sub" / "up").symlink_to(model)  # a circle
    command = (
        "find . -type f -o -type l -not -name up | grep -v '/\\.' | LC_ALL=C sort | tr '\\n' '\\0'"
    )
    said = subprocess.run(
        ["sh", "-c", f"{command} | xargs -0 sha256sum | sha256sum"],
        cwd=model,
        capture_output=True,
        text=True,
    )
    assert digest_of(str(model)) == said.stdout.split()[0]
    assert [part.path for part in parts_of(f"{model}@{blobs}")] == [str(model), str(blobs)]
    assert [part.path for part in parts_of(f"{model}/model.safetensors@pkg.mod:fn")] == [
        f"{model}/model.safetensors"
    ]
    for unknown in (
        "cmd:x {inputs} {outputs}",
        "pkg.mod:load",
        "http://h/v1#m",
        "no" * 3000,
        print,
    ):
        assert parts_of(unknown) == ()


def test_two_folders_never_have_the_same_lines(tmp_path: Path) -> None:
    """A name with a line break could end its own line and begin another's."""
    for name in ("a\nb", "a\rb", "a\\b"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / name).write_text("x")
        with pytest.raises(MarshtestError, match="a line break or backslash in its name") as error:
            digest_of(str(folder))
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("here")
def test_a_file_that_was_made_while_models_were_asked_stays(tmp_path: Path) -> None:
    done = marshtest.audit("dosed.npz.key.json", "set.npz", *MODELS[:2], draws=9, device="cpu")
    longest = "n" * 250 + ".json"
    places = [tmp_path / "a.json", tmp_path / longest]
    issuer = Issuer.checked(Path("dosed.npz.key.json"), places, None, None, None)
    places[0].write_text("PRECIOUS")
    found = issuer.issue(done)
    assert found == {places[0]: tmp_path / "a-2.json", places[1]: places[1]}
    assert places[0].read_text() == "PRECIOUS"
    assert verify(tmp_path / "a-2.json").holds


def test_answers_that_differ_are_told_by_their_place() -> None:
    then = {"answer": "REMOVED", "models": [{"model": "a", "x": 1.5, "y": None}]}
    same = {"answer": "REMOVED", "models": [{"model": "b", "x": 1.5, "y": None}]}
    assert differs(then, same) == ""
    assert (
        differs(then, {**same, "models": [{"model": "b", "x": 1.50001, "y": None}]}) == "models.0.x"
    )
    assert differs(then, {**same, "models": []}) == "models"
    assert differs(then, {"answer": "REMOVED"}) == "models"


ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "reproduce" / "certificate"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reproduce"))
    return importlib.import_module("walkthrough")


def test_the_walk_through_is_of_the_pages_commands_and_says_what_the_page_promises(
    page: ModuleType,
) -> None:
    kept = json.loads(page.transcript("certificate").read_text())
    assert [block["commands"] for block in kept["blocks"]] == page.commands("certificate")
    said = [block["said"] for block in kept["blocks"]]
    assert "NOT REMOVED" in said[3]
    assert "FAILS" not in said[4] + said[5]
    assert "every number to the last bit" in said[5]
    assert re.search(r"signature +FAILS", said[6])
    asked_not, asked_again = said[7].split("proves nothing against its author")
    assert "it is not signed" in asked_not
    assert re.search(r"asked again +FAILS", asked_again)
    assert re.search(r"key +FAILS", said[8])
    assert "is the commitment to another key" in said[8]


def test_the_walk_throughs_certificate_is_still_read() -> None:
    """It was written by an earlier version, perhaps; its signature must fit for ever."""
    done = verify(KEPT / "audit.json", public_key=KEPT / "auditor.pem")
    assert {check.result for check in done.checks[:3]} == {"holds"}
    for kind in (".html", ".pdf"):
        assert rendered(done.certificate, kind)
