"""Models and tokenizers by name: a folder, the hub, the packaged SmolLM2, or a fresh small Llama."""

import inspect
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from r2m_cli.config.schema import EngineConfig, ModelConfig
from r2m_cli.config.values import fresh_size
from r2m_cli.data.truncation import MAX_TOKENS, POSITIONS, TOKENIZER
from r2m_cli.distributed.shards import in_shards, layer_by_layer, loading_in_shards
from r2m_cli.errors import UserError
from r2m_cli.models import smollm2
from r2m_cli.models.boundary import foreign
from r2m_cli.models.context import context_length
from r2m_cli.models.folder import check_folder
from r2m_cli.models.tokenizers import read_tokenizer
from r2m_cli.models.weights import check_keys, check_size, stored
from r2m_cli.text import from_home

CPU = torch.device("cpu")
FRESH_CONTEXT = 512  # tokens that a fresh small Llama reads
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def resolve(name: str, key: str) -> str:
    """A folder on this machine or a hub name, ready for `from_pretrained`.

    Raises:
        UserError: neither a folder nor a possible hub name, or a folder without a usable model (see `check_folder`; its
            weights are not read). `key` is the configuration key that named it.
    """
    if name == "smollm2":
        return str(smollm2.folder())
    folder = from_home(name)
    if folder.is_dir():
        check_folder(folder, f"{key}={name}")
        return str(folder)
    if folder.is_absolute():
        raise UserError(f"{key}={name}: no such folder; if it has moved, set {key}=FOLDER to its new place")
    if not looks_like_hub(name):
        raise UserError(f"{key}={name}: no such folder, and not a hub name (owner/model) or smollm2")
    return name


def looks_like_hub(name: str) -> bool:
    """Whether a name that does not exist on disk could be owner/name on the hub rather than a mistyped path."""
    path = from_home(name)
    data_file = path.suffix in (".json", ".jsonl", ".gz", ".parquet", ".csv", ".yaml")
    return bool(HUB_NAME.fullmatch(name)) and path.parts[0] not in (".", "..") and not data_file and not path.exists()


def load_tokenizer(name: str, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked by `read_tokenizer`. Raises UserError."""
    return read_tokenizer(resolve(name, key), f"{key}={name}", vocabulary(name, key))


def vocabulary(name: str, key: str) -> int | None:
    """Number of rows of a model's input embeddings if its configuration has it: valid ids are below it. Raises UserError."""
    return getattr(load_config(name, key).get_text_config(), "vocab_size", None)


def load_causal_lm(
    name: str, key: str, dtype: torch.dtype, device: torch.device = CPU, engine: EngineConfig | None = None
) -> PreTrainedModel:
    """A causal language model in evaluation mode (no dropout: the ratio of the first epoch must be 1).

    Args:
        device: where the weights go as they are read, and where the model is tried.
        engine: what trains or keeps it: with ZeRO stage 3 it is in shards from the start, and the call is collective.

    Raises:
        UserError: not loadable, or weights are missing or unused (a reward model has no LM head).
    """
    check_kind(name, key, scorer=False)  # with tied embeddings no weight of an LM head would be missing
    return _load(AutoModelForCausalLM, name, key, load_config(name, key), dtype, device, engine)


def check_kind(name: str, key: str, scorer: bool) -> None:
    """Raises UserError if a model's configuration is that of a language model but a scorer is needed, or the other way round."""
    named = load_config(name, key).architectures
    known_as = str(named[0]) if isinstance(named, list) and named else ""
    if not scorer and known_as.endswith("ForSequenceClassification"):
        raise UserError(f"{key}={name}: it is a {known_as}, as reward models are, and not a causal language model")
    if scorer and known_as.endswith("ForCausalLM"):
        raise UserError(
            f"{key}={name}: it is a {known_as} and has no trained scoring head; fit one with `r2m reward reward.base={name}`"
        )


def load_reward_model(
    name: str,
    key: str,
    dtype: torch.dtype,
    pad_id: int,
    new_head: bool = False,
    device: torch.device = CPU,
    engine: EngineConfig | None = None,
) -> PreTrainedModel:
    """A sequence classifier with one output, in evaluation mode.

    Args:
        new_head: the head may be missing from the weights (a language model that is to become a reward model).
        device, engine: as of `load_causal_lm`.

    Raises:
        UserError: not loadable, weights are missing or unused, or a trained scoring head is needed and missing.
    """
    config = load_config(name, key)
    config.num_labels = 1
    config.pad_token_id = pad_id  # transformers refuses batches without one; the RTE is picked by the mask
    return _load(AutoModelForSequenceClassification, name, key, config, dtype, device, engine, new_head)


def _load(
    kind: Any,
    name: str,
    key: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineConfig | None,
    new_head: bool = False,
) -> PreTrainedModel:
    """Load a model with an Auto class, and check that all its weights come from its files and that it runs."""
    source, where = resolve(name, key), f"{key}={name}"
    read = partial(
        kind.from_pretrained, source, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    shards = engine if engine is not None and in_shards(engine) else None
    with foreign(where, f"cannot be loaded {_place(source)}"):
        # config.json may ask for kernels that are not installed; engine.attention chooses among those that are.
        if config._attn_implementation not in (None, "eager", "sdpa"):
            config._attn_implementation = None
        if Path(source).is_dir():
            with torch.device("meta"):
                check_size(kind.from_config(config, trust_remote_code=False), stored(Path(source)), where)
        model, info = read(device_map={"": torch.device("meta") if shards else device})
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{where}: transformers has added an adapter to it (adapter_config.json); name a merged model")
    check_keys(model, info, where, name, new_head)
    if (
        shards
    ):  # transformers' own loading in shards believes its files: they have just been checked, without their data
        with foreign(where, f"cannot be loaded {_place(source)}"), loading_in_shards(shards):
            model, _ = read()
    with layer_by_layer(model):
        _check_runs(model.eval(), where)
    return model  # type: ignore[no-any-return]


@torch.no_grad()
def _check_runs(model: PreTrainedModel, where: str) -> None:
    """Raises UserError if the model fails on three tokens or its output is not finite: some errors in a config.json show only
    in a forward."""
    end = model.config.eos_token_id
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    # Classifiers after BART pool at the end token.
    ids = [1 % rows, 2 % rows, end if isinstance(end, int) and 0 <= end < rows else 3 % rows]
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with foreign(where, "loads, but cannot read three tokens; look into its config.json"):
        logits = model(input_ids=torch.tensor([ids], device=model.device), **options).logits
    if not bool(logits.isfinite().all()):
        raise UserError(
            f"{where}: its output for three tokens is not finite: NaN or infinity in its weights or config.json, or numbers too "
            "large for engine.dtype"
        )


def _place(source: str) -> str:
    return "in this folder" if Path(source).is_dir() else "on the hub or in its cache"


def fresh_llama(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, pad_id: int, seed: int, scorer: bool
) -> PreTrainedModel:
    """A small Llama of the configured size, with tied embeddings; with a scoring head instead of an LM head if `scorer`."""
    width, layers, heads = fresh_size(config.size)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=FRESH_CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=pad_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        # transformers' 0.02 is meant for wide models; at these widths 0.1 gives reward models several points more accuracy.
        initializer_range=0.1,
    )
    llama.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (LlamaForSequenceClassification if scorer else LlamaForCausalLM)(llama).eval()


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[int, str]:
    """The number of tokens of a conversation that a reward model reads, the smallest of `limit`, the model's and the
    tokenizer's; and which of the three it is, as in `Truncation.limited_by`."""
    limits = [(limit, MAX_TOKENS), (int(tokenizer.model_max_length), TOKENIZER)]
    positions = context_length(model.config)
    if positions is not None:
        for module in model.modules():  # RoBERTa numbers its positions from padding_idx + 1
            padding: int | None = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
            if padding is not None:
                positions -= padding + 1
        limits.append((positions, POSITIONS))
    return min(
        reversed(limits), key=lambda known: known[0]
    )  # on a tie, name the other limit: raising reward.max_tokens alone would not help


def load_config(name: str, key: str) -> PretrainedConfig:
    """The configuration of a model, without its weights. Raises UserError."""
    source = resolve(name, key)
    with foreign(f"{key}={name}", f"cannot be loaded {_place(source)}"):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)  # type: ignore[no-any-return]
