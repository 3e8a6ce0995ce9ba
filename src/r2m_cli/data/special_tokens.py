"""A tokenizer's special tokens: what ends a text, what stands around it, what pads it."""

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
    """EOS, or nothing. [1] or [0]."""
    eos = tokenizer.eos_token_id
    return [] if eos is None else [int(eos)]


def own_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text: BOS, [CLS] ... [SEP], EOS."""
    bare = encode(tokenizer, REPLY)
    full = list(tokenizer(REPLY, verbose=False)["input_ids"])
    n = len(bare)
    starts = (i for i in range(len(full)) if full[i : i + n] == bare)
    return next(((full[:i], full[i + n :]) for i in starts), ([], []))


def boundary(tokenizer: PreTrainedTokenizerBase, label: str) -> int | None:
    """What tells the second text of a pair from the first, if the tokenizer numbers them (token_type_ids).

    Raises UserError for a tokenizer, named by `label`, that numbers them in another way than by a separator.
    """
    both = tokenizer(PROBE[0]["content"], REPLY, verbose=False)
    types, sep = both.get("token_type_ids"), tokenizer.sep_token_id
    if types is None or not any(types):
        return None
    last = len(types) - 1 - types[::-1].index(0)
    if sep is None or both["input_ids"][last] != sep or types != [0] * (last + 1) + [1] * (len(types) - last - 1):
        raise UserError(f"reward.template=pair: the {label} numbers two texts in a way that r2m does not know")
    return int(sep)


def choose_pad(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None, ending: Collection[int]) -> int:
    """A token to pad with, that ends no reply if the tokenizer has one.

    Args:
        vocabulary: rows of the model's embeddings, if known: tokens without one are not taken.
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
