"""Tokenizers of model folders: those that are none, those that do not know the data, and tokens without an embedding."""

import json
from pathlib import Path

import pytest
import torch
from folders import ROWS, byte_tokenizer, make
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r2m_cli.conversation import Pair
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.data.source import Source
from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError
from r2m_cli.models.loading import load_causal_lm, load_reward_model, load_tokenizer, vocabulary
from r2m_cli.models.tokenizers import check_known, unknown_share

ASK = [{"role": "user", "content": "hi"}]


def of_words(*words: str, normalizer=None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<eos>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


def put(tokenizer, folder: Path) -> str:
    for old in folder.glob("*token*"):
        old.unlink()
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma", "bert", "roberta"])
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "m", family, scorer=True)
    load_tokenizer(str(folder), "reward.path")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match=r"reward.path=.*: the folder holds no tokenizer \(tokenizer.json\); copy that"):
        load_tokenizer(str(folder), "reward.path")
    # A tokenizer_config.json alone: transformers makes an empty tokenizer of it, or none.
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(UserError, match=r"reward.path=.*its tokenizer can"):
        load_tokenizer(str(folder), "reward.path")


@pytest.mark.parametrize(
    "tokenizer",
    [
        of_words(),
        of_words("one"),
        of_words("THE", "ANSWER", "IS", normalizer=normalizers.Lowercase()),  # knows none of its own words
        of_words("a b", "c d"),
    ],
)
def test_a_tokenizer_that_cannot_tell_texts_apart_is_refused(tokenizer, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    with pytest.raises(UserError, match="its tokenizer cannot distinguish texts"):
        load_tokenizer(put(tokenizer, folder), "policy.path")


@pytest.mark.parametrize(
    "tokenizer",
    [
        GoldWorld().tokenizer(),
        byte_tokenizer(),
        of_words("yes", "no"),
        of_words("the", "answer", normalizer=normalizers.Lowercase()),
        of_words("猫", "犬"),
    ],
)
def test_small_and_lower_casing_vocabularies_pass(tokenizer, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    loaded = load_tokenizer(put(tokenizer, folder), "policy.path")
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    tokenizer = of_words(*(f"word{i}" for i in range(ROWS)))
    with pytest.raises(UserError, match=rf"token ids up to {ROWS + 1}, but its embeddings have {ROWS} rows"):
        load_tokenizer(put(tokenizer, folder), "policy.path")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_max_length": -1}, "model_max_length=-1"),
        ({"unk_token": ""}, "its unk_token '' is not in its vocabulary"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, changes, says: str) -> None:
    folder = make(tmp_path / "m")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=says):
        load_tokenizer(str(folder), "policy.path")


# --- words that the tokenizer does not know ---------------------------------------------------------------------------


def test_share_of_unknown_words() -> None:
    tokenizer = of_words("yes", "no")
    assert unknown_share(tokenizer, ["yes no", "yes maybe", "  "]) == 1 / 4
    assert unknown_share(tokenizer, []) == 0
    assert unknown_share(byte_tokenizer(), ["ça va, 猫 🎈"]) == 0
    silent = Tokenizer(
        models.BPE(vocab={"a": 0, "b": 1}, merges=[])
    )  # without an unknown token it drops what it cannot read
    assert unknown_share(PreTrainedTokenizerFast(tokenizer_object=silent), ["ab", "xyz"]) == 1 / 3


def source(*words: str) -> Source:
    prompts = [({"role": "user", "content": word},) for word in words]
    return Source(prompts, [], [Pair(prompts[0], "yes", "no")], [], [])


def test_unknown_words_of_the_data_are_noted_and_too_many_refused() -> None:
    chat = ChatFormat(of_words("yes", "no"), "reward model")
    assert check_known(source("yes", "no"), chat) == []
    assert check_known(source(*["yes"] * 19, "maybe"), chat) == []
    (note,) = check_known(source(*["yes"] * 9, "maybe"), chat)
    assert "the reward model's tokenizer does not know 10% of the data's words" in note
    with pytest.raises(UserError, match="does not know 75% of the data's words"):
        check_known(source("yes", "perhaps", "maybe", "surely"), chat)


# --- tokens without an embedding --------------------------------------------------------------------------------------


def grown(folder: Path, template: str | None = None, **tokens: object) -> str:
    """The folder's tokenizer with tokens for which the model was not resized."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(tokens)
    assert len(tokenizer) > ROWS
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_padding_token_without_an_embedding_is_never_fed(family: str, tmp_path: Path) -> None:
    for scorer in (False, True):
        name = grown(make(tmp_path / f"m{scorer}", family, scorer), pad_token="[PAD]")
        chat = ChatFormat(load_tokenizer(name, "key"), "policy", vocabulary=vocabulary(name, "key"))
        assert chat.tokenizer.pad_token_id == ROWS
        assert chat.pad_id < ROWS
        assert chat.pad_id not in chat.eos_ids
        if scorer:
            load_reward_model(name, "key", torch.float32, chat.pad_id)
        else:
            load_causal_lm(name, "key", torch.float32)
        # The text itself may spell it.
        with pytest.raises(UserError, match=rf"its token '\[PAD\]' has the id {ROWS}, but the model's embeddings"):
            chat.prompt_ids([{"role": "user", "content": "write [PAD]"}])


def test_a_template_whose_tokens_have_no_embedding_is_refused_at_once(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    name = grown(make(tmp_path / "m"), template, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    with pytest.raises(UserError, match=r"its token '<\|im_end\|>' .*resize_token_embeddings"):
        ChatFormat(load_tokenizer(name, "policy.path"), "policy", vocabulary=vocabulary(name, "policy.path"))
