"""Images in files: the sample that one holds, and how it is written with noise.

A dosed image is a PNG of its source's mode. Transparency is kept without noise, and so is all that says how
pixels are to be shown: the turn in the EXIF data (the pixels are not turned), colour profile and gamma.
Other metadata are dropped: a thumbnail would show the image without its noise.
"""

import re
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

# No other reader of Pillow runs: EPS, for one, is a program.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
NATIVE = ("L", "LA", "RGB", "RGBA")  # modes in which a value is a brightness and can take noise


@dataclass(frozen=True)
class Picture:
    """The content of an image file."""

    value: Value  # [1, H, W] if it is grey, else [3, H, W]; uint8
    alpha: Value  # [1, H, W] transparency, or [0, H, W] if it has none
    where: str  # the place, for error messages
    mode: str  # mode of the file, as Pillow calls it
    options: dict[str, Any]  # options of Pillow's PNG writer, which keep what is not in the pixels

    @classmethod
    def read(cls, source: Path | BytesIO, where: str) -> "Picture":
        """Decode an image; transparency is put aside, as `convert("RGB")` does.

        Raises:
            MarshtestError: no image, a damaged one, several frames, more than 8 bits a value, or more
                pixels than Pillow's limit against decompression bombs.
        """
        with reading(where), warnings.catch_warnings():
            # Up to twice its limit, Pillow only warns of a bomb.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                mode = _mode(image, where)
                image.load()
                plain = (
                    image if mode in NATIVE else image.convert("L" if mode[0] in "1L" else "RGB")
                )
                pixels = np.atleast_3d(np.array(plain)).transpose(2, 0, 1)  # [C, H, W]
                options = _options(image, mode)
        colours = 1 if plain.mode[0] == "L" else 3
        return cls(np.ascontiguousarray(pixels[:colours]), pixels[colours:], where, mode, options)

    def png(self, value: Value, *, hide: bool = False) -> bytes:
        """The image as PNG with `value` in place of its own.

        `hide` writes without compression, so that all images of one shape have one size, and what has
        another mode as grey or RGB.

        Raises:
            MarshtestError: `hide` is off, and the image's mode cannot hold noise.
        """
        if self.mode not in NATIVE and not hide:
            raise MarshtestError(
                f"{self.where}: has mode {self.mode}, which cannot hold noise: a dosed image would have "
                "another mode, and stand out by it. Convert the data to RGB or grey (L) first, or have "
                "all images written anew (--hide)."
            )
        pixels = np.concatenate([value, self.alpha]).transpose(1, 2, 0)
        image = Image.fromarray(
            np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        )
        buffer = BytesIO()
        image.save(buffer, "PNG", compress_level=0 if hide else -1, **self.options)
        return buffer.getvalue()


def _mode(image: Image.Image, where: str) -> str:
    """Pillow's mode of the file, with the depth behind it if that is below 8 bits, such as "L;4"."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:  # MPO is a JPEG photograph with previews behind it
        raise MarshtestError(f"{where}: holds several images ({frames}). Save one of them.")
    coding = str(getattr(image, "tile", ""))  # such as 'RGB;16B', which Pillow would cut to 8 bits
    # A PPM says its largest value; where that is not 255, Pillow names it behind the mode and stretches.
    stretched = image.format == "PPM" and re.search(r"'(RGB|L)', \d+\)", coding)
    if image.mode[0] in "IF" or ";16" in coding or stretched:
        raise MarshtestError(
            f"{where}: has more than 8 bits a value, or fewer in a PPM. Save it with 8 bits."
        )
    depth = next((bits for bits in (";2", ";4") if f"L{bits}'" in coding), "")
    return image.mode + depth


def _options(image: Image.Image, mode: str) -> dict[str, Any]:
    """Options of Pillow's PNG writer that keep how an image is to be shown."""
    options: dict[str, Any] = {}
    turn = image.getexif().get(ExifTags.Base.Orientation)
    if turn in range(2, 9):  # 1 is upright
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turn
        options["exif"] = exif
    if mode not in NATIVE:  # converted, so that these no longer hold
        return options
    options |= {n: image.info[n] for n in ("icc_profile", "transparency") if n in image.info}
    if gamma := image.info.get("gamma"):
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add(b"gAMA", round(gamma * 100_000).to_bytes(4, "big"))
    return options
