"""A synthetic Llama in OpenVINO's own format, as its exporter lays one out: stateful, weights of
4 bits in groups of 128, symmetric (embedding and head of 8 bits), or all of 8 bits, one scale and
zero point a row. Needs an interpreter with openvino.

Usage: openvino_model.py FOLDER BITS SHAPE, the shape a JSON object with Hugging Face names.
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset6
from openvino import opset13 as op

GROUP = 128
EPS = 1e-5
ROPE_BASE = 10000.0


def numbers(*values: int) -> ov.Node:
    return op.constant(np.array(values, np.int64))


class Llama:
    """Builds the graph.

    Args:
        shape: as `synthetic.Shape` names its sizes.
        bits: 4 or 8, of most weights.
    """

    def __init__(self, shape: dict, bits: int) -> None:
        self._shape = shape
        self._bits = bits
        self._rng = np.random.default_rng(0)
        self._sinks: list[ov.Node] = []
        self._codes: list[np.ndarray] = []  # constants of 4 bits point into these

    def model(self) -> ov.Model:
        s = self._shape
        ids = op.parameter([-1, -1], np.int64, name="input_ids")
        mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        positions = op.parameter([-1, -1], np.int64, name="position_ids")
        beams = op.parameter([-1], np.int32, name="beam_idx")
        inputs = [ids, mask, positions, beams]
        for parameter in inputs:
            parameter.output(0).set_names({parameter.get_friendly_name()})
        axis = op.constant(np.int64(0))
        self._beams, self._axis = beams, axis
        size = op.shape_of(ids)
        self._batch = op.gather(size, numbers(0), axis)
        self._mask = self._visible(op.gather(size, numbers(1), axis), mask)
        self._cos, self._sin = self._rotation(positions)

        embedding = self._matrix(s["vocab_size"], s["hidden_size"], 8)
        hidden = op.gather(embedding, op.convert(ids, "i32"), axis)
        for i in range(s["num_hidden_layers"]):
            hidden = op.add(hidden, self._attention(i, self._norm(hidden)))
            hidden = op.add(hidden, self._mlp(self._norm(hidden)))
        logits = self._linear(self._norm(hidden), s["vocab_size"], s["hidden_size"], 8)
        result = op.result(logits)
        result.output(0).set_names({"logits"})
        return ov.Model([result], self._sinks, inputs, "llama")

    def _matrix(self, rows: int, columns: int, bits: int) -> ov.Node:
        """Random weights [rows, columns] of a deviation of ``columns ** -0.5``."""
        if bits == 4:
            shape = (rows, columns // GROUP, GROUP)
            codes = self._rng.integers(0, 256, rows * columns // 2, dtype=np.uint8)
            self._codes.append(codes)
            weights = op.constant(ov.Tensor(codes, ov.Shape(shape), ov.Type.i4))
            centred = op.convert(weights, "f16")
            scales = np.full((rows, columns // GROUP, 1), columns**-0.5 / 4.6, np.float16)
        else:
            codes = self._rng.integers(0, 256, (rows, columns), dtype=np.uint8)
            zero = op.convert(op.constant(np.full((rows, 1), 128, np.uint8)), "f16")
            centred = op.subtract(op.convert(op.constant(codes), "f16"), zero)
            scales = np.full((rows, 1), columns**-0.5 / 74, np.float16)
        scales *= self._rng.uniform(0.9, 1.1, scales.shape).astype(np.float16)
        weights = op.multiply(centred, op.constant(scales))
        if bits == 4:
            weights = op.reshape(weights, numbers(rows, columns), False)
        return op.convert(weights, "f32")

    def _linear(self, x: ov.Node, rows: int, columns: int, bits: int | None = None) -> ov.Node:
        return op.matmul(x, self._matrix(rows, columns, bits or self._bits), False, True)

    def _norm(self, x: ov.Node) -> ov.Node:
        mean = op.reduce_mean(op.power(x, op.constant(np.float32([[[2]]]))), numbers(-1), True)
        root = op.sqrt(op.add(mean, op.constant(np.float32([[[EPS]]]))))
        scaled = op.multiply(op.divide(op.constant(np.float32([[[1]]])), root), x)
        weight = self._rng.uniform(0.9, 1.1, (1, 1, self._shape["hidden_size"]))
        return op.multiply(scaled, op.constant(weight.astype(np.float32)))

    def _visible(self, tokens: ov.Node, mask: ov.Node) -> ov.Node:
        """What each new token must not see as minus infinity: [batch, 1, new, all]."""
        everything = op.gather(op.shape_of(mask), numbers(1), self._axis)
        one, zero = op.constant(np.int64(1)), op.constant(np.int64(0))
        end = op.squeeze(everything, numbers(0))
        begin = op.squeeze(op.subtract(everything, tokens), numbers(0))
        keys = op.range(zero, end, one, "i64")
        queries = op.unsqueeze(op.range(begin, end, one, "i64"), numbers(1))
        padded = op.unsqueeze(op.greater(mask, zero), numbers(1, 2))
        seen = op.logical_and(op.less_equal(keys, queries), padded)
        return op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-65504)))

    def _rotation(self, positions: ov.Node) -> tuple[ov.Node, ov.Node]:
        size = self._shape["head_dim"]
        inverse = ROPE_BASE ** -(np.arange(0, size, 2, dtype=np.float32) / size)
        places = op.convert(op.unsqueeze(positions, numbers(1)), "f32")
        wide = op.broadcast(
            op.constant(inverse.reshape(1, -1, 1).astype(np.float32)),
            op.concat([self._batch, numbers(1), numbers(1)], 0),
            broadcast_spec="BIDIRECTIONAL",
        )
        angles = op.transpose(op.matmul(wide, places, False, False), numbers(0, 2, 1))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), numbers(1)), op.unsqueeze(op.sin(both), numbers(1))

    def _rotate(self, x: ov.Node) -> ov.Node:
        half, end = self._shape["head_dim"] // 2, np.iinfo(np.int64).max
        first = op.slice(x, numbers(0), numbers(half), numbers(1), numbers(3))
        second = op.slice(x, numbers(half), numbers(end), numbers(1), numbers(3))
        minus = op.constant(np.full((1, 1, 1, 1), -1, np.float32))
        turned = op.concat([op.multiply(second, minus), first], -1)
        return op.add(op.multiply(x, self._cos), op.multiply(turned, self._sin))

    def _cached(self, name: str, new: ov.Node) -> ov.Node:
        """All keys or values of a layer, those of ``new`` last: [batch, heads, tokens, size]."""
        heads, size = self._shape["num_key_value_heads"], self._shape["head_dim"]
        none = op.concat([self._batch, numbers(heads, 0, size)], 0)
        start = op.broadcast(op.constant(np.float32(0)), none)
        past = opset6.read_value(start, name, ov.Type.f32, ov.PartialShape([-1, heads, -1, size]))
        every = op.concat([op.gather(past, self._beams, self._axis), new], 2)
        self._sinks.append(opset6.assign(every, name))
        return every

    def _repeated(self, x: ov.Node) -> ov.Node:
        """Keys or values once for each query head."""
        s = self._shape
        heads, size = s["num_key_value_heads"], s["head_dim"]
        group = s["num_attention_heads"] // heads
        if group == 1:
            return x
        shape = op.concat([self._batch, numbers(heads, group, 0, size)], 0)
        wide = op.broadcast(op.unsqueeze(x, numbers(2)), shape, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, numbers(0, heads * group, -1, size), True)

    def _attention(self, layer_idx: int, x: ov.Node) -> ov.Node:
        s = self._shape
        size, h = s["head_dim"], s["hidden_size"]

        def heads(count: int) -> ov.Node:
            parts = op.reshape(self._linear(x, count * size, h), numbers(0, 0, count, size), True)
            return op.transpose(parts, numbers(0, 2, 1, 3))

        q = self._rotate(heads(s["num_attention_heads"]))
        k, v = self._rotate(heads(s["num_key_value_heads"])), heads(s["num_key_value_heads"])
        name = f"past_key_values.{layer_idx}.{{0}}present.{layer_idx}.{{0}}"
        k, v = self._cached(name.format("key"), k), self._cached(name.format("value"), v)
        mixed = op.scaled_dot_product_attention(
            q, self._repeated(k), self._repeated(v), self._mask, causal=False
        )
        width = s["num_attention_heads"] * size
        flat = op.reshape(op.transpose(mixed, numbers(0, 2, 1, 3)), numbers(0, 0, width), True)
        return self._linear(flat, h, width)

    def _mlp(self, x: ov.Node) -> ov.Node:
        h, m = self._shape["hidden_size"], self._shape["intermediate_size"]
        gate = op.swish(self._linear(x, m, h))
        return self._linear(op.multiply(gate, self._linear(x, m, h)), h, m)


def main(folder: Path, bits: int, shape: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    llama = Llama(shape, bits)
    ov.save_model(llama.model(), folder / "openvino_model.xml", compress_to_fp16=False)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **shape}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
