"""w(t) and the learning rate."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.schedule import adapted_beta, feedback_weight, learning_rate

QUICK = settings(max_examples=25, deadline=None)


def test_feedback_weight_by_hand():
    assert feedback_weight(0, 100, 0.6) == 1.0
    assert feedback_weight(25, 100, 0.6) == pytest.approx(0.5 + math.sqrt(2) / 4)  # cos(pi / 4) = sqrt(2) / 2
    assert feedback_weight(25, 100, 0.9) == 0.9
    assert feedback_weight(50, 100, 0.0) == pytest.approx(0.5)
    assert feedback_weight(100, 100, 0.6) == 0.6
    assert feedback_weight(100, 100, 0.0) == pytest.approx(0.0, abs=1e-15)
    assert feedback_weight(120, 100, 0.0) == pytest.approx(0.0, abs=1e-15)  # it does not rise again behind T
    assert feedback_weight(3, 10, 1.0) == 1.0


@QUICK
@given(st.integers(1, 300), st.floats(0, 1))
def test_feedback_weight_starts_at_one_never_rises_and_stays_on_the_floor(total, omega):
    weights = [feedback_weight(t, total, omega) for t in range(total + 3)]
    assert weights[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(weights))
    assert all(omega <= w <= 1 for w in weights)
    assert weights[total] == pytest.approx(omega, abs=1e-15)


@QUICK
@given(st.integers(1, 50), st.floats(0, 1))
def test_feedback_weight_equals_the_formula(total, omega):
    for t in range(total + 1):
        cosine = 0.5 * math.cos(math.pi * t / total) + 0.5
        expected = cosine if cosine > omega else omega
        assert feedback_weight(t, total, omega) == pytest.approx(expected, abs=1e-12)


@QUICK
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1))
def test_a_constant_feedback_weight_is_omega_from_the_first_step_on(step, total, omega):
    assert feedback_weight(step, total, omega, "constant") == omega


def test_the_feedback_weight_is_a_cosine_unless_told():
    assert [feedback_weight(t, 10, 0.3) for t in range(11)] == [
        feedback_weight(t, 10, 0.3, "cosine") for t in range(11)
    ]
    assert feedback_weight(0, 10, 0.3) != feedback_weight(0, 10, 0.3, "constant")


def test_learning_rate_by_hand():
    # warm-up of 3 steps towards 1, then 4 steps of decay
    warm = [0.25, 0.5, 0.75]
    half = math.sqrt(2) / 4
    expected = {
        "constant": [1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25],
        "cosine": [1, 0.5 + half, 0.5, 0.5 - half],
    }
    for kind, rest in expected.items():
        got = [learning_rate(step, 7, 1.0, 3, kind) for step in range(7)]
        assert got == pytest.approx(warm + rest)


@QUICK
@given(st.integers(1, 60), st.integers(0, 20), st.floats(1e-7, 1.0), st.sampled_from(["constant", "linear", "cosine"]))
def test_learning_rate_rises_to_its_peak_once_and_never_rises_again(total, warmup, peak, kind):
    rates = [learning_rate(step, total, peak, warmup, kind) for step in range(total + warmup + 2)]
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[: warmup + 1]))
    assert rates[warmup] == pytest.approx(peak)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(rates[warmup:]))
    assert rates[0] > 0  # the first step of a run must move something


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_learning_rate_ends_at_zero_and_stays_there(kind):
    assert learning_rate(10, 10, 1.0, 2, kind) == pytest.approx(0, abs=1e-15)
    assert learning_rate(13, 10, 1.0, 2, kind) == pytest.approx(0, abs=1e-15)
    assert learning_rate(9, 10, 1.0, 2, kind) > 0


def test_learning_rate_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match="constant, linear or cosine"):
        learning_rate(5, 10, 1.0, 0, "exponential")


def test_the_kl_weight_by_hand():
    assert adapted_beta(0.1, kl=6.6, target=6.0, least=0.05) == pytest.approx(0.1 * 1.05)  # a tenth too much: 5% more
    assert adapted_beta(0.1, kl=5.4, target=6.0, least=0.05) == pytest.approx(0.1 * 0.95)
    assert adapted_beta(0.1, kl=60.0, target=6.0, least=0.05) == pytest.approx(0.11)
    assert adapted_beta(0.1, kl=0.0, target=6.0, least=0.05) == pytest.approx(0.09)
    assert adapted_beta(0.05, kl=0.0, target=6.0, least=0.05) == 0.05
    assert adapted_beta(0.1, kl=float("nan"), target=6.0, least=0.05) == 0.1


@QUICK
@given(st.floats(0.05, 5), st.floats(-1, 100), st.floats(0.1, 50))
def test_the_kl_weight_goes_with_the_kl_and_by_a_tenth_at_most(beta, kl, target):
    after = adapted_beta(beta, kl, target, 0.05)
    assert 0.05 <= after <= beta * 1.1 + 1e-12
    assert after >= beta * 0.9 - 1e-12
    assert (after >= beta) if kl >= target else (after <= beta)
