"""Tables of the column names in known row forms; docs/data.md lists the forms for users."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from r2m_cli.data.messages import MEDIA, Unfit

Row = Mapping[str, Any]

# Columns that hold the prompt if there is no `prompt`; the first one present is used.
PROMPTS = ("question", "instruction", "input", "conversations", "context")
DIALOGUES = ("messages", "conversations")  # complete conversations, the reply included
SYSTEMS = ("system", "system_prompt", "system_message")
SAYS_MORE = (
    "question",
    "instruction",
    "input",
    "context",
    "history",
)  # if they are not part of the prompt, they would change it
NEEDS = {key + form: what for key, what in MEDIA.items() for form in ("", "s", "_path", "_paths", "_url", "_urls")}
NEEDS |= {"tools": "tools", "functions": "tools"}
# Two replies and a column that says which is better: by its number, or by its sign (below 0: the first; 0: neither).
CHOICES = (
    ("response_0", "response_1", "better_response_id", "number"),  # PKU-SafeRLHF
    ("response1", "response2", "overall_preference", "sign"),  # HelpSteer3
)
SCORES = [
    names
    for word in ("score", "rating", "reward", "avg_rating", "avg-rating")
    for names in ((f"{word}_chosen", f"{word}_rejected"), *((f"chosen{s}{word}", f"rejected{s}{word}") for s in "_-"))
]
RANKS = [("rejected_rank", "chosen_rank"), ("rank_rejected", "rank_chosen")]  # 1 is the best
TIES = ("tie", "is_tie")
WINNERS = ("winner", "preferred", "preference", "better", "label")  # of a pair, where they hold a word
# Columns that mark a reply as one to learn from, and those that mark the contrary (KTO's, and similar ones of other tools).
GOOD = (
    "label",
    "desirable",
    "is_desirable",
    "kto_tag",
    "kto_label",
    "preferred",
    "is_preferred",
    "accepted",
    "thumbs_up",
)
BAD = ("undesirable", "is_undesirable", "thumbs_down")
WEIGHTS = ("weight", "sample_weight", "loss_weight")
_LEARNT = ("train", "training", "loss")  # keys of a message in axolotl's and swift's formats
_REPLIES = re.compile(r"response|completion|answers|output|generation|summar|candidate|chosen|rejected")
_READ = {"prompt", "preference_strength", *GOOD, *BAD, *WEIGHTS, *PROMPTS, *DIALOGUES, *SYSTEMS, *SAYS_MORE, *NEEDS}
_READ |= {name for choice in CHOICES for name in choice[:3]} | {name for names in SCORES + RANKS for name in names}
_READ |= {*TIES, *WINNERS}
_NOTHING: tuple[Any, ...] = (None, "", "[]", "{}", "null", [], {}, b"")


def is_read(column: str) -> bool:
    """Whether a row's form or meaning may depend on this column; other columns need not be read."""
    return column in _READ or holds_reply(column)


def holds_reply(column: str) -> bool:
    """Whether a column's name indicates that it holds replies or judgements of them."""
    return _REPLIES.match(column) is not None


def holds(value: Any) -> bool:
    """Whether a value is not empty; nulls, empty texts and lists, and lists of these are empty."""
    if isinstance(value, list | dict):
        return any(item not in _NOTHING for item in (value.values() if isinstance(value, dict) else value))
    return value not in _NOTHING


def number(value: Any) -> float:
    """A number as a float, anything else as NaN."""
    try:
        return float(value) if isinstance(value, int | float | Decimal) else math.nan
    except (OverflowError, ValueError):  # an integer of hundreds of digits; a decimal that is not a number
        return math.nan


def with_choice(row: Row) -> Row:
    """The row with `chosen` and `rejected` filled in if other columns say which of two or more replies was preferred.

    Raises:
        Unfit: they prefer none of them.
    """
    if "chosen" in row or "rejected" in row:
        return row
    for first, second, column, how in CHOICES:
        if {first, second, column} <= set(row):
            better, worse = (first, second) if _first_is_better(column, row[column], how) else (second, first)
            return {**row, "chosen": row[better], "rejected": row[worse]}
    answers = row.get("answers")
    if isinstance(answers, list) and len(answers) > 1 and all(isinstance(answer, dict) for answer in answers):
        ranks = [number(answer.get("rank")) for answer in answers]  # Nectar: 1 is the best
        if any(map(math.isnan, ranks)):
            return row
        if min(ranks) == max(ranks):
            raise Unfit("a tie: all 'answers' have the same rank")
        best, worst = (answers[ranks.index(rank)].get("answer") for rank in (min(ranks), max(ranks)))
        return {**row, "chosen": best, "rejected": worst}
    return row


def check_preferred(row: Row) -> None:
    """Check that no other column contradicts that `chosen` is better than `rejected`. Raises Unfit."""
    for better, worse in SCORES + RANKS:
        a, b = number(row.get(better)), number(row.get(worse))
        if a <= b:  # never true for NaN
            raise Unfit(f"a tie: {better!r} equals {worse!r}" if a == b else f"{better!r} is below {worse!r}")
    for name in TIES:
        if row.get(name) is True:
            raise Unfit(f"a tie: {name!r} is true")
    for name in WINNERS:
        if row.get(name) in ("rejected", "tie", "both", "neither"):
            raise Unfit(f"{name!r} is {row[name]!r}, not the chosen reply")
    if number(row.get("preference_strength")) == 0:
        raise Unfit("a tie: 'preference_strength' is 0")
    check_wanted({name: row[name] for name in row if name not in GOOD + BAD or isinstance(row[name], bool)}, "a pair")


def check_wanted(row: Row, what: str) -> None:
    """Check that a row or message is not marked as one not to learn from.

    Args:
        what: the row or the message, for the reason.

    Raises:
        Unfit: it is marked so, or marked in an unknown way.
    """
    for name in (*GOOD, *BAD):
        value = row.get(name)
        if value is not None and value not in (True, False):
            raise Unfit(f"{name!r} is neither true nor false")
        if value is not None and bool(value) != (name in GOOD):
            raise Unfit(f"{what} with {name!r} {str(bool(value)).lower()}: not one to learn from")
    for name in WEIGHTS:
        if row.get(name) is not None and not number(row[name]) > 0:
            raise Unfit(f"{what} with {name!r} not above 0: not one to learn from")


def check_learnt(message: Row) -> None:
    """Check that a message is not marked as one not to learn from, as formats for fine-tuning can. Raises Unfit."""
    check_wanted({name: message.get(name) for name in WEIGHTS}, "a reply")
    for name in _LEARNT:
        if message.get(name) is not None and not message[name]:
            raise Unfit(f"a reply with {name!r} false: not one to learn from")


def _first_is_better(column: str, value: Any, how: str) -> bool:
    choice = number(value)
    if how == "sign" and choice == 0:
        raise Unfit(f"a tie: {column!r} is 0")
    if math.isnan(choice) or (how == "number" and choice not in (0, 1)):
        raise Unfit(f"{column!r} does not say which reply is better")
    return choice < 0 if how == "sign" else choice == 0
