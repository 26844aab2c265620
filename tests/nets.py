"""The networks of `onnxpress.testing` under one short name."""

from onnxpress.testing.networks import *  # noqa: F403
from onnxpress.testing.random_networks import random_nets as random_nets
