"""The interface through which the algorithm trains a module: plain torch here, DeepSpeed ZeRO in `zero.py`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from r2m_cli.config.schema import EngineConfig
from r2m_cli.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Engine(Protocol):
    """A module that is being trained."""

    device: torch.device
    module: Any  # the nn.Module that is trained; under ZeRO stage 3 its parameters are shards: access them with `whole`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss. Calls accumulate until `step`, which averages over ranks."""
        ...

    def step(self, lr: float) -> float:
        """One optimiser step at this learning rate; gradients are cleared. Returns their norm before clipping.

        Raises FloatingPointError if the norm is not finite; the parameters must then be discarded.
        """
        ...

    def whole(self) -> AbstractContextManager[Any]:
        """Context with all parameters of the module on this rank, for generation and for reading weights."""
        ...

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """These parameters whole on this rank, for reading; collective."""
        ...

    def save(self, folder: Path, tag: str) -> None:
        """Write parameters and optimiser state below `folder`. Collective."""
        ...

    def load(self, folder: Path, tag: str) -> None:
        """Load the files written by `save`. Collective."""
        ...


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device; `auto` is the rank's GPU if there is one, otherwise the CPU. Raises UserError for cuda without a GPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "engine.device=cuda, but torch finds no CUDA GPU; use engine.device=cpu or a machine with a GPU"
        )
    return torch.device("cuda", local_rank)


class SingleEngine:
    """One process of plain torch."""

    def __init__(self, module: nn.Module, device: torch.device, weight_decay: float, max_grad_norm: float):
        self.module = module.to(device)
        self.device = device
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=weight_decay, fused=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or float("inf"))
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(f"the norm of the gradient, {norm.item()}, is not a finite number")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    @contextmanager
    def whole(self) -> Iterator[Any]:
        yield self.module

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, folder: Path, tag: str) -> None:
        target = folder / tag
        target.mkdir(parents=True, exist_ok=True)
        torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, target / "state.pt")

    def load(self, folder: Path, tag: str) -> None:
        state = torch.load(folder / tag / "state.pt", map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def make_engine(
    module: nn.Module,
    config: EngineConfig,
    device: torch.device,
    *,
    weight_decay: float,
    max_grad_norm: float,
    small: bool = False,
) -> Engine:
    """The engine that the configuration names, around `module`.

    Args:
        small: the module is too small to shard (adapter and head): use fp32 and at most ZeRO stage 1.
    """  # fmt: skip
    if config.kind == "single":
        return SingleEngine(module, device, weight_decay, max_grad_norm)
    from r2m_cli.distributed.zero import ZeroEngine

    return ZeroEngine(module, config, device, weight_decay, max_grad_norm, small)


def place_frozen(module: nn.Module, config: EngineConfig, device: torch.device) -> nn.Module:
    """A frozen module in evaluation mode on its device; sharded over the ranks under ZeRO stage 3."""
    module.eval().requires_grad_(False)
    if config.kind == "zero" and config.stage == 3:
        from r2m_cli.distributed.zero import shard_frozen

        return shard_frozen(module, config, device)
    return module.to(device)
