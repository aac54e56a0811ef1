"""What every command that converts recordings shows while it runs, and says at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from poyo_ssl.commands.console import console
from poyo_ssl.errors import RecordingError

if TYPE_CHECKING:
    from poyo_ssl.sources import Source
    from poyo_ssl.sources.convert import Outcome


def convert_recordings(
    source: Source,
    input: Path,
    output: Path,
    *,
    workers: int | None,
    ray: str | None,
    overwrite: bool,
    only: Collection[str] | None = None,
    then: Callable[[list[Outcome]], None] | None = None,
) -> None:
    """Run a source with a progress bar and say every warning.

    Parameters
    ----------
    source, input, output, workers, ray, overwrite, only
        As for `poyo_ssl.sources.convert.convert`.
    then : callable, optional
        What to do with the outcomes before a failed one is reported.

    Raises
    ------
    RecordingError
        If a recording could not be converted; the others are.
    """
    from poyo_ssl.sources.convert import convert

    progress = Progress(console=console)
    task = progress.add_task(f"converting {source.name}", total=None)

    def show(outcome: Outcome, total: int) -> None:
        # Not before: an input that is not there is answered with one line.
        progress.start()
        progress.update(task, total=total, advance=1)
        for line in outcome.warnings:
            progress.console.print(f"{outcome.recording_id}: {line}", markup=False)

    try:
        outcomes = convert(
            source, input, output, workers=workers, ray=ray, overwrite=overwrite, only=only, progress=show
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    if then:
        then(outcomes)
    if len(outcomes) == 1 and outcomes[0].status == "failed":
        problem, _, fix = outcomes[0].error.rpartition("; ")
        raise RecordingError(problem, fix=fix)
    count = Counter(outcome.status for outcome in outcomes)
    console.print(f"{count['written']} written, {count['unchanged']} unchanged, {count['failed']} failed in {output}")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        console.print(f"{outcome.input}: {outcome.error}", markup=False)
    if failed:
        raise RecordingError(
            f"{len(failed)} of {len(outcomes)} recordings could not be converted, {failed[0].recording_id} first",
            fix="see the lines above; run it again to continue",
        )
