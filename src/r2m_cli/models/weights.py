"""The weights of a model folder: what its files hold, read from their headers, and whether a model took all of it."""

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
# What wrappers put before the names of the model that they hold.
WRAPPERS = {
    "_orig_mod.": "torch.compile", FSDP: "FSDP", "base_model.model.": "peft", "pretrained_model.": "TRL's value-head model",
    "module.": "DistributedDataParallel or DeepSpeed",
}  # fmt: skip
SLACK = 10**8  # parameters; below it a model that is larger than its weights is built, to name what is missing


def stored(folder: Path) -> Shapes:
    """Names and shapes of the tensors that transformers would load from a folder; the data itself is not read.

    Raises:
        UserError: no weights, or files of them that are missing, cut short, damaged or no plain tensors.
    """
    for name in (SAFETENSORS, PICKLED):
        if (folder / name).is_file():
            return _tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return {k: v for shard in _shards(index) for k, v in _tensors(shard).items()}
    raise UserError(f"{folder}: holds no weights ({SAFETENSORS} or {PICKLED}); save the model with save_pretrained")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    with foreign(str(index), "cannot be read as the index of weight files"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index}: names {outside[0]!r}, which is no file of this folder; save the model anew")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index}: {len(missing)} of the {len(names)} weight files that it names are missing"
            + (f", {missing[0]} first" if missing else "")
            + "; copy the whole folder"
        )
    return [index.parent / name for name in names]


def _tensors(file: Path) -> Shapes:
    damaged = "is cut short or no file of weights"
    if file.suffix == ".safetensors":
        with foreign(str(file), damaged), safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    with foreign(str(file), f"{damaged}, or holds other Python objects than tensors, which are never run here; save the "
                 "model anew with save_pretrained"):  # fmt: skip
        # mmap reads nothing of the data; files of torch before 1.6 are no zip archives and cannot be mapped.
        found = torch.load(file, map_location="meta", weights_only=True, mmap=is_zipfile(file))
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(
            f"{file}: is no state_dict (name -> tensor) but a {type(found).__name__}, as of a whole training state; save the "
            "model with save_pretrained"
        )
    return {str(name): tuple(tensor.shape) for name, tensor in found.items()}


def check_size(model: PreTrainedModel, held: Shapes, where: str) -> None:
    """Raises UserError for a model that is far larger than its weights: what is missing would be allocated and drawn.

    Args:
        model: on the meta device, where parameters have shapes and no data.
    """
    needed, found = sum(p.numel() for p in model.parameters()), sum(map(prod, held.values()))
    if needed > 2 * found + SLACK:
        raise UserError(
            f"{where}: config.json describes a model of {needed:,} parameters, its weights hold {found:,}; they do not belong "
            "together"
        )


def check_keys(model: PreTrainedModel, info: dict[str, Any], where: str, base: str, new_head: bool = False) -> None:
    """Whether a model has all its weights from its files, and its files hold nothing that the model has no place for.

    Tied weights and what transformers knows to be of no use (buffers of old versions) are not asked for.

    Args:
        info: transformers' output_loading_info.
        base: the model's name, for `r2m reward reward.base=`.
        new_head: the scoring head is to be trained: it may be missing, and another head may be left over.

    Raises:
        UserError: weights that are missing, left over, or of another shape: transformers draws such weights at random.
    """
    fit = f"`r2m reward reward.base={base}`"
    for weight, found, needed in sorted(info["mismatched_keys"]):
        if _of_head(weight) and len(found) == len(needed) and found[0] != needed[0] == 1:
            if new_head:
                continue
            raise UserError(
                f"{where}: its head has {found[0]} outputs, a reward model's has one; fit a new head with {fit}"
            )
        raise UserError(
            f"{where}: {weight} has the shape {list(found)} in its weights and {list(needed)} by its config.json"
        )
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    renamed = _renamed({key for key in missing if _of_body(model, key)}, unused)
    if renamed:
        raise UserError(f"{where}: its weights have other names than the model's, {unused[0]} for one; {renamed}")
    if new_head:
        missing, unused = (
            [key for key in keys if _of_body(model, key) and "pooler" not in key] for keys in (missing, unused)
        )
    if missing and not any(_of_body(model, key) for key in missing):
        lacks = f"it is no causal language model: {missing[0]} is missing in its weights"
        if type(model).__name__.endswith("ForSequenceClassification"):
            lacks = f"it has no trained scoring head ({missing[0]} is missing); fit one with {fit}"
            if other := next((key for key in unused if re.search(r"(?<!lm_)head\.(\S+\.)?weight$", key)), None):
                lacks = (
                    f"its scoring head has another name, {other}, where a {type(model).__name__} has {missing[0]}; rename it, if "
                    "nothing else is done with its score (a normaliser): "
                    f"state_dict[{missing[0]!r}] = state_dict.pop({other!r})"
                )
        raise UserError(f"{where}: {lacks}")
    if missing:
        raise UserError(
            f"{where}: its weights lack {_some(missing)}, which would be drawn at random; save the whole model with save_pretrained"
        )
    if unused:
        raise UserError(
            f"{where}: its weights hold {_some(unused)}, for which a {type(model).__name__} of its config.json has no place; give "
            "the config.json that belongs to them, or, if they are of no use, load the model with transformers and save it again"
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
    """Who has renamed the weights, and how to undo it; nothing where they are not the missing ones under other names."""
    if any(".lora_A." in key or ".base_layer." in key for key in unused):
        return (
            "peft's adapters are still apart in them; merge before saving, "
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
        f"{by} has put {prefix!r} before them; save the model that is inside the wrapper, or rename them: "
        f"{{{stripped}: tensor for name, tensor in state_dict.items()}}"
    )
