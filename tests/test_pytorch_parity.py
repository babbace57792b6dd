"""The same layers, loss and training steps in PyTorch; skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layer_cases import CASES, MAXUNPOOL2D, LayerCase

from cae_raw.gradcheck.cases import run_both_ways
from cae_raw.layers import CrossEntropyLoss, MaxPool2d, MSELoss, Sequential, Trace
from cae_raw.measure.torch_twin import pytorch_twin
from cae_raw.models import DEEP_MODELS, build, single_layer
from cae_raw.ops import pool2d
from cae_raw.training.optimizers import SGD, Adam

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
F: Any = torch.nn.functional

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}
precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


def assert_close(name: str, ours: Any, theirs: Any, tolerance: float) -> None:
    """max|ours - theirs| <= tolerance * max|theirs|."""
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape, name
    assert ours.dtype == theirs.dtype, name
    error = np.max(np.abs(ours - theirs), initial=0)
    assert error <= tolerance * np.max(np.abs(theirs), initial=0), (name, error)


def tensors(stack: Sequential) -> dict[str, Any]:
    return {k: torch.tensor(v, requires_grad=True) for k, v in stack.params.items()}


@precisions
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_every_gradient(case: LayerCase, dtype: Any) -> None:
    rng = np.random.default_rng(7)
    stack = case.configuration.build().astype(dtype)
    x = case.configuration.draw(rng).astype(dtype)
    dy = rng.standard_normal(stack.forward(x).shape).astype(dtype)
    ours = run_both_ways(stack, x, dy, {})
    leaf, parameters = torch.tensor(x, requires_grad=True), tensors(stack)
    y = case.torch(F, leaf, parameters)
    y.backward(torch.tensor(dy))
    assert_close("output", ours["output"], y, TOLERANCE[dtype])
    assert_close("input", ours["input"], leaf.grad, TOLERANCE[dtype])
    for name, parameter in parameters.items():
        assert_close(name, ours[name], parameter.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("row", MAXUNPOOL2D, ids=str)
def test_masks_are_pytorchs_indices(row: tuple[Any, ...]) -> None:
    """Ties included: both take the first maximum of a window."""
    n, c, h, w, kernel, padding = row
    pool = MaxPool2d(kernel, padding=padding)
    x = np.random.default_rng(1).integers(0, 3, (n, c, h, w)).astype(np.float32)
    _, mask = pool2d.maxpool_forward(x, **pool.window)
    _, theirs = F.max_pool2d(
        torch.tensor(x), pool.kernel_size, pool.stride, pool.padding, return_indices=True
    )
    p, q = np.divmod(mask.astype(int), pool.kernel_size[1])
    row_number, column = np.indices(mask.shape)[2:]
    i = row_number * pool.stride[0] - pool.padding[0] + p
    j = column * pool.stride[1] - pool.padding[1] + q
    np.testing.assert_array_equal(i * w + j, theirs.numpy())


def torch_single_layer(x: Any, p: dict[str, Any]) -> Any:
    code = torch.tanh(F.conv2d(F.pad(x, (2, 2, 2, 2)), p["0.weight"], p["0.bias"]))
    return torch.tanh(F.conv2d(code, p["2.weight"], p["2.bias"]))


@precisions
@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 1, 28, 28), (1, 3, 7, 5)], ids=str)
def test_single_layer_model(shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(2)
    model = single_layer(shape[1], 32, rng).astype(dtype)
    x = rng.uniform(-1, 1, shape).astype(dtype)
    trace: Trace = {}
    gradients: dict[str, Any] = {}
    value, dy = MSELoss("half_mse")(model.forward(x, trace), x)
    model.backward(dy, trace, gradients, need_dx=False)
    parameters = tensors(model)
    loss = 0.5 * F.mse_loss(torch_single_layer(torch.tensor(x), parameters), torch.tensor(x))
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=TOLERANCE[dtype])
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert_close(name, gradients[name], parameter.grad, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("channels", "size", "code_size", "loss"),
    [(3, (64, 64), 1568, "mse"), (3, (21, 15), 7, "half_mse"), (1, (16, 30), 33, "mse")],
)
@pytest.mark.parametrize("name", DEEP_MODELS)
@precisions
def test_deep_models(
    name: str,
    channels: int,
    size: tuple[int, int],
    code_size: int,
    loss: str,
    dtype: Any,
) -> None:
    """With the same weights: the output, the loss and the gradient of every parameter."""
    rng = np.random.default_rng(5)
    model = build(name, rng, channels=channels, size=size, code_size=code_size).astype(dtype)
    x = rng.uniform(0, 1, (3, channels, *size)).astype(dtype)
    trace: Trace = {}
    gradients: dict[str, Any] = {}
    y = model.forward(x, trace)
    value, dy = MSELoss(loss)(y, x)
    model.backward(dy, trace, gradients, need_dx=False)

    twin = pytorch_twin(model)
    output = twin(torch.tensor(x))
    factor = {"mse": 1.0, "half_mse": 0.5}[loss]
    true_loss = factor * F.mse_loss(output, torch.tensor(x))
    true_loss.backward()
    assert_close("output", y, output, TOLERANCE[dtype])
    assert value == pytest.approx(true_loss.item(), rel=TOLERANCE[dtype])
    assert list(gradients) and gradients.keys() == set(model.params)
    for parameter, theirs in zip(model.params, twin.parameters(), strict=True):
        assert_close(parameter, gradients[parameter], theirs.grad, TOLERANCE[dtype])


@precisions
@pytest.mark.parametrize("l2", [0.0, 2.0**-7])
def test_ten_training_losses(l2: float, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    model = single_layer(3, 32, rng).astype(dtype)
    optimizer = Adam(model, lr=2e-3, l2=model.l2(l2))
    parameters = tensors(model)
    theirs = torch.optim.Adam(parameters.values(), lr=2e-3)
    gradients = np.empty_like(model.parameters)
    losses = []
    for _ in range(10):
        x = rng.uniform(-1, 1, (8, 3, 16, 16)).astype(dtype)
        trace: Trace = {}
        value, dy = MSELoss("half_mse")(model.forward(x, trace), x)
        penalty = optimizer.penalty()
        model.backward(dy, trace, model.split(gradients), need_dx=False)
        optimizer.step(gradients)
        theirs.zero_grad()
        half_mse = 0.5 * F.mse_loss(
            torch_single_layer(torch.tensor(x), parameters), torch.tensor(x)
        )
        objective = half_mse + l2 * parameters["0.weight"].square().sum()
        objective.backward()
        theirs.step()
        losses.append(value)
        assert value == pytest.approx(half_mse.item(), rel=10 * TOLERANCE[dtype])
        assert value + penalty == pytest.approx(objective.item(), rel=10 * TOLERANCE[dtype])
    assert losses[-1] < 0.9 * losses[0]


@precisions
@pytest.mark.parametrize("labels_as", [np.int64, np.uint8])
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (130, 3), (2, 1000)], ids=str)
def test_cross_entropy(shape: tuple[int, int], labels_as: Any, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    logits = (20 * rng.standard_normal(shape)).astype(dtype)
    labels = rng.integers(0, min(shape[1], 256), shape[0]).astype(labels_as)
    value, dlogits = CrossEntropyLoss()(logits, labels)
    leaf = torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(leaf, torch.tensor(labels.astype(np.int64)))
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=TOLERANCE[dtype])
    assert_close("logits", dlogits, leaf.grad, TOLERANCE[dtype])


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "sgd": (
        lambda m, l2: SGD(m, lr=0.1, l2=l2),
        lambda p, decay: torch.optim.SGD(p, lr=0.1, weight_decay=decay),
    ),
    "momentum": (
        lambda m, l2: SGD(m, lr=0.03, momentum=0.9, l2=l2),
        lambda p, decay: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=decay),
    ),
    "adam": (
        lambda m, l2: Adam(m, lr=0.01, l2=l2),
        lambda p, decay: torch.optim.Adam(p, lr=0.01, weight_decay=decay),
    ),
    "adam with other betas and eps": (
        lambda m, l2: Adam(m, lr=0.02, betas=(0.5, 0.8), eps=1e-2, l2=l2),
        lambda p, decay: torch.optim.Adam(
            p, lr=0.02, betas=(0.5, 0.8), eps=1e-2, weight_decay=decay
        ),
    ),
}


@precisions
@pytest.mark.parametrize("l2", [0.0, 2.0**-4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_optimizer_steps(name: str, l2: float, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    model = single_layer(1, 3, rng).astype(dtype)
    make, make_theirs = OPTIMIZERS[name]
    optimizer = make(model, dict.fromkeys(model.names, l2))
    vector = torch.tensor(model.parameters, requires_grad=True)
    theirs = make_theirs([vector], 2 * l2)
    for step in range(20):
        gradients = (rng.standard_normal(model.parameters.size) * 10.0 ** -(step % 4)).astype(dtype)
        optimizer.step(gradients)
        vector.grad = torch.tensor(gradients)
        theirs.step()
        assert_close(f"step {step}", model.parameters, vector, TOLERANCE[dtype])
