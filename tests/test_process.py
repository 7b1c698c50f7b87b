"""Whatever a foreign model does, only a verdict is a verdict, and nothing of ours is touched."""

import gc
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import vendors
from asking import LABELS, VALUES, opened
from conftest import wait_until_it_hangs

from marshtest.kit.black_box import BlackBox, command_call, read_answers
from marshtest.kit.process import ended
from marshtest.plumbing.errors import MarshtestError


def test_a_command_is_waited_for_and_not_what_it_leaves_behind(tmp_path: Path) -> None:
    answers = "import sys, numpy; numpy.save(sys.argv[1], numpy.zeros(2))"
    script = f"sleep 100 & echo $! > {tmp_path}/pid; exec {sys.executable} -c '{answers}' $1"
    spec = f'cmd:sh -c "{script}" {{inputs}} {{outputs}}'
    call = command_call("cmd:", spec.removeprefix("cmd:"))
    call(tmp_path / "in.npz", tmp_path / "out.npy")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # fails if it is over
    assert len(np.load(tmp_path / "out.npy")) == 2


def test_what_a_command_prints_stays_out_of_memory_and_of_the_line(tmp_path: Path) -> None:
    shouts = "import sys; sys.stderr.write('x' * 3_000_000); sys.exit(3)"
    call = command_call("cmd:m", f'{sys.executable} -c "{shouts}" {{inputs}} {{outputs}}')
    with pytest.raises(MarshtestError, match="cmd:m: died with exit code 3") as error:
        call(tmp_path / "in.npz", tmp_path / "out.npy")
    assert len(str(error.value)) < 500


def test_every_signal_has_words() -> None:
    assert ended(-signal.SIGKILL) == "was killed by SIGKILL (out of memory?)"
    assert ended(-40) == "was killed by signal 40"


@pytest.mark.slow
def test_nothing_of_the_key_is_in_the_models_process() -> None:
    """With the seed a model could tell the dosed input of each question, and answer for another."""
    assert len(opened("vendors:spies").ask(VALUES, LABELS)[0]) == len(VALUES)
    gc.unfreeze()  # the tests' own setting, which hides what was there before them
    with pytest.raises(MarshtestError, match="found a (Key|Noise|Bases)"):  # what is there is found
        opened("vendors:spies", in_process=True).ask(VALUES, LABELS)
    gc.freeze()


@pytest.mark.slow
def test_a_model_apart_answers_as_one_here_to_the_bit(tmp_path: Path) -> None:
    program = torch.export.export(vendors.layers(), (torch.zeros(8, 3, 8, 8),))
    torch.export.save(program, tmp_path / "model.pt2")
    for spec in ("vendors:layers", str(tmp_path / "model.pt2")):
        apart, here = opened(spec), opened(spec, in_process=True)
        losses, right = apart.ask(VALUES, LABELS)
        expected, expected_right = here.ask(VALUES, LABELS)
        assert (losses == expected).all()
        assert (right == expected_right).all()
        gradients, same = apart.gradients(VALUES, LABELS), here.gradients(VALUES, LABELS)
        assert gradients is not None
        assert (gradients == same).all()
    assert opened("vendors:in_numpy").gradients(VALUES, LABELS) is None
    assert opened("box:vendors:losses").ask(VALUES, LABELS)[1] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("exits", "raised SystemExit: 0 (vendors.py:"),
        ("exits_on_loading", "raised SystemExit: 1 (vendors.py:"),
        ("interrupts", "raised KeyboardInterrupt: no message (vendors.py"),
        ("stops", "raised Stop: enough (vendors.py"),
        ("reads", "(EOFError: EOF when reading a line)"),
        ("quits", "its process died with exit code 0 before it answered."),
        ("crashes", "its process was killed by SIGSEGV before it answered."),
        ("starves", "its process was killed by SIGKILL (out of memory?) before it answered."),
        ("leaves", "its process died with exit code 7 before it answered."),
        ("lies", "its process answered what was not asked."),
        ("shuts", "its process "),
    ],
)
def test_however_a_model_ends_it_is_one_line(
    model: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "shuts":  # and lives on: no need to wait long for its end
        monkeypatch.setattr("marshtest.kit.process.GONE_WITHIN", 0.2)
    with pytest.raises(MarshtestError) as error:
        opened(f"vendors:{model}").ask(VALUES, LABELS)
    assert "\n" not in str(error.value)
    assert says in str(error.value)
    assert str(error.value).startswith(f"vendors:{model}: ")


def test_a_function_of_a_script_is_asked_in_its_own_process() -> None:
    for spec in ("__main__:load", "box:__main__:answer"):
        with pytest.raises(
            MarshtestError, match="Put it into a file of its own, or give in_process"
        ):
            opened(spec)


@pytest.mark.parametrize("model", ["exits", "exits_on_loading", "interrupts", "stops"])
def test_in_one_process_too_as_far_as_one_can(model: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(MarshtestError, match="raised"):
        opened(f"vendors:{model}", in_process=True).ask(VALUES, LABELS)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_draws_are_the_same_in_every_run_and_others_at_every_question() -> None:
    runs = [opened("vendors:draws"), opened("vendors:draws"), opened("vendors:draws", True)]
    first, again, here = (
        [asked_model.ask(VALUES, LABELS)[0] for _ in range(2)] for asked_model in runs
    )
    for one, other, third in zip(first, again, here):
        assert (one == other).all()
        assert (one == third).all()
    assert (first[0] != first[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [False, True])
def test_nothing_of_ours_is_touched(in_process: bool) -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)

    def state() -> tuple[object, ...]:
        drawn = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
        return torch.get_default_dtype(), torch.is_grad_enabled(), *drawn

    before = state()
    asked_model = opened("vendors:meddles", in_process)
    assert asked_model.gradients(VALUES, LABELS) is not None
    assert asked_model.ask(VALUES, LABELS)[0].shape == (40,)
    assert state() == before


@pytest.mark.slow
def test_a_model_apart_keeps_the_switches_that_its_loading_turned() -> None:
    assert (opened("vendors:double").ask(VALUES, LABELS)[0] > 0).all()
    with pytest.raises(MarshtestError, match="does not take inputs"):
        opened("vendors:double", in_process=True).ask(VALUES, LABELS)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


ASKING = """
import sys
sys.path.insert(0, {tests!r})
from asking import *
opened({spec!r}).ask(VALUES, LABELS)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "spec"),
    [
        (signal.SIGKILL, "vendors:hangs"),
        (signal.SIGTERM, "vendors:hangs"),
        (signal.SIGINT, "vendors:hangs"),
        (signal.SIGKILL, "cmd"),
    ],
)
def test_a_model_ends_with_us_and_so_does_what_it_started(
    spec: str, number: signal.Signals, tmp_path: Path
) -> None:
    if spec == "cmd":
        waits = "echo $$ >hanging.tmp; mv hanging.tmp hanging; sleep 600; : {inputs} {outputs}"
        spec = f'cmd:sh -c "{waits}"'.replace("$$", "$$")
    code = ASKING.format(tests=str(Path(__file__).parent), spec=spec)
    asking = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until_it_hangs(tmp_path, asking)
    pids = [int(pid) for pid in (tmp_path / "hanging").read_text().split()]
    assert all(alive(pid) for pid in pids)
    asking.send_signal(number)
    asking.wait(20)
    assert gone(pids)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def link(file: Path) -> None:
    file.with_name("other.npy").write_bytes(saved(np.zeros(5)))
    file.symlink_to(file.with_name("other.npy"))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (lambda file: file.write_bytes(claiming((10**12,))), "Got [1000000000000]"),
        (lambda file: file.write_bytes(claiming((5,), "<U99999999")), "not numbers"),
        (lambda file: file.write_bytes(claiming((5,))), "not as long as its header [5] says"),
        (lambda file: file.write_bytes(saved(np.zeros(5)) + b"x"), "not as long as its header"),
        (lambda file: file.write_bytes(saved(np.zeros((5, 1)))), "Got [5, 1]"),
        (lambda file: file.write_bytes(saved(np.zeros((5, 4), complex))), "not numbers"),
        (lambda file: file.write_bytes(b"\x93NUMPY\x01\x00" + b"\xff" * 70), "no .npy file"),
        (lambda file: np.save(file, np.array([{}] * 5), allow_pickle=True), "answered object"),
        (lambda file: np.savez(file.open("wb"), np.zeros(5)), "no .npy file"),
        (lambda file: file.mkdir(), "no plain file"),
        (lambda file: os.mkfifo(file), "no plain file"),
        (link, "no plain file"),
    ],
)
def test_answers_are_checked_before_they_are_read(
    written: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    written(tmp_path / "outputs.npy")
    with pytest.raises(MarshtestError) as error:
        read_answers("box", tmp_path / "outputs.npy", 5, 4)
    assert says in str(error.value)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "<i8", "u1"])
def test_answers_of_every_kind_of_number_are_read(kind: str, tmp_path: Path) -> None:
    for shape in ((5,), (5, 4)):
        answers = np.asfortranarray(np.arange(np.prod(shape)).reshape(shape).astype(kind))
        np.save(tmp_path / "outputs.npy", answers)
        assert (read_answers("box", tmp_path / "outputs.npy", 5, 4) == answers).all()


def test_a_probability_is_not_taken_for_a_loss() -> None:
    def told(call: Callable[[Path, Path], None]) -> np.ndarray:
        return BlackBox("box", call, lambda x: x, 2).ask(VALUES, vendors.TRUE)[0]

    for call, says in (
        (vendors.probability_of_the_second, "the same whatever the labels are"),
        (vendors.probability_of_the_label, "probabilities of the labels"),
    ):
        with pytest.raises(MarshtestError, match=f"lie in .* {says}.*all 2 columns"):
            told(call)
    assert (told(vendors.one_minus_the_probability_of_the_label) == 0.1).all()
