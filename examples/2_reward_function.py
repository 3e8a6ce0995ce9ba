"""A reward function of your own, alone and added to a reward model's score.

    python examples/2_reward_function.py [key=value ...]

`module:name` is looked for in the working directory and among what is installed; this script's own folder counts too.
"""

import sys

import r2m_cli

more = sys.argv[1:]

# Alone: there is no reward model, so nothing reads hidden states (feedback=none).
alone = r2m_cli.train(["reward=python", "reward.function=my_reward:on_topic", "feedback=none", *more])
print(alone.metrics[["reward", "kl", "completions/mean_length"]])

# As a second term: 0.1 times its value is added to the reward model's score, frozen and live alike.
both = r2m_cli.train(["reward.function=my_reward:brevity", "reward.function_weight=0.1", *more])
print(both.metrics[["reward", "reward_function", "completions/mean_length"]])
print(both.samples[["response", "reward", "reward_function"]].tail())
