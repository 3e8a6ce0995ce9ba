"""A sampler that sees other probabilities than the trainer: what is logged, and how it is corrected for."""

from dataclasses import replace

import pytest
import torch

from r2m_cli.config.schema import PpoConfig, RolloutConfig
from r2m_cli.models.samplers import Drawn, native
from r2m_cli.stages.advantages import advantages
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.mismatch import corrected
from r2m_cli.stages.packing import pack
from r2m_cli.stages.rollout import rollout

CONFIG = RolloutConfig(temperature=0.8, max_new_tokens=6)
OFF = 0.25  # how much likelier this sampler thinks every second response's tokens


class Off:
    """The policy's own sampler; the log-probabilities that it tells are the trainer's, some of them shifted."""

    def __init__(self, logp=None):
        self.logp = logp

    def __call__(self, policy, chat, prompts, seeds, config):
        drawn = native(policy, chat, prompts, seeds, config)
        if self.logp is None:
            return drawn
        rows = [
            [value + OFF * (i % 2) for value in row[: len(ids)].tolist()]
            for i, (row, ids) in enumerate(zip(self.logp, drawn.tokens))
        ]
        return Drawn(drawn.tokens, rows)


def trained_on(actors, prompts, ratio="sequence"):
    batch = rollout(actors, prompts, range(len(prompts)), 2, CONFIG, 0, 0, 1)
    (packs,) = pack(batch, 64)
    return advantages(annotate(actors, batch, packs, 1.0, CONFIG.temperature), PpoConfig(ratio=ratio))


@pytest.fixture(scope="module")
def batch(make_actors, prompts):
    """The same responses as r2m's own sampler draws, with the log-probabilities of `Off`."""
    actors = make_actors()
    plain = trained_on(actors, prompts)
    off = replace(actors, sampler=Off(plain.annotated.old_logp))
    trained = trained_on(off, prompts)
    assert torch.equal(trained.annotated.rollout.tokens, plain.annotated.rollout.tokens)
    return trained


def lengths(batch):
    return batch.annotated.rollout.response_lengths


def test_the_policys_own_sampler_is_left_alone(make_actors, prompts):
    plain = trained_on(make_actors(), prompts)
    assert corrected(plain, "sequence", 2.0) == (plain, {})


def test_the_gap_is_a_mean_over_tokens_and_the_ratio_the_largest(batch):
    _, values = corrected(batch, "sequence", None)
    count = lengths(batch)
    assert values["rollout/logp_gap"] == pytest.approx(OFF * float(count[1::2].sum() / count.sum()), rel=1e-4)
    assert values["rollout/ratio_max"] == pytest.approx(1.0, rel=1e-4)


def test_without_a_cap_nothing_is_corrected(batch):
    assert corrected(batch, "sequence", None)[0] is batch


@pytest.mark.parametrize("level", ["sequence", "sequence_mean"])
def test_a_response_counts_by_its_weight(batch, level):
    expected = batch.advantages.clone()
    expected[1::2] *= torch.exp(-OFF * lengths(batch)[1::2].float())
    assert expected.abs().max() > 0
    torch.testing.assert_close(corrected(batch, level, 2.0)[0].advantages, expected)


def test_a_token_counts_by_its_weight(batch):
    weights = corrected(batch, "token", 2.0)[0].advantages / batch.advantages[:, None]
    mask = batch.annotated.mask & (batch.advantages != 0)[:, None]
    factor = torch.exp(torch.tensor([0.0, -OFF])).repeat(len(mask) // 2)[:, None].expand_as(weights)
    torch.testing.assert_close(weights[mask], factor[mask])


def test_a_weight_ends_at_the_cap(batch):
    capped = corrected(batch, "sequence", 0.5)[0].advantages
    torch.testing.assert_close(capped[::2], 0.5 * batch.advantages[::2])
