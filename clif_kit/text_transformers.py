"""Transformer classifiers: any of Hugging Face, from a folder or by name; MiniLM offline; or with random weights."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clif_kit import datasets
from clif_kit.text_models import Params, TextModel, skeleton


def transformer(
    source: str | os.PathLike | Any | None = None,
    *,
    classes: int,
    layers: int | None = None,
    pooling: str = "own",
    label_words: Sequence[int] = (),
    dropout: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[TextModel, Params]:
    """A classifier on a transformer, and its parameters; weights that the source does not have are drawn afresh.

    Args:
        source: A local folder or a name on the Hugging Face hub; a configuration of ``transformers`` for random weights
            (see :func:`roberta_config`); None for MiniLM-L6 from its pip package, offline and checked.
        classes: Outputs.
        layers: Keep the first so many blocks. None: all.
        pooling: "own": the head that the library gives this family, on the first token. "mean": a last layer on the
            mean of the hidden states, padding left out.
        label_words: One row of the table of word vectors a class, the weight of the last layer: tied embeddings (with
            "mean" only).
        dropout: In :meth:`TextModel.training`, everywhere in the network.
        seed: Decides the fresh weights.
        dtype: Of the parameters.

    Raises:
        ValueError: If there is no such model, it has no table of word vectors or uses it elsewhere too, its last layer
            is not found, or the options do not go together.

    >>> model, params = transformer(roberta_config(rows=30, width=8, layers=1), classes=3)
    >>> model.logits(params, torch.tensor([[0, 9, 2]]), torch.ones(1, 3, dtype=torch.long)).shape
    torch.Size([1, 3])
    >>> list(model.layers())[-3:]
    ['layer.0', 'model.classifier.dense', 'model.classifier.out_proj']
    """
    if pooling not in ("own", "mean") or (label_words and (pooling != "mean" or len(label_words) != classes)):
        raise ValueError("pooling is 'own' or 'mean'; label_words need 'mean' and one row a class")
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        inner = _read(source, classes, layers, dropout, headless=pooling == "mean").to(dtype)
        whole = _Mean(inner, classes, tied=bool(label_words)).to(dtype) if pooling == "mean" else _Own(inner)
    table, head = _table(whole, inner), _head(whole, inner, classes)
    if label_words and whole.get_parameter(table).shape[1] != inner.config.hidden_size:
        raise ValueError("the word vectors are not as wide as the hidden states: no label_words for this model")
    _settle_mask(whole, inner, whole.get_parameter(table).detach())
    params = {name: value.detach().clone() for name, value in whole.named_parameters()}
    params = {table: params.pop(table), **params}
    for name in (table.removesuffix(".weight"), head):
        whole.set_submodule(name, nn.Identity())
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    names = {"embedding": table, "head": head, "label_words": tuple(label_words)}
    return TextModel(module=skeleton(whole), shapes=shapes, max_length=_longest(inner), **names), params


def roberta_config(rows: int, *, width: int = 128, layers: int = 2, heads: int = 2, max_length: int = 128) -> Any:
    """A small configuration of RoBERTa's family, for random weights: positions that count on from the padding's row.

    Args:
        rows: Of the table of word vectors, see :func:`clif_kit.text_tokens.byte_pair_tokenizer`.
        width: Of the hidden states.
        layers: Blocks.
        heads: Of the attention.
        max_length: The longest text in tokens.
    """
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=max_length + 2, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip


class _Own(nn.Module):
    """The library's classifier; with its last layer taken out, its outputs are the features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.plain = model, False

    def forward(self, embedded: Tensor, parts: Tensor) -> Tensor:
        return self.model(**_inputs(self.model.config, embedded, parts, self.plain)).logits


class _Mean(nn.Module):
    """The mean of the hidden states over what is not padding."""

    def __init__(self, encoder: nn.Module, classes: int, *, tied: bool) -> None:
        super().__init__()
        self.encoder, self.plain = encoder, False
        self.dropout = nn.Dropout(getattr(encoder.config, "hidden_dropout_prob", 0.0))
        self.classifier = nn.Linear(encoder.config.hidden_size, classes)
        if tied:
            del self.classifier.weight

    def forward(self, embedded: Tensor, parts: Tensor) -> Tensor:
        hidden = self.encoder(**_inputs(self.encoder.config, embedded, parts, self.plain)).last_hidden_state
        real = (parts > 0).unsqueeze(-1)  # (n, L, 1)
        return self.dropout((hidden * real).sum(1) / real.sum(1))


def _inputs(config: Any, embedded: Tensor, parts: Tensor, plain: bool) -> dict[str, Tensor]:
    """What every family understands. An additive mask ``(n, 1, 1, L)`` is not looked into, so ``vmap`` works."""
    real = parts > 0
    if plain:
        mask = real.long()
    else:
        mask = torch.zeros_like(parts, dtype=embedded.dtype).masked_fill(~real, torch.finfo(embedded.dtype).min)
        mask = mask[:, None, None, :]
    segments = {"token_type_ids": (parts == 2).long()} if getattr(config, "type_vocab_size", 0) > 1 else {}
    return {"inputs_embeds": embedded, "attention_mask": mask, **segments}


@torch.no_grad()
def _settle_mask(whole: nn.Module, inner: nn.Module, table: Tensor) -> None:
    """Choose the mask with which a padded text of word vectors gives what its bare tokens give to the library.

    A decoder would lose its direction with the additive mask, DeBERTa cannot read it; a head on the last token would
    read padding.
    """
    rows = [row for row in range(len(table)) if row != inner.config.pad_token_id]
    ids = torch.tensor([rows[-3:]])
    found = inner.eval()(input_ids=ids)
    wanted = found.logits if isinstance(whole, _Own) else found.last_hidden_state.mean(1)
    padded = torch.cat([ids, torch.full((1, 2), rows[0])], 1)
    for whole.plain in (False, True):
        got = whole.eval()(nn.functional.embedding(padded, table), (torch.arange(5) < 3).long()[None])
        if got.shape == wanted.shape and (got - wanted).abs().max() <= 1e-4 * wanted.abs().max():
            return
    raise ValueError(
        f"{type(inner).__name__} with pooling={'own' if isinstance(whole, _Own) else 'mean'!r} lets padding in, or "
        "changes word vectors after the look-up; a head on the last token does: then use pooling='mean'"
    )


def _read(source: Any, classes: int, layers: int | None, dropout: float, *, headless: bool) -> nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig

    kind = AutoModel if headless else AutoModelForSequenceClassification
    where = datasets.minilm() if source is None else source
    try:
        random = isinstance(source, PretrainedConfig)
        config = copy.deepcopy(source) if random else AutoConfig.from_pretrained(where)
        _adapt(config, classes, layers, dropout)
        options = {"config": config, "attn_implementation": "eager"}
        if random:
            model = kind.from_config(**options)
        else:
            model = kind.from_pretrained(where, ignore_mismatched_sizes=True, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        kind_of = type(source).__name__ if random else repr(str(where))
        raise ValueError(f"no text classifier from {kind_of}: {str(error).strip().splitlines()[0]}") from error
    if headless and hasattr(model, "pooler"):
        model.pooler = None  # it would have parameters that nothing uses
    return model


def _adapt(config: Any, classes: int, layers: int | None, dropout: float) -> None:
    config.num_labels = classes
    if layers is not None and not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"layers must be 1 to {config.num_hidden_layers} for this model, got {layers}")
    if layers is not None:
        config.num_hidden_layers = layers
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float | int):
            setattr(config, name, dropout)


def _table(whole: nn.Module, inner: nn.Module) -> str:
    """The name of the table of word vectors."""
    found = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    kind = type(inner).__name__
    if not isinstance(found, nn.Embedding):
        raise ValueError(f"{kind} has no table of word vectors, so TracIn on word embeddings is not defined for it")
    names = [name for name, value in whole.named_parameters(remove_duplicate=False) if value is found.weight]
    if len(names) > 1:
        raise ValueError(f"{kind} uses its table of word vectors as {names[1]} too: take pooling='mean', label_words")
    return names[0]


def _head(whole: nn.Module, inner: nn.Module, classes: int) -> str:
    """The name of the last linear layer."""
    encoder = f"model.{inner.base_model_prefix}." if isinstance(whole, _Own) else "encoder."
    found = [
        name
        for name, part in whole.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == classes and not name.startswith(encoder)
    ]
    if not found:
        raise ValueError(f"{type(inner).__name__} has no last linear layer with {classes} outputs: use pooling='mean'")
    return found[-1]


def _longest(inner: nn.Module) -> int | None:
    """Tokens that the table of positions has room for; RoBERTa's counts on from the padding's row."""
    for name, part in inner.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No report of the weights that a shorter model leaves out, no bar."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
