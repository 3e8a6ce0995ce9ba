"""`r2m train resume=`: only with what the run began with, from a sound checkpoint, and to the very end."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, Run, rows, timeless

from r2m_cli.checkpoints.manifest import damage

HALF = (*QUICK, "train.steps=4", "train.stop_at=2", "checkpoint.every=1", "checkpoint.keep=2", "eval.every=2")


def _copy(folder: Path, name: str) -> Path:
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "half", folder / name)
    return folder / name


@pytest.mark.long
def test_other_models_or_data_than_the_run_began_with_are_refused_unless_allowed(r2m: Run, tmp_path: Path) -> None:
    r2m("sft", *QUICK, "output=policy")
    r2m("reward", *QUICK, "output=scorer")
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        json.dumps({"prompt": f"fruit : pear {word}", "chosen": f"{word} pear", "rejected": "."})
        for word in ("apple", "plum", "fig", "lemon", "melon", "peach", "cherry", "grape", "kiwi", "mango")
    ]
    pairs.write_text("\n".join(lines))
    models = (f"policy.path={tmp_path}/policy", f"reward.path={tmp_path}/scorer")
    r2m(
        "train", *HALF, *models, "data=file", f"data.path={pairs}", "data.holdout=0.2", "eval.prompts=2", "hydra.run.dir=half",
    )  # fmt: skip
    before = {str(p): p.stat().st_mtime_ns for p in (tmp_path / "half").rglob("*")}
    for file, key in (
        (tmp_path / "policy" / "model.safetensors", "policy.path"),
        (tmp_path / "scorer" / "model.safetensors", "reward.path"),
        (tmp_path / "scorer" / "tokenizer.json", "reward.path"),
        (pairs, "data.path"),
    ):
        whole, times = file.read_bytes(), file.stat()
        file.write_bytes(whole[:-2] + b" " + whole[-1:])  # in place: name, size and time stay what they were
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        said = r2m("train", "resume=half", code=2).stderr
        assert f"changed since the run began: {key}={file if key == 'data.path' else file.parent} (content was " in said
        assert "train.allow_changed=true" in said
        assert said.count("\n") == 1
        file.write_bytes(whole)
    assert {str(p): p.stat().st_mtime_ns for p in (tmp_path / "half").rglob("*")} == before
    pairs.write_text("\n".join(lines[:-1]) + "\n")
    said = r2m("train", "resume=half", "train.allow_changed=true", "train.stop_at=3").stderr
    assert f"continuing from step 2 with a changed data.path={pairs}" in said
    r2m("train", "resume=half")  # with what it has had since
    assert yaml.safe_load((tmp_path / "half" / "config.yaml").read_text())["train"]["allow_changed"] is False
    pairs.write_text("\n".join(lines) + "\n")
    said = r2m("evaluate", "run=half", "hydra.run.dir=evaluation").stdout
    assert f"data.path={pairs}" in said
    assert "it has changed since the run" in said
    moved = pairs.rename(tmp_path / "moved.jsonl")
    again = ("train", "resume=half", "train.steps=5", f"data.path={moved}")
    assert f"changed since the run began: data.path={moved} " in r2m(*again, code=2).stderr
    moved.write_text("\n".join(lines[:-1]) + "\n")  # what it has had since
    r2m(*again)


def test_of_an_edited_configuration_what_may_change_is_said_and_the_rest_refused(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *HALF, "hydra.run.dir=half")
    for key, value, says in (
        ("ppo.lr", 0.5, "half/config.yaml: ppo.lr=0.5, but the run had ppo.lr=0.0003, which cannot change"),
        ("seed", 7, "half/config.yaml: seed=7, but the run had seed=0"),
        ("data.label_noise", 0.25, "data.label_noise=0.25, but the run had"),
    ):
        file = tmp_path / "half" / "config.yaml"
        whole = file.read_text()
        settings = yaml.safe_load(whole)
        *path, last = key.split(".")
        part = settings
        for name in path:
            part = part[name]
        part[last] = value
        file.write_text(yaml.safe_dump(settings))
        assert says in r2m("train", "resume=half", code=2).stderr
        file.write_text(whole)
    settings = yaml.safe_load(whole)
    settings["eval"]["every"] = 1
    file.write_text(yaml.safe_dump(settings))
    assert "eval.every=1 from here on; the checkpoint was written with 2" in r2m("train", "resume=half").stderr


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *HALF, "hydra.run.dir=half")
    whole = _copy(tmp_path, "whole")
    r2m("train", "resume=whole", "train.stop_at=null")
    run = _copy(tmp_path, "mixed")
    for part in ("feedback/state.pt", "loop.json", "policy/state.pt"):
        newest = run / "checkpoints" / "step_2"
        assert damage(newest) is None
        kept = (newest / part).read_bytes()
        _flipped(newest / part)
        assert damage(newest).startswith(f"{part}: ")
        (newest / part).unlink()
        assert damage(newest).startswith(f"{part}: ")
        (newest / part).write_bytes(kept)
    # The feedback of another step beside this policy: every file is sound, the whole is not.
    shutil.copy(run / "checkpoints" / "step_1" / "feedback" / "state.pt", newest / "feedback")
    said = r2m("train", "resume=mixed", "train.stop_at=null").stderr
    assert (
        "step_2/feedback/state.pt: damaged, its content has changed since it was written; it was renamed to damaged_step_2"
        in said
    )
    assert "the run continues from step 1" in said
    assert list(map(timeless, rows(run))) == list(map(timeless, rows(whole)))

    run = _copy(tmp_path, "none")
    _flipped(run / "checkpoints" / "step_2" / "checksums.json")
    (run / "checkpoints" / "step_1" / "checksums.json").unlink()
    said = r2m("train", "resume=none", code=2).stderr
    assert said.startswith("r2m: error: resume=none: no valid checkpoint (step_2/")
    assert "step_1/checksums.json: missing" in said
    assert said.count("\n") == 1


def test_a_run_that_was_killed_while_exporting_gets_its_end(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run")
    run = tmp_path / "run"
    whole, metrics = json.loads((run / "summary.json").read_text()), (run / "metrics.jsonl").read_bytes()
    (run / "summary.json").unlink()
    shutil.rmtree(run / "reward_model")
    r2m("train", "resume=run")
    assert (run / "policy" / "model.safetensors").is_file()
    assert (run / "reward_model" / "feedback.safetensors").is_file()
    assert (run / "metrics.jsonl").read_bytes() == metrics
    made = json.loads((run / "summary.json").read_text())
    assert {k: v for k, v in made.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert "its 2 steps are done; raise train.steps" in r2m("train", "resume=run", code=2).stderr


def test_an_empty_summary_or_a_model_without_configuration_is_no_end(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "feedback=none", "hydra.run.dir=run")
    run = tmp_path / "run"
    for harm in (
        lambda: (run / "summary.json").write_bytes(b""),
        lambda: (run / "summary.json").write_bytes(b"\0\0\0"),
        lambda: (run / "policy" / "config.json").unlink(),
    ):
        harm()
        r2m("train", "resume=run")
        assert json.loads((run / "summary.json").read_text())["steps"] == 2
        assert (run / "policy" / "config.json").is_file()
    (run / "summary.json").write_bytes(b"")
    r2m("report", "run", "out=r.html")


def test_a_run_that_its_guard_ended_and_that_was_killed_then_is_not_trained_further(r2m: Run, tmp_path: Path) -> None:
    guard = ("train.steps=50", "ppo.lr=1e-2", "eval.every=0", "guard.kl=0.1")
    r2m("train", *QUICK, *guard, "hydra.run.dir=run")
    run = tmp_path / "run"
    steps = len(rows(run))
    (run / "summary.json").unlink()
    r2m("train", "resume=run")
    assert len(rows(run)) == steps < 50
    assert json.loads((run / "summary.json").read_text())["steps"] == steps


@pytest.mark.long
def test_a_job_of_a_sweep_that_was_killed_while_exporting_gets_its_end(r2m: Run, tmp_path: Path) -> None:
    sweep = ("train", "-m", *QUICK, "feedback=none", "seed=0,1", "hydra.sweep.dir=sweep")
    r2m(*sweep)
    (job,) = (p.parent for p in (tmp_path / "sweep").rglob("summary.json") if "seed=1" in str(p))
    (job / "summary.json").unlink()
    shutil.rmtree(job / "policy")
    r2m(*sweep)
    assert (job / "summary.json").is_file()
    assert (job / "policy" / "model.safetensors").is_file()
    (job / "policy" / "config.json").unlink()
    r2m(*sweep)
    assert (job / "policy" / "config.json").is_file()
    (job / "summary.json").write_bytes(b"")
    r2m(*sweep)
    assert json.loads((job / "summary.json").read_text())["steps"] == 2


@pytest.mark.long
def test_rows_that_were_torn_inside_a_character_are_cut(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *HALF, "feedback=r2m_judged", "feedback.judge_pairs=2", "logger.samples_every=1", "hydra.run.dir=half")
    whole = _copy(tmp_path, "whole")
    r2m("train", "resume=whole")
    torn = _copy(tmp_path, "torn")
    for name in ("metrics.jsonl", "samples.jsonl", "judged.jsonl", "warnings.log"):
        with (torn / name).open("ab") as file:
            file.write('{"step": 3, "response": "é'.encode()[:-1])
    r2m("report", "torn")
    r2m("train", "resume=torn")
    for name in ("samples.jsonl", "judged.jsonl", "warnings.log"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()
    assert list(map(timeless, rows(torn))) == list(map(timeless, rows(whole)))
