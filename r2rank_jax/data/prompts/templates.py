"""Prompt templates: the words around item text, one template per domain and version.

A template's name ends in its version. Models are trained on its exact words, so a released template never changes. To
improve the words, add a new template (tests/data/prompts/test_templates.py holds a digest of each).
"""

from __future__ import annotations

from dataclasses import dataclass

from r2rank_jax.data.prompts.item_text import REASON, SCORE, as_data
from r2rank_jax.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Template:
    """The words of one domain's prompts. Fields are separated by "; ", and lines by a line end."""

    name: str
    instruction: str  # one line; it contains "; ", which item text cannot, so that no item text can imitate it
    missing: str  # shown in place of a title that is missing
    kinds: str = ""  # words before an item's genres
    between_kinds: str = ", "  # separator of genres
    details: tuple[tuple[str, str], ...] = ()  # (name of a detail, words before it), in the order of display
    times: bool = True  # whether an interaction shows how long before the list it happened
    mark: str = REASON  # the rationale starts after it
    mark_without_reasoning: str = SCORE  # without a rationale, the head reads its last token

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
    mark_without_reasoning=REASON,  # as in the measured runs: the same prompt with and without reasoning
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
    """Look up a template by name.

    Raises:
        DataError: no template has this name.
    """
    if name not in TEMPLATES:
        raise DataError(f"data.template must be one of {', '.join(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]
