"""Answers to questions and their scores, the same for every method.

Offers ``prompts`` (the format), ``prompt_batch``, ``answers``, ``decoding``, ``retune`` and ``retuning``,
``metrics`` and ``hf_metrics``. May import bench.contract and the rooms below it.
"""
