"""Policies with memories of their own kind, attention windows that only the mask makes, and the tokens that end a reply."""

import copy
import functools

import pytest
import torch
from families import small_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError
from r2m_cli.models.body import body
from r2m_cli.models.context import context_length, why_no_longer
from r2m_cli.models.decoding import READS, NoCache, OwnCache, SharedPrefill, choose
from r2m_cli.models.generate import end_ids, sample, uniform_rows
from r2m_cli.models.lora import with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.windows import NARROW, narrowed

VOCABULARY, PAD, ENDS = 29, 0, {2, 3}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
}  # fmt: skip
LLAMA4 = {
    "attention_chunk_size": 6, "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
    "moe_layers": [], "intermediate_size_mlp": 24, "num_local_experts": 2,
}  # fmt: skip
POLICIES = {
    "lfm2": (OwnCache, {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next": (OwnCache, {"layer_types": ["linear_attention", "full_attention"]} | LINEAR),
    "mamba": (OwnCache, {"state_size": 4}),
    "rwkv": (NoCache, {"attention_hidden_size": 16}),
    "llama4_text": (SharedPrefill, LLAMA4),  # its chunks are shorter than the texts
    "llama": (SharedPrefill, {}),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [8], [4, 5, 9]]


@functools.cache
def policy(family: str) -> Policy:
    return Policy(small_model(family, VOCABULARY, **POLICIES[family][1]))


def log_probabilities(lm, ids: list[int]) -> torch.Tensor:
    """Of every next token after each of a text's, the text alone and without a cache. [S, V]."""
    with torch.no_grad():
        return lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(dim=1)


@pytest.mark.parametrize("family", POLICIES)
def test_few_texts_are_read_to_find_the_decoder(family):
    """Some architectures take seconds for one."""
    model, read = policy(family).lm, []
    hook = body(model).register_forward_hook(lambda *_: read.append(1))
    assert choose(model) is POLICIES[family][0]
    hook.remove()
    assert len(read) <= READS + 4
    if family == "llama":
        assert len(read) == 12  # each text alone, then four tokens without a cache, and four with one


@pytest.mark.parametrize("family", POLICIES)
def test_draws_are_those_of_whole_texts_without_a_cache(family):
    """And training's log-probabilities are those of the draws: the first ratio is 1."""
    model = policy(family)
    assert model.decoder is POLICIES[family][0]
    uniforms = uniform_rows(0, 0, 1, list(range(6)), 8)
    drawn = sample(model, PROMPTS, 2, uniforms, 1.0, ENDS, PAD)
    expected = []
    for row, draws in enumerate(uniforms.tolist()):
        ids, new = list(PROMPTS[row // 2]), []
        for u in draws:
            cumulative = log_probabilities(model.lm, ids)[-1].exp().cumsum(dim=0)
            new.append(int((cumulative < u * cumulative[-1]).sum()))
            ids.append(new[-1])
            if new[-1] in ENDS:
                break
        expected.append(new)
    assert drawn == expected
    assert len({len(new) for new in drawn}) > 1  # rows that end early, rows that go on

    rows = [torch.tensor(PROMPTS[row // 2] + new) for row, new in enumerate(drawn)]
    prompts = torch.tensor([len(p) for p in PROMPTS]).repeat_interleave(2)
    lengths = torch.tensor([len(new) for new in drawn])
    batch = Sequences(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), prompts, lengths, 2)
    with torch.no_grad():
        logp = model(batch, 1.0).logp
    for row, new in enumerate(drawn):
        p = len(PROMPTS[row // 2])
        alone = log_probabilities(model.lm, rows[row].tolist())[p - 1 : -1]
        torch.testing.assert_close(logp[row, : len(new)], alone.gather(1, torch.tensor(new)[:, None])[:, 0], atol=1e-4, rtol=1e-4)  # fmt: skip


def test_a_model_that_looks_ahead_is_refused():
    """Its logits agree with its own head, and those of a prefix change when more tokens follow."""
    model = Policy(small_model("bert-generation", VOCABULARY))
    with pytest.raises(
        UserError, match=r"policy\.path: a bert-generation model .* attends to later tokens; use another"
    ):
        _ = model.decoder


def test_lora_that_peft_refuses_is_one_line():
    with pytest.raises(UserError, match=r"policy\.lora_rank: .*Mamba.*policy\.lora_rank=0"):
        with_lora(copy.deepcopy(policy("mamba").lm), 2, "CAUSAL_LM")


# --- windows ----------------------------------------------------------------------------------------------------------

SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("window", [8, 32])
def test_a_window_that_only_the_mask_makes_is_found_out(window):
    """SmolLM3 hands its window to no attention function, Gemma 3 does: only Gemma's packed rows have one."""
    assert Policy(small_model("smollm3", VOCABULARY, sliding_window=window, **SLIDING)).unshared == "its states differ"
    assert not Policy(small_model("gemma3_text", VOCABULARY, sliding_window=window, **SLIDING)).unshared


def test_a_window_as_long_as_the_context_does_not_matter():
    assert not Policy(small_model("smollm3", VOCABULARY, sliding_window=64, **SLIDING)).unshared


@pytest.mark.parametrize("family", ["smollm3", "gemma3_text"])
@torch.no_grad()
def test_narrowed_is_what_a_narrow_configuration_gives(family):
    wide, narrow = (small_model(family, VOCABULARY, sliding_window=w, **SLIDING) for w in (32, NARROW))
    ids = torch.arange(3, 15)[None]
    before = wide(ids).logits
    with narrowed(wide):
        inside = wide(ids).logits
    torch.testing.assert_close(inside, narrow(ids).logits)
    assert not torch.allclose(inside, before, atol=1e-3)
    assert torch.equal(wide(ids).logits, before)


def test_longrope_reads_as_far_as_its_factors_hold():
    """Beyond, the factors of every text follow the longest text of its batch."""
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [4.0, 8.0], "rope_theta": 1e4}
    config = AutoConfig.for_model(
        "phi3", rope_parameters=rope, original_max_position_embeddings=16, max_position_embeddings=64,
        hidden_size=16, num_attention_heads=4, pad_token_id=0,
    )  # fmt: skip
    assert context_length(config) == 16
    assert "longrope" in why_no_longer(config)
    plain = AutoConfig.for_model("phi3", max_position_embeddings=64, pad_token_id=0)
    assert (context_length(plain), why_no_longer(plain)) == (64, "")
    assert context_length(AutoConfig.for_model("xlnet")) is None  # any length


# --- the end of a reply -----------------------------------------------------------------------------------------------

CHATML = "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
GLM = "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
WORDS = ["<pad>", "<eos>", "<end>", "<|user|>", "<|assistant|>", "hello", "yes"]


def tokenizer(template: str, eos: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<pad>", eos_token=eos)
    made.add_special_tokens({"additional_special_tokens": WORDS[1:5]})
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "eos", "ends", "second"),
    [
        (CHATML, "<end>", [1, 2], 1),  # Llama 3, Qwen: the tokenizer's EOS closes the turn, <eos> ends it too
        (GLM, "<eos>", [1, 3], 3),  # GLM: no token closes the turn, the next one's <|user|> ends it
        (CHATML, "<eos>", 3, 3),  # a single one, of neither tokenizer nor template
    ],
)
def test_a_reply_ends_where_generate_ends_it(template, eos, ends, second):
    chat_tokenizer = tokenizer(template, eos)
    lm = small_model("phi", len(WORDS))
    with torch.no_grad():
        lm.lm_head.bias[second] += 1000.0  # the model ends every reply with this token
    lm.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    chat = ChatFormat(chat_tokenizer, "policy", ends=end_ids(lm))
    prompt = chat.prompt_ids([{"role": "user", "content": "hello"}])
    (drawn,) = sample(Policy(lm), [prompt], 1, torch.ones(1, 5), 0.0, chat.eos_ids, chat.pad_id)
    own = lm.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=5, do_sample=False
    )
    assert drawn == own[0, len(prompt) :].tolist() == [second]
    assert chat.pad_id not in chat.eos_ids
    plain = ChatFormat(chat_tokenizer)  # what is learnt from closes as before
    asked = [{"role": "user", "content": "hello"}]
    assert chat.response_ids(asked, "yes") == plain.response_ids(asked, "yes")


def test_an_exported_policy_keeps_all_its_ends(tmp_path):
    lm = small_model("llama", VOCABULARY)
    lm.generation_config.eos_token_id = [2, 5]
    lm.save_pretrained(tmp_path)
    assert end_ids(type(lm).from_pretrained(tmp_path)) == {2, 5}
    lm.generation_config.eos_token_id = None
    assert end_ids(lm) == set()
