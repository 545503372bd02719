"""Changes to rationales, by hand: what a cut keeps, where a verdict starts, who receives whose rationale."""

import re

import numpy as np
import pytest

from r2rank_jax.data.prompts.tokenizer import as_text_tokenizer, train_tokenizer
from r2rank_jax.evaluation.probes.rationales import (
    changed_rationales,
    derangements,
    edit_rationales,
    exchanged,
    first_half,
    lengths,
    split_verdict,
    verdict_text,
    words_of,
)

PAD, STOP = 0, 1


class Pieces:
    """A tokenizer of a few pieces; text that no piece spells is encoded letter by letter."""

    pad, stop, opening, closing = PAD, STOP, (), ()
    pieces = ("match", "; ", ";", " yes", "yes", "no", " ", "strong match", "a; b", "like: Heat", "verdict no")
    vocabulary = 1000

    def encode(self, texts):
        named = {piece: 2 + place for place, piece in enumerate(self.pieces)}
        longest = "|".join(re.escape(piece) for piece in sorted(self.pieces, key=len, reverse=True))
        return [tuple(named.get(x, 100 + ord(x[0])) for x in re.findall(f"{longest}|(?s:.)", text)) for text in texts]

    def decode(self, ids):
        return "".join(self.pieces[i - 2] if i < 100 else chr(i - 100) for i in ids if i not in (PAD, STOP))

    def ids(self, *pieces):
        return tuple(2 + self.pieces.index(piece) for piece in pieces)


PIECES = Pieces()


@pytest.mark.parametrize(
    ("words", "before", "verdict"),
    [
        (("match", "; ", "yes"), ("match", "; "), ("yes",)),  # the blank belongs to the separator's token
        (("match", ";", " yes"), ("match", ";"), (" yes",)),  # or to the word's
        (("match", ";", " ", "yes"), ("match", ";", " "), ("yes",)),
        (("match", ";", "yes"), ("match", ";"), ("yes",)),
        (("match", "; ", "like: Heat", "; ", "verdict no"), ("match", "; ", "like: Heat", "; "), ("verdict no",)),
        (("match", "; ", "yes", "; "), ("match", "; "), ("yes", "; ")),  # a separator at the end
        (("match", "; ", "yes", ";", ";"), ("match", "; "), ("yes", ";", ";")),
        (("match", " yes"), ("match",), (" yes",)),  # no separator: the last word
        (("yes",), (), ("yes",)),
        ((" yes",), (), (" yes",)),
        ((), (), ()),
        (("; ",), ("; ",), ()),  # no words
        ((" ", ";", " "), (" ", ";", " "), ()),
    ],
)
def test_the_verdict_is_cut_between_tokens(words, before, verdict):
    assert split_verdict(PIECES, PIECES.ids(*words)) == (PIECES.ids(*before), PIECES.ids(*verdict))


@pytest.mark.parametrize(
    ("words", "before", "verdict"),
    [(("match", "; ", "a; b"), "match; a;", " b"), (("strong match",), "strong", " match")],
)
def test_a_verdict_inside_a_token_is_encoded_anew(words, before, verdict):
    parts = split_verdict(PIECES, PIECES.ids(*words))
    assert tuple(map(PIECES.decode, parts)) == (before, verdict)
    assert parts == tuple(PIECES.encode([before, verdict]))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("match", "; ", "yes", "; "), "yes"),
        (("match", ";", " ", "verdict no"), "verdict no"),
        (("strong match",), "match"),
        (("; ",), ""),
        ((), ""),
    ],
)
def test_the_text_of_a_verdict_has_no_separators_around_it(words, text):
    assert verdict_text(PIECES, PIECES.ids(*words)) == text


def test_whatever_a_policy_writes_is_cut_into_its_two_parts():
    rng, blanks = np.random.default_rng(0), " \n\t\x0b\x1c\xa0\u2003"
    for _ in range(2000):
        text = "".join(rng.choice(list(blanks + ";;;xyé"), rng.integers(0, 9)))
        (words,) = PIECES.encode([text])
        before, verdict = split_verdict(PIECES, words)
        assert before + verdict == words, repr(text)
        parts = text.rstrip(blanks + ";").split(";")
        expected = parts[-1].strip() if len(parts) > 1 else (parts[0].split() or [""])[-1]
        assert verdict_text(PIECES, words) == expected, repr(text)
        assert PIECES.decode(verdict).strip(blanks).rstrip(blanks + ";") == expected, repr(text)


def test_the_tokenizer_of_our_runs_splits_at_its_own_tokens():
    texts = [" perfect match; like: Amélie (2001); famous; verdict yes", " faint match; rare; verdict no", " été; non"]
    tokenizer = as_text_tokenizer(train_tokenizer(texts * 20, 330))
    for text in texts:
        (words,) = tokenizer.encode([text])
        before, verdict = split_verdict(tokenizer, words)
        assert before + verdict == words
        assert tokenizer.decode(before) == text[: text.rindex("; ") + 2]
        assert verdict_text(tokenizer, words) == text.rsplit("; ", 1)[1]
    letters = tuple(tokenizer.encode([letter])[0] for letter in " été; non")  # as no tokenizer would spell it
    words = sum(letters, ())
    assert split_verdict(tokenizer, words) == (sum(letters[:6], ()), sum(letters[6:], ()))


def test_lengths_count_the_stop_token_and_nothing_after_it():
    tokens = np.array([[5, 6, STOP, 0], [STOP, 5, STOP, 0], [5, 0, 6, 7], [0, 0, 0, STOP]])
    assert lengths(tokens, STOP).tolist() == [3, 1, 4, 4]
    assert lengths(np.zeros((2, 3, 0), int), STOP).tolist() == [[0] * 3] * 2
    assert list(words_of(tokens, STOP)) == [(5, 6), (), (5, 0, 6, 7), (0, 0, 0)]


def test_an_edit_gets_the_words_and_the_stop_token_follows_what_it_returns():
    tokens = np.array([[[5, 6, STOP, 9]], [[5, 6, 7, 8]], [[STOP, 5, 5, 5]]])
    seen = []

    def edit(words):
        seen.append(words)
        return words[:1]

    changed = edit_rationales(tokens, edit, stop=STOP, pad=PAD)
    assert changed.tolist() == [[[5, STOP, PAD, PAD]], [[5, STOP, PAD, PAD]], [[STOP, PAD, PAD, PAD]]]
    assert sorted(seen) == [(), (5, 6), (5, 6, 7, 8)]
    same = edit_rationales(tokens, lambda words: words, stop=STOP, pad=PAD)
    assert same[1].tolist() == [[5, 6, 7, 8]], "a truncated rationale of T tokens has no room for a stop token"
    assert edit_rationales(tokens, lambda words: (7,) * 9, stop=STOP, pad=PAD)[0].tolist() == [[7] * 4]


def test_the_first_half_is_rounded_down():
    assert [first_half(tuple(range(n))) for n in range(5)] == [(), (), (0,), (0,), (0, 1)]


def test_all_variants_of_a_list():
    rows = [PIECES.ids("match", "; ", "yes"), PIECES.ids("strong match"), ()]
    tokens = np.full((1, 3, 1, 4), PAD, np.int32)
    for item, row in enumerate(rows):
        tokens[0, item, 0, : len(row) + 1] = (*row, STOP)
    variants = changed_rationales(tokens, np.array([[1, 2, 0]]), PIECES)

    def texts(name):
        assert ((variants[name] == STOP).sum(axis=-1) <= 1).all() and variants[name].dtype == np.int32
        return [
            PIECES.decode(row[: row.index(STOP)] if STOP in row else row) for row in variants[name][0, :, 0].tolist()
        ]

    assert variants["own"] is tokens
    assert texts("exchanged") == ["strong match", "", "match; yes"]
    assert texts("deleted") == ["", "", ""] and (variants["deleted"][..., 0] == STOP).all()
    assert texts("first_half") == ["match", "", ""]
    assert texts("verdict_left_out") == ["match; ", "stro", ""], "four tokens hold four letters"
    assert texts("verdict_only") == ["yes", " match", ""]


def test_derangements_are_cycles_that_leave_no_item_in_its_place():
    partners = derangements(200, 5, np.random.default_rng(0))
    assert (np.sort(partners, axis=1) == np.arange(5)).all() and (partners != np.arange(5)).all()
    assert len(np.unique(partners, axis=0)) == 24, "all cycles of five items occur"
    np.testing.assert_array_equal(partners, derangements(200, 5, np.random.default_rng(0)))
    assert derangements(3, 2, np.random.default_rng(0)).tolist() == [[1, 0]] * 3
    with pytest.raises(ValueError, match="at least 2"):
        derangements(3, 1, np.random.default_rng(0))


def test_exchanged_gives_every_item_its_partners_value():
    values = np.arange(12).reshape(2, 3, 2)
    partners = np.array([[1, 2, 0], [2, 0, 1]])
    expected = [[values[row, partners[row, item]].tolist() for item in range(3)] for row in range(2)]
    assert exchanged(values, partners).tolist() == expected
