"""The page of the command line is written from the commands' own help when the site is built."""

from typing import Any

from cli_reference import cli_reference
from mkdocs.structure.pages import Page

MARK = "<!-- cli reference -->"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the reference in the place of the mark in cli.md."""
    return markdown.replace(MARK, cli_reference()) if page.file.src_uri == "cli.md" else markdown
