"""The commands of `same_results.py`, section by section; paths are relative to a folder with `inputs` in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SMALL = "--model.dim 16 --model.dim_head 16 --model.depth 1 --model.self_heads 2"
SHORT = "--optim.epochs 2 --optim.epoch_windows 64 --optim.batch_size 16"
TINY_CLIPS = "--split.clip_fraction 0.1 --split.decay_s 0.1"
FRAMES = f"--task frames --frame_height 16 --frame_width 32 {TINY_CLIPS}"


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes
    ----------
    name : str
        What it is called in the comparison.
    arguments : list of str
        Words behind ``poyo-ssl``.
    stdin : str
        File that it reads.
    text : bool
        Whether it writes text, not bytes.
    env : dict
        Environment variables that it needs.
    """

    name: str
    arguments: list[str]
    stdin: str = ""
    text: bool = True
    env: dict[str, str] = field(default_factory=dict)


def job(line: str, name: str = "") -> Job:
    """Make a command of one line; two commas stand for a space in a word."""
    return Job(name or line, [word.replace(",,", " ") for word in line.split()])


def prepare(_: Path) -> list[Job]:
    """Convert recordings of every source and examine them."""
    one, good = "--workers 1", "inputs/good"
    lines = [
        "observatory obs_0 --size tiny",
        "observatory obs_3 --size tiny --seed 3 --world null --dff_procedure allen_mode",
        "observatory obs_4 --size tiny --seed 4 --world regularity_helps --dff_procedure maximin",
        "observatory obs_5 --size tiny --seed 5 --world noise_confounded --dff_procedure percentile",
        "observatory obs_nwb --size tiny --seed 1 --as_nwb",
        "allen obs_nwb/ophys_experiment_data obs_again",
        f"allen {good}/allen allen",
        f"allen {good}/allen allen_only --max_trim_frames 3",
        f"nwb {good}/nwb/dandi nwb_dandi",
        f"nwb {good}/nwb/laboratory nwb_laboratory",
        f"nwb {good}/nwb/fluorescence nwb_fluorescence --dff_procedure maximin --neuropil_ratio 0.5",
        f"brainsets {good}/brainsets brainsets",
        f"brainsets {good}/brainsets brainsets_rewritten --how rewrite",
        f"suite2p {good}/suite2p suite2p",
        f"suite2p {good}/suite2p suite2p_all --cells all --neuropil_ratio 0.5 --rate_hz 20 --dff_procedure maximin",
        f"arrays {good}/arrays arrays",
        f"arrays {good}/arrays/light arrays_light --dff_procedure percentile --neuropil_ratio 0.3",
        f"arrays {good}/arrays/turned arrays_turned --axes unit_first",
        *(
            f"arrays {good}/files/{name} files_{name} --kind dff --rate_hz 20"
            for name in ("a.npy", "a.npz", "names.csv")
        ),
        *(f"arrays {good}/files/{n} files_{n} --kind dff --rate_hz 20 --key a" for n in ("b.npz", "a.mat", "new.mat")),
        f"events {good}/events events --seed 3",
    ]
    jobs = [job(f"prepare {line} {one}") for line in lines]
    again = ["allen", "nwb_dandi", "brainsets", "suite2p_all", "arrays", "events", "obs_3"]
    sources = ["allen", "nwb/dandi", "nwb/laboratory", "brainsets", "suite2p", "arrays", "events"]
    examined = again + [f"{good}/{name}" for name in sources]
    jobs += [job(f"doctor {name} {one}") for name in examined]
    jobs.append(job(f"prepare arrays {good}/arrays arrays {one}", "prepare arrays, nothing to do"))
    return jobs


def split(_: Path) -> list[Job]:
    """Split and select."""
    settings = {
        "default": "",
        "tiny_clips": "--clip_fraction 0.1 --decay_s 0.1",
        "two_clips": "--num_clips 2 --clip_fraction 0.1 --valid_clip_fraction 0.05 --decay_s 0.05 --window_s 0.3",
        "no_valid_clip": "--valid_clip_fraction 0 --near_duplicate_correlation 0.7",
        "no_clips": "--num_clips 0 --seed 4",
        "blocks": "--gratings_by_block true",
        "fractions": "--gratings_fractions [0.5,0.2,0.3] --seed 9",
        "repeats": "--gratings_valid_repeats [1] --gratings_test_repeats [2] --repeat_train [0,1,2] --repeat_valid [5]",
        "movies": "--test_movies [natural_movie_two] --near_duplicate_correlation 0.8",
        "subjects": "--test_subject_fraction 0.5 --seed 2",
    }
    jobs = [job(f"split inputs/data --out split_{name}.json {flags}") for name, flags in settings.items()]
    jobs += [job("split inputs/good/brainsets/allen_visual_coding_ophys_2016 --out split_brainsets.json")]
    selections = {
        "default": "",
        "knee": "--thresholds knee",
        "convex": "--thresholds knee --knee_curve convex",
        "given": "--thresholds given --skewness_threshold 2 --kurtosis_threshold 9",
        "neuron": "--level neuron",
        "fraction": "--level neuron --keep_fraction 0.4",
        "split": f"--level neuron {TINY_CLIPS} --split.gratings_by_block true",
        "subjects": "--level neuron --split.test_subject_fraction 0.5",
    }
    return jobs + [job(f"select --data inputs/data --out select_{n} {flags}") for n, flags in selections.items()]


def train(inputs: Path) -> list[Job]:
    """Train a little of every kind, evaluate, report and serve."""
    chosen = "--selection inputs/selection"
    pretrain = f"pretrain --data inputs/data {SMALL} {SHORT} {chosen} --out"
    jobs = [
        f"{pretrain} encoder",
        f"{pretrain} described --config pretrain_described --optim.epochs 2 {SMALL}",
        f"{pretrain} coded --config pretrain_coded --optim.epochs 2 {SMALL}",
        f"{pretrain} causal --objective.masking random --objective.mode ema --model.causal_cross_attention true "
        "--model.start_end_tokens false --window.bin_frames 3 --model.attention_dropout 0",
        f"{pretrain} block --objective.masking block --objective.mode stopgrad --objective.reconstruction mse "
        "--model.value_embedding per_unit --window.noise 0.1 --trials all --seed 5",
    ]
    all_units, unselected = "--window.units all", f"{chosen} --window.units unselected"
    finetune = f"finetune --data inputs/data {SMALL} {SHORT} --out"
    skip = "--value_skip_bins 2 --model.value_embedding per_unit --window.normalisation robust_asinh"
    long, short = "--window.window_s 1.9", "--window.window_s 0.5"
    subjects = f"{all_units} --split.test_subject_fraction 0.3 --split.seed 1"
    jobs += [
        f"{finetune} gratings {unselected} --pretrained encoder {long}",
        f"{finetune} gratings_bins {unselected} {long} --window.bin_frames 3 {skip}",
        f"{finetune} gratings_block {all_units} {long} --split.gratings_by_block true --keep last "
        "--window.unit_dropout false",
        f"{finetune} gratings_described --config finetune_gratings_described --optim.epochs 2 {all_units}",
        f"{finetune} gratings_lag {all_units} --window.window_s 0.8 --window.lag_s 0.2 --freeze [latents] "
        "--optim.schedule cosine",
        f"{finetune} readout {unselected} --pretrained causal {long} --window.bin_frames 3 --adapt readout",
        f"{finetune} number {all_units} --task frame_number {short}",
        f"{finetune} number_skip {all_units} --task frame_number {short} --window.bin_frames 3 {skip} "
        "--value_skip_dim 8",
        f"{finetune} position {unselected} --task frame_number --readout position {short} --pretrained encoder",
        f"{finetune} frames {all_units} {FRAMES} {short}",
        f"{finetune} frames_bins {unselected} {FRAMES} {short} --window.bin_frames 3 --pretrained encoder "
        "--skips false "
        "--split.test_movies [natural_movie_two] --optim.precision bf16",
        f"{finetune} frames_coded --config finetune_frames_coded --optim.epochs 2 {all_units} --frame_height 16 "
        "--frame_width 32",
        f"{finetune} known {subjects} --window.window_s 1.0",
        f"{finetune} adapted {subjects} --adapt embeddings --pretrained known",
    ]
    evaluate = [
        "gratings gratings_bins --arms pretrained skip",
        "number number_skip",
        "position --baselines core",
        "frames --baselines all",
        "frames_bins --baselines core --controls false",
        "gratings_block readout --baselines none --seed 3",
        "adapted --baselines core --margin 0.1",
        "inputs/runs/gratings --baselines core",
    ]
    jobs += [f"evaluate {flags} --out results_{number}" for number, flags in enumerate(evaluate)]
    results = [f"results_{number}" for number in (0, 1, 3, 6)]
    jobs += [f"leaderboard {name} --data inputs/data --out board_{name}" for name in results[:2]]
    jobs += [f"leaderboard {name} --out board_{Path(name).name}" for name in [*results[2:], "inputs/results"]]
    jobs += [f"report {name}" for name in results]
    jobs.append("resume gratings")
    jobs.append("audit encoder described coded gratings gratings_block number frames frames_bins known adapted")
    jobs.append("audit gratings_lag readout position inputs/runs/gratings")
    return [job(line) for line in jobs] + [_serve(inputs, run) for run in ("gratings", "number")]


def _serve(inputs: Path, run: str) -> Job:
    """Decode frames online from a pipe: with an old run, whose answers are bytes."""
    name = (inputs / f"recording_{run}.txt").read_text()
    line = f"serve inputs/runs/{run} --pipe true --min_coverage 0.8 --recording {name}"
    return Job(line, line.split(), stdin=f"inputs/frames_{run}.bin", text=False)


def help_texts(_: Path) -> list[Job]:
    """Ask every command for its help, at a fixed width."""
    prepare = ("observatory", "allen", "nwb", "brainsets", "suite2p", "arrays", "events")
    others = "doctor select split pretrain finetune resume evaluate leaderboard audit report demo serve"
    commands = ["", "prepare", *(f"prepare {name}" for name in prepare), *others.split()]
    shown = [Job(f"{name} --help", [*name.split(), "--help"], env={"COLUMNS": "100"}) for name in commands]
    presets = (
        "pretrain_described pretrain_coded finetune_frames_coded finetune_frames_described finetune_gratings_described"
    )
    printed = [job(f"{name.split('_')[0]} --config {name} --data d --out o --print_config") for name in presets.split()]
    return [*shown, *printed, job("--version"), job("pretrain --data d --out o --print_config")]


FLAGS = """
pretain
prepare
prepare observatry x
prepare observatory
prepare observatory x --world nul
prepare observatory x --size huge
prepare observatory x --seed -1
prepare observatory x --size tiny --dff_procedure mean
prepare observatory x --workers 0
prepare observatory inputs/data --size small
prepare allen nowhere x
prepare allen nowhere
prepare allen . x
prepare allen . --list
prepare allen . x --session_type D
prepare allen . x --cre_line Cux
prepare allen inputs/good/allen x --area VISx
prepare allen inputs/good/allen/501574836.nwb --download
prepare allen inputs/good/nwb/laboratory x --workers 1
prepare nwb nowhere x
prepare nwb inputs/good/allen x --workers 1
prepare nwb x y --tables a
prepare nwb inputs/good/nwb/laboratory x --workers 1 --series None
prepare nwb inputs/good/nwb/laboratory x --workers 1 --rate_hz -3
prepare brainsets nowhere x
prepare brainsets inputs/good/files x
prepare brainsets inputs/good/brainsets x --how move
prepare suite2p nowhere x
prepare suite2p . x --cells all
prepare suite2p nowhere x --rate_hz 9 --timestamps t.npy
prepare suite2p x y --rate_hz abc
prepare suite2p x y --workers 1.5
prepare suite2p x y --cells some
prepare suite2p x y --overwrite=maybe
prepare suite2p inputs/good/suite2p x --neuropil_ratio 3 --workers 1
prepare arrays nowhere x
prepare arrays nowhere x --axis time_first
prepare arrays nowhere x --dff_procedure maximum
prepare arrays nowhere x --rate_hz 0
prepare arrays inputs/good/files/a.npy x --workers 1
prepare arrays inputs/good/files/a.npy x --kind dff --workers 1
prepare arrays inputs/good/files/b.npz x --kind dff --rate_hz 20 --workers 1
prepare arrays inputs/good/files/b.npz x --kind dff --rate_hz 20 --key c --workers 1
prepare arrays inputs/good/arrays/dff x --stimuli none.csv --workers 1
prepare arrays inputs/good/arrays/dff x --metadata none.json --workers 1
prepare arrays inputs/good/arrays/dff x --pixels none --workers 1
prepare arrays inputs/good/arrays/dff x --axes time_last --workers 1
prepare events nowhere x
prepare events . x
prepare events inputs/good/events x --seed -1 --workers 1
doctor nowhere
doctor .
doctor inputs/good/files/a.csv
doctor inputs/bad/brainsets --workers 1
doctor inputs/bad/laboratory --workers 1
select --data nowhere --out y
select --data inputs/data --out inputs/data
select --data inputs/data --out y --thresholds given
select --data inputs/data --out y --skewness_threshold 3
select --data inputs/data --out y --keep_fraction 0.5
select --data inputs/data --out y --level neuron --keep_fraction 1.5
select --data inputs/data --out y --level neurons
select --data inputs/data --out y --thresholds given --skewness_threshold -9 --kurtosis_threshold -9
select --data inputs/data --out y --split.repeat_test [8]
split .
split nowhere
split . --window_s 0
split . --seed -1
split . --decay_s -1
split . --near_duplicate_correlation 1.5
split inputs/data --out x.json --clip_fraction 0.7
split inputs/data --out x.json --num_clips -1
split inputs/data --out x.json --gratings_fractions [0.5,0.2,0.2]
split inputs/data --out x.json --gratings_fractions [0.5,0.5]
split inputs/data --out x.json --test_movies [natural_movie_nine]
split inputs/data --out x.json --test_subjects [nobody]
split inputs/data --out x.json --test_subject_fraction 0.5 --test_subjects [a]
split inputs/data --out x.json --gratings_by_block true --gratings_test_repeats [1]
split inputs/data --out x.json --gratings_test_repeats [77]
split inputs/data --out x.json --window_s 30
split inputs/data --out nowhere/x.json
pretrain --data x --out y --optim.batchsize 3
pretrain --config pretrain_code --data x --out y
pretrain --data x --out y
pretrain --data inputs/data --out y
pretrain --data inputs/data --out y --selection nowhere
pretrain --data inputs/data --out inputs/data --window.units all
pretrain --data inputs/data --out y --window.units all --objective.mask_ratio 0
pretrain --data inputs/data --out y --window.units all --objective.masking feature
pretrain --data inputs/data --out y --window.units all --objective.ema_decay 1
pretrain --data inputs/data --out y --window.units all --objective.mask_ratio 0.01 --optim.epochs 1
pretrain --data inputs/data --out y --window.units all --model.dim 0
pretrain --data inputs/data --out y --window.units all --model.dim_head 6
pretrain --data inputs/data --out y --window.units all --model.rotary_t_min_s 9
pretrain --data inputs/data --out y --window.units all --model.ffn_dropout 1
pretrain --data inputs/data --out y --window.units all --optim.learning_rate 0
pretrain --data inputs/data --out y --window.units all --optim.epochs 0
pretrain --data inputs/data --out y --window.units all --optim.optimiser sgd
pretrain --data inputs/data --out y --window.units all --optim.epoch_windows 0
pretrain --data inputs/data --out y --window.units all --trial_dilation_s -1
pretrain --data inputs/data --out y --window.units all --seed -3
pretrain --data inputs/data --out y --window.units all --devices 0
pretrain --data inputs/data --out y --window.units all --window.window_s 11
pretrain --data inputs/data --out y --window.units all --window.bin_frames 0
finetune --out y
finetune --data x --out y
finetune --data x --out y --task grating
finetune --data x --out y --window.window_s -1
finetune --data inputs/data --out y
finetune --data inputs/data --out y --window.units all --movies []
finetune --data inputs/data --out y --window.units all --task frame_number --movies [a,b]
finetune --data inputs/data --out y --window.units all --task frame_number --movies [natural_movie_ten]
finetune --data inputs/data --out y --window.units all --task frames --frame_height 7
finetune --data inputs/data --out y --window.units all --task frames --value_skip_bins 2
finetune --data inputs/data --out y --window.units all --task frames --movie_loss.perceptual 1
finetune --data inputs/data --out y --window.units all --task frames --movie_loss.perceptual_weights nowhere
finetune --data inputs/data --out y --window.units all --value_skip_bins -1
finetune --data inputs/data --out y --window.units all --value_skip_bins 900 --optim.epochs 1
finetune --data inputs/data --out y --window.units all --task frame_number --window.window_s 6
finetune --data inputs/data --out y --window.units all --pretrained nowhere
finetune --data inputs/data --out y --window.units all --pretrained inputs/data
finetune --data inputs/data --out y --window.units all --adapt embeddings
finetune --data inputs/data --out y --window.units all --adapt embeddings --pretrained inputs/runs/encoder
finetune --data inputs/data --out y --window.units all --adapt embeddings --pretrained inputs/runs/gratings
finetune --data inputs/data --out y --window.units all --freeze [proces] --optim.epochs 1
finetune --data inputs/data --out y --window.units all --freeze [,,] --optim.epochs 1
finetune --data inputs/data --out y --window.units all --split.test_subjects [nobody]
finetune --data inputs/data --out y --window.units all --window.lag_s 3
finetune --data inputs/data --out y --window.units all --window.bin_frames 400
finetune --data inputs/data --out y --window.units some
finetune --data inputs/good/allen --out y --window.units all
finetune --data inputs/data --out y --config inputs/results/results.json
resume nowhere
resume inputs/data
resume inputs/runs/gratings
evaluate nowhere --out y
evaluate . --seed -1
evaluate . --devices 0
evaluate . --out y
evaluate inputs/runs/gratings
evaluate inputs/runs/encoder --out y
evaluate inputs/runs/gratings inputs/runs/number --arms a --out y
evaluate inputs/runs/gratings inputs/runs/gratings --out y --baselines none --arms a b --data nowhere
evaluate inputs/runs/gratings --out inputs/data
evaluate inputs/runs/gratings --out y --baselines some
evaluate inputs/runs/gratings --out y --data inputs/good/allen
leaderboard nowhere
leaderboard .
leaderboard . --seed -1
leaderboard inputs/results --task frames --out y
leaderboard inputs/results --split clip --out y
leaderboard inputs/results --margin -1 --out y
leaderboard inputs/results --data nowhere --out y
leaderboard inputs/results --data inputs/good/brainsets --out y
audit nowhere
audit inputs/data
audit inputs/runs/gratings --data nowhere
audit
report nowhere
report inputs/data
report inputs/results --out nowhere/x/report.html
demo --out inputs/data
demo --seed -1
serve nowhere
serve inputs/runs/encoder --pipe true
serve inputs/runs/gratings --pipe true
serve inputs/runs/gratings --pipe true --recording nobody
serve inputs/runs/gratings --pipe true --threads 0
serve inputs/runs/gratings --port 99999999
serve inputs/runs/gratings --pipe true --min_coverage 2
"""


def errors(inputs: Path) -> list[Job]:
    """Give bad flags and bad files of every kind."""
    one, bad = "--workers 1", "inputs/bad"
    lines = FLAGS.split("\n")[1:-1]
    lines += [f"prepare {name} {bad}/{name} out_{name} {one}" for name in ("allen", "brainsets", "events", "suite2p")]
    lines += [f"prepare nwb {bad}/{name} out_{name} {one}" for name in ("dandi", "laboratory")]
    lines += [f"prepare arrays {bad}/{name} out_{name} {one}" for name in ("arrays", "arrays_auto")]
    lines.append(f"prepare arrays {bad}/arrays_time_first out_first {one} --axes time_first")
    lines += [f"prepare arrays {bad}/{name} out_{name} {one} --rate_hz 20" for name in ("files", "arrays_rate")]
    lines += [f"prepare brainsets {bad}/brainsets out_rewritten {one} --how rewrite"]
    return [_apart(line, number) for number, line in enumerate([*lines, *_bad_runs(inputs)])]


def _apart(line: str, number: int) -> Job:
    """Make a command whose output, x or y, no earlier one has made."""
    apart = {"x": f"x{number}", "y": f"y{number}", "x.json": f"x{number}.json"}
    return Job(line, [apart.get(word, word) for word in job(line).arguments])


def _bad_runs(inputs: Path) -> Iterator[str]:
    for run in _names(inputs / "bad" / "runs"):
        path = f"inputs/bad/runs/{run}"
        yield f"audit {path}"
        if run.startswith("gratings"):
            yield f"evaluate {path} --out y --baselines none --controls false"
        if run.startswith("gratings") and run.endswith("cut"):
            yield f"resume {path}"
            yield f"serve {path} --pipe true --recording {(inputs / 'recording_gratings.txt').read_text()}"
        if run.startswith("encoder"):
            yield f"finetune --data inputs/data --out y --window.units all {SHORT} --pretrained {path}"
    for name in _names(inputs / "bad" / "predictions"):
        yield f"evaluate inputs/bad/predictions/{name}"
    yield "leaderboard inputs/bad/predictions --out y"
    for name in _names(inputs / "bad" / "selection"):
        yield f"pretrain --data inputs/data --out y --selection inputs/bad/selection/{name}"
    for name in _names(inputs / "bad" / "data"):
        yield f"split inputs/bad/data/{name} --out y.json"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


SECTIONS: dict[str, Callable[[Path], list[Job]]] = {
    "prepare": prepare,
    "split": split,
    "train": train,
    "errors": errors,
    "help": help_texts,
}
