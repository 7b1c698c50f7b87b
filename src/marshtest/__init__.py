"""marshtest: does an unlearning algorithm really remove the training data it was asked to remove?

The public names stand in `__init__.pyi`, once. Each is imported when it is first asked for, so that
`import marshtest` and commands that only read rows need not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
