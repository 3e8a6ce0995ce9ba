"""The policy's weights, one after the other, for an engine that samples from a copy of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError


@torch.no_grad()
def weights_of(policy: Engine) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of the policy's language model as its checkpoint names them, each tied weight once, LoRA merged in.

    Under ZeRO stage 3 one parameter is gathered at a time (with LoRA one layer): no rank ever holds the whole model for
    this. Collective: every rank must read to the end, and use each weight before it asks for the next.

    Raises:
        UserError: LoRA adapters in a layer other than a linear one.
    """
    lm = policy.module.lm
    adapted = {name: module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}
    seen: set[nn.Parameter] = set()
    for prefix, module in lm.named_modules():
        if prefix in adapted:
            parameters = list(module.parameters())
            with policy.gathered(parameters):
                yield from _merged(prefix, module)
            seen.update(parameters)
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter not in seen and not any(name.startswith(f"{layer}.") for layer in adapted):
                seen.add(parameter)
                with policy.gathered([parameter]):
                    yield name, parameter.detach()


def _merged(prefix: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a layer with its adapters folded in."""
    for name, parameter in layer.get_base_layer().named_parameters():
        if name == "weight":
            for adapter in layer.active_adapters:
                parameter = parameter + layer.get_delta_weight(adapter)
        elif name != "bias":
            raise UserError(
                f"rollout.engine=vllm: LoRA adapters in {prefix}, which is no linear layer, are not merged for vLLM; use "
                "rollout.engine=native, or policy.lora_rank=0"
            )
        yield f"{prefix}.{name}", parameter.detach()
