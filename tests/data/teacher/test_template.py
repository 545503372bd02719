import dataclasses
import json

import numpy as np
import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared import traces as traces_module
from r2rank_jax.data.prepared.dataset import CandidateLists, load
from r2rank_jax.data.prepared.traces import read_traces, write_traces
from r2rank_jax.data.teacher import template as module
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import (
    CITE_FROM,
    MATCH,
    RIDGE,
    TemplateStatistics,
    TemplateTeacher,
    fit_logistic,
)
from r2rank_jax.errors import DataError
from tests.support.tiny_source import ITEMS, tiny_rows, write_raw


@pytest.fixture(scope="module")
def teacher(dataset):
    return TemplateStatistics(dataset)


@pytest.fixture(scope="module")
def lists(dataset):
    pairs = dataset.train_lists(3)
    return dataset.training_lists(pairs[::7], key=11, n=20)


def _with_other_items(rows, place):
    """The same rows, but each user's interaction at `place` (from the end) is with another, unseen item."""
    changed = list(rows)
    for user in {row[0] for row in rows}:
        mine = sorted((row[3], index) for index, row in enumerate(rows) if row[0] == user)
        taken = {rows[index][1] for _, index in mine} | {changed[index][1] for _, index in mine}
        index = mine[-place][1]
        item = max(set(range(1, ITEMS + 1)) - taken)
        changed[index] = (user, item, 6 - rows[index][2], rows[index][3])
    return changed


def test_held_out_interactions_change_no_rationale(tmp_path, teacher, lists, dataset):
    hidden = _with_other_items(_with_other_items(tiny_rows(), 1), 2)
    shown = _with_other_items(tiny_rows(), 3)
    rationales = {}
    for name, rows in (("hidden", hidden), ("shown", shown)):
        prepare(write_raw(tmp_path / f"raw-{name}", rows), tmp_path / name)
        other = load(tmp_path / name, "leave_one_out")
        assert other.data_hash != dataset.data_hash
        rationales[name] = TemplateStatistics(other).rationales(lists)
    assert rationales["hidden"] == teacher.rationales(lists)
    assert rationales["shown"] != teacher.rationales(lists), "the last training interaction is used"


def test_synthesized_traces_hold_training_positions_only(prepared, traces, dataset):
    assert len(traces) == 50 and traces.header["teacher"] == "template"
    assert (traces.lists.position < dataset.train_end[traces.lists.user]).all()
    assert (traces.lists.position >= 5).all()
    pairs = set(zip(traces.lists.user.tolist(), traces.lists.position.tolist()))
    assert len(pairs) == 50, "without replacement"
    assert {len(row) for row in traces.rationales} == {20}


def test_the_same_seed_writes_the_same_file(prepared, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(prepared, tmp_path / name, TemplateTeacher(), lists=50, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (prepared / "traces.jsonl").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_traces_have_the_requested_number_of_positives(prepared, dataset, tmp_path):
    out = tmp_path / "t"
    assert main(["data", "synthesize", "--data", f"{prepared}", "--out", f"{out}", "--lists=9", "--positives=3"]) == 0
    traces = read_traces(tmp_path / "t", dataset, "films-1")
    assert traces.header["positives"] == 3 == traces.lists.labels.sum(axis=1).max()


def test_weights_are_those_of_an_ease_fitted_without_the_user(teacher, dataset):
    films, items = np.array([0, 7, 20]), np.array([1, 7, 33, 50])
    for user in (0, 5):
        others = np.delete(teacher._seen, user, axis=0).astype(np.float64)
        inverse = np.linalg.inv(others.T @ others + RIDGE * np.eye(ITEMS))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        computed = teacher._leave_one_out_weights(user, films, items)
        assert np.abs(computed - weights[np.ix_(films, items)]).max() < 1e-6
        assert np.abs(weights[np.ix_(films, items)]).max() > 1e-4


def test_the_users_own_training_interactions_are_left_out(teacher, dataset, lists):
    """A user's actions after a list's position must not affect its evidence, so statistics leave the user out."""
    evidence = teacher.evidence(lists)
    counts = dataset.train_counts[lists.items]
    own = np.array([np.isin(items, dataset.item[dataset.train_rows(u)]) for u, items in zip(lists.user, lists.items)])
    assert own.any()
    assert np.allclose(np.expm1(evidence.fame), counts - own, atol=1e-3)


def test_facts_by_hand(teacher, dataset):
    user, position = 0, 6
    rows = dataset.history(user, position, 10)
    films, ratings = dataset.item[rows], dataset.rating[rows]
    items = np.setdiff1d(np.arange(ITEMS), films)[:20]
    lists = CandidateLists(np.array([user]), np.array([position]), items[None], np.zeros((1, 20)))
    evidence = teacher.evidence(lists)
    weights = teacher._leave_one_out_weights(user, films, items) * (1 + 0.2 * (ratings - 3.5))[:, None]
    assert np.allclose(evidence.match[0], weights.sum(axis=0), atol=1e-6)
    assert (evidence.cited[0] == films[weights.argmax(axis=0)]).all()
    for column, item in enumerate(items):
        same = ratings[films % 2 == item % 2]  # the fixture's genres go by parity
        rating = evidence.genre_rating[0, column]
        assert np.isnan(rating) if len(same) == 0 else np.isclose(rating, same.mean())


def test_a_rationale_states_its_levels_and_cites_a_visible_film(teacher, dataset, lists):
    levels = teacher.levels(teacher.evidence(lists))
    cited = 0
    for row, texts in enumerate(teacher.rationales(lists)):
        user, position = int(lists.user[row]), int(lists.position[row])
        visible = {dataset.items.shown(i, "Unknown film") for i in dataset.item[dataset.history(user, position, 10)]}
        for column, text in enumerate(texts):
            parts = text.split("; ")
            assert parts[0] == " " + MATCH[levels.match[row, column]]
            assert parts[-1] == "verdict " + module.VERDICT[levels.verdict[row, column]]
            if levels.match[row, column] >= CITE_FROM:
                title, year = parts[1].removeprefix("like: ").rsplit(" (", 1)
                assert len(title) <= 20
                assert any(film.startswith(title.rstrip("…")) and film.endswith(year) for film in visible)
                cited += 1
            assert ("like: " in text) == (levels.match[row, column] >= CITE_FROM)
    assert cited > 20


def test_the_discrete_levels_rank_the_positive_well(dataset):
    """On the two-taste fixture the words alone rank the positive far above chance (mean place 9.5 of 20)."""
    teacher, lists = TemplateStatistics(dataset), dataset.candidate_lists("valid")
    levels = teacher.levels(teacher.evidence(lists))
    total = levels.match + levels.verdict
    positive = (total * lists.labels).sum(axis=1, keepdims=True)
    above = ((total > positive).sum(axis=1) + 0.5 * ((total == positive).sum(axis=1) - 1)).mean()
    assert above < 7.5


def test_errors(dataset, prepared, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"between 1 and the .* training lists, got 100000"):
        synthesize(prepared, tmp_path / "t.jsonl", TemplateTeacher(), lists=100_000)
    with pytest.raises(DataError, match="user with no history"):
        TemplateStatistics(dataset).rationales(
            CandidateLists(np.array([0]), np.array([0]), np.array([[1, 2]]), np.zeros((1, 2)))
        )
    monkeypatch.setattr(module, "MAX_ITEMS", 10)
    with pytest.raises(DataError, match=r"at most 10 items .*got 60"):
        TemplateStatistics(dataset)


def test_logistic_regression_solves_its_equations():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(4000, 2)), np.ones((4000, 1))], axis=1)
    truth = np.array([1.5, -0.7, -1.0])
    y = (rng.random(4000) < 1 / (1 + np.exp(-x @ truth))).astype(float)
    weights = fit_logistic(x, y, ridge=0.0)
    assert np.abs(weights - truth).max() < 0.2
    assert np.abs(x.T @ (1 / (1 + np.exp(-x @ weights)) - y)).max() < 1e-6


def test_traces_survive_a_round_trip_with_any_text(tmp_path, traces, dataset):
    texts = [["line\nend", "\u2028", 'quote"', "é…"] * 5] * len(traces)
    write_traces(tmp_path / "t.jsonl", traces.header, traces.lists, texts)
    again = read_traces(tmp_path / "t.jsonl", dataset, "films-1")
    assert [list(row) for row in again.rationales] == texts and again.header == traces.header
    for field in dataclasses.fields(CandidateLists):
        assert (getattr(again.lists, field.name) == getattr(traces.lists, field.name)).all()


def _edit(line, **changes):
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-1], "line 50: expected 50 lists after the header .*got 49"),
        (lambda lines: [*lines[:-1], lines[-1][:-30]], "line 51: expected a JSON object with user, position"),
        (lambda lines: [_edit(lines[0], data_hash="0"), *lines[1:]], "data_hash must be that of the data set"),
        (lambda lines: [_edit(lines[0], split="global_time"), *lines[1:]], "split must be that of the data set"),
        (lambda lines: [*lines[:-1], _edit(lines[-1], position=99)], "line 51: a trace must be of a training position"),
        (lambda lines: [*lines[:-1], _edit(lines[-1], items=[1])], "line 51: every list must have 20 entries"),
        (lambda lines: [], "line 1: expected a JSON object with teacher"),
    ],
)
def test_damaged_or_foreign_traces_are_refused(prepared, dataset, tmp_path, edit, message):
    lines = (prepared / "traces.jsonl").read_text().splitlines()
    (tmp_path / "t.jsonl").write_text("".join(line + "\n" for line in edit(lines)))
    with pytest.raises(DataError, match=message):
        read_traces(tmp_path / "t.jsonl", dataset, "films-1")


def test_a_failure_while_writing_keeps_the_old_file(tmp_path, traces, monkeypatch):
    write_traces(tmp_path / "t.jsonl", traces.header, traces.lists, traces.rationales)
    before = (tmp_path / "t.jsonl").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(traces_module.json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        write_traces(tmp_path / "t.jsonl", traces.header, traces.lists, traces.rationales)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    assert (tmp_path / "t.jsonl").read_bytes() == before
