"""GGUF for tramontane: the container, the ggml block types, and what a file says of its model.

`checkpoint` opens files; `container` reads bytes; `blocks` and `dequantize` hold packed weights;
`families` and `tensor_names` translate names; `metadata` makes a configuration; `tokenizer` builds
the tokenizer that travels in the file.
"""
