"""The engine on DeepSpeed ZeRO, and its process group. Apart from `settings.py`, only this file imports deepspeed."""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r2m_cli.config.schema import EngineConfig
from r2m_cli.distributed.settings import deepspeed_config

try:
    import deepspeed
    from deepspeed import zero
except ImportError as error:  # pragma: no cover - a laptop without DeepSpeed
    from r2m_cli.errors import UserError

    raise UserError(f"engine=zero needs DeepSpeed ({error}): pip install deepspeed, or use engine=single") from None


def start_process_group(config: EngineConfig, device: torch.device) -> None:
    """Join the ranks that the launcher started: nccl on GPUs, gloo on CPUs."""
    # DeepSpeed would spend minutes compiling a shared-memory all-reduce, which gloo does not need.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed sets no timeout for its own sub-groups, so a stuck rank would hang them forever: set the default.
    limit = timedelta(seconds=config.timeout)
    dist.distributed_c10d.default_pg_timeout = limit  # type: ignore[attr-defined]
    if hasattr(dist.distributed_c10d, "default_pg_nccl_timeout"):
        dist.distributed_c10d.default_pg_nccl_timeout = limit
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", timeout=limit, verbose=False)


class ZeroEngine:
    """One module under DeepSpeed ZeRO."""

    def __init__(
        self, module: nn.Module, config: EngineConfig, device: torch.device, weight_decay: float, max_grad_norm: float,
        small: bool,
    ):  # fmt: skip
        self.device = device
        settings = deepspeed_config(config, max_grad_norm, small)
        self.stage = settings["zero_optimization"]["stage"]
        trained = [p for p in module.parameters() if p.requires_grad]
        # torch's own AdamW: DeepSpeed's would be compiled on first use.
        optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=weight_decay, fused=True)
        self._norm: float | None = None
        if self.stage == 0 and not settings["bf16"]["enabled"]:
            # In this case DeepSpeed neither reports the norm that it clips by nor checks that it is finite: do both on the
            # reduced gradients, just before they are used.
            settings["gradient_clipping"] = 0.0
            optimizer.register_step_pre_hook(lambda *_: self._clip(trained, max_grad_norm))
        self.engine, *_ = deepspeed.initialize(model=module.to(device), optimizer=optimizer, config=settings)
        self.module: Any = self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if self._norm is None else self._norm
        value = 0.0 if norm is None else float(norm)
        if not math.isfinite(value):
            raise FloatingPointError(f"the norm of the gradient, {value}, is not a finite number")
        return value

    def _clip(self, parameters: list[nn.Parameter], limit: float) -> None:
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf))
        if not math.isfinite(self._norm):
            raise FloatingPointError(f"the norm of the gradient, {self._norm}, is not a finite number")

    @contextmanager
    def whole(self) -> Iterator[Any]:
        if self.stage < 3:
            yield self.module
            return
        # Gather once and remove DeepSpeed's hooks: otherwise every decoded token gathers every layer again.
        offload = self.engine.optimizer.parameter_offload
        with zero.GatheredParameters(list(self.module.parameters())):
            for parameter in self.module.parameters():
                parameter.ds_active_sub_modules.clear()
            for hook in offload.forward_hooks + offload.backward_hooks:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield self.module
            finally:
                offload._register_deepspeed_module(offload.module)

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return zero.GatheredParameters(parameters) if self.stage == 3 else nullcontext()

    def save(self, folder: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        self.engine.load_checkpoint(str(folder), tag=tag)


class _Sharded(nn.Module):
    """A frozen module with sharded parameters; calls go through DeepSpeed's engine, which gathers them."""

    def __init__(self, engine: Any):
        super().__init__()
        # The bound method only: stored as a sub-module, the engine would add its parameters to this module.
        self._call = engine.__call__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def shard_frozen(module: nn.Module, config: EngineConfig, device: torch.device) -> nn.Module:
    """Partition a frozen module over the ranks (ZeRO stage 3 without an optimizer)."""
    settings = deepspeed_config(config, 0.0)
    settings["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=module.to(device), config=settings)
    engine.module.eval()
    return _Sharded(engine)


def local_rank() -> int:
    """The rank's number on its own machine, set by the launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))
