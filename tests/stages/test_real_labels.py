"""Labels from outside the loop: a judge on the step's own pairs, replayed pairs, and the warm-up before RL."""

import math
from dataclasses import replace
from pathlib import Path

import plain
import pytest
import torch
from packs import flat

from r2m_cli.config.schema import Config, EvalConfig, FeedbackConfig, PpoConfig, RolloutConfig, TrainConfig
from r2m_cli.conversation import Pair
from r2m_cli.distributed import comm
from r2m_cli.judges.judge import gold_judge
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.judged import choose, judged, labels_due, of_all_ranks, remember, remembered
from r2m_cli.stages.pair_learning import (
    Labels,
    fits,
    learn_from_pairs,
    pair_rewards,
    replay_batch,
    score_pairs,
)
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout
from r2m_cli.stages.warm_up import warm_up

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
CONFIG = FeedbackConfig(alpha=0.3)


@pytest.fixture(scope="module")
def annotated(make_actors, prompts):
    actors = make_actors()
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    return annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)


@pytest.fixture(scope="module")
def pairs(prompts):
    """Labelled pairs of different lengths."""
    replies = [
        ("i suggest piano .", "thanks thanks"),
        ("i suggest bell bell bell fox wolf .", "i suggest wolf"),
        ("kindly dog", "i suggest cat dog fox . perhaps maybe"),
        ("so", "i suggest pear ."),
        ("i suggest apple lemon .", "very"),
    ]
    return [Pair(prompts[i % 4], *texts) for i, texts in enumerate(replies)]


def parameters(actors):
    return {name: p.detach().clone() for name, p in actors.reward.feedback.module.named_parameters()}


def gradients(actors):
    return [p.grad.clone() for p in actors.reward.feedback.module.parameters()]


def assert_gradients(actors, expected, scale=1.0):
    found = gradients(actors)
    assert math.sqrt(sum(float(g.square().sum()) for g in found)) > 1e-3
    for mine, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, scale * oracle, atol=1e-6, rtol=1e-3)


# --- the judge's questions --------------------------------------------------------------------------------------------


class Asked:
    """A judge that remembers what it was asked and answers 0.1, 0.2, ..."""

    def __init__(self):
        self.calls = []

    def __call__(self, comparisons):
        self.calls.append(list(comparisons))
        return [(i + 1) / 10 for i in range(len(comparisons))]


@pytest.mark.parametrize(
    ("first", "budget", "asked"), [(0, 2, 2), (0, 4, 4), (0, 9, 4), (2, 4, 2), (4, 6, 2), (4, 4, 0), (8, 3, 0)]
)
def test_the_judge_sees_the_first_groups_of_the_step_up_to_its_budget(annotated, monkeypatch, first, budget, asked):
    """`first` is the number of this rank's first group: over all ranks the budget is spent once."""
    judge, numbers = Asked(), list(range(first, first + 4))
    placed = replace(annotated, rollout=replace(annotated.rollout, group_ids=numbers))
    others = [number for number in range(9) if number not in numbers]  # the groups of other ranks
    monkeypatch.setattr(comm, "gather", lambda mine: [mine, others])
    said, verdicts = judged(placed, judge, choose(placed, budget))
    assert said.shape == (4,)
    assert [number for number, _ in verdicts] == numbers[:asked]
    assert said[:asked].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4][:asked])
    assert said[asked:].isnan().all()
    assert len(judge.calls) == (
        1 if asked else 0
    )  # all questions at once, and none at all where there is nothing to ask


def test_the_judge_compares_best_and_worst_by_annotated_reward(annotated):
    batch, judge = annotated.rollout, Asked()
    _, verdicts = judged(annotated, judge, [0, 1, 2, 3])
    for (_, pair), question in zip(verdicts, judge.calls[0], strict=True):  # answers below 0.5: the second is better
        assert (pair.prompt, pair.chosen, pair.rejected) == (question.prompt, question.second, question.first)
    for group, (question, rewards) in enumerate(zip(judge.calls[0], annotated.rewards.tolist(), strict=True)):
        best = group * K + rewards.index(max(rewards))
        worst = group * K + rewards.index(min(rewards))
        assert question.prompt == batch.prompts[group]
        assert (question.first, question.second) == (batch.responses[best], batch.responses[worst])
        assert question.finished == (batch.finished[best], batch.finished[worst])


def test_the_gold_judge_prefers_what_is_truly_better(make_actors, annotated):
    answers, verdicts = judged(annotated, gold_judge(make_actors().gold), [0, 1, 2, 3])
    said = answers.tolist()
    assert len(verdicts) == sum(preference != 0.5 for preference in said)  # a tie is no pair to learn from
    for preference, rewards, gold in zip(said, annotated.rewards.tolist(), annotated.gold.tolist()):
        best, worst = gold[rewards.index(max(rewards))], gold[rewards.index(min(rewards))]
        assert preference == (0.5 if best == worst else float(best > worst))
    assert len({*said}) > 1


def test_the_judge_is_asked_about_the_first_groups_as_many_as_are_due(annotated):
    assert choose(annotated, 2) == [0, 1]
    assert choose(annotated, 0) == []


def test_a_group_with_a_missing_reward_is_not_judged(annotated):
    valid = annotated.valid.clone()
    valid[0, 1] = False
    assert choose(replace(annotated, valid=valid), 2) == [1, 2]


def test_a_text_is_not_judged_against_itself(annotated):
    """Neither where all rewards of a group are equal nor where best and worst say the same."""
    rewards = annotated.rewards.clone()
    rewards[1] = 0.5
    responses = list(annotated.rollout.responses)
    best, worst = (2 * K + int(index) for index in (rewards[2].argmax(), rewards[2].argmin()))
    responses[best] = responses[worst]
    batch = replace(annotated.rollout, responses=responses)
    assert choose(replace(annotated, rollout=batch, rewards=rewards), 4) == [0, 3]


@pytest.mark.parametrize("per_step", [0.3, 1.0, 1.5, 4.0])
def test_a_fraction_of_labels_a_step_adds_up(per_step):
    counts = [labels_due(step, per_step) for step in range(1, 101)]
    assert sum(counts) == math.floor(100 * per_step)
    assert max(counts) - min(counts) <= 1


def test_verdicts_of_all_ranks_come_in_one_order(pairs, monkeypatch):
    monkeypatch.setattr(comm, "gather", lambda mine: [[(5, pairs[0]), (1, pairs[1])], mine])
    assert of_all_ranks([(3, pairs[2])]) == [pairs[1], pairs[2], pairs[0]]


def test_a_resumed_run_remembers_what_was_judged_before_it(pairs, tmp_path):
    assert remembered(tmp_path, 5) == []
    remember(tmp_path, 1, pairs[:2])
    remember(tmp_path, 2, [])
    remember(tmp_path, 3, pairs[2:3])
    assert remembered(tmp_path, 3) == pairs[:3]
    assert remembered(tmp_path, 2) == pairs[:2]
    assert remembered(tmp_path, 3) == pairs[:2]  # step 3 is made, and judged, anew


def test_what_was_judged_survives_separators_and_a_crash(pairs, tmp_path):
    odd = replace(pairs[0], chosen="one\u2028two\x85three", rejected="“naïve” \u2029 \r\n end")
    remember(tmp_path, 1, [odd, pairs[1]])
    with (tmp_path / "judged.jsonl").open("a") as file:
        file.write('{"step": 2, "pro')  # the machine went down while it wrote
    for _ in range(2):  # the file is as sound as what was read from it
        assert remembered(tmp_path, 2) == [odd, pairs[1]]


# --- the update on what the judge said --------------------------------------------------------------------------------

NAN = math.nan
PREFERENCES = [[1.0, 0.0, 0.5, 0.8], [0.0, NAN, 0.3, NAN], [NAN, NAN, NAN, 0.0], [NAN] * 4]


def naive_judged_loss(actors, annotated, preference, alpha):
    """Cross-entropy with what the judge said, a mean over the judged groups; the entropy, a mean over all."""
    module, lm = actors.reward.feedback.module, actors.policy.module.lm
    rows = plain.sequences(annotated.rollout)
    rewards = torch.stack(
        [
            plain.live_reward(module, rte, plain.states(lm, tokens).detach(), WEIGHT)
            for rte, (tokens, _) in zip(annotated.rte, rows)
        ]
    ).view(-1, K)
    said = []
    for row, pick, p in zip(rewards, annotated.rewards, preference):
        if not math.isnan(p):
            better = torch.sigmoid(row[int(pick.argmax())] - row[int(pick.argmin())])
            said.append(-p * better.log() - (1 - p) * (1 - better).log())
    entropy = sum(plain.group_entropy(row) for row in rewards) / len(rewards)
    return alpha * entropy + ((1 - alpha) * sum(said) / len(said) if said else 0)


def consume(actors, annotated, preference, config=CONFIG, micro_groups=2):
    step = RewardStep(actors, annotated, config, WEIGHT, torch.tensor(preference))
    for pack in flat(annotated.rollout, micro_groups):
        step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
    return step


def test_without_self_labels_only_judged_groups_teach(make_actors, annotated):
    actors = make_actors(seed=1)
    loss = naive_judged_loss(actors, annotated, PREFERENCES[1], 0.0) * 0.7  # what 1 - alpha leaves of it
    expected = torch.autograd.grad(loss, list(actors.reward.feedback.module.parameters()))
    consume(actors, annotated, PREFERENCES[1], replace(CONFIG, self_labels="none"))
    assert_gradients(actors, expected)


def test_agreed_self_labels_leave_out_groups_that_the_frozen_model_orders_otherwise(make_actors, annotated):
    config = replace(CONFIG, pair="annotated")
    best, worst = annotated.rewards.argmax(dim=1, keepdim=True), annotated.rewards.argmin(dim=1, keepdim=True)
    frozen = torch.zeros_like(annotated.rewards).scatter(1, best, 1.0)
    frozen[1:3] *= -1  # the second and third group the other way round
    assert (frozen.gather(1, best) > frozen.gather(1, worst)).flatten().tolist() == [True, False, False, True]
    placed = replace(annotated, frozen_rewards=frozen)

    def update(config):
        actors = make_actors(seed=1)
        step = RewardStep(actors, placed, config, WEIGHT)
        for pack in flat(annotated.rollout, 1):
            step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
            trail.append([g.clone() for g in gradients(actors)])
        return gradients(actors)

    trail = []
    update(config)
    alone = [[b - a for a, b in zip(before, after)] for before, after in zip([[0.0] * 6, *trail], trail)]  # per group
    agreed = update(replace(config, self_labels="agreed"))
    for mine, first, last in zip(agreed, alone[0], alone[3]):
        torch.testing.assert_close(mine, first + last, atol=1e-6, rtol=1e-3)


def test_with_labels_alone_the_groups_are_not_even_read(make_actors, annotated, pairs):
    actors = make_actors(seed=1)
    step = RewardStep(actors, annotated, replace(CONFIG, self_labels="none"), WEIGHT)
    for pack in flat(annotated.rollout, 2):
        step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
    assert all(p.grad is None for p in actors.reward.feedback.module.parameters())
    step.replay(pairs, 0, 100)
    mean, _, _ = naive_bradley_terry(actors, pairs)
    assert_gradients(actors, torch.autograd.grad(mean, list(actors.reward.feedback.module.parameters())))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("preference", PREFERENCES[:3])
def test_the_judged_update_equals_a_naive_loss(make_actors, annotated, preference, alpha):
    actors = make_actors(seed=1)  # other states and another adapter than those of the annotation
    loss = naive_judged_loss(actors, annotated, preference, alpha)
    expected = torch.autograd.grad(loss, list(actors.reward.feedback.module.parameters()))
    for micro_groups in (1, 3, 4):
        for pair in ("recomputed", "annotated"):  # the judge has seen the annotated pair, whatever is configured
            step = consume(actors, annotated, preference, replace(CONFIG, alpha=alpha, pair=pair), micro_groups)
            assert_gradients(actors, expected)
            step.engine.optimizer.zero_grad()
    metrics = consume(actors, annotated, preference, replace(CONFIG, alpha=alpha)).update(1e-3).means()
    assert metrics["reward_model/loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_where_the_judge_was_not_asked_at_all_the_entropy_alone_is_left(make_actors, annotated):
    actors = make_actors(seed=1)
    loss = naive_judged_loss(actors, annotated, PREFERENCES[3], 0.3)
    consume(actors, annotated, PREFERENCES[3])
    assert_gradients(actors, torch.autograd.grad(loss, list(actors.reward.feedback.module.parameters())))


def test_a_judge_that_agrees_everywhere_gives_the_update_without_one(make_actors, annotated):
    actors = make_actors(seed=1)
    consume(actors, annotated, [1.0] * 4)
    agreed = gradients(actors)
    actors.reward.feedback.optimizer.zero_grad()
    step = RewardStep(actors, annotated, replace(CONFIG, pair="annotated"), WEIGHT)
    (pack,) = flat(annotated.rollout)
    step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
    assert_gradients(actors, agreed)


def test_the_logged_parts_make_the_logged_loss(make_actors, annotated):
    metrics = consume(make_actors(), annotated, PREFERENCES[1]).update(0.0).means()
    parts = 0.7 * metrics["reward_model/bt"] + 0.3 * metrics["reward_model/gre"]
    assert metrics["reward_model/loss"] == pytest.approx(parts, rel=1e-4)


def test_the_agreement_with_the_judge_leaves_ties_out(make_actors, annotated):
    metrics = consume(make_actors(), annotated, [1.0, 0.0, 0.5, 0.8]).update(0.0).means()
    assert metrics["reward_model/judge_agreement"] == pytest.approx(2 / 3)


def test_the_judges_word_moves_the_margin_its_way(make_actors, annotated):
    margins = {}
    for said in (0.0, 1.0):
        actors = make_actors()
        for _ in range(5):
            metrics = consume(actors, annotated, [said] * 4, replace(CONFIG, alpha=0.0)).update(1e-2).means()
        margins[said] = metrics["reward_model/margin"]
    assert margins[0.0] < margins[1.0]


# --- labelled pairs ---------------------------------------------------------------------------------------------------


def naive_pair_rewards(actors, pair, features="states"):
    """Chosen and rejected reply: (rewards of the initial model, live rewards), from single unpadded sequences."""
    chat, reward = actors.format, actors.reward
    frozen, live = [], []
    for reply in (pair.chosen, pair.rejected):
        with torch.no_grad():
            rte = plain.embedding(reward.backbone.classifier, chat, pair.prompt, reply)
            tokens = torch.tensor(chat.prompt_ids(pair.prompt) + chat.response_ids(pair.prompt, reply))
            states = plain.states(actors.policy.module.lm, tokens, features)
        frozen.append(reward.frozen_head(rte).squeeze())
        head_only = reward.kind == "head_only"
        live.append(
            reward.feedback.module.phi(rte).squeeze()
            if head_only
            else plain.live_reward(reward.feedback.module, rte, states, WEIGHT)
        )
    return frozen, live


@pytest.mark.parametrize("kind", ["r2m", "head_only"])
def test_rewards_of_pairs_equal_those_of_each_reply_alone(make_actors, pairs, kind):
    actors = make_actors(kind=kind)
    with torch.no_grad():  # so that live and initial head differ
        actors.reward.feedback.module.phi.weight.mul_(1.5)
    frozen, live = pair_rewards(actors, pairs, WEIGHT, list(range(5)))
    for i, pair in enumerate(pairs):
        expected_frozen, expected_live = naive_pair_rewards(actors, pair)
        torch.testing.assert_close(frozen[i], torch.stack(expected_frozen), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(live[i], torch.stack(expected_live), atol=1e-5, rtol=1e-5)
    assert (live - frozen).abs().max() > 1e-3


def test_without_feedback_a_pair_has_no_live_rewards(make_actors, pairs):
    frozen, live = pair_rewards(make_actors(feedback=False), pairs, WEIGHT, list(range(5)))
    assert frozen.shape == (5, 2)
    assert live is None


def test_shuffled_pairs_read_each_others_states(make_actors, pairs):
    """The reply's own states are nowhere in its reward, and both replies stay comparable."""
    actors = make_actors(kind="shuffled")
    chat, module = actors.format, actors.reward.feedback.module
    _, live = pair_rewards(actors, pairs, WEIGHT, list(range(5)))
    for row, pair in zip(live.detach(), pairs):
        for mine, reply, other in zip(row, (pair.chosen, pair.rejected), (pair.rejected, pair.chosen)):
            rte = plain.embedding(actors.reward.backbone.classifier, chat, pair.prompt, reply)
            tokens = torch.tensor(chat.prompt_ids(pair.prompt) + chat.response_ids(pair.prompt, other))
            states = plain.states(actors.policy.module.lm, tokens)
            torch.testing.assert_close(mine, plain.live_reward(module, rte, states, WEIGHT).detach())


def naive_bradley_terry(actors, pairs):
    """Mean loss with its graph, and whether each pair is ordered right."""
    rewards = [naive_pair_rewards(actors, pair)[1] for pair in pairs]
    losses = [-torch.sigmoid(chosen - rejected).log() for chosen, rejected in rewards]
    return sum(losses) / len(losses), losses, [float(chosen > rejected) for chosen, rejected in rewards]


@pytest.mark.parametrize("kind", ["r2m", "head_only"])
@pytest.mark.parametrize("budget", [1, 60, 10000])
def test_learning_from_pairs_is_bradley_terry(make_actors, pairs, kind, budget):
    actors = make_actors(kind=kind)
    mean, losses, ordered = naive_bradley_terry(actors, pairs)
    expected = torch.autograd.grad(mean, list(actors.reward.feedback.module.parameters()))
    loss, right = learn_from_pairs(actors, pairs, WEIGHT, 0, budget)
    torch.testing.assert_close(loss, torch.stack(losses).detach(), atol=1e-5, rtol=1e-5)
    assert right.tolist() == ordered
    assert_gradients(actors, expected)


def as_rank(monkeypatch, rank, ranks):
    monkeypatch.setattr(comm, "rank", lambda: rank)
    monkeypatch.setattr(comm, "world_size", lambda: ranks)


@pytest.mark.parametrize("kind", ["r2m", "noise"])
@pytest.mark.parametrize("budget", [1, 60])
def test_two_ranks_with_three_pairs_learn_what_one_does(make_actors, pairs, monkeypatch, kind, budget):
    """The second rank fills its share up with a pair that counts nothing; the engine averages over the ranks."""
    actors = make_actors(kind=kind)
    whole_loss, whole_right = learn_from_pairs(actors, pairs[:3], WEIGHT, 4, 100)
    whole = gradients(actors)
    actors.reward.feedback.optimizer.zero_grad()

    losses, ordered = [], []
    for rank in (0, 1):
        as_rank(monkeypatch, rank, 2)
        loss, right = learn_from_pairs(actors, pairs[:3], WEIGHT, 4, budget)
        losses.append(loss)
        ordered.append(right)
    assert [len(loss) for loss in losses] == [2, 1]
    torch.testing.assert_close(torch.cat(losses), whole_loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat(ordered), whole_right)
    assert_gradients(actors, whole, scale=2.0)  # their sum: twice the average


def test_more_ranks_than_pairs(make_actors, pairs, monkeypatch):
    actors = make_actors()
    learn_from_pairs(actors, pairs[:2], WEIGHT, 4, 2)
    whole = gradients(actors)
    actors.reward.feedback.optimizer.zero_grad()
    counts = []
    for rank in range(4):
        as_rank(monkeypatch, rank, 4)
        counts.append(len(learn_from_pairs(actors, pairs[:2], WEIGHT, 4, 2)[0]))
    assert counts == [1, 1, 0, 0]
    assert_gradients(actors, whole, scale=4.0)


def pair_of_length(actors, total):
    """A pair whose longer side has this many tokens of the policy."""
    content, chosen, rejected = "fruit :", "i suggest pear .", "so"
    short = len(actors.format.prompt_ids(({"role": "user", "content": content},)))
    reply = len(actors.format.response_ids(({"role": "user", "content": content},), chosen))
    content += " pear" * (total - short - reply)
    return Pair(({"role": "user", "content": content},), chosen, rejected)


def test_a_pair_fits_that_the_policy_can_read_to_its_end(make_actors):
    actors = make_actors(max_tokens=1000)
    context = actors.policy.module.lm.config.max_position_embeddings
    longest = pair_of_length(actors, context)
    assert fits(actors, longest)
    assert fits(actors, replace(longest, chosen=longest.rejected, rejected=longest.chosen))
    for longer in (pair_of_length(actors, context + 1), pair_of_length(actors, 2 * context)):
        assert not fits(actors, longer)
        assert not fits(actors, replace(longer, chosen=longer.rejected, rejected=longer.chosen))
        for kind in ("none", "head_only"):  # the policy does not read them
            assert fits(make_actors(kind=kind), longer)
    _, live = pair_rewards(actors, [longest], WEIGHT, [0])
    torch.testing.assert_close(live[0], torch.stack(naive_pair_rewards(actors, longest)[1]), atol=1e-5, rtol=1e-5)


# --- replay -----------------------------------------------------------------------------------------------------------


def replayed_of(pairs, count, seed, step):
    return replay_batch(Labels(pairs=pairs), FeedbackConfig(replay_pairs=count), seed, step)


def test_judged_pairs_are_replayed_beside_the_labelled_ones(pairs):
    labels = Labels(pairs=pairs[:3])
    config = FeedbackConfig(replay_pairs=2, judge_replay=4)
    assert len(replay_batch(labels, config, 0, 1)) == 2
    labels.judged.extend(pairs[3:])
    drawn = replay_batch(labels, config, 0, 2)
    assert len(drawn) == 4
    assert set(map(id, drawn[2:])) == set(map(id, pairs[3:]))


def test_what_is_replayed_depends_on_seed_and_step_alone(pairs):
    many = [replace(pairs[i % 5], chosen=f"reply {i}") for i in range(40)]
    base = replayed_of(many, 6, 1, 3)
    assert replayed_of(many, 6, 1, 3) == base
    assert len({pair.chosen for pair in base}) == 6
    assert all(pair in many for pair in base)
    assert replayed_of(many, 6, 1, 4) != base
    assert replayed_of(many, 6, 2, 3) != base
    assert len({pair.chosen for step in range(60) for pair in replayed_of(many, 6, 1, step)}) == 40


def test_no_more_is_replayed_than_there_is(pairs):
    assert sorted(p.chosen for p in replayed_of(pairs, 99, 0, 1)) == sorted(p.chosen for p in pairs)


def test_replayed_pairs_add_their_gradient_to_that_of_the_groups(make_actors, annotated, pairs):
    actors = make_actors(seed=1)
    step = consume(actors, annotated, [1.0, 0.0, NAN, NAN])
    groups = gradients(actors)
    mean, _, ordered = naive_bradley_terry(actors, pairs)
    replayed = torch.autograd.grad(mean, list(actors.reward.feedback.module.parameters()))
    step.replay(pairs, 0, 2)
    assert_gradients(actors, [a + b for a, b in zip(groups, replayed)])
    metrics = step.update(1e-3).means()
    assert metrics["reward_model/replay_loss"] == pytest.approx(mean.item(), rel=1e-4)
    assert metrics["reward_model/replay_accuracy"] == pytest.approx(sum(ordered) / 5)


def test_the_loop_judges_and_replays(make_actors, prompts, pairs, tmp_path):
    config = Config(
        train=TrainConfig(steps=2),
        feedback=FeedbackConfig(judge="gold", judge_pairs=2, replay_pairs=3),
        ppo=PpoConfig(group_size=K, prompts_per_step=4),
        rollout=ROLLOUT,
        eval=EvalConfig(every=0),
    )
    actors, judge = make_actors(), Asked()
    observer = plain.run_loop(actors, prompts, config, tmp_path, Labels(judge, pairs))
    assert [len(call) for call in judge.calls] == [2, 2]
    for annotated, call in zip(observer.annotated, judge.calls, strict=True):
        assert [question.prompt for question in call] == annotated.rollout.prompts[:2]
    for _, values in observer.history:
        assert values["reward_model/replay_loss"] > 0
        assert values["reward_model/judge_agreement"] == 0  # 0.1 and 0.2: the judge is always against it


# --- warm-up ----------------------------------------------------------------------------------------------------------

NOWHERE = Path("of/no/run")  # without held-out pairs nothing is written


def warm_up_config(pairs=100, per_update=2, lr=1e-2, kind="r2m"):
    return Config(
        seed=3,
        feedback=FeedbackConfig(kind=kind, warmup_pairs=pairs, omega=WEIGHT, lr=lr),
        ppo=PpoConfig(group_size=K, prompts_per_step=per_update),
        rollout=RolloutConfig(tokens_per_batch=1),
    )


def test_warm_up_is_one_pass_in_updates_of_a_steps_size(make_actors, pairs):
    actors = make_actors()
    before, policy = parameters(actors), [p.clone() for p in actors.policy.module.parameters()]
    figures = warm_up(actors, Labels(pairs=pairs), warm_up_config(), NOWHERE)
    assert {int(state["step"]) for state in actors.reward.feedback.optimizer.state.values()} == {3}  # of 2, 2, 1 pairs
    assert set(figures) == {"pairs", "loss", "accuracy"}
    assert figures["pairs"] == 5
    assert {name for name, p in parameters(actors).items() if not torch.equal(p, before[name])} == set(before)
    assert all(torch.equal(a, b) for a, b in zip(policy, actors.policy.module.parameters()))
    assert all(p.grad is None for p in actors.reward.feedback.module.parameters())


def test_warm_ups_first_update_is_bradley_terry_at_the_floor_of_the_weight(make_actors, pairs):
    """One update over all pairs against torch's AdamW; its figures are from before the update."""
    actors, twin = make_actors(), make_actors()
    mean, _, ordered = naive_bradley_terry(twin, pairs)
    optimiser = torch.optim.AdamW(twin.reward.feedback.module.parameters(), lr=1e-2, weight_decay=0.0)
    mean.backward()
    optimiser.step()
    figures = warm_up(actors, Labels(pairs=pairs), warm_up_config(per_update=8), NOWHERE)
    assert figures["loss"] == pytest.approx(mean.item(), rel=1e-4)
    assert figures["accuracy"] == pytest.approx(sum(ordered) / 5)
    for name, expected in parameters(twin).items():
        difference = (parameters(actors)[name] - expected).norm()
        assert difference < 1e-2 * (expected - parameters(make_actors())[name]).norm(), name


@pytest.mark.parametrize("kind", ["r2m", "head_only", "noise"])
def test_repeated_it_lowers_the_loss_on_its_pairs(make_actors, pairs, kind):
    actors = make_actors(kind=kind)
    config = warm_up_config(per_update=8, lr=5e-2, kind=kind)
    losses = [warm_up(actors, Labels(pairs=pairs), config, NOWHERE)["loss"] for _ in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_warm_up_takes_no_more_pairs_than_asked(make_actors, pairs):
    actors = make_actors()
    assert warm_up(actors, Labels(pairs=pairs), warm_up_config(pairs=3), NOWHERE)["pairs"] == 3
    assert {int(state["step"]) for state in actors.reward.feedback.optimizer.state.values()} == {2}


def test_several_passes_of_warm_up_decay_their_rate_to_nothing(make_actors, pairs):
    actors, rates = make_actors(), []
    engine = actors.reward.feedback
    step = engine.step
    engine.step = lambda lr: rates.append(lr) or step(lr)
    config = warm_up_config(per_update=5)
    config = replace(config, feedback=replace(config.feedback, warmup_epochs=4, warmup_lr=1e-2))
    figures = warm_up(actors, Labels(pairs=pairs), config, NOWHERE)
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    first = warm_up(make_actors(), Labels(pairs=pairs), warm_up_config(per_update=5), NOWHERE)
    assert figures["loss"] < first["loss"]  # of the last pass, against the first


@pytest.mark.parametrize(
    "made", [{}, {"kind": "noise"}, {"kind": "head_only"}, {"source": "reward"}, {"source": "reference"}]
)
def test_pairs_that_are_read_once_teach_what_those_read_in_every_pass_do(make_actors, pairs, monkeypatch, made):
    config = warm_up_config(per_update=2, kind=made.get("kind", "r2m"))
    config = replace(config, feedback=replace(config.feedback, warmup_epochs=3))
    once, ever = make_actors(seed=1, **made), make_actors(seed=1, **made)
    reads = []
    embed = type(once.reward).embed
    monkeypatch.setattr(
        type(once.reward), "embed", lambda self, *args: reads.append(len(args[0])) or embed(self, *args)
    )
    figures = warm_up(once, Labels(pairs=pairs), config, NOWHERE)
    assert sum(reads) == 2 * len(pairs)
    reads.clear()
    monkeypatch.setattr("r2m_cli.stages.warm_up.LIMIT", 0)
    assert warm_up(ever, Labels(pairs=pairs), config, NOWHERE) == pytest.approx(figures, rel=1e-4)
    assert sum(reads) == 3 * 2 * len(pairs)
    for name, value in parameters(ever).items():
        torch.testing.assert_close(parameters(once)[name], value, atol=1e-4, rtol=1e-3)


def swapped(pairs):
    return [Pair(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_pass_that_held_out_pairs_speak_for_is_kept(make_actors, pairs, tmp_path, monkeypatch, limit):
    """Held-out pairs that say the opposite get worse from the first pass on: its weights and moments are what is left."""
    monkeypatch.setattr("r2m_cli.stages.warm_up.LIMIT", limit)
    actors, saved = make_actors(), []
    engine = actors.reward.feedback
    save = engine.save
    engine.save = lambda *where: saved.append(parameters(actors)) or save(*where)
    config = warm_up_config(per_update=5)
    config = replace(config, feedback=replace(config.feedback, warmup_epochs=4))
    figures = warm_up(actors, Labels(pairs=pairs, heldout=swapped(pairs)), config, tmp_path)
    assert figures["pass kept"] == 1
    assert figures["its held-out loss"] < figures["that of the last pass"]
    assert len(saved) == 1
    for name, value in parameters(actors).items():
        torch.testing.assert_close(value, saved[0][name], atol=0, rtol=0)
    assert {int(state["step"]) for state in engine.optimizer.state.values()} == {1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [2**30, 0])
def test_held_out_pairs_with_nothing_to_say_change_nothing(make_actors, pairs, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("r2m_cli.stages.warm_up.LIMIT", limit)
    config = warm_up_config(per_update=5)
    config = replace(config, feedback=replace(config.feedback, warmup_epochs=4))
    with_them, without = make_actors(), make_actors()
    figures = warm_up(with_them, Labels(pairs=pairs, heldout=pairs), config, tmp_path)
    assert figures.pop("pass kept") == 4
    assert figures.pop("its held-out loss") == figures.pop("that of the last pass")
    assert warm_up(without, Labels(pairs=pairs), config, NOWHERE) == figures
    for name, value in parameters(without).items():
        torch.testing.assert_close(parameters(with_them)[name], value, atol=0, rtol=0)
    assert list(tmp_path.iterdir()) == []


# --- whose states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["states", "tokens", "both"])
def test_the_references_states_in_place_of_the_policys(make_actors, prompts, pairs, features):
    """Annotation, labelled pairs and the update on the groups read what the reference makes of the text."""
    actors = make_actors(seed=1, source="reference", features=features)
    lm, module = actors.reference.lm, actors.reward.feedback.module
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    annotated = annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)
    rows = plain.sequences(batch)
    expected = [
        plain.live_reward(module, rte, plain.states(lm, tokens, features).detach(), WEIGHT)
        for rte, (tokens, _) in zip(annotated.rte, rows)
    ]
    torch.testing.assert_close(annotated.rewards.flatten(), torch.stack(expected).detach(), atol=1e-5, rtol=1e-5)

    as_policy = replace(actors, policy=replace_module(actors.policy, actors.reference))
    _, live = pair_rewards(actors, pairs, WEIGHT, list(range(5)))
    for row, pair in zip(live, pairs):
        torch.testing.assert_close(
            row, torch.stack(naive_pair_rewards(as_policy, pair, features)[1]), atol=1e-5, rtol=1e-5
        )

    step = RewardStep(actors, annotated, CONFIG, WEIGHT)
    for pack in flat(batch, 2):
        step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
    loss = sum(plain.group_loss(row, 0.3) for row in torch.stack(expected).view(-1, K)) / len(prompts)
    assert_gradients(actors, torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("features", ["states", "both"])
def test_the_reward_models_own_states_as_a_control(make_actors, prompts, pairs, features):
    actors = make_actors(seed=1, source="reward", features=features)
    classifier, module, chat = actors.reward.backbone.classifier, actors.reward.feedback.module, actors.reward.format
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    annotated = annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)

    def expected(prompt, reply):
        with torch.no_grad():
            tokens = torch.tensor([*chat.conversation_ids(prompt, reply), 0])  # all but the last are read
            states = plain.states(classifier, tokens, features)
        return plain.live_reward(module, plain.states(classifier, tokens)[-1].detach(), states, WEIGHT)

    texts = list(zip(batch.prompt_of, batch.responses))
    rewards = torch.stack([expected(*text) for text in texts])
    torch.testing.assert_close(annotated.rewards.flatten(), rewards.detach(), atol=1e-5, rtol=1e-5)
    _, live = pair_rewards(actors, pairs, WEIGHT, list(range(5)))
    of_pairs = torch.stack([torch.stack([expected(p.prompt, p.chosen), expected(p.prompt, p.rejected)]) for p in pairs])
    torch.testing.assert_close(live, of_pairs, atol=1e-5, rtol=1e-5)

    step = RewardStep(actors, annotated, CONFIG, WEIGHT)
    for pack in flat(batch, 2):
        step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)
    loss = sum(plain.group_loss(row, 0.3) for row in rewards.view(-1, K)) / len(prompts)
    assert_gradients(actors, torch.autograd.grad(loss, list(module.parameters())))


def replace_module(engine, module):
    """The engine's look-alike around another module, for the naive formulas that read `policy.module`."""
    return type("Engine", (), {"module": module})()


@pytest.mark.parametrize("kind", ["r2m", "noise", "shuffled"])
def test_pairs_are_scored_in_parts_as_at_once(make_actors, pairs, kind):
    actors = make_actors()
    actors = replace(actors, reward=replace(actors.reward, kind=kind))
    frozen, live = score_pairs(actors, pairs, WEIGHT, 10000)  # a budget for more pairs than there are
    for part, whole in zip(score_pairs(actors, pairs, WEIGHT, 1), (frozen, live)):
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)
    assert not live.requires_grad
