"""The driver with a teacher of a few lines, and what reading its trace files requires."""

import json

import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.data.prompts.templates import FILMS_1, GAMES_1
from r2rank_jax.data.teacher.protocol import TeacherOutput
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from r2rank_jax.errors import DataError


class Stub:
    """Writes for every `step`-th list."""

    name = "stub"

    def __init__(self, step=1, nested=True, **output):
        self.step, self.draws_nested_lists, self.output = step, nested, output

    def rationales(self, lesson):
        self.lesson = lesson
        rows = range(0, len(lesson.lists), self.step) if self.step else ()
        texts = {row: [f" {item}" for item in lesson.lists.items[row]] for row in rows}
        return TeacherOutput(rationales=texts, **self.output)


def test_a_new_teacher_needs_only_a_name_a_draw_and_its_rationales(prepared, dataset, tmp_path, capsys):
    stub = Stub(step=2, header={"more": 1}, remark="3 dropped", missing="3 lists are unfinished")
    out = tmp_path / "t.jsonl"
    assert synthesize(prepared, out, stub, lists=6, template="games-1", seed=3) == "3 lists are unfinished"
    assert capsys.readouterr().out == f"{out}: 3 lists of 20 rationales by stub; 3 dropped\n"
    traces = read_traces(out, dataset, "games-1")
    assert traces.header == {
        "teacher": "stub", "data_hash": dataset.data_hash, "split": "leave_one_out", "seed": 3, "positives": 1,
        "template": "games-1", "more": 1, "lists": 3,
    }  # fmt: skip
    assert (traces.lists.items == stub.lesson.lists.items[::2]).all()
    assert traces.rationales[1] == tuple(f" {item}" for item in stub.lesson.lists.items[2])
    assert (stub.lesson.template, stub.lesson.history_items, stub.lesson.seed) == (GAMES_1, 10, 3)


@pytest.mark.parametrize("nested", [True, False])
def test_the_same_arguments_draw_the_same_lists(prepared, tmp_path, nested):
    pairs = []
    for count in (4, 9, 9):
        stub = Stub(nested=nested)
        synthesize(prepared, tmp_path / "t.jsonl", stub, lists=count)
        pairs.append(list(zip(stub.lesson.lists.user.tolist(), stub.lesson.lists.position.tolist())))
    few, more, again = pairs
    assert more == again and len(set(more)) == 9
    assert (more[:4] == few) == nested and (more == sorted(more)) != nested


def test_without_rationales_an_existing_file_stays(prepared, tmp_path):
    (tmp_path / "t.jsonl").write_text("before")
    message = "6 lists are unfinished; no traces were written"
    assert synthesize(prepared, tmp_path / "t.jsonl", Stub(0, missing="6 lists are unfinished"), lists=6) == message
    assert synthesize(prepared, tmp_path / "t.jsonl", Stub(0), lists=6) is None
    assert (tmp_path / "t.jsonl").read_text() == "before"


def test_errors(prepared, tmp_path):
    with pytest.raises(DataError, match=r"data.template must be one of films-1, .* got 'songs-1'"):
        synthesize(prepared, tmp_path / "t.jsonl", Stub(), template="songs-1")
    with pytest.raises(DataError, match=r"between 1 and the .* training lists, got 0; lower --lists"):
        synthesize(prepared, tmp_path / "t.jsonl", Stub(), lists=0)


def test_traces_for_another_template_are_refused(prepared, dataset, tmp_path):
    out = tmp_path / "t.jsonl"
    assert (
        main(["data", "synthesize", "--data", f"{prepared}", "--out", f"{out}", "--lists=2", "--template=games-1"]) == 0
    )
    assert read_traces(out, dataset, "games-1").template == read_traces(out, dataset, None).template == "games-1"
    message = (
        "t.jsonl: traces must be written for data.template=films-2, got traces for games-1; run `r2rank data "
        "synthesize --template films-2`, or set data.template or data.traces"
    )
    with pytest.raises(DataError) as caught:
        read_traces(out, dataset, "films-2")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("changes", "template"),
    [
        ({}, "films-1"),
        ({"teacher": "m", "prompts": "verify-then-conclude-1", "settings": {"draws": 3}}, "films-1"),
        ({"teacher": "m", "prompts": "verify-then-conclude-1", "settings": {"template": "games-1"}}, "games-1"),
        ({"teacher": "m"}, None),
        ({"teacher": "m", "settings": "none"}, None),
    ],
    ids=["template teacher", "model before its setting", "model with its setting", "unknown", "unknown with settings"],
)
def test_a_file_written_before_headers_named_the_template(prepared, dataset, tmp_path, changes, template):
    """It is read if its author's code determines the template, so that runs that started from it can resume."""
    header, *lists = (prepared / "traces.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(header)
    assert record.pop("template") == FILMS_1.name
    out = tmp_path / "t.jsonl"
    out.write_text("".join([json.dumps(record | changes) + "\n", *lists]))
    if template is None:
        with pytest.raises(DataError, match=r"line 1: the header must name the data.template .* got none; add"):
            _ = read_traces(out, dataset, None).template
    else:
        assert read_traces(out, dataset, template).template == template
        with pytest.raises(DataError, match=f"data.template=films-2, got traces for {template}"):
            read_traces(out, dataset, "films-2")


def test_the_template_teacher_names_untitled_items_in_the_template(dataset, prepared, tmp_path):
    """The words are the same for every template, except where an item has no title."""
    for template in ("films-1", "games-1"):
        synthesize(prepared, tmp_path / template, TemplateTeacher(), lists=20, template=template)
    first, second = (read_traces(tmp_path / name, dataset, name).rationales for name in ("films-1", "games-1"))
    for before, after in zip(first, second, strict=True):
        for text, other in zip(before, after, strict=True):
            assert text.replace("Unknown film", "Unknown game") == other.replace("Unknown film", "Unknown game")
