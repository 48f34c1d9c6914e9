"""Encoding against lists written by hand, and against the tokenizer that comes with MiniLM as the library uses it."""

from itertools import pairwise

import pytest
import torch
from text_cases import NAMES, tokenizer, tokens
from tokenizers import processors
from transformers import AutoTokenizer

from clif_kit import datasets
from clif_kit.text_tokens import Tokens, alike, byte_pair_tokenizer, compact, encode, read_tokenizer


def test_ids_and_parts_by_hand():
    found = encode(tokenizer(), ["not good", "", "odd film"])
    assert found.ids.tolist() == [[2, 4, 5, 3], [2, 3, 0, 0], [2, 1, 7, 3]]
    assert found.parts.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert found.special == (2, 3)
    assert found.words(2) == ["[CLS]", "[UNK]", "film", "[SEP]"]


def test_pairs_and_truncation_by_hand():
    found = encode(tokenizer(), ["good good good good", "bad"], ["film", ""], max_length=6)
    assert found.ids.tolist() == [[2, 5, 5, 3, 7, 3], [2, 6, 3, 3, 0, 0]]
    assert found.parts.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 0, 0]]


def test_a_text_that_names_a_special_token_does_not_get_one():
    found = encode(tokenizer(), ["not [SEP] good [PAD]"])
    assert found.ids.tolist() == [[2, 4, 1, 1, 1, 5, 1, 1, 1, 3]]


def test_the_tokenizers_own_settings_neither_matter_nor_change():
    made = tokenizer()
    made.enable_padding(length=12, pad_id=6)
    made.enable_truncation(3)
    padding, truncation = made.padding, made.truncation
    found = encode(made, ["not good film", "bad"])
    assert found.ids.tolist() == [[2, 4, 5, 7, 3], [2, 6, 3, 0, 0]]
    assert found.special == (2, 3)
    assert (made.padding, made.truncation, made.encode_special_tokens) == (padding, truncation, False)


def test_minilm_agrees_with_the_library():
    texts, pairs = ["The film was not good.", "Unbelievably, café!"], ["It was bad", "a" * 300]
    library = AutoTokenizer.from_pretrained(datasets.minilm())
    wanted = library(texts, pairs, padding=True, truncation=True, max_length=40, return_tensors="pt")
    found = encode(read_tokenizer(), texts, pairs, max_length=40)
    assert torch.equal(found.ids, wanted["input_ids"])
    assert torch.equal(found.parts, (1 + wanted["token_type_ids"]) * wanted["attention_mask"])
    assert found.special == (library.cls_token_id, library.sep_token_id)
    assert [found.names[i] for i in found.special] == ["[CLS]", "[SEP]"]


def test_roberta_has_two_separators_and_one_segment():
    made = byte_pair_tokenizer(["ab ab", "ab cd"], size=300)
    found = encode(made, ["ab"], ["cd"])
    assert [found.names[i] for i in found.special] == ["<s>", "</s>"]
    words = found.words(0)
    assert (words[0], words[-1], words.count("</s>"), "".join(words)) == ("<s>", "</s>", 3, "<s>ab</s></s>cd</s>")
    assert found.parts.tolist() == [[1] * len(words)]
    spelt = encode(made, ["<s>"]).ids.tolist()[0]
    assert spelt[0] == 0
    assert 0 not in spelt[1:]


def test_what_cannot_be_encoded_is_refused():
    bare = tokenizer()
    bare.post_processor = processors.Sequence([])
    assert encode(bare, ["good"]).special == ()
    with pytest.raises(ValueError, match="text 1 is empty and the tokenizer adds no special tokens"):
        encode(bare, ["good", ""])
    with pytest.raises(ValueError, match="2 first and 1 second"):
        encode(tokenizer(), ["good", "bad"], ["film"])


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer for"):
        read_tokenizer(tmp_path)


def test_taking_and_cropping():
    made = tokens()
    short = made.take([0, 0])
    assert short.ids.shape == (2, 2)
    assert made.take(torch.tensor([1, 3])).words(1) == made.words(3)
    assert len(made.take([])) == 0


def test_compact_keeps_what_is_used_and_nothing_else():
    first, second = tokens(seed=0), tokens(seed=4)
    rows, (a, b) = compact(first, second, also=(40,))
    used = {i for one in (first, second) for i in one.ids[one.parts > 0].tolist()}
    assert rows.tolist() == sorted(used | {2, 3, 40})
    for old, new in ((first, a), (second, b)):
        assert torch.equal(torch.where(old.parts > 0, rows[new.ids], 0), old.ids)
        assert torch.equal(old.parts, new.parts)
        assert not new.ids[new.parts == 0].any()
        assert [NAMES[i] for i in old.special] == [new.names[i] for i in new.special]


def test_compact_refuses_two_tokenizers():
    other = tokens()
    with pytest.raises(ValueError, match="different tokenizers"):
        compact(tokens(), Tokens(other.ids, other.parts, (1,), other.names))


def test_batches_of_like_length_hold_everything_once():
    made = tokens(n=23)
    batches = list(alike(made.parts, 4))
    lengths = (made.parts > 0).sum(1)
    assert sorted(torch.cat(batches).tolist()) == list(range(23))
    assert all(lengths[a].max() <= lengths[b].min() for a, b in pairwise(batches))
