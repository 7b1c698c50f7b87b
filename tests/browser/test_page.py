"""The page as a reader meets it, in a real Chromium; `make browser` installs what this needs."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from marshtest.commands.study import study
from marshtest.reporting.page import write_page
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results

AXE = Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"
PHONE = {"viewport": {"width": 360, "height": 740}}
DARK = {"color_scheme": "dark"}
Opened = Callable[..., Page]


@pytest.fixture(scope="session")
def ablated(ablated: Results) -> Results:
    """The run that all tests share, with its page."""
    write_report(ablated)
    return ablated


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail("there is no Chromium; `make browser` installs it")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Opens a page and waits for its charts; whatever a test then does, the page must stay quiet."""
    contexts, noise = [], []

    def open_page(file: Path, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: noise.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on(
            "request", lambda asked: noise.append(asked.url[:200]) if remote(asked.url) else None
        )
        page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function(f"{SECTIONS}.every((section) => section.dataset.drawn)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert noise == []


SECTIONS = "[...document.querySelectorAll('section.results')]"


def remote(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.fixture
def page(ablated: Results, opened: Opened) -> Page:
    return opened(ablated.folder / "report.html")


def act(page: Page, action: Callable[[], Any]) -> None:
    """Do something to a control, and wait until the charts have followed."""
    drawn = f"Number({SECTIONS}.at(-1).dataset.drawn)"
    before = page.evaluate(drawn)
    action()
    page.wait_for_function(f"{drawn} > {before}")


def marks(page: Page) -> list[list[str]]:
    """What each chart shows: its points and bars, as Vega describes them."""
    return [
        chart.locator(
            "path[aria-roledescription=point], path[aria-roledescription=bar]"
        ).evaluate_all("found => found.map((mark) => mark.getAttribute('aria-label'))")
        for chart in page.locator(".chart").all()
    ]


def line(results: Results, unlearner: str, poison: float, budget: float) -> pd.Series:
    found = results.summary
    found = found[(found["unlearner"] == unlearner) & (found["budget"] == budget)]
    (own,) = found[found["poison_budget"] == poison].to_dict("records")
    return pd.Series(own)


def row(page: Page, model: str) -> dict[str, str]:
    """A model's line of the table, as shown."""
    table = page.get_by_role("region", name=": models")
    names = table.locator("thead th").all_inner_texts()
    (own,) = [
        cells
        for shown in table.locator("tbody tr:visible").all()
        if (cells := shown.locator("th, td").all_inner_texts())[0] == model
    ]
    return dict(zip(names, own, strict=True))


def findings(page: Page) -> list[str]:
    """What axe finds to be wrong, with all that is folded open."""
    if not AXE.is_file():
        pytest.fail(f"axe-core is not at {AXE}; `make browser` installs it")
    page.evaluate("document.querySelectorAll('details').forEach((of) => { of.open = true; })")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{of['impact']} {of['id']}: {of['nodes'][0]['html'][:200]}" for of in found]


def test_the_verdict_is_on_the_first_screen(page: Page) -> None:
    answer = page.locator(".answer").first
    assert re.search(r"none of 2 removed the Gaussian poisons", answer.inner_text())
    assert all(name in answer.inner_text() for name in ("GD", "SCRUB"))
    box = answer.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 900
    verdicts = page.locator(".words li:visible .verdict").all_inner_texts()
    assert len(verdicts) == 2
    for told in verdicts:  # a sign and words, beside the colour
        assert re.fullmatch(r"(✗ NOT REMOVED|✓ REMOVED|\? INCONCLUSIVE)", told)


def test_hiding_an_unlearner_takes_it_from_words_table_and_every_chart(page: Page) -> None:
    before = marks(page)
    box = page.get_by_label("GD", exact=True)
    act(page, box.uncheck)
    assert page.locator("[data-model=GD]:visible").count() == 0
    assert page.locator(".words li:visible").count() == 1
    assert page.locator(".chart svg text", has_text=re.compile("^GD$")).count() == 0
    for old, new in zip(before, marks(page), strict=True):
        assert sorted(new) == sorted(mark for mark in old if "model: GD" not in mark)
    assert sum("model: GD" in mark for mark in sum(before, [])) >= 7  # in all seven but histograms
    act(page, box.check)
    assert list(map(sorted, marks(page))) == list(map(sorted, before))
    assert row(page, "GD")["seeds"] == "1"


def test_any_choice_of_models_leaves_sound_charts(page: Page) -> None:
    boxes = page.locator("input[name=unlearner]").all()
    for box in boxes:
        act(page, box.uncheck)
    assert page.locator("tbody tr[data-model]:visible").count() == 0
    assert page.locator("svg:visible").count() == 0
    for box in boxes:
        act(page, box.check)
        shown = page.locator("input[name=unlearner]:checked").count()
        assert len(marks(page)[0]) == shown
    for chart in page.locator(".chart svg").all():
        assert chart.evaluate("svg => Number.isFinite(svg.viewBox.baseVal.height)")


def test_the_slider_moves_by_keyboard_and_all_follows(page: Page, ablated: Results) -> None:
    slider = page.get_by_role("slider", name="Compute budget")
    assert slider.get_attribute("aria-valuetext") == "50 % of training"
    for key, budget in (("ArrowLeft", 0.25), ("ArrowRight", 0.5)):
        slider.focus()
        act(page, lambda key=key: page.keyboard.press(key))
        said = f"{100 * budget:g} % of training"
        assert page.locator("output[name=budget]").inner_text() == said
        assert slider.get_attribute("aria-valuetext") == said
        of = line(ablated, "gd", 0.2, budget)
        shown = row(page, "GD")
        assert shown["spent"] == f"{of['spent']:.1%}"
        assert shown["compute"] == f"{100 * budget:g} %"
        assert shown["rank score"].startswith(f"{of['rank_dependence']:.3f}")
        (words,) = page.locator(".words li[data-model=GD]:visible").all_inner_texts()
        assert f"{of['spent']:.1%} of the training's compute" in words
        assert f"test accuracy {of['test_accuracy']:.3f}" in words
        (point,) = [mark for mark in marks(page)[0] if "model: GD" in mark]
        assert f"compute budget: {budget:.1%}" in point
        assert value(point, "dependence, GUS") == pytest.approx(of["gus_dependence"], abs=1e-5)


def value(mark: str, name: str) -> float:
    found = re.search(rf"{name}: ([−\d.e]+)", mark)
    assert found is not None, mark
    return float(found[1].replace("−", "-"))


def test_another_forget_set_is_another_table_and_other_charts(page: Page, ablated: Results) -> None:
    act(page, lambda: page.get_by_role("combobox", name="Forget set").select_option("0.1"))
    of = line(ablated, "scrub", 0.1, 0.5)
    assert row(page, "SCRUB")["poison"] == "10 %"
    assert row(page, "SCRUB")["GUS"].startswith(f"{of['gus_dependence']:.3f}")
    (point,) = [mark for mark in marks(page)[0] if "model: SCRUB" in mark]
    assert value(point, "dependence, GUS") == pytest.approx(of["gus_dependence"], abs=1e-5)


def test_the_histogram_is_of_the_chosen_model(page: Page, ablated: Results) -> None:
    choice = page.get_by_role("combobox", name="Model")
    act(page, lambda: choice.select_option("SCRUB"))
    scores = ablated.scores_of(0.2, line(ablated, "scrub", 0.2, 0.5))["gus"]
    density, _ = np.histogram(scores.clip(-5, 5), 40, (-5, 5), density=True)
    bars = page.locator(".chart", has=page.locator("text='SCRUB'")).locator("path[aria-label^=GUS]")
    labels = [str(bar.get_attribute("aria-label")) for bar in bars.all()]
    assert np.allclose([value(label, "density") for label in labels], density, atol=1e-4)
    act(page, page.get_by_label("SCRUB", exact=True).uncheck)
    assert choice.input_value() == "no unlearning"  # what is hidden is not left standing
    assert choice.locator("option", has_text="SCRUB").is_disabled()


def test_a_mark_tells_its_numbers_on_hover(page: Page, ablated: Results) -> None:
    page.locator(".chart").nth(1).locator("path[aria-label*='model: GD;']").hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    lines = tooltip.locator("tr").all()
    told = {
        one.locator("td").first.inner_text(): one.locator("td").last.inner_text() for one in lines
    }
    of = line(ablated, "gd", 0.2, 0.5)
    assert told["model"] == "GD"
    assert told["verdict"] == of["verdict"]
    assert told["dependence"] == f"{of['rank_dependence']:.3f}".replace("-", "−")
    assert told["test accuracy"] == f"{of['test_accuracy']:.3f}"


def test_models_differ_by_shape_and_dash_and_verdicts_by_shape(page: Page) -> None:
    def looks(chart: int, kind: str, attribute: str) -> list[str]:
        found = page.locator(f".chart >> nth={chart}").locator(f"[aria-roledescription='{kind}']")
        return found.evaluate_all(f"found => found.map((of) => of.getAttribute('{attribute}'))")

    assert len(set(looks(2, "point", "d"))) == 4
    assert len(set(looks(4, "line mark", "stroke-dasharray"))) == 4
    verdicts = [re.findall("verdict: ([A-Z ]+)", mark)[0] for mark in marks(page)[1]]
    assert len(set(verdicts)) == len(set(zip(verdicts, looks(1, "point", "d"), strict=True)))


WHITE, BLACK = "rgb(255, 255, 255)", "rgb(20, 22, 26)"


def stands_on(page: Page, colour: str) -> None:
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor === '{colour}'")


def test_the_theme_follows_the_system_until_the_button_is_pressed(
    ablated: Results, opened: Opened
) -> None:
    page = opened(ablated.folder / "report.html", **DARK)
    stands_on(page, BLACK)
    page.get_by_role("button", name="Switch to light colours").click()
    stands_on(page, WHITE)
    page.get_by_role("button", name="Switch to dark colours").press("Enter")
    stands_on(page, BLACK)
    page.emulate_media(color_scheme="light")
    stands_on(page, WHITE)


@pytest.mark.parametrize("options", [{}, DARK, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing(options: dict[str, Any], ablated: Results, opened: Opened) -> None:
    assert findings(opened(ablated.folder / "report.html", **options)) == []


def test_axe_finds_what_is_wrong(page: Page) -> None:
    page.evaluate(
        "document.querySelector('input[type=range]').parentElement.replaceWith("
        "document.querySelector('input[type=range]'))"
    )
    assert [found for found in findings(page) if "critical label" in found]


def test_a_phone_needs_no_sideways_scroll(ablated: Results, opened: Opened) -> None:
    page = opened(ablated.folder / "report.html", **PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((of) => { of.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("button, input, select, summary, a, .chart svg").all():
        inside(control, 360)
    page.get_by_role("slider").focus()
    act(page, lambda: page.keyboard.press("Home"))
    assert page.locator("output[name=budget]").inner_text() == "25 % of training"


def inside(shown: Locator, width: int) -> None:
    shown.scroll_into_view_if_needed()
    box = shown.bounding_box()
    assert box is not None, shown
    assert box["x"] >= 0, shown
    assert box["x"] + box["width"] <= width, shown


def test_charts_take_the_width_that_there_is(page: Page) -> None:
    for width in (1200, 360, 800):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            "[...document.querySelectorAll('.chart svg')].every((svg) =>"
            " Math.abs(svg.getBoundingClientRect().width - svg.parentElement.clientWidth) < 2"
            " && Math.abs(svg.getBoundingClientRect().width - svg.viewBox.baseVal.width) < 2)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_every_control(page: Page) -> None:
    reached = []
    while "theme" not in reached[1:] and len(reached) < 100:  # it goes round
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(({ id, name, value, tagName: tag, innerText: text }) =>"
                " id || (tag === 'INPUT' && name === 'unlearner' ? value : name) || text || tag)"
                "(document.activeElement)"
            )
        )
    controls = ["theme", "no unlearning", "retrain (full)", "GD", "SCRUB", "budget", "poison"]
    assert reached[: len(controls)] == controls
    assert reached.count("model") == 1
    assert {"All rows (Parquet)", "Summary (CSV)"} <= set(reached)
    assert any(text.startswith("The paper's figures") for text in reached)
    box = page.get_by_label("GD", exact=True)
    box.focus()
    act(page, lambda: page.keyboard.press("Space"))
    assert page.locator("[data-model=GD]:visible").count() == 0


def test_print_is_light_unfolded_and_without_controls(ablated: Results, opened: Opened) -> None:
    page = opened(ablated.folder / "report.html", **DARK, viewport={"width": 680, "height": 900})
    page.emulate_media(media="print", color_scheme="dark")
    stands_on(page, WHITE)
    for control in (".controls", "#theme", ".downloads"):
        assert page.locator(f"{control}:visible").count() == 0
    assert "at 50 % compute and 20 % poison" in page.locator(".words li:visible").first.inner_text()
    folded = page.locator("details:not([open])")
    assert folded.count() == 2
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.count() == 0
    assert page.locator("figure.paper img:visible").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 680  # A4 less its margins
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.count() == 2
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) > 1


def test_names_stay_text(tiny_run: Results, opened: Opened, tmp_path: Path) -> None:
    evil = '</script><script>window.hacked=1</script>"><img src=x onerror=window.hacked=1>'
    told = {"unlearner": {"gd": evil}}
    recipe = tiny_run.recipe.model_copy(update={"name": evil, "description": evil})
    results = replace(
        tiny_run,
        rows=tiny_run.rows.replace(told),
        scores=tiny_run.scores.replace(told),
        recipe=recipe,
    )
    write_page(tmp_path / "page.html", evil, [(results, [])])
    page = opened(tmp_path / "page.html")
    assert page.get_by_role("heading", level=1).inner_text() == evil
    assert page.get_by_role("checkbox", name=evil).is_checked()
    assert evil in page.locator(".words").inner_text()
    page.locator(".chart").first.locator(f"path[aria-label*='model: {evil}']").hover()
    assert evil in page.locator("#vg-tooltip-element.visible").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_downloads_are_the_rows_and_the_figures(
    page: Page, ablated: Results, tmp_path: Path
) -> None:
    def saved(link: Locator) -> Path:
        with page.expect_download() as waiting:
            link.click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        return file

    rows = saved(page.get_by_role("link", name="All rows"))
    assert rows.name == "tiny-rows.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(rows), ablated.rows)
    summary = pd.read_csv(saved(page.get_by_role("link", name="Summary")))
    assert summary["verdict"].tolist() == ablated.summary["verdict"].tolist()
    page.locator("summary", has_text="The paper's figures").click()
    figures = ablated.folder / "figures"
    for kind in ("PNG", "PDF"):
        file = saved(page.get_by_role("link", name=kind).first)
        assert file.read_bytes() == (figures / file.name).read_bytes()


def test_sections_have_controls_of_their_own(
    tiny_run: Results, ablated: Results, opened: Opened, tmp_path: Path
) -> None:
    renamed = replace(ablated, recipe=ablated.recipe.model_copy(update={"name": "two"}))
    write_page(tmp_path / "page.html", "both", [(tiny_run, []), (renamed, [])])
    page = opened(tmp_path / "page.html")
    act(page, page.get_by_label("GD", exact=True).nth(1).uncheck)
    assert page.locator("#results-0 tr[data-model=GD]:visible").count() == 1
    assert page.locator("#results-1 tr[data-model=GD]:visible").count() == 0
    assert findings(page) == []


def test_a_hypothesis_has_a_page_too(opened: Opened, tmp_path: Path) -> None:
    done = study("hypothesis-orthogonality-small", "seeds=2", out=tmp_path / "study")
    page = opened(done.folder / "report.html", **PHONE)
    assert done.statement in page.locator(".answer").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert findings(page) == []


def test_without_scripts_all_but_the_charts_is_there(ablated: Results, opened: Opened) -> None:
    page = opened(ablated.folder / "report.html", java_script_enabled=False, **DARK)
    assert page.locator(".answer").first.is_visible()
    assert page.locator("noscript .warning").is_visible()
    assert page.locator(".controls:visible, .chart:visible, #theme:visible").count() == 0
    told = page.locator(".words li:visible").all_inner_texts()
    assert len(told) == len(ablated.summary.query("role == 'updated'")) == 8
    assert sum("GD at 25 % compute and 10 % poison" in one for one in told) == 1
    assert page.locator("tbody tr[data-model]:visible").count() == len(ablated.summary)
    page.locator("summary", has_text="The paper's figures").click()
    assert page.locator("figure.paper img").first.is_visible()
