"""A batch in pieces is one large batch; what is not finite ends a training before it has changed anything."""

import numpy as np
import pytest

from refattn.training import Batch, TrainingStoppedError


def parameters_of(trainer):
    return {name: array.copy() for name, array in trainer.model.parameters.items()}


@pytest.mark.parametrize("weighted", [True, False], ids=["weights that differ from row to row", "no weights"])
def test_a_batch_in_pieces_gives_the_gradients_of_the_whole(new_trainer, task, weighted):
    def batches(step):
        batch = task.batch(8, seed=0, number=step)
        if not weighted:
            return batch._replace(weights=None)
        weights = batch.weights * np.random.default_rng(step).integers(0, 5, size=(8, 1))
        weights[:2] = 0  # the first of four pieces has nothing that counts
        return batch._replace(weights=weights)

    losses = []
    for accumulate in (1, 2, 4):
        trainer = new_trainer(batches=batches, accumulate=accumulate)
        losses.append([trainer.advance()[1:3] for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-12)


@pytest.mark.slow
def test_training_lowers_the_loss_and_recomputing_changes_nothing(new_trainer, task):
    kept, again = new_trainer(60), new_trainer(60, recompute=True)
    losses = np.array([[one.advance().loss for one in (kept, again)] for _ in range(60)])
    np.testing.assert_array_equal(losses[:, 0], losses[:, 1])
    assert losses[-10:, 0].mean() < 0.8 * losses[:5, 0].mean()
    held = [task.batch(8, seed=0, number=number, held_out=True) for number in range(3)]
    assert kept.held_out(held).loss < new_trainer().held_out(held).loss


def test_what_is_held_out_counts_by_its_weight(new_trainer, task):
    trainer = new_trainer()
    one, other = (task.batch(4, seed=0, number=number, held_out=True) for number in range(2))
    other = other._replace(weights=0.25 * other.weights)
    both = [np.concatenate(pair) for pair in zip(one, other, strict=True)]
    whole = trainer.model.evaluate(*both)
    assert trainer.held_out([one, other]) == pytest.approx((whole.loss, whole.accuracy), rel=1e-12)


def test_rows_that_cannot_be_cut_are_refused(new_trainer):
    with pytest.raises(ValueError, match="accumulate: 3 came, a divisor of the 4 rows"):
        new_trainer(accumulate=3).advance()


def test_tokens_out_of_range_are_refused(new_trainer, task):
    wrong = task.batch(4, seed=0, number=0)
    wrong.tokens[1, 2] = task.vocab_size
    trainer = new_trainer(batches=lambda step: wrong)
    with pytest.raises(ValueError, match=rf"tokens: {task.vocab_size} at index \(1, 2\) came"):
        trainer.advance()
    assert trainer.steps == 0


@pytest.mark.parametrize(
    ("name", "where"),
    [("blk.0.ffn_up.weight", "blk.0: "), ("blk.1.attn_q.weight", "blk.1: "), ("output_norm.weight", "output")],
)
def test_what_is_not_finite_names_the_step_and_the_first_layer(new_trainer, name, where):
    trainer = new_trainer()
    for _ in range(3):
        trainer.advance()
    trainer.model.parameters[name].flat[1] = np.nan
    before = parameters_of(trainer)
    with pytest.raises(TrainingStoppedError, match=rf"^step 4: .*{where}") as caught:
        trainer.advance()
    assert caught.value.step == 4
    assert trainer.steps == 3
    for key, array in trainer.model.parameters.items():
        np.testing.assert_array_equal(array, before[key])


class Wild:
    """A model without checks of its own, whose loss or gradient is what it is told."""

    def __init__(self, loss, gradient):
        self.parameters = {"first": np.ones(2), "second": np.ones(2)}
        self._found = loss, {"first": np.zeros(2), "second": np.full(2, gradient)}

    def loss_and_gradients(self, tokens, targets, weights=None, attention=None, recompute=False, wanted=None):
        return self._found


@pytest.mark.parametrize(
    ("loss", "gradient", "message"),
    [(np.nan, 0.0, "step 1: .*the loss is nan"), (1.0, np.inf, "step 1: second: the gradient is not finite")],
)
def test_a_model_that_does_not_look_is_looked_at(new_trainer, loss, gradient, message):
    from refattn.training import AdamW, Trainer

    model, batch = Wild(loss, gradient), Batch(np.zeros((1, 1), int), np.zeros((1, 1), int))
    trainer = Trainer(model, lambda step: batch, AdamW(model.parameters), lambda step: 0.1)
    with pytest.raises(TrainingStoppedError, match=message):
        trainer.advance()
    assert (model.parameters["first"] == 1).all()


def test_what_the_optimiser_is_not_of_stays_as_it_is(new_trainer):
    from refattn.training import AdamW

    trainer, whole = new_trainer(), new_trainer()
    some = {name: array for name, array in trainer.model.parameters.items() if "attn_q" in name}
    trainer.optimizer = AdamW(some)
    assert trainer.trained.keys() == some.keys()
    before, digest = parameters_of(trainer), trainer.frozen_digest()
    steps = [trainer.advance() for _ in range(3)]
    assert steps[0].loss == whole.advance().loss
    for name, array in trainer.model.parameters.items():
        assert np.array_equal(array, before[name]) == (name not in some)
    assert trainer.frozen_digest() == digest != ""
    assert whole.frozen_digest() == ""


def test_pieces_of_a_distribution_are_its_texts(new_trainer, task):
    from refattn.models import TokenDistribution

    def batches(number):
        batch = task.batch(4, seed=0, number=number)
        targets = np.stack([batch.targets, (batch.targets + 1) % task.vocab_size], axis=-1)
        return batch._replace(targets=TokenDistribution(targets, np.broadcast_to([0.75, 0.25], targets.shape)))

    whole, pieces = new_trainer(batches=batches), new_trainer(batches=batches, accumulate=4)
    for _ in range(3):
        assert pieces.advance().loss == pytest.approx(whole.advance().loss, rel=1e-12)
