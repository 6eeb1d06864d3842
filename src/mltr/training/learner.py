"""A network that learns, and all that changes its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mltr.machine.sharding import load_optimizer, placed_like, shard
from mltr.network.backbones import TimmBackbone, recompute_activations
from mltr.training.growth import growth_for
from mltr.training.optim import AveragedModel, make_optimizer
from mltr.training.run import Run
from mltr.weights.pretrained import TIMM


class Learner:
    """A network on its device, in whole or divided, with its optimiser and averaged weights.

    `plain` is the network itself, `model` the same as several processes train it, and `forward`
    that, compiled where the recipe says so. `whole` is `plain`, too, or where its weights are
    divided, what they are put together in by `load_weights`.
    """

    def __init__(self, network: Any, run: Run) -> None:
        settings, processes, device = run.config.train, run.processes, run.device
        self.device = device
        self.is_divided = settings.sharding == "fsdp" and processes.count > 1
        if processes.count > 1 and device.type == "cuda":  # torch has none for CPUs
            network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        # A divided one has no memory of its own before the end.
        self.whole = copy.deepcopy(network).to("meta") if self.is_divided else network
        if settings.grad_checkpointing:
            recompute_activations(network)
        first = 0 if settings.freeze == "backbone" else settings.min_size
        self.growth = growth_for(network, first, run.preprocess.image_size)
        network.to(device)
        if self.is_divided:
            shard(network, processes.count, device)
        elif run.config.model.name.startswith(TIMM):
            network.to(memory_format=torch.channels_last)  # for convolutions; others don't mind
        self.plain = self.model = network
        self.average = AveragedModel(network, settings.ema_decay) if settings.ema_decay else None
        self.optimizer = make_optimizer(network, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "fp16")
        if processes.count > 1 and not self.is_divided:
            self.model = DistributedDataParallel(
                network,
                [device] if device.type == "cuda" else None,
                # Under another head, some backbones have parts of their own that nothing uses.
                find_unused_parameters=any(isinstance(m, TimmBackbone) for m in network.modules()),
            )
        self.forward = torch.compile(self.model) if settings.compile else self.model

    @property
    def parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(p.numel() for p in self.plain.parameters())

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which processes keep their gradients to themselves."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if wrapped else nullcontext()

    def candidates(self) -> list[dict[str, Tensor]]:
        """Return the weights that may be the best: those of the last step, then the average."""
        last = self.plain.state_dict()
        return [last] if self.average is None else [last, self.average.weights]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        assert self.average is not None
        last = {name: value.clone() for name, value in self.plain.state_dict().items()}
        self.plain.load_state_dict(self.average.weights)
        yield
        self.plain.load_state_dict(last)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights that are not divided, into `plain` and into `whole`."""
        self.plain.load_state_dict(placed_like(weights, self.plain.state_dict()))
        if self.is_divided:
            self.whole.load_state_dict(weights, assign=True)

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint needs, for `load_state`."""
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights if self.average else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was called."""
        templates = self.plain.state_dict()
        self.plain.load_state_dict(placed_like(state["model"], templates))
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            average = placed_like(state["average"], templates)
            self.average.weights = {name: v.to(self.device) for name, v in average.items()}
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
