"""A minimal torch loop of the same mathematics: resident tensors, in-place `_foreach` updates, one set of weights.

No data loader, no model object per client, no `.item()`. Every function takes the parameters as one flat list.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = list[Tensor]
Logits = Callable[[Sequence[Tensor], Tensor], Tensor]
CLIP, DECAY, PROX, RADIUS, RATE = 10.0, 1e-3, 0.1, 0.1, 0.1


class TorchNetwork(NamedTuple):
    """Shapes of a network's parameters (biases and norms are one-dimensional), and its logits as a function of them."""

    shapes: list[tuple[int, ...]]
    logits: Logits


def mlp(sizes: Sequence[int] = (784, 200, 200, 10)) -> TorchNetwork:
    """Dense layers with relu between them."""
    shapes = [shape for a, b in zip(sizes[:-1], sizes[1:], strict=True) for shape in ((b, a), (b,))]
    return TorchNetwork(shapes, lambda p, x: _dense(p, x, F.relu))


def character(vocabulary: int, context: int, width: int = 16, hidden: int = 192) -> TorchNetwork:
    """An embedding and one hidden layer with tanh over the last characters."""
    dense = [(hidden, context * width), (hidden,), (vocabulary, hidden), (vocabulary,)]

    def logits(p: Sequence[Tensor], x: Tensor) -> Tensor:
        return _dense(p[1:], F.embedding(x, p[0]).flatten(1), torch.tanh)

    return TorchNetwork([(vocabulary, width), *dense], logits)


def lenet(channels: int = 1, side: int = 28) -> TorchNetwork:
    """conv 5×5 (64), pool, conv 5×5 (64), pool, dense 384, 192, 10."""
    flat = 64 * (((side - 4) // 2 - 4) // 2) ** 2
    conv = [(64, channels, 5, 5), (64,), (64, 64, 5, 5), (64,)]

    def logits(p: Sequence[Tensor], x: Tensor) -> Tensor:
        for layer in (0, 2):
            x = F.max_pool2d(F.relu(F.conv2d(x, p[layer], p[layer + 1])), 2)
        return _dense(p[4:], x.flatten(1), F.relu)

    return TorchNetwork([*conv, (384, flat), (384,), (192, 384), (192,), (10, 192), (10,)], logits)


def resnet18(classes: int = 10, groups: int = 2) -> TorchNetwork:
    """ResNet-18 with ImageNet's stem and GroupNorm; no biases in convolutions."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    blocks = [
        (a, b, 1 if b == a else 2)
        for a, b in zip([64, 64, 64, 128, 128, 256, 256, 512], [64, 64, 128, 128, 256, 256, 512, 512], strict=True)
    ]
    for a, b, stride in blocks:
        shapes += [(b, a, 3, 3), (b,), (b,), (b, b, 3, 3), (b,), (b,)]
        shapes += [(b, a, 1, 1), (b,), (b,)] if stride == 2 else []

    def logits(p: Sequence[Tensor], x: Tensor) -> Tensor:
        rest = iter(p)

        def conv(x: Tensor, stride: int, padding: int) -> Tensor:
            return F.group_norm(F.conv2d(x, next(rest), None, stride, padding), groups, next(rest), next(rest))

        x = F.max_pool2d(F.relu(conv(x, 2, 3)), 3, 2, 1)
        for _, _, stride in blocks:
            inner = conv(F.relu(conv(x, stride, 1)), 1, 1)
            x = F.relu(inner + (conv(x, 2, 0) if stride == 2 else x))
        return F.linear(x.mean((2, 3)), next(rest), next(rest))

    return TorchNetwork([*shapes, (classes, 512), (classes,)], logits)


def _dense(p: Sequence[Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    for layer in range(0, len(p) - 2, 2):
        x = activation(F.linear(x, p[layer], p[layer + 1]))
    return F.linear(x, p[-2], p[-1])


class Loop(NamedTuple):
    """One round of K steps for every client, over prepared batches [C, K, B, ...].

    Attributes:
        network: that is trained.
        weights: parameters of the current client, updated in place.
        start: xᵗ.
        inputs: of the batches.
        labels: of the batches.
    """

    network: TorchNetwork
    weights: Tensors
    start: Tensors
    inputs: Tensor
    labels: Tensor

    def gradient(self, client: int, step: int) -> Tensors:
        """∇Fᵢ at the current parameters."""
        logits = self.network.logits(self.weights, self.inputs[client, step])
        return list(torch.autograd.grad(F.cross_entropy(logits, self.labels[client, step]), self.weights))


def loop(network: TorchNetwork, start: Sequence[Tensor], inputs: Tensor, labels: Tensor, channels_last: bool) -> Loop:
    """Prepare a round; images [C, K, B, c, h, w] and kernels get the chosen memory format."""
    if channels_last and inputs.ndim == 6:
        inputs = inputs.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)
        start = [p.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p for p in start]
    weights = [p.clone().requires_grad_() for p in start]
    return Loop(network, weights, list(start), inputs, labels)


@torch.no_grad()
def fedavg(local: Loop) -> Tensors:
    """Clipping, weight decay, descent; return the mean of the clients' parameters."""
    mean = [torch.zeros_like(p) for p in local.start]
    clients, steps = local.labels.shape[:2]
    for client in range(clients):
        torch._foreach_copy_(local.weights, local.start)
        for step in range(steps):
            with torch.enable_grad():
                gradient = local.gradient(client, step)
            _descend(local.weights, gradient, DECAY)
        torch._foreach_add_(mean, local.weights, alpha=1 / clients)
    return mean


@torch.no_grad()
def fedspeed(local: Loop) -> Tensors:
    """FedSpeed in the variant "reference": normalised ascent, second gradient, duals added before clipping.

    Duals are zero at the start, as in the first round; return the mean of x_K plus the mean of h over N = C clients.
    """
    mean = [torch.zeros_like(p) for p in local.start]
    duals = [[torch.zeros_like(p) for p in local.start] for _ in range(len(local.labels))]
    clients, steps = local.labels.shape[:2]
    for client in range(clients):
        torch._foreach_copy_(local.weights, local.start)
        constant = torch._foreach_sub(duals[client], local.start)
        torch._foreach_mul_(constant, PROX)
        for step in range(steps):
            with torch.enable_grad():
                ascent = local.gradient(client, step)
            torch._foreach_mul_(ascent, RADIUS / (_norm(ascent) + 1e-7))
            torch._foreach_add_(local.weights, ascent)
            with torch.enable_grad():
                gradient = local.gradient(client, step)
            torch._foreach_sub_(local.weights, ascent)
            torch._foreach_add_(gradient, constant)
            _descend(local.weights, gradient, DECAY + PROX)
        torch._foreach_add_(duals[client], local.weights)
        torch._foreach_sub_(duals[client], local.start)
        torch._foreach_add_(mean, local.weights, alpha=1 / clients)
        torch._foreach_add_(mean, duals[client], alpha=1 / clients)
    return mean


def captured(play: Callable[[Loop], Tensors], local: Loop) -> Callable[[], Tensors]:
    """Return the same round on a GPU, with all steps of one client as one CUDA graph, replayed for every client.

    Raises:
        RuntimeError: the steps cannot be captured, or a replay gives another result than the loop.
    """
    one = local._replace(inputs=local.inputs[:1].clone(), labels=local.labels[:1].clone())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            play(one)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": CUDA calls of JAX's threads do not invalidate the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = play(one)

    @torch.no_grad()
    def replayed() -> Tensors:
        mean = [torch.zeros_like(p) for p in local.start]
        for client in range(len(local.labels)):
            one.inputs.copy_(local.inputs[client : client + 1])
            one.labels.copy_(local.labels[client : client + 1])
            graph.replay()
            torch._foreach_add_(mean, result, alpha=1 / len(local.labels))
        return mean

    expected, result = play(local), replayed()
    difference = _norm(torch._foreach_sub(result, expected)) / _norm(torch._foreach_sub(expected, local.start))
    if not difference < 0.1:
        raise RuntimeError(f"a replay is {difference.item():.2g} of the round's change away from the loop")
    return replayed


def _descend(weights: Tensors, gradient: Tensors, decay: float) -> None:
    torch._foreach_mul_(gradient, torch.clamp(CLIP / (_norm(gradient) + 1e-6), max=1.0))
    torch._foreach_add_(gradient, weights, alpha=decay)
    torch._foreach_add_(weights, gradient, alpha=-RATE)


def _norm(tensors: Tensors) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


ROUNDS = {"fedavg": fedavg, "fedspeed": fedspeed}
