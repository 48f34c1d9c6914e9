"""TracIn by captum, on the table of word vectors and on the last layer. Imported in the rivals' environment only.

It gets single precision, its quickest batch size, batches that are padded to their own longest text, and the attention
that transformers itself chooses, which is quicker here than the one that ours needs.
"""

from collections.abc import Callable, Mapping

from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.tracin import BATCHES, LR, WORDS, bert

Inputs = Mapping[str, Tensor]


class Classifier(nn.Module):
    """Logits alone, of two tensors: what captum can call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(n, classes)``."""
        return self.model(input_ids=ids, attention_mask=mask).logits


def _batches(inputs: Inputs, name: str, size: int) -> list[tuple[Tensor, ...]]:
    """Texts in their order, padded no further than the batch needs."""
    whole = [inputs[f"{name}.{part}"] for part in ("ids", "parts", "y")]
    found = []
    for ids, parts, y in zip(*(value.split(size) for value in whole), strict=True):
        longest = int(parts.sum(1).max())
        found.append((ids[:, :longest], parts[:, :longest], y))
    return found


def captum(inputs: Inputs) -> Callable[[], Tensor]:
    """Scores as (queries, texts). All queries are one batch: of several it would take them anew for each."""
    last = bool(inputs["last"])
    model = Classifier(bert({name: value for name, value in inputs.items() if name.startswith("model.")}))
    batches = _batches(inputs, "train", BATCHES["last" if last else "we"])
    (query,) = _batches(inputs, "query", len(inputs["query.y"]))
    where = {"checkpoints": [""], "checkpoints_load_func": lambda *_: LR}

    def run() -> Tensor:
        train = DataLoader(batches, batch_size=None)
        if last:
            loss = nn.CrossEntropyLoss(reduction="sum")
            return TracInCPFast(model, model.model.classifier, train, loss_fn=loss, **where).influence(query)
        loss = nn.CrossEntropyLoss(reduction="none")
        return TracInCP(model, train, layers=[f"model.{WORDS}"], loss_fn=loss, **where).influence(query)

    return run


RIVALS = {"captum": captum}
