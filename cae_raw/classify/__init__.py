"""A trained encoder without its decoder, and a linear layer with softmax on the codes."""

from __future__ import annotations

from cae_raw.classify.classifier import Classifier
from cae_raw.classify.examples import Labelled, labelled_splits
from cae_raw.classify.results import Results
from cae_raw.classify.store import load_classifier, save_classifier
from cae_raw.classify.training import TrainingOptions, train_classifier

__all__ = [
    "Classifier",
    "Labelled",
    "Results",
    "TrainingOptions",
    "labelled_splits",
    "load_classifier",
    "save_classifier",
    "train_classifier",
]
