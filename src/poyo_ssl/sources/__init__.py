"""Files of others, turned into recordings.

`source` says what a source is, `convert` runs one; names are imported on first use, so that the processes of a parallel
conversion do not wait for what they do not need. (`convert` is the name of a module here; take the function from it.)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poyo_ssl.sources.base import Source
    from poyo_ssl.sources.events import EventsConfig, GCaMPConfig, prepare_events
    from poyo_ssl.sources.run import Outcome

_HOMES = {
    "EventsConfig": "events",
    "GCaMPConfig": "events",
    "Outcome": "run",
    "Source": "base",
    "prepare_events": "events",
}

__all__ = ["EventsConfig", "GCaMPConfig", "Outcome", "Source", "prepare_events"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'poyo_ssl.sources' has no attribute '{name}'")
    return getattr(import_module(f"poyo_ssl.sources.{_HOMES[name]}"), name)
