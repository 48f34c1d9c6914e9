"""Slow and obviously right: numpy closed forms, refits and plain loops. Nothing here imports clif_kit.

Softmax regression: logits are ``W x + b``; a parameter vector is ``W`` row by row, then
``b``, as in ``torch.nn.Linear``.
"""

import numpy as np
import torch


def ridge_fit(X, y, lam, weights=None):
    """Minimiser of ``(1/n) Σ w_i ½(x_i·θ - y_i)² + lam/2 |θ|²`` (the penalty is not reweighted)."""
    n, p = X.shape
    w = np.ones(n) if weights is None else weights
    return np.linalg.solve((X * w[:, None]).T @ X / n + lam * np.eye(p), X.T @ (w * y) / n)


def softmax_probabilities(theta, X, k):
    d = X.shape[1]
    logits = X @ theta[: k * d].reshape(k, d).T + theta[k * d :]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_gradients(theta, X, y, k, l2):
    """Row i: gradient of ``-log p(y_i | x_i) + l2/2 |θ|²``."""
    rows = []
    for x, label, prob in zip(X, y, softmax_probabilities(theta, X, k), strict=True):
        error = prob - np.eye(k)[label]
        rows.append(np.concatenate([np.outer(error, x).ravel(), error]) + l2 * theta)
    return np.stack(rows)


def softmax_hessian(theta, X, k, l2, weights=None):
    """Mean over examples of ``w_i (Jᵀ (diag p - p pᵀ) J + l2 I)``, J the Jacobian of the logits."""
    total = np.zeros((len(theta), len(theta)))
    for i, (x, prob) in enumerate(zip(X, softmax_probabilities(theta, X, k), strict=True)):
        J = np.hstack([np.kron(np.eye(k), x), np.eye(k)])  # (k, p)
        one = J.T @ (np.diag(prob) - np.outer(prob, prob)) @ J + l2 * np.eye(len(theta))
        total += one if weights is None else weights[i] * one
    return total / len(X)


def softmax_fit(X, y, k, l2, weights=None, start=None):
    """Newton from zero (or ``start``) on the weighted mean of ``-log p + l2/2 |θ|²``, to machine precision."""
    n, d = X.shape
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    theta = np.zeros(k * d + k) if start is None else start.copy()
    for _ in range(50):
        g = w @ softmax_gradients(theta, X, y, k, l2) / n
        if np.abs(g).max() < 1e-13:
            return theta
        theta = theta - np.linalg.solve(softmax_hessian(theta, X, k, l2, w), g)
    raise AssertionError(f"the oracle itself did not converge: |g| = {np.abs(g).max():.1e}")


def leave_one_out(n):
    """Rows of 0/1 weights, row i without example i."""
    return 1.0 - np.eye(n)


def loop_gradients(losses, params, batch):
    """Per-example gradients by a Python loop over examples and plain ``torch.autograd``."""
    rows = []
    for i in range(len(batch[0])):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        one = losses(leaves, *(value[i : i + 1] for value in batch)).sum()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, list(leaves.values()))]))
    return torch.stack(rows)


def autograd_hessian(losses, params, batch):
    """Dense Hessian of the mean loss by ``torch.autograd.functional`` on one flat vector."""
    sizes = [value.numel() for value in params.values()]

    def objective(vector):
        pieces = zip(params, vector.split(sizes), strict=True)
        return losses({name: piece.reshape(params[name].shape) for name, piece in pieces}, *batch).mean()

    return torch.autograd.functional.hessian(objective, torch.cat([value.reshape(-1) for value in params.values()]))


def random_symmetric(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    matrix = basis @ np.diag(eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


# --- skip-gram with negative sampling: one pair at a time. Sentences are lists of rows. ---


def skipgram_pairs(sentence, window):
    """(centre, context) by two plain loops over places; a word next to itself is a pair."""
    return [
        (w, c)
        for i, w in enumerate(sentence)
        for j, c in enumerate(sentence)
        if i != j and i - window <= j <= i + window
    ]


def sentence_loss(u, v, sentence, window, k=0.0, noise=None, mean=False):
    """``Σ [-log σ(u·v) - k Σ_c' q_c' log σ(-u·v_c')]`` over the pairs, or its mean over them; torch, for autograd."""
    log_sigmoid = torch.nn.functional.logsigmoid
    pairs = skipgram_pairs(sentence, window)
    total = 0 * u.sum() + 0 * v.sum()  # so that autograd has a path where there is no pair
    for w, c in pairs:
        total = total - log_sigmoid(u[w] @ v[c])
        if k:
            total = total - k * sum(q * log_sigmoid(-(u[w] @ v[other])) for other, q in enumerate(noise))
    return total / len(pairs) if mean and pairs else total


def skipgram_objective(u, v, sentences, everyone, window, k, noise, l2):
    """``(1/P) Σ_z loss + l2/2 Σ_w ρ_w (|u_w|² + |v_w|²)``; P and ρ are those of ``everyone``."""
    mass = torch.zeros(len(u), dtype=u.dtype)
    for sentence in everyone:
        for w, _ in skipgram_pairs(sentence, window):
            mass[w] += 1
    penalty = sum(mass[w] * (u[w] @ u[w] + v[w] @ v[w]) for w in range(len(u)))
    loss = sum(sentence_loss(u, v, sentence, window, k, noise) for sentence in sentences)
    return (loss + l2 / 2 * penalty) / mass.sum()
