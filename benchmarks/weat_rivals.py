"""What WEFE says about seeded vectors: ``python -m benchmarks.weat_rivals`` asks it and writes the tests' fixture.

Run it with an interpreter that has wefe==1.0.1 and nothing of ours; WEFE pins numpy below 2. The tests and the
benchmark draw the same vectors with the functions below, so only answers are stored. The streams of RandomState are
frozen for good.
"""

import json
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parents[1] / "tests" / "fixtures" / "wefe_weat.json"
CASES = {  # name: seed, width, sizes of X, Y, A, B, and how far X is moved towards A
    "tiny": (1, 3, (4, 4, 4, 4), 0.0),
    "career": (2, 100, (8, 8, 8, 8), 0.3),
    "race": (3, 100, (10, 10, 22, 22), -0.5),
    "unequal": (4, 20, (5, 9, 6, 11), 0.8),
    "caliskan": (5, 100, (25, 25, 25, 25), 0.1),
}
TIMED, RUNS = "caliskan", 200  # the usual 10,000 would take it a quarter of an hour
DEFINITIONAL = (("d0", "e0"), ("d1", "e1"), ("d2", "e2"), ("d3", "e3"))
EQUALIZE = (("p0", "q0"), ("p1", "q1"), ("p2", "q2"))
KEEP = tuple(word for pair in (*DEFINITIONAL, *EQUALIZE) for word in pair)


def weat_case(name: str) -> tuple[list[list[str]], np.ndarray]:
    """Word lists (X, Y, A, B) and one float32 vector for each word, in their order; lengths from 0.1 to 10."""
    seed, width, sizes, lean = CASES[name]
    rng = np.random.RandomState(seed)
    lists = [[f"{side}{i}" for i in range(size)] for side, size in zip("xyab", sizes, strict=True)]
    rows = rng.standard_normal((sum(sizes), width))
    x, y, a, _ = sizes
    rows[:x] += lean * rows[x + y : x + y + a].sum(axis=0) / np.sqrt(a)
    return lists, (rows * rng.uniform(0.1, 10, (len(rows), 1))).astype(np.float32)


def debias_case() -> tuple[list[str], np.ndarray]:
    """Words and float32 vectors: definitional pairs apart along one direction, pairs to equalise, neutral words."""
    rng = np.random.RandomState(6)
    words = [*KEEP, *(f"n{i}" for i in range(16))]
    rows = rng.standard_normal((len(words), 8))
    rows[: len(KEEP), 0] += np.tile([1.5, -1.5], len(KEEP) // 2)
    return words, (rows * rng.uniform(0.1, 10, (len(rows), 1))).astype(np.float32)


def _model(words: Iterable[str], vectors: np.ndarray) -> Any:
    from gensim.models import KeyedVectors
    from wefe.word_embedding_model import WordEmbeddingModel

    keyed = KeyedVectors(vectors.shape[1])
    keyed.add_vectors(list(words), vectors)
    return WordEmbeddingModel(keyed, "seeded")


def _weat(name: str, **options: Any) -> tuple[dict[str, Any], float, float]:
    from wefe.metrics import WEAT
    from wefe.query import Query

    (x, y, a, b), vectors = weat_case(name)
    model = _model([*x, *y, *a, *b], vectors)
    wall, cpu = time.perf_counter(), time.process_time()
    found = WEAT().run_query(Query([x, y], [a, b]), model, **options)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def _debiased() -> dict[str, list[float]]:
    from wefe.debias.hard_debias import HardDebias

    words, vectors = debias_case()
    method = HardDebias(pca_args={"n_components": 1}).fit(_model(words, vectors), DEFINITIONAL, equalize_pairs=EQUALIZE)
    model = method.transform(_model(words, vectors), ignore=list(KEEP))
    return {word: [round(float(value), 8) for value in model[word]] for word in words}


def _timed() -> dict[str, Any]:
    found, wall, cpu = _weat(TIMED, calculate_p_value=True, p_value_iterations=RUNS)
    return {
        "case": TIMED, "runs": RUNS, "seconds": round(wall, 2), "cpu_seconds": round(cpu, 2),
        "p_value": found["p_value"], "machine": "2 cores",
        "note": "its draws are words with replacement (rng.choice), no re-partitions, so its p is not comparable",
    }  # fmt: skip


def main() -> None:
    """Ask WEFE everything and write the file."""
    results = {name: _weat(name)[0] for name in CASES}
    FILE.write_text(
        json.dumps(
            {
                "versions": {name: version(name) for name in ("wefe", "numpy", "scikit-learn", "gensim")},
                "weat": {n: {key: float(r[key]) for key in ("weat", "effect_size")} for n, r in results.items()},
                "permutations": _timed(),
                "hard_debias": _debiased(),
            },
            indent=1,
        )
        .replace(",\n   ", ", ")
        .replace("[\n   ", "[")
        .replace("\n  ]", "]")
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
