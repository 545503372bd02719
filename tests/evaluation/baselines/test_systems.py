"""What holds for every system, and tuning."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prepared.settings import Settings
from r2rank_jax.data.prepared.tables import Items
from r2rank_jax.errors import DataError
from r2rank_jax.evaluation.baselines import tuning
from r2rank_jax.evaluation.baselines.inputs import UnlabeledLists, training_data, without_labels
from r2rank_jax.evaluation.baselines.systems import System, settings_of, systems

ALL = systems(history_items=3)
SMALL = {
    "als": {"factors": (2,), "regularization": (1,), "weight": (3,), "iterations": (2,)},
    "bpr": {
        "factors": (2,),
        "regularization": (0.01,),
        "learning_rate": (0.1,),
        "negative_exponent": (0.5,),
        "epochs": (2,),
    },
    "sasrec": {"width": (4,), "length": (4,), "learning_rate": (0.01,), "dropout": (0.1,), "epochs": (1,)},
}
missing = pytest.mark.skipif(not importlib.util.find_spec("implicit"), reason="the extra baselines is not installed")
MARKS = {"als": missing, "sasrec": pytest.mark.slow}
names = pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in ALL])


@pytest.fixture(scope="module")
def fitted(train):
    """A function that fits a system with the first setting of a small grid, once per name and seed."""
    scorers = {}

    def fit(name, seed=0):
        if (name, seed) not in scorers:
            scorers[name, seed] = next(ALL[name].fit(train, SMALL.get(name, ALL[name].grid), seed))[1]
        return scorers[name, seed]

    return fit


@names
def test_scores_are_finite_also_without_history_or_training(fitted, lists, name):
    scores = fitted(name)(lists)
    assert scores.shape == (12, 5) and scores.dtype == np.float64 and np.isfinite(scores).all()


@names
def test_a_list_is_scored_alike_whatever_else_is_scored(fitted, lists, name):
    if name == "random":
        pytest.skip("random scores are those of a position")
    rows = np.array([11, 4, 0])
    part = UnlabeledLists(lists.users[rows], [lists.histories[row] for row in rows], lists.candidates[rows, ::-1])
    np.testing.assert_allclose(fitted(name)(part), fitted(name)(lists)[rows, ::-1], rtol=1e-5, atol=1e-6)


@names
def test_a_seed_gives_the_same_system_again(train, fitted, lists, name):
    again = next(ALL[name].fit(train, SMALL.get(name, ALL[name].grid), 0))[1]
    np.testing.assert_array_equal(again(lists), fitted(name)(lists))


@pytest.mark.parametrize("name", ["random", "bpr", pytest.param("sasrec", marks=pytest.mark.slow)])
def test_seeds_differ(fitted, lists, name):
    assert (fitted(name, 1)(lists) != fitted(name)(lists)).any()


def test_item_knn_reads_what_the_language_model_reads(fitted, lists):
    shortened = replace(lists, histories=[history[-3:] for history in lists.histories])
    np.testing.assert_array_equal(fitted("item_knn")(lists), fitted("item_knn")(shortened))
    assert (fitted("item_knn_all")(lists) != fitted("item_knn_all")(shortened)).any()


def dataset(test_labels=(0, 0, 1)):
    """Three users with items 0..4, 1..5 and 2..6: three of training, one of validation, one of test."""
    items = np.concatenate([np.arange(user, user + 5) for user in range(3)]).astype(np.int32)
    held_out = {
        name: CandidateLists(
            np.arange(3, dtype=np.int32),
            np.full(3, position, np.int32),
            np.array([[7, 8, user + position] for user in range(3)], np.int32),
            np.array([labels] * 3, np.float32),
        )
        for name, position, labels in (("valid", 3, (0, 0, 1)), ("test", 4, test_labels))
    }
    return Dataset(
        split="leave_one_out",
        items=Items(tuple("abcdefghi"), tuple("abcdefghi"), tuple("abcdefghi"), ((),) * 9),
        offsets=np.arange(0, 16, 5),
        item=items,
        rating=np.ones(15, np.float32),
        timestamp=np.tile(np.arange(5), 3),
        train_end=np.full(3, 3, np.int32),
        settings=Settings(candidates=3),
        data_hash="",
        candidate_hash="",
        held_out=held_out,
    )


def test_a_system_sees_training_interactions_and_the_history_of_a_list():
    data = dataset()
    train = training_data(data)
    assert train.items.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4] and train.users.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    histories = [h.tolist() for h in without_labels(data, data.candidate_lists("test")).histories]
    assert histories == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]  # with the validation positive, without the test's
    assert without_labels(data, data.candidate_lists("valid")).histories[0].tolist() == [0, 1, 2]


def by_id(train, grid, seed):
    """Scores that rise or fall with the item id, with a record of each setting's first use."""
    for setting in settings_of(grid):
        yield setting, lambda lists, sign=setting["sign"]: sign * lists.candidates.astype(np.float64)


@pytest.mark.slow
def test_tuning_chooses_the_first_best_setting_of_validation():
    """The positive has the lowest id, so -1 ranks it first: NDCG 1; +1 ranks it last of three: NDCG 1/2."""
    tuned = tuning.tune(System({"sign": (1, -1, -2)}, by_id), dataset())
    assert [(trial.setting["sign"], trial.validation) for trial in tuned.trials] == [(1, 0.5), (-1, 1.0), (-2, 1.0)]
    assert tuned.chosen == tuned.trials[1] and tuned.metric == "ndcg@10"
    np.testing.assert_array_equal(tuned.test_scores, [[-7, -8, -4], [-7, -8, -5], [-7, -8, -6]])


@names
def test_labels_of_the_test_lists_change_nothing(name):
    system = replace(ALL[name], grid=SMALL.get(name, ALL[name].grid))
    one, other = (tuning.tune(system, dataset(test_labels)) for test_labels in ((0, 0, 1), (1, 0, 0)))
    np.testing.assert_array_equal(one.test_scores, other.test_scores)
    assert one.trials == other.trials
    assert len(one.trials) == len(settings_of(system.grid))


def test_tuning_needs_validation_lists():
    data = dataset()
    none = data.candidate_lists("valid").take(np.zeros(0, int))
    with pytest.raises(DataError, match="tuning needs validation lists"):
        tuning.tune(ALL["popularity"], replace(data, held_out={**data.held_out, "valid": none}))
