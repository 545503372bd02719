"""The offline TEMPLATE teacher: sentences filled in from training statistics. It is not a language model.

It lets the whole pipeline run on a machine without access to a large model, and every file it writes records
`"teacher": "template"`. It states three kinds of facts, all from training interactions and the list's visible history:

- match: how strongly the visible films support the candidate, by EASE item-item weights (Steck,
  Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019, eq. 8), and the film with the largest weight;
- fame: how many training interactions the candidate has;
- genre: how the user rated visible films of the candidate's genres.

A verdict of five levels comes last, from a logistic regression on these facts that is fitted on training lists. The
user's own interactions are removed from the statistics first (leave-one-user-out, exactly, by a rank-one update).
Otherwise a training positive would contribute to its own evidence, and rationales would be more accurate on training
lists than on held-out ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prompts.prompts import named, require_history
from r2rank_jax.data.prompts.templates import FILMS_1, Template
from r2rank_jax.data.teacher.protocol import Lesson, TeacherOutput
from r2rank_jax.errors import DataError

RIDGE = 500.0  # EASE's lambda
MAX_ITEMS = 20_000  # the item-item matrix is dense
FIT_LISTS = 4000  # training lists that calibrate the levels and the verdict
CALIBRATION_KEY = 2**31 - 1  # seed of their negatives; no epoch has this number

MATCH = ("no match", "faint match", "some match", "good match", "strong match", "perfect match")
MATCH_QUANTILES = (0.4, 0.65, 0.82, 0.92, 0.97)  # of candidates; fine at the top, where rankings are decided
FAME = ("obscure", "rare", "known", "popular", "famous")
FAME_QUANTILES = (0.5, 0.75, 0.88, 0.96)
GENRE = ("disliked", "mixed", "liked", "new")
GENRE_RATINGS = (3.25, 4.0)
VERDICT = ("no", "unlikely", "maybe", "likely", "yes")
VERDICT_QUANTILES = (0.5, 0.75, 0.89, 0.96)
CITE_FROM = 2  # lowest level of MATCH that names the film with the largest weight

CITED_CHARACTERS = 20


@dataclass(frozen=True)
class Evidence:
    """Facts about each candidate of L lists; all [L, N]."""

    match: Array  # float32  weighted sum of EASE weights over the visible films
    fame: Array  # float32  log(1 + training interactions of other users)
    genre_rating: Array  # float32  mean rating of visible films sharing a genre; NaN if there is none
    genre: Array  # int32    index of the genre named; -1 if the item has none
    cited: Array  # int32    item of the visible film with the largest weight


@dataclass(frozen=True)
class Levels:
    """The evidence as words: indices into MATCH, FAME, GENRE and VERDICT; all [L, N]."""

    match: Array
    fame: Array
    genre: Array
    verdict: Array


class TemplateTeacher:
    """Writes a sentence per candidate from `TemplateStatistics`; implements `Teacher`."""

    name = "template"
    draws_nested_lists = False

    def rationales(self, lesson: Lesson) -> TeacherOutput:
        """Rationales for all lists of a lesson.

        Raises:
            DataError: a catalog too large for a dense item-item matrix, or a list without a history.
        """
        statistics = TemplateStatistics(lesson.dataset, history_items=lesson.history_items, seed=lesson.seed)
        texts = statistics.rationales(lesson.lists, lesson.template)
        remark = "sentences from training statistics, not a language model"
        return TeacherOutput(rationales=dict(enumerate(texts)), remark=remark)


class TemplateStatistics:
    """Statistics of the training interactions, and levels and a verdict calibrated on training lists.

    Args:
        dataset: only its training interactions are used.
        history_items: visible interactions, as in the prompt.
        seed: of the training lists used for calibration.

    Raises:
        DataError: a catalog too large for a dense item-item matrix.
    """

    def __init__(self, dataset: Dataset, *, history_items: int = 10, seed: int = 0):
        if len(dataset.items) > MAX_ITEMS:
            raise DataError(
                f"the template teacher needs at most {MAX_ITEMS} items (its item-item matrix is dense), got "
                f"{len(dataset.items)}; use a language model as teacher"
            )
        self.dataset, self.history_items = dataset, history_items
        self._genres, self._has_genre = _genre_table(dataset)
        self._seen = np.zeros((dataset.users, len(dataset.items)), np.float32)
        for user in range(dataset.users):
            self._seen[user, dataset.item[dataset.train_rows(user)]] = 1
        self._counts = self._seen.sum(axis=0)
        gram = self._seen.T @ self._seen
        gram[np.diag_indices_from(gram)] += RIDGE
        self._inverse = np.linalg.inv(gram.astype(np.float64)).astype(np.float32)
        self._seen_inverse = self._seen @ self._inverse  # [users, items]
        self._calibrate(seed)

    def evidence(self, lists: CandidateLists) -> Evidence:
        """Facts about every candidate. Of the list's own user, they use only the visible history."""
        by_list = [
            self._list_evidence(int(u), int(p), items) for u, p, items in zip(lists.user, lists.position, lists.items)
        ]
        return Evidence(*(np.stack(column) for column in zip(*by_list)))

    def score(self, evidence: Evidence) -> Array:
        """float32 [L, N]: log-odds of being a positive; ranks the candidates."""
        return (self._features(evidence) @ self._weights).astype(np.float32)

    def levels(self, evidence: Evidence) -> Levels:
        """The levels that a rationale states."""
        genre = np.digitize(np.nan_to_num(evidence.genre_rating), GENRE_RATINGS)
        return Levels(
            np.digitize(evidence.match, self._match_edges),
            np.digitize(evidence.fame, self._fame_edges),
            np.where(np.isnan(evidence.genre_rating), len(GENRE) - 1, genre),
            np.digitize(self.score(evidence), self._verdict_edges),
        )

    def rationales(self, lists: CandidateLists, template: Template = FILMS_1) -> list[list[str]]:
        """[L][N] rationales: the evidence, its strongest kind first, then the verdict.

        Args:
            lists: L lists of N items.
            template: of the student's prompts, which names items without a title.
        """
        evidence = self.evidence(lists)
        levels = self.levels(evidence)
        texts = []
        for row in range(len(lists)):
            columns = (
                levels.match,
                levels.fame,
                levels.genre,
                levels.verdict,
                evidence.genre,
                evidence.cited,
            )
            cells = zip(*(column[row].tolist() for column in columns))
            texts.append([self._sentence(*cell, template=template) for cell in cells])
        return texts

    def _sentence(
        self, match: int, fame: int, genre: int, verdict: int, named_genre: int, cited: int, *, template: Template
    ) -> str:
        items = self.dataset.items
        parts = [f" {MATCH[match]}"]
        if match >= CITE_FROM:
            parts.append(f"like: {named(_short(items.title[cited]), items.year[cited], template)}")
        parts.append(FAME[fame])
        if named_genre >= 0:
            parts.append(f"{self._genres[named_genre]} {GENRE[genre]}")
        return "; ".join(parts) + f"; verdict {VERDICT[verdict]}"

    def _list_evidence(self, user: int, position: int, items: Array) -> tuple[Array, ...]:
        data = self.dataset
        rows = data.history(user, position, self.history_items)
        require_history(rows.stop - rows.start)
        films, ratings = data.item[rows], data.rating[rows]
        weights = self._leave_one_out_weights(user, films, items) * _rating_weight(ratings)[:, None]
        shared = self._has_genre[films][:, None, :] & self._has_genre[items][None, :, :]  # [h, N, genres]
        shares = shared.any(axis=-1)
        with np.errstate(invalid="ignore"):
            rating = np.where(shares, ratings[:, None], 0).sum(axis=0) / shares.sum(axis=0)
        # The named genre is the candidate's most frequent one in the history, or its first if none occurs there.
        frequency = np.where(self._has_genre[items], shared.sum(axis=0), -1)
        genre = np.where(self._has_genre[items].any(axis=-1), frequency.argmax(axis=-1), -1)
        fame = np.log1p(self._counts[items] - self._seen[user, items])
        return (
            weights.sum(axis=0).astype(np.float32),
            fame.astype(np.float32),
            rating.astype(np.float32),
            genre.astype(np.int32),
            films[weights.argmax(axis=0)],
        )

    def _leave_one_out_weights(self, user: int, films: Array, items: Array) -> Array:
        """EASE weights [films, items] without this user.

        With P = (X'X + λ)⁻¹ and x the user's row, Sherman-Morrison gives (X'X − xx' + λ)⁻¹ = P + Pxx'P / (1 −
        x'Px); the weights are −P_ij / P_jj off the diagonal.
        """
        row = self._seen_inverse[user]
        scale = 1.0 / (1.0 - float(row @ self._seen[user]))
        inverse = self._inverse[np.ix_(films, items)] + scale * np.outer(row[films], row[items])
        diagonal = self._inverse[items, items] + scale * row[items] ** 2
        return np.where(films[:, None] == items[None, :], 0, -inverse / diagonal)

    def _features(self, evidence: Evidence) -> Array:
        """[L, N, F]; the last is the intercept."""
        unseen = np.isnan(evidence.genre_rating)
        return np.stack(
            [
                evidence.match,
                np.log(np.maximum(evidence.match, 0) + 0.02),
                evidence.fame,
                np.where(unseen, 0, np.nan_to_num(evidence.genre_rating) - 3.5),
                unseen,
                np.ones_like(evidence.match),
            ],
            axis=-1,
        ).astype(np.float64)

    def _calibrate(self, seed: int) -> None:
        """Set the levels' edges and the verdict's weights from sampled training lists."""
        pairs = self.dataset.train_lists(1)
        rng = np.random.default_rng([self.dataset.seed, seed, CALIBRATION_KEY])
        pairs = pairs[rng.choice(len(pairs), min(FIT_LISTS, len(pairs)), replace=False)]
        size = min(20, len(self.dataset.items) // 2)
        lists = self.dataset.training_lists(pairs, key=CALIBRATION_KEY, n=size)
        evidence = self.evidence(lists)
        self._match_edges = np.quantile(evidence.match, MATCH_QUANTILES)
        self._fame_edges = np.quantile(evidence.fame, FAME_QUANTILES)
        self._weights = fit_logistic(self._features(evidence), lists.labels)
        self._verdict_edges = np.quantile(self.score(evidence), VERDICT_QUANTILES)


def fit_logistic(features: Array, labels: Array, *, ridge: float = 1e-3, steps: int = 25) -> Array:
    """Logistic regression by Newton's method.

    Args:
        features: [..., F], including the intercept.
        labels: [...] in {0, 1}.
        ridge: L2 penalty per example.
        steps: Newton iterations.

    Returns:
        float64 [F].
    """
    x = features.reshape(-1, features.shape[-1])
    y = labels.reshape(-1)
    weights = np.zeros(x.shape[1])
    penalty = ridge * len(x) * np.eye(x.shape[1]) / 100
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (p - y) + penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        weights = weights - np.linalg.solve(hessian, gradient)
    return weights


def _rating_weight(ratings: Array) -> Array:
    """Every film counts, because watching it is the strongest signal; a liked one counts somewhat more."""
    return (1.0 + 0.2 * (ratings - 3.5)).astype(np.float32)


def _short(title: str) -> str:
    """A cited title of bounded length, so that a token limit does not cut off the verdict after it."""
    return title if len(title) <= CITED_CHARACTERS else title[: CITED_CHARACTERS - 1].rstrip() + "…"


def _genre_table(dataset: Dataset) -> tuple[tuple[str, ...], Array]:
    names = tuple(sorted({genre for genres in dataset.items.genres for genre in genres}))
    table = np.zeros((len(dataset.items), max(1, len(names))), bool)
    for item, genres in enumerate(dataset.items.genres):
        table[item, [names.index(genre) for genre in genres]] = True
    return names, table
