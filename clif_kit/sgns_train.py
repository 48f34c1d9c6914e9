"""Training skip-gram vectors: gensim's word2vec, and a deterministic optimum to judge estimates by.

gensim is what people use; its draws and its threads make it noisy. :func:`fit` minimises the objective of
:mod:`clif_kit.sgns_objective` to a vanishing gradient instead, so that leaving sentences out has one answer.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gensim.models import Word2Vec
from scipy.optimize import minimize
from torch import Tensor

from clif_kit.corpus import Corpus
from clif_kit.sgns_objective import CorpusObjective
from clif_kit.skipgram import Params
from clif_kit.solvers import NotConverged, SolverConfig, cg_solve

RESOLVED = 1e-6  # gradient norm down to which F itself shows whether a step was good; below, rounding hides it


@dataclass(frozen=True)
class Fit:
    """An optimum.

    Attributes:
        params: ``{"input": (V, d), "context": (V, d)}``.
        x: The same in scaled variables.
        value: F.
        gradient_norm: Of F by ``x``.
    """

    params: Params
    x: Tensor
    value: float
    gradient_norm: float


def start(objective: CorpusObjective, seed: int, scale: float = 0.3) -> Tensor:
    """Random scaled variables: rows of normal numbers with standard deviation ``scale``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(objective.root), objective.width)
    draw = torch.randn(shape, generator=generator, dtype=torch.float64).to(objective.dtype)
    return (scale * draw * objective.root).flatten()


def fit(
    objective: CorpusObjective, x: Tensor, *, gtol: float = 1e-8, lbfgs_steps: int = 2000, newton_steps: int = 100
) -> Fit:
    """Minimise F from ``x``: L-BFGS, Newton-CG inside a trust region (both scipy's), plain Newton steps to end with.

    Near the optimum ``lbfgs_steps=0`` is enough: a warm start after a few sentences left takes some Newton steps.

    Args:
        objective: F.
        x: Where to begin.
        gtol: The norm of the gradient that counts as converged.
        lbfgs_steps: Most steps of the first method.
        newton_steps: Most steps of the second.

    Raises:
        ValueError: If the start holds values that are not finite.
        NotConverged: If the gradient stays above ``gtol``.
    """
    if not torch.isfinite(x).all():
        raise ValueError("the start holds values that are not finite")
    flat = x.numpy()
    if lbfgs_steps:

        def both(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective.value_and_gradient(torch.from_numpy(z))
            return value, gradient.numpy()

        options = {"maxiter": lbfgs_steps, "maxfun": 2 * lbfgs_steps, "maxcor": 20, "gtol": gtol, "ftol": 0.0}
        flat = minimize(both, flat, jac=True, method="L-BFGS-B", options=options).x
    point = torch.from_numpy(flat)
    for aim in (max(gtol, RESOLVED), gtol):
        point = _polish(objective, _newton(objective, point, aim, newton_steps), gtol)
        value, gradient = objective.value_and_gradient(point)
        norm = float(gradient.norm())
        if norm <= gtol:
            break
    else:
        raise NotConverged(
            f"training stopped at gradient norm {norm:.3g}, asked for {gtol:g}; raise lbfgs_steps or newton_steps, "
            "or the l2 penalty (flat directions converge slowly)"
        )
    return Fit(objective.unpack(point), point, value, norm)


def _newton(objective: CorpusObjective, x: Tensor, gtol: float, steps: int) -> Tensor:
    """Scipy's trust-region Newton-CG; value, gradient and Hessian of a point are made once."""
    seen: dict[str, object] = {"x": None}

    def at(z: np.ndarray) -> dict[str, object]:
        if seen["x"] is None or not np.array_equal(seen["x"], z):
            value, gradient = objective.value_and_gradient(torch.from_numpy(z))
            seen.update(x=z.copy(), value=value, gradient=gradient.numpy(), hessian=None)
        return seen

    def hessp(z: np.ndarray, direction: np.ndarray) -> np.ndarray:
        state = at(z)
        if state["hessian"] is None:
            state["hessian"] = objective.hessian_at(torch.from_numpy(z))
        return state["hessian"](torch.from_numpy(direction)).numpy()

    result = minimize(
        lambda z: at(z)["value"],
        x.numpy(),
        jac=lambda z: at(z)["gradient"],
        hessp=hessp,
        method="trust-ncg",
        options={"gtol": gtol, "maxiter": steps},
    )
    return torch.from_numpy(result.x)


def _polish(objective: CorpusObjective, x: Tensor, gtol: float, steps: int = 5) -> Tensor:
    """Newton steps that are judged by the gradient; near the optimum each makes its norm a thousand times smaller."""
    gradient = objective.value_and_gradient(x)[1]
    config = SolverConfig(damping=0.0, rtol=1e-3, max_iter=500)
    for _ in range(steps):
        if float(gradient.norm()) <= gtol:
            break
        try:
            trial = x - cg_solve(objective.hessian_at(x), gradient, config).x
        except NotConverged:
            break
        slope = objective.value_and_gradient(trial)[1]
        if not float(slope.norm()) < float(gradient.norm()):
            break
        x, gradient = trial, slope
    return x


# ---- gensim


@dataclass(frozen=True)
class Trained:
    """What gensim made.

    Attributes:
        params: The trained matrices, ``(V, d)``, float32.
        initial: The matrices before training.
    """

    params: Params
    initial: Params


def train_gensim(
    corpus: Corpus,
    *,
    seed: int,
    width: int = 100,
    window: int = 10,
    negatives: int = 10,
    epochs: int = 60,
    exponent: float = 0.75,
    learning_rate: float = 0.025,
    sample: float = 0.0,
    workers: int = 1,
) -> Trained:
    """Train gensim's word2vec (skip-gram, negative sampling, whole windows) on the corpus with its own vocabulary.

    With one worker the same seed gives the same bits. Several workers are faster and every run differs.

    Args:
        corpus: Sentences; the vocabulary and its counts (hence the noise) are the corpus's, also after
            :meth:`Corpus.without`.
        seed: Of the initial vectors and the draws.
        width: d.
        window: Words on either side.
        negatives: Noise words a pair.
        epochs: Passes.
        exponent: Of the noise distribution.
        learning_rate: At the start; it falls to 0.0001.
        sample: Threshold above which frequent words are skipped at random; 0 skips none.
        workers: Threads.
    """
    model = Word2Vec(
        vector_size=width, window=window, sg=1, hs=0, negative=negatives, ns_exponent=exponent, sample=sample,
        shrink_windows=False, alpha=learning_rate, min_count=1, seed=seed, workers=workers, epochs=epochs,
    )  # fmt: skip
    vocabulary = corpus.vocabulary
    model.build_vocab_from_freq(dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)))
    initial = from_gensim(model, vocabulary.words)
    model.train(_Texts(corpus), total_examples=len(corpus), epochs=epochs)
    return Trained(from_gensim(model, vocabulary.words), initial)


def from_gensim(model: Word2Vec, words: Sequence[str] | None = None) -> Params:
    """Return the two matrices of a gensim model.

    Args:
        model: Trained with skip-gram and negative sampling.
        words: The order of the rows (gensim orders words of equal count its own way). None keeps the model's.

    Raises:
        ValueError: If it was trained otherwise (CBOW, hierarchical softmax), where the loss is another one.
        KeyError: If the model lacks a word.
    """
    if not model.sg:
        raise ValueError("this model was trained with CBOW; skip-gram influence needs Word2Vec(sg=1)")
    if model.hs or not model.negative:
        raise ValueError("this model was trained with hierarchical softmax; train with Word2Vec(hs=0, negative=5)")
    if missing := [word for word in words or () if word not in model.wv.key_to_index]:
        raise KeyError(f"the model lacks {len(missing)} words of the vocabulary, such as {', '.join(missing[:5])}")
    order = np.arange(len(model.wv)) if words is None else [model.wv.key_to_index[word] for word in words]
    return {"input": torch.from_numpy(model.wv.vectors[order]), "context": torch.from_numpy(model.syn1neg[order])}


class _Texts:
    """The corpus as gensim wants it: lists of words, again and again."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.words = np.array(corpus.vocabulary.words, dtype=object)

    def __iter__(self) -> Iterator[list[str]]:
        words, offsets = self.words[self.corpus.tokens], self.corpus.offsets
        for first, last in itertools.pairwise(offsets):
            yield words[first:last].tolist()
