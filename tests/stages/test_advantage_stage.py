"""Between annotation and update: every algorithm's advantages against scalars, and ReMax's greedy baseline."""

import itertools
import math
from dataclasses import replace

import plain
import pytest
import torch
from packs import flat

from r2m_cli.config.schema import CriticConfig, PpoConfig, RolloutConfig
from r2m_cli.maths.shaping import fill_missing
from r2m_cli.stages.advantages import advantages, shaped
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.rollout import rollout

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
ALGORITHMS = ("rloo", "grpo", "remax", "reinforce_pp", "ppo")
CONFIG = PpoConfig(group_size=K, beta=0.3, normalise="none", critic=CriticConfig(gae_lambda=0.7))


@pytest.fixture(scope="module")
def actors(make_actors):
    """With a critic that has learnt something: an untrained one says 0 everywhere."""
    made = make_actors(critic=True)
    with torch.no_grad():
        made.critic.module.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def annotated(actors, prompts):
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    return annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)


@pytest.fixture(scope="module")
def greedy(actors, prompts):
    likeliest = rollout(actors, prompts, range(len(prompts)), 1, replace(ROLLOUT, temperature=0.0), 5, 2, 1)
    return annotate(actors, likeliest, flat(likeliest, 4), WEIGHT, TEMPERATURE, rewards_only=True)


def missing(annotated, *places):
    """What `annotate` gives when the rewards at these places are NaN."""
    rewards = annotated.rewards.clone()
    for place in places:
        rewards[place] = math.nan
    valid = rewards.isfinite()
    return replace(annotated, rewards=fill_missing(rewards, valid), valid=valid)


def naive(annotated, config, greedy):
    """The same from scalars: advantages and returns as B lists."""
    lengths = annotated.mask.sum(dim=1).tolist()

    def rows(values):
        return None if values is None else [row[:n] for row, n in zip(values.tolist(), lengths)]

    finished = torch.tensor(annotated.rollout.finished).view_as(annotated.rewards).tolist()
    likeliest = zip(greedy.rewards.flatten().tolist(), greedy.valid.flatten().tolist(), greedy.rollout.finished)
    return plain.advantages(
        config, annotated.rewards.tolist(), annotated.valid.tolist(), finished, rows(annotated.old_logp),
        rows(annotated.ref_logp), rows(annotated.values), list(likeliest),
    )  # fmt: skip


def assert_rows(got, expected):
    """A tensor [B], or [B, R] with 0 on padding, against B lists."""
    got = got[:, None] if got.dim() == 1 else got
    for mine, row in zip(got.tolist(), expected, strict=True):
        assert mine == pytest.approx(row + [0.0] * (len(mine) - len(row)), rel=1e-4, abs=2e-5)


def assert_equal_to_naive(annotated, greedy, config):
    got = advantages(annotated, config, greedy if config.algorithm == "remax" else None)
    expected, returns = naive(annotated, config, greedy)
    assert got.annotated is annotated
    assert_rows(got.advantages, expected)
    assert got.advantages.abs().max() > 0
    if config.algorithm == "ppo":
        valid = annotated.valid.flatten()  # the critic does not learn what a response without a reward returns
        assert_rows(got.returns[valid], [row for row, good in zip(returns, valid) if good])
        assert got.returns.isfinite().all()
    else:
        assert got.returns is None


def configs(annotated, algorithm, kl, shaping):
    """All ways to shape rewards (or none) and to normalise, with the KL in the loss or as an estimate in the reward."""
    place = {"kl_in": "loss"} if kl == "in the loss" else {"kl_in": "reward", "kl_estimator": kl}
    clips = (None, float(annotated.rewards.abs().median())) if shaping else (None,)
    penalties = (0.0, 0.7) if shaping else (0.0,)
    for reward_clip, eos_penalty, whiten_rewards, normalise in itertools.product(
        clips, penalties, (False, True), ("none", "scale", "whiten")
    ):
        yield replace(
            CONFIG, algorithm=algorithm, reward_clip=reward_clip, eos_penalty=eos_penalty,
            whiten_rewards=whiten_rewards, normalise=normalise, **place,
        )  # fmt: skip


@pytest.mark.parametrize("kl", ["in the loss", "k1", "k2", "k3"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_advantages_equal_a_naive_loop(annotated, greedy, algorithm, kl):
    for config in configs(annotated, algorithm, kl, shaping=True):
        assert_equal_to_naive(annotated, greedy, config)


@pytest.mark.parametrize("shaping", [False, True], ids=["bare", "shaped"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_missing_rewards_they_equal_it_too(annotated, greedy, algorithm, shaping):
    batch = missing(annotated, (0, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    for config in configs(annotated, algorithm, "k3" if shaping else "in the loss", shaping):
        assert_equal_to_naive(batch, greedy, config)


def test_the_batch_has_what_the_options_are_about(annotated, greedy):
    """Otherwise the comparison above would say nothing."""
    assert {*annotated.rollout.finished} == {*greedy.rollout.finished} == {True, False}
    assert len({*annotated.rollout.response_lengths.tolist()}) > 2
    assert annotated.values.std() > 0.1
    assert (annotated.old_logp - annotated.ref_logp).abs().max() > 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_reference_nothing_is_subtracted(annotated, greedy, algorithm):
    config = replace(CONFIG, algorithm=algorithm, kl_in="reward")
    alone = advantages(replace(annotated, ref_logp=None), config, greedy)
    assert torch.equal(alone.advantages, advantages(annotated, replace(config, kl_in="loss"), greedy).advantages)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("normalise", ["none", "scale", "whiten"])
def test_a_missing_reward_has_advantage_zero_exactly(annotated, greedy, algorithm, normalise):
    """Also after centring, and where the greedy response's reward is missing as well."""
    batch = missing(annotated, (0, 1), (2, 0), (2, 1), (2, 2))
    config = replace(CONFIG, algorithm=algorithm, normalise=normalise, kl_in="reward", kl_estimator="k1", eos_penalty=1)
    got = advantages(batch, config, missing(greedy, (0, 0), (2, 0))).advantages.view(4, K, -1)
    assert got.isfinite().all()
    for i, j in itertools.product(range(4), range(K)):
        assert (got[i, j] != 0).any() == bool(batch.valid[i, j])


def test_a_missing_greedy_reward_gives_way_to_the_mean_of_the_prompts_responses(annotated, greedy):
    config = replace(CONFIG, algorithm="remax", eos_penalty=0.5, whiten_rewards=True)
    absent = missing(greedy, (1, 0))
    got = advantages(annotated, config, absent).advantages
    assert_rows(got, naive(annotated, config, absent)[0])
    assert float(got.view(4, K)[1].sum()) == pytest.approx(0, abs=1e-5)
    assert abs(float(got.view(4, K)[0].sum())) > 1e-2


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("option", [{}, {"eos_penalty": 1.0}, {"kl_in": "reward", "kl_estimator": "k1"}])
def test_how_a_response_without_a_reward_ended_and_drifted_does_not_matter_to_its_group(annotated, algorithm, option):
    """Nothing is known of its reward, so neither its missing end token nor its KL may shift the others' baseline."""
    batch = missing(annotated, (0, 1))
    finished, old = list(annotated.rollout.finished), annotated.old_logp.clone()
    finished[1] = not finished[1]
    old[1] += annotated.mask[1] * 1.0
    other = replace(batch, old_logp=old, rollout=replace(batch.rollout, finished=finished))
    config = replace(CONFIG, algorithm=algorithm, **option)
    first, second = (advantages(b, config).advantages.view(4, K)[0] for b in (batch, other))
    torch.testing.assert_close(first, second)


def test_the_penalty_looks_at_the_responses_own_end_token(annotated, prompts, chat):
    """Two of the prompts hold end tokens of earlier turns: they must not pass for the response's."""
    batch = annotated.rollout
    in_prompt = [bool(chat.eos_ids & set(chat.prompt_ids(prompt))) for prompt in prompts]
    assert {*in_prompt} == {True, False}
    ended = torch.tensor([int(tokens[-1]) in chat.eos_ids for tokens, _ in plain.sequences(batch)]).view(4, K)
    assert not ended[torch.tensor(in_prompt)].all()
    assert ended.any()
    got = shaped(annotated, replace(CONFIG, eos_penalty=2.0)) - shaped(annotated, CONFIG)
    torch.testing.assert_close(got, torch.where(ended, 0.0, -2.0))


def test_the_penalty_stands_behind_the_clip(annotated):
    """A clipped reward still tells an ended response from an endless one."""
    got = shaped(annotated, replace(CONFIG, eos_penalty=2.0, reward_clip=1e-3))
    assert got.max() <= 1e-3
    assert got.min() < -1.9


@torch.no_grad()
def test_the_greedy_response_is_the_likeliest_token_again_and_again(make_actors, prompts, chat):
    actors = make_actors()
    config = replace(ROLLOUT, temperature=0.0)
    batch = rollout(actors, prompts, range(len(prompts)), 1, config, 5, 2, 1)
    for (tokens, p), prompt, text, finished in zip(
        plain.sequences(batch), prompts, batch.responses, batch.finished, strict=True
    ):
        ids = chat.prompt_ids(prompt)
        expected = plain.greedy(actors.policy.module.lm, ids, config.max_new_tokens, chat.eos_ids)
        assert tokens.tolist() == ids + expected
        assert p == len(ids)
        assert finished == (expected[-1] in chat.eos_ids)
        assert text == chat.tokenizer.decode(expected, skip_special_tokens=True)
    # There is nothing to draw: neither seed nor step nor the place in the batch has a say.
    other = rollout(actors, prompts, range(3, 3 + len(prompts)), 1, config, 6, 2, 9)
    assert torch.equal(other.tokens, batch.tokens)


def test_the_greedy_baseline_needs_no_reference_and_no_critic(greedy):
    assert greedy.ref_logp is None
    assert greedy.values is None
    assert greedy.rewards.shape == (4, 1)
