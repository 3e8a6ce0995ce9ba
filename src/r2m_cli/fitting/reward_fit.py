"""Fits a reward model: all parameters, LoRA adapters, or only the scoring head on embeddings that are computed once."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2m_cli.config.schema import Config
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import make_engine
from r2m_cli.fitting.embed import embedded
from r2m_cli.fitting.fit import fit
from r2m_cli.fitting.unfinished import Unfinished
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.models.classifier_check import check_reward
from r2m_cli.models.lora import merged, with_lora
from r2m_cli.models.reward_backbone import RewardBackbone, find_head, frozen_head
from r2m_cli.models.sequences import pad
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.packing import rows_per_forward

WEIGHT_DECAY = 0.01  # of AdamW
Rows = list[tuple[list[int], list[int]]]  # token ids of the chosen and of the rejected conversation
# Rewards of the held-out pairs before and after the fit, each [2, pairs], chosen first; mean loss of the last epoch.
Fitted = tuple[Tensor, Tensor, float]


class Scorer(nn.Module):
    """Backbone and head as one trainable module: conversation -> reward."""

    def __init__(self, classifier: nn.Module, boundary: int | None = None):
        super().__init__()
        self.backbone = RewardBackbone(classifier, boundary=boundary)

    def forward(self, tokens: Tensor, lengths: Tensor, group_size: int) -> Tensor:
        """As in `RewardBackbone` -> rewards [B]."""
        rte = self.backbone(tokens, lengths, group_size)
        return find_head(self.backbone)(rte).squeeze(1)  # type: ignore[no-any-return]


def varied(seed: int, member: int) -> int:
    """A separate seed for every value of reward.fit.seed; for 0 it is `seed` itself."""
    return draw_seed(Stream.MEMBER, seed, member) if member else seed


def drawn(count: int, config: Config) -> list[int]:
    """Indices of the training rows to fit on: each row once if reward.fit.seed=0, otherwise a bootstrap resample.

    A resample has the same number of rows, drawn with replacement, so a member of an ensemble sees about 63% of the data.
    """
    if not config.reward.fit.seed:
        return list(range(count))
    rng = random.Random(draw_seed(Stream.BOOTSTRAP, config.data.seed, config.reward.fit.seed))
    return rng.choices(range(count), k=count)


def fit_backbone(
    config: Config,
    classifier: Any,
    rows: Rows,
    tests: Rows,
    chat: ChatFormat,
    device: torch.device,
    target: Path,
    kept: Unfinished,
) -> Fitted:
    """Full or LoRA training. Writes the fitted classifier into `target`."""
    c, seed = config.reward.fit, config.data.seed
    fitted = classifier
    if c.parameters == "lora":
        fitted = with_lora(classifier, c.lora_rank, "SEQ_CLS", varied(seed, c.seed))
    scorer = Scorer(classifier, chat.boundary)
    check_reward(scorer.backbone, chat, f"reward.base={config.reward.base}")
    engine = make_engine(scorer, config.engine, device, weight_decay=WEIGHT_DECAY, max_grad_norm=1.0)
    micro_rows = rows_per_forward(config.rollout.tokens_per_batch, [sum(map(len, pair)) for pair in rows])

    def rewards_of(batch: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        # Winners and losers go into one batch: in separate batches, the padding alone could distinguish them.
        tokens, lengths = pad([ids for pair in batch for ids in pair], chat.pad_id)
        return engine(tokens.to(device), lengths.to(device), 2).view(len(batch), 2).T  # type: ignore[no-any-return]

    def loss_of(batch: Any) -> Tensor:
        chosen, rejected = rewards_of(batch)
        return bradley_terry(chosen, rejected, c.centring)

    @torch.no_grad()
    def tested() -> Tensor:
        parts = [rewards_of(tests[i : i + micro_rows]) for i in range(0, len(tests), micro_rows)]
        return torch.cat(parts, dim=1)

    before = tested()
    sampled = [rows[i] for i in drawn(len(rows), config)]
    order, part = varied(seed, c.seed), kept.part("updates", sampled)
    loss = fit(engine, sampled, loss_of, c, Stream.REWARD_ORDER, order, "reward model", micro_rows, part)
    after = tested()
    with engine.whole():
        if comm.is_main():
            merged(fitted).save_pretrained(target)
    return before, after, loss


def fit_head(
    config: Config,
    classifier: Any,
    rows: Rows,
    tests: Rows,
    chat: ChatFormat,
    device: torch.device,
    target: Path,
    kept: Unfinished,
) -> Fitted:
    """Only the scoring head: the frozen backbone runs once per sequence, then the head is fitted on its embeddings."""
    c, head = config.reward.fit, find_head(classifier)
    backbone = RewardBackbone(classifier, boundary=chat.boundary).eval().requires_grad_(False)
    check_reward(backbone, chat, f"reward.base={config.reward.base}")
    backbone = backbone.to(device)
    step = rows_per_forward(config.rollout.tokens_per_batch, [sum(map(len, pair)) for pair in rows])

    train, test = (
        embedded(backbone, part, chat.pad_id, step, kept.part(f"{name}_embedded", part), f"embedding the {name} pairs")
        for name, part in (("training", rows), ("held-out", tests))
    )
    linear = frozen_head(head).cpu()
    before = linear(test).squeeze(2).T
    linear.weight.requires_grad_(True)
    if linear.bias is not None:
        # The bias cancels in differences: without centring its gradient is only rounding error, which Adam would scale up.
        linear.bias.requires_grad_(c.centring > 0)
    engine = make_engine(linear, config.engine, device, weight_decay=WEIGHT_DECAY, max_grad_norm=1.0, small=True)

    def loss_of(batch: Any) -> Tensor:
        rewards = engine(torch.stack(list(batch)).to(device)).squeeze(2)
        return bradley_terry(rewards[:, 0], rewards[:, 1], c.centring)

    sampled = list(train[drawn(len(rows), config)])
    order, updates = varied(config.data.seed, c.seed), kept.part("updates", rows)
    loss = fit(engine, sampled, loss_of, c, Stream.REWARD_ORDER, order, "scoring head", c.batch_size, updates)
    with engine.whole() as module, torch.no_grad():
        for name, value in module.named_parameters():
            getattr(head, name).copy_(value)
    if comm.is_main():
        classifier.save_pretrained(target)
    return before, frozen_head(head).cpu()(test).squeeze(2).T, loss
