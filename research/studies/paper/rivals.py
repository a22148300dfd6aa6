"""The usual models for tables, from scikit-learn, under one rule: the best of 8 configurations by 3-fold validation.

All see the features and the training rows that the networks see. A Gaussian process, whose cost grows with the cube of
the rows, is left out beyond `MOST_ROWS`. scikit-learn's own network is no rival: it stands beside the dense network.
Symbols: N rows; F features.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC, SVR

FOLDS = 3
MOST_ROWS = 1000  # of a Gaussian process
TREES = 50
SKLEARN_MLP = "sklearn_mlp"
RIVALS = ("linear", "knn", "svm", "random_forest", "gradient_boosting", "gaussian_process")

Floats = NDArray[np.float64]
Grid = dict[str, list[Any]]


@dataclass(frozen=True)
class Rows:
    """Holds rows as networks see them: features, [N, F], and classes or numbers, [N]."""

    features: Floats
    labels: NDArray[Any]

    def drawn(self, count: int, seed: int) -> "Rows":
        """Draws so many rows at most."""
        order = np.random.default_rng(seed).permutation(len(self.labels))[:count]
        return Rows(self.features[order], self.labels[order])


@dataclass(frozen=True)
class Fitted:
    """Says what came of a rival: accuracy or R^2 on test rows, and the seconds of tuning and training."""

    name: str
    score: float
    seconds: float


def fit_rivals(
    names: Sequence[str], train: Rows, test: Rows, classifies: bool, tuning_rows: int, seed: int
) -> Iterator[Fitted]:
    """Tunes, trains and tests rivals; scikit-learn's network is taken as it comes.

    Args:
        names: Rivals, `SKLEARN_MLP` among them.
        train, test: Rows.
        classifies: Whether labels are classes.
        tuning_rows: Training rows at most that configurations are compared on.
        seed: Seed of folds, of rows and of the models.
    """
    folds = (StratifiedKFold if classifies else KFold)(FOLDS, shuffle=True, random_state=seed)
    some = train.drawn(tuning_rows, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer rows than folds, and of models that go on too long
        for name, (model, grid) in candidates(train.features.shape[1], classifies, seed).items():
            if name not in names or (name == "gaussian_process" and len(train.labels) > MOST_ROWS):
                continue
            start = time.perf_counter()
            best = GridSearchCV(model, grid, cv=folds, refit=False).fit(some.features, some.labels).best_params_
            model.set_params(**best).fit(train.features, train.labels)
            yield Fitted(name, model.score(test.features, test.labels), time.perf_counter() - start)
        if SKLEARN_MLP not in names:
            return
        start = time.perf_counter()
        own = (MLPClassifier if classifies else MLPRegressor)(random_state=seed).fit(train.features, train.labels)
        yield Fitted(SKLEARN_MLP, own.score(test.features, test.labels), time.perf_counter() - start)


def candidates(features: int, classifies: bool, seed: int) -> dict[str, tuple[Any, Grid]]:
    """Gives each rival with its 8 configurations.

    Args:
        features: F, which the distances between rows grow with.
        classifies: Whether labels are classes.
        seed: Seed of the models that draw.
    """
    strengths = np.logspace(-3, 4, 8).tolist()
    trees = {"n_estimators": TREES, "random_state": seed}
    boosting = {"max_iter": TREES, "early_stopping": False, "random_state": seed}
    linear: tuple[BaseEstimator, Grid]
    process: tuple[BaseEstimator, Grid]
    if classifies:
        linear = LogisticRegression(max_iter=200), {"C": strengths}
        kernels = [RBF(width * features**0.5) for width in np.logspace(-1.5, 1, 8)]
        process = GaussianProcessClassifier(optimizer=None), {"kernel": kernels}
    else:
        linear = Ridge(), {"alpha": strengths}
        widths, noises = np.logspace(-0.5, 1, 4), (0.01, 0.1)
        kernels = [RBF(width * features**0.5) + WhiteKernel(noise) for width in widths for noise in noises]
        process = GaussianProcessRegressor(optimizer=None), {"kernel": kernels}
    neighbours = KNeighborsClassifier() if classifies else KNeighborsRegressor()
    forest = (RandomForestClassifier if classifies else RandomForestRegressor)(**trees)
    boosted = (HistGradientBoostingClassifier if classifies else HistGradientBoostingRegressor)(**boosting)
    return {
        "linear": linear,
        "knn": (neighbours, {"n_neighbors": [1, 3, 7, 15], "weights": ["uniform", "distance"]}),
        "svm": (SVC() if classifies else SVR(), {"C": [0.1, 1, 10, 100], "gamma": ["scale", 0.2 / features]}),
        "random_forest": (forest, {"max_features": [0.2, 0.4, 0.7, 1.0], "min_samples_leaf": [1, 4]}),
        "gradient_boosting": (
            boosted,
            {"learning_rate": [0.1, 0.3], "max_leaf_nodes": [4, 15], "min_samples_leaf": [5, 20]},
        ),
        "gaussian_process": process,
    }
