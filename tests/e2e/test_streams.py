"""A run goes on when nobody reads its terminal; other failures to write are errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK, Run, under_way

COMMAND = [sys.executable, "-m", "r2m_cli.cli.main"]


def with_a_closed_pipe(*arguments: str, environment: dict[str, str], folder: Path, both: bool) -> int:
    """The exit code of a command whose standard output (and error) goes to a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=folder, env=environment | {"PYTHONUNBUFFERED": "1" if both else ""}, stdout=writing,
            stderr=writing if both else subprocess.PIPE, timeout=300, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert both or b"Traceback" not in done.stderr
    return done.returncode


@pytest.mark.long
@pytest.mark.parametrize("both", [True, False])
def test_a_run_goes_on_when_nobody_reads_it(environment: dict[str, str], tmp_path: Path, both: bool) -> None:
    given = ("train", *QUICK, "hydra.run.dir=run")
    assert with_a_closed_pipe(*given, environment=environment, folder=tmp_path, both=both) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_help_and_configuration_are_silent_then(environment: dict[str, str], tmp_path: Path) -> None:
    for arguments in (("--help",), ("train", "--cfg", "job")):
        assert with_a_closed_pipe(*arguments, environment=environment, folder=tmp_path, both=False) == 0


@pytest.mark.slow
def test_ranks_go_on_too(environment: dict[str, str], tmp_path: Path) -> None:
    given = ("train", *QUICK, "hydra.run.dir=run", "engine=zero", "engine.num_processes=2")
    assert with_a_closed_pipe(*given, environment=environment, folder=tmp_path, both=True) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--cfg", "job"]])
def test_a_full_disk_is_an_error(environment: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_streams_that_are_closed_are_none_of_a_runs_files(environment: dict[str, str], tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m r2m_cli.cli.main train --cfg job <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, check=False).returncode == 0


@pytest.mark.long
def test_a_terminal_that_is_closed_ends_a_run_with_a_checkpoint(
    environment: dict[str, str], r2m: Run, tmp_path: Path
) -> None:
    with under_way(environment, tmp_path, *QUICK) as process:
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP, said
    assert list((tmp_path / "run" / "checkpoints").glob("step_*/loop.json"))
