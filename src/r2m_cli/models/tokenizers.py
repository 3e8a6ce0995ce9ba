"""Tokenizers of model folders: checks that one exists, distinguishes texts, and belongs to the model."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from r2m_cli.errors import UserError
from r2m_cli.models.boundary import foreign

if TYPE_CHECKING:
    from r2m_cli.data.source import Source
    from r2m_cli.data.template import ChatFormat

TEXTS = ("The answer is 42.", "I do not know, sorry!", "a", "b")
LOOKED_AT = 200  # words of the vocabulary that are tested
SPECIAL = ("unk_token", "bos_token", "eos_token", "pad_token", "cls_token", "sep_token")
FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")
READ = 100  # number of prompts and replies in which unknown words are counted
UNKNOWN_NOTED, UNKNOWN_REFUSED = 0.05, 0.5  # shares of a data set's tokens


def read_tokenizer(source: str, where: str, rows: int | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of the hub.

    Args:
        where: configuration key=value, for messages.
        rows: number of rows of the model's input embeddings, if known.

    Raises:
        UserError: the tokenizer cannot be loaded, cannot distinguish texts, or belongs to another model.
    """
    copy = "copy that of the model it was made from: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in FILES):
        raise UserError(f"{where}: the folder holds no tokenizer (tokenizer.json); {copy}")
    with foreign(where, "its tokenizer cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        longest = tokenizer.model_max_length
        added = tokenizer.added_tokens_decoder
        highest = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0)
        unknown = [kind for kind in SPECIAL if not _has_number(tokenizer, kind)]
        usable = not unknown and _tells_apart(tokenizer)
    if unknown:
        raise UserError(
            f"{where}: its {unknown[0]} {getattr(tokenizer, unknown[0])!r} is not in its vocabulary; correct tokenizer_config.json "
            "or special_tokens_map.json"
        )
    if not usable:
        raise UserError(f"{where}: its tokenizer cannot distinguish texts: no text decodes to itself; {copy}")
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise UserError(f"{where}: tokenizer_config.json says model_max_length={longest!r}; it must be at least 1")
    if rows is not None and highest >= rows:
        raise UserError(
            f"{where}: its tokenizer has token ids up to {highest}, but its embeddings have {rows} rows; give it the tokenizer it "
            "was trained with"
        )
    return tokenizer


def _has_number(tokenizer: PreTrainedTokenizerBase, kind: str) -> bool:
    """Whether a special token can be looked up; if the unknown token itself is unknown, transformers recurses without end."""
    try:
        getattr(tokenizer, f"{kind}_id")
    except RecursionError:
        return False
    return True


def _tells_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether at least two texts (fixed ones or the tokenizer's own words) decode to themselves, up to case and white space.

    True for every tokenizer in use, however small its vocabulary. False for the empty tokenizers that transformers creates
    when files are missing, and for those that cannot encode their own words.
    """
    faithful = set()
    for text in (*TEXTS, *_own_words(tokenizer)):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if _bare(_decoded(tokenizer, ids)) == _bare(text):
            faithful.add(tuple(ids))
    return len(faithful) >= 2


def _own_words(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Words of a vocabulary as text, spread evenly over it; no special tokens."""
    added = tokenizer.added_tokens_decoder
    ids = sorted(i for i in tokenizer.get_vocab().values() if i not in added)
    for i in ids[:: max(1, len(ids) // LOOKED_AT)]:
        text = _decoded(tokenizer, [i])
        if _bare(text):
            yield text


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _bare(text: str) -> str:
    return "".join(text.split()).casefold()


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> float:
    """Share of the texts' tokens that are the unknown token; a text without tokens counts as one unknown token. In [0, 1].

    It is 0 for byte-level tokenizers.
    """
    unknown = tokens = 0
    nothing_else = tokenizer.unk_token_id not in (
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
    )
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not text.strip():
            continue
        unknown += (ids.count(tokenizer.unk_token_id) if nothing_else else 0) if ids else 1
        tokens += len(ids) or 1
    return unknown / tokens if tokens else 0.0


def check_known(source: "Source", *formats: "ChatFormat") -> list[str]:
    """Notes for the user on tokenizers that do not know some of the data's words.

    Raises:
        UserError: a tokenizer knows less than half of them, so its model can hardly distinguish texts.
    """
    texts = [turn["content"] for prompt in (*source.prompts[:READ], *source.eval_prompts[:READ]) for turn in prompt]
    texts += [reply for _, reply in (*source.demonstrations[:READ], *source.references[:READ])]
    notes: dict[str, None] = {}  # members of an ensemble usually share one tokenizer
    for chat in formats:
        share = unknown_share(chat.tokenizer, texts)
        said = (
            f"the {chat.name}'s tokenizer does not know {share:.0%} of the data's words and maps them all to one token"
        )
        if share > UNKNOWN_REFUSED:
            raise UserError(f"{said}; does it match the data's language? name another model or other data")
        notes |= {said: None} if share > UNKNOWN_NOTED else {}
    return list(notes)
