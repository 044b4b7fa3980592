import json

import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cpllm import config
from cpllm.data import text
from cpllm.model import weights
from cpllm.model.cpllm import CPLLM


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    cfg = config.smoke()
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = CPLLM(cfg.model, nnx.Rngs(3))
    weights.save(path, model, cfg, text.train_tokenizer(["A cat sits."], 500))
    return path, model, cfg


def rewritten(saved, tmp_path, change, metadata=None):
    path = saved[0]
    tensors = change(load_file(path))
    with safe_open(path, "numpy") as file:
        kept = file.metadata()
    save_file(tensors, tmp_path / "x.safetensors", kept if metadata is None else metadata)
    return tmp_path / "x.safetensors"


def test_loading_gives_back_every_tensor_the_configuration_and_the_tokenizer(saved):
    path, model, cfg = saved
    loaded, loaded_cfg, tokenizer = weights.load(path)
    ours, theirs = (weights.names(nnx.state(m, nnx.Param)) for m in (model, loaded))
    assert ours.keys() == theirs.keys()
    assert all((np.asarray(ours[k][...]) == np.asarray(theirs[k][...])).all() for k in ours)
    assert loaded_cfg == cfg
    assert tokenizer.decode(tokenizer.encode("A cat").ids).strip() == "A cat"


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    path, model, cfg = saved
    tokenizer = weights.load(path)[2]
    weights.save(tmp_path / "again.safetensors", model, cfg, tokenizer)
    again = load_file(tmp_path / "again.safetensors")
    assert all((v == again[k]).all() for k, v in load_file(path).items())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: {k: t[k] for k in t if k != "project_low.bias"}, "missing: project_low.bias"),
    (lambda t: t | {"extra": np.zeros(2)}, "unexpected: extra"),
    (lambda t: t | {"project_low.bias": np.zeros(3)}, r"misshapen: project_low.bias \(3,\) for"),
])
def test_a_wrong_tensor_is_refused_by_name(saved, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        weights.load(rewritten(saved, tmp_path, change))


def test_foreign_safetensors_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="expected metadata config, tokenizer"):
        weights.load(rewritten(saved, tmp_path, lambda t: t, metadata={}))


def test_an_unknown_configuration_key_is_refused_by_name(saved, tmp_path):
    values = saved[2].to_dict()
    values["train"]["surprise"] = 1
    metadata = {"config": json.dumps(values), "tokenizer": "{}"}
    with pytest.raises(ValueError, match=r"config\.train: unknown surprise"):
        weights.load(rewritten(saved, tmp_path, lambda t: t, metadata=metadata))
