"""What TensorBoard shows of a training: scalars, histograms and pictures, in event files.

The run's folders `train` and `validation` each hold the figures of their split under the same tags,
so that both are curves in one chart, and `tensorboard --logdir runs` shows runs side by side.

    half_mse        without penalty; of training: the mean over an epoch while the weights move
    loss            what is trained on: half_mse or mse, plus the penalty, less an L1 term on
                    the code, whose value is never computed
    penalty, lr, images_per_second
    batch/half_mse  of a single batch, about 20 times an epoch
    parameter_norm/*, gradient_norm/*
                    Euclidean, of all parameters and of each array; gradients are those of the
                    epoch's last batch, of the error and the L1 term without the penalty
    histograms      of each array of parameters
    pictures        see `cae_raw.pictures.figures`, of images of the validation split

The step is the number of batches since the start. Events are written before the checkpoint that
they lead up to, and those beyond the checkpoint are removed when a training resumes. So a training
that was killed and resumed leaves the same events as one that was not, but for times.

On two cores this takes 0.3 s for a set of pictures of the single-layer model on CIFAR-10, and 2 ms
for the rest of an epoch, which takes 10 s.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from cae_raw.layers.loss import LOSSES
from cae_raw.pictures.figures import FIGURES, pictures
from cae_raw.pictures.save import png_bytes
from cae_raw.pictures.view import View
from cae_raw.training.event_file import Event, EventFile, cut_back
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import BatchDone, EpochDone, Trainer

BATCHES = 20  # how often in an epoch a single batch's error is written
IN_EPOCH = ("batch/", "gradient_norm/")  # tags that are written when a batch is done
SHOWN_IMAGES = 16
IMAGES_EVERY = 10  # epochs, by default
SHARE = 0.02  # of the time, on a machine so fast that pictures would take more of it
BINS = 64
LARGEST = 1 << 17  # elements of an array that a histogram counts; of larger ones a part, evenly
SHOWN = [name for name in FIGURES if name != "curves"]  # TensorBoard draws them itself


class EventRecorder:
    """A recorder (see `training.session`) that writes event files.

    Args:
        run: whose `event_folders` they go to; it is locked by the caller.
        images_every: epochs from one set of pictures to the next; the first and the last epoch
            always leave one. 0: no pictures. None: every `IMAGES_EVERY` epochs, less those that
            would take more than `SHARE` of the training's time.

    Raises:
        InputError: from every method, if a file cannot be written.
    """

    def __init__(self, run: RunDir, images_every: int | None = None) -> None:
        self.run, self.images_every = run, images_every
        self.seconds = self.of_pictures = 0.0  # spent here on training, and on pictures

    def begin(self, trainer: Trainer, epochs: int) -> None:
        state = trainer.state
        self.trainer, self.epochs = trainer, epochs
        self.batches_apart = max(1, trainer.batches_per_epoch // BATCHES)
        trainer.report_batches = self.batches_apart

        def is_before(event: Event) -> bool:
            """Whether a resumed training will not write the event again."""
            if event.step != state.step or not state.batch:
                return bool(event.step <= state.step)
            return event.summary.value[0].tag.startswith(IN_EPOCH)  # the epoch is not over yet

        for folder in self.run.event_folders:
            cut_back(folder, is_before)
        first = state.step + 1 if state.step else 0
        self.train, self.validation = (EventFile(f, first) for f in self.run.event_folders)

    def batch(self, done: BatchDone) -> None:
        state = self.trainer.state
        last = state.batch == self.trainer.batches_per_epoch
        if last or state.batch % self.batches_apart == 0:
            self._scalar(self.train, "batch/half_mse", done.half_mse)
        if last:  # gradients are held until the next step, but not by a checkpoint
            self._norms("gradient_norm", self.trainer.engine.gradients)

    def epoch(self, done: EpochDone) -> None:
        record, trainer = done.record, self.trainer
        penalty = trainer.optimizer.penalty()
        times = LOSSES[trainer.engine.loss.kind] / LOSSES["half_mse"]
        for file, half_mse in (
            (self.train, record.train_half_mse),
            (self.validation, record.validation_half_mse),
        ):
            self._scalar(file, "half_mse", half_mse)
            self._scalar(file, "loss", times * half_mse + penalty)
        self._scalar(self.train, "penalty", penalty)
        self._scalar(self.train, "lr", record.lr)
        self._scalar(self.train, "images_per_second", record.images_per_second)
        host = self._norms("parameter_norm", trainer.model.parameters)
        for name, values in trainer.model.split(host).items():
            self.train.add(trainer.state.step, tag=f"parameters/{name}", histo=histogram(values))
        self.seconds += record.seconds
        if self._pictures_due(record.epoch):
            started = time.perf_counter()
            self._pictures(record.epoch)
            self.of_pictures += time.perf_counter() - started

    def flush(self) -> None:
        """Write everything heard so far."""
        self.train.flush()
        self.validation.flush()

    def end(self) -> None:
        try:
            self.train.close()
        finally:
            self.validation.close()

    def _scalar(self, file: EventFile, tag: str, value: float) -> None:
        file.add(self.trainer.state.step, tag=tag, simple_value=value)

    def _norms(self, tag: str, flat: Any) -> np.ndarray:
        """Write the norm of a flat vector and of its parts; returns it on the host."""
        host = self.trainer.model.backend.to_numpy(flat)
        squares = {
            name: float(np.vdot(part, part))
            for name, part in self.trainer.model.split(host).items()
        }
        self._scalar(self.train, f"{tag}/all", sum(squares.values()) ** 0.5)
        for name, square in squares.items():
            self._scalar(self.train, f"{tag}/{name}", square**0.5)
        return host

    def _pictures_due(self, epoch: int) -> bool:
        if self.images_every == 0:
            return False
        if epoch in (1, self.epochs):
            return True
        if self.images_every is None and self.of_pictures > SHARE * self.seconds:
            return False
        return epoch % (self.images_every or IMAGES_EVERY) == 0

    def _pictures(self, epoch: int) -> None:
        from tensorboardX.proto import summary_pb2

        trainer = self.trainer
        images = np.asarray(trainer.dataset.validation.first(SHOWN_IMAGES))
        view = View(trainer.model, images, name=self.run.path.name, epoch=epoch)
        for picture in pictures(view, SHOWN):
            file = self.train if picture.about == "weights" else self.validation
            image = summary_pb2.Summary.Image(
                height=picture.image.height,
                width=picture.image.width,
                colorspace=3,
                encoded_image_string=png_bytes(picture.image, compress_level=3),
            )
            file.add(trainer.state.step, tag=picture.name, image=image)


def histogram(values: np.ndarray) -> Any:
    """Finite values counted in `BINS` bins of one width, as a `HistogramProto`.

    Of more than `LARGEST` values every k-th is counted.
    """
    from tensorboardX.proto.summary_pb2 import HistogramProto

    counted = values.ravel()[:: -(-values.size // LARGEST) or 1]
    counted = counted[np.isfinite(counted)].astype(np.float64)
    if not counted.size:
        return HistogramProto()
    counts, edges = np.histogram(counted, BINS)
    return HistogramProto(
        min=float(counted.min()),
        max=float(counted.max()),
        num=counted.size,
        sum=float(counted.sum()),
        sum_squares=float(counted @ counted),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )
