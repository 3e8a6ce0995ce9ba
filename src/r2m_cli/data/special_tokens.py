"""A tokenizer's special tokens: those that end a text, surround it, or pad it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from r2m_cli.data.chat_template import PROBE, REPLY
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, without the tokenizer's own special tokens: a chat template writes its own BOS. [S]."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # no warning about the length


def end_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS, or an empty list. [1] or [0]."""
    eos = tokenizer.eos_token_id
    return [] if eos is None else [int(eos)]


def own_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer itself puts before and after a text: BOS, [CLS] ... [SEP], EOS."""
    bare = encode(tokenizer, REPLY)
    full = list(tokenizer(REPLY, verbose=False)["input_ids"])
    n = len(bare)
    starts = (i for i in range(len(full)) if full[i : i + n] == bare)
    return next(((full[:i], full[i + n :]) for i in starts), ([], []))


def boundary(tokenizer: PreTrainedTokenizerBase, label: str) -> int | None:
    """The separator between the two texts of a pair, if the tokenizer numbers the texts (token_type_ids); else None.

    Raises UserError if the tokenizer, called `label` in the message, does not change the number after a separator.
    """
    both = tokenizer(PROBE[0]["content"], REPLY, verbose=False)
    types, sep = both.get("token_type_ids"), tokenizer.sep_token_id
    if types is None or not any(types):
        return None
    last = len(types) - 1 - types[::-1].index(0)
    if sep is None or both["input_ids"][last] != sep or types != [0] * (last + 1) + [1] * (len(types) - last - 1):
        raise UserError(f"reward.template=pair: the {label} numbers two texts in a way that r2m does not support")
    return int(sep)


def choose_pad(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None, ending: Collection[int]) -> int:
    """A padding token, preferably one that does not end a reply.

    Args:
        vocabulary: number of rows of the model's embeddings, if known: tokens without a row are not used.
        ending: the tokens that end a reply.
    """
    added = tokenizer.added_tokens_decoder
    specials = {id_: added[id_].content for id_ in sorted(added) if added[id_].special}
    named_pad = [id_ for id_, text in specials.items() if "pad" in text.lower()]
    endoftext = [id_ for id_, text in specials.items() if text == "<|endoftext|>"]
    first = (tokenizer.pad_token_id, *named_pad, *endoftext, tokenizer.unk_token_id)
    candidates: Iterable[int | None] = (*first, *specials, *end_token(tokenizer))
    limit = math.inf if vocabulary is None else vocabulary
    usable = [int(token) for token in candidates if token is not None and token < limit] or [0]
    return next((token for token in usable if token not in ending), usable[0])
