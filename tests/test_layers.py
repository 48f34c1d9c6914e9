"""Who may import whom inside clif_kit: the table of the design, read against the imports of the files."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "clif_kit"
ANY = "any"
TABLE = {  # module: (layer, what it may import); a row that proves too tight is changed here first, with a reason
    "store": (0, ""),
    "generators": (0, ""),
    "textlen": (0, ""),
    "models": (0, ""),
    "train": (0, ""),
    "gradients": (0, ""),
    "solvers": (0, ""),
    "weat": (0, ""),
    "hard_debias": (0, ""),
    "corpus": (0, ""),
    "evaluate": (0, ""),
    "watchdog": (0, ""),
    # `datasets` by idea; its parts see each other downwards only
    "registry": (0, ""),
    "csv_contract": (0, ""),
    "download": (0.1, "registry"),
    "formats": (0.1, "registry"),
    "wikipedia": (0.1, "registry"),
    "datasets": (0.2, "registry csv_contract download formats wikipedia"),
    "corpora": (0.3, "registry csv_contract wikipedia datasets"),
    "text_tasks": (0.4, "datasets corpora csv_contract"),
    # `models` for texts: tokens, classifiers cut open at the word vectors, transformers
    "text_models": (0, ""),
    "text_tokens": (0.3, "datasets"),
    "text_transformers": (0.3, "datasets text_models"),
    # `report` by idea: the schema and the ledger need no plotting
    "ledger": (0, ""),
    "report": (0.1, "ledger"),
    # `runs` by idea: what a notebook says, what it depends on, progress, running it, pages
    "notebooks": (0, ""),
    "progress": (0, ""),
    "fresh": (0.1, "notebooks"),
    "reproduction": (1, "ledger notebooks report"),
    "runs": (1, "notebooks fresh progress report store watchdog"),
    "pages": (1.1, "notebooks fresh progress reproduction watchdog"),
    "curvature": (1, "gradients"),
    # `skipgram` by idea: the loss of sentences, one pass over all of them (and its fast engine), the whole corpus
    "skipgram": (1, "corpus"),
    "sentence_kernel": (1.1, "corpus"),
    "sentence_stream": (1.2, "corpus skipgram sentence_kernel store"),
    "sgns_objective": (1.1, "corpus skipgram solvers"),
    "word_queries": (1.1, "skipgram weat"),
    "word_influence": (2, "corpus skipgram sgns_objective solvers"),
    # `tracin` by idea: token gradients and their store, scores on words, scores on layers
    "token_gradients": (1, "text_models text_tokens"),
    "traced": (1.1, "store text_models text_tokens token_gradients"),
    "tracin": (1.2, "store text_tokens token_gradients traced"),
    "tracin_layers": (1.3, "text_models text_tokens traced tracin"),
    "cancellation": (1.4, "text_models traced tracin_layers"),
    "gram_lasso": (0, ""),
    "datamodels": (1, "gram_lasso"),
    "proximal": (0, ""),
    "sparse": (1, "proximal solvers"),
    # influence tuning by idea: a vector an example, groups A and B, J and its gradient, runs and their controls
    "example_vectors": (1, "gradients"),
    "text_vectors": (1.1, "example_vectors text_models"),
    "confounds": (1.1, "example_vectors text_tokens"),
    "cid": (1.2, "confounds example_vectors gradients"),
    "finetune": (1, "text_models text_tokens"),
    "adversarial": (1.2, "confounds finetune text_models"),
    "parallel": (1, "store watchdog"),  # the half of `retrain` that joblib runs
    # deletion: who leaves first, the retrainings, what they say about a method
    "deletion_ranks": (0, ""),
    "deletion": (1.1, "parallel store"),
    "deletion_metrics": (1.2, "deletion evaluate"),
    "deletion_lds": (0.1, "evaluate"),
    "text_study": (0.5, "text_models text_tasks text_tokens text_transformers train"),
    "text_truth": (1.3, "deletion store text_study train"),
    "text_scores": (2.1, "baselines text_study traced tracin tracin_layers train"),
    # whole deletion studies, and the ones of the book
    "deletion_study": (
        2.2,
        "baselines deletion deletion_lds deletion_metrics deletion_ranks evaluate store text_scores text_study "
        "text_tasks text_truth tracin tracin_layers",
    ),
    "deletion_panels": (2.3, "deletion_study text_study"),
    # chapters on layers and words: what each layer does, a score as three factors, parts and deletions of words
    "saliency": (1.4, "text_models text_tokens traced tracin_layers"),
    "layer_study": (
        2.2,
        "cancellation evaluate parallel store text_models text_scores text_study text_tokens text_truth traced train",
    ),
    "word_examples": (0.5, "text_tasks"),
    "word_context": (2.2, "text_study token_gradients traced tracin"),
    "word_level": (
        2.2,
        "evaluate store text_scores text_study text_tokens text_truth traced tracin train",
    ),
    "sgns_train": (2, "corpus skipgram sgns_objective solvers"),
    "debias": (2, "corpus debias_kernel skipgram"),
    "influence": (2, "gradients curvature solvers"),
    "baselines": (2, "curvature solvers tracin_layers"),
    "retrain": (2, "train store gradients curvature solvers parallel watchdog"),
    "tuning": (2, "example_vectors gradients"),
    "tuning_run": (2.1, "cid confounds finetune text_models text_vectors tuning"),
    "tuning_metrics": (1.1, "evaluate insertion"),
    "tuning_panels": (2.3, "finetune tuning_run tuning_study"),
    "shortcut_tasks": (0.4, "corpora datasets generators"),
    "tuning_study": (
        2.2,
        "adversarial cid confounds example_vectors finetune parallel shortcut_tasks store text_models text_tokens "
        "text_transformers text_vectors tuning tuning_run",
    ),
    # the clustering experiment of chapter 10: the task, its scores, the panels that judge them
    "mog": (1, "generators gradients models"),
    "mog_scores": (3, "mog evaluate gradients influence models solvers"),
    "mog_moving": (3.1, "mog mog_scores gradients models retrain"),
    "mog_panels": (3.2, "mog mog_scores mog_moving evaluate gradients models retrain"),
    # the word chapters: a corpus with its tests and models, the judgement by retraining, debiasing, science fiction
    "word_study": (
        3,
        "corpora corpus parallel sentence_stream sgns_objective sgns_train skipgram store weat word_influence "
        "word_queries",
    ),
    "word_truth": (3.1, "evaluate parallel sgns_objective sgns_train skipgram store word_study"),
    "weat_claims": (
        3.1,
        "corpus evaluate sentence_stream skipgram weat word_influence word_queries word_study",
    ),
    "sentence_table": (3.1, "word_study"),
    "debias_kernel": (1, ""),
    "debias_grid": (3, "corpus debias hard_debias sentence_stream skipgram weat word_influence word_queries"),
    "word_guards": (1.1, "corpus datasets evaluate skipgram"),
    "debias_study": (
        3.1,
        "corpora corpus debias debias_grid hard_debias parallel skipgram store weat word_guards word_study",
    ),
    "debias_metrics": (3.2, "debias_grid debias_study evaluate word_guards"),
    "neighbour_study": (
        3.2,
        "corpora corpus evaluate parallel sentence_stream sgns_objective sgns_train skipgram store word_influence "
        "word_queries word_study word_truth",
    ),
    "neighbour_truth": (
        3.3,
        "evaluate neighbour_study parallel sgns_train store word_influence word_queries word_study",
    ),
    "explain": (
        3.1,
        "corpora corpus csv_contract report sentence_stream sgns_objective sgns_train skipgram store weat "
        "word_influence word_queries word_study",
    ),
    "explorer": (3.2, "corpora explain report sentence_stream sgns_train skipgram weat word_study"),
    "text_explorer": (
        3.3,
        "corpora deletion_metrics deletion_study explorer report text_scores text_study text_tokens tracin train",
    ),
    # the lecture
    "subset_training": (1.1, "parallel store"),
    "insertion": (1, "evaluate"),
    # a reader's own data: the file, features, the last layer, the study; word vectors; what is written
    "own_texts": (0.1, "csv_contract"),
    "own_encoder": (0.4, "datasets store text_tokens"),
    "own_layer": (2, "curvature solvers"),
    "own_study": (3, "own_encoder own_layer own_texts"),
    "own_scores": (3.1, "baselines own_encoder own_layer own_study"),
    "own_check": (3.2, "evaluate own_layer own_scores own_study"),
    # the lecture: chapter 40, images with planted leaks and groups, their datamodels, and what judges them
    "planted_images": (0.3, "datasets"),
    "datamodel_metrics": (1.1, "datamodels evaluate"),
    "planted_metrics": (1.2, "datamodel_metrics evaluate"),
    "datamodel_rivals": (3, "curvature gradients influence models solvers"),
    "datamodel_study": (3, "datamodels planted_images subset_training"),
    "datamodel_removal": (3.1, "datamodel_rivals datamodel_study planted_images subset_training"),
    # lecture: source classes and their influence on a target task
    "transfer": (0, ""),
    "transfer_nets": (0, ""),
    "transfer_task": (0.3, "datasets"),
    "transfer_study": (2, "parallel store transfer transfer_nets transfer_task"),
    "transfer_metrics": (1, "evaluate transfer"),
    # sparse debugging (chapter 42): planted texts and images, nets on them, what their last layers say
    "planted_toxicity": (0, ""),
    "sparse_text": (0.5, "planted_toxicity text_models text_tasks train"),
    "sparse_images": (0.5, "models train"),
    "sparse_metrics": (1.2, "evaluate tuning_metrics"),
    "sparse_study": (
        2,
        "datasets models parallel planted_toxicity proximal sparse sparse_images sparse_metrics sparse_text store "
        "text_models text_tasks train",
    ),
    "contest": (2, "deletion deletion_ranks"),
    "contest_images": (
        3,
        "baselines contest curvature datamodels datasets deletion deletion_ranks gradients influence models "
        "retrain solvers store tracin_layers train",
    ),
    "contest_texts": (3.1, "contest deletion store text_scores text_study text_tasks text_truth train"),
    "contest_words": (
        3.2,
        "contest corpora deletion sentence_stream sgns_objective sgns_train skipgram weat word_influence word_study "
        "word_truth",
    ),
    "contest_metrics": (2.1, "contest deletion_lds deletion_metrics evaluate"),
    "own_planted": (3.2, "evaluate own_layer own_scores own_study"),
    "own_vectors": (0, ""),
    "own_words": (3.2, "corpora evaluate explain own_vectors sentence_stream sgns_train weat word_study"),
    "own_report": (0.2, "own_texts"),
    "own_run": (
        3.4,
        "evaluate own_check own_encoder own_report own_scores own_study own_texts own_vectors own_words",
    ),
    "study_page": (3.3, "corpora explorer report sparse"),
    "study_answers": (1, "evaluate"),
    # for teachers: the tables of the teach page
    "teach": (1, "notebooks report"),
    "own_tracin": (
        3.5,
        "evaluate own_report own_run own_scores text_scores text_study text_tasks tracin train",
    ),
    "cli": (4, ANY),
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(source):
    """The clif_kit modules in every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["clif_kit" if node.level else "", node.module]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "clif_kit" and rest and rest[0] in MODULES:
                yield rest[0]


def test_imports_finds_every_form():
    forms = ["import clif_kit.store", "from clif_kit import store", "from clif_kit.store import Store"]
    forms += ["from . import store", "from .store import Store", "def f():\n    from clif_kit import store as s"]
    assert all(list(imports(form)) == ["store"] for form in forms)
    assert not list(imports("import store; from clif_kit import __version__"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_row_allows(module):
    assert module in TABLE, f"{module} has no row in the table"
    allowed = TABLE[module][1]
    found = set(imports((PACKAGE / f"{module}.py").read_text("utf-8")))
    extra = found - ({module} if allowed != ANY else found) - set(allowed.split())
    assert not extra, f"{module} imports {', '.join(sorted(extra))}"


def test_the_table_points_downwards():
    for module, (layer, allowed) in TABLE.items():
        for other in allowed.split() if allowed != ANY else []:
            assert TABLE[other][0] < layer, f"{module} may import {other}, which is not below it"


def test_the_package_itself_imports_nothing():
    assert not list(imports((PACKAGE / "__init__.py").read_text("utf-8")))
