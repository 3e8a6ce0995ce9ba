"""CPU threads: engine.threads of them on every rank, whatever the environment says, and none that spins while it waits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, Run, rows

# libgomp then prints its settings as it is loaded.
SHOWN = {"OMP_DISPLAY_ENV": "TRUE", "OMP_NUM_THREADS": "7"}


@pytest.mark.parametrize(("settings", "threads"), [((), 1), (("engine.threads=2",), 2)])
def test_one_process_has_the_threads_of_its_key(r2m: Run, settings: tuple[str, ...], threads: int) -> None:
    try:
        torch.set_num_threads(3)
        r2m("train", *QUICK, *settings, "train.steps=1", "eval.every=0", "hydra.run.dir=run")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_a_thread_of_the_command_waits_asleep(environment: dict[str, str], tmp_path: Path) -> None:
    """A policy that does not exist: torch is loaded by then, and nothing else is done."""
    environment = {name: value for name, value in environment.items() if not name.startswith("OMP_")} | SHOWN
    for asked in ("PASSIVE", "ACTIVE"):
        done = subprocess.run(
            [sys.executable, "-m", "r2m_cli.main", "train", "policy.path=nowhere"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert f"OMP_WAIT_POLICY = '{asked}'" in done.stderr
        environment["OMP_WAIT_POLICY"] = "ACTIVE"  # a person's own choice stays


def test_ranks_have_the_threads_of_their_key(r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHOWN.items():
        monkeypatch.setenv(name, value)
    ranks = ("engine=zero", "engine.num_processes=2", "engine.threads=2")
    r2m("train", *QUICK, *ranks, "train.steps=1", "eval.every=0", "hydra.run.dir=run")
    assert rows(tmp_path / "run")[-1]["step"] == 1
    for rank in (0, 1):
        said = (tmp_path / "run" / f"rank_{rank}.log").read_text()
        assert "OMP_NUM_THREADS = '2'" in said
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in said
