"""LoRA through peft: adapters in every linear layer while fitting, merged into plain weights at the end."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from r2m_cli.schema import FitConfig


def with_lora(model: nn.Module, config: FitConfig, task: str) -> PeftModel:
    """Put trainable low-rank adapters into `model`, in place, and freeze the rest (but a scoring head, task SEQ_CLS).

    Gives peft's wrapper, which `merged` takes; `model` itself goes on being called as before.
    """
    return get_peft_model(
        model,  # type: ignore[arg-type]
        LoraConfig(
            task_type=task, r=config.lora_rank, lora_alpha=2 * config.lora_rank, lora_dropout=0.0,
            target_modules="all-linear",
        ),
    )  # fmt: skip


def merged(model: Any) -> PreTrainedModel:
    """The plain transformers model, with the adapters folded in if there are any."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
