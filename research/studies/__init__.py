"""Studies that can be repeated; each has a folder."""

from contextlib import suppress

from research.studies.interpretability.googlenet import torchvision_module

# transformers imports torchvision with any model, where it is installed: so this comes before all other modules.
with suppress(ImportError):
    torchvision_module()
