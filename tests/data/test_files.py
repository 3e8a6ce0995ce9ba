"""Single files: what cannot be read is one line at once, whatever the bytes; odd tables lose rows, not the run."""

import datetime
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.data.preferences import describe, load_preferences
from r2m_cli.errors import UserError
from r2m_cli.files.regular import require_regular

ROW = {"prompt": "hi", "chosen": "fine", "rejected": "bad"}
COLUMNS = {key: [value, value] for key, value in ROW.items()}


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(COLUMNS | columns), path)
    return str(path)


# ---- what is no file ----


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "link to nothing", "link to itself", "nothing"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to(path if kind == "link to itself" else tmp_path / "y")
    if kind in ("nothing", "link to nothing"):
        require_regular(path)  # whoever opens it says that it is missing
    else:
        with pytest.raises(UserError, match=f"^{path}: (not a regular file but a {kind};|cannot be read)"):
            require_regular(path)
    with pytest.raises(UserError, match=f"^{path}: "):
        load_preferences(str(path))


@pytest.mark.parametrize("path", ["/" + "x" * 300, "~nobody-of-this-name/x.jsonl", "x\0.jsonl"])
def test_paths_that_no_file_can_have(path: str) -> None:
    with pytest.raises(UserError, match=r"no such file|cannot be read"):
        load_preferences(path)


# ---- names ----


@pytest.mark.parametrize(("there", "asked", "meant"), [
    ("weird", "wierd", True), ("pairs_train", "pairs_trian", True), ("weird", "nope", False), ("a", "b", False),
])  # fmt: skip
def test_only_a_name_that_is_near_is_suggested(there: str, asked: str, meant: bool, tmp_path: Path) -> None:
    (tmp_path / f"{there}.jsonl").write_text("")
    with pytest.raises(
        UserError, match=rf"no such file; did you mean .*{there}\.jsonl\?" if meant else "no such file; give"
    ):
        load_preferences(str(tmp_path / f"{asked}.jsonl"))


@pytest.mark.parametrize("name", ["données", "O'Brien, (1)=x", "a[b]{c}"])
def test_files_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROW))
    assert load_preferences(str(tmp_path / f"{name}.jsonl")).pairs[0].where == f"{tmp_path}/{name}.jsonl:1"


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    Path(path).write_text(json.dumps(ROW) + "\n{}\n")
    loaded = load_preferences(path)
    said = [loaded.pairs[0].where, *describe(loaded)]
    assert "caf\\udce9.jsonl:2" in said[-1]
    assert all(line.encode("utf-8") for line in said)
    with pytest.raises(UserError) as caught:
        load_preferences(path.replace("caf", "no such name "))
    assert str(caught.value).encode("utf-8")


def test_a_single_file_does_not_import_datasets(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW))
    code = "import sys; from r2m_cli.data.readers import read_rows; list(read_rows('x.jsonl')); print('datasets' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


# ---- tables ----

FAR = pa.array([2**62, 0]).cast(pa.int64()).view(pa.timestamp("us"))  # the year 146,000: no datetime can hold it


@pytest.mark.parametrize(
    "column",
    [
        FAR,
        pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32()),
        pa.array([b"\xff", b""]),
        pa.array([2**62, 0]).view(pa.duration("s")),
    ],
)
def test_columns_that_are_not_used_are_not_read(column: Any, tmp_path: Path) -> None:
    assert len(load_preferences(parquet(tmp_path / "x.parquet", created=column)).pairs) == 2


def test_a_value_that_cannot_be_read_drops_its_row(tmp_path: Path) -> None:
    fields = [pa.array(["user", "user"]), pa.array(["hi", "ho"]), FAR]
    turns = pa.StructArray.from_arrays(fields, names=["role", "content", "when"])
    prompts = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), turns)
    loaded = load_preferences(parquet(tmp_path / "x.parquet", prompt=prompts))
    assert [pair.where[-5:] for pair in loaded.pairs] == ["row 2"]
    assert [row.where[-5:] for row in loaded.dropped] == ["row 1"]


def test_columns_of_dictionaries_and_large_text(tmp_path: Path) -> None:
    columns = {
        "prompt": pa.array(["hi", "hi"]).dictionary_encode(),
        "chosen": pa.array(["fine", "fine"], pa.large_string()),
    }
    assert load_preferences(parquet(tmp_path / "x.parquet", **columns)).pairs[1].chosen == "fine"


def test_columns_that_are_left_out_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "created": [datetime.date(2020, 1, 1)]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"keys: text, created"):
        load_preferences(str(tmp_path / "x.parquet"))


def test_saved_images_are_not_decoded(tmp_path: Path) -> None:
    """Decoding needs Pillow; that a row has an image is all that matters."""
    features = datasets.Features(
        {key: datasets.Value("string") for key in ROW}
        | {"image": datasets.Image(), "when": datasets.Value("timestamp[us]")}
    )
    rows = [{**ROW, "image": None, "when": None}, {**ROW, "image": {"path": None, "bytes": b"no image"}, "when": None}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    loaded = load_preferences(str(tmp_path / "saved"))
    assert len(loaded.pairs) == 1
    assert loaded.dropped[0].reason == "needs an image (column 'image')"


# ---- any bytes ----


def _whole(kind: str) -> bytes:
    lines = "".join(
        json.dumps(row) + "\n" for row in (ROW, {"messages": [{"role": "user", "content": "\ud83d"}]}, {"prompt": 1})
    )
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(COLUMNS | {"created": FAR}), sink)
        return bytes(sink.getvalue())
    return gzip.compress(lines.encode()) if kind == "jsonl.gz" else lines.encode()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["jsonl", "json", "jsonl.gz", "parquet"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=8)), max_size=4),
)
def test_any_bytes_are_rows_or_one_line(
    kind: str, cuts: list[tuple[float, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file of every kind with parts taken out and others put in."""
    data = _whole(kind)
    for place, length, put in cuts:
        at = int(place * len(data))
        data = data[:at] + put + data[at + length :]
    path = tmp_path_factory.mktemp("any") / f"x.{kind}"
    path.write_bytes(data)
    try:
        said = describe(load_preferences(str(path)))
    except UserError as error:
        said = [str(error)]
        assert "\n" not in said[0]
        assert said[0].startswith(str(path))
    assert "\n".join(said).encode("utf-8")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"images": ' + "[" * 900 + "]" * 900 + "}", "9" * 5000, '{"score_chosen": 1' + "0" * 400 + ', "score_rejected": 1, "prompt": "", "chosen": "a", "rejected": "b"}', "\0", '"a"', "NaN"])  # fmt: skip
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_that_is_hard_to_read(text: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{ending}").write_text(text)
    with pytest.raises(UserError, match=rf"x\.{ending}"):
        load_preferences(str(tmp_path / f"x.{ending}"))
