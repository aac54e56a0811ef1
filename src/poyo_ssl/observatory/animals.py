"""Who is imaged: the 13 Cre lines with their reporters, layers, depths and areas, containers and mice.

Counts, reporters, depths and areas are those published for the Allen Brain Observatory (container and session lists,
transgenic white paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

_VISUAL_AREAS = ("VISp", "VISl", "VISal", "VISpm", "VISam", "VISrl")
_AI93, _AI94 = "Ai93(TITL-GCaMP6f)", "Ai94(TITL-GCaMP6s)"
_AI148, _AI162 = "Ai148(TIT2L-GC6f-ICL-tTA2)", "Ai162(TIT2L-GC6s-ICL-tTA2)"
TWO_PART_REPORTERS = (_AI93, f"{_AI93}-hyg", _AI94)
"""Reporters whose mice carry Camk2a-tTA as well."""


@dataclass(frozen=True)
class LineFacts:
    """What is known of one Cre line in the Allen Brain Observatory.

    Attributes
    ----------
    cell_class : str
        ``excitatory`` or ``inhibitory``.
    layers : str
        Cortical layers.
    containers, mice : int
        Published numbers of experiment containers (three sessions each) and of mice.
    reporters : mapping
        Number of containers by reporter line; the first is the usual one.
    depths_um : tuple of int
        Imaging planes.
    num_units : tuple of int
        Fewest and most cells of a session. Our choice: of the order of the published total (63,251 cells in 456
        containers), few in inhibitory lines.
    areas : tuple of str
        Visual areas.
    """

    cell_class: str
    layers: str
    containers: int
    mice: int
    reporters: Mapping[str, int]
    depths_um: tuple[int, ...]
    num_units: tuple[int, int]
    areas: tuple[str, ...] = _VISUAL_AREAS

    @property
    def reporter(self) -> str:
        """The usual reporter line."""
        return next(iter(self.reporters))


LINE_FACTS: Mapping[str, LineFacts] = MappingProxyType(
    {
        "Cux2-CreERT2": LineFacts("excitatory", "2/3, 4", 76, 39, {_AI93: 76}, (175, 275), (140, 260)),
        "Emx1-IRES-Cre": LineFacts(
            "excitatory", "2/3, 4, 5", 41, 19, {_AI93: 38, f"{_AI93}-hyg": 3}, (175, 275, 375), (110, 240)
        ),
        "Fezf2-CreER": LineFacts("excitatory", "5", 9, 8, {_AI148: 9}, (375, 400), (40, 90)),
        "Nr5a1-Cre": LineFacts("excitatory", "4", 39, 23, {_AI93: 39}, (300, 325, 350), (50, 120)),
        "Ntsr1-Cre_GN220": LineFacts("excitatory", "6", 18, 10, {_AI148: 18}, (550, 575, 625), (50, 110)),
        "Pvalb-IRES-Cre": LineFacts(
            "inhibitory", "2/3, 4, 5", 21, 9, {_AI162: 21}, (175, 275, 375), (14, 34), ("VISp", "VISl")
        ),
        "Rbp4-Cre_KL100": LineFacts("excitatory", "5", 38, 23, {_AI93: 38}, (375,), (50, 110)),
        "Rorb-IRES2-Cre": LineFacts("excitatory", "4", 40, 24, {_AI93: 40}, (275,), (100, 200)),
        "Scnn1a-Tg3-Cre": LineFacts("excitatory", "4", 9, 7, {_AI93: 9}, (275, 350), (100, 200), ("VISp",)),
        "Slc17a7-IRES2-Cre": LineFacts(
            "excitatory", "2/3, 4, 5", 57, 33, {_AI93: 54, _AI94: 3}, (175, 275, 375), (120, 280)
        ),
        "Sst-IRES-Cre": LineFacts("inhibitory", "4, 5", 49, 30, {_AI148: 49}, (250, 275, 375), (14, 34)),
        "Tlx3-Cre_PL56": LineFacts("excitatory", "5", 9, 7, {_AI148: 9}, (375,), (60, 120)),
        "Vip-IRES-Cre": LineFacts("inhibitory", "2/3, 4", 50, 24, {_AI148: 50}, (175, 275), (14, 40)),
    }
)
"""The 13 lines."""


@dataclass(frozen=True)
class Container:
    """One field of view of one mouse, imaged in one or several sessions.

    Attributes
    ----------
    container_id, subject_id : str
        Identity of the field of view and of the mouse.
    cre_line, reporter_line : str
        Allen names.
    area : str
        Visual area.
    depth_um : int
        Imaging depth.
    sex : str
        Of the mouse.
    age_days : int
        Age of the mouse on the day of the container's first session.
    """

    container_id: str
    subject_id: str
    cre_line: str
    reporter_line: str
    area: str
    depth_um: int
    sex: str
    age_days: int


def draw_container(seed: int, number: int, line: str, place: int, of: int) -> Container:
    """Draw a container; the mice of a line have as many containers each as the Allen's.

    Parameters
    ----------
    seed : int
        Seed of the data folder.
    number : int
        Position of the container in the data folder.
    line : str
        Cre line.
    place, of : int
        Which of the folder's containers of this line it is, and how many there are.

    Examples
    --------
    >>> one, two = (draw_container(0, place, "Cux2-CreERT2", place, 76) for place in (0, 1))
    >>> one.subject_id == two.subject_id, one.container_id == two.container_id
    (True, False)
    """
    facts = LINE_FACTS[line]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, number)))
    mouse = place * facts.mice // facts.containers
    # Everything about the mouse comes from a generator of its own, which its other containers share.
    born = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, *line.encode(), mouse)))
    share = np.cumsum(list(facts.reporters.values())) / facts.containers
    reporter = list(facts.reporters)[int(np.searchsorted(share, (place + 0.5) / of))]
    return Container(
        container_id=f"container_{seed}_{number:03d}",
        subject_id=f"mouse_{seed}_{line.split('-')[0]}_{mouse:02d}",
        cre_line=line,
        reporter_line=reporter,
        area=str(rng.choice(facts.areas)),
        depth_um=int(rng.choice(facts.depths_um)),
        sex=str(born.choice(["male", "female"])),
        age_days=int(born.integers(80, 120)) + int(rng.integers(0, 20)),
    )
