"""ChatFormat: one formatter, real tokenizers trained in memory, templates in the styles that are in use."""

from pathlib import Path

import pytest
import torch
from families import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from r2m_cli.config.schema import RewardConfig
from r2m_cli.data.forms import RECORD, Choice, chosen, write_record
from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError
from r2m_cli.models.formats import format_of, reward_format
from r2m_cli.models.reward_backbone import segments

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Qwen3: an empty thinking block stands before the last reply; enable_thinking=false puts it in the prompt.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# DeepSeek-R1 distillates: the prompt opens a thinking block that no rendered conversation has.
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
OPEN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STABLE = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "open": OPEN,
}
CLOSE = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "zephyr": "</s>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
    "open": "</s>",
}

SPECIALS = [
    "<s>", "</s>", "<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
CORPUS = [
    "hello there, how are you? I am fine.\n\nHuman: hi\n\nAssistant: hello yes",
    "user system assistant\n\n\n\nbe brief and kind; say yes or no <|user|>\n[INST] what [/INST]",
] * 20

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello there"},
    {"role": "user", "content": "how are you?"},
]
ASK = TALK[:1]
SYSTEM = {"role": "system", "content": "be brief"}


def bpe(template: str | None = None, **tokens: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2, Qwen and Llama-3 have it: any text goes in and comes out unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **({"bos_token": "<s>", "eos_token": "</s>"} | tokens))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[4:]})
    tokenizer.chat_template = template
    return tokenizer


def words(*vocabulary: str, post: tuple[str, str] | None = None, **tokens: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; `post` = the special tokens around a text, as encoders have them."""
    specials = sorted({*tokens.values(), *(post or ())} - {""})
    vocab = {word: i for i, word in enumerate([*specials, *vocabulary])}
    core = Tokenizer(models.WordLevel(vocab, unk_token=tokens.get("unk_token")))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post:
        pieces = [text for text in (post[0], "$A", post[1]) if text]
        core.post_processor = processors.TemplateProcessing(
            single=" ".join(pieces), special_tokens=[(text, vocab[text]) for text in post if text]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, **tokens)


def metaspace() -> PreTrainedTokenizerFast:
    """Llama-2's manner: every text that is tokenized by itself gets a leading space."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def read(chat: ChatFormat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


BPE = {style: ChatFormat(bpe(template)) for style, template in STABLE.items()}
BPE["plain"] = ChatFormat(bpe())


# ---- with a template ----


@pytest.mark.parametrize("style", STABLE)
def test_prompt_and_response_together_are_the_conversation(style: str) -> None:
    chat = BPE[style]
    whole = chat.conversation_ids(TALK, "I am fine.")
    apart = chat.prompt_ids(TALK) + chat.response_ids(TALK, "I am fine.")
    assert read(chat, apart) == chat.prompt_text(TALK) + read(chat, chat.response_ids(TALK, "I am fine."))
    assert read(chat, whole).startswith(read(chat, apart))
    assert read(chat, whole)[len(read(chat, apart)) :] in ("", "\n")


@pytest.mark.parametrize("style", STABLE)
def test_response_ends_with_the_token_that_closes_the_turn(style: str) -> None:
    chat = BPE[style]
    close = chat.tokenizer.convert_tokens_to_ids(CLOSE[style])
    for reply in ("I am fine.", "", "\n"):
        ids = chat.response_ids(TALK, reply)
        assert ids[-1] == close
        assert close not in ids[:-1]
    assert chat.eos_ids == {close, chat.tokenizer.eos_token_id}


def test_conversation_is_what_the_template_renders() -> None:
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert read(BPE["chatml"], BPE["chatml"].conversation_ids(ASK, "yes")) == expected


def test_bos_stands_once() -> None:
    tokenizer = bpe(LLAMA3, bos_token="<|begin_of_text|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    chat = ChatFormat(tokenizer)
    for ids in (chat.prompt_ids(TALK), chat.conversation_ids(TALK, "yes")):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_template_that_leaves_turns_open_gets_eos() -> None:
    chat = BPE["open"]
    assert chat.conversation_ids(ASK, "yes")[-1] == chat.tokenizer.eos_token_id
    assert read(chat, chat.response_ids(ASK, "yes")) == "yes\n</s>"


def test_qwen3_thinks_in_the_prompt_and_not_in_the_reply() -> None:
    chat = BPE["qwen3"]
    assert chat.prompt_text(ASK).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert read(chat, chat.response_ids(ASK, "yes")) == "yes<|im_end|>"


def test_template_that_changes_the_prompt_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"reward model tokenizer .*'<think>\\n' became 'yes.*chat_template"):
        ChatFormat(bpe(R1), "reward model")


def test_template_that_changes_longer_prompts_is_refused_when_it_does() -> None:
    strips_history = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'user' or messages[-1].role == 'user' or loop.last %}{{ m.content }}{% endif %}",
    )
    chat = ChatFormat(bpe(strips_history))
    assert chat.response_ids(ASK, "yes")
    with pytest.raises(UserError, match="changes a prompt when a reply follows"):
        chat.response_ids(TALK, "yes")


def test_refused_system_role_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"policy tokenizer .*\[system, user\]: Only user and assistant roles"
    ) as caught:
        BPE["mistral"].prompt_ids([SYSTEM, *ASK])
    assert "\n" not in str(caught.value)


def test_template_with_a_syntax_error() -> None:
    with pytest.raises(UserError, match="chat template of the policy tokenizer"):
        ChatFormat(bpe("{% for m in messages %}"))


@pytest.mark.parametrize("style", BPE)
@settings(max_examples=50, deadline=None)
@given(reply=st.text(alphabet="ab \n\té语🎈.?", max_size=20))
def test_any_reply_reads_the_same_apart_and_whole(style: str, reply: str) -> None:
    """Text is what crosses between models, so it must come through whatever the reply begins or ends with."""
    chat = BPE[style]
    ids = chat.prompt_ids(TALK) + chat.response_ids(TALK, reply)
    whole = read(chat, chat.conversation_ids(TALK, reply))
    assert whole.removesuffix("\n") == read(chat, ids).removesuffix("\n")
    assert read(chat, ids).startswith(chat.prompt_text(TALK))
    assert reply.strip() in read(chat, chat.response_ids(TALK, reply))
    assert ids[-1] in chat.eos_ids


# ---- without a template ----


@pytest.mark.parametrize(
    ("prompt", "reply", "text"),
    [
        ("TL;DR:", "yes", "TL;DR: yes"),
        ("TL;DR:", " yes", "TL;DR: yes"),
        ("hi\n", "yes", "hi\nyes"),
        ("hi", "", "hi"),
    ],
)
def test_plain_single_prompt_is_its_content(prompt: str, reply: str, text: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    chat = BPE["plain"]
    assert chat.prompt_text(messages) == prompt
    assert read(chat, chat.conversation_ids(messages, reply)) == text + "</s>"
    assert chat.prompt_ids(messages) + chat.response_ids(messages, reply) == chat.conversation_ids(messages, reply)


def test_plain_dialogue_is_an_hh_transcript() -> None:
    chat = BPE["plain"]
    text = "be brief\n\nHuman: hi\n\nAssistant: hello there\n\nHuman: how are you?\n\nAssistant:"
    assert chat.prompt_text([SYSTEM, *TALK]) == text
    assert read(chat, chat.conversation_ids([SYSTEM, *TALK], "fine")) == text + " fine</s>"


def test_eos_is_not_put_twice() -> None:
    chat = BPE["plain"]
    assert read(chat, chat.conversation_ids(ASK, "yes</s>")) == "hi yes</s>"
    assert chat.response_ids(ASK, "yes</s>").count(chat.tokenizer.eos_token_id) == 1


def test_encoder_keeps_its_own_special_tokens() -> None:
    tokenizer = words("hi", "yes", post=("[CLS]", "[SEP]"), unk_token="[UNK]", pad_token="[PAD]")
    chat = ChatFormat(tokenizer, "reward model")
    assert tokenizer.convert_ids_to_tokens(chat.conversation_ids(ASK, "yes")) == [
        "[CLS]",
        "hi",
        "yes",
        "[SEP]",
    ]
    assert chat.prompt_ids(ASK) + chat.response_ids(ASK, "yes") == chat.conversation_ids(ASK, "yes")
    assert chat.pad_id == tokenizer.pad_token_id


def test_tokenizer_that_adds_eos_itself_leaves_the_prompt_open() -> None:
    tokenizer = words("hi", "yes", post=("<s>", "</s>"), unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.prompt_ids(ASK)) == ["<s>", "hi"]
    assert tokenizer.convert_ids_to_tokens(chat.conversation_ids(ASK, "yes")) == ["<s>", "hi", "yes", "</s>"]


def test_metaspace_tokenizer_gets_no_second_space_at_the_border() -> None:
    chat = ChatFormat(metaspace())
    ids = chat.prompt_ids(ASK) + chat.response_ids(ASK, "yes")
    assert ids == chat.conversation_ids(ASK, "yes")
    assert read(chat, ids[1:-1]) == "hi yes"
    assert ids[0] == chat.tokenizer.bos_token_id


def test_metaspace_reply_that_cannot_be_cut_off_is_refused() -> None:
    """A newline of the prompt and one of the reply are one token; a reply alone would gain a space."""
    chat = ChatFormat(metaspace())
    messages = [{"role": "user", "content": "hello\n"}]
    with pytest.raises(UserError, match="cannot be tokenized separately; strip"):
        chat.response_ids(messages, "\nyes")
    ids = chat.prompt_ids(messages) + chat.response_ids(messages, "yes")
    assert ids == chat.conversation_ids(messages, "yes")


def test_no_eos_at_all() -> None:
    chat = ChatFormat(words("hi", "yes", unk_token="<unk>"))
    assert chat.eos_ids == set()
    assert chat.tokenizer.convert_ids_to_tokens(chat.conversation_ids(ASK, "yes")) == ["hi", "yes"]


# ---- forms that a key names ----


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (None, "be brief\n\nHuman: hi\n\nAssistant: hello there\n\nHuman: how are you?\n\nAssistant: fine</s>"),
        ("hh", "be brief\n\nHuman: hi\n\nAssistant: hello there\n\nHuman: how are you?\n\nAssistant: fine</s>"),
        ("plain", "be brief\nhi\nhello there\nhow are you? fine</s>"),
        ("pair", "be brief\nhi\nhello there\nhow are you?fine"),
    ],
)
def test_every_form_of_a_dialogue(form: str | None, text: str) -> None:
    chat = ChatFormat(bpe(), "reward model", Choice(form))
    assert read(chat, chat.conversation_ids([SYSTEM, *TALK], "fine")) == text


@pytest.mark.parametrize(("form", "text"), [("hh", "\n\nHuman: hi\n\nAssistant: yes</s>"), ("plain", "hi yes</s>")])
def test_a_form_that_is_asked_for_comes_before_the_tokenizers_template(form: str, text: str) -> None:
    chat = ChatFormat(bpe(CHATML), "reward model", Choice(form))
    assert read(chat, chat.conversation_ids(ASK, "yes")) == text
    assert "yes</s>" in str(chat.note())
    assert "reward.template" in str(chat.note())
    assert BPE["chatml"].note() is None


@pytest.mark.parametrize("form", ["hh", "plain"])
def test_a_policy_goes_on_in_the_form_that_it_is_scored_in(form: str) -> None:
    chat = ChatFormat(bpe(), "policy", Choice(form))
    assert chat.prompt_ids(TALK) + chat.response_ids(TALK, "yes") == chat.conversation_ids(TALK, "yes")


@pytest.mark.parametrize("template", [None, CHATML, OPEN])
def test_the_end_token_is_there_or_not_by_key(template: str | None) -> None:
    tokenizer = bpe(template)
    without = ChatFormat(tokenizer, "reward model", Choice(end_token=False)).conversation_ids(ASK, "yes")
    closed = ChatFormat(tokenizer, "reward model", Choice(end_token=True)).conversation_ids(ASK, "yes")
    assert closed == [*without, tokenizer.eos_token_id]
    ends_itself = {None: "hi yes", CHATML: "yes<|im_end|>\n", OPEN: "assistant: yes\n"}[template]
    assert read(ChatFormat(tokenizer), without).endswith(ends_itself)


def test_an_encoders_own_closing_token_is_no_end_token() -> None:
    tokenizer = words("hi", "yes", post=("[CLS]", "[SEP]"), unk_token="[UNK]", pad_token="[PAD]")
    kept = ChatFormat(tokenizer, "reward model", Choice(end_token=False)).conversation_ids(ASK, "yes")
    assert tokenizer.convert_ids_to_tokens(kept) == ["[CLS]", "hi", "yes", "[SEP]"]
    with pytest.raises(UserError, match=r"reward\.end_token=true: .* has no end token"):
        ChatFormat(tokenizer, "reward model", Choice(end_token=True))


def bert(**types: int) -> PreTrainedTokenizerFast:
    """BERT's way with two texts; `types` the number of the second one."""
    second = types.get("second", 1)
    tokenizer = words(
        "hi", "yes", "no", post=("[CLS]", "[SEP]"), unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]"
    )
    ids = [(text, tokenizer.convert_tokens_to_ids(text)) for text in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]",
        cls_token="[CLS]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.mark.parametrize("limit", [100, 6, 5])
def test_a_pair_is_what_the_tokenizer_makes_of_question_and_answer(limit: int) -> None:
    tokenizer = bert()
    chat = ChatFormat(tokenizer, "reward model", Choice("pair"))
    whole = tokenizer("hi no", "yes no")
    assert chat.conversation_ids([{"role": "user", "content": "hi no"}], "yes no") == whole["input_ids"]
    ids = chat.cut(whole["input_ids"], limit)
    assert chat.boundary == tokenizer.sep_token_id
    found = segments(torch.tensor([ids + [0]]), torch.tensor([len(ids)]), chat.boundary)[0].tolist()
    assert found == [0, *whole["token_type_ids"][len(whole["input_ids"]) - len(ids) + 1 :], 0]


def test_texts_that_are_not_numbered_or_strangely() -> None:
    assert ChatFormat(bert(second=0), "reward model", Choice("pair")).boundary is None
    assert ChatFormat(bpe(), "reward model", Choice("pair")).boundary is None
    with pytest.raises(UserError, match=r"reward\.template=pair: .* numbers two texts in a way"):
        ChatFormat(bert(second=2), "reward model", Choice("pair"))


def test_a_template_without_a_generation_prompt_is_for_reward_models_only() -> None:
    bare = CHATML.split("{% if add")[0]
    with pytest.raises(
        UserError, match=r"ignores add_generation_prompt: '<\|im_start\|>assistant\\n' .*policy\.template=FILE"
    ):
        ChatFormat(bpe(bare))
    chat = ChatFormat(bpe(bare), "reward model")
    assert chat.conversation_ids(ASK, "yes") == ChatFormat(bpe(CHATML)).conversation_ids(ASK, "yes")


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("", "renders to nothing"),
        ("{# #}", "renders to nothing"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "drops what the user says"),
        ("{{ messages[0].content }}", "drops what the assistant says"),
    ],
)
def test_a_template_that_drops_what_is_said_is_one_line(template: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault) as caught:
        ChatFormat(bpe(template), "reward model")
    assert "reward.template" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- where the choice stands ----


def test_a_key_comes_before_the_record_in_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    assert chosen(None, None, tmp_path, "reward.template") == (Choice(), None)
    write_record(tmp_path, Choice("hh", end_token=False))
    assert chosen(None, None, tmp_path, "reward.template") == (Choice("hh", end_token=False), None)
    assert chosen("plain", None, tmp_path, "reward.template") == (Choice("plain", end_token=False), None)
    assert chosen(str(file), True, tmp_path, "reward.template") == (Choice(None, end_token=True), CHATML)


def test_beaver_reads_as_safe_rlhf_writes(tmp_path: Path) -> None:
    """Source: safe_rlhf/datasets/utils.py, format_prompt, and preference.py, which puts EOS behind the reply."""
    write_record(tmp_path, Choice("beaver"))
    for named, folder in (("beaver", None), (None, tmp_path)):
        chat = format_of(bpe(CHATML), "reward model", named, None, folder)
        assert read(chat, chat.conversation_ids(TALK, "fine")) == (
            "<s>BEGINNING OF CONVERSATION: USER: hi ASSISTANT:hello there</s>USER: how are you? ASSISTANT:fine</s>"
        )
    # As in the example of the model card, which ends with the reply.
    open_ = format_of(bpe(CHATML), "reward model", "beaver", end_token=False)
    assert read(open_, open_.conversation_ids(ASK, "yes")) == "<s>BEGINNING OF CONVERSATION: USER: hi ASSISTANT:yes"
    policy = format_of(bpe(CHATML), "policy", "beaver")
    assert policy.prompt_ids(TALK) + policy.response_ids(TALK, "yes") == policy.conversation_ids(TALK, "yes")
    with pytest.raises(UserError, match="the form beaver has no system message"):
        chat.conversation_ids([SYSTEM, *ASK], "yes")


def test_a_saved_format_reads_the_same(tmp_path: Path) -> None:
    for i, (template, choice) in enumerate(
        [(None, Choice("hh")), (CHATML, Choice("plain", False)), (LLAMA3, Choice())]
    ):
        chat = ChatFormat(bpe(template), "reward model", choice)
        chat.save(tmp_path / str(i))
        small_model("llama", len(chat.tokenizer), scorer=True).save_pretrained(tmp_path / str(i))
        again = reward_format(RewardConfig(), str(tmp_path / str(i)), "reward.path")
        assert again.conversation_ids(TALK, "yes") == chat.conversation_ids(TALK, "yes")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (None, "neither a file nor one of hh, plain, pair"),
    ],
)
def test_a_file_that_is_no_template(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        chosen(str(file), None, None, "policy.template")


@pytest.mark.parametrize("record", ["{", "[]", '{"template": "chatml"}', '{"end_token": 1}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, record: str) -> None:
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(UserError, match=RECORD):
        chosen(None, None, tmp_path, "reward.template")


# ---- the pad ----


@pytest.mark.parametrize(
    ("tokens", "template", "pad"),
    [
        ({"pad_token": "<pad>"}, None, "<pad>"),
        ({"pad_token": "</s>"}, None, "<pad>"),  # pad = EOS is common; a token named pad serves
        (
            {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
            CHATML,
            "<pad>",
        ),
        ({"eos_token": "<|endoftext|>", "pad_token": "<|im_end|>"}, CHATML, "<pad>"),  # the pad ends a turn
    ],
)
def test_pad_never_ends_a_reply(tokens: dict[str, str], template: str | None, pad: str) -> None:
    tokenizer = bpe(template, **tokens)
    chat = ChatFormat(tokenizer)
    assert chat.pad_id not in chat.eos_ids
    assert chat.pad_id == tokenizer.convert_tokens_to_ids(pad)


def test_smollm2_pads_with_endoftext() -> None:
    """Pad = EOS = <|im_end|> as SmolLM2 ships it, and no token named pad."""
    tokenizer = words(
        "hi",
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = CHATML
    chat = ChatFormat(tokenizer)
    assert chat.pad_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_pad_is_eos_where_there_is_nothing_else() -> None:
    tokenizer = words("hi", "yes", unk_token="<|endoftext|>", eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    assert ChatFormat(tokenizer).pad_id == tokenizer.eos_token_id
