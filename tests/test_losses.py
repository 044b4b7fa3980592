import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cpllm import losses


def test_ranking_loss_is_the_product_of_both_differences_where_the_order_is_wrong():
    q = jnp.array([[0.9, 0.5], [0.9, 0.5], [0.2, 0.2]])
    q_hat = jnp.array([[0.3, 0.6], [0.6, 0.3], [0.1, 0.9]])
    assert losses.ranking_loss(q, q_hat) == pytest.approx(0.4 * 0.3 / 3)


def test_ranking_loss_pushes_a_wrong_pair_apart():
    gradient = jax.grad(losses.ranking_loss, argnums=1)(
        jnp.array([[0.9, 0.5]]), jnp.array([[0.3, 0.6]])
    )
    assert gradient[0, 0] < 0 < gradient[0, 1]  # descent raises the first, lowers the second


def test_logistic_ranking_is_the_mean_over_ordered_pairs_whatever_their_distance():
    q = jnp.array([[0.9, 0.5], [0.5, 0.501], [0.2, 0.2]])
    q_hat = jnp.array([[0.3, 0.6], [0.5, 0.7], [0.1, 0.9]])
    logit = np.log(np.array(q_hat) / (1 - np.array(q_hat)))
    margins = np.array([1, -1]) * (logit[:2, 0] - logit[:2, 1])
    expected = np.log1p(np.exp(-5 * margins)).mean()
    assert losses.ranking_logistic(q, q_hat) == pytest.approx(expected, rel=1e-5)
    assert losses.ranking_logistic(q[2:], q_hat[2:]) == 0
    for times in 1, 3:
        alike = losses.ranking_logistic(*(jnp.tile(x[:1], (times, 1)) for x in (q, q_hat)))
        assert alike == pytest.approx(np.log1p(np.exp(-5 * margins[0])), rel=1e-5)


def test_logistic_ranking_has_finite_gradients_where_scores_saturate_or_truths_tie():
    saturated = jnp.array([[0.0, 1.0]])
    for q in jnp.array([[0.9, 0.5]]), jnp.array([[0.2, 0.2]]):
        assert np.isfinite(jax.grad(losses.ranking_logistic, 1)(q, saturated)).all()


def test_regression_loss_counts_originals_only():
    q, q_hat = jnp.array([0.5, 0.9, 0.1]), jnp.array([0.7, 0.0, 0.2])
    value = losses.regression_loss(q, q_hat, jnp.array([True, False, True]))
    assert value == pytest.approx((0.2**2 + 0.1**2) / 2)
    one = losses.regression_loss(q, q_hat, jnp.array([True, False, False]))
    assert one == pytest.approx(0.2**2)


def test_regression_loss_of_a_batch_without_originals_is_zero():
    q = jnp.array([0.5])
    assert losses.regression_loss(q, q + 0.3, jnp.array([False])) == 0


def test_text_loss_is_the_mean_cross_entropy_of_answer_tokens():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 4, 7)), rng.integers(7, size=(2, 4))
    answer = np.array([[0, 1, 1, 1], [0, 0, 1, 0]], bool)
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(targets))
    for chunk in (1, 3, 32):
        got = losses.text_loss(
            jnp.array(logits), lambda x: x, jnp.array(targets), jnp.array(answer), chunk
        )
        assert got == pytest.approx(float(np.asarray(each)[answer].mean()), rel=1e-5)
    one = np.arange(8).reshape(2, 4) == 5
    got = losses.text_loss(jnp.array(logits), lambda x: x, jnp.array(targets), jnp.array(one))
    assert got == pytest.approx(float(each[1, 1]), rel=1e-5)


def test_text_loss_has_the_gradients_of_plain_cross_entropy():
    rng = np.random.default_rng(1)
    hidden, table = rng.normal(size=(3, 5, 6)), rng.normal(size=(11, 6))
    targets, answer = rng.integers(11, size=(3, 5)), rng.random((3, 5)) < 0.5

    def chunked(hidden, table):
        return losses.text_loss(hidden, lambda x: x @ table.T, targets, jnp.array(answer), 2)

    def plain(hidden, table):
        logits = (hidden @ table.T)[answer]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets[answer]).mean()

    given = jnp.array(hidden, jnp.float32), jnp.array(table, jnp.float32)
    got, expected = (jax.value_and_grad(f, argnums=(0, 1))(*given) for f in (chunked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


def test_text_loss_never_makes_logits_of_all_positions():
    batch, length, vocab = 2, 128, 5000

    def loss(hidden, table):
        answer = jnp.ones((batch, length), bool)
        targets = jnp.zeros((batch, length), int)
        return losses.text_loss(hidden, lambda x: x @ table.T, targets, answer, 8)

    given = jnp.zeros((batch, length, 4)), jnp.zeros((vocab, 4))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile()
    full = batch * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < full / 2


def test_text_loss_makes_logits_of_no_more_than_the_chunks_that_hold_answers():
    shapes, calls = [], []

    def logits(x):
        shapes.append(x.shape)
        jax.debug.callback(lambda: calls.append(1))
        return x

    answer = jnp.zeros((2, 10), bool).at[:, 5:8].set(True)
    losses.text_loss(jnp.ones((2, 10, 6)), logits, jnp.zeros((2, 10), int), answer, 4)
    jax.effects_barrier()
    assert set(shapes) == {(2, 4, 6)} and calls == [1]  # the answers of a text come first


def test_text_loss_of_a_batch_without_answers_is_zero():
    none = jnp.zeros((1, 3), bool)
    assert losses.text_loss(jnp.ones((1, 3, 2)), lambda x: x, jnp.zeros((1, 3), int), none) == 0


def test_equal_weights_add_the_losses():
    assert losses.total_loss((1.0, 2.0, 4.0), (1.0, 1.0, 1.0)) == 7.0


def test_a_weight_for_each_loss_is_needed():
    with pytest.raises(ValueError, match="longer"):
        losses.total_loss((1.0, 2.0, 4.0), (1.0, 1.0))
