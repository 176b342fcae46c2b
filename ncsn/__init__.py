"""Score-based generative models: noise schedule, score, objective, sampler.

The public names are those in `__init__.pyi`. They are resolved when they are first used, so that the theory needs torch
alone, and the commands start at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
