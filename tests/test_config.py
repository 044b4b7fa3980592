import dataclasses
import json

import pytest

from cpllm import config


@pytest.mark.parametrize("profile", config.PRESETS)
def test_a_configuration_survives_json(profile):
    cfg = config.preset(profile)
    assert config.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_the_paper_preset_has_the_papers_values():
    cfg = config.paper()
    assert (cfg.train.batch, cfg.train.learning_rate, cfg.train.max_text) == (128, 1e-4, 512)
    assert (cfg.model.lora_rank, cfg.model.high_finetune) == (4, "frozen")
    assert (cfg.video.key_frames, cfg.video.high_size, cfg.video.patches) == (5, 448, 8)
    assert (cfg.video.patch_size, cfg.video.fit_height, cfg.video.fit_width) == (224, 540, 1080)
    assert cfg.train.weights == (1.0, 1.0, 1.0)
    assert cfg.train.steps == 500 * 28056 // 128


def test_pockets_ladder_has_twenty_distinct_levels_that_x264_knows():
    assert len(set(config.CRFS)) == 20
    assert max(config.CRFS) <= 51


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"smoke, pocket, paper; got 'large'"):
        config.preset("large")


def test_unknown_and_missing_keys_are_refused_by_name():
    values = config.smoke().to_dict()
    with pytest.raises(ValueError, match=r"config\.video: unknown patchs"):
        config.from_dict({**values, "video": {"patchs": 3}})
    with pytest.raises(ValueError, match="missing train"):
        config.from_dict({k: v for k, v in values.items() if k != "train"})


def test_replace_takes_flat_changes_and_refuses_unknown_ones():
    cfg = config.replace(config.smoke(), seed=3, **{"model.lora_rank": 2})
    assert (cfg.train.seed, cfg.model.lora_rank) == (3, 2)
    with pytest.raises(ValueError, match="unknown 'sed'"):
        config.replace(config.smoke(), sed=3)
    with pytest.raises(ValueError, match=r"unknown 'modle' in 'modle\.lora_rank'; .*model"):
        config.replace(config.smoke(), **{"modle.lora_rank": 2})


def test_replace_reaches_a_part_of_a_part_and_names_where_a_path_ends():
    cfg = config.replace(config.smoke(), **{"model.high.patch": 8})
    assert cfg.model.high == dataclasses.replace(config.smoke().model.high, patch=8)
    with pytest.raises(ValueError, match=r"unknown 'pach' in 'model\.high\.pach'; .*patch"):
        config.replace(config.smoke(), **{"model.high.pach": 8})
    with pytest.raises(ValueError, match=r"unknown 'x' in 'train\.steps\.x'; known are none"):
        config.replace(config.smoke(), **{"train.steps.x": 8})
    with pytest.raises(ValueError, match=r"model\.high: expected Siglip, got 8"):
        config.replace(config.smoke(), **{"model.high": 8})
    with pytest.raises(ValueError, match=r"model\.high\.patch: expected int, got 'x'"):
        config.replace(config.smoke(), **{"model.high.patch": "x"})


def test_a_word_that_a_setting_does_not_know_is_refused_with_those_it_knows():
    with pytest.raises(ValueError, match=r"predictor_sees: expected one of 'both', 'low'; got 'u'"):
        config.replace(config.smoke(), **{"model.predictor_sees": "u"})
    values = config.smoke().to_dict()
    values["train"]["schedule"] = "linear"
    with pytest.raises(ValueError, match=r"train\.schedule: expected one of .*'cosine'"):
        config.from_dict(values)
    values["train"]["schedule"] = ["cosine"]  # nothing that one could look up in a set
    with pytest.raises(ValueError, match=r"train\.schedule: expected one of"):
        config.from_dict(values)


def test_recipes_change_a_preset_and_leave_its_profile():
    for profile, make in config.PRESETS.items():
        for recipe in config.RECIPES.values():
            assert recipe(profile).profile == profile
            assert config.from_dict(recipe(profile).to_dict()) == recipe(profile)
        assert config.RECIPES["preset"](profile) == make()
