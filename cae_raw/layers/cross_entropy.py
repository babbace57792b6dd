"""The loss of a classifier."""

from __future__ import annotations

import numpy as np

from cae_raw.errors import InputError
from cae_raw.layers.base import Array
from cae_raw.ops.cross_entropy import cross_entropy


class CrossEntropyLoss:
    """Mean over the batch of -log softmax(logits)[label], as PyTorch's class of this name."""

    def forward(self, logits: Array, labels: Array) -> tuple[float, Array]:
        """(value, dlogits): the loss, and its gradient with respect to the logits.

        Args:
            logits: (N, K), any finite numbers: they are not normalised.
            labels: int64 or uint8 (N,), each in [0, K). Others give NaN.

        Raises:
            InputError: for other shapes or types.
        """
        total, dlogits = self.partial(logits, labels, len(logits))
        return float(total[0]) / max(1, len(logits)), dlogits

    def partial(self, logits: Array, labels: Array, rows: int) -> tuple[Array, Array]:
        """The same for a part of a batch that has `rows` rows in all.

        Returns (total, dlogits): the sum of the part's losses, of shape (1,), and its share of the
        gradient of the whole batch's mean.
        """
        if len(logits.shape) != 2 or logits.shape[1] < 1:
            raise InputError(f"logits are (N, K) with K at least 1, not {tuple(logits.shape)}")
        if tuple(labels.shape) != (len(logits),):
            raise InputError(f"{len(logits)} rows of logits and labels {tuple(labels.shape)}")
        if labels.dtype not in (np.int64, np.uint8):
            raise InputError(f"labels are int64 or uint8, not {labels.dtype}")
        return cross_entropy(logits, labels, scale=1 / max(1, rows))

    def __call__(self, logits: Array, labels: Array) -> tuple[float, Array]:
        return self.forward(logits, labels)

    def __repr__(self) -> str:
        return "CrossEntropyLoss()"
