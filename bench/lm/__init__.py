"""The base model.

Offers ``base_model`` (tokens, windows, exact log-probabilities, restoring), ``reading`` (the context of a segment) and
``checkpoint`` (finding and checking a model). May import bench.data and the small files.
"""
