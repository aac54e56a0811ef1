"""The commands, each a typed function; `poyo_ssl.cli` turns their arguments into flags and YAML.

Heavy libraries are imported inside the functions, so that ``poyo-ssl --help`` answers at once.
"""

from poyo_ssl.commands.allen import ALLEN_FILTERS, prepare_allen
from poyo_ssl.commands.archives import prepare_brainsets, prepare_nwb
from poyo_ssl.commands.doctor import doctor
from poyo_ssl.commands.evaluation import demo, evaluate, leaderboard, report
from poyo_ssl.commands.online import serve
from poyo_ssl.commands.prepare import (
    prepare_arrays,
    prepare_events,
    prepare_observatory,
    prepare_suite2p,
)
from poyo_ssl.commands.protocol import audit, split
from poyo_ssl.commands.training import finetune, pretrain, resume, select

__all__ = [
    "ALLEN_FILTERS",
    "audit",
    "demo",
    "doctor",
    "evaluate",
    "finetune",
    "leaderboard",
    "prepare_allen",
    "prepare_arrays",
    "prepare_brainsets",
    "prepare_events",
    "prepare_nwb",
    "prepare_observatory",
    "prepare_suite2p",
    "pretrain",
    "report",
    "resume",
    "select",
    "serve",
    "split",
]
