"""Checks of a model folder before transformers reads it: unreadable files, impossible sizes, adapters, quantisation.

For such folders transformers raises tracebacks, hangs or, at worst, silently loads the wrong weights.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import POLICY
from r2m_cli.models.boundary import foreign
from r2m_cli.models.weights import PICKLED, SAFETENSORS, Shapes, stored

# The files that transformers opens, by their ending.
READ = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin", ".tiktoken")
LFS = b"version https://git-lfs"
ADAPTER, GENERATION = "adapter_config.json", "generation_config.json"
# Upper limits that no existing model exceeds.
MANY_LAYERS, MANY, MANY_NUMBERS = 1000, 10**4, 10**6
LAYERS = re.compile(r"((n|num|encoder|decoder)_)+(\w+_)?layers?")
COUNTS = re.compile(r"(n|num)_(\w+_)?(labels|heads|experts|groups|blocks|stages)")
SIZES = re.compile(r"\w*(size|dim|embd|inner|rank|d_model|d_ff|d_kv|n_positions|n_ctx)")


def check_folder(folder: Path, where: str) -> None:
    """Check every file that transformers would open; of the weights only names and shapes are read.

    Args:
        where: configuration key=value that named the folder.

    Raises:
        UserError: unreadable files, an implausible config.json, adapters, or quantised weights.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{where}: {_no_model(folder)}")
    with foreign(where, "cannot be read"):
        files = sorted(path for path in folder.iterdir() if path.suffix in READ and not path.name.startswith("."))
    for file in files:
        _check_file(file)
    if (folder / ADAPTER).exists():
        if any((folder / f"{name}{end}").exists() for name in (SAFETENSORS, PICKLED) for end in ("", ".index.json")):
            raise UserError(
                f"{where}: holds adapter files ({ADAPTER}) next to full weights, and transformers would add the adapter to them; "
                f"if it is already merged, move adapter_* away; otherwise merge it: {_merging(folder)}"
            )
        raise UserError(f"{where}: {_no_model(folder)}")
    config = json_object(folder / "config.json")
    if config.get("auto_map") and str(config.get("model_type")) not in CONFIG_MAPPING:
        raise UserError(
            f"{where}: it needs its own code (auto_map in config.json), which r2m does not run; name a model whose architecture "
            "transformers has"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{where}: its weights are quantised (quantization_config{f': {method}' if method else ''} in config.json), but r2m "
            "reads only unquantised ones; name the model that it was quantised from"
        )
    for name in ("config.json", GENERATION):
        if (folder / name).is_file():
            _check_ends(json_object(folder / name).get("eos_token_id"), folder / name)
    check_numbers(config, stored(folder), str(folder / "config.json"))


def _check_ends(ids: Any, file: Path) -> None:
    """Raises UserError if the tokens that end a reply are not token ids."""
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise UserError(f"{file}: eos_token_id={json.dumps(ids)}: must be a token id, a list of token ids, or null")


def _merging(folder: Path) -> str:
    """How to merge an adapter. The class matters: a reward model loaded as a language model would lose its head."""
    scorer = json_object(folder / ADAPTER).get("task_type") == "SEQ_CLS"
    kind = "SequenceClassification" if scorer else "CausalLM"
    return f"AutoPeftModelFor{kind}.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW)"


def _no_model(folder: Path) -> str:
    """Why a folder cannot be loaded as a model, and which one the user may have meant."""
    if (folder / ADAPTER).is_file():
        base = json_object(folder / ADAPTER).get("base_model_name_or_path")
        fix = (
            f"name {folder.parent / 'policy'}, in which it is merged"
            if (folder.parent / POLICY / "config.json").is_file()
            else f"merge it first: {_merging(folder)}, and the base's tokenizer with it"
        )
        return f"the folder holds only an adapter, for the base {base}; {fix}"
    hint = "; a run's policy is in its policy/" if (folder / POLICY / "config.json").is_file() else ""
    return f"the folder holds no config.json, so it is not a Hugging Face model{hint}"


def _check_file(file: Path) -> None:
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "a link to nothing" if file.is_symlink() else "not a regular file"
        raise UserError(f"{file}: is {kind}; put the model's file in its place, or remove it")
    if not os.access(file, os.R_OK):
        raise UserError(f"{file}: cannot be read; chmod u+r makes it readable")
    with foreign(str(file), "cannot be read"), file.open("rb") as opened:
        begins = opened.read(len(LFS))
    if begins == LFS:
        raise UserError(f"{file}: is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder")


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises UserError."""
    with foreign(str(file), "cannot be read as JSON"):
        found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no JSON object but {json.dumps(found)[:40]}")
    return found


def check_numbers(config: dict[str, Any], held: Shapes, file: str) -> None:
    """Raises UserError for counts and sizes that the weights cannot have: building such a model would fill all memory or never end.

    Args:
        config: the content of config.json, nested parts (text_config, ...) included.
        held: the weights, as from `stored`.
    """
    elements = sum(_elements(shape) for shape in held.values())
    for key, value in _integers(config):
        name = key.rpartition(".")[2]
        if LAYERS.fullmatch(name):
            limit, of = max(len(held), MANY_LAYERS), f"the weights have {len(held)} tensors"
        elif COUNTS.fullmatch(name):
            limit, of = MANY, "no model has that many"
        elif SIZES.fullmatch(name):
            limit, of = max(elements, MANY_NUMBERS), f"the weights have {elements:,} numbers in all"
        else:
            continue
        if value > limit:
            raise UserError(f"{file}: {key}={value}: {of}; config.json is damaged or does not belong to these weights")


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _integers(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _integers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, value
