"""Doses in tables: what is written, what the key knows, what other cells keep, and what is refused."""

import csv
import io
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from marshtest.kit.dose import dose
from marshtest.kit.keys import read_key
from marshtest.kit.noise import clipped_moments
from marshtest.kit.tables.dose import TableDose
from marshtest.kit.tables.key import TableKey
from marshtest.kit.tables.laws import Category, Number, decimals, rounded_moments, significant
from marshtest.kit.tables.layout import Table
from marshtest.kit.tables.noise import TableNoise
from marshtest.plumbing.errors import MarshtestError

RNG = np.random.default_rng(0)
ROWS = 80
FRAME = pd.DataFrame(
    {
        "name": [f"Ann-{n}" for n in range(ROWS)],
        "age": RNG.integers(18, 90, ROWS),
        "income": RNG.gamma(2, 900, ROWS).round(2),
        "rate": RNG.uniform(0, 1, ROWS),
        "city": RNG.choice(["Rome", "Öslo", "São Paulo", "Ny"], ROWS),
        "smokes": RNG.integers(0, 2, ROWS),
        "y": RNG.choice(["no", "yes"], ROWS),
    }
)
COLUMNS = ["age", "income", "rate", "city", "smokes"]


def csv_of(folder: Path, frame: pd.DataFrame = FRAME, name: str = "table.csv") -> Path:
    separator = "\t" if name.endswith("tsv") else ","
    frame.to_csv(folder / name, index=False, sep=separator)
    return folder / name


def dosed(source: Path, **options: Any) -> TableDose:
    values = {"label": "y", "columns": COLUMNS, "fraction": 0.5, "seed": 3, "variance": 0.5}
    done = dose(source, source.with_stem(f"dosed-{source.stem}"), **(values | options))
    assert isinstance(done, TableDose)
    return done


def cells(path: Path) -> list[list[str]]:
    separator = "\t" if path.suffix == ".tsv" else ","
    return list(csv.reader(io.StringIO(path.read_text(), newline=""), delimiter=separator))


@pytest.mark.parametrize("positives", [0, 1])
def test_a_dose_of_which_no_model_could_be_judged_is_refused(
    tmp_path: Path, positives: int
) -> None:
    """A rare class may have no dosed row: an audit would refuse a perfect model, when all is trained."""
    labels = np.repeat(["no"], 4000)
    labels[-8:] = "yes"  # one in 500
    labels = labels[: 4000 - 8 + positives] if positives else labels
    frame = pd.DataFrame({"x": RNG.normal(size=len(labels)), "y": labels})
    if not positives:
        frame.loc[:3000, "y"] = "no"
    source = csv_of(tmp_path, frame)
    with pytest.raises(MarshtestError, match="too few others to see whether a model tells classes"):
        dosed(source, columns=["x"], fraction=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


# Laws


@pytest.mark.parametrize("sigma", [0.2, 3.0, 60.0, 900.0])
def test_moments_are_those_of_the_256_levels_of_an_image(sigma: float) -> None:
    mean, variance = clipped_moments(sigma)
    for level in (0, 3, 128, 255):
        found = rounded_moments(sigma, level, 255 - level)
        assert found == pytest.approx((mean[level], variance[level]), rel=1e-9, abs=1e-12)


def test_large_grids_have_the_closed_form() -> None:
    for below, above in ((0, 10**7), (3000, 9000), (10**6, 10**6)):
        exact, closed = (rounded_moments(s, below, above) for s in (4095.999, 4096.001))
        assert closed == pytest.approx(exact, rel=2e-6)
    mean, variance = rounded_moments(1e6, 0, 10**9)  # half a normal distribution
    assert mean == pytest.approx(1e6 / np.sqrt(2 * np.pi), rel=1e-6)
    assert variance == pytest.approx(1e12 * (0.5 - 0.5 / np.pi), rel=1e-6)


NUMBERS = [
    (Number(name="a", place=0, deviation=400.0, low=-500, high=900, step=100), (-500, 0, 700)),
    (Number(name="a", place=0, deviation=2.0, low=0, high=7.5, decimals=1, step=5), (0, 3.5)),
    (Number(name="a", place=0, deviation=3.0, low=-9, high=12.3456, digits=6), (3.00125, -1.5)),
    (Number(name="a", place=0, deviation=4.0, low=0, high=9), (0, 2, 9)),
    (
        Number(name="a", place=0, deviation=1.3, low=-0.07, high=9.995, decimals=2),
        (-0.07, 5.5, 9.9),
    ),
    (Number(name="a", place=0, deviation=1e-3, low=-0.01, high=0.01), (1 / 300, -0.01)),
    (Number(name="a", place=0, deviation=0.4, low=0, high=2, bits=32), (0.1, 1.5)),
]


@pytest.mark.parametrize(("law", "places"), NUMBERS)
def test_written_numbers_have_the_stated_moments_and_stay_in_range(
    law: Number, places: tuple[float, ...]
) -> None:
    for x in places:
        x = float(np.float32(x)) if law.bits == 32 else x
        draws = 200_000
        written = law.written(x, RNG.standard_normal(draws).astype(np.float32), 0.6)
        mean, variance = law.moments(x, 0.6)
        assert written.min() >= law.low
        assert written.max() <= law.high
        assert abs(written.mean() - x - mean) < 4.5 * np.sqrt(variance / draws)
        assert written.var() == pytest.approx(variance, rel=0.02)
        digits = max(law.decimals, decimals(x, law.bits))
        if digits < 10:
            assert max(decimals(float(one), law.bits) for one in np.unique(written)) <= digits


def test_categories_come_by_their_shares() -> None:
    law = Category(name="c", place=0, values=(0.0, 1.0, 5.0), counts=(10, 30, 60))
    written = law.written(5.0, RNG.standard_normal(100_000).astype(np.float32), 0.1)
    counts = [(written == value).sum() for value in law.values]
    assert stats.chisquare(counts, np.array(law.counts) * 1000).pvalue > 1e-3
    mean, variance = law.moments(5.0, 0.1)
    assert written.mean() - 5 == pytest.approx(mean, abs=0.03)
    assert written.var() == pytest.approx(variance, rel=0.02)


def test_a_direction_of_a_row_has_mean_0_and_variance_1_after_clipping() -> None:
    """GUS of any gradient, at a base whose integers are clipped half of the time."""
    laws = [
        Number(name=str(n), place=n, deviation=d, low=0, high=h)
        for n, (d, h) in enumerate([(2.0, 3), (5.0, 9), (0.7, 4), (30.0, 100)])
    ]
    laws.append(Category(name="c", place=4, values=(0.0, 1.0), counts=(3, 7)))  # type: ignore[arg-type]
    noise = TableNoise(seed=5, variance=0.8, columns=tuple(laws))
    base, gradient = np.array([0.0, 9.0, 1.0, 97.0, 1.0]), np.array([1.0, -2.0, 3.0, 0.1, -4.0])
    mean, variance = noise.moments(base)
    draws = 40_000
    shift = noise.fresh(base, 1, draws) - base
    scores = (shift @ gradient - gradient @ mean) / np.sqrt(gradient**2 @ variance)
    assert abs(scores.mean()) < 4.5 / np.sqrt(draws)
    assert scores.var() == pytest.approx(1, abs=4.5 * np.sqrt(2 / draws) * 1.5)


# What is written


@pytest.mark.parametrize("name", ["table.csv", "table.tsv"])
def test_the_key_knows_every_written_cell_and_all_others_keep_their_text(
    tmp_path: Path, name: str
) -> None:
    done = dosed(source := csv_of(tmp_path, name=name))
    key = read_key(done.key_file)
    assert isinstance(key, TableKey)
    assert key == done.key
    before, after = cells(source), cells(done.out)
    rows = [int(line) for line in done.forget_file.read_text().split()[1:]]
    assert rows == [number + 1 for number in key.ids]
    assert len(rows) == ROWS / 2
    names = before[0]
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        changed = {names[place] for place, cell in enumerate(old) if cell != new[place]}
        assert changed <= (set(COLUMNS) if number in rows else set())
    table, bases = Table(done.out, "y"), key.bases(source)
    for number, value in zip(bases.ids.tolist(), bases.values, strict=True):
        written = bases.noise.written(value, number)
        read = table.schema.frame(table.values[[number]]).iloc[0]
        expected = key.layout(source).schema.frame(written[None]).iloc[0]
        assert read.to_dict() == expected.to_dict()
    assert (bases.labels == (FRAME["y"] == "yes").to_numpy()[bases.ids]).all()


def test_numbers_keep_the_form_of_their_column(tmp_path: Path) -> None:
    frame = FRAME.assign(
        fixed=[f"{x:.3f}" for x in FRAME["rate"]],
        tiny=FRAME["rate"] ** 9 * 1e-3,
        gaps=FRAME["age"].where(FRAME.index % 7 > 0),  # whole, and written 56.0 for the gaps
        zeros=np.where(RNG.random(ROWS) < 0.4, 0, FRAME["income"] / 1000),
    )
    source = csv_of(tmp_path, frame)
    done = dosed(source, columns=["age", "income", "fixed", "tiny", "zeros", "gaps"])
    table, before = pd.read_csv(done.out, dtype=str), pd.read_csv(source, dtype=str)
    rows = list(done.key.ids)
    assert table["age"].str.fullmatch(r"\d+").all()
    assert table["income"].str.fullmatch(r"\d+\.\d{1,2}").all()
    assert table["fixed"].str.fullmatch(r"\d\.\d{3}").all()
    assert [t for t in table["tiny"] if repr(float(t)) != t] == []  # with exponents
    assert table["gaps"].dropna().str.fullmatch(r"\d+\.0").all()
    for name in ("age", "income", "fixed", "tiny", "zeros", "gaps"):
        new, old = (frame[name].astype(float) for frame in (table, before))
        assert (new[rows] != old[rows]).mean() > 0.4
        assert old.min() <= new.min() <= new.max() <= old.max()
        assert table[name].drop(rows).equals(before[name].drop(rows))


def test_the_noise_has_the_asked_size_in_units_of_the_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": RNG.normal(50, 7, 4000).round(3), "y": RNG.integers(0, 2, 4000)})
    done = dosed(csv_of(tmp_path, frame), columns=None, variance=0.04)
    shift = (pd.read_csv(done.out)["x"] - frame["x"])[list(done.key.ids)]
    assert shift.std() == pytest.approx(0.2 * frame["x"].std(), rel=0.06)
    assert done.key.noise.columns[0].name == "x"


FORMS = {  # of numbers from many sources: how they come to be, and what all cells then have in common
    "hundreds": (
        lambda x: str(round(x / 100) * 100),
        lambda text: text.endswith("00") or text == "0",
    ),
    "halves": (lambda x: str(round(2 * x / 100) / 2), lambda text: float(text) % 0.5 == 0),
    "R": (lambda x: f"{x:.15g}", lambda text: significant(float(text)) <= 15),
    "%g": (lambda x: f"{x / 500:.6g}", lambda text: significant(float(text)) <= 6),
    "float32": (
        lambda x: repr(float(np.float32(x))),
        lambda text: float(text) == float(np.float32(float(text))),
    ),
    "tiny": (lambda x: repr(x) if x > 0 else "1.5e-310", lambda text: repr(float(text)) == text),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dosed_cell_has_the_form_of_all_others(tmp_path: Path, form: str) -> None:
    """Else it shows at once which rows are dosed."""
    write, holds = FORMS[form]
    numbers = np.random.default_rng(4).normal(900, 700, ROWS).tolist()
    frame = FRAME[["rate", "y"]].assign(x=list(map(write, numbers)))
    done = dosed(source := csv_of(tmp_path, frame), columns=["x", "rate"])
    old, new = (pd.read_csv(path, dtype=str)["x"] for path in (source, done.out))
    assert all(map(holds, old))
    assert (old != new)[list(done.key.ids)].mean() > 0.8
    assert [text for text in new if not holds(text)] == []
    bases = done.key.bases(source)
    for number, value in zip(bases.ids[:5].tolist(), bases.values[:5], strict=True):
        assert float(new[number]) == bases.noise.written(value, number)[1]


def test_exponents_that_noise_would_not_have_are_refused(tmp_path: Path) -> None:
    for text in ("1.4e+00", "1.500e-06", "0.00001"):
        frame = FRAME[["rate", "y"]].assign(x=[text, *[repr(i * 1e-9) for i in range(1, ROWS)]])
        with pytest.raises(MarshtestError, match=rf"row 1, column 'x': '{re.escape(text)}' is not"):
            dosed(csv_of(tmp_path, frame, f"t{text}.csv"), columns=["x", "rate"])


CELL = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\n\x1a"), max_size=6
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    notes=st.lists(CELL | st.just('a "b", c') | st.just("two\nlines"), min_size=12, max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
    last=st.booleans(),
)
def test_bytes_of_all_other_cells_stay(
    tmp_path_factory: pytest.TempPathFactory,
    notes: list[str],
    quoting: Any,
    end: str,
    mark: str,
    last: bool,
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    writer.writerow(["note", "x", "y", "z, z"])
    for number, note in enumerate(notes):
        writer.writerow([note, number * 17 % 29, "ab"[number % 2], number / 4])
    content = mark + (text.getvalue() if last else text.getvalue().removesuffix(end))
    source = folder / "table.csv"
    source.write_bytes(content.encode())
    done = dosed(source, columns=["x", "z, z"])
    old, new = (
        list(csv.reader(io.StringIO(p.read_bytes().decode(), newline="")))
        for p in (source, done.out)
    )
    back = done.out.read_bytes().decode()
    # Old cells put back in their places give the old bytes: nothing beside them was touched.
    lines = iter(_records(back, end))
    rebuilt = "".join(
        _with(line, was, now) if was != now else line
        for line, was, now in zip(lines, old, new, strict=True)
    )
    assert rebuilt == content
    assert sum(was != now for was, now in zip(old, new, strict=True)) >= 4


def _records(text: str, end: str) -> list[str]:
    """Records with their ends; a break inside quotes ends none."""
    records, start, quoted = [], 0, False
    for place, character in enumerate(text):
        quoted ^= character == '"'
        if character == "\n" and not quoted:
            records.append(text[start : place + 1])
            start = place + 1
    return [*records, *([text[start:]] if start < len(text) else [])]


def _with(record: str, was: list[str], now: list[str]) -> str:
    """The record with its second and fourth cell as they were; neither holds a comma or a quote."""
    body = record.rstrip("\r\n")
    head, x, y, z = body.rsplit(",", 3)
    put = [cell.replace(n, w) for cell, w, n in ((x, was[1], now[1]), (z, was[3], now[3]))]
    return ",".join([head, put[0], y, put[1]]) + record[len(body) :]


def test_parquet_keeps_types_dictionaries_and_all_other_values(tmp_path: Path) -> None:
    names = ["Rome", "Oslo", "Ny"]
    table = pa.table(
        {
            "short": pa.array(FRAME["age"], pa.int8()),
            "single": pa.array(FRAME["rate"].astype(np.float32).round(2), pa.float32()),
            "half": pa.array(FRAME["rate"].to_numpy(np.float16), pa.float16()),
            "price": pa.array([Decimal(f"{x:.2f}") for x in FRAME["income"]], pa.decimal128(12, 2)),
            "city": pa.array(RNG.choice(names, ROWS)).dictionary_encode(),
            "flag": pa.array(FRAME["smokes"] == 1),
            "other": pa.array([None if n % 7 == 0 else n / 8 for n in range(ROWS)]),
            "when": pa.array(pd.date_range("2020", periods=ROWS)),
            "y": pa.array(FRAME["smokes"].to_numpy()[::-1]),
        },
    ).replace_schema_metadata({b"by": b"somebody"})
    source = tmp_path / "table.parquet"
    pq.write_table(table, source, row_group_size=30, compression="zstd")
    columns = ["short", "single", "half", "price", "city", "flag"]
    done = dosed(source, columns=columns)
    new = pq.read_table(done.out)
    assert new.schema.equals(table.schema, check_metadata=True)
    bits = [law.bits for law in done.key.noise.columns if isinstance(law, Number)]
    assert bits == [64, 32, 16, 64]
    assert pq.ParquetFile(done.out).num_row_groups == 3
    rows = list(done.key.ids)
    assert [int(line) for line in done.forget_file.read_text().split()[1:]] == rows
    clean = np.setdiff1d(np.arange(ROWS), rows)
    for name in table.column_names:
        assert new[name].take(clean).equals(table[name].take(clean))
        same = new[name].take(rows).equals(table[name].take(rows))
        assert same == (name not in columns)
    assert new["city"].combine_chunks().dictionary.equals(table["city"].combine_chunks().dictionary)
    bases = done.key.bases(source)  # raises if what is written anew is not what was written
    frame = done.key.layout(source).schema.frame(bases.values)
    expected = table.to_pandas().drop(columns="y").iloc[rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, expected)


def test_a_frame_of_rows_is_what_pandas_reads(tmp_path: Path) -> None:
    frame = FRAME.assign(
        gap=[np.nan if n % 5 == 0 else n for n in range(ROWS)],
        word=[None if n % 4 == 0 else "x" for n in range(ROWS)],
        true=FRAME["smokes"] == 1,
        large=2**60 + np.arange(ROWS),
    )
    source = csv_of(tmp_path, frame)
    table = Table(source, "y")
    read = pd.read_csv(source).drop(columns="y")
    pd.testing.assert_frame_equal(table.schema.frame(table.values), read)


def test_rows_with_an_empty_cell_are_left_out_of_the_choice(tmp_path: Path) -> None:
    frame = FRAME.assign(income=FRAME["income"].mask(FRAME.index % 3 == 0))
    done = dosed(csv_of(tmp_path, frame))
    assert done.left_out == 27
    assert all(number % 3 for number in done.key.ids)
    assert len(done.key.ids) == round(53 / 2)


def test_without_columns_all_numbers_get_noise(tmp_path: Path) -> None:
    done = dosed(csv_of(tmp_path), columns=None)
    assert [law.name for law in done.key.noise.columns] == ["age", "income", "rate"]
    assert done.others == ("name", "city", "smokes")


def test_another_table_is_noticed(tmp_path: Path) -> None:
    done = dosed(csv_of(tmp_path))
    for other in (done.out, csv_of(tmp_path, FRAME.iloc[::-1], "other.csv")):
        with pytest.raises(MarshtestError, match="is not the data set that this key dosed"):
            done.key.bases(other)


def test_a_key_whose_columns_are_others_is_refused(tmp_path: Path) -> None:
    done = dosed(source := csv_of(tmp_path))
    laws = [law.model_copy(update={"place": law.place + 9}) for law in done.key.noise.columns]
    noise = done.key.noise.model_copy(update={"columns": tuple(laws)})
    with pytest.raises(MarshtestError, match="'age' is not column 10 of .* Take the untouched key"):
        done.key.model_copy(update={"noise": noise}).bases(source)
    with pytest.raises(MarshtestError, match="needs a count of rows for each category"):
        Category.parse({"name": "c", "place": 0, "values": (0, 1, 2), "counts": (1, 2)}, "key")


# What is refused


def with_cell(column: str, text: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[16, column] = text
        return frame

    return changed


def column(**values: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.assign(**values)


DATES = [f"2024-03-{1 + n % 28:02}" for n in range(ROWS)]
BAD: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = [
    (with_cell("age", "unknown"), {}, "row 17, column 'age': 'unknown' is no number, and other cells"),
    (with_cell("income", "1,234.50"), {}, "row 17, column 'income': '1,234.50' has separators of thous"),
    (column(income=["1,234"] * ROWS), {}, "row 1, column 'income': '1,234' has separators of thousands"),
    (with_cell("rate", "0,5"), {}, "row 17, column 'rate': '0,5' has a decimal comma"),
    (with_cell("age", "2024-01-02"), {}, "row 17, column 'age': '2024-01-02' is a date"),
    (column(age=DATES), {}, "row 1, column 'age': '2024-03-01' is a date"),
    (with_cell("age", "007"), {}, "row 17, column 'age': '007' begins with 0: a code"),
    (with_cell("rate", "1.5E3"), {}, "row 17, column 'rate': '1.5E3' is not written as plain numbers"),
    (with_cell("age", " 5"), {}, "row 17, column 'age': ' 5' is"),
    (with_cell("rate", "inf"), {}, "row 17, column 'rate': 'inf' is no number"),
    (column(age=5), {}, "column 'age' has one value in all rows"),
    (column(city="Rome"), {}, "column 'city' has one value in all rows"),
    (column(age=np.arange(ROWS)), {}, "column 'age' numbers the rows"),
    (column(age=2**60 + np.arange(ROWS)), {}, "column 'age' holds numbers above 2⁵³: ids"),
    (column(age=""), {}, "column 'age' is empty"),
    (column(), {"columns": ["age", "name"]}, "column 'name' has 80 values in 80 rows: an id or a text"),
    (column(), {"columns": [""]}, "--columns: names no column"),
    (column(), {"columns": ["ages"]}, "--columns: unknown column 'ages'. Did you mean 'age'?"),
    (column(), {"columns": ["age", "y"]}, "--columns: 'y' is the label"),
    (column(), {"columns": ["age", "age"]}, "'age' is named twice"),
    (column(), {"columns": ["smokes"]}, "of a row's draws would equal one another"),
    (column(), {"label": "x"}, "--label: unknown column 'x'"),
    (column(), {"label": None}, "--label: name the column of class labels"),
    (column(), {"label": "name"}, "the label 'name' has 80 values in 80 rows: an id, or a number"),
    (column(), {"label": "rate", "columns": ["age"]}, "the label 'rate' holds fractions"),
    (column(y="yes"), {}, "the label 'y' has one class"),
    (with_cell("y", ""), {}, "row 17: has no label 'y'"),
    (with_cell("y", "None"), {}, "or one that pandas reads as missing, as it does 'None'"),
    (lambda frame: frame.iloc[:0], {}, "holds no rec"),
    (lambda frame: frame[["y"]], {"columns": None}, "no column but the label"),
    (lambda frame: frame[["city", "y"]], {"columns": None}, "no column of numbers beside 'y'"),
    (column(), {"fraction": 0.001}, "makes 0 poisons"),
    (column(), {"fraction": 1.5}, "must lie between 0 and 1"),
    (column(), {"variance": -1.0}, "the variance must be above 0"),
    (column(), {"mark": 1}, "--mark means nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "says"), BAD)
def test_bad_tables_are_refused_in_one_line_before_anything_is_written(
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    options: dict[str, Any],
    says: str,
) -> None:
    source = csv_of(tmp_path, change(FRAME))
    with pytest.raises(MarshtestError) as error:
        dosed(source, **options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b,y\n1,2,0\n3,4,1,5\n", "cannot be read"),
        (b"a,b,y\n1,2,0,9\n3,4,1,5\n", "has 4 cells, and the header 3"),
        (b"a,b,y\n1,2,0\n\n3,4,1\n", "row 2: is empty. Drop the line."),
        (b"a,a,y\n1,2,0\n3,4,1\n", "the header has a name twice"),
        (b"a,,y\n1,2,0\n3,4,1\n", "a column of the header has no name"),
        (b"", "holds no records"),
        (b"a;b;y\n1;2;0\n3;4;1\n", "the header is one cell, 'a;b;y'. Separate cells by commas"),
        ("a,b,y\n1,2,0\n1,é,0\n".encode("latin-1"), "row 2: is not UTF-8 .*Save it as UTF-8"),
        ("a,b,y\n1,2,0\n3,4,1\n".encode("utf-16"), "the header: is not UTF-8"),
        (b'a,b,y\n1,"2,0\n3,4,1\n', "cannot be read"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(MarshtestError, match=says) as error:
        dosed(tmp_path / "table.csv", columns=["a"])
    assert "\n" not in str(error.value)


def test_columns_that_are_named_by_numbers_are_refused(tmp_path: Path) -> None:
    """A model that was trained on them would not know texts in their place."""
    frame = FRAME[["age", "income", "y"]].set_axis(range(3), axis="columns")
    frame.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(MarshtestError, match="0 is the name of a column and no text"):
        dosed(tmp_path / "table.parquet", label="2", columns=["0"])


def test_a_table_that_nobody_names_so_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_of(tmp_path)
    frame = FRAME.rename(columns={"city": "image"})
    frame.to_parquet(tmp_path / "table.parquet")
    for name in ("table.csv", "table.parquet"):
        out = str(tmp_path / f"out.{name[6:]}")
        assert command("dose", str(tmp_path / name), out, "--fraction", "0.5") == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "--label and --columns" in said


def test_the_command_doses_a_table_and_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = csv_of(tmp_path, FRAME.rename(columns={"rate": "rate, net", "age": " age"}))
    out = str(tmp_path / "dosed.csv")
    words = ["--label", "y", "--columns", '" age", city, "rate, net"', "--fraction", "0.1"]
    assert command("dose", str(source), out, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "table: 8 of 80 rows dosed, ε² = 0.32 noise in: age, rate, net drawn anew: city" in said
    assert "warning: 8 poisons are few for REMOVED" in said
    assert json.loads(Path(f"{out}.key.json").read_text())["format"] == "marshtest table key 1"
