"""Legacy GGML files for tramontane: `container` reads them, `blocks` brings old blocks up to date,
`checkpoint` names what is inside."""
