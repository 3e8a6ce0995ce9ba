"""Stage 2: every number of the annotation against a direct forward of one unpadded sequence."""

from dataclasses import replace

import pytest
import torch
from packs import flat, of_rows

from r2m_cli.config.schema import RolloutConfig
from r2m_cli.models.reward_backbone import find_head
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.rollout import rollout

TEMPERATURE, WEIGHT, K = 0.8, 0.6, 3
CONFIG = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)


@pytest.fixture(scope="module")
def actors(make_actors):
    return make_actors()


@pytest.fixture(scope="module")
def batch(actors, prompts):
    return rollout(actors, prompts, range(len(prompts)), K, CONFIG, 5, 0, 1)


@pytest.fixture(scope="module")
def annotated(actors, batch):
    return annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)


def alone(batch, i):
    """The tokens of sequence i [1, S] and its prompt's and response's lengths."""
    p, r = int(batch.prompt_lengths[i]), int(batch.response_lengths[i])
    return batch.tokens[i : i + 1, : p + r], p, r


@torch.no_grad()
def test_old_and_reference_log_probabilities_equal_a_direct_forward(actors, batch, annotated):
    models = {"old_logp": actors.policy.module.lm, "ref_logp": actors.reference.lm}
    for name, lm in models.items():
        values = getattr(annotated, name)
        assert values.shape == (4 * K, int(batch.response_lengths.max()))
        for i in range(4 * K):
            tokens, p, r = alone(batch, i)
            log_p = (lm(tokens).logits[0] / TEMPERATURE).log_softmax(dim=1)
            expected = log_p[torch.arange(p - 1, p + r - 1), tokens[0, p:]]
            torch.testing.assert_close(values[i, :r], expected, atol=1e-5, rtol=1e-5)
            assert (values[i, r:] == 0).all()
            if name == "old_logp":
                entropy = -(log_p.exp() * log_p).sum(dim=1)[p - 1 : p + r - 1]
                torch.testing.assert_close(annotated.entropy[i, :r], entropy, atol=1e-5, rtol=1e-5)
            assert annotated.mask[i].tolist() == [j < r for j in range(values.shape[1])]


@torch.no_grad()
def test_rewards_equal_a_direct_forward_of_every_model(actors, batch, annotated, chat):
    """The reward token is the reward model's own last token, the feedback the policy's states without the last token."""
    classifier, head = actors.reward.backbone.classifier, actors.reward.feedback.module
    for i, (prompt, response) in enumerate(zip(batch.prompt_of, batch.responses)):
        conversation = torch.tensor([chat.conversation_ids(prompt, response)])
        rte = classifier.base_model(conversation).last_hidden_state[:, -1]
        torch.testing.assert_close(annotated.rte[i : i + 1], rte, atol=1e-5, rtol=1e-5)

        tokens, p, r = alone(batch, i)
        hidden = actors.policy.module.lm(tokens, output_hidden_states=True).hidden_states[-1][:, : p + r - 1]
        score = head(rte, of_rows(hidden, torch.ones(1, p + r - 1, dtype=torch.bool)), WEIGHT)
        j = divmod(i, K)
        assert annotated.rewards[j].item() == pytest.approx(score.reward.item(), abs=1e-5)
        assert annotated.attention_entropy[i].item() == pytest.approx(score.attention_entropy.item(), abs=1e-5)
        assert annotated.adapter_scale[i].item() == pytest.approx(score.adapter_scale.item(), abs=1e-5)
        assert annotated.frozen_rewards[j].item() == pytest.approx(find_head(classifier)(rte).item(), abs=1e-5)
    assert (annotated.rewards - annotated.frozen_rewards).abs().max() > 1e-3


def test_gold_is_the_worlds_score(world, batch, annotated):
    scores = [
        world.score(prompt[-1]["content"], response, finished)
        for prompt, response, finished in zip(batch.prompt_of, batch.responses, batch.finished)
    ]
    torch.testing.assert_close(annotated.gold, torch.tensor(scores).view(4, K))
    assert annotated.gold.std() > 0


@pytest.mark.parametrize("micro_groups", [1, 3, 4, 100])
def test_the_size_of_a_micro_batch_changes_nothing(actors, batch, annotated, micro_groups):
    other = annotate(actors, batch, flat(batch, micro_groups), WEIGHT, TEMPERATURE)
    for name in ("old_logp", "ref_logp", "entropy", "mask", "rte", "rewards", "frozen_rewards", "attention_entropy"):
        torch.testing.assert_close(getattr(other, name), getattr(annotated, name), atol=1e-5, rtol=1e-5, msg=name)
    assert torch.equal(other.gold, annotated.gold)


def test_at_weight_one_the_reward_is_the_frozen_one(actors, batch):
    got = annotate(actors, batch, flat(batch, 2), 1.0, TEMPERATURE)
    torch.testing.assert_close(got.rewards, got.frozen_rewards, atol=1e-6, rtol=0)


def test_without_feedback_the_reward_is_the_frozen_one(make_actors, batch, annotated):
    got = annotate(make_actors(feedback=False), batch, flat(batch, 2), WEIGHT, TEMPERATURE)
    assert torch.equal(got.rewards, got.frozen_rewards)
    assert torch.equal(got.frozen_rewards, annotated.frozen_rewards)
    assert torch.equal(got.old_logp, annotated.old_logp)
    assert len(got.attention_entropy) == len(got.adapter_scale) == 0


def test_without_reference_and_gold_there_is_neither(make_actors, batch):
    got = annotate(replace(make_actors(reference=False), gold=None), batch, flat(batch, 2), WEIGHT, TEMPERATURE)
    assert got.ref_logp is None
    assert got.gold is None


def test_nothing_carries_a_gradient_and_no_model_moves(make_actors, prompts):
    actors = make_actors()
    parts = (actors.policy.module, actors.reference, actors.reward.backbone, actors.reward.feedback.module)
    before = [p.clone() for part in parts for p in part.parameters()]
    batch = rollout(actors, prompts, range(len(prompts)), K, CONFIG, 5, 0, 1)
    annotated = annotate(actors, batch, flat(batch, 2), WEIGHT, TEMPERATURE)
    for name in ("old_logp", "ref_logp", "entropy", "rte", "rewards", "frozen_rewards", "adapter_scale"):
        assert not getattr(annotated, name).requires_grad, name
    after = [p for part in parts for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert all(p.grad is None for p in after)


def test_a_long_conversation_is_cut_on_the_left(make_actors, batch, annotated, chat):
    """The reward model's limit keeps the end, where the response and its closing token are."""
    actors = make_actors(max_tokens=6)
    got = annotate(actors, batch, flat(batch, 4), WEIGHT, TEMPERATURE)
    for i in (0, 5):
        ids = chat.conversation_ids(batch.prompt_of[i], batch.responses[i])[-6:]
        with torch.no_grad():
            rte = actors.reward.backbone.classifier.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(got.rte[i], rte, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got.rte, annotated.rte, atol=1e-3)
