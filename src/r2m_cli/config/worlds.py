"""The keys of the worlds whose true reward is known (`data.world.*`, `data.english.*`)."""

from dataclasses import dataclass


@dataclass
class WorldConfig:
    """Every number of the world. Gold is a sum of weight x count, in points of gold; a perfect response has 5.0."""

    # Points per distinct word of the prompt's topic, up to max_on_topic words.
    on_topic: float = 0.6
    # Points per key word of the prompt that the response names.
    key_word: float = 0.6
    # Points for alphabetical order: times Kendall's tau of the distinct on-topic words, from -1 to 1.
    order: float = 0.6
    # Points for beginning with "i suggest".
    opening: float = 0.3
    # Points for ending with a full stop.
    stop: float = 0.3
    # Points for the first polite word.
    polite: float = 0.2
    # Points per word of another topic.
    off_topic: float = -0.6
    # Points per on-topic word that was said before.
    repeat: float = -0.4
    # Points per polite word beyond max_polite.
    extra_polite: float = -0.4
    # Points per word that does nothing: fillers, unknown words, an opening or a full stop out of place.
    filler: float = -0.15
    # Points per word beyond soft_length.
    overlong: float = -0.2
    # Points for a response that was cut off before its end token.
    no_eos: float = -1.0
    # Distinct on-topic words that earn points (words).
    max_on_topic: int = 4
    # Polite words that cost nothing (words).
    max_polite: int = 2
    # Longest response that costs nothing (words).
    soft_length: int = 11
    # The labellers' error: points that they, not gold, give for every polite word.
    label_bias: float = 0.15
    # The labellers' noise: Bradley-Terry temperature in points of gold; near 0 they always choose the better one.
    label_temperature: float = 0.3
    # Probability, 0 to 0.5, that a label is flipped afterwards, whatever the responses are.
    label_noise: float = 0.0


@dataclass
class EnglishConfig:
    """The labellers of the English world."""

    # The labellers' error: points that they, not gold, give for every word of eight or more letters.
    label_bias: float = 0.4
    # The labellers' noise: Bradley-Terry temperature in points of gold.
    label_temperature: float = 0.3
    # Probability, 0 to 0.5, that a label is flipped afterwards.
    label_noise: float = 0.0
