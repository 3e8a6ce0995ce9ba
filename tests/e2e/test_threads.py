"""CPU threads: engine.threads of them on every rank, whatever the environment says, and none that spins while it waits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, Run

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


def shown(text: str, name: str) -> list[str]:
    """The values that libgomp printed, one for each process."""
    return re.findall(rf"{name} = '(\w+)'", text)


@pytest.mark.long
def test_a_thread_of_the_command_waits_asleep(environment: dict[str, str], tmp_path: Path) -> None:
    """A policy that does not exist: torch is loaded by then, and nothing else is done."""
    bare = {name: value for name, value in environment.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-m", "r2m_cli.cli.main", "train", "policy.path=nowhere"],
        cwd=tmp_path, env=bare | SHOWN, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert shown(done.stderr, "OMP_WAIT_POLICY") == ["PASSIVE"]


@pytest.mark.slow
def test_ranks_have_the_threads_of_their_key(r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHOWN.items():
        monkeypatch.setenv(name, value)
    ranks = ("engine=zero", "engine.num_processes=2", "engine.threads=2")
    r2m("train", *QUICK, *ranks, "train.steps=1", "eval.every=0", "hydra.run.dir=run")
    logs = ("launch.log", "rank_0.log", "rank_1.log")
    said = "".join((tmp_path / "run" / name).read_text() for name in logs)
    assert shown(said, "OMP_NUM_THREADS") == ["2"] * 3, "the launcher and its two ranks"
    assert shown(said, "OMP_WAIT_POLICY") == ["PASSIVE"] * 3
