"""Links that leave docs/ for a file of the repository stay links: that file becomes a page of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that one of the documents links to."""
    for page in list(files.documentation_pages()):
        for link, _ in LINK.findall(page.content_string):
            source = _outside(Path(str(page.abs_src_path)).parent / link, config)
            if source is None or source.name == "README.md":
                continue
            if files.get_file_from_path(_uri(source, config)) is None:
                files.append(_shown(source, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Let such links lead to those pages, and links to the README to the first page."""
    here = Path(str(page.file.src_uri)).parent
    up = "../" * len(here.parts)

    def led(found: re.Match[str]) -> str:
        source = _outside(Path(config.docs_dir) / here / found[1], config)
        if source is None:
            return found[0]
        uri = "index.md" if source.name == "README.md" else _uri(source, config)
        return f"]({up}{uri})"

    return LINK.sub(led, markdown)


def _outside(path: Path, config: MkDocsConfig) -> Path | None:
    """The file, if there is one and it lies outside docs/; what is missing mkdocs itself complains of."""
    path, docs = path.resolve(), Path(config.docs_dir).resolve()
    return path if path.is_file() and not path.is_relative_to(docs) else None


def _uri(source: Path, config: MkDocsConfig) -> str:
    root = Path(config.docs_dir).resolve().parent
    return f"files/{source.relative_to(root).as_posix()}.md"


def _shown(source: Path, config: MkDocsConfig) -> File:
    text, uri = source.read_text(encoding="utf-8"), _uri(source, config)
    if source.suffix == ".md":  # of the repository's root; the site's root is docs/
        text = text.replace("](docs/", "](../")
        text = re.sub(r"\]\((\w+\.md)\)", r"](\1.md)", text)
    else:
        language = {".py": "python", ".cff": "yaml"}.get(source.suffix, source.suffix.lstrip("."))
        text = f"# {source.name}\n\n````{language}\n{text}````\n"
    return File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
