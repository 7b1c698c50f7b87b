"""The attacks; their names are in `table`. What a report must know of them is read without torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
