"""The training step and the forward pass in PyTorch, in each of its modes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from cae_raw.data.scaling import scale_and_shift
from cae_raw.layers.loss import LOSSES
from cae_raw.measure.torch_twin import pytorch_twin
from cae_raw.models import Autoencoder

CPU_MODES = (
    "eager",
    "channels_last",
    "channels_last, memory kept",
    "compile",
    "compile channels_last",
    "compile channels_last, memory kept",
)
CUDA_MODES = (
    "eager",
    "channels_last",
    "CUDA graph",
    "CUDA graph channels_last",
    "compile",
    "compile max-autotune",
    "compile in a CUDA graph",
)


def facts(on_gpu: bool) -> dict[str, Any]:
    """PyTorch's version, and where it may use TF32.

    Raises:
        RuntimeError: where it should use a GPU and sees none.
    """
    import torch

    if not on_gpu:
        return {"torch": torch.__version__}
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} sees no GPU")
    torch.backends.cudnn.benchmark = True
    tf32 = {
        "convolutions": bool(torch.backends.cudnn.allow_tf32),
        "products": bool(torch.backends.cuda.matmul.allow_tf32),
    }
    return {"torch": torch.__version__, "torch_tf32": tf32}


def has_compiler() -> bool:
    """Whether torch.compile finds the C or C++ compiler that it cannot do without."""
    return any(map(shutil.which, ("g++", "gcc", "clang++", "clang", "cl")))


class TorchStep:
    """PyTorch in one of its modes, with the weights of one of cae-raw's models.

    Args:
        model: on the CPU; its parameters are copied.
        images: uint8 (M, C, H, W), moved to the device.
        mode: a name in CPU_MODES or CUDA_MODES. "channels_last" is the layout of maps and weights;
            "compile" stands for torch.compile, "CUDA graph" for a step that is recorded at the
            first batch of each size and then replayed. What "memory kept" means is up to whoever
            starts the process: see `racer`.
        threads: on the CPU; None leaves PyTorch's own.

    On a GPU the optimizer is PyTorch's fused one.
    """

    def __init__(
        self,
        model: Autoencoder,
        images: np.ndarray,
        *,
        optimizer: str = "adam",
        lr: float = 1e-3,
        mode: str = "eager",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.torch, self.name, self.device = torch, f"torch {mode}", device
        self.images = torch.from_numpy(images).to(device)
        self.scale, self.shift = scale_and_shift(model.value_range)
        self.factor = LOSSES[model.loss]
        self.format = torch.contiguous_format
        if "channels_last" in mode:
            self.format = torch.channels_last
        self.model = pytorch_twin(model).to(device, memory_format=self.format)
        self.recorded = "CUDA graph" in mode
        self._graphs: dict[Any, tuple[Any, Any, Any]] = {}
        make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
        more: dict[str, Any] = {"fused": True} if device != "cpu" else {}
        if self.recorded and optimizer == "adam":
            more["capturable"] = True
        self.optimizer = make(self.model.parameters(), lr=lr, **more)
        self.run = self.model
        if "compile" in mode:
            # Every batch size is compiled for itself, which is what the fastest code takes.
            options = {"mode": "max-autotune"} if "max-autotune" in mode else {}
            self.run = torch.compile(self.model, dynamic=False, **options)

    def _loss(self, chosen: Any) -> Any:
        x = self.images[chosen].float().mul_(self.scale).add_(self.shift)
        x = x.contiguous(memory_format=self.format)
        return (self.run(x) - x).square().mean() * self.factor

    def _chosen(self, indices: np.ndarray) -> Any:
        return self.torch.from_numpy(indices).to(self.device, non_blocking=True)

    def loss_and_gradients(self, indices: np.ndarray) -> tuple[float, np.ndarray]:
        self.optimizer.zero_grad()
        loss = self._loss(self._chosen(indices))
        loss.backward()
        gradients = [p.grad.contiguous().cpu().numpy().ravel() for p in self.model.parameters()]
        return float(loss.detach()), np.concatenate(gradients)

    def step(self, indices: np.ndarray) -> Any:
        if self.recorded:
            return self._replay("step", self._train, indices)
        return self._train(self._chosen(indices))

    def forward(self, indices: np.ndarray) -> float:
        if self.recorded:
            return float(self._replay("forward", self._evaluate, indices))
        return float(self._evaluate(self._chosen(indices)))

    def _train(self, chosen: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(chosen)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _evaluate(self, chosen: Any) -> Any:
        with self.torch.no_grad():
            return self._loss(chosen)

    def _replay(self, what: str, work: Callable[[Any], Any], indices: np.ndarray) -> Any:
        """No work for the host but to copy the indices."""
        key = (what, len(indices))
        if key not in self._graphs:
            self._graphs[key] = self._record(work, indices)
        graph, chosen, loss = self._graphs[key]
        chosen.copy_(self.torch.from_numpy(indices), non_blocking=True)
        graph.replay()
        return loss

    def _record(self, work: Callable[[Any], Any], indices: np.ndarray) -> tuple[Any, Any, Any]:
        """The graph of `work`, the indices that it reads and the loss that it writes.

        Warming up trains: weights and the optimizer's state are put back.
        """
        torch = self.torch
        chosen = torch.from_numpy(indices).to(self.device)
        parameters = list(self.model.parameters())
        weights = [p.detach().clone() for p in parameters]
        before = {p: {k: v.clone() for k, v in s.items()} for p, s in self._state().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work(chosen)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = work(chosen)
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            for parameter, state in self._state().items():
                for name, value in state.items():
                    old = before.get(parameter, {}).get(name)
                    value.zero_() if old is None else value.copy_(old)
        return graph, chosen, loss

    def _state(self) -> dict[Any, dict[str, Any]]:
        """The optimizer's tensors by parameter and name."""
        is_tensor = self.torch.is_tensor
        state = self.optimizer.state
        return {p: {k: v for k, v in s.items() if is_tensor(v)} for p, s in state.items()}

    def read(self, result: Any, batch: int) -> float:
        return float(result)

    def wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def close(self) -> None:
        """Let go of what lies on a GPU, and of compiled code."""
        self._graphs.clear()
        del self.run, self.model, self.optimizer, self.images
        self.torch.compiler.reset()
        if self.device != "cpu":
            self.torch.cuda.empty_cache()
