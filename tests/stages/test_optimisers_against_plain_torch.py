"""Whole steps of the loop with `feedback=none` against every optimiser written out with transformers and torch alone."""

import copy
from dataclasses import replace

import plain
import pytest
import torch

from r2m_cli.config.schema import (
    Config,
    CriticConfig,
    EvalConfig,
    FeedbackConfig,
    PpoConfig,
    RolloutConfig,
    TrainConfig,
)  # fmt: skip

TEMPERATURE, K, STEPS = 0.8, 3, 2
SHARED = PpoConfig(
    group_size=K, prompts_per_step=4, epochs=2, beta=0.1, lr=3e-3, lr_schedule="linear",
    critic=CriticConfig(lr=1e-2, clip=0.05, gae_lambda=0.9),
)  # fmt: skip
# As the configuration's presets have them, with other options here and there.
OPTIMISERS = {
    "rloo": replace(SHARED, algorithm="rloo", ratio="sequence", eos_penalty=0.5),
    "grpo": replace(SHARED, algorithm="grpo", ratio="token", normalise="none", mini_batches=2, whiten_rewards=True),
    "remax": replace(SHARED, algorithm="remax", ratio="sequence", reward_clip=1.0, eos_penalty=0.3, clip_high=0.3),
    "reinforce_pp": replace(
        SHARED, algorithm="reinforce_pp", ratio="token", kl_in="reward", kl_estimator="k1", normalise="whiten"
    ),
    "ppo": replace(
        SHARED, algorithm="ppo", ratio="token", kl_in="reward", kl_estimator="k1", normalise="whiten", mini_batches=2,
        epochs=3,
    ),
}  # fmt: skip


def run(actors, prompts, ppo, folder):
    """The loop's steps. -> observer."""
    config = Config(
        seed=3,
        train=TrainConfig(steps=STEPS),
        feedback=FeedbackConfig(kind="none"),
        ppo=ppo,
        rollout=RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8, tokens_per_batch=90),
        eval=EvalConfig(every=0),
    )
    return plain.run_loop(actors, prompts, config, folder)


class PlainRun:
    """The same steps for the tokens that a run has sampled."""

    def __init__(self, actors, ppo):
        self.c, self.chat = ppo, actors.format
        self.policy = copy.deepcopy(actors.policy.module.lm)
        self.reference = copy.deepcopy(actors.reference.lm)
        self.classifier = copy.deepcopy(actors.reward.backbone.classifier)
        self.optimisers = [torch.optim.AdamW(self.policy.parameters(), weight_decay=0.0)]
        if actors.critic is not None:
            self.body = copy.deepcopy(actors.critic.module.body)
            self.head = torch.nn.Linear(16, 1)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)
            self.critic = [*self.body.parameters(), *self.head.parameters()]
            self.optimisers.append(torch.optim.AdamW(self.critic, weight_decay=0.0))

    @torch.no_grad()
    def reward(self, prompt, ids):
        text = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return float(self.classifier.score(plain.embedding(self.classifier, self.chat, prompt, text)))

    def values(self, tokens, p):
        """V before each response token."""
        states = self.body(tokens[None]).last_hidden_state[0]
        return self.head(states[p - 1 : len(tokens) - 1]).squeeze(1)

    @torch.no_grad()
    def advantages(self, batch, rows, old, ref):
        ends = self.chat.eos_ids
        rewards = [self.reward(prompt, tokens[p:]) for prompt, (tokens, p) in zip(batch.prompt_of, rows)]
        finished = [int(tokens[-1]) in ends for tokens, _ in rows]
        greedy, values = None, None
        if self.c.algorithm == "remax":
            likeliest = [plain.greedy(self.policy, self.chat.prompt_ids(x), 8, ends) for x in batch.prompts]
            greedy = [(self.reward(x, ids), True, ids[-1] in ends) for x, ids in zip(batch.prompts, likeliest)]
        if self.c.algorithm == "ppo":
            values = [self.values(*row).tolist() for row in rows]
        groups = [slice(i, i + K) for i in range(0, len(rows), K)]
        advantages, returns = plain.advantages(
            self.c, [rewards[g] for g in groups], [[True] * K for _ in groups], [finished[g] for g in groups],
            [x.tolist() for x in old], [x.tolist() for x in ref], values, greedy,
        )  # fmt: skip
        return [torch.tensor(row) for row in advantages], returns, values

    def step(self, batch, lr_factor):
        c, rows = self.c, plain.sequences(batch)
        with torch.no_grad():
            old, ref = ([plain.logps(lm, *row, TEMPERATURE) for row in rows] for lm in (self.policy, self.reference))
        advantages, returns, values = self.advantages(batch, rows, old, ref)
        size = len(rows) // c.mini_batches
        for part in [range(i, i + size) for i in range(0, len(rows), size)] * c.epochs:
            losses = []
            for i in part:
                new = plain.logps(self.policy, *rows[i], TEMPERATURE)
                d = new - ref[i]
                k3 = torch.exp(-d) - 1 + d
                log_ratio, penalty = new - old[i], k3.mean()
                if c.ratio == "sequence":
                    log_ratio, penalty = log_ratio.sum(), k3.sum()
                rho, a = torch.exp(log_ratio), advantages[i]
                gain = torch.minimum(rho * a, rho.clamp(1 - c.clip_low, 1 + c.clip_high) * a).mean()
                losses.append(-gain + (c.beta * penalty if c.kl_in == "loss" else 0))
            self.update(self.optimisers[0], self.policy.parameters(), losses, c.lr * lr_factor)
            if returns is None:
                continue
            losses = []
            for i in part:
                v, v_old, goal = self.values(*rows[i]), torch.tensor(values[i]), torch.tensor(returns[i])
                held = v_old + (v - v_old).clamp(-c.critic.clip, c.critic.clip)
                losses.append(torch.maximum((v - goal) ** 2, (held - goal) ** 2).mean() / 2)
            self.update(self.optimisers[1], self.critic, losses, c.critic.lr * lr_factor)

    @staticmethod
    def update(optimiser, parameters, losses, lr):
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(parameters), 1.0)
        optimiser.step()


def assert_moved_alike(ours, expected, start):
    """In the norm: Adam blows rounding up to a full step wherever a gradient is all but zero."""
    for (name, mine), theirs, before in zip(ours.named_parameters(), expected, start.parameters(), strict=True):
        moved, difference = (theirs - before).norm().item(), (mine - theirs).norm().item()
        assert moved > 0, name
        assert difference < 1e-3 * moved, f"{name}: differs by {difference} after moving {moved}"


@pytest.mark.parametrize("algorithm", OPTIMISERS)
def test_the_loop_takes_the_steps_of_the_plain_optimiser(make_actors, prompts, tmp_path, algorithm):
    ppo = OPTIMISERS[algorithm]
    actors = make_actors(feedback=False, critic=algorithm == "ppo")
    expected = PlainRun(actors, ppo)
    observer = run(actors, prompts, ppo, tmp_path)
    for annotated, lr_factor in zip(observer.annotated, (1.0, 0.5), strict=True):
        expected.step(annotated.rollout, lr_factor)

    start = make_actors(feedback=False, critic=True)
    assert_moved_alike(actors.policy.module.lm, expected.policy.parameters(), start.policy.module.lm)
    if algorithm == "ppo":
        assert_moved_alike(actors.critic.module, expected.critic, start.critic.module)
        clipped = [values["critic/clip_ratio"] for _, values in observer.history]
        assert max(clipped) > 0  # a bound that nothing touches would be compared in vain


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_an_adapter_that_was_built_and_put_aside_leaves_no_trace(make_actors, prompts, tmp_path, algorithm):
    """Its weights are drawn from a generator of their own: the run without it is the same bit for bit."""
    results = []
    for kind in ("none", "r2m", "head_only"):
        torch.manual_seed(0)
        actors = make_actors(kind=kind, critic=algorithm == "ppo")
        bare = replace(actors, reward=replace(actors.reward, feedback=None, kind="none"))
        observer = run(bare, prompts, OPTIMISERS[algorithm], tmp_path / kind)
        trained = [bare.policy.module, *([bare.critic.module] if bare.critic else [])]
        tensors = [p.detach() for module in trained for p in module.parameters()]
        tensors += [t for a in observer.annotated for t in (a.rollout.tokens, a.rewards, a.old_logp, a.ref_logp)]
        clock = ("time/", "perf/", "step_time")
        rows = [{k: v for k, v in row.items() if not k.startswith(clock)} for _, row in observer.history]
        results.append(([*tensors, torch.get_rng_state()], rows))
    for tensors, rows in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(tensors, results[0][0], strict=True))
        assert rows == results[0][1]
