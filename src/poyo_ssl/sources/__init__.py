"""Files of others, turned into recordings."""

from poyo_ssl.sources.events import EventsConfig, prepare_events
from poyo_ssl.sources.gcamp import GCaMPConfig, fit_decay

__all__ = ["EventsConfig", "GCaMPConfig", "fit_decay", "prepare_events"]
