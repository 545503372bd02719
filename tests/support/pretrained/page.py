"""Runs the code that an exported model's page shows."""

import re

import pytest
import transformers

torch = pytest.importorskip("torch")


def run_page(folder, /, **names):
    """Run the code on an exported model's page and return its variables."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]  # type: ignore[index]
    names |= {"torch": torch, "tokenizer": transformers.AutoTokenizer.from_pretrained(folder)}
    exec(code, names)
    return names
