"""The contract of a method.

Offers ``method`` (hooks), ``config``, ``gradient``, ``meta_training`` and ``registry``; authors import most of it from
``bench``. May import bench.lm, bench.data and the small files.
"""
