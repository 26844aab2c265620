"""The networks of `onnxpress.testing` under one short name, and as files."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxpress.model.files import save
from onnxpress.testing import networks
from onnxpress.testing.networks import *  # noqa: F403
from onnxpress.testing.random_networks import random_nets as random_nets


def written(model: ir.Model, folder: Path, count: int = 48) -> tuple[str, str]:
    """Files of a network with one input, and of random samples with labels: for commands."""
    save(model, folder / "net.onnx")
    data = networks.samples(model, count, labels=True)
    batches = list(data.batches(count))
    inputs = {name: np.concatenate([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    np.savez(folder / "net.npz", **inputs, labels=np.array(data.labels))
    return str(folder / "net.onnx"), str(folder / "net.npz")
