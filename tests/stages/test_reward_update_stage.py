"""Stage 4: the reward model's update on fresh states, and how it goes with the stages before it."""

import math
from dataclasses import replace

import pytest
import torch
from packs import flat, packs

from r2m_cli.batch import Trainable
from r2m_cli.config.schema import FeedbackConfig, PpoConfig, RolloutConfig
from r2m_cli.maths.advantages import rloo
from r2m_cli.maths.reward_loss import grebt
from r2m_cli.models.states import States
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
PPO = PpoConfig(group_size=K, epochs=2)
CONFIG = FeedbackConfig(alpha=0.3)


def annotated_by(actors, prompts, step=1, weight=WEIGHT):
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, step)
    return annotate(actors, batch, flat(batch, 2), weight, TEMPERATURE)


@pytest.fixture(scope="module")
def annotated(make_actors, prompts):
    return annotated_by(make_actors(), prompts)


def states(actors, pack):
    with torch.no_grad():
        return actors.policy(pack.sequences, TEMPERATURE).states


def everything(annotated):
    return flat(annotated.rollout)[0]


def learned(actors):
    return {name: p.detach().clone() for name, p in actors.reward.feedback.module.named_parameters()}


def update(actors, annotated, config=CONFIG, lr=1e-2, micro_groups=2):
    """One reward-model update on the states that the policy has now."""
    step = RewardStep(actors, annotated, config, WEIGHT)
    for pack in flat(annotated.rollout, micro_groups):
        step.consume(pack, states(actors, pack))
    return step.update(lr).means()


@pytest.mark.parametrize("pair", ["recomputed", "annotated"])
@pytest.mark.parametrize("micro_groups", [1, 3, 4])
def test_the_streamed_gradient_is_that_of_the_whole_batch(make_actors, prompts, annotated, micro_groups, pair):
    """Groups consumed as they come, each cut to its own longest sequence, against one loss over everything."""
    actors = make_actors(seed=1)  # other states than those of the annotation
    step = RewardStep(actors, annotated, replace(CONFIG, pair=pair), WEIGHT)
    for pack in flat(annotated.rollout, micro_groups):
        step.consume(pack, states(actors, pack))
    module = actors.reward.feedback.module
    streamed = [p.grad.clone() for p in module.parameters()]

    score = module(annotated.rte, states(actors, everything(annotated)), WEIGHT)
    pick = annotated.rewards if pair == "annotated" else None
    loss = grebt(score.reward.view(4, K), CONFIG.alpha, pick).total.mean()
    norm = math.sqrt(sum(float(g.square().sum()) for g in streamed))
    assert norm > 1e-3
    # Sums in another order: an element may be nothing beside the rest of the gradient, and its error is that of the rest.
    for mine, oracle in zip(streamed, torch.autograd.grad(loss, list(module.parameters()))):
        torch.testing.assert_close(mine, oracle, atol=2e-5 * norm, rtol=1e-4)
    assert step.update(1e-3).means()["reward_model/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_adapter_and_head_move_and_nothing_else_does(make_actors, annotated):
    actors, before = make_actors(), make_actors()
    update(actors, annotated)
    moved = {name for name, p in learned(actors).items() if not torch.equal(p, learned(before)[name])}
    assert moved == {"phi.weight", "adapter.w_q", "adapter.w_k", "adapter.w_v", "adapter.w_o"}
    for part, part_before in (
        (actors.reward.backbone, before.reward.backbone),
        (actors.reward.frozen_head, before.reward.frozen_head),
        (actors.policy.module, before.policy.module),
        (actors.reference, before.reference),
    ):
        assert all(torch.equal(a, b) for a, b in zip(part.parameters(), part_before.parameters()))
        assert all(p.grad is None for p in part.parameters())


def test_one_update_is_one_optimiser_step_and_clears_the_gradient(make_actors, annotated):
    actors = make_actors()
    update(actors, annotated, micro_groups=1)
    engine = actors.reward.feedback
    assert {int(state["step"]) for state in engine.optimizer.state.values()} == {1}
    assert all(p.grad is None for p in engine.module.parameters())


def test_updates_lower_the_loss_and_widen_the_margin(make_actors, annotated):
    actors = make_actors()
    rows = [update(actors, annotated, lr=1e-2) for _ in range(8)]
    assert rows[-1]["reward_model/loss"] < rows[0]["reward_model/loss"]
    assert rows[-1]["reward_model/margin"] > rows[0]["reward_model/margin"]


@pytest.mark.parametrize("equal", ["all tokens the same", "head of zeros"])
def test_equal_rewards_leave_everything_unchanged(make_actors, annotated, equal):
    actors = make_actors()
    module = actors.reward.feedback.module
    step = RewardStep(actors, annotated, CONFIG, WEIGHT)
    if equal == "head of zeros":
        with torch.no_grad():
            module.phi.weight.zero_()
        step.consume(everything(annotated), states(actors, everything(annotated)))
    else:
        same = replace(annotated, rte=annotated.rte[:1].expand(12, -1).contiguous())
        step = RewardStep(actors, same, CONFIG, WEIGHT)
        pack = everything(annotated)
        hidden, visible = states(actors, pack)
        step.consume(pack, States(hidden, visible[:1].expand(12, -1)))
    before = learned(actors)
    assert all((p.grad == 0).all() for p in module.parameters())
    metrics = step.update(1e-2).means()
    assert all(torch.equal(p, before[name]) for name, p in learned(actors).items())
    assert metrics["reward_model/grad_norm"] == 0
    assert metrics["reward_model/bt"] == pytest.approx(math.log(2))
    assert metrics["reward_model/gre"] == pytest.approx(math.log(K))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_metrics_are_means_over_the_groups(make_actors, annotated, alpha):
    actors = make_actors(seed=1)
    score = actors.reward.feedback.module(annotated.rte, states(actors, everything(annotated)), WEIGHT)
    rewards = score.reward.detach().view(4, K)
    expected = grebt(rewards, alpha)
    got = update(actors, annotated, replace(CONFIG, alpha=alpha), micro_groups=3)  # three groups, then one
    for name in ("bt", "gre", "margin"):
        assert got[f"reward_model/{name}"] == pytest.approx(getattr(expected, name).mean().item(), abs=1e-5)
    assert got["reward_model/loss"] == pytest.approx(expected.total.mean().item(), abs=1e-5)
    agreements, cosines = [], []
    for live, frozen, old in zip(rewards, annotated.frozen_rewards, annotated.rewards):
        agreements.append(float(frozen[live.argmax()] > frozen[live.argmin()]))
        a, b = live - live.mean(), old - old.mean()
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    assert got["reward_model/agreement"] == pytest.approx(sum(agreements) / 4)
    assert got["feedback/refresh_cosine"] == pytest.approx(sum(cosines) / 4, abs=1e-4)


def test_the_pair_is_picked_by_the_configured_rewards(make_actors, annotated):
    """Annotated rewards in the opposite order turn the margin round, and only if they are asked for."""
    actors = make_actors()
    flipped = replace(annotated, rewards=-annotated.rewards)
    recomputed = update(make_actors(), flipped, replace(CONFIG, pair="recomputed"))
    by_annotation = update(actors, flipped, replace(CONFIG, pair="annotated"))
    assert recomputed["reward_model/margin"] > 0
    assert by_annotation["reward_model/margin"] == pytest.approx(-recomputed["reward_model/margin"], rel=1e-4)


def test_at_weight_one_only_the_head_learns(make_actors, annotated):
    actors, before = make_actors(), learned(make_actors())
    step = RewardStep(actors, annotated, CONFIG, 1.0)
    step.consume(everything(annotated), states(actors, everything(annotated)))
    step.update(1e-2)
    moved = {name for name, p in learned(actors).items() if not torch.equal(p, before[name])}
    assert moved == {"phi.weight"}


def test_a_gradient_that_is_not_finite_changes_nothing(make_actors, annotated):
    actors = make_actors()
    before = learned(actors)
    step = RewardStep(actors, annotated, CONFIG, WEIGHT)
    hidden, visible = states(actors, everything(annotated))
    step.consume(everything(annotated), States(hidden * math.nan, visible))
    with pytest.raises(FloatingPointError):
        step.update(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in learned(actors).items())


# --- together with the policy's update -------------------------------------------------------------------------------


def train(actors, prompts, steps=2, weight=WEIGHT, lr=1e-2, policy_lr=3e-3):
    """A few whole steps, as the loop makes them. -> each step's rollout and metrics."""
    history = []
    for step in range(1, steps + 1):
        annotated = annotated_by(actors, prompts, step, weight)
        reward = RewardStep(actors, annotated, CONFIG, weight) if actors.reward.feedback else None
        batch = Trainable(annotated, 10 * rloo(annotated.rewards).flatten())
        metrics = policy_step(
            actors, batch, packs(annotated.rollout, 2), PPO, TEMPERATURE, policy_lr, reward.consume if reward else None
        )  # fmt: skip
        if reward:
            metrics.update(reward.update(lr))
        history.append((annotated, metrics.means()))
    return history


def test_fresh_states_differ_from_stale_ones_after_an_update(make_actors, prompts):
    ((_, moved),) = train(make_actors(), prompts, steps=1, policy_lr=3e-2)
    ((_, still),) = train(make_actors(), prompts, steps=1, policy_lr=0.0)
    assert still["feedback/refresh_cosine"] == pytest.approx(1, abs=1e-5)
    assert moved["feedback/refresh_cosine"] < 1 - 1e-4


def test_no_gradient_of_the_reward_model_leaks_into_the_policy(make_actors, prompts):
    """The same policy after a step whatever the reward model's learning rate, and none with its gradient left over."""
    learning, resting = make_actors(), make_actors()
    train(learning, prompts, steps=1, lr=1.0)
    train(resting, prompts, steps=1, lr=0.0)
    for a, b in zip(learning.policy.module.parameters(), resting.policy.module.parameters()):
        assert torch.equal(a, b)
        assert a.grad is None


def test_the_reward_model_learns_from_one_step_to_the_next(make_actors, prompts):
    actors = make_actors()
    (first, _), (second, _) = train(actors, prompts)
    learning, resting = annotated_by(actors, prompts), annotated_by(make_actors(), prompts)
    assert not torch.equal(learned(actors)["adapter.w_v"], learned(make_actors())["adapter.w_v"])
    assert not torch.allclose(learning.rewards, resting.rewards, atol=1e-4)
    assert first.rollout.responses != second.rollout.responses


def test_feedback_that_has_no_say_reproduces_the_run_without_feedback_exactly(make_actors, prompts):
    """At weight 1 and with nothing learned: the same rollouts, rewards, metrics and policy, bit for bit."""
    none, r2m = make_actors(feedback=False), make_actors(feedback=True)
    for (a, metrics_a), (b, metrics_b) in zip(
        train(none, prompts, steps=3, weight=1.0), train(r2m, prompts, steps=3, weight=1.0, lr=0.0)
    ):
        assert torch.equal(a.rollout.tokens, b.rollout.tokens)
        assert torch.equal(a.rewards, b.rewards)
        assert {name: metrics_b[name] for name in metrics_a} == pytest.approx(metrics_a, rel=1e-5, abs=1e-6)
    for a, b in zip(none.policy.module.parameters(), r2m.policy.module.parameters()):
        assert torch.equal(a, b)
