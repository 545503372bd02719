"""The frame of a chat template: rendered in a process with limits, or refused in one line."""

import pytest

from r2rank_jax.data.prompts import frame
from r2rank_jax.data.prompts.chat import read_chat_tokenizer
from r2rank_jax.data.prompts.frame import Frame, render_frame
from r2rank_jax.errors import DataError
from tests.support.chat_tokenizer import write_tokenizer

SHOW = "{% for m in messages %}{{ m.content }}{% endfor %}"
REFUSED = {
    "raises": ("{{ raise_exception('only system messages') }}", "raises TemplateError: only system messages;"),
    "syntax": ("{% for %}", "raises TemplateSyntaxError"),
    "undefined": ("{{ messages[3]['content']['x'] }}", "raises UndefinedError"),
    "list": ([{"name": "default", "template": SHOW}, {"name": "rag", "template": SHOW}], r"named .*\(default, rag\)"),
    "one-named": ({"default": SHOW}, r"a list of 1 named templates \(default\)"),
    "number": (5, "it is int, not text"),
    "long": ("{{ 'x' * 10**6 }}" + SHOW, "renders 1,000,024 characters, more than 100,000"),
    "no-unicode": ("\ud800" + SHOW, "raises UnicodeEncodeError"),
    "endless-macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "raises RecursionError"),
    "loops": (
        "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}"
        "{% endfor %}" + SHOW,
        "takes more than 1 s of CPU time",
    ),
    "one-long-operation": ("{% set n = 9 %}{{ n**(n**n) }}" + SHOW, "takes more than (1 s of CPU time|512 MiB)"),
    "memory": ("{{ 'x' * 10**11 }}" + SHOW, "takes more than 512 MiB of memory"),
    "memory-by-doubling": (
        "{% set ns = namespace(a='x') %}{% for n in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}" + SHOW,
        "takes more than 512 MiB of memory",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_template_without_a_frame_is_refused(tmp_path, monkeypatch, name):
    template, message = REFUSED[name]
    if "CPU time" in message:  # for the others, a second may be too little on a busy machine
        monkeypatch.setattr(frame, "CPU_S", 1)
    folder = write_tokenizer(tmp_path / "tokenizer", template)
    with pytest.raises(DataError, match=message) as refusal:
        render_frame(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


def test_a_frame_is_the_text_around_the_message(tmp_path):
    assert render_frame(write_tokenizer(tmp_path / "plain", template=None)) == Frame()
    folder = write_tokenizer(tmp_path / "chat", "{{ bos_token }}<A>" + SHOW + "<B>\n{{ eos_token }}")
    assert render_frame(folder) == Frame("<A>", "<B>\n<|im_end|>")
    (folder / "chat_template.jinja").write_text("file: " + SHOW)  # transformers prefers the file
    assert render_frame(folder) == Frame("file: ")


def test_a_kept_frame_is_not_rendered_again(tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer", "{{ raise_exception('rendered again') }}")
    tokenizer = read_chat_tokenizer(folder, pad=258, stop=257, frame=Frame("<|im_start|>12:00\n", "<|im_end|>"))
    assert tokenizer.opening[0] == 256 and tokenizer.closing == (257,)
    assert tokenizer.backend.decode(list(tokenizer.opening)) == "12:00\n"


def test_without_a_kept_frame_a_template_must_not_read_the_clock(tmp_path):
    """Models that were imported before frames were kept: without a clock, the frame is what it always was."""
    steady = write_tokenizer(tmp_path / "steady", "<|im_start|>" + SHOW)
    assert read_chat_tokenizer(steady, pad=258, stop=257).opening == (256,)
    dated = write_tokenizer(tmp_path / "dated", "{{ strftime_now('%d %b %Y') }}" + SHOW)
    with pytest.raises(DataError, match=r"reads the clock, so its text must be kept .* import the model again"):
        read_chat_tokenizer(dated, pad=258, stop=257)
