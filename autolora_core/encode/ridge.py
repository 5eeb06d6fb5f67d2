"""Kernel ridge regression with exact leave-one-out predictions.

Minimise ``Σ_i w_i ‖y_i − f(x_i)‖² + λ ‖f‖²`` over linear f. With K = X Xᵀ and G = K + λ W⁻¹ the solution is
``f(x) = (x Xᵀ) G⁻¹ Y``, and the prediction for i by the fit that never saw i is ``y_i − (G⁻¹Y)_i / (G⁻¹)_ii``
(Rifkin and Lippert 2007, "Notes on regularized least squares"): n refits for the price of one. There is no intercept:
centre X and Y with constants that do not depend on single rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# λ candidates, as multiples of the mean of K's diagonal.
LAMBDAS = tuple(float(10**e) for e in np.arange(-4, 3.01, 0.5))


@dataclass(frozen=True)
class KernelRidge:
    """A fitted model: ``X`` (n, F) float32; float64 ``dual`` = G⁻¹Y (n, d), ``left_out`` (n, d), ``weights`` (n,)."""

    X: np.ndarray
    dual: np.ndarray
    left_out: np.ndarray
    lam: float
    weights: np.ndarray

    @classmethod
    def fit(
        cls, X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None = None, lambdas: tuple[float, ...] = LAMBDAS
    ) -> KernelRidge:
        """Fit on ``X`` (n, F), ``Y`` (n, d), ``weights`` (n,) > 0 (default ones).

        λ is the candidate with the smallest weighted squared leave-one-out error; the strongest one on a tie.
        """
        X, Y = np.ascontiguousarray(X, np.float32), np.asarray(Y, np.float64)
        weights = _checked_weights(X, Y, weights)
        root = np.sqrt(weights)[:, None]
        K = _gram(X, X)
        base = float(np.trace(K)) / max(len(K), 1) or 1.0
        values, vectors = np.linalg.eigh(root * K * root.T)
        rotated = vectors.T @ (root * Y)
        best = None
        for lam in sorted({base * factor for factor in lambdas}, reverse=True):
            # G⁻¹ = W^½ Q (Λ + λ)⁻¹ Qᵀ W^½ with W^½ K W^½ = Q Λ Qᵀ
            inverse = 1 / (np.maximum(values, 0) + lam)
            dual = root * (vectors @ (inverse[:, None] * rotated))
            diagonal = root**2 * ((vectors**2) @ inverse)[:, None]
            missed = dual / diagonal
            error = float((root**2 * missed**2).sum())
            if best is None or error < best[0] * (1 - 1e-12):
                best = (error, cls(X, dual, Y - missed, lam, weights))
        return best[1]

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m, F) → (m, d) float64."""
        return _gram(np.asarray(X, np.float32), self.X) @ self.dual

    def loo(self) -> np.ndarray:
        """(n, d) float64: row i as predicted by the same λ without row i. Exact."""
        return self.left_out

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Arrays that :meth:`from_tensors` restores bit for bit."""
        arrays = {"X": self.X, "dual": self.dual, "left_out": self.left_out, "weights": self.weights}
        return {**arrays, "lam": np.array([self.lam])}

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> KernelRidge:
        """Inverse of :meth:`to_tensors`; ``KeyError`` when one is missing. Older files have no ``weights``: ones.

        Raises ValueError when the weights are not one positive number a row.
        """
        X, dual = tensors["X"], tensors["dual"]
        weights = _checked_weights(X, dual, tensors.get("weights"))
        return cls(X, dual, tensors["left_out"], float(tensors["lam"][0]), weights)


def _gram(A: np.ndarray, B: np.ndarray, block: int = 4096) -> np.ndarray:
    """A Bᵀ in float64, summed over column blocks so that no float64 copy of a wide matrix is made."""
    total = np.zeros((len(A), len(B)))
    for start in range(0, A.shape[1], block):
        total += A[:, start : start + block].astype(np.float64) @ B[:, start : start + block].T.astype(np.float64)
    return total


def _checked_weights(X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, np.float64)
    if not len(X) == len(Y) == len(weights) or len(X) == 0:
        raise ValueError(f"rows differ or none: X {len(X)}, Y {len(Y)}, weights {len(weights)}")
    if not (np.isfinite(X).all() and np.isfinite(Y).all() and (weights > 0).all()):
        raise ValueError("X and Y must be finite and every weight positive")
    return weights
