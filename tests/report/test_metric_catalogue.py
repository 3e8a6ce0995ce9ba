"""The catalogue of metrics is complete, consistent, and holds what is emitted to it."""

import re
from pathlib import Path
from typing import get_args

import pytest

import r2m_cli
from r2m_cli.monitor.catalogue import CATALOGUE, Reduction, check_names


def test_every_metric_says_what_it_is():
    for name, metric in CATALOGUE.items():
        assert metric.name == name
        assert metric.reduction in get_args(Reduction)
        assert len(metric.meaning) > 10
    assert list(CATALOGUE)[:2] == ["reward", "reward_std"]  # display order


def test_trl_names_are_kept():
    per_rollout = ["reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio/region_mean"]
    lengths = ["completions/mean_length", "completions/clipped_ratio"]
    check_names([*per_rollout, *lengths, "loss", "grad_norm", "learning_rate", "num_tokens", "step_time"])


def test_unknown_names_are_named():
    with pytest.raises(KeyError, match="rewrad, time/lunch"):
        check_names(["reward", "rewrad", "time/lunch"])


def test_the_source_emits_only_names_of_the_catalogue():
    """Reads the source for the two ways to emit: `metrics.add("name", ...)` and `with timer("stage")`."""
    source = "\n".join(path.read_text() for path in Path(r2m_cli.__file__).parent.rglob("*.py"))
    check_names(re.findall(r'metrics\.add\(\s*"([^"]+)"', source))
    check_names(f"time/{stage}" for stage in re.findall(r'with timer\("(\w+)"\)', source))
