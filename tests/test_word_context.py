"""Oracle: whole gradient tables by plain autograd, pairs by loops."""

import numpy as np
import pytest
import torch
from text_cases import table_gradient, topics_study

from clif_kit.text_study import train_text
from clif_kit.token_gradients import row_map
from clif_kit.tracin import frequent_rows
from clif_kit.word_context import _dense, context_gaps, likeness, scoring_seconds, word_shares
from clif_kit.word_level import at_the_end


@pytest.fixture(scope="module")
def study():
    return topics_study(32)


@pytest.fixture(scope="module")
def fitted(study):
    return train_text(study, 0)


@pytest.fixture(scope="module")
def tables(study, fitted):
    found = {split: [] for split in ("train", "test")}
    for split, rows in found.items():
        rows += [
            table_gradient(study, fitted.params, split, i).double().numpy() for i in range(len(study.labels(split)))
        ]
    return found


def words(study, i, without, split="train"):
    tokens = getattr(study, split)
    return set(tokens.ids[i][tokens.parts[i] > 0].tolist()) - without


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


@pytest.mark.parametrize("kind", ["word", "start_end"])
def test_gaps_by_loops_over_whole_tables(study, fitted, tables, kind):
    train, _ = at_the_end(study, fitted)
    frequent = [] if kind == "word" else frequent_rows(study.train)  # few texts share a rare word
    special = sorted(study.train.special)
    like, y = likeness(study, range(32)), study.labels("train").numpy()
    gaps = []
    for a in range(32):
        near, far = [], []
        partners = []
        for b in range(32):
            if a == b or y[a] != y[b]:
                continue
            shared = words(study, a, {*frequent, *special}) & words(study, b, {*frequent, *special})
            g, h = tables["train"][a], tables["train"][b]
            if kind == "word" and shared:
                lengths = [np.linalg.norm(g[w]) * np.linalg.norm(h[w]) for w in shared]
                each = [g[w] @ h[w] / max(size, 1e-30) for w, size in zip(shared, lengths, strict=True)]
                partners.append((like[a, b], np.mean(each)))
            if kind == "start_end" and not shared and np.abs(g[special]).sum() and np.abs(h[special]).sum():
                partners.append((like[a, b], cosine(g[special], h[special])))
        if len(partners) >= 4:
            middle = np.median([p for p, _ in partners])
            for p, value in partners:
                (near if p > middle else far).append(value)
            gaps.append(np.mean(near) - np.mean(far))
    found = context_gaps(train, like, frequent)[kind]
    assert len(gaps) > 3
    np.testing.assert_allclose(found, gaps, rtol=1e-3, atol=1e-5)


def test_likeness_looks_at_the_start(study):
    params, tokens = study.start(0), study.train.take([4, 9])
    with torch.no_grad():
        a, b = study.model.features(params, study.model.embed(params, tokens.ids, tokens.parts), tokens.parts)
    np.testing.assert_allclose(likeness(study, [4, 9])[0, 1], float(torch.cosine_similarity(a, b, dim=0)), rtol=1e-4)


def test_shares_by_whole_tables(study, fitted, tables):
    train, query = at_the_end(study, fitted)
    frequent = frequent_rows(study.train)
    found = word_shares(train, query, [3, 7], [0, 1, 3], frequent)
    for k, i in enumerate((3, 7)):
        parts = [(tables["train"][i] * tables["test"][q]).sum(1) for q in (0, 1, 3)]
        size = sum(np.abs(part).sum() for part in parts)
        np.testing.assert_allclose(
            found["frequent"][k], sum(np.abs(part[frequent]).sum() for part in parts) / size, rtol=1e-3
        )
        tops = [int(np.abs(part).argmax()) for part in parts]
        same = [tops[0] == tops[1], tops[0] == tops[2], tops[1] == tops[2]]
        assert found["same_top"][k] == pytest.approx(np.mean(same))


def test_the_three_ways_are_timed_and_the_dense_one_is_right(study, fitted, tables, monkeypatch):
    train, query = at_the_end(study, fitted)
    ticks = iter(range(100))
    monkeypatch.setattr("clif_kit.word_context.time.perf_counter", lambda: float(next(ticks)))
    found = scoring_seconds(train, query, top=3, repeats=2)
    assert {name: values.tolist() for name, values in found.items()} == {
        "sparse": [1, 1], "topk": [1, 1], "dense": [1, 1],
    }  # fmt: skip
    dense = _dense(row_map(train.gradients(0)), len(train), len(study.train.names))
    np.testing.assert_allclose(dense, np.stack([t.ravel() for t in tables["train"]]), atol=1e-6)
