"""The certificate as one A4 page of PDF, with the JSON that is checked as its attachment."""

from collections.abc import Iterator
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from marshtest.kit.certificates.certificate import Certificate
from marshtest.kit.certificates.page import Line, Page
from marshtest.plumbing.errors import MarshtestError

MARGIN = 14  # mm
NAMES = 31  # mm, the column of the facts' names
WIDTHS = (66, 30, 54, 14, 18)  # mm, the columns of the models' table
SIZES = (8.0, 7.5, 7.0, 6.5)  # points, the largest in which all fits is taken
MODELS = (12, 8, 5, 3, 2)  # then so many models are shown
INK, SOFT, RULE = (27, 31, 36), (87, 96, 106), (208, 215, 222)
COLOURS = {  # edge and ground of the answer's box
    "REMOVED": ((26, 127, 55), (238, 251, 241)),
    "NOT REMOVED": ((207, 34, 46), (255, 241, 240)),
    "INCONCLUSIVE": ((154, 103, 0), (255, 248, 229)),
}


def refuse_missing(path: Path) -> None:
    """Raise if `fpdf2` is not installed."""
    try:
        import fpdf  # noqa: F401
    except ImportError as error:
        raise MarshtestError(
            f"{path}: a PDF needs fpdf2 ({error}). Install it with `pip install "
            "'marshtest[certificate]'`, or choose .html."
        ) from None


def pdf(certificate: Certificate) -> bytes:
    """The page; the same bytes for the same certificate and the same versions of the libraries."""
    refuse_missing(Path("certificate.pdf"))
    page = Page.of(certificate)
    for most, size in product((len(page.models), *MODELS), SIZES):
        drawn = _Sheet(certificate, size)
        drawn.draw(page.fewer(most))
        if drawn.fits:
            break
    return drawn.output()


class _Sheet:
    """A sheet of A4 on which the page is drawn from top to bottom."""

    def __init__(self, certificate: Certificate, size: float) -> None:
        import matplotlib
        from fpdf import FPDF

        self.size, self.height = size, size * 0.46  # points, and mm a line
        self.pdf: Any = FPDF(format="A4")
        self.pdf.set_compression(
            False
        )  # libraries compress differently, and the page is compared by its bytes
        date = datetime.fromisoformat(certificate.parsed.date)
        self.pdf.set_creation_date(date)
        self.pdf.set_title("Certificate of an unlearning audit")
        self.pdf.set_creator(f"marshtest {certificate.parsed.versions['marshtest']}")
        self.pdf.set_lang("en")
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.pdf.add_font("Sans", "", fonts / "DejaVuSans.ttf")
        self.pdf.add_font("Sans", "B", fonts / "DejaVuSans-Bold.ttf")
        self.pdf.add_font("Mono", "", fonts / "DejaVuSansMono.ttf")
        self.pdf.set_margins(MARGIN, MARGIN)
        self.pdf.set_auto_page_break(True, MARGIN - 4)
        self.pdf.embed_file(
            bytes=certificate.to_json().encode(),
            basename="certificate.json",
            desc="What `marshtest verify` checks",
        )
        self.pdf.add_page()

    @property
    def fits(self) -> bool:
        """Whether all stands on one page."""
        return bool(self.pdf.page_no() == 1)

    def output(self) -> bytes:
        """The file's bytes."""
        return bytes(self.pdf.output())

    def draw(self, page: Page) -> None:
        """Draw the page."""
        self._text("Certificate of an unlearning audit", "B", 2.0)
        self._text(page.issued, colour=SOFT)
        self._gap()
        self._answer(page.answer, page.meaning)
        self._text(page.method)
        self._gap()
        self._rows(page.facts)
        self._heading("Models")
        self._cells(("model", "verdict", "left of the dose", "ε ≥", "usable"), "B")
        for line in page.models:
            self._model(line)
        self._text(page.legend, scale=0.92, colour=SOFT)
        self._heading("What it does not prove")
        for clause in page.unproven:
            self._row("•", clause, 4)
        self._heading("How to check it again")
        self._text(page.again)
        self._heading("Seals")
        self._rows(page.seals)

    def _answer(self, answer: str, meaning: str) -> None:
        edge, ground = COLOURS[answer]
        top, width, height = self.pdf.get_y(), self.pdf.epw, 15
        self.pdf.set_fill_color(*ground)
        self.pdf.rect(MARGIN, top, width, height, "F")
        self.pdf.set_fill_color(*edge)
        self.pdf.rect(MARGIN, top, 2, height, "F")
        self.pdf.set_xy(MARGIN + 5, top + 2)
        self._text(answer, "B", 14 / self.size, indent=5)
        self._text(meaning, scale=8.5 / self.size, indent=5)
        self.pdf.set_y(top + height + 2.5)

    def _model(self, line: Line) -> None:
        y = self.pdf.get_y()
        self.pdf.set_draw_color(*RULE)
        self.pdf.line(MARGIN, y, MARGIN + self.pdf.epw, y)
        self._cells((line.model, line.verdict, line.left, line.epsilon, line.usable))
        self._text(line.digest, family="Mono", scale=0.85, colour=SOFT)
        if line.reasons:
            self._text(line.reasons, scale=0.92)

    def _cells(self, texts: tuple[str, ...], style: str = "") -> None:
        """A row of the models' table, as high as its highest cell."""
        top, left, bottom = self.pdf.get_y(), MARGIN, 0.0
        for text, width in zip(texts, WIDTHS, strict=True):
            self.pdf.set_xy(left, top)
            self._text(text, style, width=width)
            bottom, left = max(bottom, self.pdf.get_y()), left + width
        self.pdf.set_y(bottom)

    def _rows(self, rows: tuple[tuple[str, str], ...]) -> None:
        for name, text in rows:
            self._row(name, text, NAMES)

    def _row(self, name: str, text: str, width: float) -> None:
        """A name, and its text beside it."""
        y = self.pdf.get_y()
        self._text(name, "B", width=width)
        name_end = self.pdf.get_y()
        self.pdf.set_xy(MARGIN + width, y)
        self._text(text, indent=width)
        self.pdf.set_y(max(name_end, self.pdf.get_y()) + 0.4)

    def _heading(self, text: str) -> None:
        self._gap()
        self._text(text, "B", 1.15)

    def _gap(self) -> None:
        self.pdf.set_y(self.pdf.get_y() + 1.6)

    def _text(
        self,
        text: str,
        style: str = "",
        scale: float = 1.0,
        *,
        family: str = "Sans",
        colour: tuple[int, int, int] = INK,
        indent: float = 0,
        width: float = 0,
    ) -> None:
        """A text from the current place on, broken into lines, and the place set below it."""
        self.pdf.set_font(family, style, self.size * scale)
        self.pdf.set_text_color(*colour)
        if indent:
            self.pdf.set_x(MARGIN + indent)
        spelt = "".join(self._spelt(text))
        self.pdf.multi_cell(
            width, self.height * scale, spelt, align="L", new_x="LMARGIN", new_y="NEXT"
        )

    def _spelt(self, text: str) -> Iterator[str]:
        """The characters, and for each that the font lacks its number."""
        glyphs = self.pdf.current_font.cmap
        return (one if one == "\n" or ord(one) in glyphs else f"\\u{ord(one):04x}" for one in text)
