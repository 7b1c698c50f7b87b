"""The site: built strictly and without a network, and it says of the package what is true."""

import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import marshtest
from marshtest.attacks import ATTACKS
from marshtest.unlearning import UNLEARNERS

ROOT = Path(__file__).parents[1]
REMOTE = re.compile(r"(https?:)?//")
MATHML = re.compile("<math .*?</math>", re.DOTALL)
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.DOTALL)

pytestmark = pytest.mark.slow  # the site is built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    config = ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder / "site")]
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", *config]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=folder, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "site"


class Page(HTMLParser):
    """What a browser fetches to show a page, what it may lead to, and the text outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded, self.links, self.ids = set[str](), set[str](), set[str]()
        self.text, self.code = "", 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.code += tag in ("pre", "code", "script", "style")
        self.ids |= {given["id"]} if "id" in given else set()
        if "href" in given:
            (self.links if tag == "a" else self.loaded).add(given["href"])
        for name in ("src", "srcset", "data", "poster"):
            self.loaded |= {given[name]} if name in given else set()

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self.code else data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path.read_text()) for path in site.rglob("*.html")}


def test_no_page_loads_anything_over_the_network(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 12
    for name, page in pages.items():
        assert page.loaded, name  # stylesheets at the least
        assert not [address for address in page.loaded if REMOTE.match(address)], name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import\s)\s*["']?(https?:)?//""", sheet.read_text()), sheet


def test_all_that_a_page_loads_and_leads_to_is_there(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for address in page.loaded | page.links:
            target = re.split("[?#]", address)[0]
            if target and not REMOTE.match(target) and name != "404.html":
                assert (site / name).parent.joinpath(target).exists(), (name, address)


def test_a_link_to_a_file_beside_the_documents_leads_to_its_text(
    site: Path, pages: dict[str, Page]
) -> None:
    assert "files/examples/auditee.py.html" in pages["audit.html"].links
    shown = re.sub("<[^>]+>", "", (site / "files/examples/auditee.py.html").read_text())
    lines = (ROOT / "examples/auditee.py").read_text().splitlines()
    assert all(line.strip() in shown for line in lines if "import" in line)


def test_every_formula_is_mathml(site: Path) -> None:
    for source in (ROOT / "docs").glob("*.md"):
        written = re.sub(r"```.*?```|`[^`\n]+`", "", source.read_text(), flags=re.DOTALL)
        html = (site / f"{source.stem}.html").read_text()
        assert len(MATHML.findall(html)) == len(FORMULA.findall(written)), source
        article = html.split("<article")[1].split("</article>")[0]
        left = Page(MATHML.sub("", article)).text
        assert not re.search(r"\$|\\\(|\\\[|\\[a-z]", left), source


def test_there_are_formulas(site: Path) -> None:
    formulas = MATHML.findall((site / "mathematics.html").read_text())
    assert len(formulas) > 100
    assert any("<mfrac>" in formula and 'display="block"' in formula for formula in formulas)


def test_every_public_name_is_in_the_reference(pages: dict[str, Page]) -> None:
    stubs = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    for name in marshtest.__all__:
        home = f"{getattr(marshtest, name).__module__}.{name}"
        assert f"\n::: {home}\n" in stubs, f"docs/api/index.md lacks '::: {home}'"
        assert home in pages["api/index.html"].ids


def test_every_attack_and_unlearner_is_in_the_reference(pages: dict[str, Page]) -> None:
    for page, table in (("attacks", ATTACKS), ("unlearners", UNLEARNERS)):
        for cls in table.values():
            assert f"{cls.__module__}.{cls.__name__}" in pages[f"api/{page}.html"].ids


def test_the_reference_shows_signatures_and_fields(site: Path) -> None:
    reference = re.sub("<[^>]+>", "", (site / "api/index.html").read_text())
    signature = reference.split("run(\n")[1].split(")\n")[0]
    assert re.findall(r"^ +\*?(\w+):", signature, re.MULTILINE) == list(
        inspect.signature(marshtest.run).parameters
    )
    unlearners = re.sub("<[^>]+>", "", (site / "api/unlearners.html").read_text())
    assert "noise_variance: float = Field(1e-07, gt=0)" in unlearners
    assert "the paper uses 1e-7 and 1e-6" in unlearners  # a comment beside the field
    metrics = re.sub("<[^>]+>", "", (site / "api/metrics.html").read_text())
    assert "how seeds are pooled" in metrics  # a comment above the field


def test_the_search_works_without_a_server(site: Path, pages: dict[str, Page]) -> None:
    script = (site / "search" / "search_index.js").read_text()
    index = json.loads(script.removeprefix("var __index = "))
    found = {entry["location"].split("#")[0] for entry in index["docs"]}
    assert found >= {"audit.html", "mathematics.html", "api/index.html", "results.html"}
    assert "javascripts/iframe-worker.js" in pages["index.html"].loaded
