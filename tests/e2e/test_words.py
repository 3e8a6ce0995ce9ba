"""What the commands say: what they do, what they wrote, how to go on; and all that is missing, before anything is done."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import QUICK, Done, Run


def said(done: Done) -> list[str]:
    """The command's own lines on standard error."""
    return [line.removeprefix("r2m: ") for line in done.stderr.splitlines() if line.startswith("r2m: ")]


def follow(r2m: Run, done: Done, *more: str) -> Done:
    """Run the first command that a command names as the next one, as a shell would."""
    line = next(line for line in said(done) if line.startswith("next: "))
    program, *arguments = shlex.split(line.removeprefix("next: "))
    assert program == "r2m"
    return r2m(*arguments, *more)


@pytest.mark.long
def test_a_run_says_where_it_is_what_it_loads_what_it_wrote_and_what_comes_next(r2m: Run, tmp_path: Path) -> None:
    done = r2m("train", *QUICK, "hydra.run.dir=my runs/first")
    assert said(done)[:2] == ["train in my runs/first: checking models and data", "reading the gold world"]
    policy, reward = [line for line in done.stdout.splitlines() if " loading " in line][-2:]
    assert policy.startswith("r2m: loading policy /")
    assert reward.startswith("r2m: loading reward model /")
    assert said(done)[-3:] == [
        "wrote my runs/first: policy/, reward_model/, summary.json, metrics.jsonl, samples.jsonl, warnings.log",
        "next: r2m evaluate 'run=my runs/first'",
        "next: r2m report 'my runs/first'",
    ]
    evaluated = follow(r2m, done, "hydra.run.dir=evaluation")
    assert said(evaluated)[0] == "evaluate in evaluation: checking models and data"
    assert said(evaluated)[-2:] == [
        "wrote evaluation: evaluation.json, alpaca_eval.json, pairs.jsonl",
        "next: r2m analyze 'run=my runs/first'",
    ]
    analysed = follow(r2m, evaluated, "analysis.pairs=20", "analysis.sequences=20", "hydra.run.dir=analysis")
    assert said(analysed)[-2].startswith("wrote analysis: analysis.json")
    assert said(analysed)[-1] == "next: r2m report 'my runs/first'"
    reported = follow(r2m, analysed)
    assert said(reported) == ["report in report.html: reading my runs/first"]
    assert reported.stdout.splitlines()[-2:] == [
        "r2m: wrote report.html, report.png, report.csv, report.md",
        "r2m: next: open report.html in a browser",
    ]
    assert "r2m: sampling a response to each of 8 prompts" in evaluated.stdout


@pytest.mark.long
def test_what_is_read_is_said_once_however_many_models_are_fitted_first(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    done = r2m("train", *QUICK, "train.steps=1", "hydra.run.dir=run")
    assert (done.stdout + done.stderr).count("fitting one (only once") == 2
    assert (done.stdout + done.stderr).count("reading the gold world") == 1


@pytest.mark.long
def test_a_look_at_models_before_any_run_names_their_training(r2m: Run, tmp_path: Path) -> None:
    looked = r2m("evaluate", *QUICK, "eval.prompts=4", "hydra.run.dir=before")
    assert said(looked)[-1] == f"next: r2m train {' '.join(QUICK)}"
    follow(r2m, looked, "hydra.run.dir=run", "train.steps=1")


def test_a_run_that_is_stopped_and_goes_on_says_from_where(r2m: Run, tmp_path: Path) -> None:
    stopped = r2m("train", *QUICK, "train.steps=3", "train.stop_at=1", "hydra.run.dir=run")
    assert said(stopped)[-1] == "stopped after step 1 of 3; continue with: r2m train resume=run"
    assert "r2m: continuing after step 1 of 3" in r2m("train", "resume=run", "train.stop_at=2").stdout


@pytest.mark.long
def test_a_run_whose_name_begins_with_a_tilde_or_a_dash_is_found_again(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.steps=2", "train.stop_at=1", "hydra.run.dir=~nobody here")
    assert r2m("train", "resume=~nobody here").stderr.endswith("r2m: next: r2m report '~nobody here'\n")
    r2m("evaluate", "run=~nobody here", "hydra.run.dir=~evaluation")
    (tmp_path / "~nobody here").rename(tmp_path / "-x")
    more = r2m("train", "resume=-x", "train.steps=3")
    assert said(more)[-1] == "next: r2m report ./-x"
    r2m("report", "./-x")


@pytest.mark.long
def test_fitted_models_lead_to_the_training_that_reads_them(r2m: Run, tmp_path: Path) -> None:
    fitted = r2m("sft", *QUICK, "policy.fit.lr=0.002", "output=new/policy")
    assert said(fitted)[0] == "sft in new/policy: checking models and data"
    assert said(fitted)[-2:] == [
        "the policy is in new/policy",
        f"next: r2m train {' '.join(QUICK)} policy.path=new/policy",
    ]
    assert not (tmp_path / "outputs").exists(), "a fit leaves no empty folder"
    fitted = r2m("reward", *QUICK, "policy.path=new/policy", "output=new/reward")
    assert said(fitted)[-1].endswith(" policy.path=new/policy reward.path=new/reward")
    follow(r2m, fitted, "hydra.run.dir=run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


@pytest.mark.long
def test_all_that_is_missing_is_said_at_once(r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    r2m("sft", *QUICK, "output=policy")
    (tmp_path / "no_weights").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "no_weights" / name).write_text((tmp_path / "policy" / name).read_text())
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    refused = r2m(
        "reward", *QUICK, "data=gold", "policy.path=/gone", "reward.base=no_weights", "output=full", code=2
    ).stderr.splitlines()
    *first, weights = refused[-4:]
    assert "no_weights: holds no weights" in weights
    assert first == [
        "r2m: error: 3 things are wrong:",
        "  output=full: exists and is not empty; choose a new folder",
        "  policy.path=/gone: no such folder; if it has moved, set policy.path=FOLDER to its new place",
    ]
    # One thing is one line; it is found although a policy would have to be fitted first.
    (line,) = r2m("train", *QUICK, "policy.fit.lr=0.002", "reward.base=no_weights", code=2).stderr.splitlines()[1:]
    assert line.startswith("r2m: error: ")
    assert "no_weights: holds no weights" in line
    assert [path.name for path in (tmp_path / "cache").glob("policy-*")] == []
    for data in ("empty.jsonl", "nowhere.jsonl"):
        said = r2m("sft", *QUICK, "data=file", f"data.path={data}", "policy.base=policy", code=2).stderr
        assert data in said.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache", "empty.jsonl", "full", "no_weights", "policy"
    ]  # fmt: skip


def test_an_evaluation_that_cannot_be_is_refused_before_models_are_fitted(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    for keys, says in (
        (("eval.against=/gone",), "needs a judge"),
        (("engine=zero",), "use engine=single"),
        (("eval.reward=/gone",), "eval.reward=/gone: no such folder"),
    ):
        assert says in r2m("evaluate", *QUICK, *keys, code=2).stderr
    assert not list((tmp_path / "cache").glob("*-*"))


def test_a_package_that_is_missing_is_said_before_anything_is_fitted(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    refused = r2m("train", *QUICK, "logger=wandb", code=2)
    assert refused.stderr.splitlines()[-1] == (
        "r2m: error: logger=wandb: the package wandb is not installed; pip install wandb"
    )
    assert not list((tmp_path / "cache").glob("*-*"))
