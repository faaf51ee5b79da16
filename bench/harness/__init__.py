"""The one loop of every experiment: score, observe, answer.

Offers ``loop``, ``ledger`` (costs of each phase) and ``token_notes`` (token weights). May import bench.records,
bench.answering and the rooms below them.
"""
