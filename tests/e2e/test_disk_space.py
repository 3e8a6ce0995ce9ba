"""What a run writes is known before it starts, and does not start where the disk cannot hold it."""

from pathlib import Path

import pytest
import yaml
from conftest import QUICK, Run
from omegaconf import OmegaConf

from r2m_cli.build import build_actors
from r2m_cli.checkpoints.space import (
    checkpoints_take,
    export_takes,
    parameters_take,
    require_room,
    require_room_for_fit,
)
from r2m_cli.config.check import typed
from r2m_cli.config.schema import Config
from r2m_cli.data.source import load_source
from r2m_cli.errors import UserError


def written(folder: Path, *names: str) -> int:
    return sum(path.stat().st_size for name in names for path in folder.rglob(name))


@pytest.mark.parametrize("lora", ["", "policy.lora_rank=4"])
def test_a_run_writes_about_what_was_expected(r2m: Run, tmp_path: Path, lora: str) -> None:
    more = [lora] if lora else []
    r2m("train", *QUICK, *more, "train.steps=3", "checkpoint.every=1", "checkpoint.keep=2", "hydra.run.dir=run")
    run = tmp_path / "run"
    config = typed(OmegaConf.create(yaml.safe_load((run / "config.yaml").read_text())), Config)
    actors = build_actors(config, load_source(config.data, config.eval.prompts))
    two = written(run / "checkpoints", "*.pt")
    assert checkpoints_take(config, actors, 3) == pytest.approx(1.5 * two, rel=0.1)  # the third before the first goes
    assert checkpoints_take(config, actors, 2) == pytest.approx(two, rel=0.1)
    assert checkpoints_take(config, actors, 3, held=two) == checkpoints_take(config, actors, 3) - two
    assert checkpoints_take(config, actors, 0) == 0
    saved = written(run / "policy", "*.safetensors") + (run / "reward_model" / "model.safetensors").stat().st_size
    assert export_takes(actors) == pytest.approx(saved, rel=0.1)
    fitted = Path(config.policy.path or "")
    size = parameters_take(actors.policy.module)
    assert size == pytest.approx(written(fitted, "*.safetensors"), rel=0.1)
    require_room_for_fit(actors.policy.module, run)
    with pytest.raises(UserError, match="free, and the fitted model takes about 1e\\+21 GB"):
        require_room(run, 1e30, "the fitted model takes", "(output, R2M_CACHE)")


def test_a_run_that_the_disk_cannot_hold_does_not_start(r2m: Run, tmp_path: Path) -> None:
    many = ("train.steps=1000000000", "checkpoint.every=1", "checkpoint.keep=1000000000")
    said = r2m("train", *QUICK, *many, "hydra.run.dir=run", code=2).stderr
    line = said.splitlines()[-1]
    assert line.startswith("r2m: error: ")
    assert "GB free, and the checkpoints and the export of this run take about" in line
    assert "lower checkpoint.keep" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
