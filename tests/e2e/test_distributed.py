"""Real DeepSpeed on two real gloo ranks, against the single process of plain torch."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, Run, rows, timeless, under_way
from safetensors.torch import load_file

TWO_RANKS = ("engine=zero", "engine.num_processes=2")
COMMON = (*QUICK, "train.steps=3", "rollout.tokens_per_batch=1")


def assert_same_training(one: Path, two: Path, tolerance: float) -> None:
    for a, b in zip(rows(one), rows(two), strict=True):
        for name, value in timeless(a).items():
            assert b[name] == pytest.approx(value, abs=tolerance, rel=tolerance), (a["step"], name)
    for model in ("policy", "reward_model"):
        ours, theirs = (load_file(run / model / "model.safetensors") for run in (one, two))
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], atol=1e-3, rtol=1e-3)


def test_two_zero_ranks_equal_one_process(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *COMMON, "hydra.run.dir=one")
    # Buckets of DeepSpeed's own that hold a layer or less: more messages, the same numbers.
    buckets = [f"engine.deepspeed.zero_optimization.{name}_bucket_size=5000" for name in ("reduce", "allgather")]
    r2m("train", *COMMON, *TWO_RANKS, "engine.stage=2", *buckets, "hydra.run.dir=two")
    assert_same_training(tmp_path / "one", tmp_path / "two", 2e-4)
    assert (tmp_path / "two" / "rank_1.log").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_stage_equals_one_process(r2m: Run, tmp_path: Path, stage: int) -> None:
    r2m("train", *COMMON, "hydra.run.dir=one")
    r2m("train", *COMMON, *TWO_RANKS, f"engine.stage={stage}", "hydra.run.dir=two")
    assert_same_training(tmp_path / "one", tmp_path / "two", 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("ppo=ppo",),
        ("policy.lora_rank=4", "checkpoint.every=1"),
        ("feedback.features=both", "feedback.query=learned", "feedback.heads=4"),
        ("feedback.features=both", "feedback.source=reference", "policy.lora_rank=4"),
    ],
)
def test_critic_lora_and_wider_reading_equal_one_process_at_stage_3(
    r2m: Run, tmp_path: Path, method: tuple[str, ...]
) -> None:
    r2m("train", *COMMON, *method, "hydra.run.dir=one")
    r2m("train", *COMMON, *method, *TWO_RANKS, "engine.stage=3", "hydra.run.dir=two")
    assert_same_training(tmp_path / "one", tmp_path / "two", 3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_resume_where_they_stopped(r2m: Run, tmp_path: Path, stage: int) -> None:
    common = (*QUICK, "train.steps=3", *TWO_RANKS, f"engine.stage={stage}")
    r2m("train", *common, "hydra.run.dir=whole")
    r2m("train", *common, "hydra.run.dir=parts", "train.stop_at=1")
    r2m("train", "resume=parts", "train.stop_at=null")
    whole, parts = (list(map(timeless, rows(tmp_path / name))) for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
def test_bf16_ranks_train(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, *TWO_RANKS, "engine.dtype=bf16", "hydra.run.dir=run")
    assert rows(tmp_path / "run")[-1]["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "launcher", "parent"])
def test_whoever_is_killed_the_run_ends_and_no_rank_survives(
    environment: dict[str, str], tmp_path: Path, r2m: Run, victim: str
) -> None:
    r2m("train", *QUICK, "hydra.run.dir=warm")  # fits the models
    with under_way(environment, tmp_path, *QUICK, *TWO_RANKS) as process:
        launcher, *ranks = _processes(tmp_path)
        os.kill({"rank": ranks[-1], "launcher": launcher, "parent": process.pid}[victim], signal.SIGKILL)
        begun = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if victim == "parent" else 1)
    if victim != "parent":
        assert "train failed" in said
    while _processes(tmp_path):
        assert time.monotonic() - begun < 60, "a process survives"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_terminated_run_of_ranks_leaves_a_checkpoint(environment: dict[str, str], tmp_path: Path, r2m: Run) -> None:
    with under_way(environment, tmp_path, *QUICK, *TWO_RANKS) as process:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume=" in said
    assert not _processes(tmp_path)
    last = rows(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step_{last}" / "loop.json").is_file()


@pytest.mark.long
def test_bad_input_found_by_a_rank_is_one_line(r2m: Run) -> None:
    failed = r2m("train", *QUICK, *TWO_RANKS, "rollout.max_prompt_tokens=2", "hydra.run.dir=run", code=2)
    lines = [line for line in failed.stderr.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "max_prompt_tokens=2" in lines[0]
    assert "Traceback" not in failed.stderr


def _processes(folder: Path) -> list[int]:
    """The launcher and the ranks that were started in a folder, by age."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                here = (process / "cwd").resolve() == folder.resolve()
            except OSError:
                continue
            if here and b"r2m_cli.launch.worker" in command:
                found.append(int(process.name))
    return sorted(found)
