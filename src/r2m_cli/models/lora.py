"""LoRA through peft: low-rank adapters in every linear layer, merged into plain weights or kept beside a frozen base."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError

# The task -> the key that asks for adapters, and what trains without them.
KEYS = {
    "CAUSAL_LM": ("policy.lora_rank", "policy.lora_rank=0"),
    "SEQ_CLS": ("reward.fit.parameters=lora", "reward.fit.parameters=full"),
}
# peft asks transformers by a name that is going away; nobody who runs r2m can mend that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
# It knows the experts of a mixture by name, and tells of those that a model has in another form.
warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning)


def with_lora(model: nn.Module, rank: int, task: str, seed: int = 0) -> PeftModel:
    """Put trainable low-rank adapters into `model`, in place, and freeze the rest (but a scoring head, task SEQ_CLS).

    Gives peft's wrapper, which `merged` takes; `model` itself goes on being called as before. `seed` fixes the initial
    weights, the same on every rank; before any training the adapters change nothing.

    Raises:
        UserError: peft refuses the architecture, such as Mamba, whose layers read weights without calling them.
    """
    config = LoraConfig(
        task_type=task, r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear"
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)  # type: ignore[arg-type]
        except ValueError as error:
            key, full = KEYS[task]
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{key}: this model takes no LoRA adapters ({reason}); train it whole with {full}"
            ) from error


def merged(model: Any) -> PreTrainedModel:
    """The plain transformers model, with the adapters folded in if there are any."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def merged_from(base: PreTrainedModel, adapters: Path) -> PreTrainedModel:
    """`base` with the adapters of a folder folded in."""
    return merged(PeftModel.from_pretrained(base, adapters))


class BaseOfLora(nn.Module):
    """The policy with its adapters switched off: the reference costs no memory of its own."""

    def __init__(self, policy: Engine, lora: PeftModel):
        super().__init__()
        self._policy = [policy]  # in a list: as sub-modules their parameters would be ours too
        self._lora = [lora]

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the policy's forward gives, from the base alone."""
        with self._lora[0].disable_adapter():
            return self._policy[0](*args)
