"""`engine.deepspeed`: keys of DeepSpeed's own JSON that overwrite r2m's settings, and their checks."""

import difflib
import logging
from typing import Any

from r2m_cli.config.schema import EngineConfig
from r2m_cli.errors import UserError

# Settings that r2m derives from its own keys, or that its loop depends on: DeepSpeed's name -> what to use instead.
OWNED = {
    "train_batch_size": "use ppo.prompts_per_step",
    "train_micro_batch_size_per_gpu": "use rollout.tokens_per_batch",
    "gradient_accumulation_steps": "use rollout.tokens_per_batch",
    "managed_gradient_accumulation": "r2m counts the micro-batches itself",
    "gradient_clipping": "use ppo.max_grad_norm",
    "optimizer": "use ppo.lr and ppo.weight_decay",
    "scheduler": "use ppo.lr_schedule and ppo.warmup_steps",
    "bf16": "use engine.dtype",
    "fp16": "use engine.dtype",
    "zero_optimization.stage": "use engine.stage",
    "zero_optimization.offload_optimizer.device": "use engine.offload_optimizer for the CPU",
}
SECTIONS = ("activation_checkpointing", "aio", "autotuning", "checkpoint", "comet", "comms_logger", "compile", "compression_training",
            "csv_monitor", "data_efficiency", "data_types", "elasticity", "flops_profiler", "hybrid_engine", "nebula", "pipeline",
            "tensor_parallel", "tensorboard", "timers", "wandb", "zero_optimization")  # fmt: skip


def merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`settings` overwritten with `more`, section by section."""
    result = dict(settings)
    for name, value in more.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def deepspeed_config(config: EngineConfig, max_grad_norm: float, small: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for a module; a `small` one uses fp32 and at most stage 1, and ignores `engine.deepspeed`."""
    stage = min(config.stage, 1) if small else config.stage
    zero_config: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Shard small parameters too: by default they stay complete on every rank.
        zero_config |= {"stage3_param_persistence_threshold": 0}
    if config.offload_optimizer and stage > 0 and not small:
        zero_config["offload_optimizer"] = {"device": "cpu"}
    settings = {
        # Micro-batches are complete groups. The loop counts them, not DeepSpeed, which accumulates until `step`.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": zero_config,
        "bf16": {"enabled": config.dtype == "bf16" and not small},
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return settings if small else merged(settings, config.deepspeed)


def check_settings(config: EngineConfig) -> None:
    """Check `engine.deepspeed` against DeepSpeed's own configuration. Imports DeepSpeed, which takes seconds, only if needed.

    Raises:
        UserError: a key that DeepSpeed does not have or r2m sets itself, or a value that DeepSpeed does not accept.
    """
    given = config.deepspeed
    if not given:
        return
    if config.kind != "zero":
        raise UserError("engine.deepspeed: needs engine=zero; engine=single does not use DeepSpeed")
    for name, instead in OWNED.items():
        if _holds(given, name):
            raise UserError(f"engine.deepspeed.{name}: r2m sets it itself; {instead}")

    logging.disable(logging.WARNING)  # DeepSpeed warns on import that it found no GPU
    try:
        from deepspeed.runtime import constants
        from deepspeed.runtime.config import DeepSpeedConfig
        from pydantic import ValidationError

    finally:
        logging.disable(logging.NOTSET)
    known = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    known |= set(SECTIONS)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "deepspeed.ai/docs/config-json lists all"
            raise UserError(f"engine.deepspeed.{name}: DeepSpeed has no such key; {hint}")
    try:
        DeepSpeedConfig(deepspeed_config(config, max_grad_norm=1.0))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        section = next((name for name, part in given.items() if _holds(part, where)), "zero_optimization")
        what = "DeepSpeed has no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"engine.deepspeed.{section}.{where}: {what}") from None
    except Exception as error:  # failed asserts, and any error caused by a value of the wrong type
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"engine.deepspeed={given}: DeepSpeed does not accept it: {reason}") from None


def _holds(tree: Any, dotted: str) -> bool:
    """Whether nested dictionaries contain a dotted key."""
    name, _, rest = dotted.partition(".")
    return isinstance(tree, dict) and name in tree and (not rest or _holds(tree[name], rest))
