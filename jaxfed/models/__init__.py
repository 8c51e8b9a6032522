"""Flax networks, a convolution that stays fast when clients are vectorised, and plain functions of any module."""

from jaxfed.models._convolution import conv_general_dilated
from jaxfed.models._dense import MLP, NextCharacter
from jaxfed.models._functions import ApplyFn, cross_entropy, evaluator, functional
from jaxfed.models._language import LanguageModel
from jaxfed.models._lenet import LeNet
from jaxfed.models._pooling import max_pool, relu_max_pool
from jaxfed.models._resnet import ResNet18

__all__ = [
    "MLP",
    "ApplyFn",
    "LanguageModel",
    "LeNet",
    "NextCharacter",
    "ResNet18",
    "conv_general_dilated",
    "cross_entropy",
    "evaluator",
    "functional",
    "max_pool",
    "relu_max_pool",
]
