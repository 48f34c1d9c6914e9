"""A task, a model and a recipe put together: train it, look how good it is, train it again without some examples.

Retrainings keep everything but the examples that left: start, order, batches and dropout come from the seed, and an
example that is left out weighs 0 where it stood. So two retrainings with one seed differ by those examples alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from clif_kit.text_models import Params, TextModel, text_cnn, text_losses
from clif_kit.text_tasks import TextTask
from clif_kit.text_tokens import Tokens, byte_pair_tokenizer, compact, encode, read_tokenizer
from clif_kit.text_transformers import roberta_config, transformer
from clif_kit.train import Checkpoint, Fitted, fit


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the training texts.
        lr: Learning rate, constant.
        batch_size: Texts a step.
        optimizer: "sgd" (with momentum .9, as the paper's CNN), "adamw" or "adam".
        frozen: Leave the table of word vectors as it is.
        last_only: Train the last layer alone.
        checkpoints: TracIn looks at the model after so many epochs, evenly spaced, the last one among them.
    """

    epochs: int
    lr: float
    batch_size: int = 32
    optimizer: str = "sgd"
    frozen: bool = False
    last_only: bool = False
    checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if not 1 <= self.checkpoints <= self.epochs:
            raise ValueError(f"checkpoints must be 1 to {self.epochs} (the epochs), got {self.checkpoints}")


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.01, fused=True),
}


@dataclass(frozen=True, kw_only=True)
class TextStudy:
    """Everything that decides a model but the seed.

    Attributes:
        task: The texts.
        kind: "cnn", "bert" or "roberta".
        model: The classifier.
        start: Parameters before training, by seed.
        recipe: How to train.
        train: Encoded training texts.
        val: Encoded validation texts.
        test: Encoded test texts.
    """

    task: TextTask
    kind: str
    model: TextModel
    start: Callable[[int], Params] = field(repr=False)
    recipe: Recipe
    train: Tokens = field(repr=False)
    val: Tokens = field(repr=False)
    test: Tokens = field(repr=False)

    def labels(self, split: str) -> Tensor:
        """Labels of ``"train"``, ``"val"`` or ``"test"``, ``(n,)``."""
        return torch.tensor(getattr(self.task, split)["label"].to_numpy(np.int64, copy=True))


def make_text_study(
    task: TextTask, kind: str, recipe: Recipe, *, max_length: int = 64, layers: int = 2, width: int = 128
) -> TextStudy:
    """Encode the texts and build the model; only word vectors that some text uses are kept.

    Args:
        task: The texts.
        kind: "cnn" (the paper's, with BERT's word pieces), "bert" (MiniLM, pretrained) or "roberta" (random weights).
        recipe: How to train.
        max_length: Tokens of a text at most.
        layers: Blocks of a transformer that are kept.
        width: Of the CNN's word vectors, and of the hidden states of "roberta".

    Raises:
        ValueError: If the kind is unknown, or a text is empty for the tokenizer.
    """
    splits = (task.train, task.val, task.test)
    if kind not in ("cnn", "bert", "roberta"):
        raise ValueError(f"kind must be 'cnn', 'bert' or 'roberta', got {kind!r}")
    own = kind == "roberta"
    tokenizer = byte_pair_tokenizer(list(task.train["text"]), size=4000) if own else read_tokenizer()
    pairs = [None if (split["pair"] == "").all() else list(split["pair"]) for split in splits]
    found = [
        encode(tokenizer, list(split["text"]), pair, max_length=max_length)
        for split, pair in zip(splits, pairs, strict=True)
    ]
    rows, found = compact(*found)
    model, start = _build(kind, rows, len(found[0].names), len(task.classes), layers, width, max_length)
    names = dict(zip(("train", "val", "test"), found, strict=True))
    return TextStudy(task=task, kind=kind, model=model, start=start, recipe=recipe, **names)


def train_text(study: TextStudy, seed: int, keep: np.ndarray | None = None) -> Fitted:
    """Train once; its checkpoints are those that TracIn looks at, with all parameters.

    Args:
        study: What to train.
        seed: Of start, order and dropout.
        keep: Which training texts take part, bool, ``(n,)``. None: all.
    """
    recipe, n = study.recipe, len(study.train)
    params, model = study.start(seed), study.model
    fixed = {name: value for name, value in params.items() if _is_fixed(study, name)}
    free = {name: value for name, value in params.items() if name not in fixed}
    steps = -(-n // recipe.batch_size)
    found = fit(
        text_losses(model.training(), fixed=fixed, trim=True), free,
        (study.train.ids, study.train.parts, study.labels("train")), steps=recipe.epochs * steps, lr=recipe.lr,
        batch_size=recipe.batch_size, optimizer=OPTIMIZERS[recipe.optimizer], seed=seed,
        weights=None if keep is None else torch.from_numpy(keep).float(), checkpoint_every=steps,
    )  # fmt: skip
    every = np.linspace(0, recipe.epochs, recipe.checkpoints + 1)[1:].round().astype(int) - 1
    points = [found.checkpoints[k] for k in every]
    whole = tuple(Checkpoint({**params, **point.params}, point.lr, point.step) for point in points)
    return Fitted(whole[-1].params, found.loss, found.history, whole)


def predict(study: TextStudy, params: Params, split: str = "test", *, chunk: int = 128) -> Tensor:
    """Logits of a split, ``(n, classes)``, without dropout."""
    tokens: Tokens = getattr(study, split)
    with torch.no_grad():
        parts = [tokens.take(slice(k, k + chunk)) for k in range(0, len(tokens), chunk)]
        return torch.cat([study.model.logits(params, part.ids, part.parts) for part in parts])


def accuracy(study: TextStudy, params: Params, split: str = "val") -> float:
    """Share of a split that is classified right."""
    return float((predict(study, params, split).argmax(1) == study.labels(split)).float().mean())


def retrain_text(study: TextStudy) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """Return ``fit(keep, seed)``: train without some texts, report the test texts' true class.

    ``probability`` of it, ``(tests,)``, and ``loss``, in nats; and the ``accuracy`` on the validation texts.
    """

    def fit_again(keep: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        params = train_text(study, seed, keep).params
        log = torch.log_softmax(predict(study, params), 1)
        true = log.gather(1, study.labels("test")[:, None]).squeeze(1).double().numpy()
        return {"probability": np.exp(true), "loss": -true, "accuracy": np.array(accuracy(study, params))}

    return fit_again


def _is_fixed(study: TextStudy, name: str) -> bool:
    if study.recipe.last_only:
        return not name.startswith(f"{study.model.head}.")
    return study.recipe.frozen and name == study.model.embedding


def _build(
    kind: str, rows: Tensor, size: int, classes: int, layers: int, width: int, max_length: int
) -> tuple[TextModel, Callable[[int], Params]]:
    if kind == "cnn":
        return text_cnn(size, classes, width=width)[0], lambda seed: text_cnn(size, classes, width=width, seed=seed)[1]
    whole = roberta_config(size, width=width, layers=layers, max_length=max_length) if kind == "roberta" else None
    model, _ = transformer(whole, classes=classes, layers=layers)

    def start(seed: int) -> Params:
        params = transformer(whole, classes=classes, layers=layers, seed=seed)[1]
        return params if whole is not None else {**params, model.embedding: params[model.embedding][rows]}

    return model, start
