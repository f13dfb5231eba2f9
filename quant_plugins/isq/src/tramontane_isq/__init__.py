"""In-situ quantization for tramontane.

`types` knows the names of types; `policy` decides for each weight of a model; `imatrix` reads and
writes importance matrices; `calibration` collects them.
"""
