"""Import of public checkpoints, on the golden files in the layouts that their makers publish."""

import dataclasses
import json
import pickle
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from cpllm import cli, config
from cpllm.model import imports, weights

GOLDEN = Path(__file__).parent / "golden"


def paligemma_model():
    folder = GOLDEN / "paligemma"
    high, decoder = imports.siglip_shape(folder), imports.gemma_shape(folder)
    return config.replace(
        config.smoke(), **{"model.high": high, "model.decoder": decoder}
    ).model


def as_flax(shape):
    """transformers' VideoPrism tensors in the layout of Google's npz."""
    leaves = imports.read(GOLDEN / "videoprism", "low", shape)
    heads, out = shape.low.heads, {}
    for leaf, value in leaves.items():
        name = imports.flax_source(leaf).names[0]
        if name.endswith("post/w"):
            value = value.reshape(len(value), heads, -1, value.shape[-1]).transpose(0, 3, 1, 2)
        elif name.endswith("/w"):
            value = value.reshape(*value.shape[:2], heads, -1)
        elif name.endswith("/b") and "post" not in name:
            value = value.reshape(len(value), heads, -1)
        out[name] = value
    return out


@pytest.fixture(scope="module")
def low_model():
    shape = imports.videoprism_shape(GOLDEN / "videoprism")
    return config.replace(config.smoke(), **{"model.low": shape}).model


@pytest.fixture
def npz(tmp_path, low_model):
    path = tmp_path / "videoprism.npz"
    np.savez(path, **as_flax(low_model))
    return path


def hub(name):
    """The spelling of google/paligemma-3b-pt-448 on the hub."""
    name = name.removeprefix("model.").replace("language_model.model.", "language_model.")
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")


def bare(name):
    """Transformers 5's own module names."""
    name = name.removeprefix("model.").replace("language_model.model.", "language_model.")
    return "model." + name.replace("vision_tower.vision_model.", "vision_tower.")


@pytest.mark.parametrize("spell", [hub, bare])
def test_both_spellings_and_shards_give_the_same_leaves(spell, tmp_path):
    tensors = load_file(GOLDEN / "paligemma" / "model.safetensors")
    tensors = {spell(k): v for k, v in tensors.items()}
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for part in ("high", "decoder", "project_high"):
        whole = imports.read(GOLDEN / "paligemma", part, paligemma_model())
        sharded = imports.read(tmp_path, part, paligemma_model())
        assert whole.keys() == sharded.keys()
        assert all(np.array_equal(whole[k], sharded[k]) for k in whole)


def test_positions_of_another_image_side_are_resampled():
    model = paligemma_model()
    wide = dataclasses.replace(model, high=dataclasses.replace(model.high, image=28))
    own, wider = (imports.read(GOLDEN / "paligemma", "high", m) for m in (model, wide))
    assert wider["high.positions"].shape == (49, 24)
    small, large = (x["high.positions"].reshape(n, n, 24) for x, n in ((own, 4), (wider, 7)))
    expected = ndimage.zoom(small, (7 / 4, 7 / 4, 1), order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(large, expected, atol=1e-5)
    assert all(np.array_equal(own[k], wider[k]) for k in own if k != "high.positions")


def test_each_tensor_is_let_go_before_the_next_is_read(monkeypatch):
    whole, live = imports.readers(GOLDEN / "paligemma"), []

    def watched(read):
        assert [ref for ref in live if ref() is not None] == []
        x = read()
        live.append(weakref.ref(x))
        return x

    counted = {name: partial(watched, read) for name, read in whole.items()}
    monkeypatch.setattr(imports, "readers", lambda path: counted)
    assert imports.read(GOLDEN / "paligemma", "decoder", paligemma_model())
    assert len(live) > 10


def test_the_npz_gives_the_same_leaves_as_transformers_file(npz, low_model):
    assert imports.videoprism_shape(npz).width == low_model.low.width
    flax = imports.read(npz, "low", low_model)
    torch = imports.read(GOLDEN / "videoprism", "low", low_model)
    assert flax.keys() == torch.keys()
    assert all(np.array_equal(flax[k], torch[k]) for k in flax)


def test_names_that_differ_are_all_listed(tmp_path):
    tensors = load_file(GOLDEN / "gemma" / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if ".0.mlp." not in k} | {"extra": np.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = config.replace(
        config.smoke(), **{"model.decoder": imports.gemma_shape(GOLDEN / "gemma")}
    ).model
    with pytest.raises(ValueError, match=r"missing: .*unexpected: extra") as error:
        imports.read(tmp_path, "decoder", model)
    for name in ("gate", "up", "down"):
        assert f"layers.0.mlp.{name}_proj.weight" in str(error.value)


def test_shapes_that_differ_are_all_listed(tmp_path, npz, low_model):
    arrays = dict(np.load(npz))
    at = "params/spatial_encoder/transformers_stack/x_layers/self_attention"
    arrays[f"{at}/post/w"] = arrays[f"{at}/post/w"][..., 0]
    arrays[f"{at}/query/b"] = arrays[f"{at}/query/b"][:, :1]
    np.savez(npz, **arrays)
    with pytest.raises(ValueError, match="misshapen") as error:
        imports.read(npz, "low", low_model)
    assert f"{at}/post/w" in str(error.value)
    assert f"{at}/query/b" in str(error.value)


def test_no_pickle_is_ever_loaded(tmp_path, low_model):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("model.bin", "model.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="pickle"):
            imports.readers(tmp_path / name)
    np.savez(tmp_path / "objects.npz", params=np.array([Bomb()], object))
    with pytest.raises(ValueError):
        imports.read(tmp_path / "objects.npz", "low", low_model)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def words(tmp_path):
    made = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_import_weights_writes_one_checkpoint_that_loads(tmp_path, npz, words, capsys):
    folder = tmp_path / "paligemma"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((GOLDEN / "paligemma" / name).read_bytes())
    out = tmp_path / "cpllm.safetensors"
    sources = ["--paligemma", str(folder), "--videoprism", str(npz)]
    rest = ["--tokenizer", str(words), "--out", str(out)]
    assert cli.main(["import-weights", *sources, *rest]) == 0
    assert str(out) in capsys.readouterr().out
    model, cfg, tokenizer = weights.load(out)
    assert tokenizer.token_to_id("<bos>") == 2
    assert cfg.video.high_size == cfg.model.high.image == 448
    assert model.high.positions.shape == (112**2, 24)
    first = load_file(folder / "model.safetensors")
    name = next(k for k in first if k.endswith("layers.1.self_attn.o_proj.weight"))
    got = model.decoder.blocks.attention.out.kernel[...][1]
    np.testing.assert_array_equal(got, first[name].T)
    assert not np.any(model.decoder.blocks.attention.lora["q"].b[...])


def widened(folder, hidden):
    """The golden PaliGemma with `hidden` units in its decoder's MLPs; (bytes, largest tensor's)."""
    folder.mkdir()
    about = json.loads((GOLDEN / "paligemma" / "config.json").read_text())
    narrow, about["text_config"]["intermediate_size"] = 36, hidden
    (folder / "config.json").write_text(json.dumps(about))
    tensors = load_file(GOLDEN / "paligemma" / "model.safetensors")
    for name in [k for k in tensors if "language" in k and ".mlp." in k]:
        sides = [hidden if n == narrow else n for n in tensors[name].shape]
        tensors[name] = np.ones(sides, np.float32)
    save_file(tensors, folder / "model.safetensors")
    sizes = [x.nbytes for x in tensors.values()]
    return sum(sizes), max(sizes)


PEAK = """
import sys
from pathlib import Path
from cpllm import config
from cpllm.model import imports
words, low, out, *sources = map(Path, sys.argv[1:])
for source in sources:
    imports.import_weights(out, config.smoke(), low, source, source, words)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)  # getrusage's would be the parent's
"""


def test_an_import_takes_no_more_memory_than_the_model_and_a_tensor(tmp_path, npz, words):
    total, largest = widened(tmp_path / "large", 600_000)
    assert total > 200e6
    paths = [words, npz, tmp_path / "out.safetensors", GOLDEN / "paligemma", tmp_path / "large"]
    run = subprocess.run([sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True,
                         text=True, check=True)  # fmt: skip
    small, large = map(int, run.stdout.split())
    assert total < large - small < total + 1.5 * largest


def test_import_weights_asks_for_what_is_missing(npz, tmp_path, capsys):
    assert cli.main(["import-weights", "--videoprism", str(npz), "--out", str(tmp_path / "x")]) == 2
    assert "--paligemma" in capsys.readouterr().err
