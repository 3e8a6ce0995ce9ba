"""The words as functions of `r2m_cli`: through real runs, in this process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import QUICK, rows, timeless
from hydra.core.global_hydra import GlobalHydra

import r2m_cli

NONE = (*QUICK, "feedback=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_the_words_give_back_what_they_have_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    run = r2m_cli.train([*QUICK], run_dir="a run, 1")
    assert run.folder == tmp_path / "a run, 1"
    assert run.summary["steps"] == 2
    assert list(run.metrics.index) == [0, 1, 2]
    assert run.metrics.loc[2, "reward"] == rows(run.folder)[-1]["reward"]
    assert list(run.samples["step"].unique()) == [1]
    assert run.samples.loc[0, "prompt"][-1]["role"] == "user"
    assert (run.config.train.steps, run.config.ppo.group_size) == (2, 3)

    evaluation = r2m_cli.evaluate([f"run={run.folder}"], run_dir="evaluation")
    reward = evaluation.metrics.loc["eval/reward"]
    assert reward["low"] <= reward["value"] <= reward["high"]
    assert evaluation.metrics.loc["pairs/count"].isna().tolist() == [False, True, True]
    assert isinstance(evaluation.notes, list)
    analysis = r2m_cli.analyze([f"runs=[{run.folder}]"], run_dir="analysis")
    assert analysis.results["conditions"]["seed"] == 0
    assert r2m_cli.report([run], out="page.html") == tmp_path / "page.html"
    assert (tmp_path / "page.html").is_file()
    model = r2m_cli.reward(QUICK, output="rm")
    assert (model.folder / "config.json").is_file()
    assert model.metrics["pairs"] == 128

    assert sys.argv is arguments
    assert os.environ.get("HYDRA_FULL_ERROR") == full_error
    assert not GlobalHydra.instance().is_initialized()
    assert "r2m: next: r2m report 'a run, 1'" in capfd.readouterr().err


@pytest.mark.long
def test_a_second_run_in_one_process_is_the_first_again_and_that_of_the_command(tmp_path: Path) -> None:
    first, second = (r2m_cli.train(NONE, run_dir=name) for name in ("one", "two"))
    command = [sys.executable, "-m", "r2m_cli.cli.main", "train", *NONE, "hydra.run.dir=three"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    for folder in (second.folder, tmp_path / "three"):
        for row, known in zip(rows(folder), rows(first.folder), strict=True):
            assert timeless(row) == pytest.approx(timeless(known))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=3"], "unknown configuration key train.stepz: did you mean train.steps?"),
        (["feedback=nope"], "feedback=nope: the choices are frozen, "),
        (["train.steps=x"], "train.steps: Value 'x' of type 'str' could not be converted to Integer"),
        (["ppo.group_size=1"], "ppo.group_size=1: rloo compares"),
        (["policy.path=nowhere"], "policy.path=nowhere"),
        (["-m", "seed=0,1"], "-m: a function of r2m_cli takes key=value and runs once"),
        (["seed=0,1"], "seed=0,1: several values make a sweep"),
        ("seed=1", "overrides='seed=1': pass a list"),
    ],
)
def test_bad_input_raises_the_line_of_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    with pytest.raises(r2m_cli.UserError) as caught:
        r2m_cli.train(overrides)
    assert str(caught.value).startswith(said)
    assert "error" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert not GlobalHydra.instance().is_initialized()


def test_hydra_of_ones_own_is_as_it_was() -> None:
    from hydra import initialize_config_module

    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        with pytest.raises(r2m_cli.UserError):
            r2m_cli.train(["train.steps=0"])
        assert GlobalHydra.instance().hydra is mine


def test_configuration_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert r2m_cli.train([*NONE, "+method=mine"], config_dir=tmp_path / "conf").summary["seed"] == 7


def test_a_run_that_ends_early_is_given_back_and_goes_on() -> None:
    run = r2m_cli.train([*NONE, "train.stop_at=1"], run_dir="run")
    assert list(run.metrics.index) == [0, 1]
    with pytest.raises(r2m_cli.UserError, match=r"summary\.json: no such file"):
        _ = run.summary
    assert r2m_cli.train([f"resume={run.folder}"]).summary["steps"] == 2


def test_ctrl_c_saves_a_checkpoint_and_raises(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").is_file():
            if done.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    done = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            r2m_cli.train([*NONE, "train.steps=500"], run_dir="run")
    finally:
        done.set()
        thread.join()
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_is_refused() -> None:
    said: list[str] = []

    def call() -> None:
        try:
            r2m_cli.train(NONE)
        except r2m_cli.UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert said[0].startswith("r2m_cli.train: Ctrl-C needs the main thread")


@pytest.mark.slow
def test_two_ranks() -> None:
    assert r2m_cli.train([*QUICK, "engine=zero", "engine.num_processes=2"], run_dir="run").summary["steps"] == 2


def test_importing_is_quick_and_names_are_offered() -> None:
    code = (
        "import sys, r2m_cli\n"
        "assert not {'torch', 'hydra', 'pandas', 'omegaconf'} & set(sys.modules)\n"
        "assert set(r2m_cli.__all__) <= set(dir(r2m_cli))\n"
        "import r2m_cli.tasks.report, r2m_cli.reporting\n"
        "assert r2m_cli.report.__doc__.startswith('Write a page')\n"
        "from r2m_cli import *\n"
        "assert train is r2m_cli.train\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = r2m_cli.trian  # type: ignore[attr-defined]
