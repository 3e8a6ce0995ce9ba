"""A tokenizer with one token per word, for the small worlds whose vocabulary is known."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, EOS, USER, ASSISTANT = SPECIALS = ("<pad>", "<unk>", "<eos>", "<user>", "<assistant>")

# A generation prompt ends with <assistant>, so it is a prefix of prompt + response, in text and in tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <eos> "
    "{% else %}<user> {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(words: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer of these words and signs, with a chat template: it is used exactly like a real chat model's tokenizer.

    Pad, end and unknown are three different tokens. With pad = end, a reward model that finds the last token by its id
    could not see whether a response has ended.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=EOS,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        # Decoding must put one space between the words, also before the full stop.
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
