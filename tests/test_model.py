import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import fft

from cpllm import config, train
from cpllm.model import layers, videoprism, weights
from cpllm.model.cpllm import CPLLM, positions, prefix_mask
from cpllm.model.lora import Adapter, trainable
from cpllm.model.siglip import patchify

SMOKE = config.smoke().model
VIEW, PATCH, K, L = SMOKE.high.image, 32, 8, 12
see, read = nnx.jit(CPLLM.see), nnx.jit(CPLLM.read)


def make(model: config.Model, seed: int = 0) -> CPLLM:
    return nnx.jit(lambda: CPLLM(model, nnx.Rngs(seed)))()


def with_lora(**changes) -> config.Model:
    return dataclasses.replace(SMOKE, lora_rank=2, decoder_finetune="lora", **changes)


@pytest.fixture(scope="module")
def model():
    return make(SMOKE)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return {
        "view": rng.integers(256, size=(2, VIEW, VIEW, 3), dtype=np.uint8),
        "patches": rng.integers(256, size=(2, K, PATCH, PATCH, 3), dtype=np.uint8),
        "present": np.ones((2, K), bool),
    }


def a_text(answers: int = 4):
    tokens = np.arange(L, dtype=np.int32)[None] % 7 + 3
    at = np.arange(L)[None]
    return {"tokens": tokens, "valid": at < L, "answer": at >= L - answers}


def one(pair, i):
    return tuple(x[i : i + 1] for x in pair)


def test_prefix_is_bidirectional_and_the_answer_causal():
    valid = jnp.ones((1, 5), bool)
    mask = prefix_mask(valid, jnp.array([[0, 0, 0, 1, 1]], bool))[0]
    assert mask[:3, :3].all()
    assert not mask[:3, 3:].any()
    assert mask[3].tolist() == [1, 1, 1, 1, 0]


def test_positions_leave_no_gap_where_the_duplicate_is_masked_out():
    valid = jnp.array([[1, 1, 0, 0, 1, 1]], bool)
    assert positions(valid)[0, [0, 1, 4, 5]].tolist() == [0, 1, 2, 3]


def test_answer_tokens_cannot_see_the_future(model, frames):
    u, v = see(model, **frames)
    seen, text, second = [one((u, v), 0), one((u, v), 1)], a_text(), jnp.array([True])
    later = {**text, "tokens": text["tokens"].copy()}
    later["tokens"][0, -1] += 1
    before, after = (read(model, seen, second, t) for t in (text, later))
    np.testing.assert_array_equal(before[0, :-1], after[0, :-1])
    assert np.abs(before[0, -1] - after[0, -1]).max() > 0


def test_a_prefix_token_sees_the_whole_prefix(model, frames):
    u, v = see(model, **frames)
    text = a_text()
    changed = {**text, "tokens": text["tokens"].copy()}
    changed["tokens"][0, 5] += 1  # within the prompt
    before, after = (read(model, [one((u, v), 0)], jnp.array([True]), t) for t in (text, changed))
    assert np.abs(before[0, 0] - after[0, 0]).max() > 0


def test_a_masked_duplicate_changes_nothing_in_the_text(model, frames):
    u, v = see(model, **frames)
    text, hidden = a_text(), jnp.array([False])
    alone = read(model, [one((u, v), 0)], hidden, text)
    doubled = read(model, [one((u, v), 0), one((u, v), 0)], hidden, text)
    other = read(model, [one((u, v), 0), one((u, v), 1)], hidden, text)
    np.testing.assert_allclose(doubled, alone, atol=2e-6)
    np.testing.assert_array_equal(doubled, other)


def test_the_low_level_mean_leaves_absent_patches_out(model, frames):
    half = {**frames, "present": np.arange(K)[None].repeat(2, 0) < K // 2}
    garbage = {**half, "patches": half["patches"].copy()}
    garbage["patches"][:, K // 2 :] = 0
    np.testing.assert_allclose(see(model, **half)[1], see(model, **garbage)[1], atol=1e-6)
    assert np.abs(see(model, **frames)[1] - see(model, **half)[1]).max() > 1e-3


def test_the_order_of_patches_does_not_matter(model, frames):
    turned = {**frames, "patches": frames["patches"][:, ::-1]}
    np.testing.assert_allclose(see(model, **frames)[1], see(model, **turned)[1], atol=1e-5)


def low_tower(**changes):
    low = dataclasses.replace(SMOKE.low, temporal_layers=2, frames=K)
    shape = dataclasses.replace(SMOKE, low=low, **changes)
    tower = nnx.jit(lambda: videoprism.VideoPrism(shape, nnx.Rngs(0)))()
    return jax.jit(lambda patches, present: tower(patches, present))


def test_cropped_patches_are_their_middle_in_whole_tokens(frames):
    tower, present = low_tower(crop_patches=True, local_norm=False), frames["present"][:1]
    wide = np.random.default_rng(1).integers(256, size=(1, K, 46, 46, 3), dtype=np.uint8)
    tokens = tower(wide, present)
    assert tokens.shape[2] == 25  # 46 pixels hold five tokens of 8
    np.testing.assert_array_equal(tokens, tower(wide[:, :, 3:43, 3:43], present))
    assert low_tower()(wide, present).shape[2] == 16  # resized to the tower's 32 pixels


def test_a_clip_of_patches_passes_the_temporal_layers_without_the_absent_ones(frames):
    present = np.arange(K)[None].repeat(2, 0) < K // 2

    def first(tower, black):  # tokens of the first patch where another is black
        patches = frames["patches"].copy()
        patches[:, black] = 0
        return tower(patches, present)[:, 0]

    clip, images = low_tower(clip_patches=True), low_tower()
    np.testing.assert_allclose(first(clip, K - 1), first(clip, K - 2), atol=1e-6)
    assert np.abs(first(clip, 1) - first(clip, K - 1)).max() > 1e-3
    np.testing.assert_array_equal(first(images, 1), first(images, K - 1))


def test_a_clip_of_patches_needs_temporal_layers():
    with pytest.raises(ValueError, match=r"clip_patches: needs model\.low\.temporal_layers"):
        make(dataclasses.replace(SMOKE, clip_patches=True))


def test_scores_lie_between_zero_and_one_for_both_predictors(frames):
    for predictor in ("token", "pooled"):
        model = make(dataclasses.replace(SMOKE, predictor=predictor), 1)
        scores = model.score(*see(model, **frames))
        assert scores.shape == (2,)
        assert ((scores > 0) & (scores < 1)).all()


def test_lora_starts_as_the_identity(frames):
    plain, adapted = make(SMOKE), make(with_lora())
    state = {k: v for k, v in nnx.to_flat_state(nnx.state(plain))}
    base = nnx.to_flat_state(nnx.state(adapted))
    nnx.update(adapted, nnx.from_flat_state([(k, state.get(k, v)) for k, v in base]))
    u, v = see(plain, **frames)
    seen = [one((u, v), 0)]
    np.testing.assert_array_equal(
        read(plain, seen, jnp.array([True]), a_text()),
        read(adapted, seen, jnp.array([True]), a_text()),
    )


def under(prefix: str, *leaves: str) -> set[str]:
    return {f"{prefix}.{leaf}" for leaf in leaves}


LINEAR, NORM = ("kernel", "bias"), ("scale", "bias")
BLOCK = [f"{part}.{leaf}" for part in ("attention.q", "attention.k", "attention.v",
         "attention.out", "mlp.inner", "mlp.outer") for leaf in LINEAR]  # fmt: skip
BLOCK += [f"norm{i}.{leaf}" for i in (1, 2) for leaf in NORM]
ALWAYS = (
    under("project_high", *LINEAR) | under("project_low", *LINEAR) | under("pool_norm", *NORM)
    | under("predictor.mlp.inner", *LINEAR) | under("predictor.mlp.outer", *LINEAR)
    | under("low.embed", *LINEAR) | {"low.positions"} | under("low.spatial", *BLOCK)
    | under("low.spatial_norm", *NORM)
    | {f"decoder.blocks.attention.lora.{x}.{factor}" for x in "qkv" for factor in "ab"}
)  # fmt: skip
HEAD = under("high.last", *BLOCK) | under("high.norm", *NORM)
HIGH = HEAD | under("high.embed", *LINEAR) | {"high.positions"} | under("high.blocks", *BLOCK)
REGIMES = {"frozen": ALWAYS, "head": ALWAYS | HEAD, "all": ALWAYS | HIGH}


@pytest.mark.parametrize("regime", REGIMES)
def test_a_step_moves_exactly_the_trainable_leaves(regime, frames):
    shape = with_lora(high_finetune=regime, high=dataclasses.replace(SMOKE.high, layers=2))
    model = make(shape)
    graph, params, frozen = nnx.split(model, trainable(shape), ...)
    assert weights.names(params).keys() == REGIMES[regime]
    batch = {
        **frames,
        **{k: np.repeat(x, 1, 0) for k, x in a_text().items()},
        "first": np.array([0]), "second": np.array([1]),
        "q": np.array([[0.9, 0.1]], np.float32), "has_mos": np.array([True]),
    }  # fmt: skip
    # One B of LoRA is zero, so A moves from the second step on: take two.
    tx = train.optimizer(dataclasses.replace(config.smoke().train, schedule="constant"))
    step, state = train.make_step(graph, tx, (1.0, 1.0, 1.0)), train.State(params, tx.init(params))
    before = jax.tree.map(np.array, nnx.to_pure_dict(params))
    kept = jax.tree.map(np.array, nnx.to_pure_dict(frozen))
    for _ in range(2):
        state, _ = step(state, frozen, batch)
    after = nnx.to_pure_dict(state.params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(moved)), [
        jax.tree_util.keystr(k) for k, m in jax.tree_util.tree_leaves_with_path(moved) if not m
    ]
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), kept, nnx.to_pure_dict(frozen))
    )


def test_paper_size_parameter_counts_equal_the_published_ones():
    paper = config.paper().model
    table = train.parameter_table(paper)
    assert table.loc["high", "parameters"] == 413_327_088
    assert table.loc["low", "parameters"] == 114_365_184
    assert table.loc["decoder", "trained"] == 626_688  # LoRA of rank 4 on q, k, v
    gemma = dataclasses.replace(paper.decoder, vocab=256_000)  # PaliGemma's has rows more
    public = dataclasses.replace(paper, low=config.VIDEOPRISM_L, decoder=gemma, lora_rank=0)
    table = train.parameter_table(public)
    assert table.loc["low", "parameters"] == 353_965_056
    assert table.loc["decoder", "parameters"] == 2_506_172_416


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_paper_s_size_gives_finite_results_of_the_paper_s_shapes(dtype):
    """Both towers whole, two of the decoder's 18 layers: 6 GB."""
    paper = config.paper().model
    two = dataclasses.replace(paper.decoder, layers=2)
    model = make(dataclasses.replace(paper, decoder=two, dtype=dtype))
    rng = np.random.default_rng(0)
    pixels = {"view": (1, 448, 448, 3), "patches": (1, 8, 224, 224, 3)}
    pixels = {k: rng.integers(256, size=shape, dtype=np.uint8) for k, shape in pixels.items()}
    u, v = see(model, **pixels, present=np.ones((1, 8), bool))
    hidden = read(model, [(u, v)], jnp.array([True]), a_text())
    logits = model.decoder.logits(hidden[:, -1])
    assert (u.shape, v.shape) == ((1, 1024, 2048), (1, 256, 2048))
    assert u.dtype == v.dtype == hidden.dtype == dtype
    assert logits.shape == (1, 257_216) and logits.dtype == jnp.float32
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in (u, v, hidden, logits))
    assert 0 < model.score(u, v)[0] < 1
    rounding = 2**-8  # of bfloat16; noise, which v averages over patches, makes all tokens alike
    assert min(x[0].astype(jnp.float32).std(0).mean() for x in (u, v)) > 4 * rounding


def test_patchify_flattens_rows_then_columns_then_channels():
    image = np.arange(4 * 4 * 3).reshape(1, 4, 4, 3)
    np.testing.assert_array_equal(patchify(image, 2)[0, 1], image[0, :2, 2:].ravel())


def test_spectra_hold_scipys_coefficients_against_each_step():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.float32)
    found = np.asarray(videoprism.spectrum(rgb / 255))
    assert found.shape == (2, 16, 24, 4)
    c = fft.dctn(rgb[1, 8:, 16:] @ [.299, .587, .114], norm="ortho")
    for channel, step in zip(np.moveaxis(found[1, 8:, 16:], -1, 0), (.25, 1, 4, 16), strict=True):
        expected = 2 * c**2 / (c**2 + step**2) - 1
        expected[0, 0] = c[0, 0] / 8 / 255
        np.testing.assert_allclose(channel, expected, atol=2e-3)


def test_spectra_of_a_flat_block_are_its_mean_and_nothing_else():
    grey = np.asarray(videoprism.spectrum(jnp.full((8, 8, 3), 100 / 255)))
    np.testing.assert_allclose(grey[0, 0], 100 / 255, atol=1e-5)
    np.testing.assert_allclose(grey.reshape(64, 4)[1:], -1, atol=1e-4)


def test_local_normalisation_removes_brightness_and_contrast():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 0.8, (1, 32, 32, 3)).astype(np.float32)
    plain = videoprism.local_normalise(x, floor=0.0)
    changed = videoprism.local_normalise(0.5 * x + 0.1, floor=0.0)
    np.testing.assert_allclose(changed, plain, atol=1e-3)


def test_box_mean_equals_the_mean_of_the_window_inside_the_border():
    x = np.random.default_rng(0).normal(size=(1, 12, 12, 1)).astype(np.float32)
    got = videoprism.box_mean(x, 9)
    assert got[0, 6, 5, 0] == pytest.approx(x[0, 2:11, 1:10].mean(), abs=1e-5)
    assert got[0, 0, 0, 0] == pytest.approx(x[0, :5, :5].mean(), abs=1e-5)


def test_rotary_embedding_keeps_lengths_and_depends_on_distance_only():
    q, k = (np.random.default_rng(i).normal(size=(1, 1, 1, 8)) for i in range(2))

    def product(at_q, at_k):
        turned = [layers.rotate(jnp.array(x), jnp.array([[p]])) for x, p in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(12, 10), rel=1e-4)
    assert jnp.linalg.norm(layers.rotate(jnp.array(q), jnp.array([[9]]))) == pytest.approx(
        np.linalg.norm(q), rel=1e-5
    )


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 0), (0, 2, 3)])
def test_a_linear_layer_and_its_adapter_take_any_number_of_rows_none_included(lead):
    dense, adapter = layers.Dense(4, 5, nnx.Rngs(0)), Adapter(4, 5, 2, nnx.Rngs(1))
    adapter.b[...] = jax.random.normal(jax.random.key(2), (2, 5))
    x = jax.random.normal(jax.random.key(3), (*lead, 4))
    np.testing.assert_allclose(
        dense(x), np.matmul(x, dense.kernel[...]) + dense.bias[...], atol=1e-6)
    np.testing.assert_allclose(
        adapter(x), np.matmul(np.matmul(x, adapter.a[...]), adapter.b[...]), atol=1e-6)


def test_shifted_norm_is_layer_norm_or_rms_norm_times_one_plus_scale():
    x = np.random.default_rng(0).normal(2, 3, (4, 16)).astype(np.float32)
    centred = x - x.mean(-1, keepdims=True)
    for centre, y in ((True, centred), (False, x)):
        norm = layers.Norm(16, shifted=True, centre=centre)
        norm.scale[...] = jnp.full(16, 0.5)
        expected = 1.5 * y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(norm(x), expected, atol=1e-5)


def test_attention_is_the_softmax_of_scaled_and_capped_products():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, n, 8)).astype(np.float32) * 2 for n in (4, 2, 2))
    mask = rng.random((2, 5, 5)) < 0.7
    mask[:, :, 0] = True
    for cap in (0.0, 3.0):
        y = layers.attend(q, k, v, mask, cap)
        for head in range(4):  # two query heads to a key head
            logits = np.einsum("btd,bsd->bts", q[:, :, head], k[:, :, head // 2]) / np.sqrt(8)
            logits = cap * np.tanh(logits / cap) if cap else logits
            w = np.exp(logits) * mask
            expected = (w / w.sum(-1, keepdims=True)) @ v[:, :, head // 2]
            np.testing.assert_allclose(y[:, :, head], expected, atol=1e-5)


def test_attention_equals_the_library_s_own():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.array(rng.normal(size=(2, 5, n, 8)), jnp.float32) for n in (4, 1, 1))
    mask = jnp.array(rng.random((2, 5, 5)) < 0.7).at[:, :, 0].set(True)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    np.testing.assert_allclose(layers.attend(q, k, v, mask), expected, atol=1e-5)


@pytest.mark.parametrize("kind, capability, shape, dtype, cap, fused", [
    ("NVIDIA H200", "9.0", (1, 10, 8, 256), "bfloat16", 0.0, True),
    ("NVIDIA A100", "8.0", (1, 10, 8, 256), "bfloat16", 0.0, False),
    ("NVIDIA A100", "8.0", (1, 10, 16, 72), "bfloat16", 0.0, True),
    ("NVIDIA H200", "9.0", (1, 10, 12, 64), "bfloat16", 50.0, False),  # VideoPrism
    ("NVIDIA H200", "9.0", (1, 1, 8, 256), "bfloat16", 0.0, False),  # decoding
    ("NVIDIA H200", "9.0", (1, 9, 8, 256), "bfloat16", 0.0, False),  # its gradient takes no odd one
    ("NVIDIA H200", "9.0", (1, 10, 8, 256), "float32", 0.0, False),
    ("cpu", "", (1, 10, 8, 256), "bfloat16", 0.0, False),
])  # fmt: skip
def test_the_backend_decides_where_attention_is_fused(
    monkeypatch, kind, capability, shape, dtype, cap, fused
):
    device = SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert layers.has_fused(jax.ShapeDtypeStruct(shape, dtype), cap) is fused


@pytest.mark.skipif(
    not jax.devices()[0].device_kind.startswith("NVIDIA"), reason="cuDNN needs an NVIDIA device"
)
@pytest.mark.parametrize("heads, kv, dim, length", [(16, 16, 72, 1024), (8, 1, 256, 600)])
def test_fused_attention_on_nvidia_equals_plain_attention(heads, kv, dim, length):
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, dim) for n in (heads, kv, kv)]
    q, k, v = (jnp.array(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    for mask in (None, jnp.array(rng.random((2, length, length)) < 0.7)):
        plain = layers.attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask)
        np.testing.assert_allclose(layers.attend(q, k, v, mask), plain, atol=2e-2)


def gradients(model_config, frames):
    """Loss and gradients of one made batch."""
    graph, params = nnx.split(make(model_config))
    batch = {
        **frames, **a_text(), "first": np.array([0]), "second": np.array([1]),
        "q": np.array([[0.9, 0.1]], np.float32), "has_mos": np.array([True]),
    }  # fmt: skip

    def loss(params):
        return sum(train.loss_parts(nnx.merge(graph, params), batch))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("predictor", ["token", "pooled"])
@pytest.mark.parametrize(("only", "other"), [("low", "high"), ("high", "low")])
def test_a_model_of_one_encoder_trains_that_one(frames, only, other, predictor):
    loss, grads = gradients(
        dataclasses.replace(SMOKE, encoders=only, predictor=predictor), frames)
    moved = {name.split(".")[0] for name, g in weights.names(grads).items() if np.any(g)}
    assert np.isfinite(loss) and only in moved and other not in moved


@pytest.mark.parametrize("predictor", ["token", "pooled"])
def test_a_predictor_of_low_level_tokens_ignores_the_others_and_the_decoder_does_not(
    frames, predictor
):
    def scores_and_words(sees):
        model = make(dataclasses.replace(SMOKE, predictor=predictor, predictor_sees=sees))
        u, v = see(model, **frames)
        single, words = jnp.zeros(1, bool), {k: jnp.asarray(x) for k, x in a_text().items()}
        return [(model.score(x, v), read(model, [one((x, v), 0)] * 2, single, words))
                for x in (u, u[::-1] + 1)]

    for sees, differs in (("both", True), ("low", False)):
        (score, words), (other, told) = scores_and_words(sees)
        assert bool((score != other).all()) is differs and bool((score != other).any()) is differs
        assert (words != told).any()


@pytest.fixture(scope="module")
def plain_gradients(frames):
    return gradients(SMOKE, frames)


@pytest.mark.parametrize("remat", ["blocks", "functions"])
def test_rematerialised_blocks_have_the_same_gradients(frames, plain_gradients, remat):
    again = gradients(dataclasses.replace(SMOKE, remat=remat), frames)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, plain_gradients
    )


def test_bfloat16_keeps_weights_losses_and_gradients_in_float32(frames, plain_gradients):
    loss, grads = gradients(dataclasses.replace(SMOKE, dtype="bfloat16"), frames)
    assert {x.dtype for x in jax.tree.leaves((loss, grads))} == {jnp.dtype("float32")}
    assert loss == pytest.approx(float(plain_gradients[0]), rel=0.02)
    flat, plain = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(g)])
                   for g in (grads, plain_gradients[1]))  # fmt: skip
    cosine = flat @ plain / jnp.linalg.norm(flat) / jnp.linalg.norm(plain)
    assert 0.99 < cosine < 1


def test_bfloat16_towers_compute_norms_and_softmax_in_float32():
    x = jnp.array([[256.0, 257, 258, 259]], jnp.bfloat16)  # 257 and 259 round to 256 and 260
    y = layers.Norm(4)(x)
    assert y.dtype == jnp.bfloat16
    exact = np.array([256.0, 256, 258, 260])
    np.testing.assert_allclose(
        y[0].astype(float), (exact - exact.mean()) / exact.std(), rtol=2**-8
    )
    jaxpr = str(jax.make_jaxpr(layers.attend)(*[jnp.ones((1, 3, 2, 8), jnp.bfloat16)] * 3))
    assert "bf16" not in next(line for line in jaxpr.splitlines() if " exp " in line)


def test_bfloat16_towers_give_bfloat16_tokens_and_float32_scores_and_logits(frames):
    model = make(dataclasses.replace(SMOKE, dtype="bfloat16"))
    u, v = see(model, **frames)
    hidden = read(model, [one((u, v), 0)], jnp.array([True]), a_text())
    assert u.dtype == v.dtype == hidden.dtype == jnp.bfloat16
    assert model.score(u, v).dtype == model.decoder.logits(hidden).dtype == jnp.float32


@pytest.fixture(scope="module")
def written(model, frames):
    """Answers to prompts of 8 and 5 tokens, the second text's second frame masked out."""
    u, v = see(model, **frames)
    seen, second = [(u, v), (u[::-1], v[::-1])], jnp.array([True, False])
    tokens = np.stack([np.arange(8), np.arange(8)[::-1]]).astype(np.int32) % 7 + 3
    prompt = {"tokens": tokens, "valid": np.arange(8) < np.array([[8], [5]])}

    @partial(jax.jit, static_argnums=(0, 1))
    def generate(steps, eos, temperature, key):
        return model.generate(seen, second, prompt, steps, eos, temperature, key)

    def write(steps, eos=-1, temperature=1.0, key=None):
        return np.asarray(generate(steps, eos, temperature, key))

    return seen, second, prompt, write


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_cached_decoding_writes_what_the_whole_forward_predicts(model, written, temperature):
    seen, second, prompt, write = written
    key = None if temperature is None else jax.random.key(0)
    steps, starts, answers = 6, (8, 5), write(6, temperature=temperature or 1.0, key=key)
    tokens = np.pad(prompt["tokens"], [(0, 0), (0, steps)])
    valid, answer = np.pad(prompt["valid"], [(0, 0), (0, steps)]), np.zeros((2, 14), bool)
    for row, start in enumerate(starts):
        tokens[row, start : start + steps] = answers[row]
        valid[row, start : start + steps] = answer[row, start : start + steps] = True
    text = {"tokens": tokens, "valid": valid, "answer": answer}
    logits = model.decoder.logits(read(model, seen, second, text))
    for i in range(steps):
        before = jnp.stack([logits[row, start + i - 1] for row, start in enumerate(starts)])
        expected = before.argmax(-1) if key is None else jax.random.categorical(
            jax.random.fold_in(key, i), before / temperature)  # fmt: skip
        assert expected.tolist() == answers[:, i].tolist()


def test_layers_one_by_one_write_what_the_stack_writes(frames):
    """`unroll` moves no result: of the forward pass, its gradient and cached decoding."""
    two = dataclasses.replace(SMOKE, decoder=dataclasses.replace(SMOKE.decoder, layers=2))
    found = []
    for model in (make(two), make(dataclasses.replace(two, unroll=2))):
        seen, text = see(model, **frames), a_text()
        hidden = read(model, [one(seen, 0)], jnp.array([True]), text)
        prompt = {k: text[k] for k in ("tokens", "valid")}
        answer = model.generate([one(seen, 0)], jnp.array([True]), prompt, 6, -1)
        found.append((hidden, answer))
    assert (model.decoder.apart() is None, make(two).decoder.apart() is None) == (False, True)
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][1].tolist() == found[1][1].tolist()


def test_decoding_ignores_a_masked_second_frame(model, written):
    (first, other), _, prompt, write = written
    swapped = [first, tuple(x + 1 for x in other)]
    again = model.generate(swapped, jnp.array([True, False]), prompt, 6, -1)
    assert again[1].tolist() == write(6)[1].tolist()
    hidden = [read(model, s, jnp.ones(2, bool), prompt | {"answer": np.zeros((2, 8), bool)})[1]
              for s in ([first, other], swapped)]  # fmt: skip
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-3


def test_an_answer_ends_at_the_end_token_while_others_go_on(written):
    *_, write = written
    free = write(6)
    eos = int(free[0, 2])
    ended = write(6, eos)
    at = free[0].tolist().index(eos)
    assert ended[0].tolist() == [*free[0, :at], *[eos] * (6 - at)]
    stop = [*free[1].tolist(), eos].index(eos)
    assert ended[1, :stop].tolist() == free[1, :stop].tolist()


def test_tokens_are_drawn_from_the_softmax_at_the_given_temperature(model):
    draws, temperature = 4096, 0.3
    x = jax.random.normal(jax.random.key(1), (1, 3, SMOKE.decoder.width)).repeat(draws, 0)
    valid = jnp.ones((draws, 3), bool)

    def choose(logits, i):
        return jax.random.categorical(jax.random.key(i), logits / temperature)

    tokens = model.decoder.generate(x, valid, 1, -1, choose)[:, 0]
    last = model.decoder(x[:1], prefix_mask(valid[:1], ~valid[:1]), positions(valid[:1]))[0, -1]
    p = jax.nn.softmax(model.decoder.logits(last) / temperature)
    top = p.argsort()[-20:]
    counts = (tokens[:, None] == top).sum(0)
    assert np.abs(counts - draws * p[top]).max() < 5 * np.sqrt(draws * p.max())
    assert counts[-1] > 10


def test_sampling_is_repeatable_and_cold_sampling_is_greedy(written):
    *_, write = written
    warm = [write(6, temperature=2.0, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(warm[0], warm[1])
    assert (warm[0] != warm[2]).any()
    np.testing.assert_array_equal(write(6, temperature=1e-4, key=jax.random.key(0)), write(6))
