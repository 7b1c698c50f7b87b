"""The command `verify`, and what `audit` needs for a certificate."""

from pathlib import Path
from typing import Annotated

import typer

from marshtest.cli import screen

CertificateOption = Annotated[
    list[Path] | None,
    typer.Option(help="File for a certificate: .pdf, .html or .json; repeat it. Must be new."),
]
AskedByOption = Annotated[
    str | None, typer.Option(help="Name of who asked for the audit, for the certificate.")
]
CommitmentOption = Annotated[
    Path | None, typer.Option(help="Commitment that `marshtest dose` wrote beside the key.")
]
SignOption = Annotated[
    Path | None,
    typer.Option(
        help="Private Ed25519 key in PEM that signs the certificate; a passphrase in "
        "the environment variable MARSHTEST_PASSPHRASE."
    ),
]


def verify(
    certificate: Annotated[Path, typer.Argument(help="Certificate: .pdf, .html or .json.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="All models of the certificate, in its order.")
    ] = None,
    *,
    key: Annotated[Path | None, typer.Option(help="Key file that `marshtest dose` wrote.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set as it was before dosing, or after it.")
    ] = None,
    commitment: Annotated[
        Path | None, typer.Option(help="Commitment as you received it on the day of dosing.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Public Ed25519 key in PEM of whoever should have signed.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device for the models: auto, cpu or cuda.")] = "auto",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Callables and .pt2 programs run in this process.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Most requests a second that an endpoint is sent.")
    ] = None,
) -> None:
    """Check a certificate; with key, data and models by asking again.

    Exit 0: no check fails; 1: one fails; 2: no answer.

    Example: marshtest verify audit.pdf --public-key auditor.pem --commitment dosed.commitment.json
    """
    from marshtest.kit.certificates.verify import verify as check

    with screen.progress() as progress:
        done = check(
            certificate,
            *(models or []),
            key=key,
            data=data,
            commitment=commitment,
            public_key=public_key,
            device=device,
            in_process=in_process,
            rate=rate,
            progress=progress,
        )
    screen.show(done.table(), certificate.name)
    screen.say(*done.statement())
    screen.say(f"{certificate.name}: {done.conclusion}", style="bold")
    raise typer.Exit(done.exit_code)
