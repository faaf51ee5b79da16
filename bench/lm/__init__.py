"""The base model.

Offers ``base_model`` (tokens, windows, exact log-probabilities, restoring), ``reading`` (the context of a segment),
``probe`` (what it can do), ``precision`` (16-bit passes over float32 weights), ``batch`` (rows that are read and
continued), ``coverage`` (what its tokenizer knows), ``checkpoint`` (finding and checking a model), ``pretrained`` (a
model fetched from a package) and ``adapters`` (a base and an adapter, merged). May import bench.data and the small
files.
"""
