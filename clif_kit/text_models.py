r"""Text classifiers as functions of their parameters, cut open at the word vectors and before the last layer.

.. math:: \text{ids} \to \text{embedded } (n, L, d) \to \text{features } (n, h) \to \text{logits } (n, \text{classes})

Influence methods need the gradient at the first arrow (TracIn on word embeddings) and what enters the last one (methods
on the last layer), so both places are public. Padding never scores: the features do not depend on it.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Params = dict[str, Tensor]
Losses = Callable[..., Tensor]  # losses(params, ids, parts, y) -> (n,)
LogitLoss = Callable[[Tensor, Tensor], Tensor]  # loss(logits, y) -> (n,)


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A classifier of token rows; ``ids`` and ``parts`` are those of :class:`clif_kit.text_tokens.Tokens`.

    Attributes:
        module: From ``embedded`` and ``parts`` to features; its own weights are never used.
        embedding: Name of the table of word vectors, ``(rows, d)``.
        head: Name of the last linear layer.
        shapes: The shape of every parameter; the table may have any number of rows.
        label_words: Rows of the table that serve as the weight of the last layer, one a class: tied embeddings. Empty
            for a last layer with a weight of its own.
        max_length: The longest text that the model can take. None: any.
    """

    module: nn.Module = field(repr=False)
    embedding: str
    head: str
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    label_words: tuple[int, ...] = ()
    max_length: int | None = None

    def rows(self, ids: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Every look-up in the table for a text, ``(n, L + tied)``, and whether it counts (padding does not).

        The label words of a tied model are looked up too, so that their gradient is that of the whole table.
        """
        tied = ids.new_tensor(self.label_words, dtype=torch.long).expand(len(ids), -1)
        return torch.cat([ids, tied], 1), torch.cat([parts > 0, torch.ones_like(tied, dtype=torch.bool)], 1)

    def embed(self, params: Params, ids: Tensor, parts: Tensor) -> Tensor:
        """The word vectors of :meth:`rows`, ``(n, L + tied, d)``."""
        return functional.embedding(self.rows(ids, parts)[0], params[self.embedding])

    def features(self, params: Params, embedded: Tensor, parts: Tensor) -> Tensor:
        """What enters the last layer, ``(n, h)``."""
        outside = (self.embedding, f"{self.head}.weight", f"{self.head}.bias")
        inner = {name: value for name, value in params.items() if name not in outside}
        inner.update(self.module.named_buffers())
        return functional_call(self.module, inner, (embedded[:, : parts.shape[1]], parts), strict=True)

    def classify(self, params: Params, embedded: Tensor, features: Tensor) -> Tensor:
        """The last layer, ``(n, classes)``; ``embedded`` matters to a tied model only."""
        if self.label_words:
            logits = torch.einsum("nh,nch->nc", features, embedded[:, -len(self.label_words) :])
        else:
            logits = features @ params[f"{self.head}.weight"].mT
        return logits + params.get(f"{self.head}.bias", 0.0)

    def logits(self, params: Params, ids: Tensor, parts: Tensor) -> Tensor:
        """Outputs ``(n, classes)``."""
        embedded = self.embed(params, ids, parts)
        return self.classify(params, embedded, self.features(params, embedded, parts))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.label_words) or self.shapes[f"{self.head}.weight"][0]

    def training(self) -> "TextModel":
        """The same model with its dropout at work, for fine-tuning; scores are taken without."""
        return replace(self, module=copy.deepcopy(self.module).train())

    def layers(self, *, bias: bool = False) -> dict[str, tuple[str, ...]]:
        """Parameter names by layer, from the first to the last; the blocks of a transformer are ``layer.0`` ...

        Args:
            bias: With the biases; the TracIn-WE paper leaves them out, since they suffer most from cancellation.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name in self.shapes:
            if bias or not name.endswith("bias"):
                block = re.search(r"(?:^|\.)layer\.(\d+)\.", name)
                key = f"layer.{block[1]}" if block else name.rpartition(".")[0]
                found[key] = (*found.get(key, ()), name)
        return found


def text_cnn(
    rows: int,
    classes: int,
    *,
    width: int = 128,
    filters: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[TextModel, Params]:
    """The CNN of the TracIn-WE paper and fresh parameters: convolutions of 5, 5 and 1 tokens, maximum, linear.

    Start as in the authors' notebook: vectors uniform in +-0.05, Glorot weights, biases zero. They pad to 128 tokens
    and let padding take part; here a text ends where it ends (zeros beyond, no maximum there), so short ones work.

    Args:
        rows: Size of the table of word vectors.
        classes: Outputs.
        width: Length of a word vector.
        filters: Of each convolution: 10 in the paper, 50 in the authors' notebook.
        activation: After each convolution.
        seed: Decides the parameters.
        dtype: Of the parameters.

    >>> model, params = text_cnn(rows=30, classes=4)
    >>> sum(value.numel() for name, value in params.items() if name != model.embedding)
    7074
    >>> model.logits(params, torch.tensor([[3, 5, 4]]), torch.ones(1, 3, dtype=torch.long)).shape
    torch.Size([1, 4])
    """
    whole = nn.Module()
    with torch.device("meta"):
        whole.embedding, whole.features = nn.Embedding(rows, width), _Convolutions(width, filters, activation)
        whole.head = nn.Linear(filters, classes)
    params, draw = {}, torch.Generator().manual_seed(seed)
    for name, value in whole.named_parameters():
        start = torch.zeros(value.shape)
        if name == "embedding.weight":
            start.uniform_(-0.05, 0.05, generator=draw)
        elif not name.endswith("bias"):
            nn.init.xavier_uniform_(start, generator=draw)
        params[name.removeprefix("features.")] = start.to(dtype)
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    return TextModel(module=skeleton(whole.features), embedding="embedding.weight", head="head", shapes=shapes), params


class _Convolutions(nn.Module):
    def __init__(self, width: int, filters: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, filters, 5, padding="same")
        self.conv2 = nn.Conv1d(filters, filters, 5, padding="same")
        self.conv3 = nn.Conv1d(filters, filters, 1)
        self.activation = activation()

    def forward(self, embedded: Tensor, parts: Tensor) -> Tensor:
        real = (parts > 0).unsqueeze(1)  # (n, 1, L)
        x = embedded.mT * real  # (n, d, L)
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = self.activation(convolution(x)) * real  # a bias makes padding speak: silence it each time
        return x.masked_fill(~real, -torch.inf).amax(-1)


def skeleton(module: nn.Module) -> nn.Module:
    """The module with its weights taken out (moved to the meta device), in evaluation mode; buffers stay."""
    seen: dict[int, nn.Parameter] = {}  # a parameter in two places stays one
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if id(value) not in seen:
                seen[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
            setattr(part, name, seen[id(value)])
    return module.eval()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the log probability of the class ``y``, in nats, ``(n,)``."""
    return functional.cross_entropy(logits, y, reduction="none")


def negative_probability(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the probability of the class ``y``, ``(n,)``: what deletion curves look at, negated (lower is better)."""
    return -torch.softmax(logits, -1).gather(1, y[:, None]).squeeze(1)


def each_loss(loss: LogitLoss, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each example, ``(n,)``, whatever reduction a module of ``torch.nn`` was made with.

    Raises:
        ValueError: If a function returns something else than one number an example.

    >>> each_loss(nn.CrossEntropyLoss(reduction="mean"), torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor([1.3863, 1.3863])
    """
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    each = loss(logits, y)
    if each.shape != y.shape[:1]:
        raise ValueError(
            f"the loss returned the shape {tuple(each.shape)} for {len(y)} examples: return one number each"
        )
    return each


def text_losses(
    model: TextModel, loss: LogitLoss = cross_entropy, fixed: Params | None = None, *, trim: bool = False
) -> Losses:
    """Return ``losses(params, ids, parts, y) -> (n,)``, to train with or to differentiate.

    Args:
        model: The classifier.
        loss: Of logits and label.
        fixed: Parameters that do not take part, such as a frozen table of word vectors.
        trim: Cut each batch to its longest text first, which is quicker in training; ``vmap`` cannot.
    """

    def losses(params: Params, ids: Tensor, parts: Tensor, y: Tensor) -> Tensor:
        if trim:
            longest = int((parts > 0).sum(1).max())
            ids, parts = ids[:, :longest], parts[:, :longest]
        return each_loss(loss, model.logits({**(fixed or {}), **params}, ids, parts), y)

    return losses


def check(model: TextModel, params: Params, ids: Tensor, parts: Tensor, y: Tensor | None = None) -> None:
    """Refuse what does not fit together.

    Raises:
        ValueError: If the parameters are of another architecture, a token has no row in the table (the tokenizer is
            another model's), a text is longer than the model can take or has no token, or a label is no class.
    """
    got = {name: tuple(value.shape) for name, value in params.items()}
    _check_shapes({**got, model.embedding: got.get(model.embedding, ())[1:]}, model)
    _check_tokens(model, len(params[model.embedding]), ids, parts)
    if y is not None and len(y) != len(ids):
        raise ValueError(f"there are {len(ids)} texts and {len(y)} labels")
    if y is not None and not y.is_floating_point() and len(y) and not 0 <= int(y.min()) <= int(y.max()) < model.classes:
        bad = int(torch.nonzero((y < 0) | (y >= model.classes))[0])
        raise ValueError(f"text {bad} has the label {int(y[bad])}, the model has the classes 0 to {model.classes - 1}")


def _check_shapes(got: dict[str, tuple[int, ...]], model: TextModel) -> None:
    want = {**model.shapes, model.embedding: model.shapes[model.embedding][1:]}
    if got != want:
        differ = [n for n in (*want, *(n for n in got if n not in want)) if got.get(n) != want.get(n)]
        first, rest = differ[0], f", and {len(differ) - 1} more" if len(differ) > 1 else ""
        shapes = f"{got.get(first, 'missing')} where {want.get(first, 'nothing')} is expected"
        raise ValueError(f"the checkpoint is of another architecture ({first}: {shapes}{rest})")


def _check_tokens(model: TextModel, rows: int, ids: Tensor, parts: Tensor) -> None:
    if ids.shape != parts.shape or ids.ndim != 2:
        raise ValueError(f"ids and parts must be (n, length), got {tuple(ids.shape)} and {tuple(parts.shape)}")
    used = torch.cat([ids[parts > 0], ids.new_tensor(model.label_words, dtype=torch.long)])
    if len(used) and not 0 <= int(used.min()) <= int(used.max()) < rows:
        bad = int(used.max()) if int(used.max()) >= rows else int(used.min())
        raise ValueError(f"token {bad} has no row in the table of {rows}: the tokenizer is not this model's")
    lengths = (parts > 0).sum(1)
    if len(lengths) and not int(lengths.min()):
        raise ValueError(f"text {int(lengths.argmin())} has no token: leave it out, or use a tokenizer that adds some")
    longest = int(lengths.max()) if len(lengths) else 0
    if model.max_length is not None and longest > model.max_length:
        raise ValueError(f"a text has {longest} tokens, the model takes {model.max_length}: encode with max_length")
