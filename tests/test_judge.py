"""Verdicts of a tiny untrained model with a card made by hand: their numbers are the card's."""

import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from cpllm import card, config, curve, records
from cpllm.calibrate import Calibration
from cpllm.data import annotate, encoding, text, video
from cpllm.judge import REDRAWS, UNKNOWN, Judge
from cpllm.model.cpllm import CPLLM
from cpllm.verdicts import Score, draw


def tiny(**changes) -> Judge:
    cfg = config.replace(config.smoke(), **changes)
    tokenizer = text.train_tokenizer(["The video shows a cat. Its quality is good."], 600)
    return Judge(cfg, CPLLM(cfg.model, nnx.Rngs(0)), tokenizer)


@pytest.fixture(scope="module")
def bare():
    return tiny()


@pytest.fixture(scope="module")
def judge(bare):
    width = 2 * bare.cfg.model.decoder.width
    content = card.Content([0.0] * width, [[0.0] * width], [1.0], 1e-9, 1.0)  # all is unusual
    known = card.Card("w", Calibration(0.9, 7.0, 20, 400), 1.0, 0.5, 2.0, (90, 1080), content)
    return Judge(bare.cfg, bare.model, bare.tokenizer, known=known)


@pytest.fixture(scope="module")
def other(tmp_path_factory, frames):
    """The made clip at a worse CRF."""
    path = tmp_path_factory.mktemp("other") / "other.mp4"
    encoding.encode(frames, path, 40, 25)
    return path


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    path = tmp_path_factory.mktemp("unlike") / "unlike.mp4"
    noise = np.random.default_rng(5).integers(0, 256, (1, 6, 8, 3), np.uint8)
    encoding.encode(noise.repeat(16, 1).repeat(16, 2).repeat(12, 0), path, 20, 25)
    return path


def test_interval_and_warnings_are_the_cards(judge, bare, mp4):
    known, plain = judge.score(mp4), bare.score(mp4)
    assert (known.score, known.frames) == (plain.score, plain.frames)
    assert (known.low, known.high) == (known.score - 7, known.score + 7)
    (text,) = known.warnings
    assert text.startswith("unusual content")
    assert (plain.low, plain.high, plain.warnings) == (None, None, (UNKNOWN,))
    assert known.times == (3 / 25, 9 / 25)


def test_many_files_come_in_order_with_the_scores_that_they_have_alone(judge, mp4, other, tmp_path):
    paths = [mp4, tmp_path / "no.mp4", other, mp4]
    found = list(judge.scores(paths))
    assert isinstance(found[1], video.VideoError)
    assert [found[i] for i in (0, 2, 3)] == [judge.score(paths[i]) for i in (0, 2, 3)]


def test_what_waits_for_its_turn_holds_one_frame(judge, mp4):
    waiting, _ = judge._look(mp4)
    assert len(waiting.frames) == 1 and waiting.frames.base is None


def test_two_encodes_of_a_clip_are_known_as_such_and_two_clips_are_not(judge, mp4, other, unlike):
    same, different = judge.compare(mp4, other), judge.compare(mp4, unlike)
    gap = abs(same.first.score - same.second.score)
    assert same.same_source and same.confidence == pytest.approx(1 / (1 + np.exp(-gap)))
    gap = abs(different.first.score - different.second.score)
    assert not different.same_source
    assert different.confidence == pytest.approx(1 / (1 + np.exp(-gap / 2)))


def test_a_comparison_turned_round_says_the_same(judge, mp4, other):
    one, two = judge.compare(mp4, other), judge.compare(other, mp4)
    assert {one.better, two.better} == {"first", "second"}
    assert one.confidence == two.confidence and one.answers == two.answers[::-1]
    tie = judge.compare(mp4, mp4)
    assert tie.better == "neither"
    assert "better by score: neither (two encodes of one clip)" in str(tie)


@pytest.mark.parametrize(("answers", "words"), [
    (("First.", "Second."), "first"), (("Second.", "First."), "second"),
    (("First.", "First."), "undecided"), (("A cat.", "Second."), "undecided")])
def test_words_count_where_both_orders_name_one_video(judge, mp4, monkeypatch, answers, words):
    said = iter(answers)
    monkeypatch.setattr(judge, "answer", lambda seen, prompt: next(said))
    found = judge.compare(mp4, mp4)
    assert (found.words, found.answers) == (words, answers)


def test_a_word_far_from_the_score_is_drawn_again_and_the_rest_of_the_text_stays(
        judge, mp4, monkeypatch):
    own = int(judge.score(mp4).score // 20)
    far = next(w.lower() for i, w in enumerate(annotate.WORDS) if abs(i - own) > 1)
    texts = [f"A cat. Its style is art. Its quality is {far}.", f"B. C. It is {far}, really.",
             f"D. E. It is {annotate.WORDS[own].lower()}."]
    asked = []

    def answer(seen, prompt, temperature, seed):
        asked.append((temperature, seed))
        return texts[min(len(asked), 3) - 1]

    monkeypatch.setattr(judge, "answer", answer)
    found = judge.describe(mp4)
    assert found.text == f"A cat. Its style is art. It is {annotate.WORDS[own].lower()}."
    assert found.redrawn == 2 and asked == [(0.0, 0), (1.0, 1), (1.0, 2)]
    texts[2] = texts[0]
    asked.clear()
    assert judge.describe(mp4, temperature=0.5, seed=7).redrawn == REDRAWS
    assert asked[0] == (0.5, 7) and set(asked[1:]) == {(0.5, 7 + i) for i in range(1, REDRAWS + 1)}


def test_a_text_without_a_word_for_quality_stands_as_it_is(judge, mp4, monkeypatch):
    monkeypatch.setattr(judge, "answer", lambda *asked: "A good cat. It sits")
    assert judge.describe(mp4).text == "A good cat. It sits"


def test_a_card_is_found_beside_its_weights(judge, tmp_path, mp4):
    from cpllm.judge import load

    path = tmp_path / "w.safetensors"
    judge.save(path)
    assert load(path).card is None
    known = card.Card(**{**vars(judge.card), "weights": records.file_hash(path)})
    known.write(card.beside(path))
    assert load(path).score(mp4) == judge.score(mp4)


def test_as_many_key_frames_are_looked_at_as_are_asked_for(judge, tmp_path, mp4):
    from cpllm.judge import load

    path = tmp_path / "w.safetensors"
    judge.save(path)
    assert load(path).score(mp4).times == tuple(i / 25 for i in video.key_indices(12, 2))
    assert load(path, 4).score(mp4).times == tuple(i / 25 for i in video.key_indices(12, 4))
    for none in (0, -1):
        with pytest.raises(ValueError, match=f"key_frames: expected 1 or more, got {none}"):
            load(path, none)


@pytest.mark.parametrize("home", ["/dev/null/no", "relative", "{tmp}/cache"])
def test_programs_are_kept_where_that_can_be_and_scores_are_the_same(judge, mp4, tmp_path, home):
    """In new processes, the second of which finds what the first has compiled."""
    weights = tmp_path / "w.safetensors"
    judge.save(weights)
    code = (f"import cpllm; m = cpllm.load({str(weights)!r}); print(m.score({str(mp4)!r}).score)")
    own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**own, "XDG_CACHE_HOME": home.format(tmp=tmp_path),
                   "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    for _ in range(2 if "tmp" in home else 1):
        done = subprocess.run([sys.executable, "-c", code], env=environment, text=True,
                              capture_output=True, check=True, cwd=tmp_path)
        assert float(done.stdout) == judge.score(mp4).score
        assert done.stderr == ""
    kept = {"/dev/null/no": None, "relative": ".cache", "{tmp}/cache": "cache"}[home]
    assert not (tmp_path / "relative").exists()
    if kept:
        assert any((tmp_path / kept / "cpllm" / "xla").iterdir())


def test_verdicts_print_for_people_and_escape_names(judge, mp4, other):
    score = Score("<a>&.mp4", 73.4, "Good", 61.2, 85.6, (73.4,), (0.1,), ("HDR",))
    assert "73.4" in str(score) and "61–86" in str(score) and "HDR" in str(score)
    html = score._repr_html_()
    assert "&lt;a&gt;&amp;.mp4" in html and "<a>" not in html and "HDR" in html
    for found in (judge.compare(mp4, other), judge.describe(mp4)):
        assert f"{judge.score(mp4).score:.1f}" in str(found)
        assert f"{judge.score(mp4).score:.1f}" in found._repr_html_()
    with pytest.raises(AttributeError):
        score.score = 3


def test_a_drawing_shows_each_videos_frames_over_its_time(judge, mp4, other):
    scores = list(judge.scores([mp4, other]))
    figure = draw(scores)
    for axes, score in zip(figure.axes, scores, strict=True):
        x, y = axes.lines[0].get_data()
        assert (tuple(x), tuple(y)) == (score.times, score.frames)


# --- ladders ------------------------------------------------------------------------------------


def rung(crf, score):
    return curve.Rung(crf, 1000 / crf, Score("x", score, "Good", None, None, (), ()))


@pytest.mark.parametrize(("scores", "knee"), [
    ((80, 79, 77, 60), 27), ((80, 70, 80, 80), 15), ((80, 81, 82, 83), 51), ((80, 76, 0, 0), 15)])
def test_quality_starts_to_fall_before_the_first_score_a_step_below(scores, knee):
    rungs = tuple(map(rung, (15, 19, 27, 51), scores))
    found = curve.Curve("x.mp4", "h264", "medium", rungs, 4.0)
    assert found.knee == knee
    assert next(s for s in str(found).splitlines() if "starts to fall" in s).startswith(
        f" {knee}")
    assert curve.Curve("x.mp4", "h264", "medium", rungs, None).knee is None


def test_a_ladder_is_of_real_encodes(judge, mp4, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = judge.ladder(mp4, (51, 20, 35))
    assert [r.crf for r in found.rungs] == [20, 35, 51]
    assert found.step == curve.NOTICED > judge.card.step
    assert found.rungs[0].kbps > found.rungs[1].kbps > found.rungs[2].kbps > 0
    assert not list(tmp_path.iterdir())
    twin = tmp_path / "clip@crf35.mp4"
    encoding.encode(video.all_frames(mp4), twin, 35, 25, preset="medium")
    assert found.rungs[1].score.score == judge.score(twin).score
    assert found.rungs[1].kbps == pytest.approx(twin.stat().st_size * 8 * 25 / 12 / 1000)
    assert len(found.draw().axes) == 2 and "clip.mp4" in found._repr_html_()


def test_a_ladder_refuses_what_no_codec_has(judge, mp4):
    with pytest.raises(ValueError, match="CRFs from 0 to 51; got 20 to 53"):
        judge.ladder(mp4, (20, 53))
    with pytest.raises(ValueError, match=r"expected one of h264, .*; got 'mpeg2'"):
        judge.ladder(mp4, codec="mpeg2")
