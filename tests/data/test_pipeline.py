import json
from itertools import islice

import jax
import numpy as np
import pytest

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.pipeline import evaluation_batches, list_batches, trace_batches


def same(one, two):
    return all((a == b).all() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def rows_of(batches, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], batches)


@pytest.fixture(params=["traces", "lists"])
def iterator(request, dataset, traces, encoder):
    """Function from settings to one of the two training iterators."""

    def traced(**settings):
        return trace_batches(traces, encoder, **settings)

    def listed(**settings):  # few lists, so that batches cross the end of an epoch
        return list_batches(dataset, encoder, candidate_items=20, min_history=12, **settings)

    return traced if request.param == "traces" else listed


@pytest.mark.parametrize("steps", [0, 1, 9])
def test_resume_gives_the_exact_next_batches(iterator, steps):
    walking = iterator(batch_users=8, seed=3)
    for _ in range(steps):
        next(walking)
    state = json.loads(json.dumps(walking.get_state()))
    expected = list(islice(walking, 12))  # past the end of an epoch of the 50 traces
    resumed = iterator(batch_users=8, seed=3)
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(expected, islice(resumed, 12), strict=True))
    assert not same(expected[0], expected[1])


@pytest.mark.parametrize("processes", [2, 4])
def test_process_slices_make_up_the_one_global_batch(iterator, processes):
    whole = iterator(batch_users=8, seed=3)
    parts = [
        iterator(batch_users=8, seed=3, process_index=index, process_count=processes) for index in range(processes)
    ]
    share = 8 // processes
    for _ in range(24):
        batch = next(whole)
        for index, part in enumerate(parts):
            assert same(next(part), rows_of(batch, index * share, (index + 1) * share))


def test_another_seed_another_order(iterator):
    assert not same(next(iterator(batch_users=8, seed=3)), next(iterator(batch_users=8, seed=4)))


def test_an_epoch_of_traces_has_each_once_with_its_own_rationales(traces, encoder):
    batches = list(islice(trace_batches(traces, encoder, batch_users=10, seed=0), 10))
    where = {(u, tuple(i)): row for row, (u, i) in enumerate(zip(traces.lists.user, traces.lists.items.tolist()))}
    epochs = []
    for batch, said in batches:
        assert said.tokens.shape == (10, 20, 1, 24)
        for row in range(10):
            trace = where[(batch.user[row], tuple(batch.items[row].tolist()))]
            epochs.append(trace)
            assert (batch.labels[row] == traces.lists.labels[trace]).all()
            texts = [encoder.decode(tokens) for tokens in said.tokens[row, :, 0]]
            for text, whole, stopped in zip(texts, traces.rationales[trace], said.stopped[row, :, 0], strict=True):
                assert text == whole if stopped else whole.startswith(text.rstrip("\ufffd"))
    assert sorted(epochs[:50]) == sorted(epochs[50:]) == list(range(50))
    assert epochs[:50] != epochs[50:]


def test_an_epoch_of_lists_has_each_once_and_the_next_other_negatives(dataset, encoder):
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
def test_lists_have_as_many_positives_as_asked(dataset, encoder, positives):
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


def test_evaluation_of_some_users_and_by_processes(dataset, encoder):
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
def test_a_batch_that_cannot_be_shared_is_an_error(iterator, users, index, count):
    with pytest.raises(DataError, match=f"batch_users={users} must be a positive multiple of process_count={count}"):
        iterator(batch_users=users, seed=0, process_index=index, process_count=count)
