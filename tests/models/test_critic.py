"""The critic of PPO against plain transformers: one unpadded sequence at a time."""

import copy
import functools

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from r2m_cli.models.critic import Critic
from r2m_cli.models.sequences import Sequences

VOCABULARY = 29
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1,
    "eos_token_id": 1,
}  # fmt: skip
FAMILIES = {"llama": COMMON, "qwen2": COMMON, "gpt2": GPT2, "gpt_neox": COMMON}
PROMPTS, RESPONSES = (3, 7, 1, 5), (6, 2, 9, 1)


@functools.cache
def language_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


def critic(family: str = "llama", checkpointing: bool = False) -> Critic:
    """A critic whose head has learnt something, of the same weights every time."""
    made = Critic(copy.deepcopy(language_model(family)), checkpointing)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        made.value_head.weight.normal_(generator=generator)
        made.value_head.bias.fill_(0.3)
    return made


@functools.cache
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, VOCABULARY, (p + r,), generator=generator) for p, r in zip(PROMPTS, RESPONSES)]


def values(made: Critic, padding: int = 0, further: int = 0) -> Tensor:
    tokens = torch.nn.utils.rnn.pad_sequence(sequences(), batch_first=True, padding_value=padding)
    tokens = torch.nn.functional.pad(tokens, (0, further), value=padding)
    return made(Sequences(tokens, torch.tensor(PROMPTS), torch.tensor(RESPONSES), group_size=1))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_values_are_read_from_the_state_before_each_response_token(family):
    made = critic(family)
    got = values(made)
    assert got.shape == (4, max(RESPONSES))
    assert got.dtype == torch.float32
    for row, ids, p, r in zip(got, sequences(), PROMPTS, RESPONSES):
        states = language_model(family)(ids[None], output_hidden_states=True).hidden_states[-1][0]
        expected = states @ made.value_head.weight[0] + made.value_head.bias
        torch.testing.assert_close(row[:r], expected[p - 1 : p + r - 1], atol=1e-5, rtol=1e-5)
        assert (row[r:] == 0).all()
    assert got.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_before_it_has_learnt_it_predicts_nothing(family):
    got = values(Critic(copy.deepcopy(language_model(family))))
    assert (got == 0).all()
    assert got.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_is_inert(family):
    """Neither what stands there nor how much of it."""
    made = critic(family)
    expected = values(made)
    for changed in (values(made, padding=7), values(made, further=5), values(made, padding=1, further=3)):
        torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_value_does_not_know_the_tokens_that_follow():
    made = critic()
    tokens = torch.stack([sequences()[0], sequences()[0]])
    tokens[1, PROMPTS[0] + 2 :] = 5  # from the third response token on
    first, second = made(
        Sequences(tokens, torch.tensor([PROMPTS[0]] * 2), torch.tensor([RESPONSES[0]] * 2), group_size=2)
    )
    torch.testing.assert_close(first[:3], second[:3], atol=1e-6, rtol=1e-6)
    assert (first[3:] - second[3:]).abs().min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_memory_and_no_number(family):
    """GPT-2's dropout must stay asleep, or the first values are not the old ones."""
    results = []
    for checkpointing in (False, True):
        made = critic(family, checkpointing)
        got = values(made)
        got.square().sum().backward()
        results.append([got.detach(), *(p.grad for p in made.parameters())])
        assert not any(module.training for module in made.body.modules())
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-5, rtol=1e-5)


def test_checkpointed_layers_run_again_in_the_backward():
    """Otherwise checkpointing saves nothing."""
    made = critic(checkpointing=True)
    calls = []
    for layer in made.body.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    got = values(made)
    assert len(calls) == 2
    got.sum().backward()
    assert len(calls) == 4


def test_body_and_head_learn_and_the_lm_head_is_left_behind():
    made = critic()
    values(made).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())
    assert not [name for name, _ in made.named_parameters() if "lm_head" in name]


def test_a_critic_in_low_precision_gives_values_in_single_precision():
    made = Critic(copy.deepcopy(language_model("llama")).bfloat16())
    assert made.value_head.weight.dtype == torch.bfloat16
    assert values(made).dtype == torch.float32
