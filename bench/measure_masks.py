"""How much of a picture goes around the code of a deep model, through its pooling masks.

    python bench/measure_masks.py RUN

prints the mse over the first 256 validation images of the run's data set when the decoder gets each
image's own masks, the centre of each window, or another image's masks; that of the mean image; and
that of one average code for every image, decoded with each image's own masks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cae_raw.commands.split_choice import choose_dataset
from cae_raw.data.scaling import to_floats
from cae_raw.models.masks import centre_masks, masks_of
from cae_raw.training.loading import load_checkpoint

IMAGES = 256


def main() -> None:
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    model = checkpoint.build_model()
    dataset, _ = choose_dataset(None, None, None, checkpoint, model, sys.stderr)
    x = to_floats(dataset.validation.first(IMAGES), model.value_range)
    code, own = model.encode(x), masks_of(model, x)
    average = np.repeat(code.mean(axis=0, keepdims=True), len(x), axis=0)
    outputs = {
        "each image's own masks": model.decode(code, own),
        "the centre of each window": model.decode(code, centre_masks(model, len(x))),
        "another image's masks": model.decode(code, masks_of(model, np.roll(x, 1, axis=0))),
        "one average code, own masks": model.decode(average, own),
        "the mean image": np.broadcast_to(x.mean(axis=0), x.shape),
    }
    print(f"mse over {len(x)} validation images")
    for name, y in outputs.items():
        print(f"  {name:28} {float(np.mean((y - x) ** 2, dtype=np.float64)):.4f}")


if __name__ == "__main__":
    main()
