"""The certificate as a page of HTML that needs nothing else, and carries the JSON that is checked."""

import json

import jinja2

from marshtest.kit.certificates.certificate import Certificate
from marshtest.kit.certificates.page import Page


def html(certificate: Certificate) -> bytes:
    """The page; the same bytes for the same certificate."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("marshtest", "kit/certificates"),
        autoescape=True,  # names come from users, and from certificates of others
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # In a script element only < could end it, and JSON has another way to write that.
    embedded = certificate.to_json().replace("<", "\\u003c")
    assert json.loads(embedded)["sha256"] == certificate.digest
    page = environment.get_template("certificate.html.j2")
    return page.render(page=Page.of(certificate), embedded=embedded).encode()
