"""Run folders are read, tabulated and drawn; broken ones are refused with one clear line."""

import json
from pathlib import Path

import matplotlib.image
import numpy
import pandas
import pytest
from run_folders import make_run

from r2m_cli.errors import UserError
from r2m_cli.files.jobs import Job, write_job
from r2m_cli.reporting.runs import load_runs
from r2m_cli.reporting.table import markdown, over_seeds, summarise
from r2m_cli.tasks.report import report


def panels(path: Path) -> list[bool]:
    """Whether each of the four panels holds coloured ink (text and axes are grey)."""
    image = matplotlib.image.imread(path)[..., :3]
    image = image[int(0.1 * len(image)) : int(0.78 * len(image))]  # without titles and legend
    coloured = (image.max(axis=-1) - image.min(axis=-1)) > 0.3
    return [bool(part.sum() > 100) for part in (coloured[:, int(i * w) : int((i + 1) * w)]
            for w in [coloured.shape[1] / 4] for i in range(4))]  # fmt: skip


def test_report_writes_picture_and_tables(tmp_path, capsys):
    runs = [str(make_run(tmp_path / "vanilla")), str(make_run(tmp_path / "r2m", shift=0.5))]
    page = report(runs, str(tmp_path / "new" / "report.png"))
    assert page == tmp_path / "new" / "report.html"
    out = page.with_suffix(".png")
    assert sorted(path.suffix for path in out.parent.iterdir()) == [".csv", ".html", ".md", ".png"]
    assert panels(out) == [True] * 4
    table = pandas.read_csv(out.with_suffix(".csv")).set_index("run")
    assert list(table.index) == ["vanilla", "r2m"]
    assert table.loc["vanilla"].to_dict() == {
        "seed": 0, "gold_start": 1.0, "gold_peak": 3.0, "peak_step": 2, "gold_end": 1.5, "gold_drop": 1.5,
        "proxy_end": 4.0, "reward_end": 5.0, "kl_end": 12.0, "length_end": 8.0, "seconds": 2.5,
    }  # fmt: skip
    assert table.loc["r2m", "gold_peak"] == 3.5
    assert out.with_suffix(".md").read_text().splitlines()[2].startswith("| vanilla | 0 | 1.00 | 3.00 | 2 | 1.50 |")
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("vanilla", "r2m", "report.csv"))
    assert printed.splitlines()[-1] == f"r2m: next: open {page} in a browser"


def test_names_of_folders_are_no_markup(tmp_path, capsys):
    """Neither of the terminal, nor of the picture's formulas, nor of the tables."""
    names = ["a $b_{$ c", "[bold]x[/red]", "y|z & <b>"]
    page = report([str(make_run(tmp_path / name)) for name in names], str(tmp_path / "r.html"))
    assert list(pandas.read_csv(page.with_suffix(".csv")).run) == names
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "| y\\|z & <b> |" in page.with_suffix(".md").read_text()
    assert "&lt;b&gt;" in page.read_text()


def test_a_sweeps_runs_are_labelled_by_their_overrides(tmp_path):
    swept = [("lr", value, seed) for value in ("1e-4", "/data/a.jsonl") for seed in (0, 1)]
    for number, (key, value, seed) in enumerate(swept):
        run = make_run(tmp_path / "sweep" / f"{number}_x" / "", seed=seed)
        write_job(run, Job(number, ("+debug=quick", f"{key}='{value}'", f"seed={seed}", "data.seed=${seed}")))
    runs = load_runs([tmp_path / "sweep"])
    assert [run.name for run in runs] == ["lr=1e-4", "lr=1e-4", "lr=a.jsonl", "lr=a.jsonl"]


def test_without_evaluation_the_rollouts_are_used(tmp_path):
    (run,) = load_runs([make_run(tmp_path / "a", with_eval=False)])
    row = summarise([run]).iloc[0]
    assert (row.gold_peak, row.reward_end, row.kl_end, row.length_end) == (100.0, 4.5, 8.0, 7.0)


def test_long_rollout_curves_are_smoothed(tmp_path):
    folder = make_run(tmp_path / "a")
    lines = [json.dumps({"step": step, "gold": float(step % 2)}) for step in range(1, 101)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    gold = load_runs([folder])[0].curve("gold")
    assert gold[50] == pytest.approx((0 + 1 + 0 + 1 + 0) / 5)  # steps 48 to 52: 0, 1, 0, 1, 0
    assert len(gold) == 100


def test_without_gold_the_live_reward_is_drawn(tmp_path):
    folder = make_run(tmp_path / "a", with_gold=False)
    out = report([str(folder)], str(tmp_path / "report.html")).with_suffix(".png")
    assert panels(out) == [True] * 4
    assert pandas.read_csv(out.with_suffix(".csv")).gold_peak.isna().all()
    assert "gold" not in out.with_suffix(".md").read_text()


def test_seeds_share_a_label_and_get_a_band(tmp_path, capsys):
    for seed in (0, 1, 2):
        make_run(tmp_path / "multi" / "feedback=none,ppo.beta=0.2" / f"seed={seed}", seed, shift=seed / 10)
        make_run(tmp_path / "multi" / "feedback=r2m" / f"seed={seed}", seed, shift=seed)
    runs = load_runs([tmp_path / "multi"])
    assert [run.name for run in runs] == ["feedback=none, ppo.beta=0.2"] * 3 + ["feedback=r2m"] * 3
    means = over_seeds(summarise(runs))
    assert list(means.gold_peak) == ["3.10 ± 0.10", "4.00 ± 1.00"]
    assert list(means.seed) == ["n = 3", "n = 3"]
    out = report([str(tmp_path / "multi")], str(tmp_path / "report.html")).with_suffix(".png")
    assert "3.10 ± 0.10" in out.with_suffix(".md").read_text()
    assert "3.10±0.10" in capsys.readouterr().out
    second = numpy.array([0xD5, 0x5E, 0x00]) / 255  # the second label's colour, seen through its band
    pixels = matplotlib.image.imread(out)[..., :3].reshape(-1, 3)
    assert (abs(pixels - (1 - 0.16 * (1 - second))) < 0.01).all(axis=1).sum() > 1000


def test_a_sweeps_runs_stand_in_the_order_of_its_jobs(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    for number, name in enumerate(("rloo", "frozen", "noise")):
        (make_run(tmp_path / f"method={name}" / "seed=0") / ".job").write_text(f"{number}\n")
    assert [run.name for run in load_runs([tmp_path])] == ["rloo", "frozen", "noise"]


def test_labels_say_what_differs_when_folders_do_not(tmp_path):
    def feedback(kind, omega):
        return {"kind": kind, "omega": omega}

    make_run(tmp_path / "12-00-00", seed=0, feedback=feedback("none", 1.0), logger={"name": "x"})
    make_run(tmp_path / "12-00-01", seed=1, feedback=feedback("r2m", 0.6), logger={"name": "y"})
    make_run(tmp_path / "12-00-02", seed=2, feedback=feedback("r2m", 0.6), logger={"name": "z"})
    assert [run.name for run in load_runs([tmp_path])] == ["feedback=none", "feedback=r2m", "feedback=r2m"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a_s0", "a_s1", "b_s0"], ["a", "a", "b"]),
        (["x/seed=0", "y/seed=0"], ["x", "y"]),
        (["seed=0", "seed=1"], ["group", "group"]),
        (["seed=3,ppo.lr=1", "seed=4,ppo.lr=1"], ["ppo.lr=1", "ppo.lr=1"]),
        (["loss0.5", "loss0.7"], ["loss0.5", "loss0.7"]),
    ],
)
def test_seeds_are_left_out_of_folder_labels(tmp_path, names, labels):
    for seed, name in enumerate(names):
        make_run(tmp_path / "group" / name, seed)
    assert [run.name for run in load_runs([tmp_path / "group" / name for name in names])] == labels


def test_a_run_under_way_is_read_up_to_its_torn_line(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    (run,) = load_runs([folder, folder])  # given twice, read once
    assert run.metrics.index[-1] == 4
    assert run.summary == {}


def test_a_run_without_a_step_does_not_hold_up_the_others(tmp_path, capsys):
    make_run(tmp_path / "sweep" / "a")
    (make_run(tmp_path / "sweep" / "b") / "metrics.jsonl").write_text("")
    (run,) = load_runs([tmp_path / "sweep"])
    assert run.path.name == "a"
    assert f"left out, no step yet: {tmp_path}/sweep/b" in capsys.readouterr().err


def test_null_is_not_measured(tmp_path):
    folder = make_run(tmp_path / "a", with_eval=False)
    (folder / "metrics.jsonl").write_text('{"step": 1, "gold": null, "kl": 1}\n{"step": 2, "gold": null, "kl": null}\n')
    (run,) = load_runs([folder])
    assert (run.has("gold"), run.has("kl")) == (False, True)
    assert "| a | 0 | 1.00 |" in markdown(summarise([run]))


def break_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metrics.jsonl").unlink(), "holds no run"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
        (break_config, "config.yaml: not valid YAML"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "no step yet"),
        (lambda folder: (folder / "metrics.jsonl").write_bytes(b'{"step": \xff'), "no step yet"),
        (lambda folder: (folder / "summary.json").write_text("{"), "summary.json: not a JSON object"),
        (lambda folder: (folder / "summary.json").write_text("3"), "summary.json: not a JSON object"),
        (
            lambda folder: (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n'),
            "neither gold nor reward",
        ),
    ],
)
def test_broken_runs_are_user_errors(tmp_path, damage, message):
    folder = make_run(tmp_path / "a")
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        report([str(folder)], str(tmp_path / "report.png"))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nothing is written


def test_bad_arguments_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no run folder is given"):
        report([], "report.png")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        report([str(tmp_path / "nowhere")], "report.png")
    with pytest.raises(UserError, match=r"use a name that ends in .html, .png"):
        report([str(make_run(tmp_path / "a"))], "report.gif")
    (tmp_path / "there.html").mkdir()
    with pytest.raises(UserError, match=r"there.html is a folder"):
        report([str(tmp_path / "a")], str(tmp_path / "there.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "there.html"]
