"""Templates of pages, opened alike: names in them come from users, and from rows and files of others."""

from typing import Any

import jinja2


def template(name: str, folder: str = "reporting", **used: Any) -> jinja2.Template:
    """A template of a folder of the package, with what it uses whatever the page is about."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("marshtest", folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name, globals=used)
