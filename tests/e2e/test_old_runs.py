"""Run folders of earlier versions, whose configuration and metrics have other names, are resumed, evaluated and reported."""

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import QUICK, Run, rows

from r2m_cli.checkpoints.manifest import CHECKSUMS, LOOP, seal
from r2m_cli.files.run_folder import checkpoints
from r2m_cli.reporting.runs import load_runs


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the names, and the keys, of the version before."""
    feedback, data, guard = config["feedback"], config["data"], config["guard"]
    feedback |= {
        "states": feedback.pop("source"),
        "reads": feedback.pop("features"),
        "scale": "free",
        "init_scale": 1.0,
    }
    config["eval"] |= {"preflight_pairs": config["eval"].pop("reward_check_pairs"), "bootstrap": 1000}
    for model in (config["policy"], config["reward"]):
        model |= dict(zip(("hidden_size", "num_layers", "num_heads"), map(int, model.pop("size").split("x"))))
    labels = {key: data.pop(key) for key in ("label_bias", "label_temperature", "label_noise")}
    own = {"label_bias": 0.15, "label_temperature": 0.3, "label_noise": 0.0}
    data["world"] = own | {key: value for key, value in labels.items() if value is not None} | {"on_topic": 0.6}
    guard |= {"stop_on": "none" if guard["kl"] is None else "kl", "kl": guard["kl"] or 6.0}
    config["ppo"]["std_floor"] = 0.01
    return config


def _made_old(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(_as_it_was(yaml.safe_load(file.read_text()))))
    state = json.loads((checkpoints(run)[-1] / LOOP).read_text())
    state["config"] = _as_it_was(state["config"])
    (checkpoints(run)[-1] / LOOP).write_text(json.dumps(state))
    (checkpoints(run)[-1] / CHECKSUMS).unlink()
    seal(checkpoints(run)[-1])
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("feedback/weight", "feedback/omega"))


def test_an_older_run_goes_on_and_is_evaluated_and_reported(r2m: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changed = ("feedback.source=reference", "data.label_noise=0.25", "feedback.alpha=0.2")
    r2m("train", *QUICK, *changed, "train.stop_at=1", "hydra.run.dir=run")
    _made_old(run)
    refused = r2m("train", "resume=run", "feedback.source=policy", code=2).stderr
    assert "the run had feedback.source=reference, which cannot become policy" in refused
    resumed = r2m("train", "resume=run", "train.steps=2")
    assert "config.yaml" not in resumed.stderr, "nothing of the configuration counts as changed"
    now = yaml.safe_load((run / "config.yaml").read_text())
    assert (now["feedback"]["source"], now["data"]["label_noise"], now["data"]["label_bias"]) == (
        "reference",
        0.25,
        None,
    )
    assert now["guard"]["kl"] is None
    assert ["feedback/omega" in row for row in rows(run)] == [False, True, False]
    assert load_runs([run])[0].metrics["feedback/weight"].notna().tolist() == [False, True, True]

    _made_old(run)
    assert "eval/gold" in r2m("evaluate", "run=run", "hydra.run.dir=evaluation").stdout
    r2m("report", "run", "out=report.html")
    assert load_runs([run])[0].config["eval"]["reward_check_pairs"] == 8


def test_an_older_run_that_cannot_be_had_again_is_one_line(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.stop_at=1", "hydra.run.dir=run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["feedback"]["scale"] = "rte"
    file.write_text(yaml.safe_dump(config))
    said = r2m("train", "resume=run", "train.steps=2", code=2).stderr
    assert said.count("r2m: error: ") == 1
    assert "run/config.yaml: feedback.scale is no longer a key: " in said
