"""Fault: ``observe`` changes the working folder, so that relative paths lead elsewhere."""

import os
import tempfile

from bench import Document, Method


class ChangesFolder(Method):
    """Works in a folder of its own."""

    name = "changes_folder"
    paper = "none"

    def observe(self, document: Document) -> None:
        os.chdir(tempfile.gettempdir())
