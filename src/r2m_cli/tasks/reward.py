"""`r2m reward` on one rank: fit a reward model on labelled pairs with the Bradley-Terry loss."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r2m_cli.build import local_device
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.data.preferences import Pair
from r2m_cli.data.source import Source, load_source, user_prompt
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import DTYPES, make_engine
from r2m_cli.errors import UserError
from r2m_cli.fit import fit
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.models.actors import pad
from r2m_cli.models.generate import sample, uniform_rows
from r2m_cli.models.loading import fresh_llama, load_causal_lm, load_reward_model, load_tokenizer, readable
from r2m_cli.models.lora import merged, with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.models.reward_model import RewardBackbone, find_head
from r2m_cli.schema import Config
from r2m_cli.seeds import mix

SEED, LABELS, PAIRS = 2, 3, 4  # streams of random numbers of this task
PAIRS_FILE = "pairs.jsonl"  # the gold world's labelled pairs, beside the model that was fitted on them


class Scorer(nn.Module):
    """Backbone and head as one trainable module: conversation -> reward."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.backbone = RewardBackbone(classifier)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens, mask [B, S] -> rewards [B]."""
        rte = self.backbone(tokens, mask)
        return find_head(self.backbone)(rte).squeeze(1)  # type: ignore[no-any-return]


def run(config: Config, run_dir: Path) -> None:
    """Fit and write a Hugging Face folder into `run_dir`, with accuracy before and after in `fit.json`.

    Raises:
        UserError: no labelled pairs, or nothing to start from.
    """
    source, c = load_source(config.data, 1), config.reward
    device = local_device(config)
    pairs, heldout = labelled_pairs(config, source, device)
    pairs, heldout = pairs[: c.fit.rows], heldout[: config.eval.pairs]

    if c.base is not None:
        tokenizer = load_tokenizer(c.base, "reward.base")
    elif source.world is not None:
        tokenizer = source.world.tokenizer()
    else:
        raise UserError("reward.path and reward.base are both null: name a model to start from (reward.base=FOLDER)")
    chat = ChatFormat(tokenizer, "reward model")
    if c.base is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.data.seed)
            dtype = DTYPES[config.engine.dtype]
            classifier = load_reward_model(c.base, "reward.base", dtype, chat.pad_id, new_head=True)
    else:
        classifier = fresh_llama(c, tokenizer, chat.pad_id, config.data.seed, scorer=True)
    limit = readable(classifier, tokenizer, c.max_tokens)

    def encode(part: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
        def ids(p: Pair, reply: str) -> list[int]:
            return chat.cut(chat.conversation_ids(p.prompt, reply), limit)

        return [(ids(p, p.chosen), ids(p, p.rejected)) for p in part]

    rows, tests = encode(pairs), encode(heldout)
    fitting = _fit_head if c.fit.parameters == "head" else _fit_backbone
    figures = fitting(config, classifier, rows, tests, chat.pad_id, device, run_dir)
    if comm.is_main():
        tokenizer.save_pretrained(run_dir)
        (run_dir / "fit.json").write_text(json.dumps(figures | {"pairs": len(rows), "heldout": len(tests)}, indent=2))
        if source.world is not None:
            labelled = [("train", p) for p in pairs] + [("heldout", p) for p in heldout]
            lines = [json.dumps({"split": split} | asdict(p)) + "\n" for split, p in labelled]
            (run_dir / PAIRS_FILE).write_text("".join(lines))
        print(
            f"r2m: reward model on {len(rows)} pairs: {figures['accuracy_before']:.1%} -> {figures['accuracy']:.1%} of "
            f"{len(tests)} held-out pairs right, loss {figures['loss']:.3f}",
            flush=True,
        )
    comm.barrier()


Rows = list[tuple[list[int], list[int]]]  # token ids of the chosen and of the rejected conversation


def _fit_backbone(
    config: Config, classifier: Any, rows: Rows, tests: Rows, pad_id: int, device: torch.device, target: Path
) -> dict[str, float]:
    """Full or LoRA training. Writes the fitted classifier into `target` and gives the figures."""
    c = config.reward.fit
    fitted = with_lora(classifier, c, "SEQ_CLS") if c.parameters == "lora" else classifier
    engine = make_engine(Scorer(classifier), config.engine, device, weight_decay=c.weight_decay, max_grad_norm=1.0)
    micro_rows = config.engine.micro_groups * config.ppo.group_size

    def margins(batch: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        # Winners and losers in one batch: scored apart, padding alone could tell them from each other.
        tokens, lengths = pad([ids for pair in zip(*batch) for ids in pair], pad_id)
        mask = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
        rewards = engine(tokens.to(device), mask.to(device))
        return rewards[: len(batch)] - rewards[len(batch) :]  # type: ignore[no-any-return]

    def accuracy() -> float:
        with torch.no_grad():
            parts = [margins(tests[i : i + micro_rows]) for i in range(0, len(tests), micro_rows)]
        return float((torch.cat(parts) > 0).float().mean())

    before = accuracy()
    loss = fit(
        engine, rows, lambda batch: bradley_terry(margins(batch), torch.zeros(())), c,  # type: ignore[arg-type]
        config.data.seed + SEED, "reward model", micro_rows,
    )  # fmt: skip
    figures = {"accuracy_before": before, "accuracy": accuracy(), "loss": loss}
    with engine.whole():
        if comm.is_main():
            merged(fitted).save_pretrained(target)
    return figures


def _fit_head(
    config: Config, classifier: Any, rows: Rows, tests: Rows, pad_id: int, device: torch.device, target: Path
) -> dict[str, float]:
    """Only the scoring head: the frozen backbone runs once per sequence, then the head is fitted on what it gave."""
    c, head = config.reward.fit, find_head(classifier)
    backbone = RewardBackbone(classifier).eval().requires_grad_(False).to(device)
    step = config.engine.micro_groups * config.ppo.group_size

    @torch.no_grad()
    def differences(part: Rows, what: str) -> Tensor:
        """RTE of the chosen minus RTE of the rejected; every rank embeds its share. -> [len(part), D_rm]."""
        order = sorted(range(len(part)), key=lambda i: max(map(len, part[i])))[comm.rank() :: comm.world_size()]
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), step):
            chunk = order[start : start + step]
            tokens, lengths = pad([part[i][side] for side in (0, 1) for i in chunk], pad_id)
            mask = torch.arange(tokens.shape[1])[None, :] < lengths[:, None]
            rte = backbone(tokens.to(device), mask.to(device)).float().cpu()
            found |= {i: rte[j] - rte[len(chunk) + j] for j, i in enumerate(chunk)}
            if comm.is_main() and start % (8 * step) == 0:
                print(f"r2m: embedding the {what} pairs: {start} of {len(order)}", flush=True)
        every = {i: row for rank in comm.gather(found) for i, row in rank.items()}
        return torch.stack([every[i] for i in range(len(part))])

    train, test = differences(rows, "training"), differences(tests, "held-out")
    linear = nn.Linear(head.in_features, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(head.weight.float())
    before = float((linear(test) > 0).float().mean())
    engine = make_engine(linear, config.engine, device, weight_decay=c.weight_decay, max_grad_norm=1.0, small=True)
    loss = fit(
        engine, list(train), lambda batch: bradley_terry(engine(torch.stack(list(batch)).to(device)).squeeze(1), torch.zeros(())),  # type: ignore[arg-type]
        c, config.data.seed + SEED, "scoring head", c.batch_size,
    )  # fmt: skip
    with engine.whole() as module:
        weight = module.weight.detach().cpu().clone()
    figures = {"accuracy_before": before, "accuracy": float((test @ weight.T > 0).float().mean()), "loss": loss}
    with torch.no_grad():
        head.weight.copy_(weight.to(head.weight))  # a bias, if any, is the same for both sides and stays
    if comm.is_main():
        classifier.save_pretrained(target)
    return figures


def labelled_pairs(config: Config, source: Source, device: torch.device) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs: the file's, or pairs of the policy's responses labelled by the gold world.

    Raises:
        UserError: the file has no labelled pairs.
    """
    if source.world is None:
        if not source.pairs or not source.heldout_pairs:
            raise UserError(
                f"data.path={config.data.path}: a reward model needs labelled pairs (chosen, rejected) in the training and "
                f"the held-out part; there are {len(source.pairs)} and {len(source.heldout_pairs)}"
            )
        return source.pairs, source.heldout_pairs
    assert config.policy.path is not None, "prepare() fills it"
    pairs = _label(config, source.world, device)
    return pairs[: config.data.pairs], pairs[config.data.pairs :]


def _label(config: Config, world: GoldWorld, device: torch.device) -> list[Pair]:
    """Two responses of the starting policy to each prompt, judged by the world's biased, noisy labellers."""
    assert config.policy.path is not None
    chat = ChatFormat(load_tokenizer(config.policy.path, "policy.path"), "policy")
    policy = Policy(load_causal_lm(config.policy.path, "policy.path", torch.float32)).to(device)
    rng = random.Random(mix(config.data.seed, LABELS))
    wanted = config.data.pairs + config.eval.pairs
    asked = world.prompts(wanted, mix(config.data.seed, PAIRS))
    pairs = []
    for start in range(0, wanted, 256):
        texts = asked[start : start + 256]
        indices = list(range(2 * start, 2 * (start + len(texts))))
        uniforms = uniform_rows(config.data.seed, PAIRS, 0, indices, config.rollout.max_new_tokens)
        prompt_ids = [chat.prompt_ids(user_prompt(text)) for text in texts]
        drawn = sample(policy, prompt_ids, 2, uniforms, config.rollout.temperature, chat.eos_ids, chat.pad_id)
        ends = [ids[-1] in chat.eos_ids for ids in drawn]
        replies = chat.tokenizer.batch_decode(drawn, skip_special_tokens=True)
        for i, text in enumerate(texts):
            a, b = replies[2 * i], replies[2 * i + 1]
            first = world.label(text, a, b, ends[2 * i], ends[2 * i + 1], rng)
            pairs.append(Pair(user_prompt(text), *((a, b) if first else (b, a))))
    return pairs


def saved_pairs(folder: Path, split: str) -> list[Pair]:
    """The labelled pairs that lie beside a fitted reward model of the gold world; none if there is no such file."""
    if not (folder / PAIRS_FILE).is_file():
        return []
    rows = [json.loads(line) for line in (folder / PAIRS_FILE).read_text().splitlines()]
    chosen = [row for row in rows if row["split"] == split]
    return [Pair(tuple(row["prompt"]), row["chosen"], row["rejected"]) for row in chosen]
