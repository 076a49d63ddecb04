"""Match the connected components of two masks, to score the detection of lesions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_IOU = 0.1  # above which a predicted component may be a reference component


class Detection(NamedTuple):
    """Numbers of matched, superfluous and missed components."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """Share of the predicted components that are matched; NaN without any."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the reference components that are matched; NaN without any."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """``2 TP / (2 TP + FP + FN)``; NaN where neither mask has a component."""
        twice = 2 * self.true_positives
        return _ratio(twice, twice + self.false_positives + self.false_negatives)


def detect_components(prediction: NDArray, reference: NDArray, min_iou: float = MIN_IOU) -> Detection:
    """Match predicted to reference components one to one, as many pairs as possible.

    Components are connected by faces, edges or corners. Two of them may be a pair if their intersection over union is
    above ``min_iou``; 0.1 is the threshold of nnDetection (Baumgartner et al. 2021, arXiv:2106.00817) and of the PI-CAI
    challenge, low because the borders of small lesions are uncertain (Metrics Reloaded, Maier-Hein et al. 2024,
    doi:10.1038/s41592-023-02151-z). No component is in two pairs, so one large blob over many lesions finds one of them
    at most. The matching is a maximum one, so the counts do not depend on the order of components.

    Args:
        prediction: (H, W, D), nonzero inside.
        reference: (H, W, D).
        min_iou: from 0 to below 1; 0 takes any overlap.

    Raises:
        ValueError: ``min_iou`` out of range.
    """
    from scipy.ndimage import label
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not 0 <= min_iou < 1:
        raise ValueError(f"min_iou={min_iou}; expected a number from 0 to below 1.")
    touching = np.ones((3, 3, 3), bool)
    predicted, predictions = label(prediction, touching)
    referenced, references = label(reference, touching)
    both = (predicted > 0) & (referenced > 0)
    pairs, overlaps = np.unique(np.stack([predicted[both], referenced[both]]), axis=1, return_counts=True)
    sizes = np.bincount(predicted.ravel())[pairs[0]] + np.bincount(referenced.ravel())[pairs[1]]
    close = overlaps > min_iou * (sizes - overlaps)
    rows, columns = pairs[:, close] - 1
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (max(predictions, 1), max(references, 1)))
    matched = int((maximum_bipartite_matching(graph.tocsr()) >= 0).sum())
    return Detection(matched, predictions - matched, references - matched)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
