import json
from contextlib import closing
from itertools import islice

import jax
import numpy as np
import pytest

from r2rank_jax.data.batches.length_buckets import WINDOW, bucket_widths
from r2rank_jax.data.batches.pipeline import Batches, evaluation_batches, list_batches, trace_batches
from r2rank_jax.errors import DataError


def same(one, two):
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in pairs)


def rows_of(batches, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], batches)


LIMITS = {"prefix_tokens": 112, "suffix_tokens": 20, "rationale_tokens": 24}


@pytest.fixture(params=["traces", "lists", "traces in buckets", "lists in buckets"])
def iterator(request, dataset, traces, make_encoder):
    """A function from settings to one of the two training iterators, with or without length buckets."""
    encoder = make_encoder(**LIMITS, length_buckets=4 if "buckets" in request.param else 1)

    def traced(**settings):
        return trace_batches(traces, encoder, **settings)

    def listed(**settings):  # few lists, so that batches cross the end of an epoch
        return list_batches(dataset, encoder, candidate_items=20, min_history=12, **settings)

    return traced if request.param.startswith("traces") else listed


def test_a_list_that_no_user_could_fill_is_refused_before_the_first_batch(dataset, make_encoder):
    left = len(dataset.items) - int(dataset.train_end[dataset.train_lists(5)[:, 0]].max())
    settings = {"batch_users": 8, "seed": 3, "min_history": 5}
    with closing(list_batches(dataset, make_encoder(**LIMITS), candidate_items=left + 1, **settings)):
        pass
    with pytest.raises(DataError, match=rf"lower data\.candidate_items to at most {left + 1}$"):
        list_batches(dataset, make_encoder(**LIMITS), candidate_items=left + 2, **settings)


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_resume_gives_the_exact_next_batches(iterator, steps):
    walking = iterator(batch_users=8, seed=3)
    for _ in range(steps):
        next(walking)
    state = json.loads(json.dumps(walking.get_state()))
    expected = list(islice(walking, 12))  # crosses the end of an epoch of 50 traces
    resumed = iterator(batch_users=8, seed=3)
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(expected, islice(resumed, 12), strict=True))
    assert not same(expected[0], expected[1])


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(iterator):
    """Two workers continue from a thread's state with the thread's batches, and a thread continues from theirs."""
    thread = iterator(batch_users=8, seed=3)
    expected = list(islice(thread, 45))[30:]
    state = {"next_index": 30}
    with closing(iterator(batch_users=8, seed=3, workers=2)) as workers:
        workers.set_state(state)
        assert workers.get_state() == state
        assert all(same(a, b) for a, b in zip(expected[:6], islice(workers, 6), strict=True))
        state = json.loads(json.dumps(workers.get_state()))
    assert state == {"next_index": 36}
    thread.set_state(state)
    assert all(same(a, b) for a, b in zip(expected[6:], islice(thread, 9), strict=True))


@pytest.mark.slow
def test_workers_that_ran_ahead_return_to_a_restored_state(dataset, encoder):
    def batches(workers):
        return list_batches(dataset, encoder, batch_users=8, candidate_items=20, seed=3, workers=workers)

    expected = list(islice(batches(0), 4))
    with closing(batches(1)) as workers:
        next(workers)
        state = workers.get_state()
        next(workers)
        workers.set_state(state)
        assert all(same(a, b) for a, b in zip(expected[1:], islice(workers, 3), strict=True))


@pytest.mark.parametrize("processes", [2, 4])
def test_process_slices_form_the_global_batch(iterator, processes):
    whole = iterator(batch_users=8, seed=3)
    parts = [
        iterator(batch_users=8, seed=3, process_index=index, process_count=processes) for index in range(processes)
    ]
    share = 8 // processes
    for _ in range(24):
        batch = next(whole)
        for index, part in enumerate(parts):
            assert same(next(part), rows_of(batch, index * share, (index + 1) * share))


def test_the_order_depends_on_the_seed(iterator):
    assert not same(next(iterator(batch_users=8, seed=3)), next(iterator(batch_users=8, seed=4)))


def test_an_epoch_has_every_trace_once_with_its_own_rationales(traces, encoder):
    batches = list(islice(trace_batches(traces, encoder, batch_users=10, seed=0), 10))
    row_of = {(u, tuple(i)): row for row, (u, i) in enumerate(zip(traces.lists.user, traces.lists.items.tolist()))}
    epochs = []
    for batch, rationales in batches:
        assert rationales.tokens.shape == (10, 20, 1, 24)
        for row in range(10):
            trace = row_of[(batch.user[row], tuple(batch.items[row].tolist()))]
            epochs.append(trace)
            assert (batch.labels[row] == traces.lists.labels[trace]).all()
            texts = [encoder.decode(tokens) for tokens in rationales.tokens[row, :, 0]]
            stops = rationales.stopped[row, :, 0]
            for text, whole, stopped in zip(texts, traces.rationales[trace], stops, strict=True):
                assert text == whole if stopped else whole.startswith(text.rstrip("\ufffd"))
    assert sorted(epochs[:50]) == sorted(epochs[50:]) == list(range(50))
    assert epochs[:50] != epochs[50:]


def test_an_epoch_has_every_list_once_and_the_next_epoch_has_other_negatives(dataset, encoder):
    pairs = dataset.train_lists(12)
    size = len(pairs)
    assert size > 20
    walking = list_batches(dataset, encoder, batch_users=1, candidate_items=20, seed=5, min_history=12)
    batches = list(islice(walking, 2 * size))

    def key(batch):
        positive = int(batch.items[0][batch.labels[0] == 1][0])
        user = int(batch.user[0])
        own = dataset.item[dataset.train_rows(user)]
        return user, int(np.flatnonzero(own == positive)[0])

    epochs = [{key(batch): batch.items[0].tolist() for batch in half} for half in (batches[:size], batches[size:])]
    assert epochs[0].keys() == epochs[1].keys() == set(map(tuple, pairs.tolist()))
    changed = [epochs[0][pair] != epochs[1][pair] for pair in epochs[0]]
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("positives", [1, 3])
def test_lists_have_up_to_the_requested_number_of_positives(dataset, encoder, positives):
    batches = list_batches(dataset, encoder, batch_users=8, candidate_items=20, seed=5, positives=positives)
    relevant = np.concatenate([next(batches).labels.sum(axis=1) for _ in range(8)])
    assert relevant.max() == positives and relevant.min() >= 1


def test_evaluation_has_every_list_once_in_order_and_marks_padding(dataset, encoder):
    lists = dataset.candidate_lists("test")
    batches = list(evaluation_batches(dataset, encoder, "test", batch_users=16))
    assert [batch.user.shape[0] for batch in batches] == [16, 16, 16]
    users = np.concatenate([batch.user for batch in batches])
    assert users[users >= 0].tolist() == lists.user.tolist() and (users[40:] == -1).all()
    mask = np.concatenate([batch.mask for batch in batches])
    assert mask[:40].all() and not mask[40:].any()
    items = np.concatenate([batch.items for batch in batches])
    assert (items[:40] == lists.items).all()
    assert not np.concatenate([batch.labels for batch in batches])[40:].any()
    assert min(batch.prefix_length.min() for batch in batches) >= 1


def test_evaluation_can_be_limited_to_users_and_split_by_process(dataset, encoder):
    some = list(evaluation_batches(dataset, encoder, "valid", batch_users=4, users=[3, 30, 7]))
    assert len(some) == 1 and some[0].user.tolist() == [3, 7, 30, -1]
    assert list(evaluation_batches(dataset, encoder, "valid", batch_users=4, users=[])) == []
    whole = list(evaluation_batches(dataset, encoder, "valid", batch_users=16))
    parts = [
        list(evaluation_batches(dataset, encoder, "valid", batch_users=16, process_index=i, process_count=4))
        for i in range(4)
    ]
    for step, batch in enumerate(whole):
        for index in range(4):
            assert same(parts[index][step], rows_of(batch, 4 * index, 4 * index + 4))


@pytest.mark.parametrize(("users", "index", "count"), [(6, 0, 4), (8, 4, 4), (0, 0, 1), (8, -1, 2)])
def test_a_batch_that_cannot_be_divided_is_an_error(iterator, users, index, count):
    with pytest.raises(DataError, match=f"batch_users={users} must be a positive multiple of process_count={count}"):
        iterator(batch_users=users, seed=0, process_index=index, process_count=count)


def test_the_state_of_older_checkpoints_is_accepted(iterator):
    walking = iterator(batch_users=8, seed=3)
    expected = [next(walking) for _ in range(4)]
    resumed = iterator(batch_users=8, seed=3)
    resumed.set_state({"next_index": 3})  # the state of Grain's own iterator after three batches
    assert same(next(resumed), expected[3])


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_in_this_process():
    def batch(number):
        if number == 2:
            raise DataError("the third batch is invalid")
        return np.array([number])

    for workers in (0, 1):
        with closing(Batches(batch, workers)) as batches:
            assert [int(x[0]) for x in islice(batches, 2)] == [0, 1]
            with pytest.raises(DataError, match="the third batch is invalid"):
                next(batches)
    with pytest.raises(DataError, match=r"workers must be at least 0 .*, got -1; set compute\.data_workers to 0"):
        Batches(batch, -1)


@pytest.mark.slow
def test_special_tokens_in_titles_stay_text_in_a_worker(dataset, encoder):
    """Pickling loses a tokenizer's treatment of special tokens. A worker must still encode "<stop>" as text."""
    assert "<stop>" in dataset.items.title[3]
    with closing(list_batches(dataset, encoder, batch_users=8, candidate_items=20, seed=3, workers=1)) as workers:
        batches = list(islice(workers, 6))
    seen = np.concatenate([batch.items.ravel() for batch in batches])
    assert 3 in seen
    for batch in batches:
        inside = np.arange(batch.suffix.shape[-1]) < batch.suffix_length[..., None]
        assert not np.isin(batch.suffix[inside], [encoder.tokenizer.pad, encoder.tokenizer.stop]).any()


def rows_with_text(batches):
    """Every list as the repr of (user, items, prefix, suffixes, rationales), without padding."""
    rows = []
    for each in batches:
        batch = each[0] if isinstance(each, tuple) else each
        for row in range(len(batch.user)):
            prefix = batch.prefix[row, : batch.prefix_length[row]].tolist()
            suffixes = [s[:n].tolist() for s, n in zip(batch.suffix[row], batch.suffix_length[row])]
            rationales = (
                [t[:n].tolist() for t, n in zip(each[1].tokens[row, :, 0], each[1].length[row, :, 0])]
                if isinstance(each, tuple)
                else []
            )
            rows.append(repr((int(batch.user[row]), batch.items[row].tolist(), prefix, suffixes, rationales)))
    return rows


@pytest.mark.parametrize("kind", ["traces", "lists"])
def test_buckets_hold_the_same_lists_with_less_padding(dataset, traces, make_encoder, kind):
    """A window has the same undivided lists as without buckets, in a few shapes, each as narrow as possible."""

    def batches(buckets):
        encoder = make_encoder(**LIMITS, length_buckets=buckets)
        if kind == "traces":
            return list(islice(trace_batches(traces, encoder, batch_users=4, seed=3), 2 * WINDOW))
        return list(islice(list_batches(dataset, encoder, batch_users=4, candidate_items=20, seed=3), 2 * WINDOW))

    plain, bucketed = batches(1), batches(4)
    for start in (0, WINDOW):
        window = slice(start, start + WINDOW)
        assert sorted(rows_with_text(plain[window])) == sorted(rows_with_text(bucketed[window]))
    assert rows_with_text(plain) != rows_with_text(bucketed)
    prefixes, suffixes = bucket_widths(112, 4).tolist(), bucket_widths(20, 4).tolist()
    shapes = set()
    for each in bucketed:
        batch = each[0] if kind == "traces" else each
        assert batch.prefix.shape[1] == min(w for w in prefixes if w >= batch.prefix_length.max())
        assert batch.suffix.shape[2] == min(w for w in suffixes if w >= batch.suffix_length.max())
        if kind == "traces":
            assert each[1].tokens.shape[-1] == min(w for w in (6, 12, 18, 24) if w >= each[1].length.max())
        shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(each)))
    assert 1 < len(shapes) <= 16

    def computed(batches):
        return sum(leaf.size for leaf in jax.tree.leaves(batches) if leaf.ndim > 1)

    assert computed(bucketed) < 0.9 * computed(plain)


@pytest.mark.parametrize(
    ("limit", "buckets", "widths"), [(48, 3, [16, 32, 48]), (10, 4, [3, 5, 8, 10]), (2, 8, [1, 2]), (0, 2, [0])]
)
def test_widths_are_evenly_spaced_up_to_the_limit(limit, buckets, widths):
    assert bucket_widths(limit, buckets).tolist() == widths
