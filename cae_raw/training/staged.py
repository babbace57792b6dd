"""A training step in stages, for models with linear layers in their middle, on the CPU.

Convolutions want a batch in small parts, whose maps stay in the cache. A linear layer wants it in
one piece: the deep model's two have 59 MB of weights, which every part would read three times over
and write the gradients of. So each kind of layer gets the batch the way it needs it:

                    parts of the batch            blocks of features
                    (a few images each)           (the whole group of images)

    forward     A  encoder  ----- x (N, F) -----> B  linear layers
                                                        |
                C  decoder, loss, decoder's  <----- y (N, F)
                   gradients  ---- dy (N, F) ---> D  linear layers' gradients
                                                        |
    backward    E  encoder's gradients  <------- dx (N, F)

Everything in a column is spread over the threads; a line across is a wait for all of them. A group
is at most GROUP images, so that what A keeps for E (half a megabyte per image) is bounded; further
groups add their gradients to those of the first. The bits of the result depend on none of this but
the sizes of parts, blocks and groups, which are functions of the model and the image size: sums run
in the order of parts and groups, whichever thread computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cae_raw.layers import Gradients, Layer, Linear, MaxPool2d, MSELoss, Trace
from cae_raw.models import Autoencoder
from cae_raw.ops import linear as ops
from cae_raw.ops.windows import even_cuts

Array = Any
Parts = Sequence[np.ndarray]  # of a group: which images make up each part
Load = Callable[[np.ndarray], Array]  # a part's images, scaled
InOrder = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # map() on the threads

GROUP = 256  # images
BLOCKS = 8  # that the features of each linear layer are cut into: a few for each thread


class StagedStep:
    """Loss and gradients of a model that has linear layers.

    Args:
        model: on the CPU.
        loss: of its outputs against its inputs.
        in_order: runs a function for each of some items, in threads; results in order of the items.
    """

    def __init__(self, model: Autoencoder, loss: MSELoss, in_order: InOrder) -> None:
        self.model, self.loss, self.in_order = model, loss, in_order
        linear = [i for i, layer in enumerate(model.stack) if isinstance(layer, Linear)]
        self.first, self.end = linear[0], linear[-1] + 1
        self.gradients = np.empty_like(model.parameters)
        self._views = model.split(self.gradients)
        self._small = [n for n in self._views if int(n.split(".")[0]) not in linear]

    @staticmethod
    def serves(model: Autoencoder) -> bool:
        """Whether the model is one for this class."""
        return any(isinstance(layer, Linear) for layer in model.stack)

    def step(self, groups: Sequence[Parts], load: Load, elements: int) -> Array:
        """Fill `gradients` for a batch of so many elements; returns its squared error, (1,)."""
        total = np.zeros(1)
        for name in self._small:
            self._views[name].fill(0)
        for i, parts in enumerate(groups):
            for error in self._group(parts, load, elements, add=i > 0):
                total += error
        return total

    def squared_error(self, groups: Sequence[Parts], load: Load) -> float:
        """The sum of squared errors over all groups."""
        return sum(error for parts in groups for error in self._errors(parts, load))

    # --- one group --------------------------------------------------------------------------

    def _group(self, parts: Parts, load: Load, elements: int, *, add: bool) -> list[Array]:
        """Write or `add` its linear layers' gradients, add the others; the errors of its parts."""
        numbers, middle, errors = range(len(parts)), Trace(), []
        images, traces, x = self._encode(parts, load)
        y = self._linear_forward(x, middle)
        dy = np.empty_like(y)
        ys, dys = _split(y, parts), _split(dy, parts)

        def decode(k: int) -> tuple[Array, Gradients]:
            trace, grads = dict(traces[k]), Gradients()  # the decoder's part of it goes when done
            output = self.model.forward(ys[k], trace, start=self.end)
            error, doutput = self.loss.partial(output, images[k], elements)
            dys[k][...] = self.model.backward(doutput, trace, grads, start=self.end)
            return error, grads

        def encoder_gradients(k: int) -> Gradients:
            grads = Gradients()
            self.model.backward(dxs[k], traces[k], grads, need_dx=False, until=self.first)
            traces[k].clear()
            return grads

        for error, grads in self.in_order(decode, numbers):
            errors.append(error)
            self._add(grads)
        dxs = _split(self._linear_backward(dy, middle, add=add), parts)
        for grads in self.in_order(encoder_gradients, numbers):
            self._add(grads)
        return errors

    def _errors(self, parts: Parts, load: Load) -> list[float]:
        """The squared error of each part, by A, B and the first half of C."""
        images, traces, x = self._encode(parts, load, keep=MaxPool2d)
        ys = _split(self._linear_forward(x, {}), parts)

        def decode(k: int) -> float:
            output = self.model.forward(ys[k], traces[k], start=self.end)
            traces[k].clear()
            return float(self.loss.partial(output, images[k], 1)[0][0])

        return list(self.in_order(decode, range(len(parts))))

    def _encode(
        self, parts: Parts, load: Load, *, keep: type[Layer] = Layer
    ) -> tuple[list[Array], list[Trace], Array]:
        """A: the parts' images, their traces (of layers of one kind), the linear layers' input."""
        traces: list[Trace] = [{} for _ in parts]
        features = self.model.stack[self.first].params["weight"].shape[1]
        x = np.empty((sum(map(len, parts)), features), self.gradients.dtype)
        xs = _split(x, parts)

        def encode(k: int) -> Array:
            images, trace = load(parts[k]), Trace()
            xs[k][...] = self.model.forward(images, trace, until=self.first)
            traces[k] = {layer: kept for layer, kept in trace.items() if isinstance(layer, keep)}
            return images

        return list(self.in_order(encode, range(len(parts)))), traces, x

    def _add(self, grads: Gradients) -> None:
        for name, value in grads.items():
            self._views[name] += value

    # --- linear layers ----------------------------------------------------------------------

    def _linear_forward(self, x: Array, trace: Trace) -> Array:
        """B: through the linear layers and whatever stands between them."""
        for layer in self.model.stack[self.first : self.end]:
            if isinstance(layer, Linear):
                trace[layer] = x
                x = self._forward_in_blocks(layer, x)
            else:
                x = layer.forward(x, trace)
        return x

    def _linear_backward(self, dy: Array, trace: Trace, *, add: bool) -> Array:
        """D: back again; the gradients are written, or added to what is there."""
        for i in reversed(range(self.first, self.end)):
            layer = self.model.stack[i]
            if isinstance(layer, Linear):
                dw, db = self._views[f"{i}.weight"], self._views[f"{i}.bias"]
                dy = self._backward_in_blocks(layer, trace[layer], dy, dw, db, add=add)
            else:
                grads = Gradients()
                dy = layer.backward(dy, trace, grads)
                self._add({f"{i}.{name}": value for name, value in grads.items()})
        return dy

    def _forward_in_blocks(self, layer: Linear, x: Array) -> Array:
        """Every task makes a few of the output features, for all images."""
        w, b = layer.weight, layer.bias
        y = np.empty((len(x), len(w)), x.dtype)

        def outputs(block: slice) -> None:
            y[:, block] = ops.linear_forward(x, w[block], b[block])

        _exhaust(self.in_order(outputs, _blocks(len(w))))
        return y

    def _backward_in_blocks(
        self, layer: Linear, x: Array, dy: Array, dw: Array, db: Array, *, add: bool
    ) -> Array:
        """Every task makes some rows of dw and db, or a few features of dx, from all images."""
        w = layer.weight
        dx = np.empty_like(x)

        def weights(block: slice) -> None:
            part = np.ascontiguousarray(dy[:, block])
            if add:
                dw[block] += ops.linear_backward_weight(part, x)
                db[block] += ops.linear_backward_bias(part)
            else:
                ops.linear_backward_weight(part, x, out=dw[block])
                ops.linear_backward_bias(part, out=db[block])

        def inputs(block: slice) -> None:
            dx[:, block] = ops.linear_backward_input(dy, w[:, block])

        tasks = [(weights, block) for block in _blocks(len(w))]
        tasks += [(inputs, block) for block in _blocks(w.shape[1])]
        _exhaust(self.in_order(lambda task: task[0](task[1]), tasks))
        return dx


def _split(rows: Array, parts: Parts) -> list[Array]:
    """Views of the rows that belong to each part."""
    return np.split(rows, np.cumsum([len(part) for part in parts])[:-1])


def _blocks(features: int) -> list[slice]:
    return even_cuts(features, -(-features // BLOCKS))


def _exhaust(results: Iterator[Any]) -> None:
    for _ in results:
        pass
