"""A run in the English world, on the real language model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from r2m_cli.data.english_world import EnglishWorld


@pytest.mark.slow
def test_a_real_model_is_trained_where_a_lexicon_knows_the_truth(r2m: Callable[..., object], tmp_path: Path) -> None:
    r2m(
        "train", "+experiment=english", "feedback=r2m_safe", "data.pairs=8", "eval.pairs=4", "eval.reward_check_pairs=4",
        "eval.prompts=2", "reward.fit.rows=8", "train.steps=1", "eval.every=1", "ppo.prompts_per_step=2", "ppo.group_size=2",
        "rollout.max_new_tokens=8", "logger.samples_every=1", "checkpoint.export=false", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(-3 < row["eval/gold"] < 4.5 for row in rows)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    for sample in samples:
        score = EnglishWorld().score(sample["prompt"][-1]["content"], sample["response"], sample["finished"])
        assert sample["gold"] == pytest.approx(score, abs=1e-5)


def test_a_made_model_cannot_speak_english(r2m: Callable[..., object], tmp_path: Path) -> None:
    done = r2m("train", "data=english", f"hydra.run.dir={tmp_path / 'run'}", code=2)
    assert (
        "data=english needs a model; set policy.path to a folder or a name on the hub, or use policy=smollm2"
        in done.stderr
    )  # type: ignore[attr-defined]
