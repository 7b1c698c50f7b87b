"""Run a hypothesis of why unlearning fails: settings → rows, curves, figure, and a plain statement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marshtest.data.load import load, tensors_of
from marshtest.data.samples import Dataset
from marshtest.experiment.recipe_data import content, data_of
from marshtest.experiment.row_file import FILE, read_file, write_rows
from marshtest.hypotheses.given import Given
from marshtest.hypotheses.shift import Shift
from marshtest.hypotheses.studied import CURVES, Study
from marshtest.hypotheses.table import parse_hypothesis
from marshtest.plumbing.device import exact_float32, pick_device
from marshtest.plumbing.errors import NOTE
from marshtest.plumbing.progress import Progress, part, silent
from marshtest.plumbing.whole_files import alone, write
from marshtest.plumbing.yaml_files import read_yaml
from marshtest.reporting.write import write_study
from marshtest.sweeps.run_folder import DONE, is_done, own_folder, refuse_anothers
from marshtest.sweeps.worker import packed


@exact_float32()
def study(
    source: str | Path | Mapping[str, Any],
    *overrides: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    progress: Progress = silent,
) -> Study:
    """Run a hypothesis and write rows, curves, summary, figure and page into its folder.

    Args:
        source: name of a shipped hypothesis, path of a YAML file, or a mapping.
        overrides: "key.sub=value".
        out: the folder; default `runs/<name>-<hash>`.
        data: features in memory [N, F], standardised, instead of those that `data` names.
        progress: told each stage that starts and the share that is done.

    Raises:
        MarshtestError: bad input, in one line.
    """
    settings = parse_hypothesis(read_yaml(source, "hypotheses", *overrides))
    folder = Path(out) if out is not None else Path("runs") / f"{settings.name}-{settings.hash}"
    # Poisons of a file are not in the settings: with others in it, the study is another.
    identity: dict[str, Any] = {"recipe": settings.hash, "data": None}
    if isinstance(settings, Shift):
        poisons = {n: s.digest() for n, s in settings.sets.items() if isinstance(s, Given)}
        identity |= {"data": content(settings.data, data), "poisons": poisons}
    refuse_anothers(folder, settings, identity)
    if is_done(folder):
        progress(1.0, f"{NOTE}{folder}: {DONE}")
    else:
        with alone(folder):
            about = own_folder(folder, settings, identity)
            if isinstance(settings, Shift):
                features = data or _features(settings, folder, progress)
                rows, curves = settings.run(progress, features.to(pick_device(settings.device)))
            else:
                rows, curves = settings.run(progress)
            write(curves, folder / CURVES)  # before the rows, by which a folder counts as done
            write_rows(rows, folder / FILE, {settings.hash: about}, "hypothesis")
    finished = Study.of(read_file(folder))
    write_study(finished)
    return finished


def _features(settings: Shift, folder: Path, progress: Progress) -> Dataset:
    """The features of the settings' data; kept in the folder if a network was trained for them."""
    if settings.data.features is None:
        return data_of(settings.data, settings.device)
    # Kept, since the network takes most of a study's time, and an interrupted one begins anew.
    file = folder / "features.safetensors"
    if not file.exists():
        data = data_of(
            settings.data,
            settings.device,
            part(progress, 0.0, 0.0, "train the network of the features"),
        )
        write(packed(tensors_of(data)), file)
    return load("tensors", str(file))
