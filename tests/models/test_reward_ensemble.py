"""An ensemble of tiny reward models in memory, and the rows and seeds that make its members differ."""

import json
import math
from dataclasses import replace

import pytest
import torch

from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.fitting.reward_fit import drawn, varied
from r2m_cli.models.ensemble import Calibration, Ensemble, calibration_of, uncalibrated

CPU = torch.device("cpu")
RESPONSES = ["apple .", "i suggest piano .", "no", "the dog and the cat"]


@pytest.fixture
def models(make_actors):
    """Three reward models; the last reads much less of a conversation."""
    first, second, third = (make_actors(seed=seed, feedback=False).reward for seed in range(3))
    return first, second, replace(third, max_tokens=4)


def test_a_single_model_is_its_frozen_head_to_the_last_bit(models, prompts):
    single = models[0]
    rte, _ = single.embed(prompts, RESPONSES, CPU)
    expected = single.frozen_head(rte).squeeze(1)
    assert torch.equal(single.frozen_scores(rte, prompts, RESPONSES, CPU), expected)
    assert torch.equal(single.score(prompts, RESPONSES, CPU), expected)


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_an_ensemble_combines_what_its_members_say_alone(models, prompts, how):
    calibrations = (Calibration(0.5, 2.0), Calibration(-1.0, 0.25), Calibration())
    together = replace(models[0], ensemble=Ensemble(tuple(m.score for m in models[1:]), calibrations, how, 0.3))
    got = together.frozen_scores(together.embed(prompts, RESPONSES, CPU)[0], prompts, RESPONSES, CPU)
    alone = [(m.score(prompts, RESPONSES, CPU) - mean) / std for m, (mean, std) in zip(models, calibrations)]
    for i, values in enumerate(zip(*(scores.tolist() for scores in alone))):
        mean = sum(values) / 3
        variance = sum((v - mean) ** 2 for v in values) / 3
        expected = {"mean": mean, "worst": min(values), "uncertainty": mean - 0.3 * variance}[how]
        assert got[i].item() == pytest.approx(expected, abs=1e-5)
    assert not got.requires_grad
    assert together.score(prompts, RESPONSES, CPU).tolist() == got.tolist()


def test_a_members_calibration_is_what_its_fit_says(tmp_path):
    assert calibration_of("owner/model") is None
    assert calibration_of(str(tmp_path)) is None
    file = tmp_path / "fit.json"
    for figures, expected in (
        ({"score_mean": -1.5, "score_std": 0.5, "loss": 0.6}, Calibration(-1.5, 0.5)),
        ({"loss": 0.6}, None),
        ({"score_mean": 1.0, "score_std": 0.0}, None),
        ({"score_mean": 1.0, "score_std": math.nan}, None),
        ({"score_mean": math.inf, "score_std": 1.0}, None),
    ):
        file.write_text(json.dumps(figures))
        assert calibration_of(str(tmp_path)) == expected, figures
    note = uncalibrated([str(tmp_path), "owner/model"])
    assert note is not None
    assert "owner/model" in note
    assert "\n" not in note
    file.write_text(json.dumps({"score_mean": 0, "score_std": 1}))
    assert uncalibrated([str(tmp_path)]) is None


@pytest.mark.parametrize("text", ["{", "3", '{"score_mean": [], "score_std": 1}'])
def test_a_fit_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(UserError, match=r"fit\.json"):
        calibration_of(str(tmp_path))


def test_the_rows_of_a_fit():
    """Seed 0 takes every row once, in order; the others a bootstrap resample of their own."""

    def rows(seed):
        config = Config()
        config.reward.fit.seed = seed
        return drawn(2000, config)

    assert rows(0) == list(range(2000))
    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    for seed in (1, 2):
        assert len(rows(seed)) == 2000
        assert set(rows(seed)) <= set(range(2000))
        assert len(set(rows(seed))) / 2000 == pytest.approx(1 - 1 / math.e, abs=0.03)


def test_the_seeds_of_a_fit():
    assert varied(7, 0) == 7
    seeds = {varied(seed, member) for seed in range(20) for member in range(20)}
    assert len(seeds) == 400
    for seed in seeds:
        torch.Generator().manual_seed(seed)
