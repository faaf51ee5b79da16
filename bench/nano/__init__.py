"""Training of the embedded model.

Offers ``train`` to bench.run; ``config``, ``batches`` and ``card`` serve it. May import the small files only.
"""
