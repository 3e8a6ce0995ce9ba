"""Preference data: every form of row and file gives the same pairs; bad rows are named, damage refused."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.conversation import Pair
from r2m_cli.data.messages import parse_transcript, write_transcript
from r2m_cli.data.preferences import Dropped, describe, load_preferences
from r2m_cli.errors import UserError

USER, BOT = "user", "assistant"


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


ROWS = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
PAIRS = [Pair((say(USER, f"question {i}"),), f"good {i}", f"bad {i}") for i in range(4)]
PAIR = PAIRS[0]
TALK = [say(USER, "hi"), say(BOT, "hello"), say(USER, "how are you?")]
SYSTEM = say("system", "be brief")


# ---- row forms ----

HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how are you?\n\nAssistant:"
FORMS = {
    "HH dialogues": ({"chosen": HH + " fine", "rejected": HH + " bad"}, TALK),
    "HH prompt, bare replies": ({"prompt": HH, "chosen": " fine", "rejected": " bad"}, TALK),
    "HH prompt without its leading newlines": (
        {"prompt": HH.lstrip(), "chosen": "fine", "rejected": "bad"},
        TALK,
    ),
    "strings": ({"prompt": "hi", "chosen": "fine", "rejected": "bad"}, TALK[:1]),
    "messages, replies as strings": ({"prompt": TALK, "chosen": "fine", "rejected": "bad"}, TALK),
    "messages, replies as messages": (
        {"prompt": TALK, "chosen": [say(BOT, "fine")], "rejected": [say(BOT, "bad")]},
        TALK,
    ),
    "implicit prompt": ({"chosen": [*TALK, say(BOT, "fine")], "rejected": [*TALK, say(BOT, "bad")]}, TALK),
    "UltraFeedback: prompt string and whole conversations": (
        {
            "prompt": "hi",
            "chosen": [say(USER, "hi"), say(BOT, "fine")],
            "rejected": [say(USER, "hi"), say(BOT, "bad")],
            "messages": [],
            "score_chosen": 8.0,
        },
        TALK[:1],
    ),
    "system message in the prompt": (
        {"prompt": [SYSTEM, *TALK], "chosen": "fine", "rejected": "bad"},
        [SYSTEM, *TALK],
    ),
    "system message in the conversations only": (
        {
            "prompt": "hi",
            "chosen": [SYSTEM, say(USER, "hi"), say(BOT, "fine")],
            "rejected": [SYSTEM, say(USER, "hi"), say(BOT, "bad")],
        },
        [SYSTEM, say(USER, "hi")],
    ),
    "replies that go on over turns": (
        {"prompt": "hi", "chosen": [*TALK[1:], say(BOT, "fine")], "rejected": [*TALK[1:], say(BOT, "bad")]},
        TALK,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_row_form(form: str, tmp_path: Path) -> None:
    row, prompt = FORMS[form]
    loaded = load_preferences(write(tmp_path / "x.jsonl", [row]))
    assert loaded.pairs == [Pair(tuple(prompt), "fine", "bad")]
    assert loaded.prompts == [tuple(prompt)]
    assert loaded.dropped == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi"},
        {"prompt": [say(USER, "hi")]},
        {"prompt": "\n\nHuman: hi\n\nAssistant:"},
        {"prompt": "hi", "completion": " x"},
    ],
)
def test_prompts_alone(row: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_preferences(write(tmp_path / "x.jsonl", [row]))
    assert (loaded.pairs, loaded.prompts) == ([], [(say(USER, "hi"),)])


def test_a_completion_is_a_reply_that_nobody_judged(tmp_path: Path) -> None:
    replied = [{"role": "assistant", "content": "y"}]
    rows = [{"prompt": "hi", "completion": " x"}, {"prompt": "ho", "completion": replied}, {"prompt": "he"}]
    loaded = load_preferences(write(tmp_path / "x.jsonl", rows))
    assert [(prompt[0]["content"], reply) for prompt, reply in loaded.completions] == [("hi", "x"), ("ho", "y")]
    assert loaded.pairs == []
    assert "2 completions" in describe(loaded)[0]
    bad = load_preferences(write(tmp_path / "y.jsonl", [*rows, {"prompt": "hu", "completion": 3}]))
    assert [row.where.rpartition(":")[2] for row in bad.dropped] == ["4"]


def test_prompts_keep_their_order_and_lose_duplicates(tmp_path: Path) -> None:
    rows = [{"prompt": "b"}, ROWS[0], {"prompt": "a"}, {**ROWS[0], "chosen": "other"}, {"prompt": "b"}]
    loaded = load_preferences(write(tmp_path / "x.jsonl", rows))
    assert [prompt[0]["content"] for prompt in loaded.prompts] == ["b", "question 0", "a"]
    assert len(loaded.pairs) == 2
    assert loaded.rows == 5


def test_message_keys_beside_role_and_content_are_left_out(tmp_path: Path) -> None:
    row = {"prompt": [{**say(USER, "hi"), "name": "Ann"}], "chosen": "a", "rejected": "b"}
    assert load_preferences(write(tmp_path / "x.jsonl", [row])).prompts == [(say(USER, "hi"),)]


# ---- bad rows ----

BAD = {
    "chosen and rejected have different prompts": {
        "chosen": "\n\nHuman: a\n\nAssistant: x",
        "rejected": "\n\nHuman: b\n\nAssistant: y",
    },
    "empty reply": {"prompt": "hi", "chosen": " \n", "rejected": "x"},
    "chosen equals rejected": {"prompt": "hi", "chosen": "x ", "rejected": "x"},
    "the roles do not alternate": {
        "prompt": [say(USER, "a"), say(USER, "b")],
        "chosen": "x",
        "rejected": "y",
    },
    "the prompt does not end with a user turn": {"prompt": TALK[:2], "chosen": "x", "rejected": "y"},
    "empty turn in the prompt": {"prompt": "  ", "chosen": "x", "rejected": "y"},
    "missing key 'rejected'": {"prompt": "hi", "chosen": "x"},
    "missing key 'prompt'": {"chosen": "x", "rejected": "y"},
    "neither 'prompt' nor 'chosen' and 'rejected' (keys: text)": {"text": "hi"},
    "'prompt' is neither text nor a list of messages": {"prompt": 3, "chosen": "x", "rejected": "y"},
    "'prompt' holds a message without text in 'role' and 'content'": {"prompt": [{"role": USER, "content": None}]},
    "'chosen' holds the unknown role 'tool'": {"prompt": "a", "chosen": [say("tool", "x")], "rejected": "y"},
    "'chosen' does not end with an assistant turn": {
        "prompt": "a",
        "chosen": [say(USER, "a")],
        "rejected": "y",
    },
    "the conversation in 'chosen' does not contain 'prompt'": {
        "prompt": "a",
        "chosen": [say(USER, "b"), say(BOT, "x")],
        "rejected": "y",
    },
    "text with half a Unicode character": {"prompt": "hi", "chosen": "\ud83d", "rejected": "y"},
    "the row is not an object": ["prompt", "chosen", "rejected"],
}


def test_every_bad_row_is_dropped_with_its_line_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [ROWS[0], *BAD.values(), ROWS[1]])
    loaded = load_preferences(path)
    assert loaded.pairs == PAIRS[:2]
    assert loaded.dropped == [Dropped(f"{path}:{line}", reason) for line, reason in enumerate(BAD, 2)]
    assert loaded.rows == len(BAD) + 2


def test_hh_rows_whose_roles_do_not_alternate_or_end_wrong(tmp_path: Path) -> None:
    twice = "\n\nHuman: a\n\nAssistant: b\n\nAssistant:"
    open_end = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    rows = [
        {"chosen": twice + " x", "rejected": twice + " y"},
        {"chosen": open_end, "rejected": open_end},
        ROWS[0],
    ]
    reasons = [row.reason for row in load_preferences(write(tmp_path / "x.jsonl", rows)).dropped]
    assert reasons == [
        "the prompt does not end with a user turn",
        "'chosen' does not end with an assistant turn",
    ]


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{json.dumps(ROWS[0])}\n\n \n{json.dumps({'prompt': ''})}\n")
    assert load_preferences(str(path)).dropped == [Dropped(f"{path}:5", "empty turn in the prompt")]


def test_describe_counts_and_places(tmp_path: Path) -> None:
    empty = {**ROWS[0], "chosen": ""}
    path = write(tmp_path / "x.jsonl", [*ROWS, empty, empty, empty, empty, {"prompt": 1}])
    first, *rest = describe(load_preferences(path))
    assert first == f"{path}: 9 rows: 4 pairs kept, 4 different prompts, 5 dropped"
    assert rest == [
        "  dropped 4: empty reply (x.jsonl:5, x.jsonl:6, x.jsonl:7, ...)",
        "  dropped 1: 'prompt' is neither text nor a list of messages (x.jsonl:9)",
    ]


# ---- file forms ----


def _jsonl(folder: Path) -> Path:
    return Path(write(folder / "x.jsonl", ROWS))


def _jsonl_gz(folder: Path) -> Path:
    path = folder / "x.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def _json_list(folder: Path) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(ROWS, indent=2))
    return path


def _json_data_gz(folder: Path) -> Path:
    path = folder / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"version": 1, "data": ROWS}).encode()))
    return path


def _json_lines_named_json(folder: Path) -> Path:
    return Path(write(folder / "x.json", ROWS))


def _with_bom(folder: Path) -> Path:
    path = folder / "x.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8-sig")
    return path


def _parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "x.parquet")
    return folder / "x.parquet"


def _saved(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _saved_dict(folder: Path) -> Path:
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _folder_by_split(folder: Path) -> Path:
    (folder / "set" / "data").mkdir(parents=True)
    write(folder / "set" / "data" / "test-00000-of-00001.jsonl", ROWS[:1])
    write(folder / "set" / "data" / "train-00000-of-00002.jsonl", ROWS[:2])
    write(folder / "set" / "data" / "train-00001-of-00002.jsonl", ROWS[2:])
    (folder / "set" / "dataset_infos.json").write_text("{}")
    return folder / "set"


def _folder_without_splits(folder: Path) -> Path:
    (folder / "set").mkdir()
    write(folder / "set" / "a.jsonl", ROWS[:3])
    write(folder / "set" / "b.jsonl", ROWS[3:])
    return folder / "set"


@pytest.mark.parametrize(
    "make",
    [_jsonl, _jsonl_gz, _json_list, _json_data_gz, _json_lines_named_json, _with_bom, _parquet,
     _saved, _saved_dict, _folder_by_split, _folder_without_splits],
)  # fmt: skip
def test_file_form(make: Any, tmp_path: Path) -> None:
    loaded = load_preferences(str(make(tmp_path)))
    assert loaded.pairs == PAIRS
    assert loaded.dropped == []


@pytest.mark.parametrize("make", [_saved_dict, _folder_by_split])
def test_split(make: Any, tmp_path: Path) -> None:
    path = str(make(tmp_path))
    assert load_preferences(path, split="test").pairs == PAIRS[:1]
    with pytest.raises(UserError, match=r"validation.*train"):
        load_preferences(path, split="validation")


def test_message_lists_survive_parquet(tmp_path: Path) -> None:
    rows = [FORMS["implicit prompt"][0], {**FORMS["implicit prompt"][0], "rejected": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    loaded = load_preferences(str(tmp_path / "x.parquet"))
    assert loaded.pairs == [Pair(tuple(TALK), "fine", "bad")]
    assert loaded.dropped == [Dropped(f"{tmp_path / 'x.parquet'}:row 2", "missing key 'rejected'")]


def test_line_separators_inside_text_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**ROWS[0], "chosen": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert load_preferences(str(path)).pairs[0].chosen == "a\u2028b\x85c"


def test_limit_counts_usable_rows_and_stops(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": ""}, *ROWS])
    loaded = load_preferences(path, limit=2)
    assert (loaded.pairs, len(loaded.dropped), loaded.rows) == (PAIRS[:2], 1, 3)
    with pytest.raises(UserError, match="limit"):
        load_preferences(path, limit=0)


# ---- what is refused ----


def test_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1])[:-9] + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:3: not valid JSON .*damaged"):
        load_preferences(str(path))


def test_list_named_jsonl_says_how_to_name_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(UserError, match=r"x\.jsonl:1: .*\.json$"):
        load_preferences(str(path))


def test_json_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-20])
    with pytest.raises(UserError, match=r"x\.json:\d+: not valid JSON"):
        load_preferences(str(path))


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0.05, 0.99))
def test_gzip_cut_anywhere_is_refused(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{**ROWS[0], "prompt": os.urandom(20).hex()} for _ in range(50)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path_factory.mktemp("cut") / "x.jsonl.gz"
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz:\d+: .*again"):
        load_preferences(str(path))


def test_plain_text_named_gz(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.jsonl\.gz:1: damaged gzip"):
        load_preferences(write(tmp_path / "x.jsonl.gz", ROWS))


def test_parquet_cut_short(tmp_path: Path) -> None:
    path = _parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"x\.parquet:row 1: unreadable parquet"):
        load_preferences(str(path))


def test_saved_data_set_without_its_arrow_file(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    for shard in path.glob("*.arrow"):
        shard.unlink()
    with pytest.raises(UserError, match="damaged data set"):
        load_preferences(str(path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_encoding_other_than_utf8(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps({**ROWS[0], "chosen": "é"}, ensure_ascii=False).encode(encoding))
    with pytest.raises(UserError, match=r"x\.jsonl:1: not UTF-8"):
        load_preferences(str(path))


def test_missing_file_suggests_the_near_name(tmp_path: Path) -> None:
    write(tmp_path / "pairs_train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"did you mean .*pairs_train\.jsonl\?"):
        load_preferences(str(tmp_path / "pairs_trian.jsonl"))
    with pytest.raises(UserError, match="and no folder"):
        load_preferences(str(tmp_path / "nowhere" / "x.jsonl"))


def test_file_name_of_two_parts_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_preferences("data/x.jsonl")


def test_hub_name_offline_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no-such-owner/no-such-set: .* hub .*give a file .*\.jsonl"):
        load_preferences("no-such-owner/no-such-set")


@pytest.mark.parametrize(("name", "what"), [("x.csv", "unknown kind"), ("x.jsonl", "no rows"), ("x.json", "no rows")])
def test_other_files(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=what):
        load_preferences(str(tmp_path / name))


def test_json_that_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("3")
    with pytest.raises(UserError, match="neither a list"):
        load_preferences(str(tmp_path / "x.json"))


def test_empty_path_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        load_preferences("")
    with pytest.raises(UserError, match="folder without data"):
        load_preferences(str(tmp_path))


def test_nothing_left_names_the_most_common_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": ""}, {"text": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match=r"no usable row; 3 dropped, 2 of them: .*keys: text.*x\.jsonl:2"):
        load_preferences(path)


# ---- HH notation ----

turn_text = st.text(max_size=30).map(str.strip).filter(lambda text: text and "\n\n" not in text)


@given(turns=st.lists(turn_text, min_size=1, max_size=6), system=st.none() | turn_text)
def test_transcript_round_trip(turns: list[str], system: str | None) -> None:
    messages = [say((USER, BOT)[i % 2], text) for i, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, say("system", system))
    assert parse_transcript(write_transcript(messages)) == messages


@given(st.text())
def test_parse_transcript_takes_any_text(text: str) -> None:
    assert all(turn["role"] in ("user", "assistant", "system") for turn in parse_transcript(text))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["\n\nHuman: a\n\nAssistant: b"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["prompt", "chosen", "rejected", "role", "content", "x"]),
                    inner,
                    max_size=4,
                )
            ),
        ),
        max_size=5,
    )
)
def test_no_row_whatever_breaks_the_loader(rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever valid JSON holds, each row is kept or dropped; nothing else is raised."""
    loaded = load_preferences(write(tmp_path_factory.mktemp("any") / "x.jsonl", [*rows, ROWS[0]]))
    assert loaded.rows == len(rows) + 1
    assert loaded.pairs[-1] == PAIR
    assert all(pair.chosen and pair.rejected and pair.prompt[-1]["role"] == USER for pair in loaded.pairs)


# ---- the real files, where they are ----


@pytest.mark.skipif("R2M_SHARED_DATA" not in os.environ, reason="R2M_SHARED_DATA names no folder with the real files")
@pytest.mark.parametrize(
    ("name", "pairs", "prompts", "dropped"),
    [
        (
            "hh_rlhf_harmless_base.jsonl.gz",
            1791,
            1789,
            {
                "empty reply": 4,
                "the roles do not alternate": 3,
                "chosen and rejected have different prompts": 2,
            },
        ),
        ("pandalm_train.jsonl", 719, 133, {"empty reply": 52}),
        ("pandalm_test.jsonl", 117, 20, {}),
    ],
)
def test_real_files(name: str, pairs: int, prompts: int, dropped: dict[str, int]) -> None:
    loaded = load_preferences(str(Path(os.environ["R2M_SHARED_DATA"]) / name))
    assert (len(loaded.pairs), len(loaded.prompts)) == (pairs, prompts)
    assert Counter(row.reason for row in loaded.dropped) == dropped
