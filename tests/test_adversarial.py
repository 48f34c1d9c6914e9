"""Adversarial training: the reversed gradient against two separate backward passes, and what it does to a model."""

import pytest
import torch
from text_cases import F64
from torch.nn import functional
from tuning_cases import confounded, noisy_model

from clif_kit.adversarial import BIAS, WEIGHT, adversarial_losses, adversarial_train, confound_head, reverse_gradient
from clif_kit.confounds import Confounded
from clif_kit.finetune import Schedule, fine_tune, logits

LAM = 0.3
SCHEDULE = Schedule(epochs=3, lr=1e-3, batch_size=5)


def both_heads(model, params, head, train):
    """Two losses from one forward pass, with no reversal in it."""
    ids, parts, y = train.batch()
    features = model.features(params, model.embed(params, ids, parts), parts)
    label = functional.cross_entropy(features @ params[f"{model.head}.weight"].T + params[f"{model.head}.bias"], y)
    return label, functional.cross_entropy(features @ head[WEIGHT].T + head[BIAS], train.confound)


@pytest.mark.parametrize("lam", [0.0, LAM, 3.0])
def test_gradients_are_those_of_two_separate_backward_passes(lam):
    (model, params), train = noisy_model(), confounded()
    head = {name: value + 0.1 for name, value in confound_head(model, params, 3, seed=1).items()}
    leaves, own = ({n: v.clone().requires_grad_() for n, v in part.items()} for part in (params, head))
    every = [*leaves.values(), *own.values()]
    objective = adversarial_losses(model, lam)({**leaves, **own}, *train.batch(), train.confound).mean()
    got = torch.autograd.grad(objective, every)
    label, confound = both_heads(model, leaves, own, train)
    up = torch.autograd.grad(label, every, retain_graph=True, allow_unused=True, materialize_grads=True)
    down = torch.autograd.grad(confound, every, allow_unused=True, materialize_grads=True)
    for k, name in enumerate([*leaves, *own]):
        wanted = down[k] if name in own else up[k] - lam * down[k]
        torch.testing.assert_close(got[k], wanted, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(objective, label + confound)


def test_reversal_is_the_identity_forward():
    x = torch.randn(4, 3, dtype=F64)
    assert torch.equal(reverse_gradient(x, 5.0), x)


def test_both_heads_see_the_same_dropped_features(monkeypatch):
    (model, params), train = noisy_model(), confounded()
    head, seen = confound_head(model, params, 3), []
    inner = type(model).classify

    def classify(self, params, embedded, features):
        seen.append(features)
        return inner(self, params, embedded, features)

    monkeypatch.setattr(type(model), "classify", classify)
    monkeypatch.setattr("clif_kit.adversarial.reverse_gradient", lambda x, _: seen.append(x) or x)
    adversarial_losses(model.training(), LAM)({**params, **head}, *train.batch(), train.confound)
    assert torch.equal(seen[0], seen[1])
    assert int((seen[0] == 0).sum()) > 5  # of 17 x 8


def test_lambda_zero_leaves_the_classifier_to_plain_fine_tuning():
    """No dropout, and Adam looks at every parameter alone: the same classifier, and a head that learnt beside it."""
    (model, params), train = noisy_model(), confounded()
    still = Schedule(epochs=3, lr=1e-3, batch_size=5, dropout=False)
    found = adversarial_train(model, params, train, still, 0.0, seed=3)
    plain = fine_tune(model, params, train.tokens, train.y, still, seed=3)
    assert list(found.params) == list(params)
    for name, value in plain.params.items():
        torch.testing.assert_close(found.params[name], value, rtol=1e-12, atol=1e-12)
    start = confound_head(model, params, 3, seed=3)
    assert (found.head[WEIGHT] - start[WEIGHT]).abs().max() > 1e-3
    assert (adversarial_train(model, params, train, still, 1.0, seed=3).params[model.embedding] - found.params[
        model.embedding]).abs().max() > 1e-4  # fmt: skip


def test_training_is_the_same_for_the_same_seed_and_the_hook_sees_the_classifier_alone():
    (model, params), train = noisy_model(), confounded()
    seen = []
    first = adversarial_train(model, params, train, SCHEDULE, LAM, after=lambda *call: seen.append(call))
    second = adversarial_train(model, params, train, SCHEDULE, LAM)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(first.params[name], second.params[name]) for name in params)
    assert [step for step, *_ in seen] == list(range(1, 13))
    assert all(list(leaves) == list(params) for *_, leaves in seen)
    assert logits(model, first.params, train.tokens).shape == (17, 2)
    assert not torch.equal(first.loss, adversarial_train(model, params, train, SCHEDULE, LAM, seed=1).loss)


def test_bad_input_says_what_to_do():
    (model, params), train = noisy_model(), confounded()
    with pytest.raises(ValueError, match="lam must be 0 or more"):
        adversarial_train(model, params, train, SCHEDULE, -0.3)
    with pytest.raises(ValueError, match="needs the confound of every text"):
        adversarial_train(model, params, confounded(torch.arange(17) > 0), SCHEDULE, LAM)
    with pytest.raises(ValueError, match="two values"):
        adversarial_train(model, params, Confounded(train.tokens, train.y, train.y * 0), SCHEDULE, LAM)
    with pytest.raises(ValueError, match="has the label 5"):
        adversarial_train(model, params, Confounded(train.tokens, train.y + 5, train.confound), SCHEDULE, LAM)
