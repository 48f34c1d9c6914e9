r"""One vector a text: the gradient of its loss, or a hidden state. What influence tuning compares.

A gradient in the table of word vectors is kept for the rows that the batch uses. The others are zero, so products and
norms are those of the whole table, and a large vocabulary costs nothing.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from clif_kit.example_vectors import ExampleVectors, Vectors, check_names, loss_gradients
from clif_kit.text_models import LogitLoss, Params, TextModel, cross_entropy, text_losses


def text_gradients(model: TextModel, names: Sequence[str] | None = None, loss: LogitLoss = cross_entropy) -> Vectors:
    r"""As :func:`loss_gradients`, of a text classifier: ``vectors(params, ids, parts, y)``, padding cut off first.

    Args:
        model: The classifier, without dropout. An attention that cannot be differentiated twice is replaced by the
            "eager" one, and a ``UserWarning`` says so.
        names: Names of parameters. None: all.
        loss: ``loss(logits, y) -> (n,)``.

    Raises:
        ValueError: If the model's dropout is at work, or a name is no parameter.
    """
    model = _eager(_still(model))
    if names is not None:
        check_names(names, model.shapes)

    def vectors(params: Params, ids: Tensor, parts: Tensor, y: Tensor) -> ExampleVectors:
        ids, parts = _cut(ids, parts)
        if names is not None and model.embedding not in names:
            return loss_gradients(text_losses(model, loss), names)(params, ids, parts, y)
        rows = torch.cat([ids[parts > 0], ids.new_tensor(model.label_words)]).unique()
        words = torch.searchsorted(rows, ids.new_tensor(model.label_words))
        small = replace(model, label_words=tuple(words.tolist()))
        found = loss_gradients(text_losses(small, loss), names)(
            {**params, model.embedding: params[model.embedding][rows]},
            torch.where(parts > 0, torch.searchsorted(rows, ids), 0), parts, y,
        )  # fmt: skip
        return replace(found, rows={model.embedding: rows})

    return vectors


def text_states(model: TextModel, state: str = "cls") -> Vectors:
    r"""The hidden state of each text, for embedding tuning: ``vectors(params, ids, parts, y)``, the label unused.

    The paper derives the cosine of [CLS] states h from that of the gradients in the row :math:`W_{(y)}` of the last
    layer, which are :math:`(p(y) - 1)\, h` (section 4.1; both examples have the label y, so the signs cancel). That
    needs h to be what enters the last layer. In BERT it is the *pooled* state :math:`\tanh(W_p h_{[CLS]} + b_p)`, and
    the authors' code takes that one; the text says [CLS].

    Args:
        model: The classifier, without dropout.
        state: "cls", the first token's last hidden state, or "pooled", what enters the last layer.

    Raises:
        ValueError: If the state is neither, the model has no transformer to take "cls" from, or its dropout is at work.
    """
    if state not in ("cls", "pooled"):
        raise ValueError(f"state must be 'cls' or 'pooled', got {state!r}")
    encoder = _encoder(_still(model)) if state == "cls" else None

    def vectors(params: Params, ids: Tensor, parts: Tensor, *_: Tensor) -> ExampleVectors:
        ids, parts = _cut(ids, parts)
        with _first_states(encoder) as seen:
            features = model.features(params, model.embed(params, ids, parts), parts)
        return ExampleVectors({state: seen[0] if encoder is not None else features})

    return vectors


def _cut(ids: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    longest = int((parts > 0).sum(1).max())
    return ids[:, :longest].contiguous(), parts[:, :longest]


def _still(model: TextModel) -> TextModel:
    if model.module.training:
        raise ValueError("influence is taken without dropout: pass the model itself, not model.training()")
    return model


def _eager(model: TextModel) -> TextModel:
    """The model with an attention that has a second derivative: fused kernels have the first one only."""

    def kinds(module: nn.Module) -> list:
        found = [getattr(part, "config", None) for part in module.modules()]
        return [config for config in found if getattr(config, "_attn_implementation", None) not in (None, "eager")]

    fused = kinds(model.module)
    if not fused:
        return model
    name = fused[0]._attn_implementation
    warnings.warn(f"attention {name!r} cannot be differentiated twice: 'eager' is used", UserWarning, stacklevel=3)
    module = copy.deepcopy(model.module)
    for config in kinds(module):
        config._attn_implementation = "eager"
    return replace(model, module=module)


def _encoder(model: TextModel) -> nn.Module:
    inner = getattr(model.module, "model", None)
    found = getattr(model.module, "encoder", None) or getattr(inner, "base_model", None)
    if not isinstance(found, nn.Module):
        raise ValueError("this model has no transformer, so no [CLS] state: use state='pooled'")
    return found


@contextmanager
def _first_states(encoder: nn.Module | None) -> Iterator[list[Tensor]]:
    """A list to which the encoder adds its first token's last hidden state, ``(n, h)``, when it runs."""
    seen: list[Tensor] = []
    if encoder is None:
        yield seen
        return
    handle = encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state[:, 0]))
    try:
        yield seen
    finally:
        handle.remove()
