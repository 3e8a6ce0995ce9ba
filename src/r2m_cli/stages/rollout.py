"""Stage 1: sample K responses for each prompt from the current policy (Algorithm 1, line "trajectory sampling")."""

from collections.abc import Sequence

from r2m_cli.batch import Rollout
from r2m_cli.config.schema import RolloutConfig
from r2m_cli.conversation import Prompt
from r2m_cli.models.actors import Actors
from r2m_cli.models.sequences import pad
from r2m_cli.seeds import Stream, draw_seed


def rollout(
    actors: Actors,
    prompts: list[Prompt],
    group_ids: Sequence[int],
    group_size: int,
    config: RolloutConfig,
    seed: int,
    stream: Stream,
    step: int,
) -> Rollout:
    """Sample K responses for each prompt.

    Args:
        prompts: this rank's n prompts.
        group_ids: their indices in the step's batch over all ranks; with `seed`, `stream` and `step` they fix every random
            draw.
        config: with temperature 0 the responses are greedy (ReMax's baseline).
    """  # fmt: skip
    prompt_ids = [actors.format.prompt_ids(prompt) for prompt in prompts]
    samples = [number * group_size + j for number in group_ids for j in range(group_size)]
    seeds = [draw_seed(stream, seed, step, sample) for sample in samples]
    drawn, logp = actors.sampler(actors.policy, actors.format, prompt_ids, seeds, config)

    ends = actors.format.eos_ids
    finished = [ids[-1] in ends for ids in drawn]
    contents = [ids[:-1] if end else ids for ids, end in zip(drawn, finished)]
    prompts_repeated = [ids for ids in prompt_ids for _ in range(group_size)]
    tokens, lengths = pad([p + r for p, r in zip(prompts_repeated, drawn)], actors.format.pad_id)
    _, prompt_lengths = pad(prompts_repeated, actors.format.pad_id)
    return Rollout(
        prompts=prompts,
        group_ids=list(group_ids),
        responses=actors.format.tokenizer.batch_decode(contents, skip_special_tokens=True),
        finished=finished,
        tokens=tokens.to(actors.device),
        prompt_lengths=prompt_lengths.to(actors.device),
        response_lengths=(lengths - prompt_lengths).to(actors.device),
        group_size=group_size,
        seeds=seeds,
        sampler_logp=logp,
    )
