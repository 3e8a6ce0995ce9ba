"""ZeRO stage 3 before an engine is there: models that load in shards, and that can be run and read while they are."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from r2m_cli.config.schema import EngineConfig


def in_shards(config: EngineConfig) -> bool:
    """Whether every rank keeps a part of each parameter only."""
    return config.kind == "zero" and config.stage == 3


@contextmanager
def loading_in_shards(config: EngineConfig) -> Iterator[None]:
    """`from_pretrained` gives shards inside this block: one rank reads the files, and none holds more than a layer whole. Collective."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    from r2m_cli.distributed.settings import deepspeed_config

    asked = HfDeepSpeedConfig(deepspeed_config(config, 0.0))  # transformers looks for it as long as it is referred to
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del asked


@contextmanager
def layer_by_layer(model: nn.Module) -> Iterator[None]:
    """A model in shards can be run inside this block, without gradients: each layer is whole while it runs. Collective.

    What is in no list of layers (embeddings, norms, the head) is whole all the time. A model that is not in shards stays as
    it is. For use before DeepSpeed has put hooks of its own into the model.
    """
    layers = list(_layers(model))
    inside = {id(p) for layer in layers for p in layer.parameters()}
    held: dict[nn.Module, ExitStack] = {}

    def gather(layer: nn.Module, _: Any) -> None:
        held[layer] = ExitStack()
        held[layer].enter_context(gathered(list(layer.parameters())))

    def release(layer: nn.Module, *_: Any) -> None:
        held.pop(layer).close()

    with ExitStack() as stack:
        if any(map(_is_shard, model.parameters())):
            stack.enter_context(gathered([p for p in model.parameters() if id(p) not in inside]))
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(gather).remove)
                stack.callback(layer.register_forward_hook(release, always_call=True).remove)
        yield


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Those of the parameters that are in shards are whole inside this block, to be read. Collective."""
    if not any(map(_is_shard, parameters)):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(parameters):
        yield


@torch.no_grad()
def all_finite(module: nn.Module) -> bool:
    """Whether every parameter is a finite number; one is whole at a time. Collective for a module in shards."""
    finite = []
    for parameter in module.parameters():
        with gathered([parameter]):
            finite.append(parameter.isfinite().all())
    return bool(torch.stack(finite).all())


def _is_shard(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists of modules: a transformer's layers."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)
