"""Plain transformers and scalars, one unpadded sequence at a time: what the stages are held against.

Of r2m the oracles use only the tokens of a rollout and the text format of the chat.
"""

import math
from dataclasses import dataclass, field

import torch

from r2m_cli.loop import train
from r2m_cli.monitor.observer import Observer
from r2m_cli.stages.advantages import DISCOUNT, STD_FLOOR
from r2m_cli.stages.pair_learning import Labels


@dataclass
class Recorder(Observer):
    """An observer without sinks that keeps what each step's models said of its rollout."""

    annotated: list = field(default_factory=list)

    def row(self, step, values, timer=None, annotated=None):
        super().row(step, values, timer, annotated)
        if annotated is not None:
            self.annotated.append(annotated)


def run_loop(actors, prompts, config, folder, labels=None, observer=None):
    """The steps of the configuration, without evaluation. -> the observer that has seen them."""
    observer = observer or Recorder(None, samples_every=0)
    train(actors, prompts, [], config, folder, observer, 0, labels or Labels())
    return observer


def sequences(batch):
    """Each sequence's tokens without padding, and its prompt's length."""
    lengths = (batch.prompt_lengths + batch.response_lengths).tolist()
    return [(row[:n], int(p)) for row, n, p in zip(batch.tokens, lengths, batch.prompt_lengths)]


def logps(lm, tokens, prompt_length, temperature):
    """Log-probabilities of the response's tokens under the tempered model. [R]."""
    log_p = (lm(tokens[None]).logits[0] / temperature).log_softmax(dim=1)
    return log_p[torch.arange(prompt_length - 1, len(tokens) - 1), tokens[prompt_length:]]


def states(lm, tokens, features="states"):
    """Last-layer states without the last token's, what the policy hands to the adapter, and as feedback.features has it in place
    of them or beside them the tokens' embeddings, as loud as they are. [S - 1, D_p]."""
    found = lm(tokens[None], output_hidden_states=True).hidden_states[-1][0, :-1]
    embedded = lm.get_input_embeddings()(tokens[:-1])
    loudness = (found.square().mean(dim=1) / embedded.square().mean(dim=1)).sqrt()
    embedded = embedded * loudness[:, None]
    return {"states": found, "tokens": embedded, "both": torch.cat([found, embedded], dim=1)}[features]


def embedding(classifier, chat, prompt, response):
    """The reward token embedding: the last-layer state of the conversation's last token. [D_rm]."""
    ids = torch.tensor([chat.conversation_ids(prompt, response)])
    return classifier.base_model(ids).last_hidden_state[0, -1]


def live_reward(module, rte, hidden, weight):
    """arXiv 2601.22664, eqs. 3 and 4 with keys and values written out. rte [D_rm], hidden [S, D_p] -> scalar."""
    adapter = module.adapter
    q, k, v = rte @ adapter.w_q, hidden @ adapter.w_k, hidden @ adapter.w_v
    attention = (k @ q / math.sqrt(len(q))).softmax(dim=0)
    return module.phi((1 - weight) * (attention @ v @ adapter.w_o) + weight * rte).squeeze()


def greedy(lm, prompt_ids, longest, eos_ids):
    """The likeliest token again and again, every time from the whole sequence, without a cache."""
    ids = list(prompt_ids)
    for _ in range(longest):
        ids.append(int(lm(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in eos_ids:
            break
    return ids[len(prompt_ids) :]


def group_loss(rewards, alpha, pick=None):
    """Group Reward Entropy Bradley-Terry of one group, arXiv 2601.22664, eqs. 5 to 7. rewards [K] -> scalar."""
    pick = rewards if pick is None else pick
    margin = rewards[int(pick.argmax())] - rewards[int(pick.argmin())]
    return (1 - alpha) * -torch.sigmoid(margin).log() + alpha * group_entropy(rewards)


def group_entropy(rewards):
    """L_GRE of one group, arXiv 2601.22664, eq. 6."""
    std = (rewards - rewards.mean()).square().mean().sqrt()
    p = ((rewards - rewards.mean()) / std).softmax(dim=0)
    return -(p * p.log()).sum()


def kl_estimate(name, logp, ref_logp):
    """Schulman's k1, k2 or k3 of one token."""
    d = logp - ref_logp
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[name]


def standardised(rows, keep, floor, centre):
    """Lists of numbers over the standard deviation (population) of those whose row is kept; centred if asked."""
    known = [x for row, good in zip(rows, keep) if good for x in row]
    mean = sum(known) / len(known)
    std = max(math.sqrt(sum((x - mean) ** 2 for x in known) / len(known)), floor)
    return [[(x - mean * centre) / std for x in row] for row in rows], (mean, std)


def advantages(c, rewards, valid, finished, old, ref=None, values=None, greedy=None):
    """Every algorithm's advantages in scalars.

    Args:
        c: PpoConfig.
        rewards, valid, finished: n lists of K. A reward that is not `valid` is missing: in its group's baseline the mean
            of the others stands in for it, whatever is subtracted from theirs, and its own advantage is 0.
        old, ref, values: B lists, one number per response token.
        greedy: (reward, valid, finished) of each prompt's greedy response.

    Returns:
        B lists of advantages, one number per token, or a single one where the whole response shares it; and B lists of
        returns, None without a critic.
    """
    group_size = len(rewards[0])

    def shaped(reward, ended):
        if c.reward_clip is not None:
            reward = min(max(reward, -c.reward_clip), c.reward_clip)
        return reward if ended else reward - c.eos_penalty

    scores = [[shaped(r, end) for r, end in zip(*rows)] for rows in zip(rewards, finished)]
    keep = [good for row in valid for good in row]
    mean, std = 0.0, 1.0
    if c.whiten_rewards:
        flat, (mean, std) = standardised([[s] for row in scores for s in row], keep, STD_FLOOR, True)
        scores = [[flat[i * group_size + j][0] for j in range(group_size)] for i in range(len(scores))]
    in_reward = c.kl_in == "reward" and ref is not None
    kl = [
        [kl_estimate(c.kl_estimator, *pair) if in_reward else 0.0 for pair in zip(own, other)]
        for own, other in zip(old, ref or old)
    ]

    found, returns = [], None
    if c.algorithm in ("reinforce_pp", "ppo"):
        flat = [score for row in scores for score in row]
        earned = [[-c.beta * x for x in row] for row in kl]
        for row, score in zip(earned, flat):
            row[-1] += score
        if c.algorithm == "reinforce_pp":
            found = [[sum(row[t:]) for t in range(len(row))] for row in earned]
        else:
            gamma, lam = DISCOUNT, c.critic.gae_lambda
            for row, v in zip(earned, values):
                after = [*v[1:], 0.0]
                delta = [r + gamma * later - now for r, later, now in zip(row, after, v)]
                found.append(
                    [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(row))) for t in range(len(row))]
                )
            returns = [[a + b for a, b in zip(row, v)] for row, v in zip(found, values)]
    else:
        for i, row in enumerate(scores):
            row = [s - c.beta * sum(kl[i * group_size + j]) for j, s in enumerate(row)]
            known = [r for r, good in zip(row, valid[i]) if good]
            middle = sum(known) / max(len(known), 1)
            row = [r if good else middle for r, good in zip(row, valid[i])]
            if c.algorithm == "rloo":
                found += [[r - (sum(row) - r) / (group_size - 1)] for r in row]
            elif c.algorithm == "grpo":
                spread = math.sqrt(sum((r - middle) ** 2 for r in row) / (group_size - 1))
                found += [[(r - middle) / (spread + 1e-6)] for r in row]
            else:
                reward, good, ended = greedy[i]
                found += [[r - ((shaped(reward, ended) - mean) / std if good else middle)] for r in row]
    if c.normalise != "none":
        found, _ = standardised(found, keep, STD_FLOOR, c.normalise == "whiten")
    return [row if good else [0.0] * len(row) for row, good in zip(found, keep)], returns
