"""The templates: the words around item text, per domain, frozen once released.

A template's name ends in its version. Models were trained on its exact words, so a released template never changes;
better words are a new template (tests/data/prompts/test_templates.py holds the digests).
"""

from __future__ import annotations

from dataclasses import dataclass

from r2rank_jax.data.prompts.item_text import REASON, SCORE, as_data
from r2rank_jax.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Template:
    """The words of one domain's prompts. Delimiters: "; " between fields, a line end after each line."""

    name: str
    instruction: str  # one line, which holds "; ", so that no item text can spell it
    missing: str  # shown in place of a title that is missing
    kinds: str = ""  # in front of an item's genres
    between_kinds: str = ", "
    details: tuple[tuple[str, str], ...] = ()  # (name of a detail, words in front of it) that candidates show
    times: bool = True  # whether an interaction says how long before the list it was
    mark: str = REASON  # where the rationale starts
    mark_without_reasoning: str = SCORE  # where the head reads, if there is no rationale

    def title_or_missing(self, title: str) -> str:
        """The title, or this template's words for a missing one. Prepared data keep missing titles empty.

        >>> FILMS_2.title_or_missing("")
        'Unknown film'
        """
        return title if as_data(title) else self.missing


FILMS_1 = Template(
    name="films-1",
    instruction="Films seen, oldest first, rated 1 to 5; then a candidate:\n",
    missing="Unknown film",
    between_kinds=" ",
    times=False,
    mark_without_reasoning=REASON,  # as it was measured: with and without reasoning the same prompt
)
FILMS_2 = Template(
    name="films-2",
    instruction="Films seen, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n",
    missing="Unknown film",
)
PRODUCTS_1 = Template(
    name="products-1",
    instruction="Products bought, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n",
    missing="Unknown product",
    kinds="in ",
    details=(("brand", "by "), ("price", "price ")),
)
GAMES_1 = Template(
    name="games-1",
    instruction="Games played, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n",
    missing="Unknown game",
    kinds="kind ",
    details=(("developer", "by "), ("price", "price ")),
)
BOOKS_1 = Template(
    name="books-1",
    instruction="Books read, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n",
    missing="Unknown book",
    kinds="on ",
    details=(("author", "by "), ("price", "price ")),
)
PLACES_1 = Template(
    name="places-1",
    instruction="Places visited, oldest first, rated 1 to 5 or -, and how long before today; then a candidate:\n",
    missing="Unknown place",
    kinds="kind ",
    details=(("city", "in "), ("price", "price ")),
)
TEMPLATES = {each.name: each for each in (FILMS_1, FILMS_2, PRODUCTS_1, GAMES_1, BOOKS_1, PLACES_1)}
# For the data card: a prepared folder has a domain, but no `data.template`.
TEMPLATE_OF_DOMAIN = {
    "films": FILMS_2,
    "products": PRODUCTS_1,
    "games": GAMES_1,
    "books": BOOKS_1,
    "places": PLACES_1,
}


def find_template(name: str) -> Template:
    """The template of that name.

    Raises:
        DataError: there is none.
    """
    if name not in TEMPLATES:
        raise DataError(f"data.template must be one of {', '.join(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]
