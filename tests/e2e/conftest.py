"""The command as a person runs it, with a cache of its own for the whole test session."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from r2m_cli.cli.main import main

# The smallest world that still does everything; the same in all tests, so that its models are fitted once.
QUICK = ("+debug=quick", "ppo.prompts_per_step=4", "ppo.group_size=3", "feedback.dim=16", "rollout.tokens_per_batch=80")


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every command: no hub, no boards, one cache shared by the parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    return os.environ | {"R2M_CACHE": str(shared / "r2m-cache"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


@pytest.fixture
def r2m(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run `r2m` in an empty folder, through its entry point in this process (starting a new one costs seconds each time;
    tests that send signals start real processes). `code` is the exit status that is expected."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["r2m", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0  # type: ignore[assignment]
        done = Done(*capfd.readouterr())
        assert status == code, f"exit {status}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return run


@contextmanager
def under_way(environment: dict[str, str], folder: Path, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """`r2m train` with these arguments in a process of its own, in `folder`/run, once it has logged a few steps."""
    command = [sys.executable, "-m", "r2m_cli.cli.main", "train", *arguments, "train.steps=1000", "hydra.run.dir=run"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        metrics = folder / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        yield process


def ranks_of_many(environment: dict[str, str], run_dirs: list[Path]) -> None:
    """Run the finished configurations in these folders on two ranks, one after the other in one launch."""
    script = Path(__file__).with_name("rank_of_many.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    ranks = subprocess.run(
        [*command, *map(str, run_dirs)],
        env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert ranks.returncode == 0, ranks.stderr[-5000:]


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A run's JSON lines."""
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock and the machine."""
    return {k: v for k, v in row.items() if not k.startswith(("time/", "perf/")) and k != "step_time"}
