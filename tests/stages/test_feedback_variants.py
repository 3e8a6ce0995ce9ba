"""The ablations of the feedback: what the adapter reads, what of it learns, and with what weight it has a say."""

import copy
import math
from dataclasses import replace

import plain
import pytest
import torch
from packs import flat, of_rows, rows_of

from r2m_cli.config.schema import (
    Config,
    EvalConfig,
    FeedbackConfig,
    PpoConfig,
    RolloutConfig,
    TrainConfig,
)  # fmt: skip
from r2m_cli.loop import weight_at
from r2m_cli.maths.masking import length_mask
from r2m_cli.models.states import ANNOTATED, FRESH, LABELLED, feedback_states, neighbours
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.packing import pack
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
KINDS = ("r2m", "frozen", "noise", "shuffled", "head_only", "none")


def run(actors, prompts, folder, steps=2, budget=60, algorithm="rloo"):
    """The loop's steps; the live reward has its whole adapter from the first one on. -> observer."""
    config = Config(
        seed=3,
        train=TrainConfig(steps=steps),
        feedback=FeedbackConfig(kind=actors.reward.kind, omega=WEIGHT, schedule="constant", lr=1e-2),
        ppo=PpoConfig(algorithm=algorithm, group_size=K, prompts_per_step=4, lr=1e-2),
        rollout=replace(ROLLOUT, tokens_per_batch=budget),
        eval=EvalConfig(every=0),
    )
    return plain.run_loop(actors, prompts, config, folder)


def annotated_by(actors, prompts, group_size=K, micro_groups=2):
    batch = rollout(actors, prompts, range(len(prompts)), group_size, ROLLOUT, 5, 0, 1)
    return annotate(actors, batch, flat(batch, micro_groups), WEIGHT, TEMPERATURE)


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@torch.no_grad()
def rewards_from(lm, actors, annotated, order=None):
    """Live rewards with each sequence's states, or with those of sequence order[i], from plain forwards. [B]."""
    batch, module = annotated.rollout, actors.reward.feedback.module
    states = [plain.states(lm, tokens) for tokens, _ in plain.sequences(batch)]
    found = []
    for i, (prompt, response) in enumerate(zip(batch.prompt_of, batch.responses)):
        rte = plain.embedding(actors.reward.backbone.classifier, actors.format, prompt, response)
        found.append(plain.live_reward(module, rte, states[order[i] if order else i], WEIGHT))
    return torch.stack(found)


# --- frozen -----------------------------------------------------------------------------------------------------------


def test_frozen_feedback_scores_with_the_states_and_never_learns(make_actors, prompts, tmp_path):
    actors = make_actors(kind="frozen")
    before, lm = parameters(actors.reward.feedback.module), copy.deepcopy(actors.policy.module.lm)
    first, second = run(actors, prompts, tmp_path).annotated
    assert moved(actors.reward.feedback.module, before) == set()
    assert not actors.reward.feedback.optimizer.state
    assert all(p.grad is None for p in actors.reward.feedback.module.parameters())

    stale = rewards_from(lm, actors, second)
    torch.testing.assert_close(first.rewards.flatten(), rewards_from(lm, actors, first), atol=1e-5, rtol=1e-5)
    assert (first.rewards - first.frozen_rewards).abs().max() > 1e-3
    # The second step's states are those of the policy that has moved, although the adapter stands still.
    assert (second.rewards.flatten() - stale).abs().max() > 1e-4


def test_frozen_feedback_logs_what_the_adapter_does_and_no_update(make_actors, prompts, tmp_path):
    _, values = run(make_actors(kind="frozen"), prompts, tmp_path, steps=1).history[0]
    assert values["feedback/adapter_scale"] > 0
    assert values["feedback/weight"] == WEIGHT
    assert not [name for name in values if name in ("reward_model/loss", "reward_model/grad_norm", "time/reward_step")]


# --- the scoring head alone -------------------------------------------------------------------------------------------


def test_the_head_alone_learns_on_the_annotations_own_rewards(make_actors, prompts, tmp_path):
    """Iterative RMHead: GREBT over phi(H_last) in a naive loop, with torch's AdamW; nothing else of the model moves."""
    actors = make_actors(kind="head_only")
    module, backbone = actors.reward.feedback.module, parameters(actors.reward.backbone)
    classifier = actors.reward.backbone.classifier
    phi = copy.deepcopy(module.phi)
    optimiser = torch.optim.AdamW(phi.parameters(), lr=1e-2, weight_decay=0.0)
    start = phi.weight.detach().clone()

    observer = run(actors, prompts, tmp_path)
    for annotated in observer.annotated:
        batch = annotated.rollout
        with torch.no_grad():
            rtes = [plain.embedding(classifier, actors.format, *row) for row in zip(batch.prompt_of, batch.responses)]
        rewards = phi(torch.stack(rtes)).view(4, K)
        torch.testing.assert_close(annotated.rewards, rewards.detach(), atol=1e-5, rtol=1e-5)
        optimiser.zero_grad()
        (sum(plain.group_loss(row, 0.3) for row in rewards) / 4).backward()
        optimiser.step()
    torch.testing.assert_close(module.phi.weight, phi.weight, atol=1e-4, rtol=0)
    assert (phi.weight - start).abs().max() > 1e-2
    assert moved(actors.reward.backbone, backbone) == set()


def test_the_head_alone_has_no_adapter_and_no_weight(make_actors, prompts, tmp_path):
    actors = make_actors(kind="head_only")
    assert set(parameters(actors.reward.feedback.module)) == {"phi.weight"}
    observer = run(actors, prompts, tmp_path, steps=1)
    (annotated,), ((_, values),) = observer.annotated, observer.history
    assert len(annotated.attention_entropy) == len(annotated.adapter_scale) == 0
    assert "feedback/adapter_scale" not in values
    assert values["feedback/weight"] == 1
    # It looks at the text alone, so states from before and after the update give the same rewards.
    assert values["feedback/refresh_cosine"] == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(annotated.rewards, annotated.frozen_rewards, atol=1e-6, rtol=0)


# --- noise ------------------------------------------------------------------------------------------------------------

LENGTHS = (60, 17, 40, 60, 33, 5)
SEEDS = [11, 12, 13, 14, 15, 16]


def some_states(size=24):
    """States [6, 60, size] of sequences with means and spreads of their own, and rubbish on the padding."""
    generator = torch.Generator().manual_seed(1)
    mask = length_mask(torch.tensor(LENGTHS), 60)
    states = torch.randn(6, 60, size, generator=generator) * torch.arange(1, 7).view(6, 1, 1)
    states += 3 * torch.randn(6, 1, 1, generator=generator)
    return torch.where(mask[:, :, None], states, 1e6), mask


def noise(hidden, mask, seeds=SEEDS, phase=ANNOTATED):
    """Each sequence's noise [S, D]."""
    return rows_of(feedback_states("noise", of_rows(hidden, mask), seeds, 2, phase))


def test_noise_has_the_mean_and_the_variance_of_each_sequences_states():
    hidden, mask = some_states()
    drawn = noise(hidden, mask)
    assert [len(row) for row in drawn] == list(LENGTHS)
    for row, length in enumerate(LENGTHS):
        states, got = hidden[row, :length], drawn[row]
        std, n = float(states.std(correction=0)), got.numel()
        # Four standard errors of a sample of n normal numbers.
        assert float(got.mean()) == pytest.approx(float(states.mean()), abs=4 * std / math.sqrt(n))
        assert float(got.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * n))
        # Nothing else of the states is left in it.
        assert abs(float(torch.corrcoef(torch.stack([states.flatten(), got.flatten()]))[0, 1])) < 4 / math.sqrt(n)


def test_noise_depends_on_the_seed_and_on_the_look_and_on_nothing_else():
    hidden, mask = some_states()
    base = noise(hidden, mask)
    torch.manual_seed(7)  # the global generator has no say
    assert all(torch.equal(a, b) for a, b in zip(noise(hidden, mask), base, strict=True))
    looks = [base, noise(hidden, mask, phase=FRESH), noise(hidden, mask, phase=LABELLED)]
    looks.append(noise(hidden, mask, seeds=[s + 10 for s in SEEDS]))
    for i, first in enumerate(looks):
        for second in looks[:i]:
            assert all(not torch.allclose(a, b) for a, b in zip(first, second))
    # Two sequences of equal states get noise of their own.
    twice = noise(hidden[:1].expand(2, -1, -1), mask[:1].expand(2, -1), seeds=[1, 2])
    assert not torch.allclose(twice[0], twice[1])


def test_noise_does_not_depend_on_the_other_rows_nor_on_the_padding():
    hidden, mask = some_states()
    base = noise(hidden, mask)
    for part in (slice(0, 4), slice(4, 6)):
        width = max(LENGTHS[part])
        alone = noise(hidden[part, :width], mask[part, :width], SEEDS[part])
        torch.testing.assert_close(alone, base[part], atol=1e-4, rtol=1e-5)
    order = [4, 2, 0]
    torch.testing.assert_close(noise(hidden[order], mask[order], [SEEDS[i] for i in order]), [base[i] for i in order])


def test_noise_keeps_the_states_precision():
    hidden, mask = some_states()
    drawn = noise(hidden.bfloat16(), mask)
    assert {row.dtype for row in drawn} == {torch.bfloat16}
    torch.testing.assert_close([row.float() for row in drawn], noise(hidden, mask), atol=0.1, rtol=0.02)


# --- another sequence's states ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2, 3, 5])
def test_shuffling_moves_states_within_the_group_and_leaves_none_in_place(block):
    rows = 4 * block
    order = neighbours(rows, block).tolist()
    for start in range(0, rows, block):
        assert sorted(order[start : start + block]) == list(range(start, start + block))
    assert all(i != j for i, j in enumerate(order))


def test_a_shuffled_sequences_padding_comes_with_its_states():
    hidden, mask = some_states()
    moved = rows_of(feedback_states("shuffled", of_rows(hidden, mask), SEEDS, 3, ANNOTATED))
    for i, j in enumerate([1, 2, 0, 4, 5, 3]):
        assert torch.equal(moved[i], hidden[j, mask[j]])


@pytest.mark.parametrize("kind", ["r2m", "frozen", "head_only", "none"])
def test_the_other_kinds_read_the_policys_own_states(kind):
    states = of_rows(*some_states())
    assert feedback_states(kind, states, SEEDS, 3, ANNOTATED) is states


def test_a_shuffled_reward_is_read_from_the_next_response_of_the_group(make_actors, prompts):
    actors = make_actors(kind="shuffled")
    annotated = annotated_by(actors, prompts)
    order = [start + (j + 1) % K for start in range(0, 12, K) for j in range(K)]
    expected = rewards_from(actors.policy.module.lm, actors, annotated, order)
    torch.testing.assert_close(annotated.rewards.flatten(), expected, atol=1e-5, rtol=1e-5)
    own = rewards_from(actors.policy.module.lm, actors, annotated)
    assert (annotated.rewards.flatten() - own).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["noise", "shuffled"])
@pytest.mark.parametrize("group_size", [K, 1])
def test_the_size_of_a_micro_batch_does_not_change_what_is_read(make_actors, prompts, kind, group_size):
    """Single responses (evaluation, a greedy baseline) swap their states in pairs, which must not be torn apart."""
    actors = make_actors(kind=kind)
    batch = rollout(actors, prompts, range(len(prompts)), group_size, ROLLOUT, 5, 0, 1)
    whole, *others = (
        annotate(actors, batch, pack(batch, budget)[0], WEIGHT, TEMPERATURE).rewards for budget in (10000, 1, 40, 80)
    )
    for parts in others:
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "shuffled"])
def test_the_update_reads_what_the_annotation_would(make_actors, prompts, kind):
    """The gradient of `consume` is that of a naive loss over the states that the kind puts in place."""
    actors = make_actors(kind=kind)
    annotated = annotated_by(actors, prompts)
    module, config = actors.reward.feedback.module, FeedbackConfig(kind=kind)
    rows = [plain.states(actors.policy.module.lm, tokens).detach() for tokens, _ in plain.sequences(annotated.rollout)]
    hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = length_mask(torch.tensor([len(row) for row in rows]), hidden.shape[1])
    step = RewardStep(actors, annotated, config, WEIGHT)
    for part in flat(annotated.rollout, 1):
        step.consume(part, of_rows(hidden[part.rows], mask[part.rows]))

    read = rows_of(feedback_states(kind, of_rows(hidden, mask), annotated.rollout.seeds, K, FRESH))
    rewards = torch.stack([plain.live_reward(module, rte, h, WEIGHT) for rte, h in zip(annotated.rte, read)])
    loss = sum(plain.group_loss(row, config.alpha) for row in rewards.view(4, K)) / 4
    for p, expected in zip(module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["noise", "shuffled", "r2m"])
def test_every_kind_that_learns_does(make_actors, prompts, tmp_path, kind):
    actors = make_actors(kind=kind)
    before = parameters(actors.reward.feedback.module)
    run(actors, prompts, tmp_path, steps=1)
    assert moved(actors.reward.feedback.module, before) == set(before)


def test_micro_batches_do_not_change_a_step_with_a_greedy_baseline(make_actors, prompts, tmp_path):
    """ReMax scores single greedy responses, which read each other's states under `shuffled`."""
    weights = []
    for budget in (1, 10000):
        actors = make_actors(kind="shuffled")
        run(actors, prompts, tmp_path / str(budget), steps=1, budget=budget, algorithm="remax")
        weights.append(parameters(actors.policy.module))
    start = parameters(make_actors().policy.module)
    for name, first in weights[0].items():
        assert (first - weights[1][name]).norm() < 0.01 * (first - start[name]).norm(), name


# --- the weight of the text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_a_step_is_equation_four_where_there_is_an_adapter(kind, schedule):
    config = Config(train=TrainConfig(steps=40), feedback=FeedbackConfig(kind=kind, schedule=schedule, omega=0.35))
    weights = [weight_at(step, config) for step in range(41)]
    if kind in ("head_only", "none"):
        assert weights == [1.0] * 41
    elif schedule == "constant":
        assert weights == [0.35] * 41
    else:
        cosine = [0.5 * math.cos(math.pi * t / 40) + 0.5 for t in range(41)]
        assert weights == pytest.approx([max(w, 0.35) for w in cosine])
        assert weights[0] == 1
        assert weights[-1] == 0.35
        assert weights == sorted(weights, reverse=True)
