r"""Which sentences made a property of word vectors: five estimators of one quantity.

All predict how much a query f changes when a sentence is REMOVED from training, and all but one are an inner product
of the sentence's gradient with a direction h, which :func:`clif_kit.sentence_stream.stream_scores` computes for a whole
corpus in one pass:

========================  =====================================================  =============================
estimator                 direction h                                            loss of a sentence
========================  =====================================================  =============================
gradient dot              :math:`\nabla f / P`                                   as trained
Algorithm 1, literally    not a direction: :math:`g_z^\top H_z \nabla f`          positives, input matrix
published LiSSA           its recursion on the input matrix                      positives, input matrix
exact per word            the limit of that recursion, one solve a word          positives, input matrix
full inverse Hessian      :math:`(H + \lambda I)^{-1} \nabla f / P`, both        as trained
                          matrices, the whole corpus
========================  =====================================================  =============================

Sign: positive = helpful (removing the sentence is predicted to raise f). Silva et al. (2022), equations 6 and 13.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from clif_kit.corpus import Corpus, pair_numbers
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.skipgram import Params, SkipgramLoss, gradient, hvp, input_block_hessian, pairs_of
from clif_kit.solvers import MatVec, NotConverged, SolverConfig, cg_solve, extreme_eigenvalues

DAMPING, SCALE = 0.01, 25.0  # of the public code's recursion


def dot_direction(query_gradient: Params, corpus: Corpus, loss: SkipgramLoss) -> Params:
    r"""Gradient dot, :math:`h = \nabla f / P`: the first-order change after one step of size 1 along the sentence.

    Args:
        query_gradient: From :func:`clif_kit.word_queries.query_gradient`.
        corpus: Gives P, the number of pairs.
        loss: Gives the window.
    """
    total = float(pair_numbers(corpus.lengths, loss.window).sum())
    return {name: block / total for name, block in query_gradient.items()}


def full_direction(
    objective: CorpusObjective,
    params: Params,
    query_gradient: Params,
    *,
    damping: float | None = None,
    gauss_newton: bool = False,
    rtol: float = 1e-4,
    max_iter: int = 1000,
) -> Params:
    r"""The full inverse Hessian by conjugate gradients, :math:`h = (H + \lambda I)^{-1} \nabla f / P`, both matrices.

    H is that of the whole objective, in its scaled variables, where the damping is an even one. Turning all vectors
    changes no sentence's loss, so at a minimum (no damping) the part of the query's gradient along turns is left out:
    nothing there depends on a sentence, and H has no inverse there.

    Args:
        objective: F, at whose minimum the parameters lie (or near it).
        params: The two matrices.
        query_gradient: Gradient of f.
        damping: :math:`\lambda`. None takes :func:`safe_damping`.
        gauss_newton: Take the positive semi-definite part of H, for vectors that are not at a minimum.
        rtol: Relative residual of the solve.
        max_iter: Products allowed.

    Raises:
        NotConverged: If H + λI has negative curvature, or the budget is spent.
    """
    x, b = objective.pack(params), objective.pack_gradient(query_gradient)
    times = objective.hessian_at(x, gauss_newton=gauss_newton)
    if damping is None:
        damping = 0.0 if gauss_newton else safe_damping(times, len(x), objective.dtype)
    if not damping and not gauss_newton:
        b = _without_turns(b.view(-1, objective.width), x.view(-1, objective.width)).flatten()
    solved = cg_solve(times, b, SolverConfig(damping=damping, rtol=rtol, max_iter=max_iter))
    h = (solved.x.view(2, -1, objective.width) / objective.root) / objective.total
    return {"input": h[0], "context": h[1]}


def safe_damping(times: MatVec, dim: int, dtype: torch.dtype) -> float:
    """0 at a minimum, else enough to lift the smallest eigenvalue to a hundredth of the largest.

    A minimum has flat directions (turning all vectors changes nothing), so a smallest eigenvalue of zero up to the
    accuracy of Lanczos is not a reason to damp.
    """
    low, high = extreme_eigenvalues(times, dim, rtol=1e-3, dtype=dtype)
    return 0.0 if low > -1e-6 * high else 1e-2 * high - low


def _without_turns(b: Tensor, x: Tensor) -> Tensor:
    """``b`` less its part along ``x A``, A antisymmetric, both (2V, d): A solves (x'x) A + A (x'x) = x'b - b'x."""
    values, basis = torch.linalg.eigh(x.T @ x)
    total, skew = values[:, None] + values, basis.T @ (x.T @ b - b.T @ x) @ basis
    turn = torch.where(total > 1e-12 * values[-1], skew / total, 0)  # a direction that no vector has cannot turn
    return b - x @ (basis @ turn @ basis.T)


def per_word_direction(
    params: Params, corpus: Corpus, query_gradient: Params, loss: SkipgramLoss, *, damping: float = DAMPING * SCALE
) -> Params:
    r"""The converged limit of the published recursion: one d x d solve for each word that the query sees.

    .. math:: h_w = (H_w + \lambda I)^{-1} \nabla_{u_w} f / n, \qquad
              H_w = \frac{1}{n} \sum_{z} \frac{1}{M_z} \sum_{c} \sigma'(u_w^\top v_c)\, v_c v_c^\top

    The context matrix is held fixed, so rows of the input matrix do not meet and the solve is exact. The n sentences
    are those with a word that the query sees, as in the public code.

    Args:
        params: The two matrices.
        corpus: The sentences.
        query_gradient: Its ``"input"`` block is used.
        loss: Usually :meth:`SkipgramLoss.published`.
        damping: :math:`\lambda`; the public code's recursion amounts to 0.01 · 25.
    """
    rows, chosen = _seen(query_gradient, corpus)
    pairs = pairs_of(corpus, loss, chosen, centres=rows)
    blocks = input_block_hessian(params, pairs) / len(chosen)
    place = {int(row): k for k, row in enumerate(pairs.centres)}
    h = torch.zeros_like(params["input"])
    for row in rows.tolist():
        block = blocks[place[row]] if row in place else torch.zeros_like(blocks[0])
        damped = block + damping * torch.eye(len(block)).to(block)
        h[row] = torch.linalg.solve(damped, query_gradient["input"][row].to(block)) / len(chosen)
    return {"input": h}


def lissa_published_direction(
    params: Params,
    corpus: Corpus,
    query_gradient: Params,
    loss: SkipgramLoss,
    *,
    depth: int = 5000,
    repeats: int = 10,
    damping: float = DAMPING,
    scale: float = SCALE,
    seed: int = 0,
) -> Params:
    r"""The published recursion, :math:`h \leftarrow v + (1 - \delta) h - H_z h / \sigma` from h = v, exactly.

    One sentence a step. Only rows that the query sees ever leave zero, and a row that a sentence does not hold follows
    :math:`h \leftarrow v + (1 - \delta) h`, whose value after any number of steps is known; so a step costs its own
    sentence and no more. As in the public code the result is *not* divided by the scale (its limit is
    :math:`\sigma (H + \delta\sigma I)^{-1} v`), the order is random, and repeats are averaged.

    Args:
        params: The two matrices.
        corpus: The sentences; those with a word that the query sees are visited.
        query_gradient: Its ``"input"`` block is v.
        loss: Usually :meth:`SkipgramLoss.published`; without negatives.
        depth: Most steps of a repeat; it ends earlier when the sentences do.
        repeats: Averaged runs (published: 10 for WEAT, 1 for displacement).
        damping: :math:`\delta`.
        scale: :math:`\sigma`.
        seed: Of the order.

    Raises:
        ValueError: If the loss has negatives, or the damping does not lie in (0, 1).
        NotConverged: If the recursion grows without bound.
    """
    if loss.negatives or not 0 < damping < 1:
        raise ValueError(
            "the published recursion sees positives only and needs 0 < damping < 1, "
            f"got negatives={loss.negatives:g} and damping={damping:g}"
        )
    rows, chosen = _seen(query_gradient, corpus)
    total = torch.zeros(len(rows), params["input"].shape[1], dtype=params["input"].dtype)
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(chosen)[:depth]
        with np.errstate(over="ignore", invalid="ignore"):  # said in words at the end
            total += _lissa(params, corpus, rows, query_gradient["input"][rows], loss, order, damping, scale)
    h = torch.zeros_like(params["input"])
    h[rows] = total / repeats / len(chosen)
    return {"input": h}


def algorithm_one_scores(
    params: Params, corpus: Corpus, query_gradients: Sequence[Params], loss: SkipgramLoss
) -> np.ndarray:
    r"""Algorithm 1 of the paper read literally: :math:`g_z^\top (H_z \nabla f)` for each sentence, ``(q, n)``.

    Line 8 of the algorithm multiplies by the Hessian of the one sentence and inverts nothing. Sentences without a word
    that the query sees score 0. Its sign is that of the other estimators: H is positive semi-definite there.

    Args:
        params: The two matrices.
        corpus: n sentences.
        query_gradients: One a query; their ``"input"`` blocks are used.
        loss: Usually :meth:`SkipgramLoss.published`.
    """
    out = np.zeros((len(query_gradients), len(corpus)))
    seen = [set(_seen(gradient_, corpus)[0].tolist()) for gradient_ in query_gradients]
    for i in corpus.containing(set().union(*seen)):
        if corpus.lengths[i] < 2:
            continue
        pairs = pairs_of(corpus, loss, [i])
        grad = gradient(params, pairs)["input"]
        zero = torch.zeros(len(pairs.contexts), grad.shape[1], dtype=grad.dtype)
        for k, query in enumerate(query_gradients):
            vector = {"input": query["input"][pairs.centres].to(grad), "context": zero}
            out[k, i] = float((grad * hvp(params, pairs, vector)["input"]).sum())
    return out / len(corpus)


def _seen(query_gradient: Params, corpus: Corpus) -> tuple[Tensor, np.ndarray]:
    """Rows that the query sees, and the sentences that hold one of them and have a pair."""
    if "input" not in query_gradient:
        raise ValueError("the query does not see the input matrix, which is all that the published estimators move")
    rows = torch.nonzero((query_gradient["input"] != 0).any(1)).flatten()
    chosen = corpus.containing(rows.tolist())
    chosen = chosen[corpus.lengths[chosen] > 1]
    if not len(chosen):
        raise ValueError("no sentence of two words or more holds a word that the query sees")
    return rows, chosen


def _lissa(
    params: Params, corpus: Corpus, rows: Tensor, v: Tensor, loss: SkipgramLoss, order: np.ndarray, damping: float,
    scale: float,
) -> Tensor:  # fmt: skip
    """One pass; ``h`` of a row is as of its last visit, and is brought up to date when it is met or at the end."""
    place = {int(row): k for k, row in enumerate(rows)}
    u, context, target = (m.numpy() for m in (params["input"][rows], params["context"], v.to(params["input"])))
    h, visited, keep = target.copy(), np.zeros(len(rows), dtype=np.int64), 1 - damping

    def catch_up(k: int, step: int) -> None:
        idle = keep ** (step - visited[k])
        h[k] = target[k] * (1 - idle) / damping + idle * h[k]
        visited[k] = step

    for step, i in enumerate(order):
        sentence = corpus.sentence(int(i))
        weight = 1 / pair_numbers(np.array([len(sentence)]), loss.window)[0] if loss.mean else 1.0
        for row in {int(word) for word in sentence if int(word) in place}:
            k = place[row]
            catch_up(k, step)
            near = context[_contexts(sentence, row, loss.window)]  # (contexts, d)
            p = expit(near @ u[k])
            curved = near.T @ (p * (1 - p) * (near @ h[k]))
            h[k] = target[k] + keep * h[k] - weight * curved / scale
            visited[k] = step + 1
    for k in range(len(rows)):
        catch_up(k, len(order))
    if not np.isfinite(h).all():
        raise NotConverged(f"the recursion grew without bound; raise the scale (now {scale:g})")
    return torch.from_numpy(h)


def _contexts(sentence: np.ndarray, row: int, window: int) -> np.ndarray:
    """The words near each place of ``row``, with repeats."""
    found = [
        np.concatenate([sentence[max(0, i - window) : i], sentence[i + 1 : i + 1 + window]])
        for i in np.flatnonzero(sentence == row)
    ]
    return np.concatenate(found)
