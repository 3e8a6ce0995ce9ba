"""The reward model: a frozen backbone that gives the reward token embedding, and the head that learns."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from r2m_cli.errors import UserError
from r2m_cli.models.cross_attention import CrossAttention, pool


class RewardBackbone(nn.Module):
    """Any sequence-classification model with one output: what its last linear layer reads is the RTE, H_last.

    The head's input is captured as the model runs, so that decoders (a head on every position) and encoders (a head on
    a pooled state) need no code of their own. Where it comes per position it is picked by the attention mask, never by
    the pad id: with pad = EOS the latter reads the wrong token.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier
        self._captured: Tensor | None = None
        find_head(classifier).register_forward_pre_hook(self._capture)

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._captured = args[0]

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens, mask [B, S] (padding on the right) -> RTE [B, D_rm]."""
        self.classifier(input_ids=tokens, attention_mask=mask.long())
        state, self._captured = self._captured, None
        assert state is not None, "the classifier did not run its own head"
        if state.dim() == 2:  # an encoder's pooled state
            return state
        last = mask.long().sum(dim=1) - 1
        return state[torch.arange(len(state), device=state.device), last]


def find_head(classifier: nn.Module) -> nn.Linear:
    """The scoring head: the last linear layer with a single output.

    Raises UserError if there is none.
    """
    heads = [m for m in classifier.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not heads:
        raise UserError(
            f"reward.path: {type(classifier).__name__} has no scoring head with one output; a reward model is a "
            "sequence-classification model with num_labels=1"
        )
    return heads[-1]


class Score(NamedTuple):
    """Rewards and what the adapter did, each [B]; None where there is no adapter."""

    reward: Tensor
    attention_entropy: Tensor | None  # of the attention over the policy's states, nats
    adapter_scale: Tensor | None  # rms of A over rms of H_last


class FeedbackHead(nn.Module):
    """What R2M trains: the cross-attention and the scoring head phi.

    r = phi((1 - w) A + w H_last), METHOD eq. 4; always in fp32. `init_scale` multiplies the initial W_o.
    """

    def __init__(self, head: nn.Linear, policy_size: int, inner_size: int, seed: int, init_scale: float = 1.0):
        super().__init__()
        self.phi = frozen_head(head).requires_grad_(True)
        self.adapter = CrossAttention(head.in_features, policy_size, inner_size, seed)
        with torch.no_grad():
            self.adapter.w_o.mul_(init_scale)

    def forward(self, rte: Tensor, hidden: Tensor, mask: Tensor, weight: float) -> Score:
        """rte [B, D_rm], hidden [B, S, D_p], mask [B, S], weight w(t) -> Score."""
        rte = rte.float()
        pooled, attention = pool(self.adapter.query(rte), hidden.float(), mask)
        feedback = self.adapter.value(pooled)
        reward = self.phi((1 - weight) * feedback + weight * rte).squeeze(1)
        with torch.no_grad():
            entropy = -torch.special.xlogy(attention, attention).sum(dim=1)
            scale = feedback.square().mean(dim=1).sqrt() / rte.square().mean(dim=1).sqrt().clamp_min(1e-12)
        return Score(reward, entropy, scale)


class HeadOnly(nn.Module):
    """The scoring head alone, learning on the text (the paper's Iterative RMHead): r = phi(H_last), in fp32."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.phi = frozen_head(head).requires_grad_(True)

    def forward(self, rte: Tensor, hidden: Tensor, mask: Tensor, weight: float) -> Score:
        """rte [B, D_rm] -> Score; the states and their weight are not read."""
        return Score(self.phi(rte.float()).squeeze(1), None, None)


def frozen_head(head: nn.Linear) -> nn.Linear:
    """A copy of a scoring head in fp32 that nothing trains: the initial reward model's phi.

    A new module, not a deep copy: the head carries the backbone's hook, and under ZeRO stage 3 DeepSpeed's.
    """
    copy = nn.utils.skip_init(nn.Linear, head.in_features, 1, bias=head.bias is not None)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy.requires_grad_(False)
