"""The compared models' mechanisms, the trivial baselines that learn, and answers in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from scipy import ndimage

from cpllm import answers, baselines, config, infer, metrics, pretrain, train
from cpllm.data import annotate, batches, encoding, text, video
from cpllm.infer import Scorer
from cpllm.model import rivals, weights
from cpllm.model.cpllm import CPLLM
from cpllm.model.lora import trainable
from tests.conftest import made_frames

SMOKE, K = config.smoke(), 8
TOKENIZER = text.train_tokenizer(["A cat."], 500)
kinds = pytest.mark.parametrize("kind", config.RIVALS)


def make(kind, on=True, seed=0):
    cfg = config.rival(SMOKE, kind, on)
    return cfg, nnx.jit(lambda: rivals.build(cfg.model, nnx.Rngs(seed)))()


def frames(cfg, n=4, seed=0):
    """A batch of pairs whose members differ in texture as in quality."""
    rng = np.random.default_rng(seed)
    size, p = cfg.video.high_size, cfg.video.patch_size
    q = np.linspace(0.05, 0.95, n, dtype=np.float32)

    def noise(*shape):
        x = 128 + 100 * q.reshape(-1, *[1] * len(shape)) * rng.uniform(-1, 1, (n, *shape))
        return x.astype(np.uint8)

    first = np.arange(0, n, 2, dtype=np.int32)
    return {
        "view": noise(size, size, 3), "following": noise(size, size, 3),
        "patches": noise(K, p, p, 3), "present": np.ones((n, K), bool),
        "first": first, "second": first + 1, "q": q.reshape(-1, 2),
        "has_mos": np.ones(n // 2, bool), "fault": np.arange(n, dtype=np.int32).reshape(-1, 2),
        "crf": q.reshape(-1, 2),
    }


@nnx.jit
def see(model, batch):
    return model.see(*(batch[k] for k in model.inputs))


@nnx.jit
def score(model, batch):
    return model.score(*see(model, batch))


parts = nnx.jit(train.loss_parts)


@kinds
def test_a_rival_has_the_defaults_parameters_within_a_fifth(kind):
    sizes = [train.parameter_table(config.rival(config.pocket(), k).model)["parameters"].sum()
             for k in ("cp-llm", kind)]
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.2)


@kinds
def test_switching_the_mechanism_off_leaves_the_parameters(kind):
    on, off = (weights.names(nnx.state(weights.shapes(config.rival(SMOKE, kind, m).model)))
               for m in (True, False))
    assert {k: v.shape for k, v in on.items()} == {k: v.shape for k, v in off.items()}


COUNTS = {("fast-vqa", True): {"patches"}, ("fast-vqa", False): {"view"},
          ("dover", True): {"view", "patches"}, ("dover", False): {"view"},
          ("mbvqa", True): {"view", "patches", "following"}, ("mbvqa", False): {"view"}}


@pytest.mark.parametrize(("kind", "on"), COUNTS)
def test_the_mechanism_decides_which_inputs_count(kind, on):
    cfg, model = make(kind, on)
    here, other = frames(cfg), frames(cfg, seed=1)
    before, counts = score(model, here), set()
    for name in ("view", "patches", "following"):
        if (score(model, here | {name: other[name]}) != before).any():
            counts.add(name)
    assert counts == COUNTS[kind, on]


@pytest.mark.parametrize(("kind", "name", "part"), [
    ("q-align", "view", 0), ("mbvqa", "patches", 1)])
def test_what_looks_for_damage_sees_texture_whatever_the_brightness(kind, name, part):
    cfg, model = make(kind)
    here = frames(cfg)
    here[name] = here[name] // 2 + 20
    lighter, coarser = here[name] + 30, np.repeat(here[name][..., ::2, :], 2, axis=-2)
    before, light, coarse = (np.asarray(see(model, here | {name: x})[part])
                             for x in (here[name], lighter, coarser))
    np.testing.assert_allclose(light, before, atol=1e-3)
    assert np.abs(coarse - before).max() > 1e-2


def test_the_subnets_of_coinvq_learn_causes_only_with_the_mechanism():
    for on in (True, False):
        cfg, model = make("coinvq", on)
        batch = frames(cfg)
        unknown = batch | {"fault": batch["fault"] * 0 - 1, "crf": batch["crf"] * np.nan}
        own, blind = (float(parts(model, b)[2]) for b in (batch, unknown))
        assert (own > 0) is on
        assert blind == 0


def test_q_align_scores_by_the_words_probabilities_and_learns_nothing_else():
    cfg, model = make("q-align")
    batch = frames(cfg)
    (logits,) = see(model, batch)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(score(model, batch), p @ [0.1, 0.3, 0.5, 0.7, 0.9], rtol=1e-5)
    for on in (True, False):
        graph, params = nnx.split(make("q-align", on)[1])
        both = jax.jit(jax.grad(lambda p, g=graph: sum(parts(nnx.merge(g, p), batch)[:2])))
        moved = any(np.abs(x).max() > 0 for x in jax.tree.leaves(both(params)))
        assert moved is not on
    sure = jnp.log(jnp.eye(5)[jnp.array([[0, 1], [3, 4]])] + 1e-9)
    q = jnp.array([[0.1, 0.3], [0.7, 1.0]])
    assert float(model.own_loss([(sure[:, 0],), (sure[:, 1],)], {"q": q})) < 1e-6


def test_fragments_are_quarters_of_the_patches_pixel_for_pixel():
    patches = np.arange(2 * K * 64 * 64 * 3).reshape(2, K, 64, 64, 3)
    for n in (K, 5):
        present = np.arange(K) < np.full((2, 1), n)
        view = np.asarray(rivals.fragments(patches, present))
        assert view.shape == (2, 128, 128, 3)
        found = set()
        for r in range(4):
            for c in range(4):
                mini = view[1, 32 * r:32 * r + 32, 32 * c:32 * c + 32]
                at = np.argwhere(patches[1, :, ::32, ::32, 0] == mini[0, 0, 0])
                k, y, x = at[0] * [1, 32, 32]
                np.testing.assert_array_equal(mini, patches[1, k, y:y + 32, x:x + 32])
                found.add((k, y, x))
        assert {k for k, *_ in found} == set(range(n))
        assert len(found) == 16


def test_the_pyramid_loses_a_constant_and_keeps_each_frequency_in_its_band():
    flat = np.full((1, 32, 32, 3), 0.4, np.float32)
    assert max(float(jnp.abs(band).max()) for band in rivals.pyramid(flat)) < 1e-6
    fine = flat + 0.1 * (-1) ** np.arange(32)[:, None, None]
    energy = [float((band**2).mean()) for band in rivals.pyramid(fine.astype(np.float32))]
    assert energy[0] > 0.009 and energy[1] < 1e-4


@kinds
def test_a_few_steps_lower_a_rivals_loss(kind):
    cfg, _ = make(kind)
    cfg = config.replace(cfg, schedule="constant", warmup=0, learning_rate=3e-3)
    graph, params, frozen = nnx.split(make(kind)[1], trainable(cfg.model), ...)
    tx, batch = train.optimizer(cfg.train), frames(cfg)
    step, seen = train.make_step(graph, tx, cfg.train.weights), []
    state = train.State(params, tx.init(params))
    for _ in range(25):
        state, three = step(state, frozen, batch)
        seen.append(float(three[2] if kind == "q-align" else three.sum()))
    assert np.isfinite(seen).all()
    assert seen[-1] < 0.7 * seen[0]


@kinds
def test_a_saved_rival_scores_the_same_within_0_and_100(kind, tmp_path):
    cfg, model = make(kind)
    inputs = batches.model_inputs(made_frames(2), cfg.video)
    before = Scorer(cfg, model, TOKENIZER)
    before.save(tmp_path / "w.safetensors")
    after = infer.load(tmp_path / "w.safetensors")
    assert after.cfg == cfg
    np.testing.assert_array_equal(before.frame_scores(inputs), after.frame_scores(inputs))
    assert ((after.frame_scores(inputs) >= 0) & (after.frame_scores(inputs) <= 100)).all()
    with pytest.raises(ValueError, match=f"{kind}: this model has scores and no words"):
        after.answer([after.middle(inputs)], text.DESCRIBE)


def test_a_rival_starts_from_the_pretrained_parts_that_it_has(tmp_path):
    shapes = weights.names(nnx.state(weights.shapes(SMOKE.model), nnx.Param))
    tensors = {k: np.ones(x.shape, np.float32) for k, x in shapes.items()
               if k.split(".")[0] in pretrain.PARTS}
    weights.write(tmp_path / "p.safetensors", tensors, SMOKE, TOKENIZER)
    for kind in config.RIVALS:
        cfg = config.rival(SMOKE, kind)
        given, _ = pretrain.load(tmp_path / "p.safetensors", cfg.model)
        parts = {"fast-vqa": set(), "q-align": {"high", "project_high"}}.get(kind, {"high"})
        assert {k.split(".")[0] for k in given} == parts


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"model\.kind: expected one of cp-llm, fast-vqa.*'vmaf'"):
        weights.shapes(config.rival(SMOKE, "vmaf").model)


def test_a_configuration_from_before_the_rivals_is_the_default_model():
    values = SMOKE.to_dict()
    del values["model"]["kind"], values["model"]["mechanism"], values["video"]["following"]
    assert config.from_dict(values) == SMOKE


def test_following_is_the_view_half_a_clip_on_in_scoring_and_in_training(tmp_path):
    cfg = config.rival(config.replace(SMOKE, augment=False), "mbvqa")
    five = made_frames(5)
    inputs = batches.model_inputs(five, cfg.video)
    np.testing.assert_array_equal(inputs["following"], inputs["view"][[2, 3, 4, 0, 1]])
    assert "following" not in batches.model_inputs(five, SMOKE.video)
    row = {"video": "a", "sha256": "x", "scene": "a", "role": "original", "distortion": "noise",
           "proxy": 50.0, "content": "x", "style": "x", "crf": 51}
    rows = pd.DataFrame([row, row | {"video": "b", "proxy": 60.0, "distortion": "none"}])
    for name in "ab":
        np.save(tmp_path / f"{name}-x.npy", five[:2])
    batch = batches.PairBatches(rows, tmp_path, TOKENIZER, config.replace(cfg, max_text=400))[0]
    views = video.resize(five[:2], cfg.video.high_size)
    for here, then in zip(batch["view"], batch["following"], strict=True):
        assert [(here == v).all() for v in views] == [(then == v).all() for v in views[::-1]]
    assert (batch["crf"] == 1).all()
    assert set(batch["fault"].ravel()) <= {0, 1 + list(annotate.FAULTS).index("noise")}


def test_every_fault_has_a_number_below_the_models_count():
    names = ["none", *annotate.FAULTS]
    known = batches.causes(pd.DataFrame({"distortion": names, "crf": 0}))
    assert known["fault"].tolist() == list(range(rivals.FAULTS))
    unknown = batches.causes(pd.DataFrame({"video": ["a"]}))
    assert unknown["fault"].tolist() == [-1] and np.isnan(unknown["crf"]).all()


# --- baselines that learn --------------------------------------------------------------------


@pytest.mark.parametrize(("draw", "shape"), [("normal", 2), ("laplace", 1)])
def test_the_moments_find_the_shape_of_a_known_distribution(draw, shape):
    x = getattr(np.random.default_rng(0), draw)(0, 3, (1, 200_000))
    found, mean, left, right = baselines._asymmetric(x)
    assert found[0] == pytest.approx(shape, rel=0.03)
    assert mean[0] == pytest.approx(0, abs=0.05)
    scale = {"normal": 3 * 2**0.5, "laplace": 3}[draw]
    assert (left[0], right[0]) == pytest.approx((scale, scale), rel=0.03)


@pytest.fixture(scope="module")
def pristine():
    rows = pd.DataFrame({"role": "original", "distortion": ["none"] * 8 + ["blur"],
                         "video": [str(i) for i in range(9)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_middles", lambda rows, _: (
            made_frames(1, 288, 384, int(name)) for name in rows["video"]))
        return baselines.fit_niqe(rows, None)


def test_niqe_worsens_with_blur_with_noise_and_with_compression(pristine, tmp_path):

    clip = made_frames(2, 288, 384, seed=20)
    rng, sharp = np.random.default_rng(0), clip[0]
    blurred = [ndimage.gaussian_filter(sharp, (s, s, 0)) for s in (0.8, 2)]
    noisy = [np.clip(sharp + rng.normal(0, s, sharp.shape), 0, 255).astype(np.uint8)
             for s in (15, 40)]
    coded = []
    for crf in (35, 51):
        encoding.encode(clip, tmp_path / f"{crf}.mp4", crf=crf, fps=25)
        coded.append(video.key_frames(tmp_path / f"{crf}.mp4", 1)[0])
    for worse in (blurred, noisy, coded):
        values = [baselines.niqe(x, pristine) for x in (sharp, *worse)]
        assert 0 > values[0] > values[1] > values[2]


def test_niqe_takes_frames_smaller_than_a_patch(pristine):
    assert np.isfinite(baselines.niqe(made_frames(1, 50, 70)[0], pristine))


def test_the_random_encoder_finds_what_its_features_carry(monkeypatch):
    rng = np.random.default_rng(0)
    clips = [np.clip(rng.normal(b, 30, (1, 64, 64, 3)), 0, 255).astype(np.uint8)
             for b in rng.uniform(40, 200, 60)]
    light = np.array([x.mean() for x in clips]) / 2.55
    monkeypatch.setattr(baselines, "_middles", lambda *_: clips[:40])
    fit = baselines.fit_random(pd.DataFrame({"proxy": light[:40]}), None, SMOKE)
    measure = baselines.measures(SMOKE, {"random": fit})["random"]
    found = [measure({}, x) for x in clips[40:]]
    assert metrics.plcc(light[40:], found) > 0.95


# --- answers in words ------------------------------------------------------------------------


def ladder_rows(crfs=(21, 23, 31), scenes=("a", "b")):
    return pd.DataFrame([{"video": f"{s}@crf{c}", "source": s, "scene": s, "codec": "h264",
                          "crf": c, "role": "original" if c == 10 else "variant"}
                         for s in scenes for c in (10, *crfs)])


def test_pairs_are_levels_of_one_ladder_at_the_asked_differences():
    found = answers.pairs(ladder_rows(), (2, 10))
    assert found[["better", "worse", "diff"]].to_numpy().tolist() == [
        [f"{s}@crf21.mp4", f"{s}@crf{b}.mp4", b - 21] for s in "ab" for b in (23, 31)]


@pytest.mark.parametrize(("odds", "accuracy", "consistency", "first", "flips", "ties"), [
    (lambda a, b: 1.0, 0.5, 0, 1, 0.5, 0),  # always "First."
    (lambda a, b: -1.0, 0.5, 0, 0, 0.5, 0),
    (lambda a, b: float(b[5:] > a[5:]) - 0.5, 1, 1, 0.5, 0, 0),
    (lambda a, b: float(b[5:] < a[5:]) - 0.5, 0, 1, 0.5, 1, 0),
    (lambda a, b: 0.0, 0, 0, 0.5, 0, 1),
    (lambda a, b: 1.0 if a[0] == "a" else 0.5 - float(b[5:] < a[5:]), 0.75, 0.5, 0.75, 0.25, 0),
])
def test_answers_of_known_odds_have_these_rates(odds, accuracy, consistency, first, flips, ties):
    def both(firsts, seconds):
        return np.array([odds(a, b) for a, b in zip(firsts, seconds, strict=True)])

    table = answers.ask(answers.pairs(ladder_rows(), (2, 8)), both)
    found = answers.measures(table, draws=50).set_index("metric")["value"]
    assert found[list(answers.RATES)].tolist() == [accuracy, consistency, first]
    assert found[["FR diff=2", "FR diff=2 ties", "FR diff=8"]].tolist() == [flips, ties, flips]


def test_the_decoders_odds_are_its_logits_whatever_the_batch(monkeypatch):
    cfg, model = make("cp-llm")
    scorer = Scorer(cfg, model, TOKENIZER)
    clips = {f"{i}.mp4": batches.model_inputs(made_frames(2, seed=i), cfg.video) for i in range(3)}
    monkeypatch.setattr(Scorer, "inputs", lambda _, path: clips[path.name])
    here = infer.Path(".")
    one, three = (answers.by_decoder(scorer, here, n)(["0.mp4", "1.mp4", "2.mp4"],
                                                      ["1.mp4", "2.mp4", "0.mp4"]) for n in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-5)
    packed = text.pack(TOKENIZER, text.COMPARE, None, cfg.train.max_text)
    n = int(packed.valid.sum())
    given = {k: getattr(packed, k)[None, :n] for k in ("tokens", "valid", "answer")}
    seen = [scorer.middle(clips[name]) for name in ("0.mp4", "1.mp4")]
    hidden = nnx.jit(CPLLM.read)(model, seen, np.array([True]), given)
    logits = model.decoder.logits(hidden[0, -1])
    ids = [TOKENIZER.encode(words, add_special_tokens=False).ids[0] for words in text.ANSWERS]
    assert one[0] == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), abs=1e-4)
