"""The forms of a certificate: JSON, and pages in HTML and PDF that are drawn from it alone.

The same certificate makes the same bytes, so that a page can be told from one that was edited.
"""

import os
from pathlib import Path

from marshtest.kit.certificates.certificate import Certificate
from marshtest.kit.certificates.html import html
from marshtest.kit.certificates.pdf import pdf, refuse_missing
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.whole_files import write

FORMS = {".json": lambda certificate: certificate.to_json().encode(), ".html": html, ".pdf": pdf}


def rendered(certificate: Certificate, suffix: str) -> bytes:
    """The certificate as a .json, .html or .pdf file.

    Raises:
        MarshtestError: a PDF is asked for, and `fpdf2` is not installed.
    """
    content: bytes = FORMS[suffix](certificate)
    return content


def save(certificate: Certificate, path: Path) -> Path:
    """Write the certificate to a new file of one of the forms, by its ending, and give the file's path.

    Where one of that name was made since it was checked, the next free name is taken: NAME-2, and so on.
    """
    place, number = path, 1
    while os.path.lexists(place):
        number += 1
        place = path.with_stem(f"{path.stem}-{number}")
    write(rendered(certificate, path.suffix), place)
    return place


def checked_place(path: str | Path) -> Path:
    """The path of a certificate that can be written.

    Raises:
        MarshtestError: another ending, a file that exists, a folder that does not, or a missing library.
    """
    path = Path(path)
    if path.suffix not in FORMS:
        raise MarshtestError(f"{path}: must end in .pdf, .html or .json. Choose another name.")
    if path.exists() or path.is_symlink():
        raise MarshtestError(f"{path}: exists already. Choose another name, or remove it.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise MarshtestError(f"{path}: its folder does not exist. Make it, or choose another.")
    if not os.access(folder, os.W_OK):
        raise MarshtestError(f"{path}: its folder cannot be written to. Choose another.")
    if path.suffix == ".pdf":
        refuse_missing(path)
    return path
