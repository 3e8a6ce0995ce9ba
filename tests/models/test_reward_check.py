"""At load r2m's reward is compared with the classifier's own: equal, or refused."""

import pytest
import torch
from families import small_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from r2m_cli.data.template import ChatFormat
from r2m_cli.errors import UserError
from r2m_cli.models.classifier_check import ASKED, REPLIES, check_reward
from r2m_cli.models.reward_backbone import RewardBackbone, find_head

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *["hello", "yes", "no", ",", "that", "is", "not", "what", "this", "about"]]
ENCODER = {"pad_token_id": 0}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    return ChatFormat(tokenizer, "reward model")


def classifier(family: str, **more):
    return small_model(family, len(WORDS), scorer=True, **more)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gemma3_text", {}),
        ("bert", ENCODER),
        ("modernbert", ENCODER | {"classifier_pooling": "mean"}),
        ("eurobert", ENCODER | {"classifier_pooling": "mean"}),
        ("eurobert", ENCODER | {"classifier_pooling": "bos"}),
    ],
)
@torch.no_grad()
def test_rewards_that_are_the_models_own_are_taken(chat, family, more):
    model = classifier(family, **more)
    before = model.config.pad_token_id
    backbone = RewardBackbone(model)
    check_reward(backbone, chat, "reward.path=X")
    assert model.config.pad_token_id == before
    for reply in REPLIES:
        ids = torch.tensor([chat.conversation_ids(ASKED, reply)])
        mine = find_head(model)(backbone(ids, torch.tensor([ids.shape[1]])))
        torch.testing.assert_close(mine, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_scores_of_tokens_that_are_averaged_are_refused(chat):
    backbone = RewardBackbone(classifier("eurobert", classifier_pooling="late", **ENCODER))
    with pytest.raises(
        UserError, match=r"reward\.path=X: .* EuroBert.* averages the scores of tokens.* use a reward model"
    ):
        check_reward(backbone, chat, "reward.path=X")


def test_something_behind_the_head_is_refused(chat):
    model = classifier("llama")
    inner = model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits.sigmoid()
        return output

    model.forward = forward
    with pytest.raises(UserError, match=r"reward\.base=Y: .*changes the score after its head"):
        check_reward(RewardBackbone(model), chat, "reward.base=Y")


def test_a_model_that_takes_padding_on_the_left_alone_is_refused(chat):
    """XLNet sums a text up in the last position, padding or not."""
    config = AutoConfig.for_model(
        "xlnet", vocab_size=len(WORDS), d_model=16, n_layer=2, n_head=4, d_inner=24, num_labels=1
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    with pytest.raises(UserError, match=r"XLNet.*cannot be padded on the right"):
        check_reward(RewardBackbone(model), chat, "reward.path=X")


def test_a_model_that_cannot_read_texts_says_why(chat):
    model = classifier("llama")
    model.model.embed_tokens = nn.Embedding(3, 16)
    with pytest.raises(UserError, match=r"reward\.path=X: r2m cannot read texts with it \(index out of range"):
        check_reward(RewardBackbone(model), chat, "reward.path=X")


def test_padding_that_closes_texts_is_no_fault_of_the_model():
    """Pad token = EOS, as GPT-2's tokenizer has it: alone, the classifier would look past the closing token."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS[2:])}, unk_token="<eos>"))
    backend.pre_tokenizer = Whitespace()
    eos = {"pad_token": "<eos>", "eos_token": "<eos>", "unk_token": "<eos>"}
    chat = ChatFormat(PreTrainedTokenizerFast(tokenizer_object=backend, **eos))
    assert chat.conversation_ids(ASKED, "yes")[-1] == chat.pad_id
    check_reward(RewardBackbone(classifier("gpt2")), chat, "reward.path=X")
