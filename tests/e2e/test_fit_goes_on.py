"""A fit that is killed or stopped goes on where it was, to the same bits as one that nobody disturbed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUICK, Run

SMALL = (*QUICK, "rollout.tokens_per_batch=4096", "policy.fit.epochs=4", "reward.fit.epochs=10")
TWO_RANKS = ("engine=zero", "engine.num_processes=2")
# The command itself, but with a save after every update.
KEEN = "import r2m_cli.fitting.unfinished as u; u.EVERY, u.SHARE = 0.0, 0; from r2m_cli.cli.main import main; main()"


@pytest.fixture
def cache(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setitem(environment, "R2M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def broken_off(
    environment: dict[str, str], folder: Path, arguments: tuple[str, ...], seen: Callable[[], object], number: int
) -> tuple[int, str]:
    """Exit code and last words of the command, which gets a signal as soon as `seen` is true."""
    with subprocess.Popen(
        [sys.executable, "-c", KEEN, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not seen():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        process.send_signal(number)
        return process.wait(timeout=60), process.stdout.read() if process.stdout else ""


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("sft", ()),
        pytest.param("reward", ("reward.fit.parameters=full",), marks=pytest.mark.slow),
        pytest.param(
            "reward", ("reward.fit.parameters=head", "reward.base=base", "reward.fit.epochs=50"), marks=pytest.mark.slow
        ),
        pytest.param("sft", TWO_RANKS, marks=pytest.mark.slow),
        pytest.param("sft", (*TWO_RANKS, "engine.stage=3"), marks=pytest.mark.slow),
    ],
)
def test_a_killed_fit_goes_on(
    r2m: Run, environment: dict[str, str], cache: Path, tmp_path: Path, word: str, keys: tuple[str, ...]
) -> None:
    if word == "reward":
        r2m("sft", *SMALL, "output=base")
        keys = (*keys, "policy.path=base")  # whose replies are labelled
    command = (word, *SMALL, *keys)
    r2m(*command, "output=whole")
    assert not list((cache / "unfinished").iterdir()), "nothing is left of a fit that is done"

    def far_enough() -> bool:
        if "engine=zero" in keys:
            return (tmp_path / ".parts.partial" / "rank_0.log").exists()
        return any(int(path.name[7:]) > 5 for path in (cache / "unfinished").glob("*/*/update_*"))

    # The ranks are processes of their own, which save as rarely as ever: they are asked to stop.
    number = signal.SIGTERM if "engine=zero" in keys else signal.SIGKILL
    code, _ = broken_off(environment, tmp_path, (*command, "output=parts"), far_enough, number)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    assert not (tmp_path / "parts").exists()
    said = r2m(*command, "output=parts").stdout
    assert ": continuing after update " in said
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert (tmp_path / "parts" / "fit.json").read_text() == (tmp_path / "whole" / "fit.json").read_text()
    assert not list((cache / "unfinished").iterdir())


@pytest.mark.long
def test_a_stopped_fit_says_how_to_go_on_and_leaves_no_folder(
    r2m: Run, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    command = ("sft", *SMALL, "policy.fit.epochs=2000", "output=new/place/policy")
    begun = cache / "unfinished"
    code, said = broken_off(environment, tmp_path, command, lambda: list(begun.glob("*/*/update_*")), signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "r2m: stopped; start the same command again to continue from the saved part of the fit" in said
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("outputs/**/*")), "no empty folder of the command"


@pytest.mark.slow
def test_a_fit_with_other_settings_begins_anew(
    r2m: Run, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    command = ("sft", *SMALL, "output=policy")
    begun = cache / "unfinished"
    broken_off(environment, tmp_path, command, lambda: list(begun.glob("*/*/update_*")), signal.SIGKILL)
    for other in ("policy.fit.lr=0.002", "data.seed=1", "rollout.tokens_per_batch=120"):
        assert "going on" not in r2m("sft", *SMALL, "policy.fit.epochs=1", other).stdout


@pytest.mark.slow
def test_training_that_is_stopped_while_it_fits_goes_on_with_the_fit(
    r2m: Run, environment: dict[str, str], cache: Path, tmp_path: Path
) -> None:
    command = ("train", *SMALL, "policy.fit.epochs=8", "hydra.run.dir=run")
    begun = cache / "unfinished"
    code, said = broken_off(environment, tmp_path, command, lambda: list(begun.glob("*/*/update_*")), signal.SIGINT)
    assert code == 130
    assert "when the same command is started again" in said
    assert not (tmp_path / "run").exists()
    assert "SFT: continuing after update " in r2m(*command).stdout
    assert (tmp_path / "run" / "summary.json").is_file()
