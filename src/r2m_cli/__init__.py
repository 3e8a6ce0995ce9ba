"""r2m: train a language model against a reward model that reads the policy's hidden states."""

__version__ = "0.1.0"
