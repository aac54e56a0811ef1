"""Worlds: what a neuron of each Cre line is like, as independent dials.

How regular a neuron is (rate and burstiness), how much of its rate the stimulus drives, how noisy its
fluorescence is and which indicator it carries are separate settings of a `CellClass`. A `World` gives one class
to each line. In `allen_like` the four published predictable lines have low skewness and kurtosis because they
fire often and regularly, as measured in vivo; the other worlds are made to test what follows from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from poyo_ssl import protocol
from poyo_ssl.config import check
from poyo_ssl.errors import ConfigError, suggest


def _check_finite(dials: Indicator | CellClass, who: str = "") -> None:
    """Refuse infinities and NaN, which pass or fail comparisons with bounds as they like."""
    for field in fields(dials):
        value = getattr(dials, field.name)
        finite = not isinstance(value, float) or math.isfinite(value)
        check(finite, f"{who}{field.name} of {value}", "finite numbers", "change it")


@dataclass(frozen=True)
class Indicator:
    """A calcium indicator: kernel ``exp(-t / decay) - exp(-t / rise)`` scaled to a peak of 1."""

    name: str  # For example ``GCaMP6f``
    rise_s: float
    decay_s: float
    amplitude: float  # Peak dF/F of one event

    def __post_init__(self) -> None:
        _check_finite(self, f"indicator {self.name}: ")
        for field in ("rise_s", "decay_s", "amplitude"):
            value = getattr(self, field)
            check(value > 0, f"indicator {self.name}: {field} of {value}", "above 0", "raise it")
        check(
            self.rise_s < self.decay_s,
            f"indicator {self.name}: rise_s of {self.rise_s}",
            f"below decay_s, {self.decay_s}",
            "lower it",
        )


GCAMP6F = Indicator("GCaMP6f", rise_s=0.05, decay_s=0.4, amplitude=0.28)
GCAMP6S = Indicator("GCaMP6s", rise_s=0.15, decay_s=1.0, amplitude=0.2)


@dataclass(frozen=True)
class CellClass:
    """The dials of one class of neurons; each can be set without the others. Spreads are SDs of logarithms."""

    mean_rate_hz: float = 0.16  # Median over neurons of the mean event rate
    burstiness: float = 2.0  # Fano factor of the event count in one imaging frame (negative binomial; 1 is Poisson)
    stimulus_information: float = 0.48  # Share of the rate's variance that the stimulus explains, median of driven ones
    rate_variance: float = 20.0  # Variance of the rate over its squared mean (limits: depth 0.95, gain variance 4)
    noise_level: float = 0.033  # Median over neurons of the standard deviation of dF/F noise in one imaging frame
    indicator: Indicator = GCAMP6F
    rate_spread: float = 0.55
    noise_spread: float = 0.25
    untuned_fraction: float = 0.15  # Share of neurons that no stimulus drives
    simple_fraction: float = 0.3  # Share of simple (linear, rectified) cells among the rest
    drive_exponent: float = 2.0  # Power of the filters' energy: above 1 responses are rarer and stronger
    rf_cycles: float = 0.4  # Receptive-field sigma in cycles of the preferred grating; small means broad tuning
    running_share: float = 0.3  # Share of the stimulus-independent modulation that follows running
    shared_share: float = 0.55  # Share of the stimulus-independent modulation that follows the population
    running_sign: float = 0.5  # Mean sign of the running gain: 1 all faster, -1 all slower, 0 both
    suppressed_fraction: float = 0.05  # Share of neurons that stimuli silence
    affinity_spread: float = 0.4  # Of how much a kind of stimulus drives a neuron
    drift: float = 0.1  # How far tuning and rate wander in a day; see `poyo_ssl.observatory.cells.drift_population`
    neuropil_error: float = 0.04  # Standard deviation over neurons of the error of the neuropil correction
    saturation: float | None = 4.0  # Largest dF/F; None is a linear indicator

    def __post_init__(self) -> None:
        _check_finite(self)
        for name in ("mean_rate_hz", "rate_variance", "noise_level", "drive_exponent", "rf_cycles"):
            check(getattr(self, name) > 0, f"{name} of {getattr(self, name)}", "above 0", "raise it")
        for name in ("rate_spread", "noise_spread", "affinity_spread", "drift", "neuropil_error"):
            check(getattr(self, name) >= 0, f"{name} of {getattr(self, name)}", "0 or more", "raise it")
        check(self.burstiness >= 1, f"burstiness of {self.burstiness}", "1 or more", "raise it")
        for name in ("untuned_fraction", "suppressed_fraction", "simple_fraction", "running_share", "shared_share"):
            check(0 <= getattr(self, name) <= 1, f"{name} of {getattr(self, name)}", "0 to 1", "change it")
        check(
            self.running_share + self.shared_share <= 1,
            f"running_share + shared_share of {self.running_share + self.shared_share}",
            "1 at most",
            "lower one",
        )
        information = self.stimulus_information
        check(0 < information < 1, f"stimulus_information of {information}", "above 0, below 1", "change it")
        check(-1 <= self.running_sign <= 1, f"running_sign of {self.running_sign}", "-1 to 1", "change it")
        check(self.saturation is None or self.saturation > 0, f"saturation of {self.saturation}", "above 0", "raise it")


@dataclass(frozen=True)
class World:
    """A named setting of the dials for all 13 lines."""

    name: str  # As given to ``--world``
    description: str  # What is true in it, in one sentence
    classes: Mapping[str, CellClass]  # `CellClass` by Cre line
    # Whether mice whose reporter carries GCaMP6s have that indicator whatever their line's class says
    reporters_differ: bool = False

    def cell_class(self, line: str, reporter: str) -> CellClass:
        """Return the dials of a line in mice with a reporter."""
        slow = self.reporters_differ and ("GCaMP6s" in reporter or "GC6s" in reporter)
        return replace(self.classes[line], indicator=GCAMP6S) if slow else self.classes[line]


def _allen_like() -> dict[str, CellClass]:
    """Dials at which measures of the recordings match those of the real sets (docs/observatory.md)."""
    exc = CellClass()
    regular = replace(exc, drive_exponent=1.0, rate_spread=0.3, shared_share=0.3)
    inhibitory = replace(
        regular, burstiness=1.3, stimulus_information=0.35, rate_variance=0.6, untuned_fraction=0.25, noise_level=0.12
    )
    return {
        "Cux2-CreERT2": exc,
        "Emx1-IRES-Cre": replace(exc, mean_rate_hz=0.17),
        "Fezf2-CreER": replace(exc, mean_rate_hz=0.20, stimulus_information=0.36),
        "Nr5a1-Cre": replace(exc, mean_rate_hz=0.17, simple_fraction=0.5),
        "Ntsr1-Cre_GN220": replace(
            regular, mean_rate_hz=1.6, burstiness=3.0, stimulus_information=0.5, rate_variance=3.0, noise_level=0.04
        ),
        "Pvalb-IRES-Cre": replace(
            inhibitory,
            mean_rate_hz=4.0,
            burstiness=1.1,
            stimulus_information=0.5,
            rate_variance=0.25,
            rf_cycles=0.22,
            noise_level=0.15,
            indicator=GCAMP6S,
        ),
        "Rbp4-Cre_KL100": replace(exc, mean_rate_hz=0.19),
        "Rorb-IRES2-Cre": replace(exc, mean_rate_hz=0.18, simple_fraction=0.5),
        "Scnn1a-Tg3-Cre": replace(exc, mean_rate_hz=0.18, simple_fraction=0.5),
        "Slc17a7-IRES2-Cre": replace(exc, mean_rate_hz=0.17),
        "Sst-IRES-Cre": replace(inhibitory, mean_rate_hz=2.2, burstiness=1.15, running_sign=0.0),
        "Tlx3-Cre_PL56": replace(exc, mean_rate_hz=0.19),
        "Vip-IRES-Cre": replace(
            inhibitory,
            mean_rate_hz=1.4,
            burstiness=2.5,
            noise_level=0.08,
            running_share=0.6,
            running_sign=1.0,
            stimulus_information=0.25,
        ),
    }


def _regularity_helps() -> dict[str, CellClass]:
    """Regular lines also carry the stimulus best, sparse lines poorly."""
    made = {}
    for line, cell in _allen_like().items():
        if line in protocol.PUBLISHED_PREDICTABLE_LINES:
            made[line] = replace(cell, stimulus_information=0.8, rate_variance=1.0, untuned_fraction=0.05)
        else:
            made[line] = replace(cell, stimulus_information=0.15, untuned_fraction=0.3)
    return made


NULL_SIGNAL_TO_NOISE = 0.2
"""In `null`: stimulus-driven variance of a one-second count over the variance of its spiking noise.

Small enough that sparse lines reach it within the largest modulation depth.
"""


def _null() -> dict[str, CellClass]:
    """Give every line the same share of stimulus variance and the same signal-to-noise of its counts.

    A count over one second has stimulus variance (r^2 q v) and spiking noise (F r): r q v / F is held equal, so
    that lines differ in rate and burstiness and therefore in skewness, and in nothing that decoding needs.
    """
    made = {}
    for line, cell in _allen_like().items():
        information = 0.5
        # Bursts of frequent events would blur the difference in skewness, all that is left in this world.
        regular = line in protocol.PUBLISHED_PREDICTABLE_LINES
        burstiness = min(cell.burstiness, 1.5) if regular else cell.burstiness
        variance = NULL_SIGNAL_TO_NOISE * burstiness / (cell.mean_rate_hz * information)
        made[line] = replace(
            cell,
            burstiness=burstiness,
            stimulus_information=information,
            rate_variance=variance,
            untuned_fraction=0.15,
            simple_fraction=0.3,
            drive_exponent=1.5,
            rate_spread=0.4,
            shared_share=0.3,
            rf_cycles=0.4,
            noise_level=0.05,
            indicator=GCAMP6F,
        )
    return made


def _noise_confounded() -> dict[str, CellClass]:
    """All lines spike alike; the four lines look predictable because their fluorescence is noisy."""
    exc = CellClass()
    return {
        line: replace(exc, noise_level=0.45) if line in protocol.PUBLISHED_PREDICTABLE_LINES else exc
        for line in protocol.CRE_LINES
    }


def _worlds() -> Mapping[str, World]:
    described = {
        "allen_like": (
            "Regular inhibitory and corticothalamic lines, sparse excitatory lines, as measured in vivo.",
            _allen_like(),
        ),
        "regularity_helps": ("Low skewness goes with much stimulus information.", _regularity_helps()),
        "null": ("Skewness differs between lines but says nothing about the stimulus.", _null()),
        "noise_confounded": ("Low skewness is only fluorescence noise.", _noise_confounded()),
    }
    return MappingProxyType(
        {
            name: World(
                name, text, MappingProxyType(classes), reporters_differ=name in ("allen_like", "regularity_helps")
            )
            for name, (text, classes) in described.items()
        }
    )


WORLDS = _worlds()


def get_world(name: str) -> World:
    """Return a world by name."""
    if name not in WORLDS:
        raise ConfigError(f"no world '{name}'{suggest(name, WORLDS)}", allowed=", ".join(WORLDS), fix="choose one")
    return WORLDS[name]
