"""Write scikit-learn's digits as 32 × 32 PNG files, one folder a class: python digits.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    folder = Path(sys.argv[1]) / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = Image.fromarray((image * (255 / 16)).astype(np.uint8))
    pixels.resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{number:04}.png")
