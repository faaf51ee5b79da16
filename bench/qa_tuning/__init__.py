"""Question-answering tuning of a base.

Offers ``tune`` to the command line; ``recipe``, ``packing``, ``train`` and ``card`` serve it. May import the small
files, ``data``, ``lm``, ``contract`` and ``answering``.
"""
