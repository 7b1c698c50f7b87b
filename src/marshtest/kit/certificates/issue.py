"""Issue a certificate: all that can be refused is refused before the first model is asked."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marshtest.kit.certificates.certificate import (
    Certificate,
    Committed,
    Content,
    checked_asked_by,
    current_versions,
)
from marshtest.kit.certificates.commitment import Commitment, key_digest, now, sha256
from marshtest.kit.certificates.forms import checked_place, save
from marshtest.kit.certificates.signing import Signer
from marshtest.kit.keys import read_key
from marshtest.plumbing.errors import MarshtestError, refuse_options

if TYPE_CHECKING:
    from marshtest.kit.audit import Audit


def certify(
    audit: "Audit",
    *places: str | Path,
    asked_by: str | None = None,
    commitment: str | Path | None = None,
    sign: str | Path | None = None,
    date: str | None = None,
) -> Certificate:
    """Make a certificate of an audit that was just made, and write it.

    Args:
        audit: what `marshtest.audit` returned.
        *places: new files for it: .pdf, .html or .json.
        asked_by: who asked for the audit, in one line.
        commitment: file of the commitment that `dose` wrote beside the key.
        sign: file of a private Ed25519 key in PEM.
        date: of the certificate, such as 2026-01-31T12:00:00Z; by default now.

    Raises:
        MarshtestError: a file cannot be written, the commitment is to another key, the private key cannot
            be read, or a model's file is not what it was when the audit began.
    """
    paths = [checked_place(place) for place in places]
    signer = None if sign is None else Signer(sign)
    committed = None if commitment is None else _committed(commitment, audit.provenance.key)
    certificate = _issued(audit, checked_asked_by(asked_by), committed, signer, date)
    for path in paths:
        save(certificate, path)
    return certificate


@dataclass(frozen=True)
class Issuer:
    """The certificates that an audit is to end with, checked before it begins."""

    places: tuple[Path, ...]
    asked_by: str | None
    committed: Committed | None
    signer: Signer | None

    @classmethod
    def checked(
        cls,
        key: Path,
        places: Sequence[Path],
        asked_by: str | None,
        commitment: Path | None,
        sign: Path | None,
        out: Path | None = None,
    ) -> "Issuer":
        """The certificates to issue.

        Raises:
            MarshtestError: a file cannot be written, or lies in the folder `out` of the audit's own files,
                the commitment is to another key, or the private key cannot be read; or there is no
                certificate, and an option of one is given.
        """
        if not places:
            options = {"asked-by": asked_by, "commitment": commitment, "sign": sign}
            refuse_options("audit: no --certificate is asked for", **options)
        checked = tuple(map(checked_place, places))
        if len(set(map(_real, checked))) < len(checked):
            raise MarshtestError(
                "--certificate: one file is given twice. Give each a name of its own."
            )
        for place in checked:
            if out is not None and _real(place).is_relative_to(_real(out)):
                raise MarshtestError(
                    f"{place}: lies in --out, whose files it might replace. Choose another place."
                )
        if places:
            read_key(key)  # first: what is wrong with the key itself says more
        committed = None if commitment is None else _committed(commitment, key_digest(key))
        signer = None if sign is None else Signer(sign)
        return cls(checked, checked_asked_by(asked_by), committed, signer)

    def issue(self, audit: "Audit") -> dict[Path, Path]:
        """Write the certificates of an audit; for each place, where it is."""
        if not self.places:
            return {}
        certificate = _issued(audit, self.asked_by, self.committed, self.signer)
        return {place: save(certificate, place) for place in self.places}


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _issued(
    audit: "Audit",
    asked_by: str | None,
    committed: Committed | None,
    signer: Signer | None,
    date: str | None = None,
) -> Certificate:
    provenance = audit.provenance
    if not provenance.key:
        raise MarshtestError("certify: takes what `marshtest.audit` returned, and nothing else.")
    provenance.refuse_changed()
    content = Content.parse(
        {
            "date": date or now(),
            "asked_by": asked_by,
            "key": provenance.key,
            "commitment": committed,
            "options": dict(provenance.options),
            "compared_with": audit.key.fresh,
            "files": [
                [{"path": part.path, "sha256": part.sha256} for part in parts]
                for parts in provenance.models
            ],
            "audit": json.loads(audit.to_json()),
            "versions": current_versions(),
        },
        "certificate",
    )
    certificate = Certificate(content.model_dump(mode="json"))
    if signer is None:
        return certificate
    return Certificate(certificate.content, signer.sign(certificate.canonical))


def _committed(file: str | Path, key: str) -> Committed:
    """What a certificate keeps of a commitment; a MarshtestError if it is to another key."""
    file = Path(file)
    commitment = Commitment.read(file)
    commitment.refuse_other(key, file)
    return Committed(
        sha256=sha256(file.read_bytes()), date=commitment.date, output=commitment.output
    )
