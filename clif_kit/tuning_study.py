r"""Every method against a shortcut, trained with the same start, order and label steps; accuracy and CID of each run.

The *confound influence difference* is :mod:`clif_kit.cid`'s. All methods take their label steps in
:mod:`clif_kit.finetune`; what they do besides, and which controls stand beside them, is in :class:`Method`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clif_kit import adversarial, cid, confounds, example_vectors, finetune, text_vectors, tuning, tuning_run
from clif_kit.adversarial import adversarial_train
from clif_kit.cid import Watch, confound_difference
from clif_kit.confounds import Confounded, accessible
from clif_kit.finetune import Schedule, fine_tune, logits
from clif_kit.parallel import map_seeds
from clif_kit.shortcut_tasks import ShortcutTask
from clif_kit.store import Store, fingerprint
from clif_kit.text_models import Params, TextModel
from clif_kit.text_tokens import compact, encode, read_tokenizer
from clif_kit.text_transformers import transformer
from clif_kit.text_vectors import text_gradients
from clif_kit.tuning_run import Tuning, embedding_tune, influence_tune

KINDS = ("fine", "adversarial", "influence", "embedding")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is done.

    Attributes:
        kind: "fine" (label steps alone), "adversarial", "influence" or "embedding".
        schedule: Of the label steps; ``dropout=False`` is the control that the paper lacks.
        tuning: Of the rounds, for the last two kinds.
        lam: Strength of the reversal, for "adversarial".
        state: Which hidden state, for "embedding": "cls" or "pooled".
        plain: Train and test without the shortcut: the upper bound of the paper.
        access: Share of the training texts whose spurious attribute may be looked at.
        at_least: Texts of each combination of label and attribute that are among them.
    """

    kind: str = "fine"
    schedule: Schedule
    tuning: Tuning | None = None
    lam: float = 0.3
    state: str = "cls"
    plain: bool = False
    access: float = 1.0
    at_least: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.tuning is None) == (self.kind in ("influence", "embedding")):
            raise ValueError(f"tuning is for 'influence' and 'embedding', and they need it: kind {self.kind!r}")
        if not 0 < self.access <= 1:
            raise ValueError(f"access is a share above 0, at most 1, got {self.access}")
        if self.access < 1 and self.tuning is None:
            raise ValueError(f"access is for 'influence' and 'embedding', not for {self.kind!r}, which would ignore it")


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which examples the CID is taken on: few, since each costs a gradient.

    Attributes:
        members: Of each group of the training texts, for A and B.
        probes: Of each group; as many again of the test texts, held out.
        curve: The same number, for both, for the curve over the training.
        every: Label steps between two points of the curve. None: no curve.
    """

    members: int = 40
    probes: int = 5
    curve: int = 10
    every: int | None = None


@dataclass(frozen=True, kw_only=True)
class TuningStudy:
    """A task and a model for it.

    Attributes:
        task: The texts.
        model: The classifier, with dropout.
        start: Parameters before training, by seed.
        sets: Encoded "train", "dev", "test", and "plain_train", "plain_test" where there are.
    """

    task: ShortcutTask
    model: TextModel
    start: Callable[[int], Params] = field(repr=False)
    sets: Mapping[str, Confounded] = field(repr=False)


def make_tuning_study(
    task: ShortcutTask, *, source: str | None = None, layers: int | None = 2, max_length: int = 64, dropout: float = 0.1
) -> TuningStudy:
    """Encode the texts and build the model; only word vectors that some text uses are kept.

    Args:
        task: The texts.
        source: Folder or name of a transformer. None: MiniLM, offline.
        layers: Blocks that are kept. None: all.
        max_length: Tokens of a text at most.
        dropout: In label steps.
    """
    tokenizer = read_tokenizer(source)
    texts = {name: getattr(task, name) for name in ("train", "dev", "test") if len(getattr(task, name))}
    plain = {f"plain_{name}": one for name, one in texts.items() if one.plain is not None}
    coded = [encode(tokenizer, list(one.texts), max_length=max_length) for one in texts.values()]
    coded += [encode(tokenizer, list(one.plain), max_length=max_length) for one in plain.values()]
    rows, coded = compact(*coded)
    sets = {
        name: Confounded(tokens, torch.tensor(one.y), torch.tensor(one.confound))
        for (name, one), tokens in zip({**texts, **plain}.items(), coded, strict=True)
    }
    model, _ = transformer(source, classes=2, layers=layers, dropout=dropout)

    def start(seed: int) -> Params:
        params = transformer(source, classes=2, layers=layers, seed=seed)[1]
        return {**params, model.embedding: params[model.embedding][rows]}

    return TuningStudy(task=task, model=model, start=start, sets=sets)


def train_method(
    study: TuningStudy, method: Method, seed: int, *, watch: Watch | None = None, progress: bool = False
) -> finetune.FineTuned:
    """Train once.

    Args:
        study: Texts and model.
        method: What is done.
        seed: Of start, order, dropout, rounds, and of whose spurious attribute is known.
        watch: Takes the CID as it runs.
        progress: Draw a bar on the error stream.

    Raises:
        FloatingPointError: If the loss or J is not finite at some step.
        ValueError: If the method cannot be had on these texts: see the functions that train.
    """
    model, params, train = study.model, study.start(seed), _texts(study, method, "train")
    options = {"seed": seed, "progress": progress}
    if method.kind == "fine":
        return fine_tune(model, params, train.tokens, train.y, method.schedule, after=watch, **options)
    if method.kind == "adversarial":
        return adversarial_train(model, params, train, method.schedule, method.lam, after=watch, **options)
    if method.access < 1:
        known = accessible(train.y, train.confound, method.access, at_least=method.at_least, seed=seed)
        train = replace(train, known=known)
    if method.kind == "influence":
        return influence_tune(model, params, train, method.schedule, method.tuning, watch=watch, **options)
    return embedding_tune(
        model, params, train, method.schedule, method.tuning, state=method.state, watch=watch, **options
    )


def run_method(study: TuningStudy, method: Method, look: Look, seed: int) -> dict[str, np.ndarray]:
    """Train once and say how good it is, and how confounded.

    Returns:
        ``accuracy/<set>``, per cent, of "train", "dev" and "test"; ``groups/<set>``, ``(2, 2)``, per cent by label and
        spurious attribute; ``cid/probes`` and ``cid/heldout``, one difference a probe; if there is a curve,
        ``curve/step``, ``curve/when`` (0 a label step, 1 before, 2 after a round) and ``curve/cid``, ``(points,)``;
        ``J``, the mean of each round; ``loss``, the last label loss.
    """
    train, test = (_texts(study, method, name) for name in ("train", "test"))
    vectors, options = text_gradients(study.model), {"chunk": 8}
    few = sample_groups(train, look.curve, seed=0)
    watch = None
    if look.every:
        watch = Watch(vectors, train, few.tolist(), every=look.every, members=few.tolist(), **options)
    found = train_method(study, method, seed, watch=watch)
    out: dict[str, np.ndarray] = {"loss": found.loss[-1].numpy()}
    for name in ("train", "dev", "test"):
        if name in study.sets:
            out[f"accuracy/{name}"], out[f"groups/{name}"] = accuracies(
                study.model, found.params, _texts(study, method, name)
            )
    members, probes = (sample_groups(train, n, seed=0).tolist() for n in (look.members, look.probes))
    options |= {"members": members}
    held = _rows(test, sample_groups(test, look.probes, seed=0))
    for name, asked in (("probes", probes), ("heldout", held)):
        try:
            out[f"cid/{name}"] = confound_difference(vectors, found.params, train, asked, **options).each.numpy()
        except FloatingPointError:  # a model that is certain of a text has no gradient there
            out[f"cid/{name}"] = np.full(len(asked), np.nan)
    if watch is not None:
        steps, whens, points = zip(*watch.points, strict=True)
        out["curve/step"], out["curve/cid"] = np.array(steps), np.array([point.mean for point in points])
        out["curve/when"] = np.array([("label", "before", "after").index(when) for when in whens])
    out["J"] = np.array([float(one.loss.mean()) for one in getattr(found, "rounds", ())])
    return out


def run_methods(
    study: TuningStudy, methods: Mapping[str, Method], seeds: Sequence[int], *, folder: str | Path,
    look: Look | None = None, n_jobs: int = 2, progress: bool = False,
) -> dict[str, list[dict[str, np.ndarray]]]:  # fmt: skip
    """Run every method with every seed; what is finished is on disk and is never done again.

    Args:
        study: Texts and model.
        methods: By name.
        seeds: Each once.
        folder: Where stores lie.
        look: Where the CID is taken.
        n_jobs: Processes.
        progress: Draw a bar a method on the error stream.

    Returns:
        By method, for each seed, what :func:`run_method` says.
    """
    look = look or Look()
    found = {}
    for name, method in methods.items():

        def one(seed: int, method: Method = method) -> dict[str, np.ndarray]:
            return run_method(study, method, look, seed)

        store = method_store(study, method, look, folder)
        found[name] = map_seeds(one, list(seeds), store=store, n_jobs=n_jobs, progress=progress)
    return found


def method_store(study: TuningStudy, method: Method, look: Look, folder: str | Path) -> Store:
    """The store of a method's runs: what decides them, and the code that trains, is its fingerprint."""
    arrays = [(name, one.tokens.ids, one.tokens.parts, one.y, one.confound) for name, one in sorted(study.sets.items())]
    code = (adversarial, cid, confounds, example_vectors, finetune, text_vectors, tuning, tuning_run)
    own = (train_method, run_method, sample_groups, accuracies)
    dropout = [part.p for part in study.model.module.modules() if isinstance(part, torch.nn.Dropout)]
    mark = fingerprint("tuning", *code, *own, method, look, study.start(0), dropout, arrays)
    return Store(Path(folder) / f"{study.task.name}_{method.kind}-{mark[:16]}", fingerprint=mark)


def sample_groups(examples: Confounded, n: int, *, seed: int) -> Tensor:
    """At most n examples of each combination of label and spurious attribute, at random, ascending.

    >>> from clif_kit.text_tokens import Tokens
    >>> tokens = Tokens(torch.ones(4, 1, dtype=torch.long), torch.ones(4, 1, dtype=torch.long), (), ("a", "b"))
    >>> made = Confounded(tokens, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    >>> len(sample_groups(made, 1, seed=0))
    3
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(examples)))
    pairs = torch.stack([examples.y, examples.confound])
    chosen = [order[(pairs[:, order] == pair[:, None]).all(0)][:n] for pair in pairs.unique(dim=1).T]
    return torch.cat(chosen).sort().values


def accuracies(model: TextModel, params: Params, examples: Confounded) -> tuple[np.ndarray, np.ndarray]:
    """Per cent right: of all, and by label and spurious attribute, ``(2, 2)``; NaN where there is no text."""
    right = (logits(model, params, examples.tokens).argmax(1) == examples.y).double()
    table = np.full((2, 2), np.nan)
    for y in range(2):
        for c in range(2):
            here = (examples.y == y) & (examples.confound == c)
            if here.any():
                table[y, c] = 100 * float(right[here].mean())
    return np.array(100 * float(right.mean())), table


def _texts(study: TuningStudy, method: Method, name: str) -> Confounded:
    if method.plain and f"plain_{name}" not in study.sets:
        raise ValueError(f"the shortcut of {study.task.name!r} cannot be left out: no control without it")
    return study.sets[f"plain_{name}" if method.plain else name]


def _rows(examples: Confounded, rows: Tensor) -> Confounded:
    return Confounded(examples.tokens.take(rows), examples.y[rows], examples.confound[rows])
