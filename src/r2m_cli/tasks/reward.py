"""`r2m reward` on one rank: fit a reward model on labelled pairs with the Bradley-Terry loss."""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2m_cli.build import local_device
from r2m_cli.data.labels import labelled_pairs, save_pairs
from r2m_cli.data.preferences import Pair
from r2m_cli.data.reading import Reader, told_apart
from r2m_cli.data.source import described, load_source, renderable, say_notes
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import DTYPES, make_engine
from r2m_cli.errors import UserError
from r2m_cli.evaluation.findings import accuracy_of, percent, units_of, unsure
from r2m_cli.fit import fit
from r2m_cli.inspection import equal_rewards
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.maths.statistics import Estimate
from r2m_cli.models.actors import pad
from r2m_cli.models.formats import format_of, reward_format
from r2m_cli.models.loading import fresh_llama, load_reward_model, readable
from r2m_cli.models.lora import merged, with_lora
from r2m_cli.models.reward_check import check_reward
from r2m_cli.models.reward_model import RewardBackbone, find_head, frozen_head
from r2m_cli.models.tokenizers import check_known
from r2m_cli.progress import say
from r2m_cli.schema import Config
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.embed import embedded
from r2m_cli.stages.packing import rows_per_forward
from r2m_cli.tasks.sft import fit_lm
from r2m_cli.text import number
from r2m_cli.unfinished import Unfinished, unfinished


class Scorer(nn.Module):
    """Backbone and head as one trainable module: conversation -> reward."""

    def __init__(self, classifier: nn.Module, boundary: int | None = None):
        super().__init__()
        self.backbone = RewardBackbone(classifier, boundary=boundary)

    def forward(self, tokens: Tensor, lengths: Tensor, group_size: int) -> Tensor:
        """As in `RewardBackbone` -> rewards [B]."""
        rte = self.backbone(tokens, lengths, group_size)
        return find_head(self.backbone)(rte).squeeze(1)  # type: ignore[no-any-return]


def run(config: Config, run_dir: Path) -> None:
    """Fit and write a Hugging Face folder into `run_dir`, with its figures in `fit.json`.

    These are the accuracy on held-out pairs before and after, each with both ends of its interval (null where there is
    none), the mean loss of the last epoch, and mean and (population)
    standard deviation of the fitted model's scores of the held-out responses, chosen and rejected alike, by which an
    ensemble puts its members on one scale.

    Raises:
        UserError: no labelled pairs, or nothing to start from.
    """
    with unfinished(config, run_dir) as kept:
        _fit(config, run_dir, kept)


def _fit(config: Config, run_dir: Path, kept: Unfinished) -> None:
    say(f"reading {described(config.data)}")
    source, c = load_source(config.data, 1), config.reward
    device = local_device(config)
    if c.base is not None:
        chat = reward_format(c, c.base, "reward.base")
    elif source.world is not None:
        chat = format_of(source.world.tokenizer(), "reward model", c.template, c.end_token)
    else:
        raise UserError("reward.path and reward.base are both null: name a model to start from (reward.base=FOLDER)")
    source = renderable(source, [chat])
    say_notes([*source.notes, *check_known(source, chat)])
    pairs, heldout = labelled_pairs(config, source, device)
    pairs, heldout = pairs[: c.fit.rows], heldout[: config.eval.pairs]
    tokenizer = chat.tokenizer
    seed = varied(config.data.seed, c.fit.seed)
    if c.base is not None:
        say(f"loading reward.base={c.base}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dtype = DTYPES[config.engine.dtype]
            classifier = load_reward_model(c.base, "reward.base", dtype, chat.pad_id, new_head=True)
    else:
        classifier = fresh_llama(c, tokenizer, chat.pad_id, seed, scorer=True)
        if c.pretrain_epochs:
            lm: Any = fresh_llama(c, tokenizer, chat.pad_id, seed, scorer=False)
            epochs = replace(config.policy.fit, epochs=c.pretrain_epochs)
            engine, _ = fit_lm(lm, chat, source.demonstrations, config, epochs, kept)
            with engine.whole():
                classifier.base_model.load_state_dict(lm.base_model.state_dict())
    reader = Reader(chat, *readable(classifier, tokenizer, c.max_tokens))
    notes = [note] if (note := chat.note()) is not None else []
    (pairs, more), (heldout, further) = (
        _told_apart(reader, part, what) for part, what in ((pairs, "training pairs"), (heldout, "held-out pairs"))
    )
    if comm.is_main():
        for note in (*notes, *more, *further):
            print(f"r2m: {note}", flush=True)
    rows, tests = (
        [(reader.ids(p.prompt, p.chosen), reader.ids(p.prompt, p.rejected)) for p in part] for part in (pairs, heldout)
    )
    fitting = _fit_head if c.fit.parameters == "head" else _fit_backbone
    before, after, loss = fitting(config, classifier, rows, tests, chat, device, run_dir, kept)
    units = units_of(pair.prompt for pair in heldout)
    accuracies = [
        accuracy_of(rewards[0] - rewards[1], units, config.eval.bootstrap, config.data.seed)
        for rewards in (before, after)
    ]
    if comm.is_main():
        for warning in equal_rewards(after[0] - after[1]):
            print(f"r2m: warning: {warning}", file=sys.stderr)
        chat.save(run_dir)
        figures = _figures(accuracies, after, loss) | {"pairs": len(rows), "heldout": len(tests)}
        (run_dir / "fit.json").write_text(json.dumps(figures, indent=2))
        if source.world is not None:
            save_pairs(run_dir, pairs, heldout)
    percents = f"{accuracies[0].value:.1%} -> {percent(accuracies[1])}"
    say(
        f"reward model on {len(rows)} pairs: {percents} of {len(tests)} held-out pairs right{unsure(accuracies[1])}, loss "
        f"{number(loss)}"
    )
    comm.barrier()


def _told_apart(reader: Reader, pairs: list[Pair], what: str) -> tuple[list[Pair], list[str]]:
    """The pairs that the reward model can tell apart, and notes for the person. Raises UserError if there are none."""
    kept, notes = told_apart([reader], pairs, what)
    if not kept:
        raise UserError(f"all {len(pairs)} {what} are equal once they are cut: they are longer than {reader.limit}")
    return [pairs[i] for i in kept], notes


def varied(seed: int, member: int) -> int:
    """A seed for every value of reward.fit.seed; with 0 it is `seed` itself."""
    return draw_seed(Stream.MEMBER, seed, member) if member else seed


def drawn(count: int, config: Config) -> list[int]:
    """The numbers of the training rows to fit on: each once with reward.fit.seed=0, else a bootstrap resample.

    A resample has as many rows, drawn with replacement, so that a member of an ensemble sees about 63% of the data.
    """
    if not config.reward.fit.seed:
        return list(range(count))
    rng = random.Random(draw_seed(Stream.BOOTSTRAP, config.data.seed, config.reward.fit.seed))
    return rng.choices(range(count), k=count)


Rows = list[tuple[list[int], list[int]]]  # token ids of the chosen and of the rejected conversation
# Rewards of the held-out pairs before and after the fit, each [2, pairs], chosen first; mean loss of the last epoch.
Fitted = tuple[Tensor, Tensor, float]


def _fit_backbone(
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
    engine = make_engine(scorer, config.engine, device, weight_decay=c.weight_decay, max_grad_norm=1.0)
    micro_rows = rows_per_forward(config.rollout.tokens_per_batch, [sum(map(len, pair)) for pair in rows])

    def rewards_of(batch: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        # Winners and losers in one batch: scored apart, padding alone could tell them from each other.
        tokens, lengths = pad([ids for pair in batch for ids in pair], chat.pad_id)
        return engine(tokens.to(device), lengths.to(device), 2).view(len(batch), 2).T  # type: ignore[no-any-return]

    def loss_of(batch: Any) -> Tensor:
        chosen, rejected = rewards_of(batch)
        return bradley_terry(chosen, rejected, c.margin, c.centring)

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


def _fit_head(
    config: Config,
    classifier: Any,
    rows: Rows,
    tests: Rows,
    chat: ChatFormat,
    device: torch.device,
    target: Path,
    kept: Unfinished,
) -> Fitted:
    """Only the scoring head: the frozen backbone runs once per sequence, then the head is fitted on what it gave."""
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
        # Differences cancel it: without centring its gradient is rounding, which Adam would blow up to full steps.
        linear.bias.requires_grad_(c.centring > 0)
    engine = make_engine(linear, config.engine, device, weight_decay=c.weight_decay, max_grad_norm=1.0, small=True)

    def loss_of(batch: Any) -> Tensor:
        rewards = engine(torch.stack(list(batch)).to(device)).squeeze(2)
        return bradley_terry(rewards[:, 0], rewards[:, 1], c.margin, c.centring)

    sampled = list(train[drawn(len(rows), config)])
    order, updates = varied(config.data.seed, c.seed), kept.part("updates", rows)
    loss = fit(engine, sampled, loss_of, c, Stream.REWARD_ORDER, order, "scoring head", c.batch_size, updates)
    with engine.whole() as module, torch.no_grad():
        for name, value in module.named_parameters():
            getattr(head, name).copy_(value)
    if comm.is_main():
        classifier.save_pretrained(target)
    return before, frozen_head(head).cpu()(test).squeeze(2).T, loss


def _figures(accuracies: Sequence[Estimate], after: Tensor, loss: float) -> dict[str, float | None]:
    """What fit.json says of the accuracy before and after the fit, and of the rewards after it."""
    figures: dict[str, float | None] = {}
    for name, accuracy in zip(("accuracy_before", "accuracy"), accuracies):
        low, high = accuracy.interval or (None, None)
        figures |= {name: accuracy.value, f"{name}_low": low, f"{name}_high": high}
    scores = after.float()
    spread = {"score_mean": float(scores.mean()), "score_std": float(scores.std(correction=0))}
    return figures | {"loss": loss} | spread
