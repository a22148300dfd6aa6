"""GoogLeNet (Szegedy et al. 2015) as torchvision has it, for images of 32 x 32 pixels.

Changed: the first convolution has 3 x 3 kernels and stride 1 in the place of 7 x 7 and stride 2, so that 32 pixels are
divided by 16 and not by 32 in all; no auxiliary classifiers; `width` scales all channels. The rest is torchvision's.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

SCALES = (1.0, 0.5, 0.25, 0.125)  # that leave all channels of all branches whole numbers
MODULE = "torchvision.models.googlenet"  # its package has a function of the same name
FEATURES = 1024
STEM = 64
_SCHEMAS: list[torch.library.Library] = []  # kept, or the operators go


def googlenet(classes: int, width: float = 1.0) -> nn.Module:
    """Makes GoogLeNet with fresh weights.

    Args:
        classes: Number of classes.
        width: Factor of all channels, one of `SCALES`.

    Returns:
        A module from pixels, [B, 3, 32, 32], to logits, [B, classes].

    Raises:
        ValueError: For another width.
        ImportError: Without torchvision.
    """
    if width not in SCALES:
        raise ValueError(f"width must be one of {', '.join(map(str, SCALES))}, got {width}")
    module = torchvision_module()

    def scaled(channels: int) -> int:
        return round(channels * width)

    def conv(inputs: int, outputs: int, **options: Any) -> nn.Module:
        # The images' three channels stay; inside an inception block all numbers are scaled already.
        made: nn.Module = module.BasicConv2d(inputs if inputs == 3 else scaled(inputs), scaled(outputs), **options)
        return made

    def inception(*channels: int) -> nn.Module:
        made: nn.Module = module.Inception(*map(scaled, channels))
        return made

    network: nn.Module = module.GoogLeNet(
        classes, aux_logits=False, init_weights=False, blocks=[conv, inception, nn.Identity]
    )
    network.conv1 = module.BasicConv2d(3, scaled(STEM), kernel_size=3, stride=1, padding=1)
    network.fc = nn.Linear(scaled(FEATURES), classes)
    return network


def torchvision_module() -> ModuleType:
    """Imports torchvision's module of GoogLeNet.

    A wheel of torchvision that was built for another build of torch leaves its compiled operators out, and then fails
    at import because two of them have no schema. No network here calls them, so where that happens their schemas alone
    are declared.

    Raises:
        ImportError: Without torchvision.
    """
    try:
        return import_module(MODULE)
    except ModuleNotFoundError as error:
        raise ImportError(
            "GoogLeNet is torchvision's, which is not installed: pip install -e '.[interpretability]'"
        ) from error
    except RuntimeError as error:
        if "does not exist" not in str(error) or _SCHEMAS:
            raise
    _SCHEMAS.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
        _SCHEMAS[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module(MODULE)
