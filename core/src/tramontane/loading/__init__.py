"""From a model id to a model that is ready: source, format, config, architecture, weights.

`tramontane.loading.loader` walks that road; every other module here is one station of it.
"""
