"""Tiny model folders with a byte-level tokenizer, made anew for every test that spoils one."""

import json
from pathlib import Path
from typing import Any

from families import small_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<s>", "</s>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token: 256 of them behind <pad>, <s> and </s>."""
    words = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


ROWS = len(byte_tokenizer())


def make(folder: Path, family: str = "llama", scorer: bool = False, **settings: Any) -> Path:
    """A model and its tokenizer, saved as anybody saves them."""
    small_model(family, ROWS, scorer, **settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, file: str, **changes: Any) -> None:
    """Change keys of one of the folder's JSON files."""
    written = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(written | changes))


def rename(folder: Path, new_name: Any) -> None:
    """Give every tensor the name that `new_name(name)` says; None drops it."""
    tensors = load_file(folder / "model.safetensors")
    kept = {new_name(name): tensor.clone() for name, tensor in tensors.items() if new_name(name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
