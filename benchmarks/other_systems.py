"""The systems that `others.py` measures: the same LSTM built in each, from the same weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lstm_freeze import BiLSTM


class Weights(NamedTuple):
    """One direction of one layer: (I, 4H), (H, 4H) and the sum of both biases (4H,)."""

    ih: np.ndarray
    hh: np.ndarray
    bias: np.ndarray


@dataclass
class Side:
    """A system's version, the calls it offers by mode, and its output (T, B, 2H)."""

    version: str
    calls: Mapping[str, Callable[[], Any]]
    output: Callable[[], np.ndarray]

    def timed(self, mode: str) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self.calls[mode]()
        return time.perf_counter() - start


def weights_of(lstm: nn.LSTM | BiLSTM) -> list[list[Weights]]:
    """Layers, and in each the forward and the reverse direction; gates in torch's order."""
    return [
        [
            Weights(
                *(getattr(lstm, f"weight_{kind}_l{layer}{end}").detach().numpy().T.copy()
                  for kind in ("ih", "hh")),
                sum(getattr(lstm, f"bias_{kind}_l{layer}{end}").detach().numpy()
                    for kind in ("ih", "hh")),
            )
            for end in ("", "_reverse")
        ]
        for layer in range(lstm.num_layers)
    ]  # fmt: skip


def cotangent_of(lstm: nn.LSTM, x: np.ndarray) -> np.ndarray:
    """The gradient that flows into the output in a training step."""
    draw = np.random.default_rng(3)
    return draw.standard_normal((*x.shape[:2], 2 * lstm.hidden_size), dtype=np.float32)


def in_torch(module: nn.LSTM | BiLSTM, lstm: nn.LSTM, x: np.ndarray) -> Side:
    """Either of the two modules of torch."""
    data, cotangent = torch.from_numpy(x), torch.from_numpy(cotangent_of(lstm, x))

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return module(data)[0]

    def step() -> None:
        module.zero_grad(set_to_none=True)
        module(data)[0].backward(cotangent)

    calls = {"forward": forward, "training step": step}
    return Side(torch.__version__, calls, lambda: forward().numpy())


def in_keras(lstm: nn.LSTM, bilstm: BiLSTM, x: np.ndarray, threads: int) -> Side:
    """Keras on TensorFlow, as a compiled function."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    T, B, I = x.shape
    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(lstm.hidden_size, return_sequences=True))
        for _ in range(lstm.num_layers)
    ]
    model = keras.Sequential([keras.layers.Input((T, I), batch_size=B), *layers])
    for layer, directions in zip(layers, weights_of(lstm), strict=True):
        layer.set_weights([array for weights in directions for array in weights])
    data = tf.constant(x.swapaxes(0, 1).copy())
    cotangent = tf.constant(cotangent_of(lstm, x).swapaxes(0, 1).copy())
    forward = tf.function(lambda: model(data, training=False))

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(data, training=True) * cotangent)
        return tape.gradient(loss, model.trainable_variables)

    calls = {
        "forward": lambda: forward().numpy(),
        "training step": lambda: [g.numpy() for g in step()],
    }
    version = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return Side(version, calls, lambda: forward().numpy().swapaxes(0, 1))


def in_jax(lstm: nn.LSTM, bilstm: BiLSTM, x: np.ndarray, threads: int) -> Side:
    """JAX: a scan over time, compiled."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    def direction(w: Any, rows: Any, reverse: bool) -> Any:
        projected = rows @ w[0] + w[2]
        zeros = jnp.zeros((rows.shape[1], w[1].shape[0]))

        def cell(carry: Any, gates: Any) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(gates + h @ w[1], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return jax.lax.scan(cell, (zeros, zeros), projected, reverse=reverse)[1]

    def run(weights: Any, rows: Any) -> Any:
        for ahead, back in weights:
            rows = jnp.concatenate([direction(ahead, rows, False), direction(back, rows, True)], -1)
        return rows

    weights = jax.tree.map(jnp.asarray, [[tuple(w) for w in layer] for layer in weights_of(lstm)])
    data, cotangent = jnp.asarray(x), jnp.asarray(cotangent_of(lstm, x))
    forward = jax.jit(run)
    gradients = jax.jit(jax.grad(lambda w, rows: jnp.vdot(run(w, rows), cotangent)))
    calls = {
        "forward": lambda: forward(weights, data).block_until_ready(),
        "training step": lambda: jax.block_until_ready(gradients(weights, data)),
    }
    return Side(f"JAX {jax.__version__}", calls, lambda: np.asarray(forward(weights, data)))


def _exported(bilstm: BiLSTM, x: np.ndarray, path: str) -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = bilstm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.lstm(x)[0]
            return output

    module = Output().eval()
    torch.onnx.export(module, (torch.from_numpy(x),), path, dynamo=True, verbose=False)


def in_onnxruntime(lstm: nn.LSTM, bilstm: BiLSTM, x: np.ndarray, threads: int) -> Side:
    """ONNX Runtime on BiLSTM's own export."""
    import tempfile

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        _exported(bilstm, x, f"{folder}/lstm.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/lstm.onnx", options)
    (name,) = (given.name for given in session.get_inputs())

    def forward() -> np.ndarray:
        found: np.ndarray = session.run(None, {name: x})[0]
        return found

    return Side(f"ONNX Runtime {onnxruntime.__version__}", {"forward": forward}, forward)


def in_openvino(lstm: nn.LSTM, bilstm: BiLSTM, x: np.ndarray, threads: int) -> Side:
    """OpenVINO on BiLSTM's own ONNX export, in float32."""
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        _exported(bilstm, x, f"{folder}/lstm.onnx")
        model = openvino.Core().read_model(f"{folder}/lstm.onnx")
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model, "CPU", settings)

    def forward() -> np.ndarray:
        found: np.ndarray = compiled([x])[0]
        return found

    version = openvino.__version__.split("-")[0]
    return Side(f"OpenVINO {version}", {"forward": forward}, lambda: np.array(forward()))


Maker = Callable[[nn.LSTM, BiLSTM, np.ndarray, int], Side]
SYSTEMS: dict[str, Maker] = {
    "nn.LSTM": lambda lstm, bilstm, x, threads: in_torch(lstm, lstm, x),
    "BiLSTM": lambda lstm, bilstm, x, threads: in_torch(bilstm, lstm, x),
    "Keras on TensorFlow": in_keras,
    "JAX": in_jax,
    "ONNX Runtime": in_onnxruntime,
    "OpenVINO": in_openvino,
}
NEEDS: dict[str, Sequence[str]] = {
    "nn.LSTM": (),
    "BiLSTM": (),
    "Keras on TensorFlow": ("keras", "tensorflow"),
    "JAX": ("jax",),
    "ONNX Runtime": ("onnxruntime", "onnxscript"),
    "OpenVINO": ("openvino", "onnxscript"),
}
