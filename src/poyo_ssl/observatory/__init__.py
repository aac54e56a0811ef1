"""The virtual observatory: recordings with stimuli, neurons and fluorescence whose truth is known.

Examples
--------
>>> import tempfile
>>> from poyo_ssl.data.recording import Recording
>>> paths = generate_observatory(tempfile.mkdtemp(), world="null", size="tiny", seed=1)
>>> recording = Recording.open(paths[0])
>>> recording.metadata.origin
'simulated (poyo-ssl observatory, world null, seed 1)'
"""

from poyo_ssl.observatory.generate import foreseen_bytes, generate_observatory
from poyo_ssl.observatory.movies import MovieSpec, movie_cuts
from poyo_ssl.observatory.sizes import SIZES, ObservatorySize, get_size
from poyo_ssl.observatory.worlds import WORLDS, CellClass, Indicator, World, get_world

__all__ = [
    "SIZES",
    "WORLDS",
    "CellClass",
    "Indicator",
    "MovieSpec",
    "ObservatorySize",
    "World",
    "foreseen_bytes",
    "generate_observatory",
    "get_size",
    "get_world",
    "movie_cuts",
]
