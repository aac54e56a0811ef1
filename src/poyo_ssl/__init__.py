"""poyo-ssl: decode what a mouse saw from two-photon calcium imaging, and know whether the decoding is real.

Everything the commands do is a call. The public names are listed in ``__init__.pyi``; each is imported on first use, so
that ``import poyo_ssl`` does not wait for torch.

>>> import poyo_ssl
>>> poyo_ssl.FinetuneConfig(task="frames").frame_height
64
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
