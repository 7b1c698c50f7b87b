"""The transcript of a page's walk-through, for docs/reproduce/PAGE/transcript.json.

    python benchmarks/walkthrough.py [first-hour | audit | audit-text | audit-tables | certificate]

The shell blocks of its section are run one after the other in an empty folder, as a reader would who has a
clone there, and what they print is kept; of docs/certificate.md also the certificate, and a picture of it
by `pdftoppm` (poppler). The Python that docs/first-hour.md has its reader save lies there as mine.py. Under
ten minutes on two cores, without a network.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "reproduce"))

from walkthrough import commands, modules, transcript  # noqa: E402

# 1 and 3 are verdicts; whatever else is not 0 ends the block.
STRICT = """
trap 'case $? in 1|3) ;; *) exit 9 ;; esac' ERR
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"""


KEPT = {"certificate": ("audit.json", "auditor.pem")}  # of a page's folder, beside its transcript


def main(page: str = "audit-text") -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        if page == "first-hour":
            (Path(folder) / "mine.py").write_text(modules(page)[0])
        for block in commands(page):
            print(block, flush=True)
            ran = subprocess.run(
                ["bash", "-c", STRICT + block],
                cwd=folder,
                env=os.environ | quiet | {"PATH": path},
                stdout=subprocess.PIPE,
                text=True,
            )
            print(ran.stdout, flush=True)
            if ran.returncode == 9:
                raise SystemExit(f"failed: {block}")
            blocks.append({"commands": block, "said": ran.stdout})
        transcript(page).parent.mkdir(exist_ok=True)
        for name in KEPT.get(page, ()):
            shutil.copy(Path(folder) / name, transcript(page).parent)
        if page == "certificate":
            picture = ["pdftoppm", "-r", "100", "-png", "-singlefile", "audit.pdf"]
            subprocess.run([*picture, page], cwd=folder, check=True)
            with Image.open(Path(folder) / f"{page}.png") as image:
                image.quantize(32).save(ROOT / "docs" / f"{page}.png", optimize=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (used.ru_utime + used.ru_stime) / 60  # of one core
    content = {"processor_minutes": round(minutes, 1), "blocks": blocks}
    transcript(page).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
