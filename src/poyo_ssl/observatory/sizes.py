"""Sizes of data folders: how many recordings, of which lines, and what they are shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from poyo_ssl import protocol
from poyo_ssl.config import check
from poyo_ssl.errors import ConfigError, suggest
from poyo_ssl.observatory.allen_schedule import (
    ALLEN_SESSIONS,
    GRATING_PERIOD_S,
    GRATINGS_SESSION,
    MOVIE_FRAMES,
)
from poyo_ssl.observatory.animals import LINE_FACTS
from poyo_ssl.observatory.movies import MovieSpec

SHORT_SESSION = "observatory_short"
FULL_HEIGHT, FULL_WIDTH = 304, 608


@dataclass(frozen=True)
class ShortSchedule:
    """A session of some minutes, for tests and demonstrations."""

    temporal_frequencies_hz: tuple[float, ...]  # Of the gratings, out of the Allen's five
    grating_repeats: int  # Sweeps of each direction and temporal frequency
    num_blanks: int  # Blank sweeps
    blocks: tuple[str, ...]  # Stimuli in order. A stimulus named several times is divided evenly between its blocks
    spontaneous_s: float  # Length of each spontaneous block
    gap_s: float  # Gray before the first block, between blocks and after the last

    def __post_init__(self) -> None:
        check(self.gap_s >= 1, f"gap_s of {self.gap_s}", "1 s or more", "raise it")


@dataclass(frozen=True)
class SessionPlan:
    """One recording of a data folder."""

    recording_id: str  # Identity of the recording; its file's stem
    cre_line: str  # Cre line
    container: int  # Position of its container in the folder; sessions of one container share cells
    place: int  # Which of the folder's containers of this line it is
    of: int  # How many containers of this line the folder has
    order: int  # Which of the container's sessions it is in time, from 0
    session_type: str  # ``three_session_A`` to ``three_session_C2``, or `SHORT_SESSION`


@dataclass(frozen=True)
class ObservatorySize:
    """How much a data folder holds."""

    name: str  # As given to ``--size``
    sessions: tuple[SessionPlan, ...]  # One per recording
    movies: tuple[MovieSpec, ...]  # Movies of the folder
    short: ShortSchedule | None = None  # Schedule of every recording; None for the Allen's own
    # Fewest and most neurons of a recording, both included; by default as many as is usual in its line
    num_units: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.num_units:
            low, high = self.num_units
            check(1 <= low <= high, f"{low} to {high} units", "fewest and most, 1 or more", "correct num_units")
        if self.short:
            known = {"drifting_gratings", "spontaneous", *(movie.name for movie in self.movies)}
            unknown = set(self.short.blocks) - known
            check(not unknown, f"size {self.name}: blocks {sorted(unknown)}", ", ".join(sorted(known)), "correct them")

    @property
    def num_recordings(self) -> int:
        """Number of recordings."""
        return len(self.sessions)

    def duration_s(self, session: SessionPlan) -> float:
        """Return the length of a session in seconds."""
        if self.short is None:
            plan = ALLEN_SESSIONS[session.session_type]
            return plan.num_frames / plan.rate_hz
        short = self.short
        sweeps = 8 * len(short.temporal_frequencies_hz) * short.grating_repeats + short.num_blanks
        gratings = sweeps * GRATING_PERIOD_S if "drifting_gratings" in short.blocks else 0
        movies = sum(movie.num_frames * movie.repeats for movie in self.movies if movie.name in short.blocks)
        spontaneous = short.blocks.count("spontaneous") * short.spontaneous_s
        return gratings + movies / 30 + spontaneous + (len(short.blocks) + 1) * short.gap_s

    def unit_range(self, session: SessionPlan) -> tuple[int, int]:
        """Return the fewest and most neurons of a session, both included."""
        return self.num_units or LINE_FACTS[session.cre_line].num_units


def _plan(containers: Sequence[tuple[str, Sequence[str]]]) -> Iterator[SessionPlan]:
    """Lay out the sessions of containers given as (line, session types in order of time)."""
    lines = [line for line, _ in containers]
    for number, (line, kinds) in enumerate(containers):
        place, of = lines[:number].count(line), lines.count(line)
        for order, kind in enumerate(kinds):
            letters = "" if kind == SHORT_SESSION else "_" + kind.removeprefix("three_session_")
            yield SessionPlan(f"obs_{number:03d}_{line}{letters}", line, number, place, of, order, kind)


def _short_sessions(lines: Sequence[str]) -> tuple[SessionPlan, ...]:
    return tuple(_plan([(line, (SHORT_SESSION,)) for line in lines]))


_SMALL = ObservatorySize(
    name="small",
    sessions=_short_sessions(protocol.CRE_LINES),
    movies=(MovieSpec("natural_movie_one", 300), MovieSpec("natural_movie_two", 300)),
    short=ShortSchedule(
        temporal_frequencies_hz=(2.0, 4.0),
        grating_repeats=7,
        num_blanks=6,
        blocks=(
            "drifting_gratings",
            "natural_movie_one",
            "drifting_gratings",
            "spontaneous",
            "natural_movie_two",
            "drifting_gratings",
        ),
        spontaneous_s=60.0,
        gap_s=5.0,
    ),
    num_units=(56, 64),
)

_TINY = ObservatorySize(
    name="tiny",
    sessions=_short_sessions(("Cux2-CreERT2", "Pvalb-IRES-Cre", "Rorb-IRES2-Cre", "Sst-IRES-Cre")),
    movies=(MovieSpec("natural_movie_one", 150, 16, 32), MovieSpec("natural_movie_two", 150, 16, 32)),
    short=ShortSchedule(
        temporal_frequencies_hz=(2.0,),
        grating_repeats=6,
        num_blanks=2,
        blocks=("drifting_gratings", "natural_movie_one", "spontaneous", "natural_movie_two", "drifting_gratings"),
        spontaneous_s=10.0,
        gap_s=2.0,
    ),
    num_units=(16, 16),
)

_FULL_MOVIES = tuple(MovieSpec(name, frames, FULL_HEIGHT, FULL_WIDTH) for name, frames in MOVIE_FRAMES.items())

_EARLY_LINES = ("Cux2-CreERT2", "Rbp4-Cre_KL100", "Rorb-IRES2-Cre", "Scnn1a-Tg3-Cre")
"""Lines imaged before the noise stimulus changed: their third session is C, that of the others C2."""


def _medium_sessions() -> tuple[SessionPlan, ...]:
    """One container of three sessions for each line, and one more session A."""
    containers: list[tuple[str, tuple[str, ...]]] = []
    for line in protocol.CRE_LINES:
        third = "three_session_C" if line in _EARLY_LINES else "three_session_C2"
        containers.append((line, (GRATINGS_SESSION, "three_session_B", third)))
    return tuple(_plan([*containers, ("Cux2-CreERT2", (GRATINGS_SESSION,))]))


NUM_PREDICTABLE, NUM_OTHERS = 134, 299
"""Recordings of the published study: one session A of nearly every container, so 134 of 138 and 299 of 318."""


def _paper_sessions() -> tuple[SessionPlan, ...]:
    """Spread the study's two numbers over lines in proportion to their containers (largest remainder)."""
    counts: dict[str, int] = {}
    for total, wanted in ((NUM_PREDICTABLE, True), (NUM_OTHERS, False)):
        lines = [line for line in protocol.CRE_LINES if (line in protocol.PUBLISHED_PREDICTABLE_LINES) == wanted]
        available = sum(LINE_FACTS[line].containers for line in lines)
        exact = {line: total * LINE_FACTS[line].containers / available for line in lines}
        counts |= {line: int(share) for line, share in exact.items()}
        short_of = total - sum(counts[line] for line in lines)
        for line in sorted(lines, key=lambda line: counts[line] - exact[line])[:short_of]:
            counts[line] += 1
    repeated = (itertools.repeat((line, (GRATINGS_SESSION,)), counts[line]) for line in protocol.CRE_LINES)
    return tuple(_plan(list(itertools.chain.from_iterable(repeated))))


_MEDIUM = ObservatorySize("medium", _medium_sessions(), _FULL_MOVIES)
_PAPER = ObservatorySize("paper", _paper_sessions(), tuple(m for m in _FULL_MOVIES if m.name != "natural_movie_two"))

SIZES: Mapping[str, ObservatorySize] = MappingProxyType({size.name: size for size in (_TINY, _SMALL, _MEDIUM, _PAPER)})
"""Sizes by name: `tiny` for tests, `small` for the demo (both short), `medium` and `paper` with real schedules."""


def get_size(name: str) -> ObservatorySize:
    """Return a size by name."""
    if name not in SIZES:
        raise ConfigError(f"no size '{name}'{suggest(name, SIZES)}", allowed=", ".join(SIZES), fix="choose one")
    return SIZES[name]
