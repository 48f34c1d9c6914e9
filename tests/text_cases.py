"""Tiny text classifiers in float64 and texts for them: of unlike lengths, with repeated tokens, one of them empty."""

import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from clif_kit.text_models import text_cnn
from clif_kit.text_study import Recipe, make_text_study
from clif_kit.text_tasks import text_task
from clif_kit.text_tokens import Tokens
from clif_kit.text_transformers import roberta_config, transformer

F64 = torch.float64
ROWS, WIDTH, CLASSES = 50, 8, 3
START, END = 2, 3
NAMES = tuple(f"w{i}" for i in range(ROWS))
KINDS = ("cnn", "bert", "roberta", "mean", "tied")


def tokenizer():
    """Whole words; ``[CLS] a [SEP] b [SEP]`` as BERT has it."""
    words = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "not", "good", "bad", "film"])}
    made = Tokenizer(models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def tokens(n=11, longest=9, seed=0, pairs=True):
    """``[CLS] words [SEP]``, every other one a pair; few words, so that they repeat within and between texts."""
    draw = torch.Generator().manual_seed(seed)
    ids, parts = torch.zeros(n, longest, dtype=torch.long), torch.zeros(n, longest, dtype=torch.long)
    for i in range(n):
        length = [2, longest][i] if i < 2 else int(torch.randint(3, longest + 1, (1,), generator=draw))
        ids[i, :length] = torch.randint(4, 12, (length,), generator=draw)
        ids[i, 0], ids[i, length - 1], parts[i, :length] = START, END, 1
        if pairs and i % 2 and length > 4:
            ids[i, 2], parts[i, 3:length] = END, 2
    return Tokens(ids, parts, (START, END), NAMES)


def labels(n, seed=1):
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))


def bert_config():
    from transformers import BertConfig

    return BertConfig(
        vocab_size=ROWS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=20, initializer_range=0.5,
    )  # fmt: skip


def small_roberta():
    config = roberta_config(ROWS, width=WIDTH, layers=2, heads=2, max_length=20)
    config.initializer_range = 0.5
    return config


@functools.cache
def model(kind):
    """``(model, params)``; the CNN is smooth and its weights are large enough for every logit to move."""
    if kind == "cnn":
        made, params = text_cnn(ROWS, CLASSES, width=WIDTH, filters=4, activation=torch.nn.Tanh, dtype=F64)
        draw = torch.Generator().manual_seed(5)
        return made, {k: 0.7 * torch.randn(v.shape, generator=draw, dtype=F64) for k, v in params.items()}
    config = small_roberta() if kind == "roberta" else bert_config()
    options = {"mean": {"pooling": "mean"}, "tied": {"pooling": "mean", "label_words": (5, 6, 20)}}.get(kind, {})
    made, params = transformer(config, classes=CLASSES, seed=3, dtype=F64, **options)
    draw = torch.Generator().manual_seed(5)  # biases start at zero: a forgotten one would not be seen
    return made, {k: v + 0.1 * torch.randn(v.shape, generator=draw, dtype=F64) for k, v in params.items()}


# --- one small study, trained as the chapters train


def topics_study(train):
    """A CNN on sentences of the embedded topics."""
    recipe = Recipe(epochs=2, lr=0.02, batch_size=8, optimizer="adam", checkpoints=2)
    return make_text_study(text_task("topics", train=train, val=4, test=4), "cnn", recipe, max_length=16, width=8)


def table_gradient(study, params, split, i):
    """The gradient of one text's loss in the table of word vectors, by autograd, ``(rows, d)``."""
    tokens, name = getattr(study, split).take([i]), study.model.embedding
    leaves = {**params, name: params[name].clone().requires_grad_()}
    loss = torch.nn.functional.cross_entropy(
        study.model.logits(leaves, tokens.ids, tokens.parts), study.labels(split)[i : i + 1]
    )
    return torch.autograd.grad(loss, leaves[name])[0]  # (rows, d)
