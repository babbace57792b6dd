"""Optimizers: the textbook formulas, number by number, and the state they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cae_raw.errors import InputError
from cae_raw.layers import Linear, Sequential
from cae_raw.training.optimizers import OPTIMIZERS, SGD, Adam, Optimizer

L2 = {"0.weight": 2.0**-5}  # exact in float32; the bias is not penalised


def model(dtype: Any = np.float64) -> Sequential:
    return Sequential(Linear(3, 2, rng=np.random.default_rng(0))).astype(dtype)


def gradients(steps: int, dtype: Any = np.float64) -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(8).astype(dtype) for _ in range(steps)]


def sgd_by_hand(p: float, gs: list[float], l2: float, lr: float, momentum: float) -> float:
    v = 0.0
    for g in gs:
        v = momentum * v + g + 2 * l2 * p
        p -= lr * v
    return p


def adam_by_hand(
    p: float, gs: list[float], l2: float, lr: float, betas: tuple[float, float], eps: float
) -> float:
    m = v = 0.0
    for t, g in enumerate(gs, start=1):
        g += 2 * l2 * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        corrected = v / (1 - betas[1] ** t)
        p -= lr * (m / (1 - betas[0] ** t)) / (math.sqrt(corrected) + eps)
    return p


RULES: dict[str, tuple[type[Optimizer], dict[str, Any], Callable[..., float]]] = {
    "sgd": (SGD, {"lr": 0.1, "momentum": 0.0}, sgd_by_hand),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9}, sgd_by_hand),
    "adam": (Adam, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}, adam_by_hand),
    "adam, other settings": (Adam, {"lr": 0.3, "betas": (0.0, 0.5), "eps": 0.1}, adam_by_hand),
}
rules = pytest.mark.parametrize("rule", RULES)


@rules
@pytest.mark.parametrize("l2", [None, L2], ids=["no penalty", "penalty"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_twenty_steps(rule: str, l2: Any, dtype: Any, tolerance: float) -> None:
    kind, options, by_hand = RULES[rule]
    stack = model(dtype)
    start, gs = stack.parameters.copy(), gradients(20, dtype)
    vector, given = stack.parameters, [g.copy() for g in gs]
    optimizer = kind(stack, **options, l2=l2)
    for g in given:
        optimizer.step(g)
    assert stack.parameters is vector and vector.dtype == dtype
    np.testing.assert_array_equal(given, gs)
    coefficients = [2.0**-5 if l2 and i < 6 else 0.0 for i in range(8)]
    expected = [
        by_hand(float(start[i]), [float(g[i]) for g in gs], coefficients[i], **options)
        for i in range(8)
    ]
    np.testing.assert_allclose(vector, expected, rtol=tolerance, atol=tolerance)
    assert np.abs(vector - start).min() > 1e-3


def test_penalty() -> None:
    stack = model()
    weight = stack.params["0.weight"]
    assert SGD(stack).penalty() == 0
    assert SGD(stack, l2={"0.bias": 0.0}).l2 is None
    assert SGD(stack, l2=L2).penalty() == pytest.approx(np.sum(weight**2) / 32, rel=1e-14)
    both = Adam(stack, l2={"0.weight": 1.0, "0.bias": 2.0})
    expected = np.sum(weight**2) + 2 * np.sum(stack.params["0.bias"] ** 2)
    assert both.penalty() == pytest.approx(expected, rel=1e-14)


@rules
def test_the_learning_rate_can_change(rule: str) -> None:
    kind, options, _ = RULES[rule]
    first, second = model(), model()
    a, b = kind(first, **options), kind(second, **{**options, "lr": 0.5})
    assert (a.lr, b.lr) == (options["lr"], 0.5)
    a.lr = 0.5
    for g in gradients(3):
        a.step(g)
        b.step(g)
    np.testing.assert_array_equal(first.parameters, second.parameters)


@rules
def test_continuing_from_saved_state_is_exact(rule: str) -> None:
    kind, options, _ = RULES[rule]
    whole, broken = model(np.float32), model(np.float32)
    gs = gradients(9, np.float32)
    a, b = kind(whole, **options, l2=L2), kind(broken, **options, l2=L2)
    for g in gs[:4]:
        b.step(g)
    state, parameters = b.state_to_host(), broken.parameters.copy()
    b.step(gs[0])  # neither copy follows
    resumed = model(np.float32)
    resumed.load_parameters(parameters)
    c = kind(resumed, **options, l2=L2)
    c.load_state(state)
    for g in gs:
        a.step(g)
    for g in gs[4:]:
        c.step(g)
    np.testing.assert_array_equal(whole.parameters, resumed.parameters)
    assert a.state_to_host().keys() == c.state_to_host().keys()
    for name, array in a.state_to_host().items():
        np.testing.assert_array_equal(array, c.state_to_host()[name], err_msg=name)


def test_what_an_earlier_version_kept_beside_the_step_count_is_dropped() -> None:
    optimizer = Adam(model(), lr=0.25)
    state = optimizer.state_to_host()
    state["control"][:] = (0.25, 7, 0.5, 0.007)
    optimizer.load_state(state)
    assert optimizer.state_to_host()["control"].tolist() == [0.25, 7, 0, 0]


NAN = float("nan")
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "lr 0": (lambda: SGD(model(), lr=0), "lr must be above 0"),
    "lr nan": (lambda: Adam(model(), lr=NAN), "lr must be above 0, not nan"),
    "lr inf": (lambda: Adam(model(), lr=math.inf), "lr must be above 0"),
    "momentum": (lambda: SGD(model(), momentum=1.0), "momentum must be at least 0 and below 1"),
    "betas": (lambda: Adam(model(), betas=(0.9, 1.0)), "betas must be"),
    "eps": (lambda: Adam(model(), eps=0.0), "eps must be above 0"),
    "penalty": (lambda: SGD(model(), l2={"0.weight": -1.0}), "penalty of 0.weight must be"),
    "parameter": (
        lambda: SGD(model(), l2={"weight": 1.0}),
        "unknown parameter 'weight'.*0.bias, 0.weight",
    ),
    "state": (lambda: Adam(model()).load_state(SGD(model()).state_to_host()), "state 'm' is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input(fault: str) -> None:
    call, pattern = FAULTS[fault]
    with pytest.raises(InputError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_registered_optimizer_is_tested() -> None:
    assert {kind for kind, _, _ in RULES.values()} == set(OPTIMIZERS.values())
