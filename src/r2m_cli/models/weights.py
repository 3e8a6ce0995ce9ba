"""The weights of a model folder: the contents of its files, read from their headers, and whether a model uses all of them."""

import json
import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from r2m_cli.errors import UserError
from r2m_cli.models.boundary import foreign

Shapes = dict[str, tuple[int, ...]]  # name of a tensor -> its shape

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
FSDP = "_fsdp_wrapped_module."
# Prefixes that wrappers put before the weight names of the wrapped model.
WRAPPERS = {
    "_orig_mod.": "torch.compile", FSDP: "FSDP", "base_model.model.": "peft", "pretrained_model.": "TRL's value-head model",
    "module.": "DistributedDataParallel or DeepSpeed",
}  # fmt: skip
SLACK = (
    10**8
)  # parameters; a model that exceeds its weights by less is still built, so that the missing weights can be named


def stored(folder: Path) -> Shapes:
    """Names and shapes of the tensors that transformers would load from a folder; the data itself is not read.

    Raises:
        UserError: no weights, or their files are missing, truncated, damaged, or not plain tensors.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return _tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return {k: v for shard in _shards(index) for k, v in _tensors(shard).items()}
    raise UserError(f"{folder}: holds no weights ({SAFETENSORS} or {PICKLED}); save the model with save_pretrained")


def _shards(index: Path) -> list[Path]:
    """The distinct files that an index names."""
    with foreign(str(index), "cannot be read as the index of weight files"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index}: names {outside[0]!r}, which is not a file of this folder; save the model again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index}: {len(missing)} of the {len(names)} weight files that it names are missing"
            + (f", {missing[0]} first" if missing else "")
            + "; copy the complete folder"
        )
    return [index.parent / name for name in names]


def _tensors(file: Path) -> Shapes:
    damaged = "is truncated or not a weights file"
    if file.suffix == ".safetensors":
        with foreign(str(file), damaged), safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    with foreign(str(file), f"{damaged}, or holds Python objects other than tensors, which are never run here; save the "
                 "model again with save_pretrained"):  # fmt: skip
        # mmap avoids reading the data; files written by torch before 1.6 are not zip archives and cannot be mapped.
        found = torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file))
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(
            f"{file}: is not a state_dict (name -> tensor) but a {type(found).__name__}, perhaps a complete training state; save "
            "the model with save_pretrained"
        )
    return {str(name): tuple(tensor.shape) for name, tensor in found.items()}


def check_size(model: PreTrainedModel, held: Shapes, where: str) -> None:
    """Raises UserError for a model that is far larger than its weights: the missing ones would be allocated and drawn at random.

    Args:
        model: on the meta device, where parameters have shapes but no data.
    """
    needed, found = sum(p.numel() for p in model.parameters()), sum(map(prod, held.values()))
    if needed > 2 * found + SLACK:
        raise UserError(
            f"{where}: config.json describes a model of {needed:,} parameters, but its weights hold {found:,}; they do not belong "
            "together"
        )


def check_keys(model: PreTrainedModel, info: dict[str, Any], where: str, base: str, new_head: bool = False) -> None:
    """Check that the files hold all of a model's weights, and no weights that the model does not use.

    Tied weights are not required, and weights that transformers knows to be obsolete (buffers of old versions) are ignored.

    Args:
        info: transformers' output_loading_info.
        base: the model's name, for `r2m reward reward.base=`.
        new_head: the scoring head will be trained: it may be missing, and another head may be left over.

    Raises:
        UserError: weights are missing, unused, or have another shape: transformers draws missing weights at random.
    """
    fit = f"`r2m reward reward.base={base}`"
    for weight, found, needed in sorted(info["mismatched_keys"]):
        if _of_head(weight) and len(found) == len(needed) and found[0] != needed[0] == 1:
            if new_head:
                continue
            raise UserError(
                f"{where}: its head has {found[0]} outputs, but a reward model's has one; fit a new head with {fit}"
            )
        raise UserError(
            f"{where}: {weight} has the shape {list(found)} in its weights but {list(needed)} in its config.json"
        )
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    renamed = _renamed({key for key in missing if _of_body(model, key)}, unused)
    if renamed:
        raise UserError(
            f"{where}: the names of its weights are not those of the model, {unused[0]} for example; {renamed}"
        )
    if new_head:
        missing, unused = (
            [key for key in keys if _of_body(model, key) and "pooler" not in key] for keys in (missing, unused)
        )
    if missing and not any(_of_body(model, key) for key in missing):
        lacks = f"it is not a causal language model: {missing[0]} is missing in its weights"
        if type(model).__name__.endswith("ForSequenceClassification"):
            lacks = f"it has no trained scoring head ({missing[0]} is missing); fit one with {fit}"
            if other := next((key for key in unused if re.search(r"(?<!lm_)head\.(\S+\.)?weight$", key)), None):
                lacks = (
                    f"its scoring head is named {other}, but a {type(model).__name__} expects {missing[0]}; rename it if "
                    "nothing else processes its score (a normaliser): "
                    f"state_dict[{missing[0]!r}] = state_dict.pop({other!r})"
                )
        raise UserError(f"{where}: {lacks}")
    if missing:
        raise UserError(
            f"{where}: its weights lack {_some(missing)}, which would be drawn at random; save the complete model with save_pretrained"
        )
    if unused:
        raise UserError(
            f"{where}: its weights hold {_some(unused)}, which the {type(model).__name__} of its config.json does not use; put "
            "the matching config.json there or, if they are not needed, load the model with transformers and save it again"
        )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _of_head(weight: str) -> bool:
    return any(part in weight for part in ("score", "classifier", "out_proj", "logits_proj"))


def _of_body(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to the model below its head."""
    prefix = model.base_model_prefix
    return key.startswith(f"{prefix}.") if prefix and hasattr(model, prefix) else not _of_head(key)


def _renamed(missing: set[str], unused: list[str]) -> str:
    """Which wrapper renamed the weights, and how to undo it; empty if they are not the missing ones under other names."""
    if any(".lora_A." in key or ".base_layer." in key for key in unused):
        return (
            "peft's adapters are not merged; merge them before saving, "
            "peft_model.merge_and_unload().save_pretrained(FOLDER)"
        )
    found = Counter[str]()
    for key in unused:
        parts = key.split(".")
        own = next((i for i in range(1, len(parts)) if ".".join(parts[i:]) in missing), 0)
        if own:
            found[".".join(parts[:own]) + "."] += 1
        elif key.replace(FSDP, "") in missing:
            found[FSDP] += 1
    if not found:
        return ""
    prefix = found.most_common(1)[0][0]
    by = next((name for mark, name in WRAPPERS.items() if mark in prefix), "a wrapper")
    stripped = f"name.replace({prefix!r}, '')" if prefix == FSDP else f"name.removeprefix({prefix!r})"
    return (
        f"{by} has put {prefix!r} before them; save the model inside the wrapper, or rename them: "
        f"{{{stripped}: tensor for name, tensor in state_dict.items()}}"
    )
