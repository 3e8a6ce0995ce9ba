"""Rewards of your own, for 2_reward_function.py: each takes all prompts and responses of a batch, and returns a float for each."""

Message = dict[str, str]  # {"role": "user", "content": "..."}


def on_topic(prompts: list[list[Message]], responses: list[str]) -> list[float]:
    """The share of the response's words that the question holds."""
    scores = []
    for prompt, response in zip(prompts, responses):
        asked, said = set(prompt[-1]["content"].split()), response.split()
        # nan is a missing reward: it teaches nothing. Raise an exception to end the run.
        scores.append(sum(word in asked for word in said) / len(said) if said else float("nan"))
    return scores


def brevity(prompts: list[list[Message]], responses: list[str]) -> list[float]:
    """Minus the number of words."""
    return [-float(len(response.split())) for response in responses]
