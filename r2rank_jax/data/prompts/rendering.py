"""The process that renders a chat template: `python rendering.py FOLDER MESSAGE SECONDS BYTES` prints one line of JSON.

A template is a program from whoever made the model. Jinja's sandbox keeps it from the machine's files, but not from
using its time and memory: three nested loops take years, and "x" * 10**11 takes all memory. A thread with a timeout
could not stop such a template, because Python cannot interrupt one long operation such as 9**9**9. The kernel can, by
the limits of a process. The limit of time counts CPU seconds, so it does not depend on what else the machine does.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

LONGEST = 100_000
"""Most characters of a rendered template. A frame of this length fits into no prompt."""


def limit(seconds: int, memory_bytes: int) -> None:
    """Limit what this process may use beyond what it has used until now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # the first ends in SIGXCPU, which names the cause
    statm = Path("/proc/self/statm")
    if statm.is_file():  # Linux; elsewhere the memory stays unlimited
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))


def render(folder: str, message: str, seconds: int, memory_bytes: int) -> dict[str, str]:
    """Return what the template makes of a user's message as "text", or why there is none as "problem"."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # many packages read a tokenizer's files
        return {"problem": f"its tokenizer cannot be read ({_line(error)})"}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return {"problem": f"it is a list of {len(template)} named templates ({', '.join(map(str, template))})"}
    if not isinstance(template, str):
        return {"problem": f"it is {type(template).__name__}, not text"}
    limit(seconds, memory_bytes)
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3: the rationale is the answer itself; other templates ignore this argument
        )
        text.encode()
    except MemoryError:
        return {"problem": f"rendering it takes more than {memory_bytes >> 20} MiB of memory"}
    except Exception as error:  # a template can raise anything
        return {"problem": f"it raises {_line(error)}"}
    if len(text) > LONGEST:
        return {"problem": f"it renders {len(text):,} characters, more than {LONGEST:,}"}
    return {"text": text}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    print(json.dumps(render(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
