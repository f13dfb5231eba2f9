"""What each type of quantized weights costs: bits, bytes, speed, and distance from the plain model.

``python benchmarks/formats.py`` prints the table of ``docs/choosing_a_format.md``. Sizes and KL
divergence are those of the demo model, on stories that it has told itself: 40 to collect statistics
from, others to measure with. The plain model computes in float32 with the weights that each type
leaves, so that nothing but their error counts. Speed is that of decoding one sequence with a
synthetic Llama of 0.1 B parameters, through `Runner`; leave it out with ``--no-speed``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from run import SHAPES
from synthetic import gguf_model
from torch import Tensor

import tramontane_demo_model
from tramontane import Runner, Which
from tramontane.text.tokenizer import Tokenizer

DEMO = Path(tramontane_demo_model.__file__).parent / "model"
TYPES = (
    "Q2K", "AFQ2", "AFQ3", "Q3K", "MXFP4", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4K", "HQQ4", "AFQ4",
    "Q4_1", "Q5_0", "Q5K", "Q5_1", "AFQ6", "Q6K", "FP8", "F8Q8", "Q8_0", "HQQ8", "AFQ8",
)  # fmt: skip
WITH_STATISTICS = (
    "Q2K", "Q3K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4K", "Q4_1", "Q5_0", "Q5K", "Q5_1", "Q6K",
)  # fmt: skip
"""Types whose encoders heed an importance matrix."""

HELD_OUT_CHARACTERS = 3500  # about the demo model's context
DECODED = 64


def stories() -> list[str]:
    """What the demo model tells, always the same."""
    request = {"prompt": "Once upon a time", "max_tokens": 150, "n_choices": 16}
    with Runner(Which.Plain(str(DEMO)), seed=1) as runner:
        drawn = [runner.send_completion_request(request).choices for _ in range(3)]
    return [f"Once upon a time{choice.text}" for choices in drawn for choice in choices]


class Distance:
    """KL divergence from the plain demo model, in nats a token.

    Args:
        text: what is predicted, token by token.
    """

    def __init__(self, text: str) -> None:
        from transformers import LlamaForCausalLM

        self._ids = torch.tensor([Tokenizer.from_files(DEMO).encode(text)])
        self._model = LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
        self._plain = {n: p.detach().clone() for n, p in self._model.named_parameters()}
        self._expected = self._predicted()

    def of(self, model: torch.nn.Module) -> tuple[float, float]:
        """Divergence with the packed weights of ``model``, and bits a weight in its layers."""
        bits = 0.0
        for name, value in self._plain.items():
            self._model.get_parameter(name).data = value
        for name, module in model.named_modules():
            packed = getattr(module, "packed", None)
            if packed is not None:
                self._model.get_submodule(name).weight.data = packed.dequantize()
                if ".layers." in name:
                    bits = 8 * packed.nbytes / self._model.get_submodule(name).weight.numel()
        found = self._predicted()
        divergence = (self._expected.exp() * (self._expected - found)).sum(-1).mean()
        return float(divergence), bits

    def _predicted(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._model(self._ids).logits
        return logits.double().log_softmax(-1)


def quality(type_name: str, distance: Distance, text: Path | None) -> dict[str, float]:
    which = Which.Plain(str(DEMO), calibration_file=None if text is None else str(text))
    with Runner(which, in_situ_quant=type_name) as runner:
        pipeline: Any = runner._models.peek(None)
        divergence, bits = distance.of(pipeline.live_weights._model)
        return {"kl": divergence, "bits": bits, "bytes": runner.stats()["weight_bytes"]}


def tokens_per_sec(file: Path, type_name: str | None) -> float:
    """The better of two rounds of decoding."""
    request = {
        "prompt": "the quick brown fox", "max_tokens": DECODED, "temperature": 0.0,
        "ignore_eos": True,
    }  # fmt: skip
    which = Which.GGUF(str(file.parent), file.name)
    with Runner(which, in_situ_quant=type_name) as runner:
        runner.send_completion_request({**request, "max_tokens": 2})
        times = [
            runner.send_completion_request(request).usage.total_completion_time_sec
            for _ in range(2)
        ]
    return (DECODED - 1) / min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--no-quality", dest="quality", action="store_false")
    parser.add_argument("--rounds", type=int, default=5, help="of decoding with each type")
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {name: {} for name in ("plain", *args.types)}
    with tempfile.TemporaryDirectory() as directory:
        if args.quality:
            told = stories()
            text = Path(directory) / "text.txt"
            text.write_text("\n".join(told[:40]), "utf-8")
            distance = Distance("\n".join(told[40:])[:HELD_OUT_CHARACTERS])
            for name, row in rows.items():
                if name != "plain":
                    row |= quality(name, distance, None)
                if name.upper() in WITH_STATISTICS:
                    row["kl_statistics"] = quality(name, distance, text)["kl"]
                print(name, row, file=sys.stderr, flush=True)
        if args.speed:
            file = gguf_model(Path(directory) / "model.gguf", SHAPES["small"], "bf16")
            # In turn and the best of all: what else the machine does only makes a type slower.
            for name, row in list(rows.items()) * args.rounds:
                found = tokens_per_sec(file, None if name == "plain" else name)
                row["tok_per_sec"] = max(found, row.get("tok_per_sec", 0.0))
                print(f"{name} {found:.1f}", file=sys.stderr, flush=True)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "formats.json").write_text(json.dumps(rows, indent=1))
    print("| Type | Bits a weight | Size | Decode | KL divergence | with statistics |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [
            f"`{name}`",
            f"{row['bits']:.2f}" if "bits" in row else "",
            f"{row['bytes'] / 2**20:.2f} MiB" if "bytes" in row else "",
            f"{row['tok_per_sec']:.1f} tok/s" if "tok_per_sec" in row else "",
            f"{row['kl']:.4f}" if "kl" in row else "",
            f"{row['kl_statistics']:.4f}" if "kl_statistics" in row else "",
        ]
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
