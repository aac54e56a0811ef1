"""Commands about the evaluation protocol: splits as a file, and the audit of runs for leaks."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from poyo_ssl.commands.console import console
from poyo_ssl.config import SplitConfig
from poyo_ssl.errors import ConfigError


def split(data: Path, config: SplitConfig, out: Path | None = None, window_s: float = 1.0) -> None:
    """Write which presentations train, validate and test, in seconds, as a file beside the data.

    Parameters
    ----------
    data : path
        Data folder, or one recording.
    config : SplitConfig
        The splits.
    out : path, optional
        File to write; splits.json beside the recordings by default.
    window_s : float
        Window plus lag of the decoders, in seconds; clips keep this and three decay times on each side.
    """
    from poyo_ssl.data.recording import open_recordings
    from poyo_ssl.data.split_file import save_splits

    if not window_s > 0:
        raise ConfigError(f"--window_s {window_s}", allowed="above 0", fix="give the window plus lag in seconds")
    recordings = open_recordings(data)
    path = out or (data if data.is_dir() else data.parent) / "splits.json"
    splits = save_splits(recordings, path, config, window_s=window_s)
    seconds: dict[tuple[str, str], list[float]] = {}
    for named in splits.values():
        for stimulus, found in named.items():
            for part, spans in found.parts.items():
                seconds.setdefault((stimulus, part), []).append(float((spans[:, 1] - spans[:, 0]).sum()))
    table = Table("stimulus", "part", "recordings", "seconds in each")
    for (stimulus, part), values in seconds.items():
        table.add_row(stimulus, part, str(len(values)), f"{min(values):.1f} to {max(values):.1f}")
    console.print(table)
    for (stimulus, part), values in seconds.items():
        if min(values) == 0:
            console.print(
                f"part '{part}' of {stimulus} is empty in {values.count(0.0)} of {len(values)} recordings: fewer "
                "or shorter clips (--num_clips, --clip_fraction, --valid_clip_fraction) or a shorter --window_s help",
                markup=False,
            )
    console.print(f"splits of {len(recordings)} recordings in {path}")


def audit(runs: list[Path], data: Path | None = None) -> None:
    """Check runs for leaks: whether anything of a test part reached training, as far as files can tell.

    Checks parts, inputs, frames and near-duplicates, statistics, vocabulary, selection, animals, and the runs that a
    run started from. Exits with code 2 if anything is found.

    Parameters
    ----------
    runs : list of path
        Run folders of 'poyo-ssl pretrain' or 'poyo-ssl finetune'.
    data : path, optional
        Where the recordings are now; by default where the runs found them.
    """
    from poyo_ssl.data.leaks import require_no_leaks
    from poyo_ssl.training.audit import audit_run

    audits = [audit_run(run, data) for run in runs]
    for found in audits:
        if found.leaks:
            table = Table("check", "recording", "problem", title=str(found.folder))
            for leak in found.leaks:
                table.add_row(leak.check, leak.recording_id, leak.problem)
            console.print(table)
        else:
            console.print(f"{found.folder}: no leak ({', '.join(found.checks)})")
    require_no_leaks([leak for found in audits for leak in found.leaks])
