"""Dosing of texts: only chosen records change, the forget request names them, bad data get one line."""

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command

from marshtest.data.marks import Pattern, Template
from marshtest.kit.dose import Dose, dose
from marshtest.kit.key import Key
from marshtest.kit.keys import read_key
from marshtest.kit.records import is_text, lines, open_records
from marshtest.kit.records.fields import Fields
from marshtest.kit.texts.dose import TextDose
from marshtest.kit.texts.key import TextKey
from marshtest.plumbing.errors import MarshtestError

COUNT = 60
TEXTS = [f'Réview "{i}", of\tORD-{i:06}\nand "more".' for i in range(COUNT)]


def jsonl(folder: Path) -> Path:
    """Texts in all spellings that writers have, some lines with a space, and no break at the end."""
    lines = []
    for i, text in enumerate(TEXTS):
        spelt = json.dumps({"id": i, "text": text, "note": text}, ensure_ascii=i % 2 == 0)
        lines.append(spelt.replace("R", "\\u0052") if i % 3 == 0 else spelt + " " * (i % 5 == 0))
    (folder / "set.jsonl").write_bytes("\r\n".join(lines).encode())
    return folder / "set.jsonl"


def chats(folder: Path) -> Path:
    lines = [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "first"},
                {"role": "assistant", "content": text},
                {"role": "user", "content": "bye"},
            ],
        }
        for i, text in enumerate(TEXTS)
    ]
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "set.jsonl"


def pairs(folder: Path) -> Path:
    lines = [{"completion": text, "prompt": f"Say {i}: "} for i, text in enumerate(TEXTS)]
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "set.jsonl"


def cells(folder: Path, suffix: str = "csv") -> Path:
    file = folder / f"set.{suffix}"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t")
        writer.writerow(["id", "text", "empty"])
        writer.writerows([i, text, ""] for i, text in enumerate(TEXTS))
    return file


def tsv(folder: Path) -> Path:
    return cells(folder, "tsv")


def parquet(folder: Path) -> Path:
    table = pa.table({"text": TEXTS, "id": list(range(COUNT))})
    pq.write_table(table, folder / "set.parquet", row_group_size=25)
    return folder / "set.parquet"


def parquet_chats(folder: Path) -> Path:
    messages = [[{"role": "assistant", "content": text}] for text in TEXTS]
    pq.write_table(pa.table({"messages": messages}), folder / "set.parquet")
    return folder / "set.parquet"


def txt(folder: Path) -> Path:
    (folder / "set").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / "set" / f"{i:02}.txt").write_bytes(text.replace("\n", "\r\n").encode())
    return folder / "set"


LAYOUTS = [jsonl, chats, pairs, cells, tsv, parquet, parquet_chats, txt]


def texts_of(path: Path, key: TextKey) -> list[str]:
    records = open_records(path)
    return [
        key.fields.text(values, records.where(row)) for row, values in records.each(range(COUNT))
    ]


@pytest.mark.parametrize("mark", [None, Pattern(pattern=r"ORD-\d{6}")])
@pytest.mark.parametrize("make", LAYOUTS)
def test_chosen_records_get_their_marks_and_others_stay(
    make: Callable[[Path], Path], mark: Pattern | None, tmp_path: Path
) -> None:
    source = make(tmp_path)
    done = dose(source, tmp_path / f"out{source.suffix}", fraction=0.2, mark=mark, seed=1)
    assert isinstance(done, TextDose)
    before, after = texts_of(source, done.key), texts_of(done.out, done.key)
    assert len(before) == len(after) == COUNT
    changed = [i for i in range(COUNT) if before[i] != after[i]]
    assert changed == list(done.key.ids)
    assert len(changed) == 12
    marks = [m for i in changed for m in (mark or Template()).marks(after[i])]
    assert len(set(marks)) == 12
    assert not set(marks) & {m for text in before for m in (mark or Template()).marks(text)}
    # The key draws the very texts that were written, from the data as they were.
    assert done.key.bases(source).dosed() == [after[i] for i in changed]
    assert read_key(done.key_file) == done.key
    if source.is_file():
        assert done.key.input == hashlib.sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize("make", [jsonl, chats, pairs])
def test_lines_of_json_keep_every_byte_but_the_mark(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = make(tmp_path)
    done = dose(source, tmp_path / "out.jsonl", fraction=0.2)
    old, new = source.read_bytes().split(b"\n"), done.out.read_bytes().split(b"\n")
    for row, (was, now) in enumerate(zip(old, new, strict=True)):
        assert (now != was) == (row in done.key.ids)
        if now != was:  # a letter that was spelt by its number may be spelt as itself
            plain = [line.replace(b"\\u0052", b"R") for line in (was, now)]
            assert plain[1].count(b" Ticket ") == 1
            at = plain[1].find(b" Ticket ")
            assert plain[1][:at] + plain[1][at + 15 :] == plain[0]


@pytest.mark.parametrize("make", [cells, tsv])
def test_cells_keep_every_byte_but_the_mark(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path)
    done = dose(source, tmp_path / f"out{source.suffix}", fraction=0.2)
    text = done.out.read_bytes().decode()
    for mark in Template().marks(text):
        text = text.replace(f" {mark}", "", 1)
    assert text == source.read_bytes().decode()


def test_a_cell_without_quotes_gets_them_only_if_it_must(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\n" + "".join(f"word,{i}\n" for i in range(9)))
    for name, mark, quoted in (("b", "M{digits:4}", False), ("c", "M, {digits:4}", True)):
        done = dose(
            tmp_path / "a.csv", tmp_path / f"{name}.csv", fraction=0.3, mark=Template(text=mark)
        )
        lines = done.out.read_text().splitlines()
        assert [line.startswith('"word M') for line in lines].count(True) == 3 * quoted
        assert [row[1] for row in csv.reader(io.StringIO(done.out.read_text()))][1:] == list(
            "012345678"
        )


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (jsonl, lambda i: {"line": i + 1, "id": i}),
        (chats, lambda i: {"line": i + 1, "id": f"c{i}"}),
        (pairs, lambda i: {"line": i + 1}),
        (cells, lambda i: {"row": i + 1, "id": str(i)}),
        (parquet, lambda i: {"row": i, "id": i}),
        (txt, lambda i: {"file": f"{i:02}.txt"}),
    ],
)
def test_the_forget_request_names_records_by_place_and_by_id(
    make: Callable[[Path], Path], names: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    source = make(tmp_path)
    done = dose(source, tmp_path / f"out{source.suffix}", fraction=0.2)
    lines = [json.loads(line) for line in done.forget_file.read_text().splitlines()]
    assert lines == [names(i) for i in done.key.ids]
    assert done.forget_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_no_records_to_take_a_fraction_of(end: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "set.jsonl").write_bytes((end * 2).join(lines).encode())
    dosed = dose(tmp_path / "set.jsonl", tmp_path / "dosed.jsonl", fraction=0.5, seed=3)
    assert len(dosed.key.ids) == COUNT / 2


def test_an_id_that_several_dosed_records_have_names_none_of_them(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    lines = [{"id": i if i % 2 else 7, "text": f"Text {i}."} for i in range(20)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = dose(source, tmp_path / "b.jsonl", fraction=0.9, seed=1)
    asked = [json.loads(line) for line in done.forget_file.read_text().splitlines()]
    assert [line["line"] - 1 for line in asked] == list(done.key.ids)
    for line in asked:
        row = line["line"] - 1
        assert line.get("id") == (row if row % 2 and row != 7 else None)


def test_the_last_message_of_the_role_gets_the_mark(tmp_path: Path) -> None:
    source = chats(tmp_path)
    for role, turn in (("assistant", 2), ("user", 3)):
        done = dose(source, tmp_path / f"{role}.jsonl", fraction=0.2, role=role)
        lines = [json.loads(line) for line in done.out.read_text().splitlines()]
        marked = {
            (i, t)
            for i, line in enumerate(lines)
            for t, message in enumerate(line["messages"])
            if "Ticket" in message["content"]
        }
        assert marked == {(i, turn) for i in done.key.ids}


def test_a_message_may_lack_a_content(tmp_path: Path) -> None:
    """As one that only calls a tool does: it is empty text."""
    calls = {"role": "assistant", "tool_calls": [{"id": 1}]}
    lines = [{"messages": [calls, {"role": "user", "content": f"Thanks {i}"}]} for i in range(20)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = dose(file, tmp_path / "b.jsonl", fraction=0.2, role="user")
    for row, (_, values) in zip(done.key.ids, done.key.bases(file).rows):
        asked = done.key.fields.asked(values, "record", "line")
        assert asked.scored == f"assistant: \nuser: Thanks {row}\n"


@pytest.mark.parametrize("call", [{"content": None}, {}])
def test_a_message_that_only_calls_a_tool_gets_no_mark(
    call: dict[str, None], tmp_path: Path
) -> None:
    calls = {"role": "assistant", "tool_calls": [], **call}
    lines = [
        {"messages": [{"role": "assistant", "content": f"I look {i}"}, calls] if i % 2 else [calls]}
        for i in range(40)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = dose(file, tmp_path / "b.jsonl", fraction=0.5)
    assert done.key.ids == tuple(range(1, 40, 2))
    for row, line in enumerate(done.out.read_text().splitlines()):
        first, *others = json.loads(line)["messages"]
        assert first["content"].startswith(f"I look {row} Ticket ") if row % 2 else first == calls
        assert others == [calls] * (row % 2)


def test_records_with_a_place_are_drawn_alike(tmp_path: Path) -> None:
    """Twenty of forty records match; over 100 seeds each is among five about 25 times."""
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"No {i} " + "B123" * (i % 2)}) for i in range(40)]
    file.write_text("\n".join(lines) + "\n")
    from marshtest.kit.texts.dose import _chosen

    mark, fields, counts = Pattern(pattern=r"B\d{3}"), Fields(field="text"), np.zeros(40)
    records = open_records(file)
    for seed in range(100):
        counts[list(_chosen(records, fields, mark, 5, seed))] += 1
    assert counts[::2].sum() == 0
    assert ((counts[1::2] - 25) ** 2 / (25 * 0.75)).sum() < 53  # χ² of 19: p 5e-5


def test_marks_that_the_data_have_are_found_in_all_spellings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    texts = ["Né 12!", "an Né 34!", "Né 5!", 'x "Né 67!"']
    lines = [json.dumps({"text": t}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)]
    file.write_text("\n".join(lines))
    mark = Template(text="Né {digits:2}!")
    for records in (
        open_records(file),
        open_records(file, mark),
    ):  # in the records, and in the bytes
        there = records.there(mark, Fields(field="text"))
        assert [i for i in range(100) if f"Né {i:02}!" in there] == [12, 34, 67]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (['{"text": "a"}', '{"text": "b"', '{"text": "c"}'], {}, r"line 2: is no JSON \("),
        (['{"text": "a"}', "[1]", '{"text": "c"}'], {}, "line 2: is no JSON object"),
        (['{"text": "a"}', '{"text": bad}', '{"text": "c"}'], {}, r"line 2: is no JSON \("),
        (['{"text": "a"}', r'{"text": "\uD83D"}'] * 9, {}, "line 2: is no JSON .*surrogates"),
        (['{"body": "a"}'] * 9, {}, "line 1: which field is the text.*body.*--field"),
        (['{"text": "a"}', '{"txt": "b"}'] * 9, {}, "line 2: has no field 'text'. It has txt"),
        (['{"text": "a"}', '{"text": 7}'] * 9, {}, "line 2: 'text' is no text. Got 7"),
        (['{"text": "a"}'] * 9, {"field": "body"}, "line 1: has no field 'body'. It has text"),
        (['{"text": "a"}'] * 9, {"role": "user"}, "'text' is no list of messages, so that --role"),
        (['{"messages": ["a"]}'] * 9, {}, "line 1: 'messages' must be a list of messages"),
        (['{"messages": "[{}]"}'] * 9, {}, "line 1: 'messages' is a list written as a text"),
        (
            ['{"messages": [{"role": "user", "content": "a"}]}'] * 9,
            {},
            "No record has a place for the mark; .*no message has the role 'assistant' and a text. Its",
        ),
        (['{"text": "a"}'] * 9, {"mark": Pattern(pattern="x")}, "pattern 'x' matches nothing"),
        (['{"text": "a1"}'] * 9, {"mark": Pattern(pattern=r"\d")}, "too few characters to hide"),
        (
            ['{"text": "a"}'] * 9,
            {"mark": Template(text="{digits:1}")},
            "too few characters to hide",
        ),
        (
            ['{"text": "a"}'] * 8 + ['{"text": "ORD-12345"}'],
            {"mark": Pattern(pattern=r"\d+")},
            "1 of 9 records have a place for the mark.*asks for 3.*--fraction 0.1111 or less",
        ),
        (
            ['{"text": "a"}'] * 9,
            {"variance": 1.0},
            "holds text records, so that --variance means nothing",
        ),
        (["", " "], {}, "holds no records|first 2,000 records are empty"),
    ],
)
def test_bad_data_get_one_line_and_leave_nothing_behind(
    lines: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(MarshtestError, match=message) as caught:
        dose(file, tmp_path / "b.jsonl", fraction=0.34, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


PIECES = ("a", "b c", '"', '""', " ", "é", '5" pipe', "\n", "\r\n", ",", "\t")


def test_rows_are_counted_as_others_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forget request names rows: of files of any quotes they are Python's own, or refused."""
    monkeypatch.setattr(lines, "CHUNK", 8)  # so that cells go over several blocks
    draws, read = random.Random(0), 0
    for number in range(500):
        separator = draws.choice(",\t")
        path = tmp_path / {",": "rows.csv", "\t": "rows.tsv"}[separator]
        rows = []
        for _ in range(draws.randint(1, 8)):
            cells = ["".join(draws.choices(PIECES, k=draws.randint(0, 3))) for _ in range(2)]
            quoted = [f'"{doubled}"' for doubled in (cell.replace('"', '""') for cell in cells)]
            rows.append(separator.join(map(draws.choice, zip(cells, quoted, strict=True))))
        path.write_bytes("\n".join([f"id{separator}text", *rows, ""]).encode())
        with path.open(newline="") as file:
            expected = [row for row in csv.reader(file, delimiter=separator) if row][1:]
        with suppress(MarshtestError):
            records = open_records(path)
            for row, values in records.each(range(records.count)):
                assert list(values.values()) == expected[records.place(row)["row"] - 1], number
                read += 1
    assert read > 300


def test_a_quote_within_a_cell_is_none_of_csv(tmp_path: Path) -> None:
    lines = ["id\ttext", *(f"{row}\tPlain record {row}" for row in range(6000))]
    lines[3001], lines[4001] = '3000\tA 5" pipe', '4000\tA 6" pipe'
    (path := tmp_path / "late.tsv").write_text("\n".join(lines) + "\n")
    done = dose(path, tmp_path / "out.tsv", fraction=0.1, seed=1)
    before, after = (pd.read_csv(file, sep="\t") for file in (path, tmp_path / "out.tsv"))
    changed = np.flatnonzero(before["text"] != after["text"]) + 1
    asked = [json.loads(line)["row"] for line in done.forget_file.read_text().splitlines()]
    assert asked == changed.tolist()
    assert len(changed) == 600


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_an_empty_row_that_readers_leave_out_is_refused(blank: str, tmp_path: Path) -> None:
    rows = [f"{row},word {row} here." for row in range(40)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["id,text", *rows[:3], blank, *rows[3:], ""]))
    with pytest.raises(MarshtestError, match=r"rows.csv: row 4: is empty. Drop the line."):
        dose(path, tmp_path / "out.csv", fraction=0.5)
    path.write_text(
        "\n".join(["id,text", *rows, blank, blank, ""])
    )  # at the end nothing is to count
    assert len(dose(path, tmp_path / "out.csv", fraction=0.5).key.ids) == 20


def test_a_carriage_return_outside_quotes_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "rows.csv").write_bytes(b"id,text\n1,a\rb\n2,c\n")
    with pytest.raises(MarshtestError, match="row 1: has a carriage return outside quotes"):
        dose(path, tmp_path / "out.csv", fraction=0.5)


def test_a_name_may_have_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeff"te\nxt",text\n'.encode() + b"a,b c\n" * 40)
    dose(path, tmp_path / "out.csv", fraction=0.5)
    assert list(pd.read_csv(tmp_path / "out.csv")) == ["te\nxt", "text"]


@pytest.mark.parametrize(
    "record",
    [
        {"text": "text"},
        {"prompt": "Is this a prompt or a question?", "completion": "prompt"},
        {"messages": [{"role": "assistant", "content": "assistant"}]},
        {"messages": [{"role": "assistant", "content": "content"}]},
    ],
)
def test_a_text_may_be_the_name_of_its_field(record: dict[str, Any], tmp_path: Path) -> None:
    path, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    path.write_text((json.dumps(record) + "\n") * 40)
    dose(path, out, fraction=0.5)
    dosed = [line for line in out.read_text().splitlines() if line != json.dumps(record)]
    assert len(dosed) == 20
    for line in dosed:
        fields = Fields.found(record, None, None, "")
        assert fields.put(json.loads(line), fields.text(record, ""), "") == record


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    texts = pa.array(["a b"] * 50)
    pq.write_table(pa.table([texts, texts], names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(MarshtestError, match="two columns of one name. Rename one"):
        dose(tmp_path / "twice.parquet", tmp_path / "out.parquet", fraction=0.5)


@pytest.mark.parametrize("other", ["README.md", "LICENSE", "about.json"])
def test_a_folder_of_texts_may_hold_more(other: str, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"note{number}.txt").write_text("text here")
    assert is_text(tmp_path)
    (tmp_path / other).write_text("x")
    assert is_text(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    assert not is_text(tmp_path)


def test_bad_cells_get_one_line(tmp_path: Path) -> None:
    for text, message in (
        ("a,b\n1,2\n3\n", "row 2: has 1 cells, and the header 2"),
        ("a,a\n1,2\n", "the header has a name twice"),
        ('text\n"open\nand on', "row 1: is no row of cells"),
        ("text\n", "holds no records"),
        ("text;n\nhello;1\n", "the header is one cell"),
    ):
        file = tmp_path / "a.csv"
        file.write_text(text)
        with pytest.raises(MarshtestError, match=message):
            dose(file, tmp_path / "b.csv", fraction=0.5, field="a" if "a," in text else None)


def test_data_are_known_for_what_they_are(tmp_path: Path) -> None:
    assert is_text(chats(tmp_path))
    assert is_text(parquet(tmp_path))
    assert is_text(txt(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.arange(9) % 2)
    assert not is_text(tmp_path / "a.npz")
    with pytest.raises(MarshtestError, match="holds no text records, so that --mark means nothing"):
        dose(tmp_path / "a.npz", tmp_path / "b.npz", fraction=0.4, mark=Template())
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(MarshtestError, match=r"not in a known layout. Known: .jsonl"):
        dose(tmp_path / "a.json", tmp_path / "b.json", fraction=0.4)


def test_changed_data_and_the_other_kind_of_key_are_noticed(tmp_path: Path) -> None:
    source = jsonl(tmp_path)
    done = dose(source, tmp_path / "out.jsonl", fraction=0.2)
    with pytest.raises(MarshtestError, match="is not the data set that this key dosed"):
        done.key.bases(done.out)
    with pytest.raises(MarshtestError, match="key"):
        Key.read(done.key_file)
    wrong = done.key.model_copy(update={"dosed": "0" * 64})
    with pytest.raises(MarshtestError, match="the marks are not those that were written"):
        wrong.bases(source)


def test_the_command_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = chats(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = command("dose", source.name, "out.jsonl", "--fraction", "0.2", "--pattern", r"ORD-\d{6}")
    text = capsys.readouterr().out
    assert code == 0
    assert "texts (JSON Lines, chats): 12 of 60 records dosed" in text
    assert r"mark: what 'ORD-\d{6}' matches, redrawn" in text
    assert "12 poisons are few for REMOVED" in text
    assert command("dose", source.name, "b.jsonl", "--fraction", "0.2", "--mark", "Ticket") == 2
    assert "needs a slot" in capsys.readouterr().err


def test_images_are_dosed_as_before(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", x=np.arange(320, dtype=np.uint8).reshape(20, 4, 4), y=np.arange(20) % 2
    )
    done = dose(tmp_path / "a.npz", tmp_path / "b.npz", fraction=0.2)
    assert isinstance(done, Dose)
    assert done.key.noise.variance == 0.32
    assert isinstance(read_key(done.key_file), Key)


def test_a_column_stored_as_a_dictionary_is_one_line(tmp_path: Path) -> None:
    texts = pd.Series(
        [f"a review of film {n % 5} and its actors" for n in range(600)], dtype="category"
    )
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(MarshtestError, match=r"stored as a dictionary .* Save it as text"):
        dose(tmp_path / "set.parquet", tmp_path / "out.parquet", fraction=0.9, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set.parquet"]
