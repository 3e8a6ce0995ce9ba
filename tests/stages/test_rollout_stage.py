"""Stage 1: what a rollout holds, and that nothing but (seed, stage, step, sample) decides it."""

from dataclasses import replace

import torch

from r2m_cli.config.schema import RolloutConfig
from r2m_cli.models.generate import sample, uniform_rows
from r2m_cli.stages.rollout import rollout

CONFIG = RolloutConfig(temperature=0.8, max_new_tokens=8)
K = 3


def draw(actors, prompts, first=0, group_size=K, seed=5, stage=0, step=1, config=CONFIG):
    return rollout(actors, prompts, range(first, first + len(prompts)), group_size, config, seed, stage, step)


def rows(batch):
    """Each sequence's prompt and response tokens, without padding."""
    lengths = (batch.prompt_lengths + batch.response_lengths).tolist()
    return [ids[:n] for ids, n in zip(batch.tokens.tolist(), lengths)]


def test_what_a_rollout_holds(make_actors, prompts, chat):
    batch = draw(make_actors(), prompts)
    size = len(prompts) * K
    assert batch.prompts == prompts
    assert batch.group_size == K
    assert batch.prompt_of == [prompt for prompt in prompts for _ in range(K)]
    assert len(batch.responses) == len(batch.finished) == size
    assert batch.tokens.dtype == torch.int64
    assert batch.prompt_lengths.shape == batch.response_lengths.shape == (size,)
    assert batch.tokens.shape == (size, int((batch.prompt_lengths + batch.response_lengths).max()))
    assert len({*batch.prompt_lengths.tolist()}) > 1  # prompts of different lengths
    assert {*batch.finished} == {True, False}  # some ended by themselves, some were cut off

    for i, (ids, whole) in enumerate(zip(rows(batch), batch.tokens.tolist())):
        p, r = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
        assert ids[:p] == chat.prompt_ids(prompts[i // K])
        assert whole[p + r :] == [chat.pad_id] * (len(whole) - p - r)
        response = ids[p:]
        assert 1 <= r <= CONFIG.max_new_tokens
        assert batch.finished[i] == (response[-1] in chat.eos_ids)
        assert batch.finished[i] or r == CONFIG.max_new_tokens
        assert not chat.eos_ids & set(response[:-1])
        assert batch.responses[i] == chat.tokenizer.decode(response, skip_special_tokens=True)
        assert chat.tokenizer.eos_token not in batch.responses[i]


def test_the_tokens_are_those_of_the_sampler(make_actors, prompts, chat):
    actors = make_actors()
    batch = draw(actors, prompts, first=2)
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    uniforms = uniform_rows(5, 0, 1, list(range(2 * K, 2 * K + len(prompts) * K)), CONFIG.max_new_tokens)
    drawn = sample(actors.policy.module, ids, K, uniforms, CONFIG.temperature, chat.eos_ids, chat.pad_id)
    expected = [prompt + response for prompt, response in zip([p for p in ids for _ in range(K)], drawn)]
    assert rows(batch) == expected


def test_the_same_address_gives_the_same_rollout_and_another_does_not(make_actors, prompts):
    actors = make_actors()
    base = draw(actors, prompts)
    torch.manual_seed(123)  # the global generator has no say
    again = draw(actors, prompts)
    assert torch.equal(again.tokens, base.tokens)
    assert again.responses == base.responses
    for change in ({"seed": 0}, {"stage": 1}, {"step": 2}, {"first": 1}):
        assert rows(draw(actors, prompts, **change)) != rows(base)


def test_two_halves_with_their_offset_equal_the_whole(make_actors, prompts):
    """Two ranks draw what one process draws: the split of the prompts changes nothing."""
    actors = make_actors()
    whole = draw(actors, prompts)
    halves = [draw(actors, prompts[:2], first=0), draw(actors, prompts[2:], first=2)]
    singles = [draw(actors, [prompt], first=i) for i, prompt in enumerate(prompts)]
    for parts in (halves, singles):
        assert [ids for part in parts for ids in rows(part)] == rows(whole)
        assert [text for part in parts for text in part.responses] == whole.responses
        assert [end for part in parts for end in part.finished] == whole.finished


def test_sampling_in_turns_changes_nothing(make_actors, prompts):
    whole = draw(make_actors(), prompts)
    for size in (1, 2 * K, 100):  # a group at a time at least
        assert rows(draw(make_actors(), prompts, config=replace(CONFIG, batch_size=size))) == rows(whole)


def test_one_prompt_twice_in_a_batch_is_answered_differently(make_actors, prompts):
    batch = draw(make_actors(), [prompts[0], prompts[0]])
    assert rows(batch)[:K] != rows(batch)[K:]


def test_a_group_of_one(make_actors, prompts):
    """Evaluation draws a single response."""
    batch = draw(make_actors(), prompts, group_size=1)
    assert len(batch.responses) == len(prompts)


def test_one_new_token(make_actors, prompts):
    batch = draw(make_actors(), prompts, config=RolloutConfig(temperature=1.0, max_new_tokens=1))
    assert batch.response_lengths.tolist() == [1] * len(prompts) * K


def test_no_feedback_draws_the_same_rollout(make_actors, prompts):
    with_feedback, without = draw(make_actors(feedback=True), prompts), draw(make_actors(feedback=False), prompts)
    assert torch.equal(with_feedback.tokens, without.tokens)
    assert with_feedback.responses == without.responses
