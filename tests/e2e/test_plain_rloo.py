"""`feedback=none` against plain RLOO written out here, with transformers and torch alone, from the samples a run logged."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import QUICK, Run, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPERATURE = 0.5


def logps(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = (model(torch.tensor([prompt + response])).logits[0] / TEMPERATURE).log_softmax(-1)
    return torch.stack([logits[len(prompt) + i - 1, token] for i, token in enumerate(response)])


@pytest.mark.long
@pytest.mark.parametrize("feedback", ["none", "r2m"])
def test_the_policy_takes_the_steps_of_plain_rloo(r2m: Run, tmp_path: Path, feedback: str) -> None:
    """With feedback the policy's update is the same function of (other) rewards, which the samples hold too."""
    # Sampled coolly, a taught policy leaves special tokens alone: the samples hold text, in which they do not show.
    taught = ("data.demonstrations=1500", "policy.fit.epochs=2", f"rollout.temperature={TEMPERATURE}")
    r2m("train", *QUICK, *taught, f"feedback={feedback}", "logger.samples_every=1", "ppo.beta=0.1", "hydra.run.dir=run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tokenizer = AutoTokenizer.from_pretrained(config["policy"]["path"])
    policy = AutoModelForCausalLM.from_pretrained(config["policy"]["path"])
    reference = AutoModelForCausalLM.from_pretrained(config["policy"]["path"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config["ppo"]["lr"], weight_decay=0.0)
    group_size, samples = config["ppo"]["group_size"], rows(tmp_path / "run", "samples.jsonl")

    for step in (1, 2):
        batch = [row for row in samples if row["step"] == step]
        texts = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in batch]
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        responses = [
            tokenizer.encode(row["response"] + (" <eos>" if row["finished"] else ""), add_special_tokens=False)
            for row in batch
        ]
        lengths = rows(tmp_path / "run")[step]["completions/mean_length"]
        assert sum(map(len, responses)) / len(responses) == pytest.approx(lengths), "the text holds every token"
        rewards = torch.tensor([row["reward"] for row in batch]).view(-1, group_size)
        baseline = (rewards.sum(1, keepdim=True) - rewards) / (group_size - 1)
        advantages = (rewards - baseline).flatten()
        advantages = advantages / advantages.std(unbiased=False).clamp_min(0.01)
        pairs = list(zip(prompts, responses))
        with torch.no_grad():
            old = [logps(policy, p, r).sum() for p, r in pairs]
            ref = [logps(reference, p, r) for p, r in pairs]
        for _ in range(config["ppo"]["epochs"]):
            losses = []
            for i, (p, r) in enumerate(pairs):
                new = logps(policy, p, r)
                ratio = (new.sum() - old[i]).exp()
                gain = torch.minimum(ratio * advantages[i], ratio.clamp(0.8, 1.2) * advantages[i])
                k3 = ((ref[i] - new).exp() - 1 - (ref[i] - new)).sum()
                losses.append(-gain + 0.1 * k3)
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    start = AutoModelForCausalLM.from_pretrained(config["policy"]["path"]).state_dict()
    for name, value in policy.state_dict().items():
        # In the norm: Adam blows rounding up to a full step wherever a gradient is all but zero.
        moved, difference = (value - start[name]).norm(), (ours[name] - value).norm()
        assert difference < 0.05 * moved, f"{name}: differs by {difference} after moving {moved}"


def test_the_logged_rewards_are_the_reward_models(r2m: Run, tmp_path: Path) -> None:
    """The frozen score in samples.jsonl, recomputed from the proxy's folder one conversation at a time."""
    from transformers import AutoModelForSequenceClassification

    r2m("train", *QUICK, "hydra.run.dir=run")
    path = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward"]["path"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    for row in rows(tmp_path / "run", "samples.jsonl"):
        messages = [*row["prompt"], {"role": "assistant", "content": row["response"]}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.item()
        assert row["reward_frozen"] == pytest.approx(expected, abs=1e-4)
    fitted = json.loads((Path(path) / "fit.json").read_text())
    assert fitted["pairs"] == 128
