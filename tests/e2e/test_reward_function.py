"""A reward of one's own (reward.function): alone and beside a reward model, through the command; what bad ones are told."""

import json
from pathlib import Path

import pytest
from conftest import QUICK, Run, rows

ALONE = (*QUICK, "feedback=none", "reward=python", "checkpoint.export=false")
GOOD = """\
import math

def words(prompts, responses):
    assert prompts[0][-1]["role"] == "user"
    return [float(len(text.split())) for text in responses]

def some(prompts, responses):
    return [math.nan if i % 3 == 0 else 1.0 for i, text in enumerate(responses)]

def short(prompts, responses):
    return [0.0]

def text(prompts, responses):
    return ["1"] * len(responses)

def nothing(prompts, responses):
    return None

def breaks(prompts, responses):
    return [1 / 0 if text == responses[-1] else 0.0 for text in responses]

LIMIT = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working directory, known to nobody after the test."""
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)


def test_a_function_alone_is_the_reward(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "feedback=none", "reward=python", "reward.function=mine:words", "hydra.run.dir=run")
    samples = rows(tmp_path / "run", "samples.jsonl")
    assert samples
    for row in samples:
        assert row["reward"] == row["reward_frozen"] == row["reward_function"] == len(row["response"].split())
    metrics = rows(tmp_path / "run")[1]
    assert (
        metrics["reward"]
        == metrics["reward_function"]
        == pytest.approx(sum(row["reward"] for row in samples) / len(samples))
    )
    assert not (tmp_path / "run" / "reward_model").exists()
    r2m("evaluate", "run=run", "eval.best_of=2", "hydra.run.dir=evaluation")
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    responses = json.loads((tmp_path / "evaluation" / "alpaca_eval.json").read_text())
    lengths = [len(row["output"].split()) for row in responses]
    assert found["eval/reward_frozen"] == pytest.approx(sum(lengths) / len(lengths))
    for row in rows(tmp_path / "evaluation", "best_of_n.jsonl"):
        assert row["proxy"] == len(row["response"].split())


@pytest.mark.parametrize("feedback", ["none", "r2m"])
def test_beside_a_reward_model_it_is_added_to_its_score_and_taught_to_nobody(
    r2m: Run, tmp_path: Path, feedback: str
) -> None:
    small = (*QUICK, f"feedback={feedback}", "train.steps=1", "checkpoint.export=false", "eval.every=0", "ppo.lr=0")
    r2m("train", *small, "hydra.run.dir=without")
    r2m("train", *small, "reward.function=mine:words", "reward.function_weight=0.5", "hydra.run.dir=with")
    pairs = zip(rows(tmp_path / "without", "samples.jsonl"), rows(tmp_path / "with", "samples.jsonl"), strict=True)
    for row, more in pairs:
        added = 0.5 * len(row["response"].split())
        assert more["response"] == row["response"]
        assert more["reward_function"] == added
        for name in ("reward", "reward_frozen"):
            assert more[name] == pytest.approx(row[name] + added, abs=1e-5)
    if feedback == "r2m":  # the reward model's own update is the same
        (before,), (after,) = rows(tmp_path / "without"), rows(tmp_path / "with")
        for name in ("reward_model/loss", "reward_model/grad_norm", "reward_model/agreement"):
            assert after[name] == pytest.approx(before[name], rel=1e-4)


def test_a_value_that_is_nan_is_a_missing_reward(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *ALONE, "reward.function=mine:some", "train.steps=1", "eval.every=0", "hydra.run.dir=run")
    assert rows(tmp_path / "run")[0]["frac_reward_missing"] == pytest.approx(1 / 3)
    assert rows(tmp_path / "run")[0]["reward"] == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "breaks",
            "step 1: reward.function=mine:breaks: ZeroDivisionError: division by zero (mine.py:20) for text 1 of 12, ",
        ),
        ("short", "step 1: reward.function=mine:short: returned 1 values for 12 responses; return one for each"),
        ("text", "step 1: reward.function=mine:text: returned '1' for text 1 of 12, "),
        ("nothing", "step 1: reward.function=mine:nothing: returned NoneType; return a list"),
    ],
)
def test_a_bad_function_is_named_with_the_step_and_the_text(r2m: Run, tmp_path: Path, name: str, said: str) -> None:
    done = r2m("train", *ALONE, "eval.every=0", f"reward.function=mine:{name}", "hydra.run.dir=run", code=2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"r2m: error: {said}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward=python"], "reward.function is not set"),
        (["reward=python", "reward.function=mine"], "reward.function=mine: name a module and a function in it"),
        (["reward=python", "reward.function=nowhere:f"], "reward.function=nowhere:f: there is no module nowhere in "),
        (["reward=python", "reward.function=mine:f"], "reward.function=mine:f: mine ("),
        (["reward=python", "reward.function=mine:LIMIT"], "reward.function=mine:LIMIT: is a int; name a function"),
        (["reward=python", "reward.function=bad:f"], "reward.function=bad:f: importing bad failed: SyntaxError"),
        (
            ["reward=python", "reward.function=mine:words", "feedback=r2m"],
            "feedback=r2m: reward.function=mine:words scores",
        ),
        (
            ["reward=python", "reward.function=mine:words", "reward.members=2"],
            "reward.members=2: reward.function=mine:words",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_fitted(
    r2m: Run, tmp_path: Path, overrides: list[str], said: str
) -> None:
    (tmp_path / "bad.py").write_text("def f(:\n")
    done = r2m("train", *QUICK, "feedback=none", *overrides, code=2)
    assert done.stderr.splitlines()[-1].startswith(f"r2m: error: {said}")
    assert not (tmp_path / "outputs").exists()


def test_a_continuation_notices_that_the_function_is_another(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *ALONE, "reward.function=mine:words", "eval.every=0", "train.stop_at=1", "hydra.run.dir=run")
    (tmp_path / "mine.py").write_text(GOOD + "# another\n")
    done = r2m("train", "resume=run", code=2)
    assert "reward.function=mine:words (content was" in done.stderr
    r2m("train", "resume=run", "train.allow_changed=true")


@pytest.mark.slow
def test_two_ranks_reward_as_one_process_and_end_together(r2m: Run, tmp_path: Path) -> None:
    small = (*ALONE, "ppo.lr=0", "train.steps=1", "rollout.tokens_per_batch=1")
    r2m("train", *small, "reward.function=mine:words", "hydra.run.dir=one")
    ranks = ("engine=zero", "engine.num_processes=2")
    r2m("train", *small, *ranks, "reward.function=mine:words", "hydra.run.dir=two")
    for name in ("reward", "eval/reward"):
        assert rows(tmp_path / "two")[-1][name] == pytest.approx(rows(tmp_path / "one")[-1][name])
    done = r2m("train", *small, *ranks, "eval.every=0", "reward.function=mine:breaks", code=2)
    assert "step 1: reward.function=mine:breaks: ZeroDivisionError" in done.stderr
