"""The gold world: a tiny readable language whose true reward is known.

Over-optimisation can only be *seen* where the truth is known. Gao et al. 2023 (arXiv 2210.10760) used a large "gold"
reward model as the truth and trained a small proxy on its labels. Here the truth is a formula over 77 English words, so
the complete experiment (SFT, preference pairs, reward model, RL) fits on a laptop core.

A prompt names a topic and two key words of it; a good response lists words of that topic:

    prompt     fruit : pear apple
    response   i suggest apple lemon mango pear thanks .

The labellers are almost right: they choose by the gold score plus a small bonus for polite words, with some noise
(Bradley-Terry). A reward model trained on their labels inherits that bias and adds its own errors where its few thousand
pairs give no evidence. The policy finds and exploits both.
"""

import random
import re
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

from r2m_cli.data.words import word_tokenizer
from r2m_cli.data.world import Labellers, World
from r2m_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOPICS: dict[str, tuple[str, ...]] = {
    "animal": ("badger", "cat", "dog", "fox", "horse", "otter", "rabbit", "wolf"),
    "colour": ("black", "blue", "green", "grey", "purple", "red", "white", "yellow"),
    "fruit": ("apple", "banana", "cherry", "grape", "lemon", "mango", "peach", "pear"),
    "music": ("bell", "cello", "drum", "flute", "harp", "organ", "piano", "violin"),
    "tool": ("axe", "chisel", "drill", "file", "hammer", "pliers", "saw", "wrench"),
    "weather": ("cloud", "fog", "frost", "hail", "rain", "snow", "storm", "wind"),
}
OPENING = ("i", "suggest")
POLITE = ("gladly", "kindly", "please", "thanks")
FILLERS = ("just", "know", "like", "maybe", "perhaps", "quite", "really", "so", "very", "you")
STOP = "."

TOPIC_OF = {word: topic for topic, words in TOPICS.items() for word in words}


class GoldWorld(World):
    """Prompts, imperfect demonstrations, the gold score, biased labels and the tokenizer of one world."""

    # Points of gold for one of each; a perfect response has 5.0.
    POINTS: ClassVar[dict[str, float]] = {
        "on_topic": 0.6,  # distinct word of the prompt's topic, up to MAX_ON_TOPIC of them
        "key_word": 0.6,  # key word of the prompt that the response names
        "order": 0.6,  # alphabetical order: times Kendall's tau of the distinct on-topic words, -1 to 1
        "opening": 0.3,  # beginning with "i suggest"
        "stop": 0.3,  # ending with a full stop
        "polite": 0.2,  # first polite word
        "off_topic": -0.6,  # word of another topic
        "repeat": -0.4,  # on-topic word that is repeated
        "extra_polite": -0.4,  # polite word beyond MAX_POLITE
        "filler": -0.15,  # useless word: a filler, an unknown word, an opening or a full stop out of place
        "overlong": -0.2,  # word beyond SOFT_LENGTH
        "no_eos": -1.0,  # response that was cut off before its end token
    }
    MAX_ON_TOPIC = 4  # distinct on-topic words that earn points
    MAX_POLITE = 2  # polite words that cost nothing
    SOFT_LENGTH = 11  # words of the longest response that costs nothing

    LABELLERS = Labellers(bias=0.15, temperature=0.3)

    def prompts(self, count: int, seed: int) -> list[str]:
        """`count` prompts such as "fruit : pear apple", drawn with replacement from the 336 that exist."""
        rng = random.Random(seed)
        drawn = []
        for _ in range(count):
            topic = rng.choice(sorted(TOPICS))
            # In random order, so that merely copying the key words does not give the alphabetical order.
            first, second = rng.sample(TOPICS[topic], 2)
            drawn.append(f"{topic} : {first} {second}")
        return drawn

    def demonstration(self, prompt: str, rng: random.Random) -> str:
        """A response to imitate, worth 2.5 points on average (responses of the policy trained on them are worth 2.1).

        The writer's skill is drawn for each response. Every flaw that gold punishes occurs now and then. So SFT leaves
        headroom, and the preference pairs, sampled from the SFT policy, show the reward model each flaw.
        """
        topic, keys = _parse(prompt)
        skill = rng.random()

        def likely(at_worst: float, at_best: float) -> bool:
            """Toss a coin whose odds go from `at_worst` (skill 0) to `at_best` (skill 1)."""
            return rng.random() < at_worst + skill * (at_best - at_worst)

        words = [key for key in keys if likely(0.3, 0.8)]
        others = [word for word in TOPICS[topic] if word not in keys]
        words += rng.sample(others, rng.randint(1, 3))
        rng.shuffle(words)
        if likely(0.0, 0.6):
            words.sort()
        if likely(0.4, 0.1):
            words.insert(rng.randint(0, len(words)), rng.choice(words))
        while likely(0.4, 0.1):
            words.insert(rng.randint(0, len(words)), rng.choice([w for w in sorted(TOPIC_OF) if TOPIC_OF[w] != topic]))
        while likely(0.5, 0.1):
            words.insert(rng.randint(0, len(words)), rng.choice(FILLERS))
        while likely(0.4, 0.3):
            words.append(rng.choice(POLITE))
        opening = OPENING if likely(0.2, 0.7) else ()
        stop = (STOP,) if likely(0.3, 0.8) else ()
        return " ".join((*opening, *words, *stop))

    def terms(self, prompt: str, response: str, finished: bool) -> dict[str, float]:
        """The gold score term by term: name -> points. Any text is accepted; unknown words count as fillers."""
        topic, keys = _parse(prompt)
        words = _words(response)
        opened = tuple(words[: len(OPENING)]) == OPENING
        stopped = words[-1:] == [STOP]
        body = words[len(OPENING) if opened else 0 : -1 if stopped else None]

        on_topic = [word for word in body if TOPIC_OF.get(word) == topic]
        distinct = list(dict.fromkeys(on_topic))
        off_topic = sum(TOPIC_OF.get(word, topic) != topic for word in body)
        polite = _polite(body)
        counts = {
            "on_topic": min(len(distinct), self.MAX_ON_TOPIC),
            "key_word": len(set(keys) & set(distinct)),
            "order": _alphabetical(distinct),
            "opening": opened,
            "stop": stopped,
            "polite": polite > 0,
            "off_topic": off_topic,
            "repeat": len(on_topic) - len(distinct),
            "extra_polite": max(polite - self.MAX_POLITE, 0),
            "filler": len(body) - len(on_topic) - off_topic - polite,
            "overlong": max(len(words) - self.SOFT_LENGTH, 0),
            "no_eos": not finished,
        }
        return {name: self.POINTS[name] * count for name, count in counts.items()}

    def score(self, prompt: str, response: str, finished: bool) -> float:
        """Gold: the true reward of a response, in points. `finished`: the policy ended it with its end token."""
        return sum(self.terms(prompt, response, finished).values())

    def label(self, prompt: str, a: str, b: str, a_finished: bool, b_finished: bool, rng: random.Random) -> bool:
        """A labeller's choice: True when `a` is preferred. Bradley-Terry on gold + bias x polite words."""
        bias = self.labellers.bias
        liking_a = self.score(prompt, a, a_finished) + bias * _polite(_words(a))
        liking_b = self.score(prompt, b, b_finished) + bias * _polite(_words(b))
        return self.labellers.prefer_first(liking_a, liking_b, rng)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """One token per word."""
        return word_tokenizer([STOP, ":", *TOPICS, *TOPIC_OF, *OPENING, *POLITE, *FILLERS])


def _parse(prompt: str) -> tuple[str, list[str]]:
    """ "fruit : pear apple" -> the topic and its key words, in the prompt's order (a set's order varies between runs)."""
    topic, *keys = [word for word in _words(prompt) if word != ":"] or [""]
    if topic not in TOPICS or any(TOPIC_OF.get(key) != topic for key in keys):
        raise UserError(f"not a prompt of the gold world (topic : word word): {prompt!r}")
    return topic, keys


def _words(text: str) -> list[str]:
    """Words, signs and special tokens of a text, split as the tokenizer splits them."""
    return re.findall(r"<\w+>|\w+|[^\w\s]+", text)


def _polite(words: list[str]) -> int:
    """How many of the words are polite."""
    return sum(word in POLITE for word in words)


def _alphabetical(words: list[str]) -> float:
    """Kendall's tau with the alphabetical order, -1 to 1: pairs in order minus pairs out of order, over all pairs."""
    pairs = list(combinations(words, 2))
    return sum(1 if a < b else -1 for a, b in pairs) / max(len(pairs), 1)
