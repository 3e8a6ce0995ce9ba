"""The weights that a sampler gets: the checkpoint's names, every weight once, LoRA merged."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from r2m_cli.distributed.engine import SingleEngine
from r2m_cli.errors import UserError
from r2m_cli.models.handover import weights_of
from r2m_cli.models.lora import merged
from r2m_cli.models.policy import Policy


def language_model(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=tied, attention_bias=True, initializer_range=0.3,
        )
    )  # fmt: skip


def engine(lm) -> SingleEngine:
    return SingleEngine(Policy(lm), torch.device("cpu"), 0.0, 1.0)


def test_a_plain_model_gives_its_own_parameters():
    lm = language_model(tied=False)
    given = list(weights_of(engine(lm)))
    assert [name for name, _ in given] == [name for name, _ in lm.named_parameters()]
    for (_, weight), parameter in zip(given, lm.parameters()):
        assert torch.equal(weight, parameter)
        assert not weight.requires_grad


def test_a_tied_head_comes_once():
    names = [name for name, _ in weights_of(engine(language_model(tied=True)))]
    assert len(names) == len({*names})
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_adapters_are_merged_and_the_policy_keeps_them_apart(make_actors):
    actors = make_actors(lora_rank=3)
    with torch.no_grad():  # adapters that change something
        for name, parameter in actors.policy.module.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    before = copy.deepcopy(actors.policy.module.lm.state_dict())
    given = dict(weights_of(actors.policy))
    assert not [name for name in given if "lora" in name or "base_layer" in name]
    for name, value in actors.policy.module.lm.state_dict().items():
        assert torch.equal(value, before[name])
    expected = dict(merged(actors.lora).named_parameters())
    assert given.keys() == expected.keys()
    for name, weight in given.items():
        torch.testing.assert_close(weight, expected[name].detach())


def test_a_bias_beside_an_adapter_comes_along():
    lm = language_model(tied=True)
    names = {name for name, _ in lm.named_parameters()}
    get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    assert {name for name, _ in weights_of(engine(lm))} == names


def test_an_adapter_of_a_parameter_that_is_no_weight_is_refused():
    """As the experts of a mixture have them."""
    lm = language_model(tied=True)
    for layer in lm.model.layers:
        layer.mlp.experts = torch.nn.Parameter(torch.zeros(2, 4, 4))
    get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", r=2, target_parameters=["mlp.experts"]))
    policy = engine(language_model(tied=True))
    policy.module.lm = lm
    with pytest.raises(UserError, match="not merged for vLLM"):
        list(weights_of(policy))
