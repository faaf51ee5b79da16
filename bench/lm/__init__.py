"""The base model.

Offers ``base_model`` (tokens, windows, exact log-probabilities, restoring), ``reading`` (the context of a segment),
``probe`` (what it can do), ``precision`` (16-bit passes over float32 weights), ``batch`` (rows that are read and
continued), ``coverage`` (what its tokenizer knows) and ``checkpoint`` (finding and checking a model). May import
bench.data and the small files.
"""
