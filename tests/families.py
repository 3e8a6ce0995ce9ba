"""Tiny random models of every architecture that shares prompts."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
# A window of 4 tokens is shorter than the prompts, longer than some responses.
WINDOWED = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma": {},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {},
    "gpt2": {},
    "mistral, window": {"sliding_window": 4},
    "qwen2, window": WINDOWED,
    "qwen3, window": WINDOWED,
}
# What their configurations drop in training; GPT-2's comes so by default, at 0.1.
DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
}


def small_model(name: str, vocabulary: int, scorer: bool = False, **more):
    """A causal language model in evaluation mode, or with `scorer` a classifier with one output; the same at every call.

    Args:
        name: of FAMILIES, or an architecture of transformers.
        more: further settings of its configuration.
    """
    family = name.split(",")[0]
    accepted = AutoConfig.for_model(family).to_dict()
    settings = {k: v for k, v in (SMALL | FAMILIES.get(name, {})).items() if k in accepted or k in SMALL}
    if settings.get("layer_types", 1) is None:
        del settings["layer_types"]
    if scorer:
        settings["num_labels"] = 1
    config = AutoConfig.for_model(family, **settings | {"vocab_size": vocabulary} | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (AutoModelForSequenceClassification if scorer else AutoModelForCausalLM).from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.15 * torch.randn_like(weight))
    return model
