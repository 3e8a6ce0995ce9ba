"""Sweeps: one table of all runs, a failing job among them, launchers that run jobs elsewhere, Optuna."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
from conftest import QUICK, Run


def table(sweep: Path) -> pandas.DataFrame:
    """The sweep's table, in its order."""
    return pandas.read_csv(sweep / "table.csv")


def test_a_sweep_writes_one_table_under_the_methods_names(r2m: Run, tmp_path: Path) -> None:
    done = r2m("train", *QUICK, "+sweep=table1", "+method=rloo_r2m,rloo", "seed=0,1", "hydra.sweep.dir=sweep")
    rows = table(tmp_path / "sweep")
    assert list(rows.run) == ["rloo_r2m", "rloo_r2m", "rloo", "rloo"]  # the order of the jobs, seeds together
    assert list(rows.seed) == [0, 1, 0, 1]
    assert rows.gold_end.notna().all()
    page = (tmp_path / "sweep" / "table.md").read_text()
    assert "Mean ± standard deviation over the seeds" in page
    assert "| rloo | n = 2 |" in page
    assert "rloo_r2m" in done.stdout
    assert (tmp_path / "sweep" / "report.png").stat().st_size > 10_000
    assert "2 settings, 4 runs" in (tmp_path / "sweep" / "report.html").read_text()
    folders = {p.parent.name for p in (tmp_path / "sweep").rglob("summary.json")}
    assert folders == {
        f"{2 * i + seed}_method={m},seed={seed}" for i, m in enumerate(("rloo_r2m", "rloo")) for seed in (0, 1)
    }


def test_a_job_that_fails_does_not_end_the_sweep(r2m: Run, tmp_path: Path) -> None:
    command = ("train", "-m", *QUICK, "+method=rloo", "ppo.lr=1e30,1e-4", "train.steps=3", "hydra.sweep.dir=sweep")
    failed = r2m(*command, code=2)
    assert list(table(tmp_path / "sweep").run) == ["rloo, ppo.lr=0.0001"]
    assert failed.stderr.count("r2m: error: step") == 1
    assert "1 of the sweep's runs have no result (0_ppo.lr=1e+30: step" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Error executing job" not in failed.stderr
    errors = [path.read_text() for path in (tmp_path / "sweep").rglob("error.txt")]
    assert len(errors) == 1
    assert "not a finite number" in errors[0]


@pytest.mark.long
def test_what_refers_to_a_swept_key_follows_it(r2m: Run, tmp_path: Path) -> None:
    r2m("train", "-m", *QUICK, "+method=rloo", "seed=0,1", "data.seed=${seed}", "hydra.sweep.dir=sweep")
    assert {p.parent.name for p in (tmp_path / "sweep").rglob("summary.json")} == {"0_seed=0", "1_seed=1"}


def test_a_mistake_leaves_no_sweep_behind(r2m: Run, tmp_path: Path) -> None:
    said = r2m("train", "+sweep=table1", "ppo.typo=1", "hydra.sweep.dir=sweep", code=2)
    assert "unknown configuration key ppo.typo" in said.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("plugin", "wrong", "mend"),
    [
        ("optuna", "hydra.sweeper.n_trials=0", "must be at least 1"),
        ("optuna", "hydra.sweeper.n_jobs=0", "must be at least 1"),
        ("optuna", "hydra.sweeper.direction=up", "must be minimize or maximize"),
        ("optuna", "hydra.sweeper.storage=db", "Could not parse"),
        ("joblib", "hydra.launcher.n_jobs=0", "must be at least 1, or -1 for all processors"),
        ("joblib", "hydra.sweeper.max_batch_size=0", "must be at least 1"),
    ],
)
def test_what_a_plugin_answers_with_a_traceback_is_one_line(
    r2m: Run, tmp_path: Path, plugin: str, wrong: str, mend: str
) -> None:
    part, sweep = {
        "optuna": ("sweeper", ["+sweep=optuna_lr"]),
        "joblib": ("launcher", ["-m", "seed=0,1", "hydra/launcher=joblib"]),
    }[plugin]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_{part}")
    said = r2m("train", *sweep, wrong, "hydra.sweep.dir=sweep", code=2).stderr
    assert f"r2m: error: {wrong.removesuffix('=db')}: {mend}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "sweep").exists()


@pytest.mark.long
def test_a_sweep_over_files_keeps_their_runs_apart(r2m: Run, tmp_path: Path) -> None:
    """Files of one name, seeds of each together, names with Hydra's own signs in them."""
    files = [tmp_path / "a" / "O'Brien (1).jsonl", tmp_path / "b" / "O'Brien (1).jsonl"]
    r2m("sft", *QUICK, "output=policy")
    r2m("reward", *QUICK, "output=rm")
    for file in files:
        file.parent.mkdir()
        file.write_text(
            "".join(
                json.dumps({"prompt": f"fruit : pear {w}"}) + "\n" for w in ("apple", "lemon", "mango", "peach") * 3
            )
        )
    given = ("data=file", "data.holdout=0.5", "policy.path=policy", "reward.path=rm")
    r2m("train", "-m", *QUICK, *given, f"data.path={files[0]},{files[1]}", "seed=0,1", "hydra.sweep.dir=sweep")
    rows = table(tmp_path / "sweep")
    assert list(rows.run) == [f"data.path={file}" for file in (files[0], files[0], files[1], files[1])]
    assert list(rows.seed) == [0, 1, 0, 1]
    configs = [(run / "config.yaml").read_text() for run in sorted((tmp_path / "sweep").glob("*_data.path=*"))]
    assert ["/a/" in text for text in configs] == [True, True, False, False]
    r2m("report", "sweep", "out=page.html")
    assert list(pandas.read_csv(tmp_path / "page.csv").run) == list(rows.run)


def test_other_words_sweep_without_a_table(r2m: Run, tmp_path: Path) -> None:
    r2m("sft", "-m", *QUICK, "data.seed=0,1", "hydra.sweep.dir=sweep")
    assert not (tmp_path / "sweep" / "table.csv").exists()


@pytest.mark.long
def test_runs_of_a_sweep_resume_in_their_own_folders(r2m: Run, tmp_path: Path) -> None:
    sweep = ("train", "-m", *QUICK, "train.steps=3", "train.stop_at=2", "hydra.sweep.dir=first")
    said = r2m(*sweep, "seed=0,2").stderr
    assert "2 of the sweep's runs have no result" in said, "a run's stop is not its sweep's"
    assert "stopped at train.stop_at" in said
    run, other = sorted(path.parent for path in (tmp_path / "first").rglob("metrics.jsonl"))
    said = r2m("train", "-m", f"resume={run}", "hydra.sweep.dir=second").stderr
    assert "no result" not in said
    assert (run / "summary.json").is_file()
    shutil.rmtree(other)
    # One that was resumed by hand is one of its sweep as before.
    r2m("train", f"resume={run}", "train.steps=4")
    r2m("train", "-m", *QUICK, "seed=1", "hydra.sweep.dir=first")
    assert sorted(table(tmp_path / "first").seed) == [0, 1]


@pytest.mark.long
def test_a_sweep_that_is_started_again_goes_on(r2m: Run, tmp_path: Path) -> None:
    command = (
        "train",
        "-m",
        *QUICK,
        "train.steps=3",
        "checkpoint.every=1",
        "checkpoint.keep=3",
        "seed=0,1,2",
        "hydra.sweep.dir=sweep",
    )
    r2m(*command)
    done, resumed, anew = sorted(path.parent for path in (tmp_path / "sweep").rglob("summary.json"))
    before = {run: (run / "metrics.jsonl").read_text() for run in (done, resumed, anew)}
    for run in (
        resumed,
        anew,
    ):  # as if they had been killed: one behind its second step, one before its first checkpoint
        (run / "summary.json").unlink()
        (run / "metrics.jsonl").write_text("".join(before[run].splitlines(keepends=True)[:3]))
    shutil.rmtree(anew / "checkpoints")
    shutil.rmtree(resumed / "checkpoints" / "step_3")

    said = r2m(*command).stderr
    assert said.count("already done") == 1
    assert (done / "metrics.jsonl").read_text() == before[done]
    for run in (resumed, anew):
        assert (run / "summary.json").is_file()
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps] == [0, 1, 2, 3]
    config = done / "config.yaml"  # what was swept is part of the folder's name; what changed elsewhere is noticed
    config.write_text(config.read_text().replace("epochs: 2\n", "epochs: 3\n"))
    assert "holds a run with ppo.epochs=3, not 2" in r2m(*command, code=2).stderr
    assert len(table(tmp_path / "sweep")) == 3


@pytest.mark.slow
def test_table_4_runs_all_its_rows(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "+sweep=table4", "seed=0,1", "hydra.sweep.dir=sweep")
    rows = table(tmp_path / "sweep")
    methods = ["rloo", "noise", "frozen", "without_bt", "without_gre", "rloo_r2m"]
    assert list(rows.run) == [method for method in methods for _ in range(2)]
    assert list(rows.seed) == [0, 1] * 6


@pytest.mark.slow
def test_table_2_runs_all_its_rows(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "+sweep=table2", "hydra.sweep.dir=sweep")
    methods = ["remax", "reinforce_pp", "ppo", "rloo", "frozen", "pretrained_rm", "head_only", "rloo_r2m"]
    assert list(table(tmp_path / "sweep").run) == methods


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Iterator[str]:
    """A launcher's name, if its plugin is installed. joblib's workers outlive a sweep, in the folder where they began."""
    pytest.importorskip(f"hydra_plugins.hydra_{request.param.removesuffix('_local')}_launcher")
    yield request.param
    if request.param == "joblib":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


LAUNCHERS = pytest.mark.parametrize("launcher", ["joblib", "submitit_local"], indirect=True)


@pytest.mark.slow
@LAUNCHERS
def test_a_launchers_job_starts_ranks_as_a_local_one_does(r2m: Run, tmp_path: Path, launcher: str) -> None:
    command = ("train", "-m", *QUICK, "engine=zero", "engine.num_processes=2", "hydra.sweep.dir=sweep")
    r2m(*command, "+method=rloo,rloo_r2m", f"hydra/launcher={launcher}")
    r2m("train", *QUICK, "+method=rloo_r2m", "engine=zero", "engine.num_processes=2", "hydra.run.dir=alone")
    rows = table(tmp_path / "sweep").set_index("run")
    assert list(rows.index) == ["rloo", "rloo_r2m"]
    r2m("report", "runs=[alone]", "out=alone.png")
    alone = pandas.read_csv(tmp_path / "alone.csv").iloc[0]
    for column in ("gold_end", "kl_end", "reward_end"):
        assert rows.loc["rloo_r2m", column] == pytest.approx(alone[column], abs=1e-6)
    assert len(list((tmp_path / "sweep").rglob("rank_1.log"))) == 2


@pytest.mark.slow
@LAUNCHERS
def test_a_failure_elsewhere_is_named_here(r2m: Run, tmp_path: Path, launcher: str) -> None:
    command = ("train", "-m", *QUICK, "+method=rloo", "ppo.lr=1e30,1e-4", "train.steps=3", "hydra.sweep.dir=sweep")
    failed = r2m(*command, f"hydra/launcher={launcher}", code=2)
    assert list(table(tmp_path / "sweep").run) == ["rloo, ppo.lr=0.0001"]
    assert "(0_ppo.lr=1e+30: step" in failed.stderr


@pytest.mark.slow
def test_optuna_looks_for_the_best_rates_and_goes_on_later(r2m: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("train", *QUICK, "+sweep=optuna_lr", "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name=rates")
    kept = (*search, "hydra.sweeper.storage=sqlite:///study.db")
    done = r2m(*kept, "hydra.sweep.dir=first")
    assert len(table(tmp_path / "first")) == 2
    assert "r2m: best: " in done.stderr
    r2m(*kept, "hydra.sweeper.sampler.seed=1", "hydra.sweep.dir=second")
    import optuna

    assert len(optuna.load_study(study_name="rates", storage=f"sqlite:///{tmp_path}/study.db").trials) == 4


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_the_table_of_what_is_there(
    environment: dict[str, str], r2m: Run, tmp_path: Path
) -> None:
    r2m("train", *QUICK, "hydra.run.dir=warm")  # the models are fitted
    command = [sys.executable, "-m", "r2m_cli.cli.main", "train", "-m", *QUICK, "+method=rloo", "hydra.sweep.dir=sweep"]
    with subprocess.Popen(
        [*command, "train.steps=2,100000"],
        cwd=tmp_path,
        env=environment | os.environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        running: list[Path] = []
        while not (running and len(running[0].read_text().splitlines()) > 2):
            assert time.monotonic() < deadline
            time.sleep(0.2)
            running = list(tmp_path.glob("sweep/*100000*/metrics.jsonl"))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert len(table(tmp_path / "sweep")) == 1
    assert "1 of the sweep's runs have no result (1_train.steps=100000: not finished)" in said
