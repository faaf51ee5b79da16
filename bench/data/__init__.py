"""Documents, questions and streams, read from the files of a dataset.

Offers ``documents`` (the types that flow through everything), ``recipe``, ``reader``, ``streams``, ``arms``,
``tagger``. May import the small files of bench only: errors, seeds, paths, files, machine, hashing.
"""
