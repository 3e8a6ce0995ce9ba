"""Models and tokenizers by name: a folder, the hub, the packaged SmolLM2, or a fresh small Llama."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from r2m_cli.errors import UserError
from r2m_cli.models import smollm2
from r2m_cli.schema import ModelConfig

FRESH_CONTEXT = 512  # tokens that a fresh small Llama reads
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def resolve(name: str, key: str) -> str:
    """A folder on this machine or a hub name, ready for `from_pretrained`.

    Raises:
        UserError: neither a folder nor anything that could be a hub name; `key` says which configuration key gave it.
    """
    if name == "smollm2":
        return str(smollm2.folder())
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            mend = "; a run's policy is in its policy/" if (folder / "policy" / "config.json").is_file() else ""
            raise UserError(f"{key}={name}: the folder holds no config.json, so it is no Hugging Face model{mend}")
        return str(folder)
    if Path(name).is_absolute():
        raise UserError(f"{key}={name}: no such folder; where it has moved, {key}=FOLDER names its new place")
    if not looks_like_hub(name):
        raise UserError(f"{key}={name}: no such folder, and not a hub name (owner/model) or smollm2")
    return name


def looks_like_hub(name: str) -> bool:
    """Whether a name that is nothing on this disk could be owner/name on the hub, and not a mistyped path to a file."""
    path = Path(name).expanduser()
    data_file = path.suffix in (".json", ".jsonl", ".gz", ".parquet", ".csv", ".yaml")
    return bool(HUB_NAME.fullmatch(name)) and path.parts[0] not in (".", "..") and not data_file and not path.exists()


def _load(loader: Callable[[], Any], name: str, key: str) -> Any:
    try:
        return loader()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:  # of other people's files
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, KeyError | TypeError):  # whose words alone say little
            reason = f"{type(error).__name__}: {reason}"
        where = "in this folder" if Path(name).is_dir() else "on the hub or in its cache"
        raise UserError(f"{key}={name}: cannot be loaded {where}: {reason}") from error


def load_tokenizer(name: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises UserError."""
    source = resolve(name, key)
    return _load(lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False), source, key)


def load_causal_lm(name: str, key: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model in evaluation mode (no dropout: the ratio of the first epoch must be 1).

    Raises:
        UserError: not loadable, or weights that are missing (a reward model has no LM head).
    """
    source = resolve(name, key)
    check_kind(name, key, scorer=False)  # with tied embeddings no weight of an LM head would be missing
    model, info = _load(
        lambda: AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        ),
        source,
        key,
    )
    _refuse_other_shapes(info, name, key)
    if info["missing_keys"]:
        raise UserError(
            f"{key}={name}: it is no causal language model: {sorted(info['missing_keys'])[0]} is missing in its weights"
        )
    return model.eval()


def check_kind(name: str, key: str, scorer: bool) -> None:
    """Raises UserError where a model's configuration says that it is a language model, and a scorer is wanted, or the other way round."""
    known_as = (load_config(name, key).architectures or [""])[0]
    if not scorer and known_as.endswith("ForSequenceClassification"):
        raise UserError(f"{key}={name}: it is a {known_as}, as reward models are, and no causal language model")
    if scorer and known_as.endswith("ForCausalLM"):
        raise UserError(
            f"{key}={name}: it is a {known_as} and has no trained scoring head; fit one with `r2m reward reward.base={name}`"
        )


def load_reward_model(name: str, key: str, dtype: torch.dtype, pad_id: int, new_head: bool = False) -> PreTrainedModel:
    """A sequence classifier with one output, in evaluation mode.

    Args:
        new_head: the head may be missing from the weights (a language model that is to become a reward model).

    Raises:
        UserError: not loadable, or no trained scoring head where one is needed.
    """
    source, config = resolve(name, key), load_config(name, key)
    config.num_labels = 1
    config.pad_token_id = pad_id  # transformers refuses batches without one; the RTE is picked by the mask
    model, info = _load(
        lambda: AutoModelForSequenceClassification.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=True,
        ),
        source,
        key,
    )  # fmt: skip
    _refuse_other_shapes(info, name, key, new_head)
    missing = [k for k in info["missing_keys"] if _of_head(k)]
    if missing and not new_head:
        raise UserError(
            f"{key}={name}: it has no trained scoring head ({missing[0]} is missing); fit one with "
            f"`r2m reward reward.base={name}`"
        )
    return model.eval()


def _refuse_other_shapes(info: dict[str, Any], name: str, key: str, new_head: bool = False) -> None:
    """Raises UserError for weights that do not fit the model's configuration: transformers would draw them anew."""
    for weight, found, needed in sorted(info["mismatched_keys"]):
        if _of_head(weight) and len(found) == len(needed) and found[0] != needed[0] == 1:
            if new_head:
                continue
            raise UserError(
                f"{key}={name}: its head has {found[0]} outputs, a reward model's has one; fit a new head with "
                f"`r2m reward reward.base={name}`"
            )
        raise UserError(
            f"{key}={name}: {weight} has the shape {list(found)} in its weights and {list(needed)} by its config.json"
        )


def _of_head(weight: str) -> bool:
    return any(part in weight for part in ("score", "classifier", "out_proj"))


def fresh_llama(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, pad_id: int, seed: int, scorer: bool
) -> PreTrainedModel:
    """A small Llama of the configured size, with tied embeddings; with a scoring head instead of an LM head if `scorer`."""
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=FRESH_CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=pad_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        # transformers' 0.02 is made for wide models; at these widths 0.1 gives a reward model several points better.
        initializer_range=0.1,
    )
    llama.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (LlamaForSequenceClassification if scorer else LlamaForCausalLM)(llama).eval()


def readable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int) -> int:
    """Tokens of a conversation that a reward model reads: `limit`, or less if model or tokenizer say so."""
    positions = context_length(model.config) or limit
    for module in model.modules():  # RoBERTa numbers its positions from padding_idx + 1
        padding: int | None = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            positions -= padding + 1
    return min(limit, positions, tokenizer.model_max_length)


def load_config(name: str, key: str) -> PretrainedConfig:
    """The configuration of a model, without its weights. Raises UserError."""
    source = resolve(name, key)
    return _load(lambda: AutoConfig.from_pretrained(source, trust_remote_code=False), source, key)  # type: ignore[no-any-return]


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens that a model can read, if its configuration says.

    With longrope only as many as it can read without changing its rotary factors: beyond, those of every text depend on
    the longest of the batch.
    """
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    steady = _steady_length(text)
    if positions is None or positions < 1:  # XLNet's is -1: any length
        return steady
    return positions if steady is None else min(positions, steady)


def why_no_longer(config: PretrainedConfig) -> str:
    """Why `context_length` is less than the positions of a model, for messages; empty where it is not."""
    text = config.get_text_config()
    shorter = (context_length(config) or 0) < (getattr(text, "max_position_embeddings", None) or 0)
    return " (beyond, longrope makes a text's numbers depend on the longest of its batch)" if shorter else ""


def _steady_length(text: PretrainedConfig) -> int | None:
    ropes = getattr(text, "rope_parameters", None) or {}
    kinds = [
        ropes,
        *(rope for rope in ropes.values() if isinstance(rope, dict)),
    ]  # one for all layers, or by their type
    switches = [rope.get("original_max_position_embeddings") for rope in kinds if rope.get("rope_type") == "longrope"]
    return min((int(switch) for switch in switches if switch), default=None)
