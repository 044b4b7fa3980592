import numpy as np
import pytest

from cpllm.data import annotate, distort, scenes, text

WORDS = ["The video shows a cat. The style is plain. Its quality is good.", "A dog runs."]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer(WORDS, 600)


def test_packing_marks_prompt_answer_and_padding(tokenizer):
    packed = text.pack(tokenizer, "A cat", "plain", 20)
    head, tail = (len(tokenizer.encode(x).ids) for x in ("A cat", "plain"))
    assert packed.valid.sum() == 1 + head + tail + 1
    assert packed.answer.sum() == tail + 1  # with <eos>
    assert packed.tokens[0] == tokenizer.token_to_id(text.BOS)
    assert packed.tokens[packed.valid][-1] == tokenizer.token_to_id(text.EOS)
    assert (packed.tokens[~packed.valid] == tokenizer.token_to_id(text.PAD)).all()


def test_special_tokens_are_taken_by_name_and_never_doubled():
    """A tokenizer numbered as Gemma's, which adds its own <bos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "a": 3, "cat": 4, "<unk>": 5}
    gemma = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    gemma.pre_tokenizer = pre_tokenizers.Whitespace()
    gemma.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    assert text.pack(gemma, "a cat", "cat", 6).tokens.tolist() == [2, 3, 4, 4, 1, 0]


def test_unpacking_returns_the_answer_and_stops_at_the_end(tokenizer):
    packed = text.pack(tokenizer, "A dog", WORDS[0], 80)
    assert text.unpack(tokenizer, packed.tokens[packed.answer]) == WORDS[0]


def test_any_text_survives_the_byte_level_tokenizer(tokenizer):
    words = "Größe 中文 @ 100 %"
    assert text.unpack(tokenizer, tokenizer.encode(words).ids) == words


def test_a_text_too_long_is_refused_with_both_lengths(tokenizer):
    with pytest.raises(ValueError, match=r"exceeds the limit of 8"):
        text.pack(tokenizer, text.DESCRIBE, WORDS[0], 8)


def test_prompts_are_the_papers(request):
    paper = request.config.rootpath.parent / "shared" / "paper" / "cp-llm.md"
    if not paper.exists():
        pytest.skip("the paper's text is not beside the checkout (../shared/paper)")
    flat = " ".join(paper.read_text().split())
    assert text.DESCRIBE in flat
    assert text.COMPARE in flat


def a_row(**changes):
    return {"video": "x@crf31", "role": "variant", "distortion": "none", "proxy": 50.0,
            "content": "a red ball", "style": "3-D rendering", **changes}  # fmt: skip


def test_a_description_has_three_sentences_on_content_style_and_quality():
    sentences = annotate.describe(a_row()).split(". ")
    assert len(sentences) == 3
    assert "a red ball" in sentences[0]
    assert "3-D rendering" in sentences[1]
    assert "fair" in sentences[2]


def test_a_description_names_the_fault_that_is_there():
    assert "compression" in annotate.describe(a_row(proxy=20.0))
    assert "because" not in annotate.describe(a_row(proxy=97.0))
    blurred = a_row(role="original", distortion="blur", proxy=40.0)
    assert "because of blur" in annotate.describe(blurred)


@pytest.mark.parametrize("role", ["original", "variant"])
def test_the_technical_sentence_agrees_with_the_label(role):
    for proxy in np.arange(0, 100.1, 2.5):
        row = a_row(role=role, distortion="noise" if role == "original" else "none", proxy=proxy)
        sentence = annotate.describe(row).split(". ")[2]
        assert [w for w in annotate.WORDS if w.lower() in sentence] == [annotate.word(proxy)]
        assert ("because" in sentence) <= (proxy < 60)
        assert ("despite" in sentence) <= (proxy >= 60)


def test_phrases_for_scenes_that_look_alike_give_way_to_what_they_share():
    families = [contents for _, *contents in scenes.WORLDS.values()]
    for seen in set(annotate.SHOWN.values()):
        alike = [phrase for phrase, shown in annotate.SHOWN.items() if shown == seen]
        assert len(alike) > 1 and any(set(alike) <= set(contents) for contents in families)
        assert {annotate.describe(a_row(content=phrase)) for phrase in alike} == {
            annotate.describe(a_row(content=seen))}


def test_every_distortion_has_words_for_its_fault():
    assert set(annotate.FAULTS) >= set(distort.DISTORTIONS)


def test_wording_varies_between_videos_and_not_between_calls():
    described = {annotate.describe(a_row(video=f"v{i}")) for i in range(30)}
    assert len(described) > 15
    assert annotate.describe(a_row()) == annotate.describe(a_row())


@pytest.mark.parametrize(("score", "word"), [(0, "Bad"), (19.9, "Bad"), (20, "Poor"), (50, "Fair"),
                                             (79.9, "Good"), (80, "Excellent"), (100, "Excellent")])
def test_words_are_fifths_of_the_scale(score, word):
    assert annotate.word(score) == word
