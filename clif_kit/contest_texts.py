"""The text task: topics told apart by a small CNN, scores over words and over the last layer, and search engines.

Training is noisy: a seed decides start and order. Every set is removed with each of several seeds, the full data are
trained with the same seeds, and how far seeds agree with one another is the noise ceiling. Scores come from one
training run of another seed.

Sign: the predicted change of a test text's cross-entropy when the training text is REMOVED; positive = helpful.
"""

from functools import partial
from pathlib import Path

from clif_kit import deletion
from clif_kit.contest import Task, random_scores, same_class_scores
from clif_kit.deletion import Plan
from clif_kit.store import fingerprint
from clif_kit.text_scores import text_scores
from clif_kit.text_study import Recipe, TextStudy, make_text_study, retrain_text, train_text
from clif_kit.text_tasks import text_task
from clif_kit.text_truth import truth_store
from clif_kit.train import Fitted

METHODS = ("tr_we", "tr_last", "inf_last", "rep", "embedding", "tfidf", "bm25")
DAMPING = 1e-3  # of influence on the last layer
SCORING_SEED = 1000  # no retraining has it: no score knows the order of a judge's training


def text_study(
    data: str, *, n_train: int, n_test: int, epochs: int, n_val: int = 80, lr: float = 0.01, max_length: int = 24,
    width: int = 32,
) -> TextStudy:  # fmt: skip
    """A small study: the CNN of the TracIn chapters, trained by Adam.

    Args:
        data: A task of :mod:`clif_kit.text_tasks`.
        n_train: Training texts.
        n_test: Test texts.
        epochs: Passes.
        n_val: Texts on which the recipe may be judged.
        lr: Adam's step.
        max_length: Word pieces of a text.
        width: Of word vectors.
    """
    task = text_task(data, train=n_train, val=n_val, test=n_test)
    recipe = Recipe(epochs=epochs, lr=lr, batch_size=32, optimizer="adam", checkpoints=min(2, epochs))
    return make_text_study(task, "cnn", recipe, max_length=max_length, width=width)


def text_digest(study: TextStudy) -> str:
    """Of the data and the recipe: what a stored score of another library must be for."""
    texts = [array for tokens in (study.train, study.test) for array in (tokens.ids, tokens.parts)]
    labels = [study.labels(split) for split in ("train", "test")]
    return fingerprint("texts", *texts, *labels, vars(study.recipe))[:16]


def score_run(study: TextStudy) -> Fitted:
    """The training run that gets explained."""
    return train_text(study, SCORING_SEED)


def text_contest(study: TextStudy, fitted: Fitted, *, seeds: int, folder: str | Path, n_jobs: int = 1) -> Task:
    """All scores for one training run, and training again with other seeds as the judge.

    Args:
        study: From :func:`text_study`.
        fitted: From :func:`score_run`.
        seeds: Retrainings of each set, 2 or more.
        folder: Of the retrainings; a killed run goes on.
        n_jobs: Processes.

    Raises:
        ValueError: If there are fewer than two seeds.
    """
    if seeds < 2:
        raise ValueError(f"seeds must be 2 or more, got {seeds}: one training cannot say how noisy training is")
    labels, asked = study.labels("train").numpy(), study.labels("test").numpy()
    n, q = len(labels), len(asked)

    def one(name: str):
        return text_scores(study, fitted, [name], damping=DAMPING)[name]

    scorers = {name: partial(one, name) for name in METHODS}
    scorers["same_class_random"] = partial(same_class_scores, labels, asked)
    scorers["random"] = partial(random_scores, q, n)

    def train_again(plan: Plan) -> dict:
        found = deletion.run(
            plan, retrain_text(study), store=truth_store(study, folder), n_jobs=n_jobs, progress=False, say=lambda _: 0
        )
        return {"loss": found["loss"], "good": found["probability"]}

    return Task(
        name=study.task.name, scorers=scorers, retrain=train_again, n=n, tests=q, seeds=tuple(range(seeds)),
        cheap="bm25", data=study.task.data,
    )  # fmt: skip
