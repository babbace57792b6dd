"""The pictures of a model, by name: for `cae-raw show`, TensorBoard and reports alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cae_raw.errors import unknown_name
from cae_raw.pictures.activations import code, decoder_maps, encoder_maps, masks, output
from cae_raw.pictures.curves import curves
from cae_raw.pictures.filters import decoder_filters, encoder_filters
from cae_raw.pictures.page import Picture
from cae_raw.pictures.results import errors, reconstructions
from cae_raw.pictures.view import View

# A figure makes a picture for each layer that it concerns; none where a model has no such layer.
FIGURES: dict[str, Callable[[View], Iterator[Picture]]] = {
    "reconstructions": reconstructions,
    "encoder_filters": encoder_filters,
    "decoder_filters": decoder_filters,
    "encoder_maps": encoder_maps,
    "decoder_maps": decoder_maps,
    "code": code,
    "masks": masks,
    "output": output,
    "errors": errors,
    "curves": curves,
}


WITHOUT_IMAGES = ("encoder_filters", "decoder_filters", "curves")  # figures that need none


def pictures(view: View, names: Iterable[str] | None = None) -> Iterator[Picture]:
    """The pictures of these figures (None: of all), made one by one.

    Raises:
        InputError: for an unknown name, before any picture is made.
    """
    chosen = list(FIGURES if names is None else names)
    for name in chosen:
        if name not in FIGURES:
            raise unknown_name("picture", name, FIGURES)
    return (picture for name in chosen for picture in FIGURES[name](view))
