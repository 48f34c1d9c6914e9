r"""A gradient product taken apart by the chain rule: saliency, similarity, saliency (Yeh et al. 2022, section 2.1).

.. math:: \nabla_W \ell(x) \cdot \nabla_W \ell(x') = \sum_{c, d} L_c(x')\, S_{cd}(x, x')\, L_d(x), \qquad
          L_d(x) = \frac{\partial \ell(x)}{\partial f_d}, \quad
          S_{cd}(x, x') = \frac{\partial f_c(x')}{\partial W} \cdot \frac{\partial f_d(x)}{\partial W}

Choosing a layer W is choosing a similarity; the saliencies stay. Sign: positive = helpful, as for every score.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from clif_kit.text_models import Params, TextModel
from clif_kit.text_tokens import Tokens
from clif_kit.traced import Traced
from clif_kit.tracin_layers import last_layer


class Factors(NamedTuple):
    r"""A gradient product taken apart by the chain rule: :math:`L(x)\, S(x, x')\, L(x')`.

    ``train``: loss gradients in the logits, ``(n, classes)``. ``similarity``: inner products of the logits' gradients,
    ``(q, classes, n, classes)``. ``query``: ``(q, classes)``.
    """

    train: np.ndarray
    similarity: np.ndarray
    query: np.ndarray

    def product(self) -> np.ndarray:
        """The score, ``(q, n)``."""
        return np.einsum("qc,qcnd,nd->qn", self.query, self.similarity, self.train)


def factors(train: Traced, query: Traced, names: Sequence[str], c: int = -1) -> Factors:
    """The three factors of TracIn in some parameters at checkpoint ``c``, for a few texts (Jacobians are large).

    Args:
        train: n training texts.
        query: q texts.
        names: Parameters.
        c: Checkpoint; its learning rate is not in the factors.
    """
    model, params = train.model, train.checkpoints[c].params
    c = c % len(train.checkpoints)
    one, other = (_jacobians(model, params, side.tokens, names) for side in (train, query))
    similarity = torch.einsum("qcp,ndp->qcnd", other, one).numpy()
    return Factors(last_layer(train, c).residuals, similarity, last_layer(query, c).residuals)


def _jacobians(model: TextModel, params: Params, tokens: Tokens, names: Sequence[str]) -> Tensor:
    """Gradients of each logit of each text, ``(n, classes, p)``."""
    chosen = {name: params[name] for name in names}
    rows = []
    for i in range(len(tokens)):
        text = tokens.take([i])
        found = jacrev(lambda theta, text=text: model.logits({**params, **theta}, text.ids, text.parts)[0])(chosen)
        rows.append(torch.cat([found[name].flatten(1) for name in names], 1))
    return torch.stack(rows)
