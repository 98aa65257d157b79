"""Where rows go: whatever a crash has left there, it comes to hold what the store has, once."""

import csv
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.scraper.output.files import Projection, projection
from examples.scraper.output.locks import Locked
from examples.scraper.output.rows import COLUMNS, Row


def row(n: int, **more: Any) -> Row:
    made: Row = dict.fromkeys(COLUMNS)
    made |= {"url": f"http://a/{n}", "title": 'caf\u00e9, "quoted"\n', "selected": {}}
    return made | more


ROWS = [row(n, error={"kind": "http", "message": "no"} if n == 2 else None) for n in range(5)]


def lines_of(form: Any, path: Path) -> bytes:
    done = projection(str(path), form)
    done.complete(ROWS)
    done.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@given(data=st.data())
def test_a_file_is_cut_where_it_is_torn_and_completed(
    folder: Path, form: Any, data: st.DataObject
) -> None:
    whole = lines_of(form, folder / "whole")
    kept = data.draw(st.integers(0, len(whole)))
    torn = data.draw(st.binary(max_size=200))
    path = folder / "torn"
    path.write_bytes(whole[:kept] + torn)
    assert lines_of(form, path) == whole


def write_on(done: Projection) -> None:
    done.complete(ROWS[:2])
    for one in ROWS[2:]:
        done.write([one])
    done.close()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_are_the_same_whether_they_come_late_or_early(folder: Path, form: Any) -> None:
    path = folder / "early"
    path.unlink(missing_ok=True)
    write_on(projection(str(path), form))
    assert path.read_bytes() == lines_of(form, folder / "late")


def test_a_row_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    done = projection(str(tmp_path / "rows"), "jsonl")
    done.complete([])
    done.write(ROWS[:1])
    assert json.loads((tmp_path / "rows").read_text()) == ROWS[0]
    done.close()


def test_csv_can_be_read_back(folder: Path) -> None:
    path = folder / "rows.csv"
    lines_of("csv", path)
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [one["url"] for one in found] == [one["url"] for one in ROWS]
    assert found[0]["title"] == ROWS[0]["title"]
    assert json.loads(found[2]["error"]) == ROWS[2]["error"]
    assert found[0]["error"] == ""


def test_a_table_holds_what_the_store_has(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    write_on(projection(str(path), "sqlite"))
    again = projection(
        str(path), "sqlite", columns=(*COLUMNS, "text")
    )  # as a later version might add columns
    again.complete([row(9, text="x"), *ROWS])
    again.close()
    with sqlite3.connect(path) as sql:
        urls = [url for (url,) in sql.execute("SELECT url FROM pages ORDER BY rowid")]
        assert sql.execute("SELECT text FROM pages LIMIT 1").fetchone() == ("x",)
    sql.close()
    assert urls == ["http://a/9", *(one["url"] for one in ROWS)]


def test_standard_output_is_written_to_and_left_open(capfdbinary: Any) -> None:
    done = projection("-", "csv")
    done.complete([])
    done.write(ROWS[:1])
    done.close()
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines[0] == ",".join(COLUMNS).encode()
    assert lines[1].startswith(b"http://a/0,")
    with pytest.raises(ValueError, match="standard output"):
        projection("-", "sqlite")


def test_what_cannot_be_encoded_is_escaped(tmp_path: Path) -> None:
    for form in ("jsonl", "csv"):
        done = projection(str(tmp_path / form), form)
        done.complete([row(1, title="\udc80")])
        done.close()
        assert b"udc80" in (tmp_path / form).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks")
@pytest.mark.parametrize("form", ["jsonl", "csv", "sqlite"])
def test_what_one_crawl_writes_to_another_leaves_as_it_is(tmp_path: Path, form: Any) -> None:
    path = tmp_path / "rows"
    first = projection(str(path), form)
    first.complete(ROWS[:2])
    before = path.read_bytes()
    with pytest.raises(Locked, match="another crawl writes to it"):
        projection(str(path), form)
    assert path.read_bytes() == before
    first.write(ROWS[2:])
    first.close()
    projection(str(path), form).close()
