"""Check that r2m's reward equals the classifier's own logit: once, when a reward model is loaded, on two short texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.shards import layer_by_layer
from r2m_cli.errors import UserError
from r2m_cli.models.reward_backbone import RewardBackbone, find_head, frozen_head, segments
from r2m_cli.models.sequences import pad

ASKED, REPLIES = ({"role": "user", "content": "hello"},), ("yes", "no, that is not what this is about")
# Allowed difference of rewards, relative to the size of the terms that the head sums. Padding changes the order of sums in
# every layer, and in half precision a router may send a token to another expert.
TOLERANCE = {torch.float32: (1e-3, 1e-3)}
HALF = (2e-2, 0.25)


@torch.no_grad()
def check_reward(backbone: RewardBackbone, chat: ChatFormat, named: str) -> None:
    """Compare r2m's reward of two texts of different lengths with the logit that the classifier itself returns for each.

    The classifier reads each text alone and without padding. r2m reads them the same way, and then both in one padded batch
    as in a run.

    Args:
        named: the configuration key and its value, for the message.

    Raises:
        UserError: the values differ by more than rounding.
    """
    device = next(backbone.parameters()).device
    rows = [chat.conversation_ids(ASKED, reply) for reply in REPLIES]

    def scored(part: list[list[int]]) -> Tensor:
        tokens, lengths = pad(part, chat.pad_id)
        rte: Tensor = backbone(tokens.to(device), lengths.to(device))
        return rte.float()

    try:
        with layer_by_layer(backbone):
            head = frozen_head(find_head(backbone.classifier)).to(device)
            own = torch.cat([_own_logits(backbone, row, chat.pad_id, device) for row in rows])
            alone, batch = torch.cat([scored([row]) for row in rows]), scored(rows)
    except Exception as error:  # an unknown architecture can raise anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{named}: r2m cannot read texts with it ({reason}); use another reward model") from error
    scale = (alone * head.weight).norm(dim=1).maximum(own.abs())
    exact, padded = TOLERANCE.get(find_head(backbone.classifier).weight.dtype, HALF)
    for rte, tolerance, why in (
        (alone, exact, "it averages the scores of tokens, or changes the score after its head"),
        (batch, padded, "it cannot be padded on the right"),
    ):
        given = head(rte).squeeze(1)
        wrong = ((given - own).abs() > tolerance * scale).nonzero()
        if len(wrong):
            i, kind = int(wrong[0]), type(backbone.classifier).__name__
            raise UserError(
                f"{named}: r2m would score a text {given[i]:.4g} where this {kind} gives {own[i]:.4g}: {why}; use a reward "
                "model whose head reads one state of the text, such as a Llama, Qwen, BERT or ModernBERT classifier"
            )


def _own_logits(backbone: RewardBackbone, row: list[int], pad_id: int, device: torch.device) -> Tensor:
    """The classifier's own logit for one text. [1]."""
    classifier: Any = backbone.classifier
    ids = torch.tensor([row], device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if backbone.boundary is not None:
        inputs["token_type_ids"] = segments(ids, torch.tensor([len(row)], device=device), backbone.boundary)
    with _pad_token(classifier.config.get_text_config(), None if pad_id in row else pad_id):
        logits: Tensor = classifier(**inputs).logits
    return logits.flatten().float()


@contextmanager
def _pad_token(config: Any, pad_id: int | None) -> Iterator[None]:
    """Set the pad token for a moment: the classifier scores the last token that is not padding, without a pad token the last."""
    before, config.pad_token_id = config.pad_token_id, pad_id
    try:
        yield
    finally:
        config.pad_token_id = before
