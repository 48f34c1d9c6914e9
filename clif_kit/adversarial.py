r"""Adversarial training by gradient reversal, the baseline of the influence-tuning paper (section 5.1).

Two heads look at one encoder: the label's, and one for the confound, behind a layer that passes its input on and turns
the gradient round. The encoder then descends :math:`\ell_{label} - \lambda\, \ell_{confound}`, and the confound head
descends :math:`\ell_{confound}` itself (Ganin et al. 2016, Pryzant et al. 2018). The other controls need no code of
their own: :func:`clif_kit.finetune.fine_tune`, without dropout, or on data without the spurious attribute.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clif_kit.confounds import Confounded
from clif_kit.finetune import FineTuned, Hook, Schedule, by_length, minimise, with_dropout
from clif_kit.text_models import Losses, Params, TextModel, check, cross_entropy

WEIGHT, BIAS = "confound.weight", "confound.bias"


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -lam. A class because torch asks for one."""

    @staticmethod
    def forward(ctx, x: Tensor, lam: float) -> Tensor:
        ctx.lam = lam
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.lam * gradient, None


def reverse_gradient(x: Tensor, lam: float) -> Tensor:
    """The same x; the gradient that comes back through it is multiplied by -lam.

    >>> x = torch.tensor(2.0, requires_grad=True)
    >>> reverse_gradient(x, lam=0.3).square().backward()
    >>> x.grad
    tensor(-1.2000)
    """
    return _Reverse.apply(x, lam)


@dataclass(frozen=True)
class AdversariallyTrained(FineTuned):
    """What adversarial training made; ``loss`` is the sum of both cross-entropies.

    Attributes:
        head: Weight and bias of the confound head.
    """

    head: Params = field(repr=False)


def adversarial_train(
    model: TextModel,
    params: Params,
    train: Confounded,
    schedule: Schedule,
    lam: float,
    *,
    seed: int = 0,
    after: Hook | None = None,
    progress: bool = False,
) -> AdversariallyTrained:
    """Fine-tune with a confound head behind a gradient reversal.

    Args:
        model: The classifier; its dropout is at work if ``schedule`` says so.
        params: Where to start; left as they are.
        train: Texts, labels and confounds, all of them known.
        schedule: How. The paper's best: ``lr=5e-5, epochs=20`` for TextLen, 12 for MSGS.
        lam: Strength of the reversal, 0 or more (paper's best: 0.3). 0 trains a probe that the encoder does not feel.
        seed: Decides the new head, order and dropout.
        after: As for :func:`clif_kit.finetune.fine_tune`; it sees the classifier's parameters.
        progress: Draw a bar on the error stream.

    Raises:
        FloatingPointError: If the loss is not finite at some step.
        ValueError: If ``lam`` is negative, a confound is not known, there is only one, or what does not fit together.
    """
    check(model, params, train.tokens.ids, train.tokens.parts, train.y)
    if not lam >= 0:
        raise ValueError(f"lam must be 0 or more, got {lam}: the reversal has its minus sign already")
    if len(train.pool()) < len(train) or len(train.confound.unique()) < 2:
        raise ValueError("adversarial training needs the confound of every text, and two values of it at least")
    head = confound_head(model, params, int(train.confound.max()) + 1, seed=seed)
    losses = by_length(adversarial_losses(with_dropout(model, schedule.dropout), lam))
    batch = (train.tokens.ids, train.tokens.parts, train.y, train.confound)
    inner = None if after is None else lambda step, machine, leaves: after(step, machine, _without(leaves, head))
    found = minimise(losses, {**params, **head}, batch, schedule, seed=seed, after=inner, progress=progress)
    own = {name: found.params[name] for name in head}
    return AdversariallyTrained(_without(found.params, head), found.loss, found.lr, own)


def adversarial_losses(model: TextModel, lam: float) -> Losses:
    """Return ``losses(params, ids, parts, y, confound) -> (n,)``: cross-entropy of the label plus that of the confound.

    Both heads see the same features, after the model's last dropout; the confound's sees them through
    :func:`reverse_gradient`. ``params`` are the classifier's and the confound head's.
    """

    def losses(params: Params, ids: Tensor, parts: Tensor, y: Tensor, confound: Tensor) -> Tensor:
        longest = int((parts > 0).sum(1).max())
        ids, parts = ids[:, :longest], parts[:, :longest]
        own = _without(params, (WEIGHT, BIAS))
        embedded = model.embed(own, ids, parts)
        features = model.features(own, embedded, parts)
        guess = reverse_gradient(features, lam) @ params[WEIGHT].mT + params[BIAS]
        return cross_entropy(model.classify(own, embedded, features), y) + cross_entropy(guess, confound)

    return losses


def confound_head(model: TextModel, params: Params, values: int, *, seed: int = 0) -> Params:
    """Fresh parameters of a head with ``values`` outputs: normal weights of size 0.02, as BERT's heads, biases zero."""
    like = params[model.embedding]
    width = like.shape[1] if model.label_words else model.shapes[f"{model.head}.weight"][1]
    draw = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(values, width, generator=draw)
    return {WEIGHT: weight.to(like), BIAS: like.new_zeros(values)}


def _without(params: Params, names: object) -> Params:
    return {name: value for name, value in params.items() if name not in names}
