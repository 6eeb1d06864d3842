"""Features of photos, by the same path as predictions: an embedder is a predictor of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mltr.data.preprocess import Pixels
from mltr.errors import MltrError, UsageError
from mltr.network.features import backbone_sum, compute_features, features_and_logits
from mltr.predict.predictor import EXPORTED, Floats, Prediction, Predictor, choose_device
from mltr.weights.bundle import Bundle, TorchNetwork, load_bundle
from mltr.weights.metadata import holds_onnx, to_probs

PROJECTED = 128  #: dimensions of the features that a `Scorer` returns


@dataclass(frozen=True, eq=False)
class FeatureNetwork(TorchNetwork):
    """A network that returns what its own classifier sees: float32 [B, D]."""

    def __call__(self, images: Floats) -> Floats:
        """Return the pooled features of preprocessed images float32 [B, 3, S, S]."""
        with torch.inference_mode():
            _, pooled = compute_features(self.model, torch.from_numpy(images).to(self.device))
            found: Floats = pooled.float().cpu().numpy()
        return found

    @property
    def fingerprint(self) -> str:
        """Checksum of the backbone: another head doesn't change its features."""
        return backbone_sum(self.model).hex()


@dataclass(eq=False)
class Embedder(Predictor):
    """A predictor whose `Prediction.probs` are features [D]; its classes are their numbers."""

    def predict_batch(self, pixels: Pixels) -> list[Prediction]:
        """Return the features of images uint8 [B, S, S, 3]; raises `MltrError` for NaN."""
        features = self.logits(pixels)
        if not np.isfinite(features).all():
            raise MltrError(
                "the network's features are NaN or infinite: its weights or the preprocessing in "
                "its bundle are damaged"
            )
        return [self.to_prediction(vector) for vector in features]


def as_embedder(
    bundle: Bundle, device: torch.device | None = None, batch_size: int = 32
) -> Embedder:
    """Return the backbone of a loaded bundle, ready to use; its head plays no part."""
    network = FeatureNetwork(bundle.model, device or torch.device("cpu"))
    side = bundle.preprocess.image_size
    size = network(np.zeros((1, 3, side, side), np.float32)).shape[1]
    none = np.full(size, np.inf, np.float32)  # no feature counts as a label
    return Embedder(network, tuple(map(str, range(size))), bundle.preprocess, none, batch_size)


def load_embedder(path: str | Path, device: str | None = None, batch_size: int = 32) -> Embedder:
    """Load the backbone of a run or a bundle; raises as `open_bundle` does."""
    return as_embedder(*open_bundle(path, device), batch_size)


def open_bundle(path: str | Path, device: str | None = None) -> tuple[Bundle, torch.device]:
    """Load a bundle whose features can be had, on a device, by default an accelerator.

    Raises `UsageError` for an exported network, and `MltrError` as `load_bundle` does.
    """
    if str(path).endswith(EXPORTED) or holds_onnx(path):
        raise UsageError(f"{path}: an ONNX or exported network returns no features: use its run")
    chosen = choose_device(device)
    return load_bundle(path, chosen), chosen


@dataclass(frozen=True, eq=False)
class ScoringNetwork(TorchNetwork):
    """A network that returns features, projected to few dimensions, and then its logits."""

    directions: torch.Tensor  #: [D, P]

    def __call__(self, images: Floats) -> Floats:
        """Return float32 [B, P + K] of preprocessed images float32 [B, 3, S, S]."""
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device)
            pooled, logits = features_and_logits(self.model, batch)
            both = torch.cat([pooled.float() @ self.directions.to(self.device), logits.float()], 1)
            found: Floats = both.cpu().numpy()
        return found


@dataclass(eq=False)
class Scorer(Predictor):
    """A predictor whose `Prediction.probs` are `width` projected features and K probabilities.

    A random projection keeps distances (Johnson-Lindenstrauss) and makes features small enough to
    hold those of a whole library.
    """

    width: int = PROJECTED

    def predict_batch(self, pixels: Pixels) -> list[Prediction]:
        """Return features and probabilities of images uint8 [B, S, S, 3]."""
        found = self.logits(pixels)
        found[:, self.width :] = to_probs(found[:, self.width :], self.calibration)
        return [self.to_prediction(row) for row in found]


def as_scorer(bundle: Bundle, device: torch.device, batch_size: int = 32) -> Scorer:
    """Return a loaded bundle, ready to tell what it makes of images and how alike they are."""
    size = len(as_embedder(bundle, device).classes)
    directions = torch.from_numpy(
        np.random.default_rng(0).normal(0, PROJECTED**-0.5, (size, PROJECTED)).astype(np.float32)
    )
    numbers = tuple(map(str, range(PROJECTED + len(bundle.classes))))
    none = np.full(len(numbers), np.inf, np.float32)
    network = ScoringNetwork(bundle.model, device, directions)
    return Scorer(network, numbers, bundle.preprocess, none, batch_size, bundle.calibration)
