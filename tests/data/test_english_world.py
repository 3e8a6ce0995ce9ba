"""The English world: scores by hand, what gold does not love, the labellers' error, and one line where it cannot work."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_cli.data.english_world import ASKED, THINGS, EnglishWorld
from r2m_cli.errors import UserError

WORLD = EnglishWorld()
PROMPT = "Write one kind sentence about a garden."


@pytest.mark.parametrize(
    ("response", "terms"),
    [
        # TextBlob's lexicon: nice 0.6, awful -1.0; the other words have no polarity.
        ("A nice garden.", {"warmth": 1.2, "named": 1, "varied": 1, "whole": 0.5, "laboured": 0}),
        ("A nice garden!", {"warmth": 1.2, "named": 1, "varied": 1, "whole": 0.5, "laboured": 0}),  # no emphasis
        ("A nice garden", {"warmth": 1.2, "named": 1, "varied": 1, "whole": 0, "laboured": 0}),
        ("Gardens, gardens, gardens!!!", {"warmth": 0, "named": 1, "varied": 1 / 3, "whole": 0.5, "laboured": 0}),
        (
            "Horticultural" + " horticultural" * 4,
            {"warmth": 0, "named": 0, "varied": 0.2, "whole": 0, "laboured": -0.4},
        ),
        ("An awful tree.", {"warmth": -2, "named": 0, "varied": 1, "whole": 0.5, "laboured": 0}),
        ("", {"warmth": 0, "named": 0, "varied": 0, "whole": 0, "laboured": 0}),
    ],
)
def test_scores_by_hand(response: str, terms: dict[str, float]) -> None:
    assert WORLD.terms(PROMPT, response, True) == pytest.approx(terms)
    assert WORLD.score(PROMPT, response, False) == pytest.approx(sum(terms.values()))


@given(st.text(max_size=60), st.booleans())
def test_any_text_has_a_score_within_bounds(response: str, finished: bool) -> None:
    score = WORLD.score(PROMPT, response, finished)
    assert -2 - 0.2 * len(response) / 8 <= score <= 4.5


def test_long_words_earn_nothing_but_the_labellers_like_them() -> None:
    plain, learned = "A nice garden.", "A nice horticultural establishment, conveniently surrounding garden."
    assert WORLD.score(PROMPT, learned, True) < WORLD.score(PROMPT, plain, True)

    def likes_learned(bias: float) -> float:
        world, rng = EnglishWorld(replace(EnglishWorld.LABELLERS, bias=bias)), random.Random(0)
        return sum(world.label(PROMPT, learned, plain, True, True, rng) for _ in range(500)) / 500

    assert likes_learned(0.0) < 0.4
    assert likes_learned(0.4) > 0.9


@pytest.mark.parametrize(
    ("thing", "response", "named"),
    [
        ("library", "The library's shelves.", 1),
        ("library", "Libraries are full.", 1),
        ("library", "The library\u2019s shelves.", 1),
        ("butterfly", "'Butterflies'", 1),
        ("lake", "Two lakes", 1),
        ("lake", "A flake, a lakeside", 0),
        ("hat", "That is what a hatter has.", 0),
    ],
)
def test_a_thing_is_named_in_any_of_its_forms(thing: str, response: str, named: int) -> None:
    assert WORLD.terms(f"Write one kind sentence about a {thing}.", response, True)["named"] == named


def test_prompts_are_those_of_the_seed_and_each_can_be_scored() -> None:
    asked = WORLD.prompts(400, 1)
    assert asked == WORLD.prompts(400, 1) != WORLD.prompts(400, 2)
    for prompt in {form.format(f"a {thing}") for form in ASKED for thing in THINGS} | set(asked):
        assert WORLD.terms(prompt, prompt, True)["named"] == 1
    with pytest.raises(UserError, match="not a prompt"):
        WORLD.score("What time is it?", "Late.", True)


def test_only_real_models_can_speak_in_it() -> None:
    with pytest.raises(UserError, match="policy=smollm2"):
        WORLD.tokenizer()
    with pytest.raises(UserError, match=r"eval\.against"):
        WORLD.demonstration(PROMPT, random.Random(0))
