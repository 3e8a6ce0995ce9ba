"""What stands beside the models between two steps, and where a step's seconds are counted."""

import json
from dataclasses import asdict
from time import perf_counter, sleep

import pytest

from r2m_cli.checkpoints.state import LoopState
from r2m_cli.config.schema import Config, PpoConfig
from r2m_cli.loop import next_beta
from r2m_cli.monitor.observer import Timer


def test_a_stage_within_another_takes_its_time_from_that_one():
    shown = []
    timer = Timer(shown.append)
    nap = timer("reward_step")(sleep)
    begun = perf_counter()
    with timer("policy_step"):
        sleep(0.02)
        nap(0.03)
        nap(0.03)
    with timer("reward_step"):
        sleep(0.01)
    spent = perf_counter() - begun
    found = timer.metrics(tokens=50)
    assert found["time/reward_step"] >= 0.07
    assert 0.02 <= found["time/policy_step"] <= spent - 0.07
    assert found["time/policy_step"] + found["time/reward_step"] == pytest.approx(spent, abs=2e-3)
    assert found["step_time"] >= spent
    assert found["perf/tokens_per_second"] == 50 / found["step_time"]
    assert shown == ["policy_step", "reward_step"]  # what the progress shows does not flicker


def test_a_state_survives_its_file_and_older_files_are_read():
    state = LoopState(step=7, beta=0.11, tokens=1200, seconds=3.5, ended="guard")
    assert LoopState.of(json.loads(json.dumps(asdict(state)))) == state
    older = {"step": 2, "ranks": 1, "tokens": 5, "beta": None, "seconds": 1.5, "config": {"seed": 0}, "inputs": {}}
    assert LoopState.of(older) == LoopState(step=2, tokens=5, seconds=1.5)


@pytest.mark.parametrize(
    ("beta", "kl", "expected"), [(None, 2.0, 0.055), (0.2, 2.0, 0.22), (0.2, 0.5, 0.18), (0.051, 0.5, 0.05)]
)
def test_the_kl_weight_moves_from_where_it_is_and_never_below_its_start(beta, kl, expected):
    config = Config(ppo=PpoConfig(beta=0.05, kl_target=1.0))
    assert next_beta(beta, {"kl": kl}, config) == pytest.approx(expected)


def test_without_a_target_the_kl_weight_stays_that_of_the_configuration():
    assert next_beta(None, {}, Config()) is None
