"""Images in files: what a sample of one is, and how it is written with noise.

A dosed image is a PNG of its source's mode. Transparency is kept without noise, and so is what tells how
pixels are to be shown: the turn in the EXIF data (the pixels are not turned), colour profile and gamma.
What only describes is not kept: a thumbnail would show the image without its noise.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from marshtest.kit.layouts.base import Value, reading
from marshtest.plumbing.errors import MarshtestError

FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "WEBP",
    "TIFF",
    "GIF",
    "PPM",
)  # no other reader runs: EPS is a program
NATIVE = ("L", "LA", "RGB", "RGBA")  # modes in which each value can take noise


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    Attributes:
        value: [1, H, W] if it is grey, else [3, H, W]; uint8.
        alpha: [1, H, W], its transparency, or [0, H, W].
        where: its place.
        mode: of its file, as Pillow calls it.
        kept: options of Pillow's PNG writer that keep what is no pixel.
    """

    value: Value
    alpha: Value
    where: str
    mode: str
    kept: dict[str, Any]

    @classmethod
    def read(cls, source: Path | BytesIO, where: str) -> "Picture":
        """Decode an image; transparency is put aside, as `convert("RGB")` does.

        Raises:
            MarshtestError: no image, a damaged one, several frames, more than 8 bits a value, or more
                pixels than Pillow takes for sane.
        """
        with reading(where), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                mode = _mode(image, where)
                image.load()
                plain = (
                    image if mode in NATIVE else image.convert("L" if mode[0] in "1L" else "RGB")
                )
                pixels = np.atleast_3d(np.array(plain)).transpose(2, 0, 1)  # [C, H, W]
                kept = _kept(image, mode)
        colours = 1 if plain.mode[0] == "L" else 3
        return cls(np.ascontiguousarray(pixels[:colours]), pixels[colours:], where, mode, kept)

    def png(self, value: Value, *, hide: bool = False) -> bytes:
        """The image as PNG with `value` in place of its own.

        Args:
            value: like `self.value`.
            hide: write without compression, so that all images of one shape have one size, and write
                what has another mode as grey or RGB.

        Raises:
            MarshtestError: `hide` is off, and the image's mode cannot hold noise.
        """
        if self.mode not in NATIVE and not hide:
            raise MarshtestError(
                f"{self.where}: has mode {self.mode}, which cannot hold noise; a dosed image would have "
                "another mode, and be known by it. Convert the data to RGB or grey (L) first, or have "
                "all images written anew (--hide)."
            )
        pixels = np.concatenate([value, self.alpha]).transpose(1, 2, 0)
        made = Image.fromarray(
            np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        )
        buffer = BytesIO()
        made.save(buffer, "PNG", compress_level=0 if hide else -1, **self.kept)
        return buffer.getvalue()


def _mode(image: Image.Image, where: str) -> str:
    """The mode of the file: Pillow's, but with the depth where it is not 8 bits."""
    if (
        image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    ):  # MPO: a photograph and previews
        raise MarshtestError(f"{where}: holds several images. Save one.")
    coding = str(getattr(image, "tile", ""))  # such as 'RGB;16B', which Pillow would cut to 8 bits
    if image.mode[0] in "IF" or ";16" in coding:
        raise MarshtestError(f"{where}: has more than 8 bits a value. Save it with 8.")
    few = next((bits for bits in (";2", ";4") if f"L{bits}'" in coding), "")
    return image.mode + few


def _kept(image: Image.Image, mode: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    turn = image.getexif().get(ExifTags.Base.Orientation)
    if turn in range(2, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turn
        kept["exif"] = exif
    if mode not in NATIVE:
        return kept
    kept |= {n: image.info[n] for n in ("icc_profile", "transparency") if n in image.info}
    if gamma := image.info.get("gamma"):
        kept["pnginfo"] = PngInfo()
        kept["pnginfo"].add(b"gAMA", round(gamma * 100_000).to_bytes(4, "big"))
    return kept
