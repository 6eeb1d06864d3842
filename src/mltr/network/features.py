"""What a network makes of images before its head, and what tells one backbone from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mltr.errors import UsageError
from mltr.network.backbones import TimmBackbone, to_maps
from mltr.network.model import MlTr


def head_of(model: Any) -> tuple[nn.Module, ...]:
    """Return the head of a network; of a timm network alone, the layers that classify."""
    if isinstance(model, MlTr | TimmBackbone):
        return (model.head,)
    layers = model.get_classifier()
    found = list(layers) if isinstance(layers, tuple | list) else [layers]
    # Some networks, such as VOLO, classify by more layers than they say.
    parts, told = dict(model.named_modules()), classifier_of(model)
    if len(told) > 1:
        found += [parts[name] for name in told if name in parts and parts[name] not in found]
    return tuple(found)


def classifier_of(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that a timm network classifies by."""
    names = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def head_names(model: nn.Module) -> set[str]:
    """Return which entries of a network's state are those of its head."""
    heads = head_of(model)
    starts = tuple(f"{key}." for key, module in model.named_modules() if module in heads)
    return {key for key in model.state_dict() if key.startswith(starts)}


def class_axes(model: nn.Module) -> dict[str, int | None]:
    """Return the axis of the classes in each entry of a network's state that has one.

    None stands for entries that belong to the classes together, such as to a group of them.
    """
    heads, found = head_of(model), dict[str, int | None]()
    for place, module in model.named_modules():
        if module in heads:
            own = module.class_axes() if hasattr(module, "class_axes") else _last_layer(module)
            found |= {f"{place}.{name}": axis for name, axis in own.items()}
    return found


def _last_layer(classifier: nn.Module) -> dict[str, int | None]:
    """Return the entries of the layer of a timm classifier that has the classes, on its first axis.

    Those before it, of a head of several layers, have hidden channels there.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = [name for name, part in classifier.named_modules() if isinstance(part, kinds)]
    own = [name for name, _ in classifier.named_parameters()]
    return {name: 0 for name in own if layers and name.rpartition(".")[0] == layers[-1]}


def check_image_size(model: nn.Module, side: int, option: str) -> None:
    """Raise `UsageError`, naming the option, if a network doesn't take images of that side.

    Shapes alone are computed, where all of its operations can do without numbers.
    """
    model.eval()
    entries = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    alone = {id(tensor): tensor.to("meta") for _, tensor in entries}  # one for those that are tied
    try:
        with torch.no_grad():
            try:
                shapes = {name: alone[id(tensor)] for name, tensor in entries}
                functional_call(model, shapes, torch.empty(1, 3, side, side, device="meta"))
            except Exception:  # what an operation that needs numbers raises is its own affair
                model(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"{option} {side} doesn't suit this network: {reason}") from error
    finally:
        model.train()


def backbone_sum(network: nn.Module) -> bytes:
    """Return a hash of all weights but the head's, the same under any head."""
    digest = hashlib.sha256()
    head = head_names(network)
    for key, tensor in network.state_dict().items():
        if key not in head:
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{key.removeprefix('backbone.')} {values.dtype}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.digest()


def compute_features(network: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the final map [B, H, W, C], if there is one, and the pooled vector [B, D].

    The latter is what the network's own classifier sees, in float32.
    """
    return _pool(network, _backbone(network).forward_features(images))


def features_and_logits(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled vector [B, D] and the logits [B, K], by one pass through the backbone."""
    features = _backbone(network).forward_features(images)
    maps, pooled = _pool(network, features)
    own = maps if isinstance(network, TimmBackbone) else features
    return pooled, network.forward_head(own)


def _backbone(network: Any) -> Any:
    return network.backbone if isinstance(network, TimmBackbone) else network


def _pool(network: nn.Module, features: Tensor) -> tuple[Tensor | None, Tensor]:
    with torch.autocast(features.device.type, enabled=False):
        if isinstance(network, MlTr):
            return features, features.float().mean(dim=(1, 2))
        backbone = _backbone(network)
        try:
            maps = to_maps(backbone, features)
        except UsageError:
            maps = None
        return maps, backbone.forward_head(features.float(), pre_logits=True)
