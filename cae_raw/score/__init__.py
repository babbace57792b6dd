"""Images ranked by how badly a model reconstructs them: what it has not seen comes first."""

from __future__ import annotations

from cae_raw.score.auroc import Roc, roc
from cae_raw.score.ranking import Ranking, Score, threshold_of
from cae_raw.score.scorer import Scorer

__all__ = ["Ranking", "Roc", "Score", "Scorer", "roc", "threshold_of"]
