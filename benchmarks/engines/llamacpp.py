"""llama.cpp on a GGUF file, as an engine of `run.py`; needs an interpreter with llama-cpp-python.

Usage: llamacpp.py FILE THREADS, then one JSON command a line on standard input.
"""

import random
import sys
import time
from functools import partial
from pathlib import Path

import llama_cpp
from worker import serve

FEATURES = {"avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512"}
UBATCH = 512
QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


def check_build() -> None:
    """Refuse a build without OpenMP, or without instructions that this processor has: its figures
    would say nothing of llama.cpp."""
    built = llama_cpp.llama_print_system_info().decode()
    wanted = {"OPENMP"}
    known = Path("/proc/cpuinfo")
    if known.exists():
        flags = set(known.read_text().split())
        wanted |= {name for flag, name in FEATURES.items() if flag in flags}
    lacking = [name for name in sorted(wanted) if f"{name} = 1" not in built]
    if lacking:
        sys.exit(
            f"this llama-cpp-python is built without {', '.join(lacking)} ({built}); reinstall it "
            "from source with CMAKE_ARGS='-DGGML_NATIVE=ON -DGGML_OPENMP=ON'"
        )


def load(file: str, threads: int) -> partial:
    llama_cpp.llama_log_set(QUIET, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(file.encode(), params)
    assert model, f"llama.cpp cannot load {file}"
    return partial(run, model, threads)


def run(model: object, threads: int, *, prompt: int, decode: int, sequences: int) -> dict:
    """``sequences`` prompts one after another, then all decoded together, no sampling."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = sequences * (prompt + decode + 16)
    params.n_batch, params.n_ubatch, params.n_seq_max = max(prompt, UBATCH), UBATCH, sequences
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(max(prompt, UBATCH), 0, 1)
    tokens = random.Random(0)

    def step(places: list[tuple[int, int]], logits: set[int]) -> None:
        batch.n_tokens = len(places)
        for i, (sequence, position) in enumerate(places):
            batch.token[i] = tokens.randrange(250)
            batch.pos[i], batch.seq_id[i][0], batch.n_seq_id[i] = position, sequence, 1
            batch.logits[i] = i in logits
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_get_logits_ith(context, max(logits))

    step([(0, 0)], {0})  # warm
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    begin = time.perf_counter()
    for s in range(sequences):
        step([(s, p) for p in range(prompt)], {prompt - 1})
    prefilled = time.perf_counter()
    for i in range(decode):
        step([(s, prompt + i) for s in range(sequences)], set(range(sequences)))
    done = time.perf_counter()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return {
        "prefill": sequences * prompt / (prefilled - begin),
        "decode": sequences * decode / (done - prefilled),
        "total": sequences * decode / (done - begin),
        "seconds": done - begin,
    }


check_build()
serve(load, version=f"llama-cpp-python {llama_cpp.__version__}")
