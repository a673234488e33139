"""Models: settings that build a network for a data set; pixels in [0, 1] go in, logits come out."""

from ironrank.models.base import Model
from ironrank.models.given import Given
from ironrank.models.lenet5 import LeNet5
from ironrank.models.normalize import Normalize
from ironrank.models.preact import PreActResNet18
from ironrank.models.resnet import ResNet18, ResNet20
from ironrank.models.size import count, width_for
from ironrank.models.vgg import VGG16
from ironrank.models.wide_resnet import WideResNet

MODELS: dict[str, type[Model]] = {
    m.name: m for m in (LeNet5, VGG16, WideResNet, ResNet18, PreActResNet18, ResNet20, Given)
}

__all__ = [
    "MODELS",
    "Given",
    "LeNet5",
    "Model",
    "Normalize",
    "PreActResNet18",
    "ResNet18",
    "ResNet20",
    "VGG16",
    "WideResNet",
    "count",
    "width_for",
]
