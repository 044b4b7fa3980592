"""Counts of a training step against XLA's own, and the reading of a compiled text."""

import dataclasses
import os

import jax
import pytest

from cpllm import config, cost, mesh, train

SMOKE = config.replace(config.smoke(), max_text=33)
"""One layer in each stack and one chunk of logits: XLA counts what a loop holds once."""


def regime(name: str) -> config.Config:
    if name == "all":
        return SMOKE
    frozen = {"high_finetune": "frozen", "decoder_finetune": "lora", "lora_rank": 4,
              "remat": "functions" if name == "functions" else "blocks"}
    return config.replace(SMOKE, **{f"model.{k}": v for k, v in frozen.items()})


@pytest.mark.parametrize("name", ["all", "frozen", "functions"])
def test_counted_flops_are_those_of_the_compiled_step(name):
    cfg = regime(name)
    cfg = config.replace(cfg, **{"model.decoder": dataclasses.replace(
        cfg.model.decoder, width=128, mlp=512, head_dim=64)})  # fmt: skip
    counted = cost.flops(cfg)["step"].sum()
    found = cost.compiled(cfg, mesh.make(1, jax.devices()[:1])).cost_analysis()["flops"]
    assert counted == pytest.approx(found, rel=0.1)


def test_the_paper_s_step_costs_what_the_layers_products_add_up_to():
    """By hand: 27 blocks of 1,152 and 4,304 on 1,024 tokens, 18 of Gemma's on 3,072."""
    cfg = config.paper()
    each = cost.flops(cfg) / cfg.train.batch
    assert cost.sizes(cfg) == (192, 8, 1024, 256, 3072)
    siglip = 27 * (2 * 1024 * (4 * 1152**2 + 2 * 1152 * 4304) + 4 * 1024**2 * 1152)
    siglip += 2 * 1024 * 588 * 1152
    assert each.loc["high"].tolist() == [1.5 * siglip, 1.5 * siglip]  # 1.5 frames, frozen
    weights = 2 * 3072 * (1_981_884_416 - 2048 - 36 * 2048)  # without norms
    attention, lora = 18 * 4 * 3072**2 * 2048, 2 * 3072 * 626_688
    assert each.loc["decoder", "forward"] == pytest.approx(weights + attention + lora)
    assert each.loc["decoder", "step"] == pytest.approx(3 * weights + 4 * (attention + lora))


def test_memory_is_what_the_arrays_of_a_step_hold():
    cfg, one = regime("frozen"), mesh.make(1, jax.devices()[:1])
    tx = train.optimizer(cfg.train)
    _, state, frozen = train.init(cfg, tx, one)
    held = cost.memory(cfg, one)
    for name, tree in (("frozen parameters", frozen), ("trained parameters", state.params),
                       ("Adam's moments", state.opt_state)):  # fmt: skip
        assert held[name] == sum(x.nbytes for x in jax.tree.leaves(tree))


def test_fsdp_cuts_the_paper_s_parameters():
    alone, eight = (cost.memory(config.paper(), jax.sharding.AbstractMesh((8 // n, n), mesh.AXES))
                    for n in (1, 8))  # fmt: skip
    assert eight["frozen parameters"] / alone["frozen parameters"] == pytest.approx(1 / 8, rel=0.01)
    assert alone["whole embeddings"] == eight["whole embeddings"] / 2 == 2 * 257_216 * 2048


HLO = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[4,8]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %r = (f32[8]{0}, bf16[2,2]{1,0}) all-reduce(%a, %b), channel_id=2, to_apply=%add
}

ENTRY %main.1 (a: f32[8]) -> f32[] {
  %w = (s32[], f32[4,8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r2 = f32[] all-reduce(%z), channel_id=3, to_apply=%add
}
"""  # noqa: E501


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    assert cost.collectives(HLO) == {"all-gather": 3 * 128, "all-reduce": 3 * (32 + 8) + 4}



def test_a_timed_step_leaves_this_process_its_cores_and_counts_as_flops_does():
    cores = os.sched_getaffinity(0)
    found = cost.timed("smoke", 1, 1)
    assert os.sched_getaffinity(0) == cores and (found > 0).all()
    counted = cost.flops(config.smoke(), config.smoke().train.max_text // 2)["step"].sum()
    assert found["GFLOP of a step"] == round(counted / 1e9, 3)
