"""The panels of the chapters on deletion, by name; ``notebooks/profiles`` says which a run trains.

Recipes were chosen on validation texts alone, by a few short trials. ``n`` is what a book run on two cores can afford,
so that k = 100 is up to a fifth of the training texts where the paper's is a five hundredth.
"""

from dataclasses import replace

from clif_kit.deletion_study import CONTROLS, Panel
from clif_kit.text_study import Recipe

_MAIN = ("tr_we", "tr_we_topk", "tr_last", "tr_tfidf", *CONTROLS)
_TABLE4 = ("tr_we", "tr_we_topk", "tr_last", "tr_tfidf", "inf_last", "rep", "tr_common", "same_class_random")
_SIDE = (
    "tr_we", "tr_last", "tr_tfidf", "same_class_random", "inf_last", "rep", "tr_common", "tr_we_noc", "tfidf", "bm25",
    "embedding",
)  # fmt: skip
_AGNEWS = {
    "task": "agnews", "kind": "cnn", "train": 2000, "val": 400, "test": 20,
    "recipe": Recipe(epochs=5, lr=0.002, batch_size=64, optimizer="adam"),
}  # fmt: skip
_FEW = {"sizes": (10, 100), "seeds": 2}
_TUNED = {
    "kind": "bert", "recipe": Recipe(epochs=1, lr=5e-4, batch_size=8, optimizer="adamw", checkpoints=1),
    "max_length": 32,
}  # fmt: skip
_TOXIC_CNN = {
    "kind": "cnn", "recipe": Recipe(epochs=5, lr=0.004, batch_size=32, optimizer="adam"), "train": 1000, "val": 200,
    "test": 8, "points": 4, "max_length": 48,
}  # fmt: skip
_BRIEF = Recipe(epochs=3, lr=0.01, batch_size=32, optimizer="adam")
_TOPICS = {
    "task": "topics", "kind": "cnn", "train": 400, "val": 120, "test": 8, "points": 4, "sizes": (10, 40), "seeds": 2,
    "max_length": 24, "width": 32,
}  # fmt: skip
_APART = {  # only texts with little overlap may leave
    "task": "toxic", "train": 500, "val": 200, "test": 10, "points": 3, "sizes": (30,), "seeds": 2,
    "candidates": 150,
}  # fmt: skip
_COMMON = ("tr_we", "tr_we_noc", "tr_common", "tr_last", "same_class_random")
_LESS = ("tr_we", "tr_last", "same_class_random")

PANELS: dict[str, Panel] = {
    "topics_cnn": Panel(
        **_TOPICS, recipe=_BRIEF, methods=("tr_we", "tr_last", "tr_tfidf", *CONTROLS), subsets=5,
    ),
    "agnews_cnn": Panel(**_AGNEWS, methods=_MAIN, sizes=(10, 30, 100), seeds=3, points=8, subsets=30),
    "agnews_cnn_side": Panel(**_AGNEWS, **_FEW, methods=_SIDE, points=5, subsets=30),
    "agnews_bert": Panel(**_TUNED, **_FEW, task="agnews", train=500, val=200, test=12, points=3, methods=_TABLE4),
    "toxic_bert": Panel(**_TUNED, **_FEW, task="toxic", train=500, val=200, test=10, points=3, methods=_TABLE4),
    "nli_bert": Panel(
        task="nli", kind="bert", recipe=Recipe(epochs=2, lr=5e-4, batch_size=16, optimizer="adamw"), sizes=(50,),
        seeds=2, train=500, val=300, test=9, points=2, max_length=40,
        methods=("tr_we_topk", "tr_last", "tr_tfidf", "same_class_random"),
    ),
    "toxic_roberta": Panel(
        **_FEW, task="toxic", kind="roberta", recipe=Recipe(epochs=4, lr=1e-3, batch_size=16, optimizer="adamw"),
        train=500, val=200, test=8, points=4, max_length=32, width=64, methods=_TABLE4,
    ),
    "toxic_cnn": Panel(**_TOXIC_CNN, **_FEW, task="toxic", methods=_TABLE4),
    "tweets_cnn": Panel(
        **_TOXIC_CNN, **_FEW, task="tweets", methods=("tr_we", "tr_last", "tr_tfidf", "same_class_random"),
    ),
    "topics_nooverlap": Panel(
        **_TOPICS | {"sizes": (40,)}, recipe=replace(_BRIEF, frozen=True), methods=_COMMON, candidates=240,
    ),
    "topics_nooverlap_unfrozen": Panel(**_TOPICS | {"sizes": (40,)}, recipe=_BRIEF, methods=_LESS, candidates=240),
    "toxic_nooverlap": Panel(
        **_APART, **_TUNED | {"recipe": replace(_TUNED["recipe"], frozen=True)},
        methods=("tr_we", "tr_we_topk", "tr_we_noc", "tr_common", "tr_last", "inf_last", "rep", "same_class_random"),
    ),
    "toxic_nooverlap_unfrozen": Panel(**_APART, **_TUNED, methods=_LESS),
}  # fmt: skip

_WHOLE = {
    "task": "agnews_train", "train": 50_000, "val": 20_000, "test": 100, "points": 0, "max_length": 128,
    "sizes": tuple(range(10, 101, 10)), "seeds": 10,
}  # fmt: skip
PAPER = {  # the paper's scale, for a cluster: AG News alone; its other data need files that no package carries
    "agnews_cnn": replace(
        PANELS["agnews_cnn"], **_WHOLE, recipe=Recipe(epochs=10, lr=0.02, batch_size=128, optimizer="sgd"),
    ),
    "agnews_bert": replace(
        PANELS["agnews_bert"], **_WHOLE, recipe=Recipe(epochs=3, lr=1e-4, batch_size=32, optimizer="adamw"),
    ),
}  # fmt: skip
