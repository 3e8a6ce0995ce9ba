"""The gold world: hand-worked scores, invariants, the labellers' bias, the tokenizer's promises."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from r2m_cli.data.gold_world import FILLERS, POLITE, TOPIC_OF, TOPICS, GoldWorld
from r2m_cli.data.words import SPECIALS
from r2m_cli.errors import UserError

PROMPT = "fruit : pear apple"
PERFECT = "i suggest apple lemon mango pear thanks ."
WORLD = GoldWorld()
LABELLERS = GoldWorld.LABELLERS
TOKENIZER = WORLD.tokenizer()

vocabulary = sorted(set(TOKENIZER.get_vocab()) - set(SPECIALS))
responses = st.lists(st.sampled_from(vocabulary), max_size=20).map(" ".join)


@pytest.fixture(scope="module", params=["fresh", "reloaded"])
def tokenizer(request, tmp_path_factory):
    """The tokenizer as made, and the same after save_pretrained and AutoTokenizer.from_pretrained."""
    if request.param == "fresh":
        return TOKENIZER
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def chat(tokenizer, prompt, response=None):
    """Token ids of a conversation: the generation prompt, or the whole of it with the response."""
    messages = [{"role": "user", "content": prompt}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=response is None)
    return tokenizer.encode(text)


# --- gold ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "points"),
    [
        ("", 0.0),
        ("mango", 0.6),  # one on-topic word; one word has no order
        ("apple", 1.2),  # on-topic 0.6 + key word 0.6
        ("lemon mango", 1.8),  # 2 x 0.6 + order 0.6
        ("mango lemon", 0.6),  # 2 x 0.6 - order 0.6
        ("banana mango lemon", 2.0),  # 3 x 0.6 + 0.6 x (2 - 1) / 3
        ("banana cherry grape lemon mango", 3.0),  # 4 x 0.6, the fifth earns nothing + order 0.6
        ("mango mango", 0.2),  # 0.6 - 0.4
        ("wolf", -0.6),
        ("wolf wolf", -1.2),  # off-topic words count each time
        ("really", -0.15),
        ("zebra", -0.15),  # unknown words are fillers
        ("fruit", -0.15),  # naming the topic is no answer
        ("<user>", -0.15),
        ("i suggest", 0.3),
        ("suggest i", -0.3),  # two fillers
        ("really i suggest", -0.45),  # the opening must open
        (".", 0.3),
        (". thanks", 0.05),  # a stop out of place -0.15 + polite 0.2
        ("thanks", 0.2),
        ("thanks please", 0.2),
        ("thanks please thanks", -0.2),  # 0.2 - 0.4: repeats count too
        ("so " * 13, -2.35),  # 13 x -0.15 - 2 x 0.2
        (PERFECT, 5.0),
    ],
)
def test_hand_worked_scores(response, points):
    assert WORLD.score(PROMPT, response, finished=True) == pytest.approx(points)


def test_a_cut_off_response_loses_a_point():
    assert WORLD.score(PROMPT, PERFECT, finished=False) == pytest.approx(4.0)


def test_the_score_is_linear_in_its_weights():
    class Doubled(GoldWorld):
        POINTS = GoldWorld.POINTS | {"on_topic": 1.2}

    doubled = Doubled()
    assert doubled.score(PROMPT, PERFECT, True) == pytest.approx(5.0 + 2.4)
    assert doubled.terms(PROMPT, PERFECT, True)["on_topic"] == pytest.approx(4.8)


def test_spacing_of_signs_does_not_matter():
    assert WORLD.score(PROMPT, "  i suggest apple   lemon mango pear thanks.\n", True) == pytest.approx(5.0)


@given(st.text() | responses, st.booleans())
def test_any_text_has_a_score_and_none_beats_perfect(response, finished):
    score = WORLD.score(PROMPT, response, finished)
    assert score == WORLD.score(PROMPT, response, finished)
    assert score <= 5.0 + 1e-9


@given(responses, st.sampled_from(FILLERS), st.data())
def test_a_filler_never_helps(response, filler, data):
    words = response.split()
    words.insert(data.draw(st.integers(0, len(words))), filler)
    assert WORLD.score(PROMPT, " ".join(words), True) < WORLD.score(PROMPT, response, True)


@given(responses)
def test_every_word_is_counted_once(response):
    class Unit(GoldWorld):
        POINTS = GoldWorld.POINTS | {"on_topic": 1, "repeat": 1, "off_topic": 1, "filler": 1}
        MAX_ON_TOPIC = 99

    terms = Unit().terms(PROMPT, response, True)
    polite = sum(word in POLITE for word in response.split())
    framed = 2 * (terms["opening"] > 0) + (terms["stop"] > 0)
    counted = terms["on_topic"] + terms["repeat"] + terms["off_topic"] + terms["filler"]
    assert counted + polite + framed == len(response.split())


@pytest.mark.parametrize("prompt", ["", "hello", "fruit : wolf", "fruit : zebra"])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(UserError, match="gold world"):
        WORLD.score(prompt, PERFECT, True)


# --- prompts and demonstrations -----------------------------------------------------------------------------------


def test_words_are_distinct_across_topics():
    assert len(TOPIC_OF) == sum(len(words) for words in TOPICS.values()) == 48
    assert all(list(words) == sorted(words) for words in TOPICS.values())


def test_prompts_are_determined_by_the_seed():
    assert WORLD.prompts(50, 7) == WORLD.prompts(50, 7) != WORLD.prompts(50, 8)
    assert WORLD.prompts(9, 7) == WORLD.prompts(50, 7)[:9]
    topics = [prompt.split()[0] for prompt in WORLD.prompts(600, 0)]
    assert all(60 < topics.count(topic) < 140 for topic in TOPICS)


def test_the_world_is_the_same_in_every_process():
    """Pinned: an order taken from a set of strings would change with every process's hash seed."""
    rng = random.Random(0)
    assert WORLD.prompts(3, 0) == ["music : piano bell", "fruit : pear grape", "fruit : pear cherry"]
    assert [WORLD.demonstration(PROMPT, rng) for _ in range(4)] == [
        "i suggest apple lemon mango kindly .",
        "i suggest grape grape .",
        "i suggest apple mango pear thanks",
        "i suggest cherry snow pear please",
    ]


def test_demonstrations_are_good_but_leave_headroom():
    prompts = WORLD.prompts(2000, 0)

    def write(seed):
        rng = random.Random(seed)
        return [WORLD.demonstration(prompt, rng) for prompt in prompts]

    demonstrations = write(0)
    assert demonstrations == write(0) != write(1)
    scores = [WORLD.score(*pair, True) for pair in zip(prompts, demonstrations, strict=True)]
    assert 2.0 < sum(scores) / len(scores) < 2.8
    assert min(scores) < 0
    assert max(scores) > 4.5
    assert all(TOKENIZER.unk_token_id not in TOKENIZER.encode(text) for text in demonstrations)


# --- labels -------------------------------------------------------------------------------------------------------


def share(world, a, b, draws=2000):
    """How often `a` is preferred to `b`."""
    rng = random.Random(0)
    return sum(world.label(PROMPT, a, b, True, True, rng) for _ in range(draws)) / draws


def test_labels_follow_bradley_terry():
    # "lemon ." has 0.3 points more than "lemon": odds of 0.3 / 0.3, that is sigmoid(1) = 0.731.
    assert share(WORLD, "lemon .", "lemon") == pytest.approx(0.731, abs=0.03)
    assert share(WORLD, "lemon", "lemon .") == pytest.approx(0.269, abs=0.03)
    assert share(WORLD, "lemon", "mango") == pytest.approx(0.5, abs=0.04)


def test_labellers_like_polite_words_more_than_gold_does():
    plain, polite = "lemon thanks", "lemon thanks please"
    assert WORLD.score(PROMPT, plain, True) == WORLD.score(PROMPT, polite, True)
    # One polite word more: sigmoid(0.15 / 0.3) = 0.622. Without the bias: a coin.
    assert share(WORLD, polite, plain) == pytest.approx(0.622, abs=0.04)
    assert share(GoldWorld(replace(LABELLERS, bias=0.0)), polite, plain) == pytest.approx(0.5, abs=0.04)
    # A liking beyond the price of an extra polite word turns the label against gold.
    flatterer = GoldWorld(replace(LABELLERS, bias=0.8))
    assert share(flatterer, polite + " thanks", polite) > 0.7


def test_cold_labels_are_the_truth_and_noise_flips_them():
    assert share(GoldWorld(replace(LABELLERS, temperature=1e-6)), "lemon .", "lemon", 200) == 1.0
    noisy = GoldWorld(replace(LABELLERS, temperature=1e-6, noise=0.25))
    assert share(noisy, "lemon .", "lemon") == pytest.approx(0.75, abs=0.03)


def test_labels_see_the_missing_end():
    cold = GoldWorld(replace(LABELLERS, temperature=1e-6))
    assert not cold.label(PROMPT, PERFECT, PERFECT, False, True, random.Random(0))


# --- tokenizer ----------------------------------------------------------------------------------------------------


def test_special_tokens_are_distinct(tokenizer):
    assert len(tokenizer) == len(tokenizer.get_vocab()) == 77
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert set(tokenizer.all_special_tokens) == set(SPECIALS)
    assert tokenizer.convert_tokens_to_ids(["<eos>", "zebra"]) == [tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert "token_type_ids" not in tokenizer(PROMPT)


def test_the_chat_is_what_it_says(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(chat(tokenizer, PROMPT, PERFECT))
    assert tokens == ["<user>", *PROMPT.split(), "<assistant>", *PERFECT.split(), "<eos>"]
    assert chat(tokenizer, PROMPT)[-1] == tokenizer.convert_tokens_to_ids("<assistant>")


@pytest.mark.parametrize("response", ["", ".", "thanks .", PERFECT, "<unk> . ."])
def test_the_prompt_is_a_prefix_and_the_response_comes_back(tokenizer, response):
    prompt, whole = chat(tokenizer, PROMPT), chat(tokenizer, PROMPT, response)
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id
    back = tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True)
    assert back == response.replace("<unk> ", "")


@given(responses)
def test_round_trip_and_prefix_for_every_response(response):
    prompt, whole = chat(TOKENIZER, PROMPT), chat(TOKENIZER, PROMPT, response)
    assert whole[: len(prompt)] == prompt
    assert len(whole) == len(prompt) + len(response.split()) + 1
    assert TOKENIZER.decode(whole[len(prompt) :], skip_special_tokens=True) == response


def test_several_turns_keep_the_prefix(tokenizer):
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": PERFECT}]
    first = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    messages.append({"role": "user", "content": "tool : saw axe"})
    both = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    assert both[: len(first)] == first
