"""One round of llama.cpp on a GGUF file; run by an interpreter that has llama-cpp-python.

Usage: llama_cpp.py FILE PROMPT_TOKENS DECODED_TOKENS THREADS. Prints one line of JSON.
"""

import json
import sys
import time

import llama_cpp

file, prompt_tokens, decoded_tokens, threads = sys.argv[1], *map(int, sys.argv[2:])
begin = time.perf_counter()
model = llama_cpp.Llama(
    file,
    n_ctx=prompt_tokens + decoded_tokens + 8,
    n_batch=512,
    n_threads=threads,
    n_threads_batch=threads,
    verbose=False,
)
load = time.perf_counter() - begin
prompt = [(7 * i) % 250 for i in range(prompt_tokens)]
model.eval(prompt[:8])  # warm
model.reset()
begin = time.perf_counter()
model.eval(prompt)
prefill = time.perf_counter() - begin
begin = time.perf_counter()
for i in range(decoded_tokens):
    model.eval([i % 250])
decode = time.perf_counter() - begin
print(
    json.dumps(
        {
            "load_secs": load,
            "prefill_tok_per_sec": prompt_tokens / prefill,
            "decode_tok_per_sec": decoded_tokens / decode,
        }
    )
)
