"""Text classifiers against numpy loops (CNN) and the library's own forward pass on one unpadded text (transformers)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from text_cases import CLASSES, F64, KINDS, ROWS, bert_config, labels, model, small_roberta, tokens
from torch.func import functional_call, grad, vmap

from clif_kit import datasets, text_models
from clif_kit.text_models import check, cross_entropy, negative_probability, skeleton, text_cnn, text_losses
from clif_kit.text_tokens import compact
from clif_kit.text_transformers import transformer

TOKENS = tokens()
Y = labels(len(TOKENS))


@pytest.fixture(params=KINDS, name="kind")
def _kind(request):
    return request.param


def alone(i):
    real = TOKENS.parts[i] > 0
    return TOKENS.ids[i][real], TOKENS.parts[i][real]


def cnn_by_hand(params, ids):
    """One text, no padding, loops over places."""
    p = {k: v.numpy() for k, v in params.items()}
    x = p["embedding.weight"][ids]  # (L, d)
    for name, reach in (("conv1", 2), ("conv2", 2), ("conv3", 0)):
        out = np.empty((len(x), len(p[f"{name}.bias"])))
        for place in range(len(x)):
            total = p[f"{name}.bias"].copy()
            for shift in range(-reach, reach + 1):
                if 0 <= place + shift < len(x):
                    total += p[f"{name}.weight"][:, :, shift + reach] @ x[place + shift]
            out[place] = np.tanh(total)
        x = out
    return p["head.weight"] @ x.max(0) + p["head.bias"]


def library_logits(kind, params, ids, parts):
    """The classes of ``transformers`` themselves, from token ids, with nothing of ours in between."""
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    inputs["token_type_ids"] = (parts == 2).long()[None]
    if kind in ("bert", "roberta"):
        config = bert_config() if kind == "bert" else small_roberta()
        config.num_labels = CLASSES
        whole = transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
        whole.load_state_dict({k.removeprefix("model."): v for k, v in params.items()})
        inputs |= {"token_type_ids": None} if kind == "roberta" else {}
        return whole(**inputs).logits[0]
    whole = transformers.BertModel(bert_config(), add_pooling_layer=False).double().eval()
    whole.load_state_dict({k.removeprefix("encoder."): v for k, v in params.items() if k.startswith("encoder.")})
    mean = whole(**inputs).last_hidden_state[0].mean(0)
    table = params["encoder.embeddings.word_embeddings.weight"]
    weight = params["classifier.weight"] if kind == "mean" else table[[5, 6, 20]]
    return weight @ mean + params["classifier.bias"]


def test_logits_of_padded_texts_equal_the_oracle_on_each_text_alone(kind):
    made, params = model(kind)
    found = made.logits(params, TOKENS.ids, TOKENS.parts)
    assert found.shape == (len(TOKENS), CLASSES)
    for i in range(len(TOKENS)):
        ids, parts = alone(i)
        if kind == "cnn":
            expected = torch.from_numpy(cnn_by_hand(params, ids.numpy()))
        else:
            expected = library_logits(kind, params, ids, parts).detach()
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-12)


def test_what_stands_at_padding_does_not_matter(kind):
    made, params = model(kind)
    draw = torch.Generator().manual_seed(9)
    other = torch.where(TOKENS.parts > 0, TOKENS.ids, torch.randint(ROWS, TOKENS.ids.shape, generator=draw))
    longer = (torch.nn.functional.pad(other, (0, 4), value=7), torch.nn.functional.pad(TOKENS.parts, (0, 4)))
    expected = made.logits(params, TOKENS.ids, TOKENS.parts)
    torch.testing.assert_close(made.logits(params, *longer), expected, rtol=1e-12, atol=1e-13)


def test_every_parameter_and_segment_matters(kind):
    """A wrapper that forgets a tensor (segments, a bias, the pooler) would still pass padding tests."""
    made, params = model(kind)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    made.logits(leaves, TOKENS.ids, TOKENS.parts).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in leaves.values())


def test_the_pieces_make_the_whole(kind):
    made, params = model(kind)
    embedded = made.embed(params, TOKENS.ids, TOKENS.parts)
    logits = made.classify(params, embedded, made.features(params, embedded, TOKENS.parts))
    assert torch.equal(logits, made.logits(params, TOKENS.ids, TOKENS.parts))
    assert made.classes == CLASSES
    assert {name for names in made.layers(bias=True).values() for name in names} == set(params)
    assert not any(name.endswith("bias") for names in made.layers().values() for name in names)
    assert next(iter(made.layers().values())) == (made.embedding,)


def test_torch_func_equals_plain_autograd(kind):
    made, params = model(kind)
    losses, batch = text_losses(made), (TOKENS.ids, TOKENS.parts, Y)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    one = vmap(grad(lambda p, *e: losses(p, *(v[None] for v in e))[0]), in_dims=(None, 0, 0, 0))(params, *batch)
    for i in range(3):
        wanted = torch.autograd.grad(losses(leaves, *(v[i : i + 1] for v in batch)).sum(), list(leaves.values()))
        for name, value in zip(leaves, wanted, strict=True):
            torch.testing.assert_close(one[name][i], value, rtol=1e-9, atol=1e-12)


def test_fewer_rows_in_the_table_change_nothing(kind):
    made, params = model(kind)
    rows, (small,) = compact(TOKENS, also=made.label_words)
    table = params[made.embedding]
    cut = {**params, made.embedding: table[rows]}
    place = {old: new for new, old in enumerate(rows.tolist())}
    tied = replace(made, label_words=tuple(place[w] for w in made.label_words))
    assert len(rows) < ROWS / 2
    check(tied, cut, small.ids, small.parts, Y)
    expected = made.logits(params, TOKENS.ids, TOKENS.parts)
    torch.testing.assert_close(tied.logits(cut, small.ids, small.parts), expected, rtol=0, atol=0)
    assert [small.words(i) for i in range(len(small))] == [TOKENS.words(i) for i in range(len(TOKENS))]


def test_losses_of_logits_by_hand():
    logits, y = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]], dtype=F64), torch.tensor([1, 0])
    torch.testing.assert_close(cross_entropy(logits, y), torch.tensor([math.log(4 / 3), math.log(2)], dtype=F64))
    torch.testing.assert_close(negative_probability(logits, y), torch.tensor([-0.75, -0.5], dtype=F64))


def test_trimming_a_batch_changes_nothing_but_its_width(kind):
    made, params = model(kind)
    widths, short = [], [0, 2, 6]
    batch = (TOKENS.ids[short], TOKENS.parts[short], Y[short])
    expected = text_losses(made)(params, *batch)
    made.module.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[1].shape[1]))
    found = text_losses(made, trim=True)(params, *batch)
    made.module._forward_pre_hooks.clear()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert widths == [int((batch[1] > 0).sum(1).max())]


def test_fixed_parameters_get_no_gradient():
    made, params = model("cnn")
    fixed = {made.embedding: params[made.embedding]}
    free = {name: value for name, value in params.items() if name not in fixed}
    found = grad(lambda p: text_losses(made, fixed=fixed)(p, TOKENS.ids, TOKENS.parts, Y).sum())(free)
    wanted = grad(lambda p: text_losses(made)(p, TOKENS.ids, TOKENS.parts, Y).sum())(params)
    assert set(found) == set(free)
    torch.testing.assert_close(found, {name: wanted[name] for name in free})


def test_the_cnn_of_the_paper():
    made, params = text_cnn(100, 4, seed=7)
    again = text_cnn(100, 4, seed=7)[1]
    assert all(torch.equal(value, again[name]) for name, value in params.items())
    assert not torch.equal(params["conv1.weight"], text_cnn(100, 4, seed=8)[1]["conv1.weight"])
    shapes = {name: tuple(v.shape) for name, v in params.items() if name.endswith("weight")}
    assert shapes == {
        "embedding.weight": (100, 128), "conv1.weight": (10, 128, 5), "conv2.weight": (10, 10, 5),
        "conv3.weight": (10, 10, 1), "head.weight": (4, 10),
    }  # fmt: skip
    assert sum(v.numel() for v in text_cnn(25_000, 4, filters=50)[1].values()) == 3_247_354  # as in their notebook
    assert 0.049 < params["embedding.weight"].abs().max() <= 0.05
    assert list(made.layers()) == ["embedding", "conv1", "conv2", "conv3", "head"]


def test_dropout_works_in_training_only():
    made, params = transformer(bert_config(), classes=CLASSES, dropout=0.5, dtype=F64)
    logits = [m.logits(params, TOKENS.ids, TOKENS.parts) for m in (made, made, made.training(), made.training())]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[2], logits[3])
    assert not torch.allclose(logits[0], logits[2])
    assert not made.module.training
    made, params = transformer(bert_config(), classes=CLASSES, dtype=F64)  # the configuration says 0.1, we say 0
    batch = (params, TOKENS.ids, TOKENS.parts)
    assert torch.equal(made.training().logits(*batch), made.logits(*batch))


def test_a_tied_parameter_stays_one_in_a_skeleton():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    weights = {"0.weight": torch.randn(3, 3)}
    bare, x = skeleton(net), torch.ones(1, 3)
    assert all(value.is_meta for value in bare.parameters())
    found = functional_call(bare, weights, (x,))
    torch.testing.assert_close(found, x @ weights["0.weight"].T @ weights["0.weight"].T)


# --- what does not fit ---


def refused(match, made, params, ids=TOKENS.ids, parts=TOKENS.parts, y=Y):
    with pytest.raises(ValueError, match=match) as error:
        check(made, params, ids, parts, y)
    assert "\n" not in str(error.value)


def test_bad_input_is_refused_in_one_line(kind):
    made, params = model(kind)
    check(made, params, TOKENS.ids, TOKENS.parts, Y)
    refused("another architecture", made, {**params, "more": torch.zeros(2)})
    refused("another architecture", made, {k: v for k, v in list(params.items())[:-1]})
    table = params[made.embedding]
    wide = {**params, made.embedding: torch.zeros(ROWS, 99)}
    refused(r"another architecture .*\(99,\) where \(8,\)", made, wide)
    worst = 20 if made.label_words else 11
    refused(f"token {worst} has no row in the table of 10", made, {**params, made.embedding: table[:10]})
    refused("text 0 has the label 3", made, params, y=torch.full((len(Y),), 3))
    refused("text 0 has the label -1", made, params, y=torch.full((len(Y),), -1))
    refused("11 texts and 2 labels", made, params, y=Y[:2])
    refused("text 4 has no token", made, params, parts=TOKENS.parts * (torch.arange(len(TOKENS)) != 4)[:, None])
    refused("must be", made, params, ids=TOKENS.ids[:, 1:])


def test_a_text_longer_than_the_positions_is_refused():
    for kind in ("bert", "roberta"):
        made, params = model(kind)
        assert made.max_length == 20
        long = torch.full((1, 21), 5)
        refused("21 tokens, the model takes 20", made, params, long, torch.ones_like(long), None)
        check(made, params, long[:, :20], torch.ones_like(long)[:, :20])
        assert made.logits(params, long[:, :20], torch.ones_like(long)[:, :20]).isfinite().all()


def test_models_that_cannot_be_had_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no text classifier from .*Unrecognized model"):
        transformer(tmp_path, classes=2)
    with pytest.raises(ValueError, match="layers must be 1 to 2"):
        transformer(bert_config(), classes=2, layers=3)
    with pytest.raises(ValueError, match="label_words need 'mean'"):
        transformer(bert_config(), classes=2, label_words=(1, 2))


def test_a_model_of_images_is_refused():
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=8, patch_size=4, **size)
    with pytest.raises(ValueError, match="no table of word vectors"):
        transformer(config, classes=2, pooling="mean")
    with pytest.raises(ValueError, match="no text classifier from ViTConfig: Unrecognized"):
        transformer(config, classes=2)


def test_a_table_used_elsewhere_is_refused(monkeypatch):
    def tie(self, config):
        original(self, config)
        self.twin = torch.nn.Linear(8, ROWS, bias=False)
        self.twin.weight = self.embeddings.word_embeddings.weight

    original = transformers.BertModel.__init__
    monkeypatch.setattr(transformers.BertModel, "__init__", lambda self, config, **_: tie(self, config))
    with pytest.raises(ValueError, match=r"uses its table .* as encoder.twin.weight too"):
        transformer(bert_config(), classes=2, pooling="mean")


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("DistilBertConfig", {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12}),
        ("ElectraConfig", {"embedding_size": 6}),
        ("AlbertConfig", {"embedding_size": 6}),
        ("DebertaV2Config", {}),
        ("MPNetConfig", {}),
        ("XLMRobertaConfig", {}),
    ],
)
def test_other_families_agree_with_the_library_too(family, more):
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    more = more if "dim" in more else {**size, **more}
    config = getattr(transformers, family)(vocab_size=ROWS, max_position_embeddings=20, initializer_range=0.5, **more)
    made, params = transformer(config, classes=CLASSES, dtype=F64, seed=2)
    config.num_labels = CLASSES
    whole = transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
    missing = whole.load_state_dict({k.removeprefix("model."): v for k, v in params.items()}, strict=False)
    assert not missing.unexpected_keys
    found = made.logits(params, TOKENS.ids, TOKENS.parts)
    for i in (0, 1, 4):
        ids, _ = alone(i)
        ids = ids[None]
        one = made.logits(params, ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(one, whole(input_ids=ids).logits[0].detach(), rtol=1e-9, atol=1e-11)
        if not (TOKENS.parts[i] == 2).any():
            torch.testing.assert_close(found[i], one, rtol=1e-9, atol=1e-11)


def test_a_decoder_keeps_its_direction_and_its_last_token_is_refused():
    size = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 20, "initializer_range": 0.5}
    config = transformers.GPT2Config(vocab_size=ROWS, **size, bos_token_id=2, eos_token_id=3)
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification with pooling='own' lets padding in"):
        transformer(config, classes=CLASSES, dtype=F64)
    made, params = transformer(config, classes=CLASSES, dtype=F64, pooling="mean")
    whole = transformers.GPT2Model(config).double().eval()
    whole.load_state_dict({k.removeprefix("encoder."): v for k, v in params.items() if k.startswith("encoder.")})
    found = made.logits(params, TOKENS.ids, TOKENS.parts)
    for i in (0, 1, 4):
        hidden = whole(input_ids=alone(i)[0][None]).last_hidden_state[0].mean(0)
        expected = params["classifier.weight"] @ hidden + params["classifier.bias"]
        torch.testing.assert_close(found[i], expected.detach(), rtol=1e-9, atol=1e-11)


def test_minilm_offline_cut_to_two_layers_equals_the_library():
    made, params = transformer(classes=4, layers=2, seed=1)
    assert [name for name in made.layers() if name.startswith("layer.")] == ["layer.0", "layer.1"]
    assert made.max_length == 512
    whole = transformers.BertModel.from_pretrained(datasets.minilm(), num_hidden_layers=2).eval()
    ids = torch.tensor([[101, 2023, 2003, 2204, 102]])
    pooled = whole(input_ids=ids).pooler_output
    expected = pooled @ params["model.classifier.weight"].T + params["model.classifier.bias"]
    found = made.logits(params, ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    again = transformer(classes=4, layers=2, seed=1)[1]
    assert all(torch.equal(value, again[name]) for name, value in params.items())


def test_reading_a_model_leaves_the_random_stream_and_the_log_level_alone():
    from transformers.utils import logging

    torch.manual_seed(0)
    before, level = torch.get_rng_state(), logging.get_verbosity()
    transformer(bert_config(), classes=2)
    text_models.text_cnn(9, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert logging.get_verbosity() == level
