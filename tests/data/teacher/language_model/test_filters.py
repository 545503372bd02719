import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from r2rank_jax.data.teacher.language_model.filters import REASONS, Filters, foreign_titles, leaks, open_filters
from r2rank_jax.data.teacher.language_model.instructions import DATA, VERSION, flat, messages, read_rationale
from r2rank_jax.data.teacher.language_model.settings import TeacherSettings
from r2rank_jax.errors import DataError

SHOWN = (
    'Films seen:\nAlien (1979) 5\nWallace & Gromit: "A Close Shave" (1995) 4\nAmélie (2001) 3\n'
    "Heat (1995); Crime\nReason:"
)


def judge(content, label=True, filters=None):
    filters = filters or Filters(lambda text: len(text.split()), 12)
    return filters.judge(content, label=label, shown=SHOWN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("VERDICT: MATCH", "empty"),
        ("It fits.", "no verdict"),
        ("It fits. VERDICT: MATCH", "no verdict"),
        ("VERDICT: MATCH\nIt fits.", "no verdict"),
        ("VERDICT: MISMATCH\nNo, it fits.\nVERDICT: MATCH", "no verdict"),
        ("It fits.\nVERDICT: MAYBE", "no verdict"),
        ("It does not.\nVERDICT: MISMATCH", "contradicts the label"),
        ("As the label says, it fits.\nVERDICT: MATCH", "leaks the label"),
        ("Word " * 11 + "\nVERDICT: MATCH", "too long"),
        ('Close to "Aliens".\nVERDICT: MATCH', "foreign title"),
    ],
)
def test_each_refusal(content, reason):
    assert judge(content) == reason and reason in REASONS


@pytest.mark.parametrize(
    "content",
    [
        'Tense as "Alien".\n\nVERDICT: MATCH',
        'Tense as "Alien".\n**Verdict: Match**\n',
        "Tense as “Alien.”\n> VERDICT - MATCH.",
        'Tense as "Alien".\r\n\r\n*VERDICT*: `MATCH`',
    ],
)
def test_a_good_answer_becomes_one_line_with_the_verdict_last(content):
    text = judge(content).text
    assert text.startswith(" Tense as ") and text.endswith(" Verdict: match") and "\n" not in text
    assert judge(content.replace("atch", "ismatch").replace("ATCH", "ISMATCH"), label=False).text.endswith(": mismatch")


def test_only_an_accepted_text_makes_a_duplicate():
    filters = Filters(lambda text: len(text.split()), 12)
    answer = "It fits.\nVERDICT: MATCH"
    assert judge("It  FITS!\nVERDICT: MISMATCH", True, filters) == "contradicts the label"
    branch = filters.branch()
    assert judge(answer, True, filters).match and judge("it fits\nVerdict: match", True, filters) == "duplicate"
    assert judge(answer, True, branch).match, "a branch remembers only its own texts"
    assert judge("It fits.\nVERDICT: MISMATCH", False, filters).match is False


@pytest.mark.parametrize(
    "reasons",
    [
        "Given the label, it fits.", "The ground truth is a match.", "I was told that the user liked it.",
        "The user went on to choose it.", "The user did not choose it.", "The user didn’t pick it.",
        "In line with the correct answer.", "It is labeled as a match.", "The prompt says so.",
        "The user ultimately chose it.",
        "We are told it was passed over.", "the known outcome", "Ground-truth match",
    ],
)  # fmt: skip
def test_words_that_reveal_the_label(reasons):
    assert leaks(reasons)


@pytest.mark.parametrize(
    "reasons",
    [
        'The film "The Label" is close.', "The user is likely to go on to watch it.", "A story told in flashbacks.",
        "It did well with critics.", "The user seems to prefer drama; the result is a weak match.",
        "The answer lies in the ratings.", "A verdict needs more.", "An indie label's concert film.",
        "A tale as told by a child; the hero is informed late.",
    ],
)  # fmt: skip
def test_words_that_do_not_reveal_the_label(reasons):
    assert not leaks(reasons)


def test_titles_are_compared_as_words():
    reasons = 'Like "ALIEN," “Amélie”, "Alien (1979)", "A Close Shave" and «Heat»; not like "Ali" or "Heat 2", nor "".'
    assert foreign_titles(reasons, SHOWN) == ["Ali", "Heat 2"]
    assert foreign_titles('"Ame\u0301lie"', SHOWN) == [], "the same letters, composed otherwise"


def test_length_in_the_students_tokens(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    content = "It fits well.\nVERDICT: MATCH"  # It fits well . Verdict : match = 7, and the stop token
    for limit, place in ((8, tmp_path), (7, tmp_path / "tokenizer.json")):
        filters = open_filters(TeacherSettings(model="m", tokenizer=place, rationale_tokens=limit, rationale_words=1))
        verdict = filters.judge(content, label=True, shown="")
        assert verdict == "too long" if limit == 7 else verdict.match
    words = open_filters(TeacherSettings(model="m", rationale_words=3))
    assert words.judge(content, label=True, shown="").match
    assert words.judge("It " + content, label=True, shown="") == "too long"
    with pytest.raises(DataError, match=r"--tokenizer must name a tokenizer\.json.*does not exist"):
        open_filters(TeacherSettings(model="m", tokenizer=tmp_path / "no", rationale_tokens=3))


def test_the_teacher_sees_the_students_prompt_and_the_label_only_if_told():
    system, user = messages("HISTORY\n", "CANDIDATE\nReason:", words=60, label=None)
    assert user["content"] == DATA.format(prefix="HISTORY\n", suffix="CANDIDATE\nReason:")
    assert "at most 60 words" in system["content"] and VERSION.endswith("-1")
    for label, words in ((True, "went on to choose"), (False, "did not go on to choose")):
        told = messages("HISTORY\n", "CANDIDATE\nReason:", words=60, label=label)
        assert told[0] == system and told[1]["content"].startswith(user["content"])
        assert f"the user {words} this candidate" in told[1]["content"]
        assert words not in user["content"] + system["content"]


def test_invisible_characters_do_not_reach_a_rationale():
    assert flat("a\u202eb\x00\u2028 c\u200b\ufeff") == "ab c"
    assert read_rationale("It\x0bfits\u202e.\nVERDICT: MATCH").text == " It fits. Verdict: match"
