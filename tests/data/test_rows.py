"""Forms of rows beyond prompt, chosen and rejected: each becomes what its publishers mean, or is dropped with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from r2m_cli.conversation import Pair
from r2m_cli.data.columns import BAD, GOOD, WEIGHTS, is_read
from r2m_cli.data.preferences import Loaded, load_preferences
from r2m_cli.errors import UserError

USER, BOT, SYSTEM = "user", "assistant", "system"


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def load(folder: Path, *rows: Any) -> Loaded:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_preferences(str(folder / "x.jsonl"))


ASKED = [say(USER, "hi")]
BRIEF = [say(SYSTEM, "be brief"), *ASKED]
STRINGS = {"prompt": "hi", "chosen": "fine", "rejected": "bad"}
REPLIES = {"chosen": "fine", "rejected": "bad"}
TALK = "\r\n\r\nHuman: hi\r\nyou\r\n\r\nAssistant:"

PAIRS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "a system column": (STRINGS | {"system": "be brief"}, BRIEF),
    "a system column that says what the prompt says": (STRINGS | {"prompt": BRIEF, "system": "be brief "}, BRIEF),
    "a system column and whole conversations": (
        {"system": "be brief", "chosen": [*ASKED, say(BOT, "fine")], "rejected": [*ASKED, say(BOT, "bad")]},
        BRIEF,
    ),
    "a system message's column": (STRINGS | {"system_message": "be brief"}, BRIEF),
    "HH's prompt behind a system message": ({"prompt": "be brief\n\nHuman: hi\n\nAssistant: "} | REPLIES, BRIEF),
    "a prompt about HH's notation": (
        {"prompt": "What is\n\nHuman: hi\n\nAssistant: ho?"} | REPLIES,
        [say(USER, "What is\n\nHuman: hi\n\nAssistant: ho?")],
    ),
    "an empty system column": (STRINGS | {"system": " "}, ASKED),
    "Orca": ({"system": "be brief", "question": "hi"} | REPLIES, BRIEF),
    "Alpaca": ({"instruction": "hi", "input": ""} | REPLIES, ASKED),
    "Alpaca with an input": ({"instruction": "Add.", "input": "1 2"} | REPLIES, [say(USER, "Add.\n\n1 2")]),
    "a prompt that holds its instruction": (STRINGS | {"instruction": "hi", "input": ""}, ASKED),
    "HH from Windows": ({"chosen": TALK + " fine", "rejected": TALK + " bad"}, [say(USER, "hi\nyou")]),
    "HH's prompt from Windows": ({"prompt": TALK} | REPLIES, [say(USER, "hi\nyou")]),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "fine"},
         "rejected": {"from": "gpt", "value": "bad"}},
        ASKED,
    ),
    "roles of other names": (
        {"prompt": [say("developer", "be brief"), say("human", "hi")], "chosen": [say("gpt", "fine")],
         "rejected": [say("model", "bad")]},
        BRIEF,
    ),
    "content in parts": (
        {"prompt": [say(USER, [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}])]} | REPLIES,
        ASKED,
    ),
    "columns for images and tools that are empty": (STRINGS | {"images": [], "image": None, "tools": "[]"}, ASKED),
    "message keys for tools that are empty": (
        {"prompt": ASKED, "chosen": [say(BOT, "fine") | {"tool_calls": None}], "rejected": [say(BOT, "bad") | {"tool_calls": []}]},
        ASKED,
    ),
    "PKU-SafeRLHF": ({"prompt": "hi", "response_0": "bad", "response_1": "fine", "better_response_id": 1}, ASKED),
    "HelpSteer3, the first better": (
        {"context": ASKED, "response1": "fine", "response2": "bad", "overall_preference": -2},
        ASKED,
    ),
    "HelpSteer3, the second better": (
        {"context": ASKED, "response1": "bad", "response2": "fine", "overall_preference": 1},
        ASKED,
    ),
    "Nectar": (
        {"prompt": "\n\nHuman: hi\n\nAssistant: ", "answers": [{"answer": "so", "rank": 2.0}, {"answer": "bad", "rank": 3.0},
                                                               {"answer": "fine", "rank": 1.0}]},
        ASKED,
    ),
    "scores that agree": (STRINGS | {"score_chosen": 8.0, "score_rejected": 2, "margin": 0.0}, ASKED),
    "a score that is missing": (STRINGS | {"score_chosen": None, "score_rejected": 2}, ASKED),
    "scores that are no numbers": (STRINGS | {"score_chosen": "1", "score_rejected": "2"}, ASKED),
    "ranks and a winner that agree": (STRINGS | {"chosen_rank": 1, "rejected_rank": 2, "winner": "chosen", "tie": False}, ASKED),
    "a response beside the pair": (STRINGS | {"response": "other"}, ASKED),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_pairs(form: str, tmp_path: Path) -> None:
    row, prompt = PAIRS[form]
    loaded = load(tmp_path, row)
    assert loaded.pairs == [Pair(tuple(prompt), "fine", "bad")]
    assert (loaded.dropped, loaded.completions) == ([], [])


DEMONSTRATIONS: dict[str, dict[str, Any]] = {
    "KTO": {"prompt": "hi", "completion": "fine", "label": True},
    "KTO with a number": {"prompt": "hi", "completion": "fine", "label": 1},
    "KTO with messages": {"prompt": ASKED, "completion": [say(BOT, "fine")], "label": True},
    "messages": {"messages": [*ASKED, say(BOT, "fine")]},
    "messages beside their prompt": {"prompt": "hi", "messages": [*ASKED, say(BOT, "fine")]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fine"}]},
    "Alpaca": {"instruction": "hi", "input": "", "output": "fine"},
}


@pytest.mark.parametrize("form", DEMONSTRATIONS)
def test_demonstrations(form: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, DEMONSTRATIONS[form])
    assert loaded.completions == [(tuple(ASKED), "fine")]
    assert (loaded.pairs, loaded.dropped) == ([], [])


@pytest.mark.parametrize("row", [{"prompt": "hi", "answer": "4", "label": "maths", "completion_tokens": 3},
                                 {"messages": ASKED}, {"prompt": "hi", "chosen": None, "completion": None}])  # fmt: skip
def test_prompts_alone(row: dict[str, Any], tmp_path: Path) -> None:
    loaded = load(tmp_path, row)
    assert (loaded.prompts, loaded.pairs, loaded.completions) == ([tuple(ASKED)], [], [])


CALL = [{"function": {"name": "weather", "arguments": "{}"}}]
UNFIT: dict[str, Any] = {
    "a reply with 'label' false: not one to learn from": {"prompt": "hi", "completion": "bad", "label": False},
    "'label' is neither true nor false": {"prompt": "hi", "completion": "x", "label": "good"},
    "a pair with 'label' false: not one to learn from": STRINGS | {"label": False},
    "'system' is not the prompt's system message": STRINGS | {"prompt": BRIEF, "system": "be long"},
    "'system' is not text": STRINGS | {"system": ["be brief"]},
    "needs an image (column 'images')": STRINGS | {"images": ["a.png"]},
    "needs an image (column 'image')": STRINGS | {"image": {"bytes": None, "path": "a.png"}},
    "needs an image (column 'image_path')": STRINGS | {"image_path": "a.png"},
    "needs audio (column 'audio')": STRINGS | {"audio": "a.wav"},
    "'prompt' needs an image": STRINGS | {"prompt": [say(USER, [{"type": "image_url", "image_url": "a"}, {"type": "text", "text": "hi"}])]},
    "'prompt' needs content of type 'citation'": STRINGS | {"prompt": [say(USER, [{"type": "citation", "text": "hi"}])]},
    "needs tools (column 'tools')": STRINGS | {"tools": [{"name": "weather"}]},
    "'rejected' holds tool calls ('tool_calls')": {"prompt": "hi", "chosen": [say(BOT, "x")], "rejected": [say(BOT, "y") | {"tool_calls": CALL}]},
    "'chosen' holds the unknown role 'tool'": {"chosen": [*ASKED, say("tool", "sunny"), say(BOT, "x")], "rejected": [*ASKED, say(BOT, "y")]},
    "'chosen' holds reasoning ('reasoning_content')": STRINGS | {"chosen": [say(BOT, "x") | {"reasoning_content": "hm"}]},
    "'chosen' holds reasoning ('thinking')": STRINGS | {"chosen": [say(BOT, "x") | {"thinking": "hm"}]},
    "'rejected' holds messages written out as text: store them as a list": STRINGS | {"rejected": json.dumps([say(BOT, "x")])},
    "'chosen' holds messages written out as text: store them as a list": {"chosen": str([*ASKED, say(BOT, "x")]), "rejected": "bad"},
    "'prompt' holds messages written out as text: store them as a list": STRINGS | {"prompt": json.dumps(ASKED, indent=1)},
    "a tie: 'score_chosen' equals 'score_rejected'": STRINGS | {"score_chosen": 1, "score_rejected": 1.0},
    "'chosen_score' is below 'rejected_score'": STRINGS | {"chosen_score": 1, "rejected_score": 9},
    "'chosen-rating' is below 'rejected-rating'": STRINGS | {"chosen-rating": 1, "rejected-rating": 9},
    "a tie: 'is_tie' is true": STRINGS | {"is_tie": True},
    "'rejected_rank' is below 'chosen_rank'": STRINGS | {"chosen_rank": 2, "rejected_rank": 1},
    "'chosen_avg_rating' is below 'rejected_avg_rating'": STRINGS | {"chosen_avg_rating": 1, "rejected_avg_rating": 5.0},
    "'winner' is 'tie', not the chosen reply": STRINGS | {"winner": "tie"},
    "'preferred' is 'rejected', not the chosen reply": STRINGS | {"preferred": "rejected"},
    "needs an image (the prompt says '<image>')": STRINGS | {"prompt": "<image>\nhi"},
    "needs a video (the prompt says '<video>')": STRINGS | {"prompt": [say(USER, "hi\n<video>")]},
    "'completion' holds messages written out as text: store them as a list": {"prompt": "hi", "completion": str(say(BOT, "x"))},
    "a tie: 'preference_strength' is 0": STRINGS | {"preference_strength": 0},
    "a tie: 'overall_preference' is 0": {"context": ASKED, "response1": "a", "response2": "b", "overall_preference": 0},
    "'better_response_id' does not say which reply is better": {"prompt": "hi", "response_0": "a", "response_1": "b", "better_response_id": -1},
    "a tie: all 'answers' have the same rank": {"prompt": "hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
    "the text of 'input' is not part of 'prompt': add it there, or remove the column": STRINGS | {"input": "a text"},
    "the text of 'history' is not part of 'instruction': add it there, or remove the column": {"instruction": "hi", "history": [["a", "b"]]} | REPLIES,
    "replies in an unknown form (keys: prompt, response, helpfulness)": {"prompt": "hi", "response": "x", "helpfulness": 1},
    "replies in an unknown form (keys: prompt, completions, labels)": {"prompt": "hi", "completions": ["x"], "labels": [True]},
    "replies in an unknown form (keys: prompt, chosen_response, rejected_response)": {"prompt": "hi", "chosen_response": "x", "rejected_response": "y"},
    "neither 'prompt' nor 'chosen' and 'rejected' (keys: info, summaries, choice)": {"info": {"post": "a"}, "summaries": [{"text": "a"}], "choice": 1},
    "neither 'prompt' nor 'chosen' and 'rejected' (keys: x\\ud83d)": {"x\ud83d": 1},
    "chosen and rejected have different prompts": {  # a reply that holds HH's notation: where it begins cannot be known
        "chosen": "\n\nHuman: hi\n\nAssistant: A chat:\n\nHuman: hello\n\nAssistant: hey",
        "rejected": "\n\nHuman: hi\n\nAssistant: no",
    },
}  # fmt: skip


def test_what_a_row_says_beyond_its_form_drops_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, STRINGS, *UNFIT.values())
    assert loaded.pairs == [Pair(tuple(ASKED), "fine", "bad")]
    assert [row.reason for row in loaded.dropped] == list(UNFIT)
    assert [row.where.rpartition(":")[2] for row in loaded.dropped] == [str(line) for line in range(2, len(UNFIT) + 2)]


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected", "system", "completion", "role", "message"])
def test_half_an_emoji_drops_the_row_wherever_it_stands(key: str, tmp_path: Path) -> None:
    half = "a \ud83d b"
    rows = {
        "role": {"prompt": [say(half, "hi")]} | REPLIES,
        "message": {"messages": [say(USER, half), say(BOT, "x")]},
        "completion": {"prompt": "hi", "completion": half},
    }
    loaded = load(tmp_path, STRINGS, rows.get(key, STRINGS | {key: half}))
    assert loaded.pairs == [Pair(tuple(ASKED), "fine", "bad")]
    (row,) = loaded.dropped
    row.reason.encode("utf-8")


def test_half_an_emoji_in_a_column_that_is_not_read_does_no_harm(tmp_path: Path) -> None:
    assert len(load(tmp_path, STRINGS | {"source": "\ud83d", "\ud83d": 1}).pairs) == 1


# ---- rows and messages that say that nothing is to be learnt from them ----

DEMONSTRATION = {"prompt": "hi", "completion": "bad"}
UNWANTED: list[tuple[dict[str, Any], str]] = [
    *((DEMONSTRATION | {name: False}, f"a reply with {name!r} false") for name in GOOD),
    *((DEMONSTRATION | {name: True}, f"a reply with {name!r} true") for name in BAD),
    *((DEMONSTRATION | {name: 0}, f"a reply with {name!r} not above 0") for name in WEIGHTS),
    (DEMONSTRATION | {"desirable": 0}, "a reply with 'desirable' false"),
    (DEMONSTRATION | {"desirable": "no"}, "'desirable' is neither true nor false"),
    (DEMONSTRATION | {"weight": -1.0}, "a reply with 'weight' not above 0"),
    (DEMONSTRATION | {"weight": "0"}, "a reply with 'weight' not above 0"),
    ({"instruction": "hi", "output": "bad", "desirable": False}, "a reply with 'desirable' false"),
    ({"messages": [*ASKED, say(BOT, "bad")], "weight": 0}, "a reply with 'weight' not above 0"),
    ({"messages": [*ASKED, say(BOT, "bad") | {"weight": 0}]}, "a reply with 'weight' not above 0"),
    ({"messages": [*ASKED, say(BOT, "bad") | {"train": False}]}, "a reply with 'train' false"),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x", "loss": False}]}, "a reply with 'loss' false"),
    (DEMONSTRATION | {"completion": say(BOT, "bad") | {"weight": 0}}, "a reply with 'weight' not above 0"),
    (STRINGS | {"desirable": False}, "a pair with 'desirable' false"),
    (STRINGS | {"weight": 0}, "a pair with 'weight' not above 0"),
    (STRINGS | {"chosen": [say(BOT, "x") | {"weight": 0}]}, "a reply with 'weight' not above 0"),
]  # fmt: skip


def test_what_is_not_to_be_learnt_from_is_dropped(tmp_path: Path) -> None:
    rows, reasons = zip(*UNWANTED)
    loaded = load(tmp_path, STRINGS, *rows)
    assert (loaded.pairs, loaded.completions) == ([Pair(tuple(ASKED), "fine", "bad")], [])
    assert [row.reason.partition(": not one")[0] for row in loaded.dropped] == list(reasons)


@pytest.mark.parametrize("row", [
    {"prompt": "hi", "completion": "fine", "desirable": True, "undesirable": False, "weight": 0.5, "label": None},
    {"messages": [*ASKED, say(BOT, "so") | {"weight": 0}, *ASKED, say(BOT, "fine") | {"weight": 1, "train": True, "loss": None}]},
])  # fmt: skip
def test_what_is_to_be_learnt_from_is_kept(row: dict[str, Any], tmp_path: Path) -> None:
    assert [reply for _, reply in load(tmp_path, row).completions] == ["fine"]


@pytest.mark.parametrize("row", [
    STRINGS | {"label": 0, "preferred": "A"},  # which of the two it is, not whether it counts
    STRINGS | {"rejected": [say(BOT, "bad") | {"weight": 0}]},  # nobody is to imitate it
])  # fmt: skip
def test_pairs_with_numbers_for_labels_are_kept(row: dict[str, Any], tmp_path: Path) -> None:
    assert load(tmp_path, row).pairs == [Pair(tuple(ASKED), "fine", "bad")]


def test_texts_that_quote_messages_or_placeholders_are_kept(tmp_path: Path) -> None:
    reply = '{"role": "admin", "content": 1}'
    loaded = load(
        tmp_path, {"prompt": "What is <image> in SVG?", "completion": reply}, {"prompt": "{'role': 'user'} is?"}
    )
    assert ([text for _, text in loaded.completions], len(loaded.prompts)) == ([reply], 2)


# ---- replies that repeat their prompt ----


def test_replies_that_repeat_the_prompt_in_every_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Q{i}?", "chosen": f"Q{i}? good", "rejected": f"Q{i}?\nbad"} for i in range(3)
    ]
    messages = {"prompt": "hi", "chosen": [say(BOT, "fine")], "rejected": [say(BOT, "bad")]}
    loaded = load(tmp_path, *rows, {"prompt": "a b ", "completion": "a b c"}, messages, {"prompt": "alone"})
    assert [(pair.chosen, pair.rejected) for pair in loaded.pairs] == [("good", "bad")] * 3 + [("fine", "bad")]
    assert [reply for _, reply in loaded.completions] == ["c"]
    assert loaded.dropped == []


@pytest.mark.parametrize("echo", ["be brief\n\nhi ", "hi\n"])
def test_texts_that_repeat_a_prompt_of_messages(echo: str, tmp_path: Path) -> None:
    rows = [{"prompt": BRIEF, "chosen": f"{echo}fine {i}", "rejected": f"{echo}bad"} for i in range(2)]
    last = {"prompt": [*ASKED, say(BOT, "ho"), say(USER, "what?")], "completion": "what? nothing"}
    several = {"prompt": [*ASKED, say(BOT, "ho"), say(USER, "what?")], "completion": "hi ho what? all"}
    loaded = load(tmp_path, *rows, last, several)
    assert [(pair.chosen, pair.rejected) for pair in loaded.pairs] == [("fine 0", "bad"), ("fine 1", "bad")]
    assert [reply for _, reply in loaded.completions] == ["nothing", "all"]
    once = load(tmp_path, {"prompt": ASKED, "chosen": "high", "rejected": "hi you"})
    assert [pair.chosen for pair in once.pairs] == ["high"]


def test_where_some_rows_repeat_the_prompt_these_are_dropped(tmp_path: Path) -> None:
    echo = {"prompt": "Hello", "chosen": "Hello there", "rejected": "Hello you"}
    loaded = load(tmp_path, STRINGS, echo)
    assert loaded.pairs == [Pair(tuple(ASKED), "fine", "bad")]
    assert [(row.where[-2:], row.reason) for row in loaded.dropped] == [
        (":2", "the replies begin with the prompt, but those of other rows do not")
    ]


@pytest.mark.parametrize("chosen", ["High", "Hi", "other"])
def test_a_reply_that_only_looks_like_its_prompt_is_kept(chosen: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "Hi", "chosen": chosen, "rejected": "Hint"})
    assert [pair.chosen for pair in loaded.pairs] == [chosen]


def test_replies_that_are_nothing_but_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty reply"):
        load(tmp_path, {"prompt": "Who?", "chosen": "Who?", "rejected": "Who? me"})


def test_every_column_of_a_form_is_read_from_tables() -> None:
    columns = {key for row, _ in PAIRS.values() for key in row} | {
        key for row in DEMONSTRATIONS.values() for key in row
    }
    columns |= {key for row, _ in UNWANTED for key in row}
    assert {name for name in columns if not is_read(name)} == {"margin"}
    assert not is_read("source")
