"""`rollout.engine=vllm` on a real vLLM (`make test-vllm`): samples, seeds, log-probabilities, weights, ranks, refusals."""

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from r2m_cli.config.schema import Config
from r2m_cli.distributed.engine import SingleEngine
from r2m_cli.errors import UserError
from r2m_cli.models import smollm2
from r2m_cli.models.lora import with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.models.sequences import Sequences, pad

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-vllm", allow_module_level=True)

from r2m_cli.models.vllm_sampler import VllmSampler

CPU = torch.device("cpu")
CHAT = SimpleNamespace(eos_ids={2, 3}, pad_id=0)
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [5, 6, 7]]
K = 4
SEEDS = [100 + i for i in range(len(PROMPTS) * K)]
SHAPE = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral_window": MistralConfig(**SHAPE, sliding_window=8),
    "gpt2": GPT2Config(
        vocab_size=40, n_embd=64, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3, bos_token_id=1, eos_token_id=2
    ),
}  # fmt: skip


def configured(**rollout) -> Config:
    config = Config()
    settings = {"engine": "vllm", "temperature": 0.7, "max_new_tokens": 12, "max_prompt_tokens": 32} | rollout
    return replace(config, rollout=replace(config.rollout, **settings))


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), attn_implementation="sdpa").eval()
    with torch.no_grad():  # responses that end early
        lm.get_output_embeddings().weight[2] *= 2
    return lm


def engine(lm) -> SingleEngine:
    return SingleEngine(Policy(lm), CPU, 0.0, 1.0)


@pytest.fixture(scope="module")
def sampler_for(tmp_path_factory):
    """family -> a sampler for its shape; started once."""
    made = {}

    def get(family: str) -> VllmSampler:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            build(family).save_pretrained(folder)
            made[family] = VllmSampler(str(folder), configured(), CPU)
        return made[family]

    return get


def gaps(policy, drawn, prompts, temperature, group_size) -> torch.Tensor:
    """Distance of the sampler's log-probabilities from the trainer's, of each response token."""
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    tokens, lengths = pad([p + r for p, r in zip(repeated, drawn.tokens)], 0)
    starts = torch.tensor([len(prompt) for prompt in repeated])
    logp = policy(Sequences(tokens, starts, lengths - starts, group_size), temperature).logp
    parts = [row[: len(own)] - torch.tensor(own) for row, own in zip(logp, drawn.logp)]
    return torch.cat(parts).abs()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_the_trainers_before_and_after_an_update(sampler_for, family):
    policy, rollout = engine(build(family)), configured().rollout
    for _ in range(2):
        drawn = sampler_for(family)(policy, CHAT, PROMPTS, SEEDS, rollout)
        assert gaps(policy, drawn, PROMPTS, rollout.temperature, K).max() < 2e-4
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))


def test_what_a_draw_holds(sampler_for):
    rollout = replace(configured().rollout, max_new_tokens=8)
    drawn = sampler_for("llama")(engine(build("llama")), CHAT, PROMPTS, SEEDS, rollout)
    assert len(drawn.tokens) == len(drawn.logp) == len(SEEDS)
    ended = [ids[-1] in CHAT.eos_ids for ids in drawn.tokens]
    assert {*ended} == {True, False}
    for ids, logp, end in zip(drawn.tokens, drawn.logp, ended):
        assert len(ids) == len(logp)
        assert not CHAT.eos_ids & {*ids[:-1]}
        assert end or len(ids) == 8


def test_a_response_depends_on_its_seed_and_prompt_alone(sampler_for):
    policy, rollout, sampler = engine(build("llama")), configured().rollout, sampler_for("llama")
    whole = sampler(policy, CHAT, PROMPTS, SEEDS, rollout).tokens
    torch.manual_seed(7)
    assert sampler(policy, CHAT, PROMPTS, SEEDS, rollout).tokens == whole
    for i, prompt in enumerate(PROMPTS):
        part = slice(i * K, (i + 1) * K)
        assert sampler(policy, CHAT, [prompt], SEEDS[part], rollout).tokens == whole[part]
    assert sampler(policy, CHAT, PROMPTS, [seed + 50 for seed in SEEDS], rollout).tokens != whole
    assert len({tuple(ids) for ids in whole[:K]}) == K
    # equal seeds on different prompts
    first, second = sampler(policy, CHAT, [[5, 6], [9, 8]], [1, 1], rollout).tokens
    assert first[0] != second[0] or first[1] != second[1]


def test_samples_have_the_policys_distribution(sampler_for):
    """Chi-square of 2000 first tokens against the softmax, over the tokens that are expected at least 5 times."""
    policy, rollout = engine(build("llama")), replace(configured().rollout, max_new_tokens=1)
    drawn = sampler_for("llama")(policy, CHAT, [PROMPTS[0]], list(range(2000)), rollout).tokens
    logits = policy.module.lm(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = 2000 * (logits / rollout.temperature).softmax(0).detach()
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(expected))
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert freedom > 4
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_temperature_0_takes_the_likeliest_tokens_and_tells_no_log_probabilities(sampler_for):
    policy, rollout = engine(build("llama")), replace(configured().rollout, temperature=0.0)
    drawn = sampler_for("llama")(policy, CHAT, PROMPTS, [1, 2, 3], rollout)
    assert drawn.logp is None
    for prompt, ids in zip(PROMPTS, drawn.tokens):
        logits = policy.module.lm(torch.tensor([prompt + ids])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(dim=1).tolist() == ids


def test_adapters_count(sampler_for):
    lm = build("llama")
    with_lora(lm, 4, "CAUSAL_LM", 0)
    policy, rollout = engine(lm), configured().rollout
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    drawn = sampler_for("llama")(policy, CHAT, PROMPTS, SEEDS, rollout)
    assert gaps(policy, drawn, PROMPTS, rollout.temperature, K).max() < 2e-4
    base = engine(build("llama"))
    assert gaps(base, drawn, PROMPTS, rollout.temperature, K).max() > 0.1


def test_starting_and_sampling_leaves_the_process_as_it_was(sampler_for, tmp_path):
    build("llama").save_pretrained(tmp_path)
    policy, state, threads = engine(build("llama")), torch.random.get_rng_state(), torch.get_num_threads()
    sampler = VllmSampler(str(tmp_path), configured(), CPU)
    sampler(policy, CHAT, PROMPTS, SEEDS, configured().rollout)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_weights_of_another_model_are_refused(sampler_for):
    with pytest.raises(UserError, match=r"rollout\.engine=vllm: .* of vLLM"):
        sampler_for("qwen3")(engine(build("gpt2")), CHAT, PROMPTS, SEEDS, configured().rollout)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_num_batched_token": 4}, "did you mean max_num_batched_tokens"),
        ({"tensor_parallel_size": 2}, "r2m sets it itself"),
        ({"block_size": "many"}, "cannot start"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, settings, said):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        VllmSampler(str(tmp_path), configured(vllm=settings), CPU)
    assert "\n" not in str(caught.value)


def test_a_model_that_vllm_cannot_run_is_one_line(tmp_path):
    """vLLM has no attention for heads of 16 on a CPU, and finds out when it samples."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE | {"head_dim": 16}))
    lm.save_pretrained(tmp_path)
    sampler = VllmSampler(str(tmp_path), configured(), CPU)
    with pytest.raises(UserError, match=r"cannot sample from this policy.*use rollout\.engine=native") as caught:
        sampler(engine(lm), CHAT, PROMPTS, SEEDS, configured().rollout)
    assert "\n" not in str(caught.value)


def test_smollm2():
    """A real model: SmolLM2-135M-Instruct."""
    folder = str(smollm2.folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = SimpleNamespace(eos_ids={tokenizer.eos_token_id}, pad_id=tokenizer.pad_token_id)
    texts = ["The capital of France is", "Why do leaves fall in autumn? They fall because"]
    prompts = [tokenizer(text).input_ids for text in texts]
    config = configured(temperature=0.7, max_new_tokens=24)
    policy = engine(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    drawn = VllmSampler(folder, config, CPU)(policy, chat, prompts, [1, 2, 3, 4], config.rollout)
    assert gaps(policy, drawn, prompts, 0.7, 2).max() < 1e-3
    assert "Paris" in tokenizer.decode(drawn.tokens[0]) + tokenizer.decode(drawn.tokens[1])


class Runs:
    """Runs of the command, each in a process of its own."""

    def __init__(self, folder, cache):
        self.folder, self.cache = folder, cache

    def __call__(self, name, *arguments, word="train", code=0):
        command = [sys.executable, "-m", "r2m_cli.cli.main", word, *arguments, f"hydra.run.dir={name}"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.cache, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def rows(self, name):
        text = (self.folder / name / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run in a single process, which the others are compared with."""
    import os

    folder = tmp_path_factory.mktemp("runs")
    keys = {"R2M_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    runs = Runs(folder, os.environ | keys)
    runs("single", *TRAIN)
    return runs


TRAIN = (
    "+debug=quick",
    "policy.size=64x2x2",
    "rollout.engine=vllm",
)  # heads of 32: the smallest that vLLM has on a CPU


def test_a_run_trains_on_vllms_responses(runs):
    steps = [row for row in runs.rows("single") if row["step"] > 0]
    assert len(steps) == 2
    for row in steps:
        assert row["rollout/logp_gap"] < 1e-4
        assert row["rollout/ratio_max"] == pytest.approx(1, abs=1e-3)
    runs("evaluated", "run=single", word="evaluate")
    assert (runs.folder / "evaluated" / "evaluation.json").is_file()


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_draw_what_one_process_draws(runs, stage):
    runs(f"stage{stage}", *TRAIN, "engine=zero", "engine.num_processes=2", f"engine.stage={stage}")
    for row, single in zip(runs.rows(f"stage{stage}"), runs.rows("single"), strict=True):
        for name in ("reward", "kl", "completions/mean_length", "eval/reward", "loss"):
            if name in single:
                assert row[name] == pytest.approx(single[name], abs=1e-4), name
        assert row.get("rollout/logp_gap", 0) < 1e-4


def test_a_bad_setting_ends_the_command_before_anything_is_fitted(runs):
    done = runs("bad", *TRAIN, "+rollout.vllm.max_num_seq=4", code=2)
    assert "rollout.vllm.max_num_seq: vLLM has no such key; did you mean max_num_seqs?" in done.stderr
    assert "Traceback" not in done.stderr
