"""k1, k2, k3: exact expectations over a small categorical distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.kl import ESTIMATORS, k1, k2, k3

QUICK = settings(max_examples=25, deadline=None)

logits = st.lists(st.floats(-3, 3), min_size=5, max_size=5).map(lambda x: torch.tensor(x, dtype=torch.float64))


def test_by_hand():
    # d = log 2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2
    logp, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(logp, ref).item() == pytest.approx(0.693147, abs=1e-6)
    assert k2(logp, ref).item() == pytest.approx(0.240227, abs=1e-6)
    assert k3(logp, ref).item() == pytest.approx(0.193147, abs=1e-6)


def test_the_names_of_the_configuration():
    assert {"k1": k1, "k2": k2, "k3": k3} == ESTIMATORS


def test_equal_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    logp, ref = -torch.rand(3, 4, generator=generator).double(), -torch.rand(3, 4, generator=generator).double()
    formulas = {
        "k1": lambda p, q: math.log(p / q),
        "k2": lambda p, q: math.log(p / q) ** 2 / 2,
        "k3": lambda p, q: q / p - 1 - math.log(q / p),
    }
    for name, formula in formulas.items():
        got = ESTIMATORS[name](logp, ref)
        for i in range(3):
            for j in range(4):
                p, q = math.exp(logp[i, j]), math.exp(ref[i, j])
                assert got[i, j].item() == pytest.approx(formula(p, q), abs=1e-12)


@QUICK
@given(logits, logits)
def test_k3_is_never_negative_and_zero_only_at_equality(a, b):
    logp, ref = a.log_softmax(0), b.log_softmax(0)
    assert (k3(logp, ref) >= -1e-15).all()
    assert (k2(logp, ref) >= 0).all()
    for estimator in (k1, k2, k3):
        assert (estimator(logp, logp) == 0).all()


@QUICK
@given(logits, logits)
def test_k1_and_k3_are_unbiased(a, b):
    logp, ref = a.log_softmax(0), b.log_softmax(0)
    kl = sum(p * (math.log(p) - r) for p, r in zip(logp.exp().tolist(), ref.tolist()))
    assert (logp.exp() * k1(logp, ref)).sum().item() == pytest.approx(kl, abs=1e-9)
    assert (logp.exp() * k3(logp, ref)).sum().item() == pytest.approx(kl, abs=1e-9)


@QUICK
@given(logits, logits)
def test_the_gradient_of_k2_on_samples_is_the_gradient_of_the_true_kl(a, b):
    """The samples are given (they carry no gradient): E_p[d/dtheta k2] = d/dtheta KL. Neither k1 nor k3 has this."""
    ref = b.log_softmax(0)
    theta = a.clone().requires_grad_(True)
    kl = (theta.softmax(0) * (theta.log_softmax(0) - ref)).sum()
    (true,) = torch.autograd.grad(kl, theta)

    def sampled(estimator):
        logp = theta.log_softmax(0)
        return torch.autograd.grad((logp.detach().exp() * estimator(logp, ref)).sum(), theta)[0]

    torch.testing.assert_close(sampled(k2), true, atol=1e-9, rtol=1e-9)
    # what the other two follow instead: nothing at all, and the gradient of the reverse KL(ref || pi)
    torch.testing.assert_close(sampled(k1), torch.zeros_like(true), atol=1e-9, rtol=0)
    torch.testing.assert_close(sampled(k3), theta.detach().softmax(0) - ref.exp(), atol=1e-9, rtol=1e-9)
