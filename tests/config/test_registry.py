"""The registry: every name has its code and its configuration file, and the rest of the configuration agrees with it."""

import inspect
from pkgutil import resolve_name

import pytest
import torch
from composition import CONF, composed

from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS, WORLDS
from r2m_cli.config.values import CHOICES
from r2m_cli.data.world import World
from r2m_cli.models.states import ANNOTATED, States, feedback_states

REWARDS = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]])


@pytest.mark.parametrize("group", ["ppo", "feedback", "data"])
def test_every_name_is_a_choice_with_a_file(group: str) -> None:
    registry, key = {
        "ppo": (ESTIMATORS, "ppo.algorithm"), "feedback": (FEEDBACKS, "feedback.kind"), "data": (WORLDS, "data.kind"),
    }[group]  # fmt: skip
    assert [name for name in CHOICES[key] if name != "file"] == list(registry)
    for name in registry:
        assert (CONF / group / f"{name}.yaml").is_file()
        chosen = getattr(composed(f"{group}={name}"), group)
        assert getattr(chosen, key.split(".")[1]) == name


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_gives_an_advantage_for_every_reward(name: str) -> None:
    entry = ESTIMATORS[name]
    estimate = resolve_name(entry.function)
    mask = torch.ones(2, 3, dtype=torch.bool)
    further = (torch.zeros(2),) if entry.greedy else (torch.zeros(2, 3), mask, 1.0, 1.0) if entry.critic else ()
    made = estimate(REWARDS, *further)
    advantages, returns = made if entry.critic else (made, REWARDS)
    assert advantages.shape == returns.shape == REWARDS.shape
    if entry.compares:
        with pytest.raises(ValueError, match="K >= 2"):
            estimate(REWARDS[:, :1])


@pytest.mark.parametrize("name", FEEDBACKS)
def test_a_feedback_variant_gives_every_sequence_a_state(name: str) -> None:
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    states = States(hidden, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]]).bool())
    made = feedback_states(name, states, [1, 2], 2, ANNOTATED)
    assert made[0].shape[1] == 3
    assert made[1].shape == (2, len(made[0]))
    assert made[1].any(dim=1).all()
    if FEEDBACKS[name].states is None:
        assert made is states


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_one(name: str) -> None:
    world = resolve_name(WORLDS[name].world)
    assert issubclass(world, World)
    assert not inspect.isabstract(world)
