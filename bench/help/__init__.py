"""Help on the command line.

Offers ``describe``, ``doctor`` and ``skeleton``. May import every other room of bench.
"""
