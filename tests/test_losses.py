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


def test_regression_loss_counts_originals_only():
    q, q_hat = jnp.array([0.5, 0.9, 0.1]), jnp.array([0.7, 0.0, 0.2])
    value = losses.regression_loss(q, q_hat, jnp.array([True, False, True]))
    assert value == pytest.approx((0.2**2 + 0.1**2) / 2)


def test_regression_loss_of_a_batch_without_originals_is_zero():
    q = jnp.array([0.5])
    assert losses.regression_loss(q, q + 0.3, jnp.array([False])) == 0


def test_text_loss_is_the_mean_cross_entropy_of_answer_tokens():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 4, 7)), rng.integers(7, size=(2, 4))
    answer = np.array([[0, 1, 1, 1], [0, 0, 1, 0]], bool)
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(targets))
    got = losses.text_loss(jnp.array(logits), jnp.array(targets), jnp.array(answer))
    assert got == pytest.approx(float(np.asarray(each)[answer].mean()), rel=1e-5)


def test_equal_weights_add_the_losses():
    assert losses.total_loss((1.0, 2.0, 4.0), (1.0, 1.0, 1.0)) == 7.0
