"""`cpllm`: one verb, one function call."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import glob
import json
import os
import sys
from pathlib import Path
from typing import Any

from cpllm import atomic, config, verdicts
from cpllm.data import without_avx512

COLUMNS = ("path", "score", "low", "high", "word", "warnings", "error")
SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m"))
"""What counts as a video in a folder; a file that is named may be called anything."""

NO_VIDEOS = f", and nothing below it ends in {' '.join(sorted(SUFFIXES))}"

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
"""Settings that keep libraries' chatter from between a user and the scores."""

SPLITS = ("train", "validation", "test")

EVALUATED = {
    "prediction": "the model's output, higher is better",
    "mos": "the truth, higher is better",
    "source": "what a row was made from; drawn whole (default: each row)",
    "level": "quality step: higher never looks better, as CRF; blank for a reference",
    "codec": "pairs stay within it",
    "proxy": "FR-proxy 0-100: flip rates by its gap",
    "dmos": "reference - variant (default: from --mos)",
    "seed": "training run, where several scored the same videos",
}
"""Columns that `evaluate` may be told of."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 when a file or an argument was refused."""
    for stream in (sys.stdout, sys.stderr):  # any file name can be printed
        stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    for chatter, level in QUIET.items():
        os.environ.setdefault(chatter, level)
    if args.run in SAME_BITS:
        without_avx512()
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has left; nor can what is buffered be told it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """Every verb with its options."""
    top = argparse.ArgumentParser(
        prog="cpllm", description="Context and pixel aware video quality."
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    score = verb("score", score_files, "Score videos, 0-100; higher is better.")
    score.add_argument("files", nargs="+", metavar="PATH",
                       help="a file, a folder with all below it, or a pattern as 'clips/*.mp4'")
    score.add_argument("--format", choices=("table", "json", "csv"), default="table")
    score.add_argument("--per-frame", action="store_true", help="also show each key frame's score")
    climb = verb("ladder", climb_ladder, "Encode a video at CRFs and score the encodes.")
    climb.add_argument("files", nargs=1, metavar="FILE")
    climb.add_argument("--crfs", type=int, nargs="+", default=(), metavar="CRF",
                       help="default: ten from 15 to the codec's last")
    climb.add_argument("--codec", choices=("h264", "hevc", "vp9", "av1"), default="h264")
    climb.add_argument("--preset", default="medium", help="of x264 (default: medium)")
    climb.add_argument("--seconds", type=float, metavar="S", help="only of the beginning")
    for sub in (score, climb):
        sub.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the scores")
    compare = verb("compare", compare_files, "Say which of two videos looks better.")
    compare.add_argument("files", nargs=2, metavar="FILE")
    describe = verb("describe", describe_file, "Describe content, style and technical quality.")
    describe.add_argument("files", nargs=1, metavar="FILE")
    heat = verb("heatmap", map_file, "Show where in a frame the low-level encoder sees damage.")
    heat.add_argument("files", nargs=1, metavar="FILE")
    heat.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the frame and its map")
    heat.add_argument("--stride", type=int, metavar="PIXELS",
                      help="between places (default: a quarter of a patch)")
    for sub in (compare, describe, climb, heat):
        sub.add_argument("--format", choices=("text", "json"), default="text")
    for sub in (score, compare, describe, climb, heat):
        sub.add_argument("--weights", type=Path, help="weights file (default: the committed model)")
        sub.add_argument("--key-frames", type=int, metavar="M",
                         help="looked at of a video (default: as the weights say); a long one "
                              "needs more, which take more time and memory")
    data = verb("data", build_data, "Make the built-in scenes, their ladders and labels.")
    data.add_argument("--check", action="store_true",
                      help="only check what is there, against itself and the committed manifest")
    data.add_argument("--fit", action="store_true",
                      help="those of the grid `fit`, beside them; fetches photographs by pip")
    data.add_argument("--commit", action="store_true",
                      help="then let data_manifests/<profile> hold what was made (maintainers)")
    again = verb("labels", check_labels, "Measure the clips' labels again; compare the committed.")
    for sub in (data, again):
        sub.add_argument("--splits", nargs="+", default=SPLITS, choices=SPLITS)
        sub.add_argument("--scheduler", metavar="ADDRESS",
                         help="of a dask cluster that sees the same folders (default: processes)")
    train = verb("train", train_model, "Train one configuration.")
    train.add_argument("--run-id", help="name of the run (default: default-s<seed>)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--recipe", choices=tuple(config.RECIPES), default="preset",
                       help="changes to the profile (default: none)")
    train.add_argument("--workers", type=int, default=0,
                       help="processes that prepare batches (default: a thread)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    train.add_argument("--start", type=Path, metavar="FILE",
                       help="weights to begin with, as import-weights writes them")
    train.add_argument("--fsdp", type=int, default=1, help="devices that share one model copy")
    train.add_argument("--coordinator", metavar="HOST:PORT",
                       help="of process 0, when several; auto: found on TPU VMs, under SLURM")
    train.add_argument("--processes", type=int, help="how many (auto finds it)")
    train.add_argument("--process", type=int, help="which of them this is (auto finds it)")
    train.add_argument("--data", type=Path, metavar="DIR",
                       help="folder with a manifest.csv (default: what cpllm data made)")
    reproduce = verb("reproduce", reproduce_profile, "Redo what is not up to date.")
    reproduce.add_argument("--fresh", action="store_true", help="train everything anew")
    sweep = verb("sweep", sweep_grids, "Train a grid's runs that are missing, side by side.")
    sweep.add_argument("grids", nargs="+", metavar="GRID", help="of notebooks/sweeps, as table4")
    sweep.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="of these rows only")
    sweep.add_argument("--stale", action="store_true",
                       help="also those made by older code: a seed of each row first, and its "
                            "others only where that comes out otherwise")
    sweep.add_argument("--fresh", action="store_true", help="train all anew")
    sweep.add_argument("--dry-run", action="store_true", help="only print the plan and its cost")
    sweep.add_argument("--workers", type=int, help="runs at once (default: one a core)")
    sweep.add_argument("--scheduler", metavar="ADDRESS", help="of a dask cluster, as in data")
    known = verb("calibrate", calibrate_weights, "Measure how far scores are off, and for what.")
    check = verb("verify", verify_results, "Compute committed results again; compare.")
    check.add_argument("--write", action="store_true",
                       help="write the golden scores anew, of changed weights (maintainers)")
    timing = verb("benchmark", benchmark, "Time this machine; measure on real clips.")
    timing.add_argument("names", nargs="*", metavar="NAME",
                        help="as encodes (default: all, one after another)")
    bring = verb("import-weights", import_checkpoints, "Join public checkpoints into one file.")
    bring.add_argument("--videoprism", type=Path, required=True, metavar="FILE", help="its .npz")
    bring.add_argument("--paligemma", type=Path, metavar="DIR", help="both towers that follow")
    bring.add_argument("--siglip", type=Path, metavar="DIR", help="the high-level encoder")
    bring.add_argument("--gemma", type=Path, metavar="DIR", help="the decoder")
    bring.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the decoder's")
    bring.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    bring.add_argument("--out", type=Path, required=True, metavar="FILE")
    sets = verb("manifest", manifest, "Read a data set's labels and check them against its clips.")
    sets.add_argument("action", choices=("build", "check"))
    sets.add_argument("dataset", help="name of a card in data_manifests/, for instance lsvq")
    sets.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the clips")
    sets.add_argument("--labels", type=Path, nargs="+", default=(), metavar="FILE",
                      help="label files (default: those that the card names, under DIR)")
    sets.add_argument("--column", action="append", default=[], metavar="FIELD=COLUMN",
                      help="the label file's column for path, mos, dmos, …")
    sets.add_argument("--manifest", type=Path, metavar="FILE", help="default: DIR/manifest.csv")
    sets.add_argument("--decode", action="store_true", help="decode every frame, not one a clip")
    ladders = verb("lint-ladder", lint_ladders, "Find duplicate, drifting or disordered encodes.")
    ladders.add_argument("path", type=Path, metavar="FOLDER|MANIFEST.csv",
                         help="clips named like scene@crf31.mp4, or a manifest of such")
    notes = verb("annotate", annotate_clips, "Let Gemini describe a training set's originals.")
    notes.add_argument("manifest", type=Path, metavar="MANIFEST")
    notes.add_argument("--root", type=Path, metavar="DIR", help="default: the manifest's folder")
    notes.add_argument("--out", type=Path, metavar="FILE.jsonl",
                       help="default: descriptions.jsonl beside the manifest, where train looks")
    notes.add_argument("--model", help="default: gemini-3.1-flash-lite; the paper's is no more")
    notes.add_argument("--rpm", type=float, default=15, help="requests a minute (default: 15)")
    notes.add_argument("--workers", type=int, default=4, help="requests at once (default: 4)")
    notes.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"),
                       help="US dollars for a million tokens (default: as known for the model)")
    notes.add_argument("--dry-run", action="store_true", help="only say what it would cost")
    notes.add_argument("--yes", action="store_true", help="don't ask before spending")
    evaluate = verb("evaluate", evaluate_file, "Judge predictions, of any model, in a CSV.")
    evaluate.add_argument("file", type=Path, metavar="FILE.csv", help="one row per video")
    for name, text in EVALUATED.items():
        required = name in ("prediction", "mos")
        evaluate.add_argument(f"--{name}", metavar="COL", required=required, help=text)
    evaluate.add_argument("--id", default="video", metavar="COL", help="names of the videos")
    evaluate.add_argument("--against", type=Path, metavar="OTHER.csv", help="a model to compare")
    evaluate.add_argument("--against-prediction", metavar="COL", help="default: as --prediction")
    evaluate.add_argument("--draws", type=int, default=2000, help="of the bootstrap")
    evaluate.add_argument("--format", choices=("text", "json"), default="text")
    for sub in (data, again, train, reproduce, sweep, known, check, timing):
        sub.add_argument("--profile", choices=config.PRESETS, default="pocket")
    return top


def _load(args: argparse.Namespace):
    from cpllm.judge import load

    return load(args.weights, args.key_frames)


def score_files(args: argparse.Namespace) -> int:
    """A row per file in argument order; 2 if a file could not be scored."""
    from rich.console import Console
    from rich.progress import track

    files, scores, rows = _expanded(args.files), [], []
    found = _load(args).scores(files)
    quiet = len(files) == 1 or not sys.stderr.isatty()
    for path, score in zip(files, track(found, "scoring", len(files), transient=True, disable=quiet,
                                        console=Console(stderr=True)), strict=True):
        if isinstance(score, Exception):
            error = str(score) + NO_VIDEOS * os.path.isdir(path)
            print(f"error: {verdicts.one_line(error)}", file=sys.stderr)
            rows.append({**dict.fromkeys(f.name for f in dataclasses.fields(verdicts.Score)),
                         "path": path, "warnings": [], "error": error})
        else:
            scores.append(score)
            rows.append({**dataclasses.asdict(score), "error": None})
    if args.format == "json":
        _json(rows)
    else:
        {"table": _table, "csv": _csv}[args.format](rows, args.per_frame)
    if args.plot and scores:
        _draw(verdicts.draw(scores), args.plot)
    return 2 if len(scores) < len(rows) else 0


def _expanded(names: list[str]) -> list[str]:
    """Folders as the videos below them, patterns as what they match, in order of name."""
    found = []
    for name in names:
        if os.path.isdir(name):  # Path.is_dir refuses a name that is too long
            inside = [p for p in sorted(Path(name).rglob("*")) if p.suffix.lower() in SUFFIXES
                      and not any(part.startswith(".") for part in p.relative_to(name).parts)]
            found += [str(p) for p in inside if not p.is_dir()] or [name]  # then refused by name
        elif glob.has_magic(name) and not os.path.lexists(name):
            matching = sorted(glob.glob(name, recursive=True))
            found += _expanded(matching) if matching else [name]
        else:
            found.append(name)
    return found


def _json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _csv(rows: list[dict], per_frame: bool) -> None:
    """A line per video or, if asked, per key frame."""
    columns = COLUMNS + ("time", "frame_score") * per_frame
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        told = {k: "" if v is None else v for k, v in row.items()}
        told["warnings"] = "; ".join(row["warnings"])
        seen = zip(row["times"] or [""], row["frames"] or [""], strict=True)
        for time, score in seen if per_frame else [("", "")]:
            writer.writerow({**told, "time": time, "frame_score": score})


def _table(rows: list[dict], per_frame: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    notes = dict.fromkeys(text for row in rows for text in row["warnings"])
    marks = {text: str(i) for i, text in enumerate(notes, 1)}
    level = "90%"
    table = Table(Column("video", overflow="fold"), Column("score", justify="right"),
                  Column(level, justify="right"), "quality", "note", box=None)
    for row in rows:
        known = row["low"] is not None
        table.add_row(
            escape(verdicts.one_line(row["path"])), "-" if row["error"] else f"{row['score']:.1f}",
            f"{row['low']:.0f}–{row['high']:.0f}" if known else "-", row["word"] or "error",
            " ".join(marks[text] for text in row["warnings"]))
        for time, score in zip(row["times"] or (), row["frames"] or (), strict=True):
            if per_frame:
                table.add_row(f"  at {time:.2f} s", f"{score:.1f}", "", "", "")
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if narrow else 200, highlight=False)
    console.print(table)
    for text, mark in marks.items():
        console.print(f"{mark}  {text}", markup=False)


def _draw(figure: Any, path: Path) -> None:
    with atomic.whole(path) as part:
        figure.savefig(part)


def _told(args: argparse.Namespace, result: Any) -> None:
    _json(dataclasses.asdict(result)) if args.format == "json" else print(result)


def compare_files(args: argparse.Namespace) -> None:
    """Both scores, the better one, how sure that is, and the decoder's answers."""
    _told(args, _load(args).compare(*args.files))


def describe_file(args: argparse.Namespace) -> None:
    """The three sentences and the score."""
    _told(args, _load(args).describe(args.files[0]))


def climb_ladder(args: argparse.Namespace) -> None:
    """A table of encodes with the CRF at which quality starts to fall, and a plot if asked."""
    result = _load(args).ladder(
        args.files[0], args.crfs, args.codec, args.preset, args.seconds)
    _json({**dataclasses.asdict(result), "knee": result.knee}) if args.format == "json" \
        else print(result)
    if args.plot:
        _draw(result.draw(), args.plot)


def map_file(args: argparse.Namespace) -> None:
    """The middle key frame's score, where it is damaged most, and the picture if asked."""
    found = _load(args).heatmap(args.files[0], args.stride)
    (top, left, most), mean = found.worst(), float(found.lost.mean())
    if args.plot:
        _draw(found.draw(), args.plot)
    if args.format == "json":
        return _json({"path": found.path, "score": found.score, "size": found.lost.shape,
                      "worst": {"top": top, "left": left, "lost": most}, "mean": mean,
                      "lost": found.blocks().round(3).tolist()})
    height, width = found.lost.shape
    print(f"{found.score:6.1f}  {found.path}, middle key frame at {width}x{height}\n"
          f"{most:6.2f}  of its structure lost where most is, at x {left}, y {top}\n"
          f"{mean:6.2f}  in the mean")


def build_data(args: argparse.Namespace) -> int:
    """Make what is missing of a profile's videos and manifest, or check them; 2 if clips are bad.

    Clips that only differ from the committed manifest are another machine's, not bad.
    """
    from cpllm import pipeline, sweep
    from cpllm.data import ladder

    if args.fit and args.commit:
        raise ValueError("--commit: the grid fit's labels are measured where it trains, not kept")
    if not args.check:
        with sweep.alone(args.profile):
            table = (pipeline.build_fit(args.profile, args.scheduler) if args.fit
                     else pipeline.build_data(args.profile, args.splits, args.scheduler))
        if args.commit:
            ladder.commit_manifest(table, ladder.COMMITTED / args.profile)
        return 0
    table, bad, differing = pipeline.check_data(args.profile, args.splits)
    print("\n".join([*(f"{video}: {fault}" for video, fault in bad.items()), *differing,
                     f"{len(table):,} clips, {len(bad):,} bad"]))
    return 2 if bad else 0


def check_labels(args: argparse.Namespace) -> int:
    """The largest difference of each label; 1 if VMAF's is more than ladder.TOLERANCE."""
    from cpllm import pipeline
    from cpllm.data import ladder

    difference, other = pipeline.check_labels(args.profile, args.splits, args.scheduler)
    print(f"{len(difference):,} clips have the committed frames, {len(other):,} have others"
          f"{f' (first: {other[0]})' if other else ''} and aren't compared")
    if difference.empty:
        return 0
    worst = difference.abs().agg(["max", "idxmax"]).T
    for name, row in worst.iterrows():
        print(f"{name}: largest difference {row['max']:.6f} ({row['idxmax']})")
    print(f"tolerance of proxy: {ladder.TOLERANCE}")
    return int(worst.at["proxy", "max"] > ladder.TOLERANCE)


def manifest(args: argparse.Namespace) -> int:
    """Write or check a manifest; 1 where clips are missing or damaged, each named."""
    from cpllm.data import datasets, manifests

    path = args.manifest or args.root / "manifest.csv"
    if args.action == "build":
        columns = dict(pair.partition("=")[::2] for pair in args.column)
        table, found, bad = datasets.build(
            args.dataset, args.root, args.labels, columns, args.decode)
        manifests.write(table, path)
        found.append(f"{path}: {len(table):,} rows, sha256 {manifests.sha256(table)}")
    else:
        found, bad = datasets.verify(args.dataset, path, args.root, args.decode)
    print("\n".join([*(f"{clip}: {fault}" for clip, fault in bad.items()), *found]))
    return int(bool(bad))


def lint_ladders(args: argparse.Namespace) -> int:
    """A line for each finding; 1 when there are some."""
    from cpllm.data import lint

    n, found = lint.lint_path(args.path)
    for ladder, kind, videos, text in found:
        print(f"{ladder}: {kind}: {', '.join(videos)}: {text}")
    print(f"{n:,} rungs, {len(found):,} findings")
    return int(bool(found))


def annotate_clips(args: argparse.Namespace) -> int:
    """Say the cost, ask, describe; 1 where clips got no description, each named."""
    from cpllm.data import gemini, manifests

    model, out = args.model or gemini.MODEL, args.out or args.manifest.parent / "descriptions.jsonl"
    if not (price := args.price or gemini.PRICES.get(model)):
        raise ValueError(f"annotate: no price is known of {model}; give --price IN OUT")
    rows = gemini.missing(manifests.read(args.manifest), out, model)
    cost = gemini.cost(rows, args.rpm, price)
    print(f"{cost.requests:,} requests to {model}: about {cost.tokens:,} tokens in, "
          f"{cost.dollars:.2f} USD, {cost.minutes:.0f} minutes or more; answers go to {out}")
    if args.dry_run or not cost.requests:
        return 0
    if not args.yes and not (sys.stdin.isatty() and input("Go on? [y/N] ").lower() == "y"):
        raise ValueError("annotate: not agreed to; --yes agrees without asking")
    root = args.root or args.manifest.parent
    bad = gemini.annotate(rows, root, out, model, args.rpm, args.workers)
    for name, fault in bad.items():
        print(f"error: {name}: {fault}", file=sys.stderr)
    print(f"{len(rows) - len(bad):,} of {len(rows):,} clips described; {len(bad):,} not")
    return int(bool(bad))


def train_model(args: argparse.Namespace) -> None:
    """Train and record one run, alone or as one of several processes."""
    from cpllm import mesh, pipeline, records, sweep, train

    mesh.join(args.coordinator, args.processes, args.process)
    known = config if args.data else pipeline  # what is brought may be any profile's
    known.preset(args.profile)
    cfg = config.replace(config.RECIPES[args.recipe](args.profile), seed=args.seed)
    run_id = records.run_name(args.run_id or f"default-s{args.seed}")
    data = args.data or sweep.DATA / args.profile
    kept = records.checkpoints(data, run_id)
    if kept.exists() and not (args.resume or args.fresh):
        raise ValueError(
            f"{kept}: holds checkpoints of an unfinished run; --resume goes on from the last one, "
            "--fresh forgets them"
        )
    with contextlib.nullcontext() if args.process else sweep.alone(args.profile, run_id):
        train.run(cfg, run_id, data, sweep.RESULTS, not args.fresh, args.fsdp, args.start,
                  args.workers)


def sweep_grids(args: argparse.Namespace) -> None:
    """Train what a grid lacks, then score every run that has no predictions."""
    from cpllm import pipeline, sweep

    with contextlib.nullcontext() if args.dry_run else sweep.alone(args.profile):
        pipeline.train_grids(args.profile, args.grids, args.rows, args.grids if args.fresh else (),
                             args.stale, args.dry_run, args.workers, args.scheduler)


def evaluate_file(args: argparse.Namespace) -> None:
    """SRCC, KRCC, PLCC, RMSE, DMOS and flip rates with intervals, and paired differences."""
    from cpllm import evaluation

    columns = {name: getattr(args, name) for name in EVALUATED}
    columns["crf"] = columns.pop("level")
    result = evaluation.evaluate(
        args.file, args.against, args.against_prediction, args.draws, video=args.id, **columns
    )
    evaluation.show(result) if args.format == "text" else _json(result)


def import_checkpoints(args: argparse.Namespace) -> None:
    """Write the `paper` profile's model with the shapes and weights of public checkpoints."""
    high, decoder = args.siglip or args.paligemma, args.gemma or args.paligemma
    if not (high and decoder):
        raise ValueError("import-weights: name --paligemma, or both --siglip and --gemma")
    from cpllm.model.imports import import_weights

    cfg = import_weights(
        args.out, config.paper(), args.videoprism, high, decoder, args.tokenizer, args.dtype
    )
    print(f"{args.out}: {cfg.model.high}, {cfg.model.low}, {cfg.model.decoder}")


def calibrate_weights(args: argparse.Namespace) -> None:
    """Write the card beside the package's weights."""
    from cpllm import scoring

    path = scoring.make_card(args.profile)
    print(path or f"{args.profile}: its model is not the package's, which alone carries a card")


def benchmark(args: argparse.Namespace) -> None:
    """The benchmark chapters anew; times are this machine's, so let it idle. One fetches clips."""
    from cpllm import pipeline

    pipeline.benchmark(args.profile, args.names)


def verify_results(args: argparse.Namespace) -> int:
    """A line for each difference; 1 when there are some."""
    from cpllm import sweep, verify

    if args.write:
        print(f"written: {verify.write(args.profile, sweep.RESULTS)}")
        return 0
    found = list(verify.differences(args.profile, sweep.RESULTS))
    print("\n".join([*found, f"{args.profile}: {len(found)} differences"]))
    return int(bool(found))


def reproduce_profile(args: argparse.Namespace) -> None:
    """Data, training, scores and notebooks, as far as they are out of date."""
    from cpllm import pipeline, sweep

    with sweep.alone(args.profile):
        pipeline.reproduce(args.profile, args.fresh)


SAME_BITS = (build_data, check_labels, sweep_grids, verify_results, reproduce_profile)
"""Verbs whose clips, runs and chapters come out the same on processors with AVX-512 and without."""


if __name__ == "__main__":
    sys.exit(main())
