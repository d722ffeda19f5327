# SPDX-License-Identifier: Apache-2.0
"""The code of docs/python.md, block by block, against a real agent."""

import contextlib
import io
import os
import pathlib
import re
from unittest import mock

from fixture import TestCase

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "python.md"


class Docs(TestCase):
    def test_python_page(self):
        names = {"__name__": "docs"}
        blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
        said = io.StringIO()
        with mock.patch.dict(os.environ, KVTIER_SOCKET=self.agent.socket), \
                contextlib.redirect_stdout(said):
            os.environ.pop("KVTIER_CONTROL", None)
            for i, block in enumerate(blocks):
                exec(compile(block, f"{PAGE.name}, block {i + 1}", "exec"), names)
        for line in ("4 of 4 chunks are held", "request 1 has a hit of 0 chunks", "4 chunks stay",
                     "4 chunks would go"):
            self.assertIn(line, said.getvalue())
