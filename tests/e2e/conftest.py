"""The command as a person runs it: a real process, with a cache of its own for the whole test session."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The smallest world that still does everything; the same in all tests, so that its models are fitted once.
QUICK = ("+debug=quick", "ppo.prompts_per_step=4", "ppo.group_size=3", "feedback.dim=16", "engine.micro_groups=2")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every command: no hub, no boards, one cache shared by the parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    return os.environ | {"R2M_CACHE": str(shared / "r2m-cache"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


@pytest.fixture
def r2m(environment: dict[str, str], tmp_path: Path) -> Run:
    """Run `r2m` in an empty folder; `code` is the exit status that is expected."""

    def run(*arguments: str, code: int = 0, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "r2m_cli.main", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return run


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A run's JSON lines."""
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock and the machine."""
    return {k: v for k, v in row.items() if not k.startswith(("time/", "perf/")) and k != "step_time"}
