"""The reward model's parts: the backbone that gives the reward token embedding, and the head that learns."""

import copy
import functools
import math

import pytest
import torch
from packs import of_rows
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from r2m_cli.data.truncation import MAX_TOKENS, POSITIONS, TOKENIZER
from r2m_cli.errors import UserError
from r2m_cli.maths.masking import length_mask
from r2m_cli.models.actors import pad
from r2m_cli.models.cross_attention import CrossAttention
from r2m_cli.models.loading import token_limit
from r2m_cli.models.reward_model import FeedbackHead, RewardBackbone, find_head, frozen_head
from r2m_cli.models.states import States

VOCABULARY = 29
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_labels": 1, "max_position_embeddings": 24,
}  # fmt: skip
DECODER = COMMON | {"num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
ENCODER = COMMON | {"pad_token_id": 1}
CLASSIFIERS = {
    "llama": DECODER,
    "qwen2": DECODER,
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "num_labels": 1, "pad_token_id": 0,
                 "bos_token_id": 1, "eos_token_id": 1},
    "bert": ENCODER,
    "roberta": ENCODER,
    "deberta-v2": ENCODER,
}  # fmt: skip
LENGTHS = (4, 9, 6, 1)


@functools.cache
def classifier(family: str) -> nn.Module:
    return build(family, CLASSIFIERS[family])


def build(family: str, config: dict) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


def batch(pad_id: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Right-padded tokens, none of them an id below 6."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(6, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = length_mask(torch.tensor(lengths), max(lengths))
    return torch.where(mask, tokens, pad_id), mask


def last_states(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The last token's last-layer state of every sequence alone, unpadded."""
    rows = [model.base_model(input_ids=t[m][None]).last_hidden_state[0, -1] for t, m in zip(tokens, mask)]
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_a_decoders_rte_is_the_last_tokens_state_of_the_sequence_alone(family):
    model = classifier(family)
    tokens, mask = batch(pad_id=0)
    got = RewardBackbone(model)(tokens, mask.sum(dim=1))
    torch.testing.assert_close(got, last_states(model, tokens, mask), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(find_head(model)(got), model(input_ids=tokens, attention_mask=mask.long()).logits)


@torch.no_grad()
def test_padding_that_is_the_end_token_is_not_mistaken_for_it():
    """Conversations that close with EOS, pad id = EOS id: a pool that looks for pad ids would lose the closing EOS."""
    eos = 1
    model = build("llama", DECODER | {"pad_token_id": eos})
    tokens, mask = batch(pad_id=eos)
    lengths = mask.sum(dim=1)
    tokens[torch.arange(len(tokens)), lengths - 1] = eos
    got = RewardBackbone(model)(tokens, mask.sum(dim=1))
    torch.testing.assert_close(got, last_states(model, tokens, mask), atol=1e-5, rtol=1e-5)
    # transformers' own pool picks by the id: it reads another token here, which is why the backbone does not use it
    own = model(input_ids=tokens, attention_mask=mask.long()).logits
    assert not torch.allclose(find_head(model)(got), own, atol=1e-3)


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_phi_of_the_rte_is_the_models_own_score(family):
    """Encoders (a pooled state, with a dense layer before the head) need no code of their own."""
    model = classifier(family)
    tokens, mask = batch(model.config.pad_token_id)
    rte = RewardBackbone(model)(tokens, mask.sum(dim=1))
    assert rte.shape == (len(LENGTHS), 16)
    mine = find_head(model)(rte)
    torch.testing.assert_close(mine, model(input_ids=tokens, attention_mask=mask.long()).logits, atol=1e-6, rtol=1e-6)
    alone = torch.cat([model(input_ids=t[m][None]).logits for t, m in zip(tokens, mask)])
    torch.testing.assert_close(mine, alone, atol=1e-5, rtol=1e-5)
    assert alone.std() > 1e-4


@torch.no_grad()
def test_the_width_of_the_padding_changes_nothing():
    backbone = RewardBackbone(classifier("llama"))
    tokens, mask = batch(pad_id=0)
    wider = nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(backbone(wider, mask.sum(dim=1)), backbone(tokens, mask.sum(dim=1)), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_backbone_keeps_nothing_between_calls():
    backbone = RewardBackbone(classifier("llama"))
    tokens, mask = batch(pad_id=0)
    lengths = mask.sum(dim=1)
    whole = backbone(tokens, lengths)
    backbone(tokens[:1], lengths[:1])
    assert backbone._captured is None
    assert torch.equal(backbone(tokens, lengths), whole)


def tokenizer(longest: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that says how many tokens its model reads, or, like many, nothing."""
    limit = {} if longest is None else {"model_max_length": longest}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")), **limit)


@pytest.mark.parametrize(
    ("family", "own_limit", "asked", "expected", "by"),
    [
        ("llama", None, 1000, 24, POSITIONS),
        ("llama", None, 10, 10, MAX_TOKENS),
        ("llama", None, 24, 24, POSITIONS),  # raising reward.max_tokens would not help
        ("bert", 20, 1000, 20, TOKENIZER),
        ("roberta", 30, 1000, 22, POSITIONS),  # the first two of its 24 positions are reserved
    ],
)
@torch.no_grad()
def test_as_many_tokens_as_are_readable_can_be_read(family, own_limit, asked, expected, by):
    model = classifier(family)
    assert token_limit(model, tokenizer(own_limit), asked) == (expected, by)
    tokens, mask = batch(model.config.pad_token_id, (expected,))
    assert RewardBackbone(model)(tokens, mask.sum(dim=1)).isfinite().all()


@torch.no_grad()
def test_a_pair_of_texts_is_read_with_their_numbers():
    """[CLS] a [SEP] b [SEP] through transformers with token_type_ids, one row at a time; the second lost its beginning."""
    model, sep = copy.deepcopy(classifier("bert")), 3
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    rows = [[2, 5, 6, 7, sep, 8, 9, sep], [2, 6, sep, 8, 4, sep], [2, sep, 9, sep]]
    types = [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]]
    tokens, lengths = pad(rows, 0)
    found = find_head(model)(RewardBackbone(model, boundary=sep)(tokens, lengths)).squeeze(1)
    alone = [model(torch.tensor([row]), token_type_ids=torch.tensor([kind])).logits for row, kind in zip(rows, types)]
    assert found.tolist() == pytest.approx([score.item() for score in alone], abs=1e-5)
    unnumbered = find_head(model)(RewardBackbone(copy.deepcopy(model))(tokens, lengths)).squeeze(1)
    assert (found - unnumbered).abs().max() > 1e-3, "the numbers matter"
    deberta = build("deberta-v2", ENCODER | {"type_vocab_size": 0})
    assert RewardBackbone(deberta, boundary=sep).boundary is None, "it has no use for them"


def test_find_head_takes_the_last_linear_layer_of_one_output():
    model = classifier("llama")
    assert find_head(model) is model.score
    assert find_head(classifier("bert")) is classifier("bert").classifier
    assert find_head(classifier("roberta")) is classifier("roberta").classifier.out_proj
    assert find_head(nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4), nn.Linear(4, 1))).in_features == 4


@pytest.mark.parametrize("labels", [2, 5])
def test_a_classifier_with_more_than_one_output_is_refused(labels):
    model = build("bert", ENCODER | {"num_labels": labels})
    with pytest.raises(UserError, match=r"reward\.path: BertForSequenceClassification has no scoring head"):
        RewardBackbone(model)


def test_a_language_model_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **DECODER))
    with pytest.raises(UserError, match="num_labels=1"):
        find_head(model)


# --- what learns ------------------------------------------------------------------------------------------------------

RM, POLICY, INNER, B, S = 6, 10, 5, 3, 7


def head(bias: bool = True) -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(RM, 1, bias=bias)


def feedback_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    rte, hidden = torch.randn(B, RM, generator=generator), torch.randn(B, S, POLICY, generator=generator)
    return rte, hidden, length_mask(torch.tensor([7, 2, 4]), S)


def read() -> tuple[Tensor, States]:
    rte, hidden, mask = feedback_inputs()
    return rte, of_rows(hidden, mask)


def test_a_pooled_state_stands_beside_no_token():
    model = RewardBackbone(copy.deepcopy(classifier("bert")), features="both")
    with pytest.raises(UserError, match=r"feedback\.features=both.*feedback\.features=states"):
        model(batch(1)[0], torch.tensor(LENGTHS))


@pytest.mark.parametrize("bias", [True, False])
def test_weight_one_is_the_frozen_reward_model(bias):
    """At w = 1 the policy's states have no say, whatever they are."""
    original = head(bias)
    rte, hidden, mask = feedback_inputs()
    module = FeedbackHead(original, POLICY, INNER, seed=0)
    assert torch.equal(module(rte, of_rows(hidden, mask), 1.0).reward, original(rte).squeeze(1))
    assert torch.equal(module(rte, of_rows(100 * hidden, mask), 1.0).reward, frozen_head(original)(rte).squeeze(1))


@pytest.mark.parametrize("weight", [0.0, 0.6, 0.93])
def test_the_reward_is_equation_four(weight):
    original = head()
    rte, hidden, mask = feedback_inputs()
    module = FeedbackHead(original, POLICY, INNER, seed=0)
    got = module(rte, of_rows(hidden, mask), weight)
    for b in range(B):
        states = hidden[b, mask[b]]
        q, k, v = rte[b] @ module.adapter.w_q, states @ module.adapter.w_k, states @ module.adapter.w_v
        a = (k @ q / math.sqrt(INNER)).softmax(dim=0)
        feedback = a @ v @ module.adapter.w_o
        reward = original((1 - weight) * feedback + weight * rte[b])
        assert got.reward[b].item() == pytest.approx(reward.item(), abs=1e-5)
        assert got.attention_entropy[b].item() == pytest.approx(-(a * a.log()).sum().item(), abs=1e-5)
        scale = feedback.square().mean().sqrt() / rte[b].square().mean().sqrt()
        assert got.adapter_scale[b].item() == pytest.approx(scale.item(), abs=1e-5)


def test_the_attention_entropy_is_at_most_the_logarithm_of_the_length():
    got = FeedbackHead(head(), POLICY, INNER, seed=0)(*read(), 0.6)
    for entropy, length in zip(got.attention_entropy.tolist(), (7, 2, 4)):
        assert 0 <= entropy <= math.log(length) + 1e-6


def test_all_that_learns_gets_a_gradient_and_nothing_that_is_frozen_does():
    original = head()
    rte, hidden, mask = feedback_inputs()
    rte.requires_grad_(True)
    module = FeedbackHead(original, POLICY, INNER, seed=0)
    score = module(rte.detach(), of_rows(hidden, mask), 0.6)
    score.reward.square().sum().backward()
    names = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert names == {"phi.weight", "phi.bias", "adapter.w_q", "adapter.w_k", "adapter.w_v", "adapter.w_o"}
    assert rte.grad is None
    assert hidden.grad is None
    assert original.weight.grad is None
    assert not score.attention_entropy.requires_grad
    assert not score.adapter_scale.requires_grad


def test_at_weight_one_the_adapter_gets_no_gradient():
    module = FeedbackHead(head(), POLICY, INNER, seed=0)
    module(*read(), 1.0).reward.sum().backward()
    assert all((p.grad == 0).all() for p in module.adapter.parameters())
    assert (module.phi.weight.grad != 0).any()


def test_low_precision_inputs_are_read_in_single_precision():
    """A bf16 policy and reward model: adapter and head compute in fp32 all the same."""
    module = FeedbackHead(head().bfloat16(), POLICY, INNER, seed=0)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    rte, hidden, mask = feedback_inputs()
    got = module(rte.bfloat16(), of_rows(hidden.bfloat16(), mask), 0.6)
    expected = module(rte.bfloat16().float(), of_rows(hidden.bfloat16().float(), mask), 0.6)
    assert got.reward.dtype == torch.float32
    assert torch.equal(got.reward, expected.reward)


def test_the_adapters_weights_come_from_the_seed():
    module = FeedbackHead(head(), POLICY, INNER, seed=8)
    for mine, expected in zip(module.adapter.parameters(), CrossAttention(RM, POLICY, INNER, 8).parameters()):
        assert torch.equal(mine, expected)


def test_a_frozen_head_is_a_copy_without_hooks_and_without_gradients():
    model = build("llama", DECODER)
    RewardBackbone(model)
    original = find_head(model)
    assert original._forward_pre_hooks
    copy = frozen_head(original)
    assert not copy._forward_pre_hooks
    assert not copy._forward_hooks
    assert not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        rte = torch.randn(3, 16)
        assert torch.equal(copy(rte), original(rte))
        before = copy.weight.clone()
        original.weight.add_(1)
    assert torch.equal(copy.weight, before)


def test_training_the_feedback_head_does_not_move_the_head_it_was_made_from():
    original = head()
    before = original.weight.clone()
    module = FeedbackHead(original, POLICY, INNER, seed=0)
    frozen = frozen_head(original)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(*read(), 0.6).reward.sum().backward()
    optimizer.step()
    assert not torch.equal(module.phi.weight, before)
    assert torch.equal(original.weight, before)
    assert torch.equal(frozen.weight, before)


def test_a_feedback_head_leaves_the_global_random_numbers_alone():
    """A run with feedback and one without it see the same random numbers everywhere else."""
    original = head()
    before = torch.get_rng_state()
    FeedbackHead(original, POLICY, INNER, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
