"""What a person is told: warnings of a run, the look at the reward model before it, and rewards that are missing."""

import copy
import math
from dataclasses import replace

import plain
import pytest
import torch
from packs import flat, packs

from r2m_cli.config.schema import Config, EvalConfig, FeedbackConfig, PpoConfig, RolloutConfig, TrainConfig
from r2m_cli.conversation import Pair
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import checkpoints
from r2m_cli.loop import require_finite
from r2m_cli.maths.statistics import bootstrap_mean
from r2m_cli.models.states import States
from r2m_cli.monitor.alerts import RULES, Watch
from r2m_cli.monitor.observer import sample_rows
from r2m_cli.monitor.sinks import Sinks
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.advantages import advantages
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.metrics import evaluation_metrics, rollout_metrics
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.reward_check import reward_check
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout
from r2m_cli.tasks.train import remarks

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
ROLLOUT = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
SHORT = RolloutConfig(max_prompt_tokens=32, max_new_tokens=8)  # fits into what the reward model reads

# --- the rules --------------------------------------------------------------------------------------------------------

# metric, the last value that is right, the first that is wrong, what the warning names
THRESHOLDS = [
    ("completions/clipped_ratio", 0.9, 0.91, "91%"),
    ("frac_reward_zero_std", 0.99, 1.0, "every group"),
    ("frac_reward_missing", 0.0, 0.005, "0.5%"),
    ("reward_model/cut_ratio", 0.0, 0.02, "2.0% of the conversations are longer than the reward model's limit"),
    ("rollout/logp_gap", 0.2, 0.3, "0.3"),
    ("ratio_mean", 10.0, 53_000.0, "53000 on average"),
    ("kl", 100.0, 101.0, "101 nats"),
    ("kl", -1.0, -1.5, "-1.5 nats"),
    ("kl", 0.0, math.nan, "nan nats"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "said"), THRESHOLDS)
def test_a_rule_fires_behind_its_threshold_and_once(name, right, wrong, said):
    watch = Watch()
    assert watch(1, {name: right}) == []
    (message,) = watch(2, {name: wrong, "reward": 0.0})
    assert message.startswith("step 2: ")
    assert said in message
    assert watch(3, {name: wrong}) == []
    assert len(Watch()(1, {name: wrong})) == 1  # another run is told again


def test_every_rule_has_a_threshold_here_and_all_fire_together():
    assert {name for name, *_ in THRESHOLDS} == set(RULES)
    values = {name: wrong for name, _, wrong, _ in THRESHOLDS}
    assert len(Watch()(1, values)) == len(RULES)


def test_a_metric_that_is_not_logged_is_not_missed():
    assert Watch()(1, {}) == []


def test_a_run_writes_each_warning_once(make_actors, prompts, tmp_path):
    """Responses of one token at most: nearly all of them are cut off."""
    config = Config(
        train=TrainConfig(steps=2),
        ppo=PpoConfig(group_size=K, prompts_per_step=4),
        rollout=replace(ROLLOUT, max_new_tokens=1),
        eval=EvalConfig(every=0),
    )
    actors = make_actors()
    with torch.no_grad():
        actors.policy.module.lm.get_input_embeddings().weight[actors.format.tokenizer.eos_token_id] = 0
    with Sinks([], tmp_path, 2, quiet=True) as sinks:
        observer = plain.Recorder(sinks, samples_every=0)
        plain.run_loop(actors, prompts, config, tmp_path, observer=observer)
    assert all(values["completions/clipped_ratio"] > 0.9 for _, values in observer.history)
    warnings = (tmp_path / "warnings.log").read_text()
    assert warnings.count("rollout.max_new_tokens") == 1
    assert "step 1" in warnings


# --- the look at the reward model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(prompts):
    replies = ["i suggest piano .", "thanks thanks", "cat", "so very very very", "i suggest wolf fox dog .", "just"]
    return [Pair(prompts[i % 4], replies[i % 6], replies[(i + 1 + i // 6) % 6]) for i in range(17)]


def plain_rewards(actors, pairs):
    """Rewards of the chosen and the rejected replies, and the live ones, from single sequences. [m, 2] each."""
    reward, chat, lm = actors.reward, actors.format, actors.policy.module.lm
    frozen, live = [], []
    for pair in pairs:
        for reply in (pair.chosen, pair.rejected):
            rte = plain.embedding(reward.backbone.classifier, chat, pair.prompt, reply)
            frozen.append(reward.frozen_head(rte))
            tokens = torch.tensor(chat.prompt_ids(pair.prompt) + chat.response_ids(pair.prompt, reply))
            if reward.feedback is not None and reward.kind == "r2m":
                live.append(plain.live_reward(reward.feedback.module, rte, plain.states(lm, tokens), WEIGHT))
    return torch.stack(frozen).view(-1, 2), torch.stack(live).view(-1, 2) if live else None


def figures(rewards, pairs):
    """Accuracy with its interval, spread and mean margin as the note shows them."""
    rows = rewards.tolist()
    everything = [x for row in rows for x in row]
    mean = sum(everything) / len(everything)
    spread = math.sqrt(sum((x - mean) ** 2 for x in everything) / (len(everything) - 1))
    ordered = torch.tensor([float(chosen > rejected) for chosen, rejected in rows])
    right = bootstrap_mean(ordered, 1000, 0, units_of(pair.prompt for pair in pairs), (0.0, 1.0))
    chance = ", not distinguishable from chance" if right.low <= 0.5 <= right.high else ""
    shown = f"{right.value:.1%} [{100 * right.low:.1f}, {100 * right.high:.1f}]"
    margin = sum(chosen - rejected for chosen, rejected in rows) / len(rows)
    return f"{shown} ordered right{chance}, spread (standard deviation) {spread:.3g}, mean margin {margin:.3g}"


@pytest.mark.parametrize("micro_rows", [1, 4, 100])
@torch.no_grad()
def test_accuracy_and_spread_equal_a_plain_recomputation(make_actors, pairs, micro_rows):
    actors = make_actors()
    frozen, live = plain_rewards(actors, pairs)
    notes, _ = reward_check(actors, pairs, WEIGHT, micro_rows)
    assert notes == [
        f"reward model on 17 held-out pairs: {figures(frozen, pairs)}",
        f"with feedback, before any RL, at w = 0.6: {figures(live, pairs)}",
    ]
    assert figures(frozen, pairs) != figures(live, pairs)


@pytest.mark.parametrize("kind", ["none", "head_only"])
@torch.no_grad()
def test_without_an_adapter_there_is_one_note(make_actors, pairs, kind):
    actors = make_actors(kind=kind)
    notes, _ = reward_check(actors, pairs, 1.0, 4)
    assert notes == [f"reward model on 17 held-out pairs: {figures(plain_rewards(actors, pairs)[0], pairs)}"]


@torch.no_grad()
def ordered(actors, pairs):
    """The same pairs, turned so that the reward model orders every one right."""
    frozen, _ = plain_rewards(actors, pairs)
    turned = [Pair(p.prompt, p.rejected, p.chosen) for p in pairs]
    return [p if chosen > rejected else t for p, t, (chosen, rejected) in zip(pairs, turned, frozen.tolist())]


def test_a_good_reward_model_gives_no_warning_and_a_random_one_does(make_actors, pairs):
    actors = make_actors(feedback=False)
    good = ordered(actors, pairs)
    assert reward_check(actors, good, 1.0, 4)[1] == []
    bad = [Pair(p.prompt, p.rejected, p.chosen) for p in good]
    (warning,) = reward_check(actors, bad, 1.0, 4)[1]
    assert "no better than chance" in warning
    # Half of the pairs is chance, too; a dozen pairs say nothing yet.
    (warning,) = reward_check(actors, good[:8] + bad[8:16], 1.0, 4)[1]
    assert "no better than chance" in warning
    assert reward_check(actors, good[:9] + bad[9:16], 1.0, 4)[1] == []
    assert reward_check(actors, bad[:15], 1.0, 4)[1] == []


def test_an_adapter_that_does_harm_is_warned_of_once_it_has_learnt(make_actors, pairs):
    actors = make_actors()
    good = ordered(actors, pairs)
    with torch.no_grad():  # the live reward model contradicts the initial one
        actors.reward.feedback.module.phi.weight.neg_()
    assert reward_check(actors, good, 1.0, 4)[1] == []
    (warning,) = reward_check(actors, good, 1.0, 4, warm=True)[1]
    assert "fewer held-out pairs are ordered right than by the text alone (0.0%, not 100.0%)" in warning
    # A pair or two more or less is no harm that can be shown; nor is a dozen pairs enough to say so.
    with torch.no_grad():
        actors.reward.feedback.module.phi.weight.neg_()
    assert reward_check(actors, good, 1.0, 4, warm=True)[1] == []
    assert reward_check(actors, good[:15], 1.0, 4, warm=True)[1] == []


def test_flat_rewards_are_warned_of(make_actors, pairs):
    actors = make_actors(feedback=False)
    with torch.no_grad():
        actors.reward.frozen_head.weight.zero_()
    (warning,) = reward_check(actors, pairs, 1.0, 4)[1]
    assert "all equal" in warning


def test_missing_rewards_are_counted_and_warned_of(make_actors, pairs):
    actors = make_actors(feedback=False)
    blind(actors, [1, 2, 5])
    (warning,) = reward_check(actors, pairs, 1.0, 10000)[1]
    assert warning.startswith("3 of 34 rewards are not finite numbers")


# --- rewards that are missing -----------------------------------------------------------------------------------------


def blind(actors, rows, value=math.nan):
    """The reward model's backbone loses one number of these rows of every batch that it sees; where it gives the states of
    all tokens, too, also of the last one of each."""

    def spoil(module, args, found):
        rte, own = found if isinstance(found, tuple) else (found, None)
        lost, rte = [row for row in rows if row < len(rte)], rte.clone()
        rte[lost, 0] = value
        if own is None:
            return rte
        hidden = own.hidden.clone()
        hidden[[int(own.visible[row].nonzero()[-1]) for row in lost], 0] = value
        return rte, States(hidden, own.visible)

    return actors.reward.backbone.register_forward_hook(spoil)


LOST = [1, 6, 7, 9, 10, 11]  # one of the first group, none of the second, two of the third, all of the fourth


def annotated_by(actors, prompts):
    """In one micro-batch, so that a row's number is that of its sequence."""
    batch = rollout(actors, prompts, range(len(prompts)), K, ROLLOUT, 5, 0, 1)
    return annotate(actors, batch, flat(batch), WEIGHT, TEMPERATURE)


@pytest.fixture(scope="module")
def whole(make_actors, prompts):
    return annotated_by(make_actors(), prompts)


@pytest.fixture(scope="module", params=[math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])
def partial(request, make_actors, prompts):
    """The same rollout and models, with the reward token embeddings of some sequences lost."""
    actors = make_actors()
    blind(actors, LOST, request.param)
    return annotated_by(actors, prompts)


def test_a_missing_reward_is_masked_and_the_rest_is_as_it_was(whole, partial):
    kept = torch.tensor([i not in LOST for i in range(12)])
    assert partial.valid.flatten().tolist() == kept.tolist()
    assert whole.valid.all()
    for name in ("rewards", "frozen_rewards"):
        mine, all_of_them = getattr(partial, name), getattr(whole, name)
        assert torch.equal(mine.flatten()[kept], all_of_them.flatten()[kept])
        for row, expected, valid in zip(mine.tolist(), all_of_them.tolist(), partial.valid.tolist()):
            known = [r for r, good in zip(expected, valid) if good]
            stand_in = sum(known) / len(known) if known else 0.0
            assert [r for r, good in zip(row, valid) if not good] == pytest.approx([stand_in] * (K - len(known)))
    for name in ("old_logp", "ref_logp", "entropy", "mask", "gold"):
        assert torch.equal(getattr(partial, name), getattr(whole, name)), name
    assert torch.equal(partial.rte[kept], whole.rte[kept])
    assert (partial.rte[~kept] == 0).all()


def test_an_infinite_reward_is_missing_too(make_actors, prompts):
    """Without an adapter it stays infinite, where with one it becomes NaN."""
    actors = make_actors(feedback=False)
    blind(actors, LOST, math.inf)
    annotated = annotated_by(actors, prompts)
    assert annotated.valid.flatten().tolist() == [i not in LOST for i in range(12)]
    assert annotated.rewards.isfinite().all()
    assert annotated.frozen_rewards.isfinite().all()


def test_missing_rewards_are_counted(whole, partial):
    assert rollout_metrics(partial).means()["frac_reward_missing"] == pytest.approx(len(LOST) / 12)
    assert rollout_metrics(whole).means()["frac_reward_missing"] == 0
    assert all(math.isfinite(row["reward"]) and math.isfinite(row["reward_frozen"]) for row in sample_rows(partial))


def test_a_missing_reward_makes_no_metric_nan(partial):
    values = rollout_metrics(partial).means()
    assert [name for name, value in values.items() if not math.isfinite(value)] == []


def test_the_evaluations_reward_is_that_of_the_responses_that_have_one(make_actors, prompts):
    """Single responses have no group whose mean could stand in for a missing reward."""
    found = []
    for lost in ([], [1]):
        actors = make_actors()
        blind(actors, lost)
        batch = rollout(actors, prompts, range(len(prompts)), 1, ROLLOUT, 5, 1, 0)
        found.append(annotate(actors, batch, flat(batch), WEIGHT, TEMPERATURE))
    expected = [r for i, r in enumerate(found[0].rewards.flatten().tolist()) if i != 1]
    values = evaluation_metrics(found[1]).means()
    assert values["eval/reward"] == pytest.approx(sum(expected) / 3, rel=1e-4)


@pytest.mark.parametrize("preference", [None, [1.0, 0.0, 1.0, 0.3]], ids=["its own pairs", "a judge's"])
@pytest.mark.parametrize("pair", ["recomputed", "annotated"])
def test_a_group_with_a_missing_reward_gives_the_update_no_gradient(make_actors, partial, pair, preference):
    """What is left is the second group's, over all four; with the fresh states of another policy."""
    actors, config = make_actors(seed=1), FeedbackConfig(pair=pair)
    module, lm = actors.reward.feedback.module, actors.policy.module.lm
    step = RewardStep(actors, partial, config, WEIGHT, None if preference is None else torch.tensor(preference))
    for pack in flat(partial.rollout, 1):
        step.consume(pack, actors.policy(pack.sequences, TEMPERATURE).states)

    rows = plain.sequences(partial.rollout)[3:6]
    rewards = torch.stack(
        [
            plain.live_reward(module, rte, plain.states(lm, tokens).detach(), WEIGHT)
            for rte, (tokens, _) in zip(partial.rte[3:6], rows)
        ]
    )
    pick = partial.rewards[1] if pair == "annotated" or preference else rewards.detach()
    margin = rewards[int(pick.argmax())] - rewards[int(pick.argmin())]
    sign = -1 if preference else 1  # the judge says that the second group's best one is the worse
    ranking = -torch.sigmoid(sign * margin).log()
    loss = ((1 - config.alpha) * ranking + config.alpha * plain.group_entropy(rewards)) / 4
    for p, expected in zip(module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-3)
        assert p.grad.abs().max() > 0
    assert all(math.isfinite(value) for value in step.update(1e-3).means().values())


CONFIG = Config(
    seed=3,
    train=TrainConfig(steps=2),
    feedback=FeedbackConfig(omega=WEIGHT, schedule="constant", lr=1e-2),
    ppo=PpoConfig(group_size=K, prompts_per_step=4),
    rollout=ROLLOUT,
    eval=EvalConfig(every=0),
)


@pytest.mark.parametrize("source", ["policy", "reward"])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "remax", "reinforce_pp", "ppo"])
def test_a_run_goes_on_over_missing_rewards(make_actors, prompts, tmp_path, algorithm, source):
    actors = make_actors(critic=algorithm == "ppo", source=source)
    before = [p.detach().clone() for p in actors.policy.parameters]
    blind(actors, LOST)
    ratio = "token" if algorithm in ("reinforce_pp", "ppo") else "sequence"
    ppo = replace(CONFIG.ppo, algorithm=algorithm, ratio=ratio, normalise="whiten")
    observer = plain.run_loop(actors, prompts, replace(CONFIG, ppo=ppo), tmp_path)
    engines = [actors.policy, actors.reward.feedback, *([actors.critic] if actors.critic else [])]
    assert all(p.isfinite().all() for engine in engines for p in engine.parameters)
    assert any(not torch.equal(p, b) for p, b in zip(actors.policy.parameters, before, strict=True))
    assert [values["frac_reward_missing"] for _, values in observer.history] == [0.5, 0.5]


def test_a_sequence_without_a_reward_does_not_pull_at_the_policy(make_actors, prompts):
    """Without a KL in the loss the update is that of the other sequences, whatever its own ratio is."""
    results, ppo = [], replace(CONFIG.ppo, beta=0.0)
    for temper in (0.0, 2.0):
        actors = make_actors(feedback=False)
        blind(actors, LOST)
        annotated = annotated_by(actors, prompts)
        old = annotated.old_logp.clone()
        old[LOST] += temper * annotated.mask[LOST]  # other ratios than 1
        batch = advantages(replace(annotated, old_logp=old), ppo)
        policy_step(actors, batch, packs(annotated.rollout), ppo, TEMPERATURE, 1e-3, None)
        results.append([p.detach().clone() for p in actors.policy.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_any_reward_the_run_stops_before_anything_is_updated(make_actors, prompts, tmp_path):
    actors = make_actors()
    before = [p.detach().clone() for engine in (actors.policy, actors.reward.feedback) for p in engine.parameters]
    blind(actors, range(12))
    with pytest.raises(UserError, match="step 1: no reward is a finite number"):
        plain.run_loop(actors, prompts, CONFIG, tmp_path)
    after = [p for engine in (actors.policy, actors.reward.feedback) for p in engine.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not checkpoints(tmp_path)


def test_one_reward_is_enough_and_a_log_probability_must_not_be_missing(make_actors, prompts):
    actors = make_actors()
    blind(actors, range(1, 12))
    annotated = annotated_by(actors, prompts)
    require_finite(annotated, 4)
    old = annotated.old_logp.clone()
    old[2, 0] = math.nan
    with pytest.raises(UserError, match="step 4: a log-probability is not a finite number"):
        require_finite(replace(annotated, old_logp=old), 4)


def test_a_pad_that_ends_replies_and_too_few_prompts_are_remarked(make_actors, prompts):
    actors, config = make_actors(), Config()
    config.ppo.prompts_per_step = len(prompts)
    assert remarks(actors, prompts, replace(config, rollout=SHORT)) == []
    chat = copy.copy(actors.format)
    chat.pad_id = min(chat.eos_ids)
    config.ppo.prompts_per_step = len(prompts) + 1
    config.rollout = replace(SHORT, max_new_tokens=100)
    said = remarks(replace(actors, format=chat), prompts, config)
    for part in (
        "the policy's tokenizer pads with its end token",
        "reward.max_tokens",
        "some prompts repeat within a step",
    ):
        assert sum(part in line for line in said) == 1, part
