"""The card of one unlearner as a table, a page and a picture."""

import io
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marshtest.metrics.membership_verdict import FAILS, PASSES, UNSETTLED
from marshtest.plumbing.whole_files import write
from marshtest.reporting.figures import BLUE, GREY, STYLE
from marshtest.reporting.page import SIGNS, data_uri
from marshtest.reporting.tables import (
    NAMES,
    STANDINGS,
    as_drawn,
    as_latex,
    as_markdown,
    number,
    plus_minus,
)
from marshtest.reporting.templates import template
from marshtest.results.card import Card, Line
from marshtest.results.line_to_beat import TUNED

# Dark enough for text on white; the sign and the word say the same as the colour.
COLOURS = {
    "NOT REMOVED": "#A63D00",
    "REMOVED": "#00664A",
    "INCONCLUSIVE": "#565656",
    "–": "#565656",
}
SHADE: dict[str, Any] = {"color": BLUE, "alpha": 0.12, "lw": 0}
PLAIN: dict[str, Any] = {"color": "#9AA3AC", "lw": 0.8}
DASHED: dict[str, Any] = {"color": "black", "lw": 1.6, "ls": (0, (2, 1))}
OWN: dict[str, Any] = {"ms": 7, "lw": 2, "capsize": 3, "zorder": 5}
FARTHEST = 1.3  # share left that the picture still shows
EDGE = FARTHEST - 0.05  # where a point stands that lies beyond
# Columns that stand in the first part of the table in LaTeX, and how many beside the attack in another.
FIRST = ("attack", "seeds", "verdict", "left", "accuracy", "cost", "usable", "spent", "rank")
BESIDE = 5
PASSING = {PASSES: "✓", FAILS: "✗", UNSETTLED: "?"}
HIGH, LOW = 0.52, 0.42  # inches of the picture's line, with and without what stands below it
LEGEND = (
    "Left: share of the poison's effect that is left after unlearning, by the score that shows most, ± its "
    "standard error; below 0 where the effect is turned round. Accuracy: on the test set, mean ± s.d. over "
    "seeds; cost: accuracy lost against full retraining; usable: whether that is surely small. Spent: "
    "share of the initial training's compute. The newcomer is judged by itself, without a correction for "
    "the unlearners it is compared with."
)
RANKS = (
    " Rank: one more than the number of known unlearners that are surely better, by what is left or "
    "accuracy lost, whichever is more. Tuned retraining: the newcomer beats it, ties or loses in "
    "the same compute, by paired tests over the seeds that both have."
)
CARE = (
    " After-care: verdicts once the updated model was rounded or trained on; the worst one counts."
)
MEMBERS = (
    " {}: whether the unlearner passes that evaluation by membership inference, which asks for what "
    "retraining leaves."
)


def card_table(card: Card) -> pd.DataFrame:
    """The card as a table of text, one line an attack; a column of which no line tells is left out."""
    several = len({line.recipe for line in card.lines}) < len(card.lines)
    table = pd.DataFrame([_cells(line, several=several) for line in card.lines])
    return table.fillna("–").loc[:, (table.fillna("–") != "–").any()]


def _cells(line: Line, *, several: bool) -> dict[str, str]:
    at = f", {100 * line.poison_budget:g}% poison" if several else ""
    left = "–" if math.isnan(line.left) else f"{line.left:.0%}"
    error = "" if math.isnan(line.left_error) else f"±{line.left_error:.0%}"
    return {
        "attack": f"{line.attack}{at}",
        "verdict": line.verdict,
        "left": left + error,
        "accuracy": plus_minus(line.accuracy, line.accuracy_sd, 3),
        "cost": number(line.cost, 3, "+"),
        "usable": line.usable,
        "spent": "–" if math.isnan(line.spent) else f"{line.spent:.1%}",
        "rank": "–" if line.rank is None else f"{line.rank} of {line.ranked}",
        "tuned retraining": STANDINGS.get(line.standing, line.standing),
        **line.membership,
        "after-care": "; ".join(f"{k}: {v}" for k, v in line.after_care.items()) or "–",
        "seeds": str(line.seeds),
    }


def card_legend(card: Card) -> str:
    """The meaning of the card's columns."""
    text = LEGEND
    text += RANKS if card.rank is not None or any(line.rank for line in card.lines) else ""
    forms = dict.fromkeys(form for line in card.lines for form in line.membership)
    text += MEMBERS.format(", ".join(forms)) if forms else ""
    return text + (CARE if any(line.after_care for line in card.lines) else "")


def against(card: Card) -> list[str]:
    """What speaks against REMOVED, a sentence an attack; and what is lacking."""
    said = [
        f"{line.attack}, {line.verdict}: {line.reasons}." for line in card.lines if line.reasons
    ]
    return [*said, *card.said]


def write_card(card: Card, folder: Path) -> list[Path]:
    """Write card.json, card.md, card.tex, card.html, card.svg and card.png; their paths."""
    table, legend = card_table(card), card_legend(card)
    pictures = card_picture(card)
    notes = "".join(f"- {line}\n" for line in against(card))
    picture = f"![{card.headline}](card.png)"
    parts = [f"# {card.suite}: {card.unlearner}", f"**{card.headline}**", as_markdown(table)]
    texts = {
        "json": json.dumps(card.as_json(), indent=2, ensure_ascii=False) + "\n",
        "md": "\n\n".join([*parts, picture, *filter(None, [notes]), legend]) + "\n",
        "tex": _in_latex(card, table, f"{card.headline} {legend}"),
        "html": _page(card, table, legend, pictures["svg"]),
    }
    files = {ending: text.encode() for ending, text in texts.items()} | pictures
    for ending, content in files.items():
        write(content, folder / f"card.{ending}")
    return [folder / f"card.{ending}" for ending in files]


def _in_latex(card: Card, table: pd.DataFrame, caption: str) -> str:
    """The table in LaTeX: in parts, and a column a state, or no page would be wide enough."""
    states = pd.DataFrame([dict(line.after_care) for line in card.lines]).fillna("–")
    whole = table.drop(columns="after-care", errors="ignore").join(states)
    whole = whole.rename(columns={"tuned retraining": "vs. tuned"})
    first = [column for column in FIRST if column in whole]
    rest = [column for column in whole if column not in FIRST]
    parts = [rest[at : at + BESIDE] for at in range(0, len(rest), BESIDE)]
    return as_latex(whole[first], caption, *(whole[["attack", *part]] for part in parts))


def _page(card: Card, table: pd.DataFrame, legend: str, svg: bytes) -> str:
    css = (resources.files("marshtest.reporting") / "page.css").read_text()
    return template("card.html.j2").render(
        card=card,
        table=table,
        legend=legend,
        against=against(card),
        signs=SIGNS,
        css=css,
        picture=data_uri(svg, "image/svg+xml"),
    )


# The picture


def card_picture(card: Card) -> dict[str, bytes]:
    """The card as a picture, by its files' endings: legible at a width of 600 pixels."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "marshtest"}):
        figure = _drawn(card)
        return {
            "svg": _bytes(figure, format="svg", metadata={"Date": None}),
            "png": _bytes(figure, format="png", dpi=200, metadata={"Software": None}),
        }


def _bytes(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()


def _drawn(card: Card) -> Figure:
    count = len(card.lines)
    below = any(line.membership or line.after_care for line in card.lines)
    each, foot = (HIGH, 0.92) if below else (LOW, 0.77)
    height = foot + 0.83 + each * count  # inches
    figure = Figure(figsize=(6.4, height))
    panel = figure.add_axes((0.27, foot / height, 0.3, each * count / height))
    for place, line in enumerate(card.lines):
        _draw_line(panel, line, place)
        _write_line(panel, line, place - (0.14 if below else 0))
        _write_below(panel, line, place + 0.24)
    _write_heads(panel, ranked=any(line.rank for line in card.lines))
    panel.set(xlim=(-0.05, FARTHEST), ylim=(count - 0.5, -0.5))
    panel.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.set_xlabel("of the poison's effect left", fontsize=8.5)
    top = height - 0.12
    figure.text(0.015, top / height, _shortened(card.unlearner), size=13, weight="bold", va="top")
    verdict = f"{SIGNS.get(card.verdict, '')} {card.verdict}{'' if card.agrees else ' at worst'}"
    answer: dict[str, Any] = {
        "size": 11,
        "weight": "bold",
        "ha": "right",
        "color": COLOURS[card.verdict],
    }
    figure.text(0.985, top / height, verdict, va="top", **answer)
    figure.text(0.015, (top - 0.27) / height, _under(card), size=8.5, va="top", color=GREY)
    figure.text(0.015, 0.03 / height, _foot(card), size=7.5, va="bottom", color=GREY)
    return figure


def _draw_line(panel: Axes, line: Line, place: int) -> None:
    """What each unlearner leaves of one attack's poison, the newcomer on top."""
    panel.fill_betweenx([place - 0.5, place + 0.5], -line.margin, line.margin, **SHADE)
    for name, left in line.known.items():
        if not math.isnan(left):
            at = min(left, FARTHEST)
            style = DASHED if name == TUNED else PLAIN
            panel.plot([at, at], [place - 0.3, place + 0.3], **style)
    if not math.isnan(line.left):
        # A share whose error is unknown has a mark without a bar.
        bar = None if math.isnan(line.left_error) else line.left_error
        beyond = abs(line.left) > EDGE
        at = min(abs(line.left), EDGE)
        mark = ">" if beyond else "o" if line.left >= 0 else "s"
        bar = None if beyond else bar
        panel.errorbar(at, place, xerr=bar, fmt=mark, color=COLOURS[line.verdict], **OWN)
    else:
        panel.text(0.5, place, "no effect before", ha="center", va="center", size=8, color=GREY)


def _write_line(panel: Axes, line: Line, place: float) -> None:
    """One attack in words and numbers, on either side of the panel."""
    sides: dict[str, Any] = {"transform": panel.get_yaxis_transform(), "va": "center", "size": 9}
    verdict = f"{SIGNS.get(line.verdict, '')} {line.verdict}"
    rank = "" if line.rank is None else f"{line.rank} of {line.ranked}"
    panel.text(-0.86, place, _shortened(line.attack, 24), **sides)
    panel.text(1.06, place, verdict, color=COLOURS[line.verdict], weight="bold", **sides)
    panel.text(1.93, place, number(-100 * line.cost, 1, "+"), ha="right", **sides)
    panel.text(2.37, place, rank, ha="right", **sides)


def _write_below(panel: Axes, line: Line, place: float) -> None:
    """What membership inference says of one attack, and the verdicts after care, each by a sign."""
    sides: dict[str, Any] = {
        "transform": panel.get_yaxis_transform(),
        "va": "center",
        "size": 7 if len(line.membership) < 3 else 6,
        "color": GREY,
    }
    names = {title: title.removesuffix(" MIA") for title in line.membership}
    passed = [f"{PASSING[answer]} {names[form]}" for form, answer in line.membership.items()]
    cared = [f"{SIGNS.get(answer, '–')} {state}" for state, answer in line.after_care.items()]
    panel.text(-0.86, place, "  ".join(passed), **sides)
    panel.text(1.06, place, "  ".join(cared), **sides)


def _write_heads(panel: Axes, *, ranked: bool) -> None:
    heads: dict[str, Any] = {
        "transform": panel.get_yaxis_transform(),
        "va": "center",
        "size": 8,
        "color": GREY,
    }
    panel.text(1.93, -0.72, "points", ha="right", **heads)
    if ranked:
        panel.text(2.37, -0.72, "rank", ha="right", **heads)


def _under(card: Card) -> str:
    """The line under the name."""
    removed = sum(line.verdict == "REMOVED" for line in card.lines)
    parts = [f"suite {card.suite}: removed in {removed} of {len(card.lines)} attacks"]
    parts.append({"yes": "usable", "no": "not usable"}.get(card.usable, "perhaps not usable"))
    if card.rank is not None:
        parts.append(f"rank {card.rank} of {card.ranked}")
    return ", ".join(parts)


def _foot(card: Card) -> str:
    """What the marks are."""
    marks = ["Shade: margin of REMOVED."]
    if any(line.left < 0 for line in card.lines):
        marks.append("Square: turned round.")
    if any(abs(line.left) > EDGE for line in card.lines):
        marks.append("Arrow: beyond.")
    if any(line.known for line in card.lines):
        marks.append("Grey: known unlearners.")
    if any(TUNED in line.known for line in card.lines):
        marks.append("Dashed: tuned retraining.")
    lines = [" ".join(marks)]
    lines.append("Points: test accuracy less that of full retraining, in percentage points.")
    below = []
    if any(line.membership for line in card.lines):
        below.append("Below an attack: membership inference (✓ passes, ✗ fails, ? unsettled).")
    if any(line.after_care for line in card.lines):
        below.append("Below a verdict: after-care.")
    return "\n".join([*lines, *filter(None, [" ".join(below)])])


def _shortened(text: str, most: int = 34) -> str:
    """A text that fits its place."""
    plain = as_drawn(NAMES.get(text, text))
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
