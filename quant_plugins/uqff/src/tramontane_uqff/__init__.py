"""UQFF files for tramontane.

`checkpoint` opens them, `selection` finds them; `entries` reads generation 1, `blobs` and `order`
generation 0; `parts` makes weights of what they read; `writer` writes version 1.2 with the report
of `report`. `f8q8` is the one weight format that only UQFF has.
"""
