"""Compare each protocol with plain Python over every user's sequence, with and without a rating threshold."""

import numpy as np
import pytest

from r2rank_jax.data.prepared.settings import Settings
from r2rank_jax.data.prepared.splits import NONE, chance_of_users, cold_users, global_time, last_n, split
from r2rank_jax.errors import DataError

LENGTHS = [9, 1, 0, 2, 3, 14, 6, 4, 1, 8]
OFFSETS = np.cumsum([0, *LENGTHS])


def _random(seed):
    """Return times with ties, sorted within each user, and a mask of the positives."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.integers(0, 30, n)) for n in LENGTHS])
    return times, rng.random(OFFSETS[-1]) < rng.choice([0.3, 0.7, 1.0])


def _places(positive, user):
    return np.flatnonzero(positive[OFFSETS[user] : OFFSETS[user + 1]]).tolist()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_last_n_against_plain_lists(n, seed):
    _, positive = _random(seed)
    parts = last_n(OFFSETS, positive, n)
    without = {"valid": 0, "test": 0}
    for user, length in enumerate(LENGTHS):
        places = _places(positive, user)
        groups = {"test": places[len(places) - n :], "valid": places[len(places) - 2 * n : len(places) - n]}
        enough = {"test": len(places) >= n, "valid": len(places) >= 2 * n}
        first = {name: groups[name][0] if enough[name] and groups[name][0] > 0 else NONE for name in groups}
        for name in groups:
            without[name] += enough[name] and groups[name][0] == 0
            assert parts.position(name)[user] == first[name]
        assert parts.train_end[user] == next((first[name] for name in ("valid", "test") if first[name] != NONE), length)
    assert parts.without_history == without and parts.positives == n


@pytest.mark.parametrize("seed", range(8))
def test_global_time_against_plain_lists(seed):
    times, positive = _random(seed)
    cuts = (18, 24)
    parts = global_time(OFFSETS, times, positive, cuts)
    without = {"valid": 0, "test": 0}
    for user in range(len(LENGTHS)):
        mine = times[OFFSETS[user] : OFFSETS[user + 1]].tolist()
        assert parts.train_end[user] == sum(time < cuts[0] for time in mine)
        for name, low, high in (("valid", cuts[0], cuts[1]), ("test", cuts[1], 99)):
            inside = [place for place in _places(positive, user) if low <= mine[place] < high]
            assert parts.position(name)[user] == (inside[0] if inside and inside[0] > 0 else NONE)
            without[name] += bool(inside) and inside[0] == 0
    assert parts.without_history == without


@pytest.mark.parametrize("seed", range(4))
def test_cold_users_have_no_training_data_and_other_users_nothing_else(seed):
    _, positive = _random(seed)
    chance = np.array([0.1, 0.2, 0.1, 0.1, 0.5, 0.3, 0.9, 0.25, 0.3, 0.05])
    parts = cold_users(OFFSETS, positive, chance, 0.25)
    for user, length in enumerate(LENGTHS):
        name = "test" if chance[user] < 0.25 else "valid" if chance[user] < 0.5 else None
        assert parts.train_end[user] == (0 if name else length)
        places = _places(positive, user)
        for part in ("test", "valid"):
            wanted = places[-1] if part == name and places and places[-1] > 0 else NONE
            assert parts.position(part)[user] == wanted


def test_chances_are_uniform_seeded_and_independent_of_the_bucket():
    whole = chance_of_users(3, 0, 20_000)
    assert (np.concatenate([chance_of_users(3, 0, 7), chance_of_users(3, 7, 19_993)]) == whole).all()
    assert whole.min() >= 0 and whole.max() < 1 and len(np.unique(whole)) == 20_000
    counts = np.histogram(whole, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.95)
    other = chance_of_users(4, 0, 20_000)
    assert abs(np.corrcoef(whole, other)[0, 1]) < 0.03 and abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.03


def test_unknown_protocol_is_refused():
    with pytest.raises(DataError, match=r"got 'newest'; set data\.split"):
        split("newest", OFFSETS, np.zeros(OFFSETS[-1]), np.ones(OFFSETS[-1], bool), Settings())


def test_positives_and_labels_by_hand():
    ratings = np.array([1.0, 3.5, 4.0, 4.5, 5.0, np.nan], np.float32)
    assert Settings().positive(ratings).all() and Settings().label(ratings).tolist() == [1] * 6
    graded = Settings(positive_rating=3.5, labels="graded")
    assert graded.positive(ratings).tolist() == [False, True, True, True, True, False]
    assert graded.label(ratings[1:5]).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "graded"}, "graded labels need a positive_rating to count from, got none; set --positive-rating"),
        ({"protocols": ("newest",)}, r"protocols must be one or more of .*got \('newest',\)"),
        ({"protocols": ()}, "protocols must be one or more of"),
        ({"protocols": ["last_n", "last_n"]}, "each at most once"),
        ({"protocols": ["last_n"], "last_n": 20}, "last_n=20 must leave at least one of candidates=20"),
        ({"negatives": "run"}, "give both --negatives run and --run FILE"),
        ({"run": "x"}, "give both --negatives run and --run FILE"),
        ({"negatives": "hard"}, "negatives must be one of .*got 'hard'"),
        ({"cold_fraction": 0.6}, r"cold_fraction must lie in \(0, 0\.5\], got 0\.6"),
        ({"k_core": -1}, "k_core must be at least 0, got -1"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Settings(**settings)
