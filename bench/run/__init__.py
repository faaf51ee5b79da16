"""Experiments: planning and running cells, meta-training, and the store of trained weights.

Offers ``experiment``, ``overrides``, ``runner``, ``workers``, ``places``, ``pace``, ``progress``, ``display`` and
``train`` to the command line. May import bench.harness, bench.nano and the rooms below them.
"""
