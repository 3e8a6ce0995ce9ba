"""Conversations longer than a reward model's limit on tokens: they are cut on the left, counted and reported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from r2m_cli.conversation import Pair, Prompt
from r2m_cli.data.template import ChatFormat

# What limits the tokens of a conversation -> how to raise the limit.
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
class Truncation:
    """How one reward model's limit on tokens cuts conversations."""

    format: ChatFormat
    max_tokens: int  # of a conversation; older ones are cut off
    limited_by: str = MAX_TOKENS  # a key of ADVICE

    def ids(self, prompt: Prompt, reply: str) -> list[int]:
        """The tokens that the reward model reads, [S]."""
        return self.format.cut(self.format.conversation_ids(prompt, reply), self.max_tokens)

    def cuts(self, prompt: Prompt, reply: str) -> bool:
        """Whether the conversation is longer than `max_tokens`."""
        return len(self.format.conversation_ids(prompt, reply)) > self.max_tokens

    @property
    def limit(self) -> str:
        """The limit and how to raise it; completes "N conversations are longer than" in a note."""
        return f"{self.limited_by}={self.max_tokens} and lose their beginning; {ADVICE[self.limited_by]}"


def which_cut(truncations: Sequence[Truncation], prompts: Sequence[Prompt], replies: Sequence[str]) -> list[bool]:
    """Which conversations are cut by at least one member of an ensemble."""
    return [bool(_cutters(truncations, *text)) for text in zip(prompts, replies)]


def cut_notes(
    truncations: Sequence[Truncation], prompts: Sequence[Prompt], replies: Sequence[str], what: str
) -> list[str]:
    """A note for the user on how many conversations exceed the limit; none if all are read completely.

    Args:
        what: the conversations, as in "31 of 64 WHAT are longer than ...".
    """
    return _notes([_cutters(truncations, *text) for text in zip(prompts, replies)], what)


def told_apart(truncations: Sequence[Truncation], pairs: Sequence[Pair], what: str) -> tuple[list[int], list[str]]:
    """Indices of the pairs whose replies still differ after their conversations are cut; and notes for the user.

    A pair whose replies are equal after the cut has no order: it is neither right nor wrong, and nothing can be learnt from it.

    Args:
        what: the pairs, as in "3 of 32 WHAT are equal ...".
    """
    kept: list[int] = []
    cutters: list[list[Truncation]] = []  # for each conversation, the truncations that cut it
    for i, pair in enumerate(pairs):  # one pair at a time: a large file's conversations are not encoded again
        both = [_cutters(truncations, pair.prompt, reply) for reply in (pair.chosen, pair.rejected)]
        cutters += both
        if not any(both) or any(
            r.ids(pair.prompt, pair.chosen) != r.ids(pair.prompt, pair.rejected) for r in truncations
        ):
            kept.append(i)
    notes = _notes(cutters, f"conversations of the {what}")
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept)} of the {len(pairs)} {what} are equal after that cut, and are left out")
    return kept, notes


def _cutters(truncations: Sequence[Truncation], prompt: Prompt, reply: str) -> list[Truncation]:
    return [truncation for truncation in truncations if truncation.cuts(prompt, reply)]


def _notes(cutters: Sequence[Sequence[Truncation]], what: str) -> list[str]:
    count = sum(map(bool, cutters))
    if not count:
        return []
    limit, _ = Counter(truncation.limit for found in cutters for truncation in found).most_common(1)[0]
    return [f"{count} of {len(cutters)} {what} are longer than {limit}"]
