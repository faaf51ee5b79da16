"""Adaptation methods: one file each. The registry finds them by reading the files; nothing is imported here."""
