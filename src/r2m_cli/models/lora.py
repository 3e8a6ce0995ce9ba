"""LoRA through peft: low-rank adapters in every linear layer, merged into plain weights or kept separate from a frozen base."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError

# The task -> the key that turns adapters on, and the setting that trains without them.
KEYS = {
    "CAUSAL_LM": ("policy.lora_rank", "policy.lora_rank=0"),
    "SEQ_CLS": ("reward.fit.parameters=lora", "reward.fit.parameters=full"),
}
# peft uses a deprecated name of transformers; users of r2m cannot fix that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
# peft knows the experts of a mixture by name, and warns about those that a model stores in another form.
warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning)


def with_lora(model: nn.Module, rank: int, task: str, seed: int = 0) -> PeftModel:
    """Put trainable low-rank adapters into `model`, in place, and freeze the rest (except a scoring head, task SEQ_CLS).

    Returns peft's wrapper, the argument of `merged`; `model` itself is called as before. `seed` fixes the initial weights,
    the same on every rank. Untrained adapters change nothing.

    Raises:
        UserError: peft refuses the architecture, such as Mamba, whose layers use weights of submodules without calling them.
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
                f"{key}: this model does not support LoRA adapters ({reason}); train all its weights with {full}"
            ) from error


def merged(model: Any) -> PreTrainedModel:
    """The plain transformers model, with the adapters merged if there are any."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def merged_from(base: PreTrainedModel, adapters: Path) -> PreTrainedModel:
    """`base` with the adapters of a folder merged."""
    return merged(PeftModel.from_pretrained(base, adapters))


class BaseOfLora(nn.Module):
    """The policy with its adapters switched off: the reference needs no extra memory."""

    def __init__(self, policy: Engine, lora: PeftModel):
        super().__init__()
        self._policy = [policy]  # in a list: as a submodule its parameters would be registered here too
        self._lora = [lora]

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """The policy's forward, computed by the base model alone."""
        with self._lora[0].disable_adapter():
            return self._policy[0](*args)
