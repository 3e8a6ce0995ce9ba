"""Texts that are rendered already are told from those that only quote the marks of a template."""

import json
from pathlib import Path
from typing import Any

import pytest

from r2m_cli.config.schema import DataConfig
from r2m_cli.data.forms import Choice
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.data.preferences import load_preferences
from r2m_cli.data.rendered import is_prompt, is_reply
from r2m_cli.data.source import Source, load_source, renderable
from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError

CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "ChatML": CHATML,
    "ChatML, a system message": "<|im_start|>system\nbe brief<|im_end|>\n" + CHATML,
    "ChatML without a cue": "<|im_start|>user\nhi<|im_end|>\n",
    "Qwen's cue without thinking": CHATML + "<think>\n\n</think>\n\n",
    "Llama 2": "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nhi [/INST]",
    "Mistral": "[INST] hi [/INST]",
    "Mistral, two turns": "<s>[INST] hi [/INST] ho</s>[INST] you [/INST]",
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "Llama 4": "<|header_start|>user<|header_end|>\n\nhi<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "Gemma": "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr": "<|system|>\n</s>\n<|user|>\nhi</s>\n<|assistant|>\n",
    "Phi": "<|user|>\nhi<|end|>\n<|assistant|>\n",
    "DeepSeek": "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>",
    "GPT-OSS": "<|start|>user<|message|>hi<|end|><|start|>assistant",
    "Granite": "<|start_of_role|>user<|end_of_role|>hi<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "Cohere": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "OpenAssistant": "<|prompter|>hi<|endoftext|><|assistant|>",
    "Alpaca": "Below is an instruction.\n\n### Instruction:\nhi\n\n### Response:\n",
    "HH with single newlines": "Human: hi\nAssistant:",
    "Vicuna": "A chat. USER: hi ASSISTANT:",
}  # fmt: skip
QUOTES = [
    "What does <|im_start|>user mean?", "<|im_start|>user is what?", "[INST] is a mark of which model?", "What is [/INST]",
    "Why does my model write <|im_end|>", "Explain <|user|> and <|assistant|> to me.", "hi", "USER: and ASSISTANT: are roles",
    "Write a post that begins with ### Instruction:", "<s>old</s> new", "Human or Assistant:",
]  # fmt: skip


@pytest.mark.parametrize("template", PROMPTS)
def test_rendered_prompts_are_recognised(template: str) -> None:
    assert is_prompt(PROMPTS[template])


@pytest.mark.parametrize("text", QUOTES)
def test_prompts_that_quote_a_template_are_not(text: str) -> None:
    assert not is_prompt(text)


@pytest.mark.parametrize("text", ["fine<|im_end|>", "fine</s>", "fine<|eot_id|>\n", "<|im_start|>assistant\nfine<|im_end|>",
                                  "fine <|endoftext|>", "fine<end_of_turn>\n"])  # fmt: skip
def test_replies_that_close_with_an_end_token_are_recognised(text: str) -> None:
    assert is_reply(text)


@pytest.mark.parametrize("text", ["It ends a turn: <|im_end|> does.", "I would <s>never</s>", "fine", "<|im_end|>"])
def test_replies_that_quote_one_are_not(text: str) -> None:
    assert not is_reply(text)


def test_a_long_text_is_read_in_no_time() -> None:
    for text in (
        " " * 10**6 + "x",
        "USER: " * 10**5,
        "<|im_start|>user" * 10**5,
        "<think>" * 10**5,
        "a " * 10**6 + "</s",
    ):
        assert not is_reply(text)
        is_prompt(text)


def chat(template: str | None) -> ChatFormat:
    return ChatFormat(GoldWorld().tokenizer(), "policy", Choice(template))


def source(folder: Path, *rows: dict[str, Any]) -> Source:
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_source(DataConfig(kind="file", path=str(folder / "x.jsonl"), holdout=0.5), 1)


PLAIN = [{"prompt": f"hi {i}", "chosen": "a", "rejected": "b"} for i in range(3)]


@pytest.mark.parametrize(("row", "shown"), [
    ({"prompt": CHATML, "chosen": "a", "rejected": "b"}, "<|im_start|>user"),
    ({"prompt": [{"role": "user", "content": CHATML}], "completion": "a"}, "<|im_start|>user"),
    ({"prompt": "hi", "chosen": "a<|im_end|>", "rejected": "b<|im_end|>"}, "a<|im_end|>"),
    ({"prompt": "hi", "completion": "a</s>"}, "a</s>"),
    ({"prompt": CHATML}, "<|im_start|>user"),
])  # fmt: skip
def test_rendered_rows_are_counted_and_named(row: dict[str, Any], shown: str, tmp_path: Path) -> None:
    read = source(tmp_path, *PLAIN, row)
    (note,) = [note for note in renderable(read, [chat("plain"), chat(None)]).notes if "chat template" in note]
    assert note.startswith("rows already rendered with a chat template: 1 (the first: ")
    assert f"x.jsonl:4, {shown!r}"[:-1] in note
    assert "policy.template=plain reward.template=plain" in note
    assert renderable(read, [chat("plain")]).notes == read.notes


def test_bare_rows_have_no_note(tmp_path: Path) -> None:
    read = source(tmp_path, *PLAIN, {"prompt": QUOTES[0], "chosen": "a", "rejected": "b"})
    assert renderable(read, [chat(None)]).notes == read.notes


def test_rendered_conversations_without_a_prompt_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        json.dumps({"chosen": CHATML + "a<|im_end|>", "rejected": CHATML + "b<|im_end|>"})
    )
    with pytest.raises(UserError, match="'chosen' is a conversation in a chat template: store it as messages"):
        load_preferences(str(tmp_path / "x.jsonl"))
