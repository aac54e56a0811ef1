"""A source of small text files, for tests of the runner: each file says what reading it does."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from poyo_ssl.data.recording import Recording, RecordingMetadata
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.base import Source


@dataclass(frozen=True)
class ToySource(Source):
    scale: float = 1.0
    name = "toy"

    @classmethod
    def recognises(cls, path):
        return path.suffix == ".toy"

    def find(self, input):
        return sorted(input.glob("*.toy"))

    def read(self, path):
        text = path.read_text().strip()
        match text.split():
            case ["bad"]:
                raise RecordingError(f"{path.name} is bad", fix="mend it")
            case ["bug"]:
                raise KeyError("surprise")
            case ["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["interrupt"]:
                raise KeyboardInterrupt
        dff = self.scale * np.random.default_rng(len(text)).normal(size=(90, 3)).astype(np.float32)
        warnings = (f"warning of {path.name}",) if "warn" in text else ()
        return Recording(path.stem, dff, np.arange(90) / 30, RecordingMetadata("m"), warnings=warnings)

    def movies(self, path):
        level = 9 if "other movie" in path.read_text() else 7
        yield "natural_movie_one", np.full((5, 4, 6), level, np.uint8)


class _Dallier:
    """Takes its time to go away; exceptions in a destructor are swallowed, an exit by a signal too."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __del__(self):
        time.sleep(self.seconds)


def dally(seconds):
    """Spend most of the time in a destructor."""
    _Dallier(seconds)
    return seconds
