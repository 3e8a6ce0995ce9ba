"""Saves and loads checkpoints, and exports the models.

Every random draw of a run is a function of (seed, stream, step, sample), so the step number *is* the random state and
the position in the data. In addition, a checkpoint holds parameters and optimiser states.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from r2m_cli.checkpoints.manifest import LOOP, damage, seal, to_disk
from r2m_cli.checkpoints.state import LoopState
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError
from r2m_cli.files.cache import read_json, write_folder
from r2m_cli.files.run_folder import CHECKPOINTS, POLICY, POLICY_ADAPTER, REWARD_MODEL, checkpoints
from r2m_cli.models.actors import Actors
from r2m_cli.models.loading import load_causal_lm, load_reward_model
from r2m_cli.models.lora import merged_from
from r2m_cli.models.reward_backbone import find_head

ADAPTER_FILE = "feedback.safetensors"
ADAPTER_CONFIG = "feedback.json"


def save(run_dir: Path, actors: Actors, state: LoopState, origin: dict[str, Any], keep: int) -> Path:
    """Write `checkpoints/step_N/` after a step; it appears complete or not at all. Collective.

    Args:
        origin: the configuration and inputs that the run began with, which a resumed run is compared to; JSON-serialisable.
        keep: number of newest checkpoints to keep; older ones are removed after the new one is in place.
    """
    target = run_dir / CHECKPOINTS / f"step_{state.step}"
    partial = target.with_name(f".{target.name}.partial")
    if comm.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    comm.barrier()
    for tag, engine in engines(actors):
        engine.save(partial, tag)
    comm.barrier()
    if comm.is_main():
        (partial / LOOP).write_text(json.dumps({"ranks": comm.world_size()} | asdict(state) | origin))
        seal(partial)
        replaced = target.with_name(f".{target.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        to_disk(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    comm.barrier()
    return target


def load(run_dir: Path, actors: Actors) -> LoopState:
    """Load the newest checkpoint, already verified by `continuation`, into the actors; returns the state of the loop.
    Collective.

    Raises:
        UserError: there is no checkpoint, or it was written by another number of ranks.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(f"resume={run_dir}: no checkpoint below checkpoints/; the run stopped before it wrote one")
    newest = found[-1]
    loop = read_json(newest / LOOP)
    if loop["ranks"] != comm.world_size():
        raise UserError(
            f"resume={run_dir}: written by {loop['ranks']} ranks, but now there are {comm.world_size()}; use the same number"
        )
    for tag, engine in engines(actors):
        try:
            engine.load(newest, tag)
        except Exception as error:  # errors of torch, pickle, zipfile or DeepSpeed
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{newest / tag}: damaged, or of a different model ({reason}); remove {newest}") from error
    return LoopState.of(loop)


def load_policy(checkpoint: Path, lm: nn.Module) -> bool:
    """Load a checkpoint's policy into a language model with the same structure as in training, without the optimiser state.

    Returns false and changes nothing if DeepSpeed wrote the checkpoint, because its files are shards.

    Raises:
        UserError: the file is damaged or belongs to a different model.
    """
    file = checkpoint / "policy" / "state.pt"
    if not file.is_file():
        return False
    if wrong := damage(checkpoint):
        raise UserError(f"{checkpoint}/{wrong}; remove {checkpoint}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["module"]
        nn.ModuleDict({"lm": lm}).load_state_dict(state)
    except Exception as error:  # errors of torch, pickle or zipfile
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file}: damaged, or of a different model ({reason}); remove {checkpoint}") from error
    return True


def engines(actors: Actors) -> Iterator[tuple[str, Engine]]:
    """(name in a checkpoint, engine) of everything that is trained."""
    for tag, engine in (("policy", actors.policy), ("feedback", actors.reward.feedback), ("critic", actors.critic)):
        if engine is not None:
            yield tag, engine


def export(
    run_dir: Path, actors: Actors, policy_path: str | None, reward_path: str | None, feedback: dict[str, Any]
) -> None:
    """Write `policy/` and `reward_model/` as Hugging Face folders (safetensors). Collective.

    With LoRA, `policy/` has the adapters merged, and `policy_adapter/` holds only the adapters, for peft. `reward_model/` is
    the backbone with the current head. With feedback it also holds `feedback.safetensors`, with adapter and head, and
    `feedback.json`, with the settings in `feedback` (Omega, d, ...): enough to score with the policy's states.
    """
    assert policy_path is not None, "prepare() fills it"
    with actors.policy.whole() as policy:
        if comm.is_main():

            def policy_files(folder: Path) -> None:
                lm = policy.lm
                if actors.lora is not None:  # merged into a freshly loaded base: the one in training may be sharded
                    write_folder(run_dir / POLICY_ADAPTER, actors.lora.save_pretrained)
                    lm = merged_from(load_causal_lm(policy_path, "policy.path", lm.dtype), run_dir / POLICY_ADAPTER)
                lm.save_pretrained(folder)
                actors.format.save(folder)

            write_folder(run_dir / POLICY, policy_files)
    if comm.is_main() and reward_path is not None:  # None if reward.function alone scores

        def reward_files(folder: Path) -> None:
            chat = actors.reward.format
            # Loaded again: under ZeRO stage 3 no rank holds the complete backbone.
            classifier = load_reward_model(reward_path, "reward.path", torch.float32, chat.pad_id)
            if actors.reward.feedback is not None:
                module = actors.reward.feedback.module  # at most ZeRO stage 1: complete on every rank
                find_head(classifier).load_state_dict(module.phi.state_dict())
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, folder / ADAPTER_FILE
                )
                (folder / ADAPTER_CONFIG).write_text(json.dumps(feedback, indent=2))
            classifier.save_pretrained(folder)
            chat.save(folder)

        write_folder(run_dir / REWARD_MODEL, reward_files)
    comm.barrier()


def load_feedback(folder: Path, module: nn.Module) -> float:
    """Load the adapter and head that `export` wrote into a FeedbackHead; returns Omega, the weight to score with.

    Raises:
        UserError: the folder has no adapter, or its sizes do not match.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise UserError(f"{folder}: it has no {ADAPTER_FILE}; the run had feedback=none or did not finish")
    try:
        module.load_state_dict(load_file(folder / ADAPTER_FILE))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder / ADAPTER_FILE}: damaged, or made with another policy, feedback.dim, .features or .query"
        ) from error
    settings = read_json(folder / ADAPTER_CONFIG)
    omega = settings.get("omega")
    if isinstance(omega, bool) or not isinstance(omega, int | float) or not 0 <= omega <= 1:
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: omega={omega} is not a number between 0 and 1; export the run again"
        )
    return float(omega)
