"""What a profile's results are made of: data → trained runs → scores → notebooks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from cpllm import atomic, config, grid, notebooks, records, scoring, sweep
from cpllm.data import ladder, manifests, photographs
from cpllm.data.batches import frame_store, store_frames

PRETRAIN = sweep.ROOT / "notebooks" / "15_pretrain.ipynb"
console = Console(stderr=True)


def table_ids(profile: str) -> list[str]:
    """The runs that Tables 1, 2 and 4 rest on."""
    return [run.run_id for run in grid.read("table", profile, sweep.ROOT)]


def preset(profile: str) -> config.Config:
    """A profile that this checkout can run; ValueError says what another one needs."""
    cfg = config.preset(profile)
    if cfg.data.dataset != "scenes":
        raise ValueError(
            f"{profile}: {cfg.data.dataset.upper()} and the public checkpoints can't be shipped. "
            f"Bring its videos and label files (whence: data_manifests/{cfg.data.dataset}.yaml; "
            f"cpllm manifest build {cfg.data.dataset} --root DIR reads and checks them, cpllm "
            "annotate DIR/manifest.csv describes them), and SigLIP So400m/14@448, VideoPrism-B and "
            "Gemma-2B (for instance PaliGemma-3B-pt-448 and videoprism-base-f16r288; cpllm "
            "import-weights reads them). The profile pocket needs none of it: --profile pocket"
        )
    return cfg


def build_data(profile: str, splits: Sequence[str] = ladder.SPLITS,
               scheduler: str | None = None) -> pd.DataFrame:
    """The profile's videos, labels and manifest under data/<profile>."""
    return ladder.build(preset(profile), sweep.DATA / profile, splits, scheduler=scheduler)


def build_fit(profile: str, scheduler: str | None = None) -> pd.DataFrame:
    """What the package's own model trains on and is chosen by, under data/<profile>-fit."""
    cfg = grid.read("fit", profile, sweep.ROOT)[0].cfg
    if not cfg.data.wide_scenes:
        raise ValueError(f"{profile}: the grid fit has no wide scenes at this profile; take pocket")
    return _build_wide(cfg, scheduler)


def _build_wide(cfg: config.Config, scheduler: str | None = None) -> pd.DataFrame:
    plain = sweep.DATA / cfg.profile
    photographs.fetch()
    return ladder.build(cfg, config.clips(cfg, plain), manifests.TRAINING, scheduler=scheduler,
                        beside=plain)


def check_data(profile: str,
               splits: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The built manifest's rows, their files' faults and how they differ from the committed ones.

    See `ladder.verify` and `ladder.explain`.
    """
    table = manifests.read(sweep.DATA / profile / "manifest.csv")
    table = table[table["split"].isin(splits)]
    known = ladder.read_committed(ladder.COMMITTED / profile, splits)
    return table, ladder.verify(table, sweep.DATA / profile), ladder.explain(table, known)


def check_labels(profile: str, splits: Sequence[str],
                 scheduler: str | None) -> tuple[pd.DataFrame, list[str]]:
    """`ladder.relabel` of the profile's clips."""
    return ladder.relabel(preset(profile), sweep.DATA / profile, splits, scheduler=scheduler)


def train_grids(
    profile: str, names: Sequence[str], rows: Sequence[str] = (), fresh: Collection[str] = (),
    stale: bool = False, dry_run: bool = False, workers: int | None = None,
    scheduler: str | None = None, score: bool = True,
) -> None:
    """Train the runs of grids (of these rows) that are missing or were made otherwise; score them.

    stale: those by older code too, a seed of each row first, and its others only where that came
    out otherwise; fresh: all of these grids. `GridError` names the runs that failed.
    """
    preset(profile)
    found = {name: grid.read(name, profile, sweep.ROOT) for name in names}
    runs = {r.run_id: r for those in found.values() for r in those
            if not rows or grid.row_of(r.run_id) in rows}
    anew = {r.run_id for name in fresh for r in found[name]} & set(runs)
    table = grid.plan(list(runs.values()), profile, sweep.ROOT)
    again = [name for name, status in zip(table["run"], table["status"], strict=True)
             if name in anew or status in (grid.MISSING, grid.CHANGED)]
    older = [*table["run"][(table["status"] == grid.OLDER) & stale & ~table["run"].isin(again)]]
    grid.show(table, [*again, *older], workers or len(os.sched_getaffinity(0)))
    if dry_run:
        return
    for name in anew:  # all at once, so that a call that is interrupted can go on
        grid.forget(name, profile, sweep.ROOT)
    first = {grid.row_of(name): name for name in reversed(older)}.values()
    failed = _train([*again, *first], runs, table, profile, workers, scheduler)
    if older:
        left = grid.plan([runs[name] for name in older], profile, sweep.ROOT)
        left = left["run"][(left["status"] == grid.OLDER) & ~left["run"].isin(failed)]
        failed |= _train([*left], runs, table, profile, workers, scheduler)
    if score:
        scoring.score_runs(profile, again=False)
        scoring.make_card(profile, again=False)
    if failed:
        raise grid.GridError("\n".join([f"{len(failed)} of {len([*again, *older])} runs failed", *(
            f"{name}: {error}" for name, error in failed.items())]))


def _train(names: Sequence[str], runs: Mapping[str, grid.Run], table: pd.DataFrame, profile: str,
           workers: int | None, scheduler: str | None) -> dict[str, Exception]:
    """Train these, the longest first, so that none of them is last and alone; the failures."""
    if not names:
        return {}
    _prepare(profile, [runs[name].cfg for name in names])
    longest = table.sort_values("seconds", ascending=False, kind="stable")["run"]
    failed = grid.execute([runs[name] for name in longest if name in names], profile,
                          sweep.ROOT, workers, scheduler)
    _ship(profile, {*names} - {*failed})
    return failed


def _prepare(profile: str, cfgs: Sequence[config.Config]) -> None:
    """What runs side by side only read: clips, decoded frames, pretrained towers."""
    data = sweep.DATA / profile
    if not (data / "manifest.csv").exists():
        build_data(profile)
    if wide := [cfg for cfg in cfgs if cfg.data.wide_scenes]:
        _build_wide(wide[0])
    for cfg in {frame_store(config.clips(cfg, data), cfg): cfg for cfg in cfgs}.values():
        clips = config.clips(cfg, data)
        rows = manifests.read(clips / "manifest.csv").query("split == 'train'")
        store_frames(rows, clips, frame_store(clips, cfg), cfg)
    _pretrain(cfgs, data)


def _pretrain(cfgs: Sequence[config.Config], data: Path) -> None:
    """The towers that these configurations start from, each kind of them once."""
    from cpllm import pretrain, pretrain_low

    for cfg in {pretrain.key(cfg, data): cfg for cfg in cfgs if cfg.train.pretrained}.values():
        pretrain.ensure(cfg, data)
    for cfg in {pretrain_low.key(cfg, data): cfg for cfg in cfgs
                if cfg.pretrain_low.steps}.values():
        pretrain_low.ensure(cfg, data)


def _ship(profile: str, trained: set[str]) -> None:
    """The default model's first seed: its notebook is a chapter, its weights the package's."""
    from cpllm.infer import DEFAULT

    run_id = grid.default_ids(profile)[0]
    if run_id not in trained:
        return
    chapter = sweep.RESULTS / profile / "notebooks" / grid.NOTEBOOK
    atomic.copy(sweep.DATA / profile / "notebooks" / f"{run_id}.ipynb", chapter)
    if DEFAULT.stem == profile:
        atomic.copy(sweep.DATA / profile / "weights" / f"{run_id}.safetensors", DEFAULT)


def pretrain_towers(profile: str, fresh: bool) -> None:
    """Execute the notebook that makes what runs under the `table` recipe start from."""
    if fresh:
        shutil.rmtree(sweep.DATA / profile / "pretrained", ignore_errors=True)
    home = sweep.RESULTS / profile / "notebooks"
    inputs = sweep.files(sweep.NOTEBOOKS[PRETRAIN.stem].inputs, profile, sweep.ROOT)
    notebooks.execute(PRETRAIN, home / PRETRAIN.name, {"profile": profile}, inputs)


def needed_splits(profile: str, fresh: bool) -> tuple[str, ...]:
    """A clone whose runs are committed needs the test split only; what is built stays built."""
    manifest = sweep.DATA / profile / "manifest.csv"
    built = set(pd.read_csv(manifest)["split"]) if manifest.exists() else set()
    done = all(path.exists() for path in _metrics(profile, grid.default_ids(profile)))
    if fresh or "train" in built or not done:
        return ladder.SPLITS
    return ("test",)


def _metrics(profile: str, ids: Iterable[str]) -> list[Path]:
    return [records.run_folder(sweep.RESULTS, profile, run_id) / "metrics.json" for run_id in ids]


def _unfinished(profile: str) -> Path:
    """There while FRESH=1 has not trained all of the tables' runs; another call goes on."""
    return sweep.ROOT / ".cache" / "reproduce" / profile / "unfinished"


def _pretrained(profile: str) -> list[Path]:
    """The notebook of pretraining, where the profile's `table` recipe asks for it."""
    asked = config.table(profile).train.pretrained
    return [sweep.RESULTS / profile / "notebooks" / PRETRAIN.name] * asked


def steps(profile: str, fresh: bool) -> tuple[sweep.Step | sweep.Notebook, ...]:
    """The stages in order, each with the files that it depends on and those that it makes."""
    splits = needed_splits(profile, fresh)
    trained, tabled, pretrained = (
        tuple(str(path.relative_to(sweep.ROOT)) for path in paths)
        for paths in (_metrics(profile, grid.default_ids(profile)),
                      _metrics(profile, table_ids(profile)), _pretrained(profile)))
    said = tuple(name.replace("metrics.json", "answers.csv") for name in trained[:1])
    manifest, predictions = (
        "data/{profile}/manifest.csv",
        "results/{profile}/runs/*/predictions.csv",
    )
    makers = ("cpllm/data/*.py", "cpllm/config.py")
    judges = ("cpllm/infer.py", "cpllm/baselines.py", "cpllm/model/*.py", "cpllm/data/*.py")
    weights = ("cpllm/weights/*", "data/{profile}/weights/*")

    def build(profile: str, _fresh: bool) -> None:
        build_data(profile, splits)

    # FRESH=1 trains the tables' runs anew, not a default model of a longer recipe: that is
    # `make fit`. Side by side, so that no core waits.
    grids = ["fit", *(["table"] if fresh or _unfinished(profile).exists() else [])]
    old = ["table"] if config.TABLE[profile] else grids

    def train(profile: str, fresh: bool) -> None:
        if fresh:
            records.write(_unfinished(profile), "")
        train_grids(profile, grids, fresh=old if fresh else (), score=False)
        _unfinished(profile).unlink(missing_ok=True)

    tabled = tabled if "table" in grids else ()
    return (
        sweep.Step("build data", build, makers, (manifest,)),
        *(sweep.Step("pretrain", pretrain_towers, (), (path,), once=True)
          for path in pretrained if tabled),
        sweep.Step("train", train, (), (*trained, *tabled), once=True),
        sweep.Step("score", lambda profile, _: scoring.score_runs(profile),
                   (manifest, *weights, *judges), (predictions,)),
        sweep.Step("card", lambda profile, _: scoring.make_card(profile, again=False),
                   ("cpllm/weights/{profile}.safetensors",)),
        sweep.Step("answers", scoring.answer_runs, (), said, once=True),
        *(book for name, book in sweep.NOTEBOOKS.items()
          if name not in ("15_pretrain", "20_train") and not book.apart),
    )


def benchmark(profile: str, names: Sequence[str] = ()) -> None:
    """Execute the notebooks that `reproduce` leaves alone (of these names), one after another."""
    preset(profile)
    known = {name.rpartition("_")[2]: name for name, book in sweep.NOTEBOOKS.items() if book.apart}
    if unknown := set(names) - set(known):
        raise ValueError(f"benchmark: expected some of {', '.join(known)}; got {min(unknown)!r}")
    home = sweep.RESULTS / profile / "notebooks"
    for name in (known[short] for short in names or known):
        source = sweep.ROOT / "notebooks" / f"{name}.ipynb"
        inputs = sweep.files(sweep.NOTEBOOKS[name].inputs, profile, sweep.ROOT)
        notebooks.execute(source, home / source.name, {"profile": profile}, inputs)
        console.print(f"{name}: done", highlight=False)


def reproduce(profile: str, fresh: bool) -> None:
    """Redo what is not up to date of a profile, up to its executed notebooks."""
    preset(profile)
    for home in (sweep.DATA, sweep.RESULTS):
        atomic.tidy(home / profile)
    sweep.reproduce(profile, fresh, steps(profile, fresh))
