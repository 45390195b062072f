"""The linear part of `form_anomaly_detector`'s general model, learned from made-up people too.

Few people acted faults, so that a model may take for a fault how one of them is built or stands.
Everybody's faults are therefore put upon everybody else's correct repetitions: what is left that
tells faulty from correct is the fault.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pose_analyzer import form_anomaly_detector as detector
from pose_analyzer import form_anomaly_features as features

Array = np.ndarray
Recorded = tuple[features.Course, Array]
"""One person's repetitions of a movement, and which are faulty."""

N_COMPONENTS = 80
INVERSE_PENALTY = 1.0
# How much of another's fault is put upon a person, and which share of all such repetitions is made.
SEVERITY = (0.6, 1.2)
MADE_UP_SHARE = 0.3


def made_up(people: Sequence[Recorded], rng: np.random.Generator) -> tuple[Array, Array]:
    """What people would look like with each other's repetitions: columns, and which are faulty.

    The mean of one person's correct repetitions, and how another's repetition differs from the mean
    of theirs. All are seen with one draw of keypoint errors.
    """
    trajectories, tempos, labels = [], [], []
    for field in ("trajectory", "mirrored"):
        means = [
            (getattr(course, field)[~faulty].mean(axis=0), course.tempo[~faulty].mean(axis=0))
            for course, faulty in people
        ]
        for source, (course, faulty) in enumerate(people):
            for target, (mean, tempo) in enumerate(means):
                if source == target:
                    continue
                rows = np.flatnonzero(rng.random(len(faulty)) < MADE_UP_SHARE)
                size = np.where(faulty[rows], rng.uniform(*SEVERITY, len(rows)), 1.0)[:, None]
                moved = getattr(course, field)[rows] - means[source][0]
                trajectories.append(mean + size[:, None] * moved)
                tempos.append(tempo + size * (course.tempo[rows] - means[source][1]))
                labels.append(faulty[rows])
    trajectory, tempo = np.concatenate(trajectories), np.concatenate(tempos)
    return features.general_features(trajectory, tempo), np.concatenate(labels)


def fit_linear(
    columns: Array, faulty: Array, draws: Sequence[Sequence[Recorded]]
) -> detector.LinearModel:
    """Logistic regression on principal components, from real and made-up repetitions.

    Components keep their sizes beside each other, so that the penalty falls on the small ones.
    """
    rng = np.random.default_rng(0)
    made = [made_up(people, rng) for people in draws]
    columns = np.concatenate([columns, *(c for c, _ in made)])
    faulty = np.concatenate([faulty, *(f for _, f in made)])
    scaler = StandardScaler().fit(columns)
    pca = PCA(N_COMPONENTS, svd_solver="randomized", random_state=0)
    placed = pca.fit_transform(scaler.transform(columns))
    size = np.sqrt(pca.explained_variance_[0])
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=300, class_weight="balanced")
    model.fit(placed / size, faulty)
    on_scaled = model.coef_[0] @ pca.components_ / size
    weights = on_scaled / scaler.scale_
    bias = float(model.intercept_[0] - on_scaled @ pca.mean_ - weights @ scaler.mean_)
    return detector.LinearModel(weights, bias)
