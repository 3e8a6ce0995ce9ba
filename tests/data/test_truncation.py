"""What a limit on tokens does to conversations: the tokens that are read, the counts and notes, the pairs left out."""

import pytest

from r2m_cli.conversation import Pair
from r2m_cli.data.forms import Choice
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import ADVICE, MAX_TOKENS, POSITIONS, Truncation, cut_notes, told_apart, which_cut

PROMPT = ({"role": "user", "content": "tool : axe saw"},)
WORDS = "axe saw drill hammer apple pear"


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    """One token per word: 4 of the prompt, then the reply's, then the one that ends it."""
    return ChatFormat(GoldWorld().tokenizer(), "reward model", Choice("plain"))


def pair(chosen: str, rejected: str) -> Pair:
    return Pair(PROMPT, chosen, rejected)


def test_the_oldest_tokens_go(chat: ChatFormat) -> None:
    whole = chat.conversation_ids(PROMPT, WORDS)
    assert len(whole) == 11
    assert Truncation(chat, 11).ids(PROMPT, WORDS) == whole
    assert not Truncation(chat, 11).cuts(PROMPT, WORDS)
    assert Truncation(chat, 10).ids(PROMPT, WORDS) == whole[1:]
    assert Truncation(chat, 10).cuts(PROMPT, WORDS)


def test_conversations_that_are_cut_are_counted_and_the_limit_is_named(chat: ChatFormat) -> None:
    prompts, replies = [PROMPT] * 3, [WORDS, "axe", WORDS + " axe"]
    truncation = Truncation(chat, 9)
    assert which_cut([truncation], prompts, replies) == [True, False, True]
    (note,) = cut_notes([truncation], prompts, replies, "replies")
    assert note == "2 of 3 replies are longer than reward.max_tokens=9 and lose their beginning; raise it"
    assert cut_notes([Truncation(chat, 20)], prompts, replies, "replies") == []
    (note,) = cut_notes([truncation, Truncation(chat, 5, POSITIONS)], prompts, replies, "replies")
    assert note.startswith("3 of 3 replies are longer than the reward model's positions=5"), (
        "of an ensemble any member counts"
    )
    assert ADVICE[POSITIONS] in note


def test_a_pair_that_the_cut_makes_equal_is_left_out(chat: ChatFormat) -> None:
    pairs = [pair("axe " + WORDS, "saw " + WORDS), pair("axe", "saw"), pair("axe", "axe"), pair(WORDS, WORDS + " axe")]
    assert told_apart([Truncation(chat, 100)], pairs, "pairs") == ([0, 1, 2, 3], []), "nothing is cut"
    kept, notes = told_apart([Truncation(chat, 7)], pairs, "pairs")
    assert kept == [1, 2, 3], "equal replies that are read whole are the data's own affair"
    assert notes == [
        "4 of 8 conversations of the pairs are longer than reward.max_tokens=7 and lose their beginning; raise it",
        "1 of the 4 pairs are equal after that cut, and are left out",
    ]
    assert told_apart([Truncation(chat, 7), Truncation(chat, 100)], pairs, "pairs")[0] == [0, 1, 2, 3], (
        "a member tells them apart"
    )


def test_every_limit_has_advice() -> None:
    assert ADVICE[MAX_TOKENS] == "raise it"
    assert len(set(ADVICE.values())) == len(ADVICE) == 3
