"""Stage 3: the policy's update against plain transformers and plain torch, one unpadded sequence at a time."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from packs import flat, packs, rows_of, sequences

from r2m_cli.batch import Trainable
from r2m_cli.config.schema import PpoConfig, RolloutConfig
from r2m_cli.maths.advantages import rloo
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.rollout import rollout

TEMPERATURE, WEIGHT, K, LR = 0.8, 0.6, 3, 3e-3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
CONFIG = PpoConfig(group_size=K, epochs=2, beta=0.05)


@pytest.fixture(scope="module")
def trainable(make_actors, prompts):
    """A batch of four groups drawn from and annotated by the policy that `make_actors()` builds."""
    actors = make_actors()
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    annotated = annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)
    return Trainable(annotated, 10 * rloo(annotated.rewards).flatten())


def run(actors, trainable, config=CONFIG, micro_groups=2, lr=LR, on_fresh_states=None):
    parts = packs(trainable.annotated.rollout, micro_groups, config.mini_batches)
    return policy_step(actors, trainable, parts, config, TEMPERATURE, lr, on_fresh_states).means()


def weights(actors):
    return [p.detach().clone() for p in actors.policy.module.parameters()]


def distance(first, second):
    return max(float((a - b).abs().max()) for a, b in zip(first, second))


@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_accumulated_gradients_give_the_update_of_the_whole_batch(make_actors, trainable, ratio, mini_batches):
    """In float64, where AdamW's division cannot blow rounding up."""
    config = replace(CONFIG, ratio=ratio, mini_batches=mini_batches)
    results, metrics = [], []
    for micro_groups in (1, 3, 100):
        actors = make_actors(policy_dtype=torch.float64)
        metrics.append(run(actors, trainable, config, micro_groups))
        results.append(weights(actors))
    for other in (1, 2):
        assert distance(results[0], results[other]) < 1e-6
        assert metrics[other] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
    assert distance(results[0], weights(make_actors(policy_dtype=torch.float64))) > 1e-3


@pytest.mark.parametrize(("ratio", "kl"), [("sequence", "k3"), ("token", "k1"), ("sequence", "k2")])
def test_the_update_equals_a_naive_implementation(make_actors, trainable, ratio, kl):
    """Two epochs of two mini-batches: plain forwards of single sequences, the loss in scalars, torch's own AdamW."""
    config = replace(CONFIG, ratio=ratio, kl_estimator=kl, mini_batches=2, beta=0.1)
    actors = make_actors()
    lm = copy.deepcopy(actors.policy.module.lm)
    run(actors, trainable, config, micro_groups=1)

    annotated, batch = trainable.annotated, trainable.annotated.rollout
    optimizer = torch.optim.AdamW(lm.parameters(), lr=LR, weight_decay=0.0)
    for half in (range(6), range(6, 12), range(6), range(6, 12)):
        loss = torch.zeros(())
        for i in half:
            p, r = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
            tokens = batch.tokens[i, : p + r]
            log_p = (lm(tokens[None]).logits[0] / TEMPERATURE).log_softmax(dim=1)
            logp = log_p[torch.arange(p - 1, p + r - 1), tokens[p:]]
            old, ref = annotated.old_logp[i, :r], annotated.ref_logp[i, :r]
            advantage = trainable.advantages.flatten()[i]
            d = logp - ref
            kls = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kl]
            if ratio == "sequence":
                rho = torch.exp(logp.sum() - old.sum())
                term = -torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage) + 0.1 * kls.sum()
            else:
                rho = torch.exp(logp - old)
                term = -torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage).mean() + 0.1 * kls.mean()
            loss = loss + term / len(half)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(list(actors.policy.module.lm.parameters()), list(lm.parameters()), atol=2e-4, rtol=0)
    moved = distance(weights(actors), weights(make_actors()))
    assert moved > 20 * 2e-4


def test_in_the_first_epoch_the_ratio_is_one(make_actors, trainable):
    got = run(make_actors(), trainable, replace(CONFIG, epochs=1))
    assert got["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert got["clip_ratio/region_mean"] == 0
    # RLOO advantages sum to zero, so at ratio 1 nothing but the KL is left of the loss's value
    assert got["loss"] == pytest.approx(CONFIG.beta * got["policy/kl_loss"], abs=1e-4)
    assert got["grad_norm"] > 0


def test_in_the_second_epoch_it_is_not(make_actors, trainable):
    got = run(make_actors(), trainable)
    assert abs(got["ratio_mean"] - 1) > 1e-4


def test_the_update_makes_good_responses_likelier(make_actors, trainable):
    actors = make_actors()
    run(actors, trainable, replace(CONFIG, beta=0.0, epochs=1), lr=1e-4)
    annotated = trainable.annotated
    with torch.no_grad():
        new = actors.policy(sequences(annotated.rollout), TEMPERATURE).logp.sum(dim=1)
    change = new - annotated.old_logp.sum(dim=1)
    assert float((change * trainable.advantages.flatten()).sum()) > 0


@pytest.mark.parametrize("mini_batches", [1, 2, 4])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_optimiser_steps_are_epochs_times_mini_batches(make_actors, trainable, epochs, mini_batches):
    actors = make_actors()
    run(actors, trainable, replace(CONFIG, epochs=epochs, mini_batches=mini_batches))
    assert {int(state["step"]) for state in actors.policy.optimizer.state.values()} == {epochs * mini_batches}
    assert actors.policy.optimizer.param_groups[0]["lr"] == LR


@pytest.mark.parametrize(("mini_batches", "micro_groups"), [(1, 1), (1, 3), (1, 100), (2, 1), (2, 3), (4, 2)])
def test_fresh_states_come_once_per_group_and_in_the_last_epoch_only(
    make_actors, trainable, mini_batches, micro_groups
):
    actors, seen, steps = make_actors(), [], []

    def take(pack, states):
        assert pack.rows.view(-1, K)[:, 0].tolist() == (pack.groups * K).tolist()
        assert states.visible.shape == (len(pack.rows), len(states.hidden))
        assert not states.hidden.requires_grad
        seen.extend(pack.rows.tolist())
        steps.append(max((int(s["step"]) for s in actors.policy.optimizer.state.values()), default=0))

    run(actors, trainable, replace(CONFIG, epochs=2, mini_batches=mini_batches), micro_groups, on_fresh_states=take)
    assert seen == list(range(12))
    assert min(steps) == mini_batches  # the whole first epoch's updates are behind them


def test_fresh_states_are_those_of_the_policy_before_its_last_update(make_actors, trainable):
    states = []
    run(
        make_actors(),
        trainable,
        micro_groups=4,
        on_fresh_states=lambda pack, given: states.append(given),
    )
    (fresh,) = states

    twin = make_actors()
    every = sequences(trainable.annotated.rollout)
    stale = twin.policy(every, TEMPERATURE).states
    run(twin, trainable, replace(CONFIG, epochs=1), micro_groups=4)
    expected = twin.policy(every, TEMPERATURE).states
    for mine, oracle, old in zip(rows_of(fresh), rows_of(expected), rows_of(stale), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-5)
        assert (mine - old).abs().max() > 1e-3


def test_who_listens_to_the_states_does_not_change_the_update(make_actors, trainable):
    listened, alone = make_actors(), make_actors()
    run(listened, trainable, on_fresh_states=lambda pack, given: None)
    run(alone, trainable)
    assert distance(weights(listened), weights(alone)) == 0


def test_only_the_policy_moves(make_actors, trainable):
    actors, before = make_actors(), make_actors()
    run(actors, trainable)
    reward, reward_before = actors.reward, before.reward
    for part, part_before in (
        (actors.reference, before.reference),
        (reward.backbone, reward_before.backbone),
        (reward.frozen_head, reward_before.frozen_head),
        (reward.feedback.module, reward_before.feedback.module),
    ):
        assert all(torch.equal(a, b) for a, b in zip(part.parameters(), part_before.parameters()))
        assert all(p.grad is None for p in part.parameters())
    assert distance(weights(actors), weights(before)) > 1e-3


def test_without_a_reference_there_is_no_kl(make_actors, trainable):
    batch = replace(trainable, annotated=replace(trainable.annotated, ref_logp=None))
    bare, zero = make_actors(reference=False), make_actors()
    got = run(bare, batch, replace(CONFIG, beta=0.0))
    run(zero, trainable, replace(CONFIG, beta=0.0))
    assert got["policy/kl_loss"] == 0
    assert distance(weights(bare), weights(zero)) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_policy_as_it_was(make_actors, trainable, bad):
    actors = make_actors()
    before = weights(actors)
    advantages = trainable.advantages.clone()
    advantages[-1] = bad  # in the last micro-batch
    with pytest.raises(FloatingPointError):
        run(actors, replace(trainable, advantages=advantages), micro_groups=1)
    assert distance(weights(actors), before) == 0


def test_the_metrics_are_means_over_the_sequences_of_all_epochs(make_actors, trainable):
    got = run(make_actors(), trainable, replace(CONFIG, epochs=1))
    annotated = trainable.annotated
    d = torch.where(annotated.mask, annotated.old_logp - annotated.ref_logp, 0.0)
    expected = ((-d).exp() - 1 + d).sum(dim=1).mean()
    assert got["policy/kl_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert set(got) == {"loss", "policy/kl_loss", "ratio_mean", "clip_ratio/region_mean", "grad_norm"}
