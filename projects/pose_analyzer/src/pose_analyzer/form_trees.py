"""Ensembles of decision trees as plain arrays, which `scripts/train_form_models.py` fills."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """Trees side by side, as many nodes each; a leaf leads to itself."""

    feature: Int[np.ndarray, "trees nodes"]
    """Column that a node looks at."""
    threshold: Float[np.ndarray, "trees nodes"]
    """At most this goes left."""
    left: Int[np.ndarray, "trees nodes"]
    right: Int[np.ndarray, "trees nodes"]
    value: Float[np.ndarray, "trees nodes"]
    """What a leaf answers."""
    depth: int
    """Of the deepest leaf; 0 for a lone root."""

    def mean_value(self, columns: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "n"]:
        """What the trees answer on average."""
        each = np.arange(len(self.feature))
        node = np.zeros((len(columns), len(each)), dtype=np.intp)
        rows = np.arange(len(columns))[:, None]
        for _ in range(self.depth):
            low = columns[rows, self.feature[each, node]] <= self.threshold[each, node]
            node = np.where(low, self.left[each, node], self.right[each, node])
        mean: Float[np.ndarray, "n"] = self.value[each, node].mean(axis=1)
        return mean
