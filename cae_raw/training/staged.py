"""A training step in stages, for models with linear layers in their middle, on the CPU.

Convolutions want a batch in small chunks, whose maps stay in the cache. A linear layer wants it in
one piece: the deep model's two have 59 MB of weights, which every chunk would read three times over
and write the gradients of. So each kind of layer gets the batch the way it needs it:

                    chunks of the batch           blocks of features
                    (a few images each)           (the whole wave of images)

    forward     A  encoder  ----- x (N, F) -----> B  linear layers
                                                        |
                C  decoder, loss, decoder's  <----- y (N, F)
                   gradients  ---- dy (N, F) ---> D  linear layers' gradients
                                                        |
    backward    E  encoder's gradients  <------- dx (N, F)

Everything in a column is spread over the processors; a line across is a wait for everybody, and an
array that everybody sees. What A keeps for C and E, half a megabyte per image, stays in the process
that made it, which therefore gets the same chunks there. A wave is at most WAVE images, so that
this is bounded; further waves add their gradients to those of the first. The bits of the result
depend on none of this but the sizes of chunks, blocks and waves, which are functions of the model,
the image size and the batch: sums run in the order of chunks and waves, whoever computed them.

A, C and E go layer by layer, or for the usual kinds of layers by `fused_stages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cae_raw.layers import Gradients, Layer, Linear, MaxPool2d, Trace
from cae_raw.models import Autoencoder
from cae_raw.ops import linear as ops
from cae_raw.ops.loss import l1_backward
from cae_raw.ops.windows import even_cuts
from cae_raw.training.cpu_step import (
    ADD,
    CHUNK_BYTES,
    IMAGES,
    LARGEST_CHUNK,
    LAYER,
    CpuStep,
    Problem,
    Run,
)
from cae_raw.training.fused_stages import FusedStages, plan
from cae_raw.training.layerwise import sparsity_scale
from cae_raw.training.shared_memory import Layout

Array = Any

WAVE = 256  # images
BLOCKS = 8  # that the features of each linear layer are cut into: a few for each thread


class StagedStep(CpuStep):
    """Loss and gradients of a model that has linear layers."""

    def __init__(self, problem: Problem, arrays: dict[str, Array]) -> None:
        super().__init__(problem, arrays)
        self.first, self.end = _linear_range(self.model)
        # What goes into layer i, and its gradient; of the end: what the decoder gets.
        numbers = range(self.first, self.end + 1)
        self.values = {i: arrays[f"value {i}"] for i in numbers}
        self.gradients_of = {i: arrays[f"gradient {i}"] for i in numbers}
        self._views = self.model.split(self.gradients)
        self._slots = [dict(_slot_views(self.model, slot)) for slot in arrays["slots"]]
        self.inputs: dict[int, Array] = {}  # of this process's chunks
        self.traces: dict[int, Trace] = {}
        planned = plan(self.model, problem.image_shape, self.first, self.end)
        self.fused = FusedStages(planned, self.model) if problem.fused and planned else None
        self._kept: dict[int, Any] = {}  # what those leave, by chunk

    @staticmethod
    def serves(model: Autoencoder) -> bool:
        """Whether the model has linear layers, and its code goes into or comes out of one."""
        if not any(isinstance(layer, Linear) for layer in model.stack):
            return False
        first, end = _linear_range(model)
        return first <= model.encoder_length <= end

    @staticmethod
    def layout(problem: Problem) -> Layout:
        model, images = problem.model, problem.chunk * problem.chunks
        first, end = _linear_range(model)
        shapes = model.layer_shapes(problem.image_shape)
        numbers = sum(int(np.prod(shape)) for _, shape in _in_slots(model))
        dtype = model.parameters.dtype
        layout = {**CpuStep.layout(problem), "slots": ((problem.chunks, numbers), dtype)}
        for i in range(first, end + 1):
            for name in ("value", "gradient"):
                layout[f"{name} {i}"] = ((images, *shapes[i]), dtype)
        return layout

    @staticmethod
    def chunk_size(largest_map: int) -> int:
        """A power of two, which gives everybody as many chunks of a usual batch as the others."""
        size = max(1, min(LARGEST_CHUNK, CHUNK_BYTES // largest_map))
        return 1 << (size - 1).bit_length()

    @staticmethod
    def chunks_in_wave(problem: Problem, threads: int) -> int:
        return max(1, WAVE // problem.chunk)

    # --- schedule ---------------------------------------------------------------------------

    def wave_gradients(self, run: Run, chunks: int, *, first: bool) -> None:
        self.frame[ADD] = not first
        if first:
            for i, layer in enumerate(self.model.stack):
                for name in () if isinstance(layer, Linear) else layer.params:
                    self._views[f"{i}.{name}"].fill(0)
        middle = Trace()
        run("encode", chunks)
        self._linear_forward(run, middle)
        run("decode", chunks, own="encode")
        self._linear_backward(run, middle)
        run("encoder_gradients", chunks, own="encode")
        for slot in self._slots[:chunks]:
            self._add(slot)

    def wave_errors(self, run: Run, chunks: int) -> None:
        run("encode_only", chunks)
        self._linear_forward(run, Trace())
        run("decode_only", chunks, own="encode_only")

    def _linear_forward(self, run: Run, trace: Trace) -> None:
        """B: through the linear layers and whatever stands between them."""
        rows = slice(int(self.frame[IMAGES]))
        for i in range(self.first, self.end):
            layer = self.model.stack[i]
            if isinstance(layer, Linear):
                self.frame[LAYER] = i
                run("linear_outputs", len(_blocks(layer.out_features)))
            else:
                self.values[i + 1][rows] = layer.forward(self.values[i][rows], trace)

    def _linear_backward(self, run: Run, trace: Trace) -> None:
        """D: back again; the gradients are written, or added to what is there."""
        rows = slice(int(self.frame[IMAGES]))
        self._add_sparsity(self.end)
        for i in reversed(range(self.first, self.end)):
            layer = self.model.stack[i]
            if isinstance(layer, Linear):
                self.frame[LAYER] = i
                both = (layer.out_features, layer.in_features)
                run("linear_gradients", sum(len(_blocks(features)) for features in both))
            else:
                grads = Gradients()
                dx = layer.backward(self.gradients_of[i + 1][rows], trace, grads)
                self.gradients_of[i][rows] = dx
                self._add({f"{i}.{name}": value for name, value in grads.items()})
            self._add_sparsity(i)

    def _add_sparsity(self, i: int) -> None:
        """Add the gradient of the mean of |code| to that of layer i's input, if it is the code."""
        sparsity = self.problem.sparsity
        if sparsity and i == self.model.encoder_length:
            rows = slice(int(self.frame[IMAGES]))
            code = self.values[i][rows]
            scale = sparsity_scale(sparsity, self.batch_size, code.shape[1:])
            l1_backward(self.gradients_of[i][rows], code, scale=scale)

    def _add(self, grads: Gradients) -> None:
        for name, value in grads.items():
            self._views[name] += value

    # --- stages over chunks ------------------------------------------------------------------

    def encode(self, k: int, *, keep: type[Layer] = Layer) -> None:
        """A: the chunk's input of the linear layers; its trace, of layers of one kind, is kept."""
        if self.fused is not None:
            features = self.values[self.first][self.rows(k)]
            self._kept[k] = self.fused.encode(self.images[self.rows(k)], features)
            return
        trace = Trace()
        self.inputs[k] = self.load(k)
        code = self.model.forward(self.inputs[k], trace, until=self.first)
        self.values[self.first][self.rows(k)] = code
        self.traces[k] = {layer: kept for layer, kept in trace.items() if isinstance(layer, keep)}

    def decode(self, k: int) -> None:
        """C: the chunk's error and the gradients from there to the linear layers' output."""
        rows = self.rows(k)
        if self.fused is not None:
            scale = self.loss.gradient_scale(self.elements)
            values, dvalues = self.values[self.end][rows], self.gradients_of[self.end][rows]
            self.errors[k] = self.fused.decode(
                values, self._kept[k], scale, dvalues, self._slots[k]
            )
            return
        images, trace, grads = self.inputs.pop(k), dict(self.traces[k]), dict(self._slots[k])
        output = self.model.forward(self.values[self.end][self.rows(k)], trace, start=self.end)
        error, doutput = self.loss.partial(output, images, self.elements)
        dy = self.model.backward(doutput, trace, grads, start=self.end)
        self.gradients_of[self.end][self.rows(k)] = dy
        self.errors[k] = error[0]

    def encoder_gradients(self, k: int) -> None:
        """E: the encoder's gradients."""
        if self.fused is not None:
            rows, kept = self.rows(k), self._kept.pop(k)
            features, dfeatures = self.values[self.first][rows], self.gradients_of[self.first][rows]
            self.fused.encoder_gradients(features, dfeatures, kept, self._slots[k])
            self.fused.release(kept)
            return
        dx, grads = self.gradients_of[self.first][self.rows(k)], dict(self._slots[k])
        self.model.backward(dx, self.traces.pop(k), grads, need_dx=False, until=self.first)

    def encode_only(self, k: int) -> None:
        """A, where no gradient follows."""
        self.encode(k, keep=MaxPool2d)

    def decode_only(self, k: int) -> None:
        """The first half of C: the chunk's error."""
        if self.fused is not None:
            kept = self._kept.pop(k)
            self.errors[k] = self.fused.decode(self.values[self.end][self.rows(k)], kept)
            self.fused.release(kept)
            return
        images, trace = self.inputs.pop(k), self.traces.pop(k)
        output = self.model.forward(self.values[self.end][self.rows(k)], trace, start=self.end)
        self.errors[k] = self.loss.partial(output, images, 1)[0][0]

    # --- stages over blocks of features -----------------------------------------------------

    def linear_outputs(self, k: int) -> None:
        """A few of a layer's output features, for all images."""
        layer, x, y = self._linear_layer(self.values)
        block = _blocks(layer.out_features)[k]
        y[:, block] = ops.linear_forward(x, layer.weight[block], layer.bias[block])

    def linear_gradients(self, k: int) -> None:
        """Some rows of dw and db, or a few features of dx, from all images."""
        layer, dx, dy = self._linear_layer(self.gradients_of)
        blocks = _blocks(layer.out_features)
        if k >= len(blocks):
            block = _blocks(layer.in_features)[k - len(blocks)]
            dx[:, block] = ops.linear_backward_input(dy, layer.weight[:, block])
            return
        i, block = int(self.frame[LAYER]), blocks[k]
        x = self.values[i][: len(dy)]
        dw, db = self._views[f"{i}.weight"][block], self._views[f"{i}.bias"][block]
        dy_block = np.ascontiguousarray(dy[:, block])
        if self.frame[ADD]:
            dw += ops.linear_backward_weight(dy_block, x)
            db += ops.linear_backward_bias(dy_block)
        else:
            ops.linear_backward_weight(dy_block, x, out=dw)
            ops.linear_backward_bias(dy_block, out=db)

    def _linear_layer(self, arrays: dict[int, Array]) -> tuple[Linear, Array, Array]:
        """The layer at hand, with what such arrays hold on its input and its output side."""
        i, rows = int(self.frame[LAYER]), slice(int(self.frame[IMAGES]))
        layer = self.model.stack[i]
        assert isinstance(layer, Linear)
        return layer, arrays[i][rows], arrays[i + 1][rows]


def _linear_range(model: Autoencoder) -> tuple[int, int]:
    """The first linear layer, and what comes behind the last."""
    linear = [i for i, layer in enumerate(model.stack) if isinstance(layer, Linear)]
    return linear[0], linear[-1] + 1


def _in_slots(model: Autoencoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the parameters whose gradients every chunk has for itself."""
    first, end = _linear_range(model)
    for name, shape in zip(model.names, model.shapes, strict=True):
        if not first <= int(name.split(".")[0]) < end:
            yield name, shape


def _slot_views(model: Autoencoder, slot: Array) -> Iterator[tuple[str, Array]]:
    start = 0
    for name, shape in _in_slots(model):
        size = int(np.prod(shape))
        yield name, slot[start : start + size].reshape(shape)
        start += size


def _blocks(features: int) -> list[slice]:
    return even_cuts(features, -(-features // BLOCKS))
