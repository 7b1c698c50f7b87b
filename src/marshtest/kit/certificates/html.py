"""The certificate as a page of HTML that needs nothing else, and carries the JSON that is checked."""

import json

from marshtest.kit.certificates.certificate import Certificate
from marshtest.kit.certificates.page import Page
from marshtest.reporting.templates import template


def html(certificate: Certificate) -> bytes:
    """The page; the same bytes for the same certificate."""
    # In a script element only < could end it, and JSON has another way to write that.
    embedded = certificate.to_json().replace("<", "\\u003c")
    assert json.loads(embedded)["sha256"] == certificate.digest
    page = template("certificate.html.j2", "kit/certificates")
    return page.render(page=Page.of(certificate), embedded=embedded).encode()
