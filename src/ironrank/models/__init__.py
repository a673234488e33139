"""Models: settings that build a network for a data set; pixels in [0, 1] go in, logits come out."""

from ironrank.models.base import Model
from ironrank.models.lenet5 import LeNet5
from ironrank.models.normalize import Normalize
from ironrank.models.resnet import ResNet18
from ironrank.models.vgg import VGG16
from ironrank.models.wide_resnet import WideResNet

MODELS: dict[str, type[Model]] = {m.name: m for m in (LeNet5, VGG16, WideResNet, ResNet18)}

__all__ = ["MODELS", "Model", "Normalize", "LeNet5", "ResNet18", "VGG16", "WideResNet"]
