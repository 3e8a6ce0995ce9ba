"""Checks that the disk has room for the files of a run or a fit: once, before any work could be lost."""

import shutil
from pathlib import Path

from torch import nn

from r2m_cli.checkpoints.checkpoint import engines
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError
from r2m_cli.models.actors import Actors
from r2m_cli.text import number, place

MOMENTS = 2  # numbers that AdamW keeps per trained parameter


def require_room_for_run(config: Config, actors: Actors, run_dir: Path, steps: int) -> None:
    """Raises UserError if the disk cannot hold the run's checkpoints and its export.

    Args:
        steps: number of steps still to be done.
    """
    needed = checkpoints_take(config, actors, steps, held=_files_take(run_dir / "checkpoints"))
    needed += export_takes(actors) if config.checkpoint.export else 0
    fix = "set checkpoint.export=false" if config.checkpoint.keep == 1 else "lower checkpoint.keep"
    require_room(run_dir, needed, "the checkpoints and the export of this run take", f"(hydra.run.dir), or {fix}")


def require_room_for_fit(model: nn.Module, folder: Path) -> None:
    """Raises UserError if the disk cannot hold the model that will be fitted."""
    require_room(folder, parameters_take(model), "the fitted model takes", "(output, R2M_CACHE)")


def require_room(folder: Path, needed: float, what: str, fix: str) -> None:
    """Raises UserError if the disk of an existing folder has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{place(folder)}: its disk has {_gigabytes(free)} free, and {what} about {_gigabytes(needed)}; free some space, "
            f"choose another place {fix}"
        )


def checkpoints_take(config: Config, actors: Actors, steps: int, held: int = 0) -> int:
    """Bytes that the checkpoints of `steps` steps add to the `held` bytes; a new one is written before an old one is removed.

    A checkpoint has all parameters and AdamW's moments of each trained module. DeepSpeed's also have a copy in fp32, which
    is not counted.
    """
    one = 0
    for _, engine in engines(actors):
        one += parameters_take(engine.module) + MOMENTS * parameters_take(engine.module, trained=True)
    written = 0 if steps < 1 else 1 + (steps - 1) // (config.checkpoint.every or steps)
    return max(0, min(written * one, (config.checkpoint.keep + 1) * one - held))


def export_takes(actors: Actors) -> int:
    """Bytes of policy/ and of reward_model/, which is saved in fp32; with reward.function alone there is no reward_model/."""
    backbone = actors.reward.backbone
    reward = sum(_size(parameter) for parameter in backbone.parameters()) if backbone is not None else 0
    return parameters_take(actors.policy.module) + 4 * reward


def parameters_take(module: nn.Module, trained: bool = False) -> int:
    """Bytes of all parameters of a module, or of those that are trained."""
    chosen = [p for p in module.parameters() if p.requires_grad or not trained]
    return sum(_size(p) * p.element_size() for p in chosen)


def _size(parameter: nn.Parameter) -> int:
    # Under ZeRO stage 3 the parameter itself is only a shard.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _files_take(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gigabytes(size: float) -> str:
    return f"{number(size / 1e9, 3)} GB"
