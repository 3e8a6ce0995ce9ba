"""What a reward model reads of conversations, and what its limit on tokens does to them: counted and said."""

from collections.abc import Sequence
from dataclasses import dataclass

from r2m_cli.batch import Prompt
from r2m_cli.data.preferences import Pair
from r2m_cli.data.template import ChatFormat

# What limits the tokens of a conversation -> what to do where that is too few.
MAX_TOKENS, POSITIONS, TOKENIZER = (
    "reward.max_tokens",
    "the reward model's positions",
    "its tokenizer's model_max_length",
)
ADVICE = {
    MAX_TOKENS: "raise it",
    POSITIONS: "use a reward model that reads more, or shorter texts",
    TOKENIZER: "raise it in tokenizer_config.json if the model reads more, or use shorter texts",
}


@dataclass(frozen=True)
class Reader:
    """How one reward model reads conversations."""

    format: ChatFormat
    max_tokens: int  # of a conversation; what is older is cut off
    limited_by: str = MAX_TOKENS  # a key of ADVICE

    def ids(self, prompt: Prompt, reply: str) -> list[int]:
        """The tokens that it reads, [S]."""
        return self.format.cut(self.format.conversation_ids(prompt, reply), self.max_tokens)

    def cuts(self, prompt: Prompt, reply: str) -> bool:
        """Whether the conversation is longer than that."""
        return len(self.format.conversation_ids(prompt, reply)) > self.max_tokens

    @property
    def limit(self) -> str:
        """What conversations are longer than that it cuts, for a note."""
        return f"{self.limited_by}={self.max_tokens} and lose their beginning; {ADVICE[self.limited_by]}"


def which_cut(readers: Sequence[Reader], prompts: Sequence[Prompt], replies: Sequence[str]) -> list[bool]:
    """Which conversations are cut, by any of the readers (the members of an ensemble)."""
    return [any(reader.cuts(*text) for reader in readers) for text in zip(prompts, replies)]


def cut_notes(readers: Sequence[Reader], prompts: Sequence[Prompt], replies: Sequence[str], what: str) -> list[str]:
    """A note for the person on how many conversations are longer than is read; none if all are read whole.

    Args:
        what: the conversations, as in "31 of 64 WHAT are longer than ...".
    """
    count = sum(which_cut(readers, prompts, replies))
    if not count:
        return []
    tightest = max(readers, key=lambda reader: sum(reader.cuts(*text) for text in zip(prompts, replies)))
    return [f"{count} of {len(replies)} {what} are longer than {tightest.limit}"]


def told_apart(readers: Sequence[Reader], pairs: Sequence[Pair], what: str) -> tuple[list[int], list[str]]:
    """Places of the pairs whose replies still differ once their conversations are cut; and notes for the person.

    A pair that the cut makes equal has no order: it is neither right nor wrong, and nothing can be learnt from it.

    Args:
        what: the pairs, as in "3 of 32 WHAT are equal ...".
    """
    prompts = [pair.prompt for pair in pairs for _ in (pair.chosen, pair.rejected)]
    replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
    notes = cut_notes(readers, prompts, replies, f"conversations of the {what}")
    kept = [i for i, pair in enumerate(pairs) if not notes or not _made_equal(readers, pair)]
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept)} of the {len(pairs)} {what} are equal after that cut, and are left out")
    return kept, notes


def _made_equal(readers: Sequence[Reader], pair: Pair) -> bool:
    if not any(which_cut(readers, [pair.prompt] * 2, [pair.chosen, pair.rejected])):
        return False
    return all(reader.ids(pair.prompt, pair.chosen) == reader.ids(pair.prompt, pair.rejected) for reader in readers)
