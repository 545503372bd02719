"""Addresses and licenses of the public data sets. All addresses belong to the publishers.

GroupLens publishes an MD5 beside each archive; those of the stable releases are also pinned here. No checksums are
published for the Amazon files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
AMAZON_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
AMAZON_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"

_MOVIELENS_MD5 = {  # name -> MD5 of the archive; None: the release changes
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m": "ce571fd55effeba0271552578f2648bd",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": None,
    "ml-latest-small": None,
}
_MOVIELENS_LICENSE = (
    "{} is GroupLens' (University of Minnesota): research use, no commercial use without their permission; the README "
    "in the folder has the terms. Cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, "
    "ACM TiiS 5(4), 2015, doi:10.1145/2827872."
)
_AMAZON_LICENSE = {
    2014: "Amazon reviews of 2014: for research. Cite R. He and J. McAuley, Ups and Downs, WWW 2016.",
    2018: "Amazon reviews of 2018: for research. Cite J. Ni et al., Justifying Recommendations, EMNLP 2019.",
    2023: "Amazon reviews of 2023: for research. Cite Y. Hou et al., Bridging Language and Items, arXiv 2403.03952.",
}
_IN_ALL_EDITIONS = (
    "Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics "
    "Grocery_and_Gourmet_Food Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products "
    "Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games "
)
_IN_2018_AND_2023 = (
    "All_Beauty Appliances Arts_Crafts_and_Sewing Gift_Cards Industrial_and_Scientific Magazine_Subscriptions Software "
)
CATEGORIES = {
    2014: (_IN_ALL_EDITIONS + "Amazon_Instant_Video Apps_for_Android Baby Beauty Health_and_Personal_Care").split(),
    2018: (_IN_ALL_EDITIONS + _IN_2018_AND_2023 + "AMAZON_FASHION Luxury_Beauty Prime_Pantry").split(),
    2023: (
        _IN_ALL_EDITIONS
        + _IN_2018_AND_2023
        + "Amazon_Fashion Baby_Products Beauty_and_Personal_Care Handmade_Products Health_and_Household "
        + "Health_and_Personal_Care Subscription_Boxes Unknown"
    ).split(),
}
CORES = ("0core", "5core")
SPLITS = ("rating_only", "last_out", "timestamp", "last_out_w_his", "timestamp_w_his")
NAME_PATTERNS = (  # for messages
    *("ml-100k", *_MOVIELENS_MD5),
    *("amazon-2014/CATEGORY", "amazon-2018/CATEGORY", "amazon-2023/CATEGORY"),
    f"amazon-2023/CATEGORY/{{{','.join(CORES)}}}/{{{','.join(SPLITS)}}}",
)


@dataclass(frozen=True)
class Remote:
    """Files of one data set on its publisher's server."""

    urls: tuple[str, ...]
    license: str
    archive: bool = False  # whether there is a single archive to unpack, with an MD5 published beside it
    md5: str | None = None  # pinned MD5 of the archive


def names() -> Iterator[str]:
    """Iterate over all names that `remote` accepts."""
    yield from _MOVIELENS_MD5
    for year, categories in CATEGORIES.items():
        yield from (f"amazon-{year}/{category}" for category in categories)
    for category in CATEGORIES[2023]:
        yield from (f"amazon-2023/{category}/{core}/{split}" for core in CORES for split in SPLITS)


def remote(name: str) -> Remote | None:
    """Return the addresses of a data set; None for an unknown name."""
    if name in _MOVIELENS_MD5:
        license = _MOVIELENS_LICENSE.format(name.replace("ml-", "MovieLens-"))
        return Remote((f"{GROUPLENS}/{name}.zip",), license, archive=True, md5=_MOVIELENS_MD5[name])
    if name not in set(names()):
        return None
    edition, category, *benchmark = name.split("/")
    year = int(edition.removeprefix("amazon-"))
    urls: tuple[str, ...]
    if year == 2014:
        urls = (f"{AMAZON_2014}/ratings_{category}.csv", f"{AMAZON_2014}/meta_{category}.json.gz")
    elif year == 2018:
        urls = (
            f"{AMAZON_2018}/categoryFilesSmall/{category}.csv",
            f"{AMAZON_2018}/metaFiles2/meta_{category}.json.gz",
        )
    else:
        metadata = f"{AMAZON_2023}/raw/meta_categories/meta_{category}.jsonl.gz"
        urls = (*_interactions_2023(category, benchmark), metadata)
    return Remote(urls, _AMAZON_LICENSE[year])


def _interactions_2023(category: str, benchmark: list[str]) -> list[str]:
    if not benchmark:
        return [f"{AMAZON_2023}/raw/review_categories/{category}.jsonl.gz"]
    core, split = benchmark
    parts = [""] if split == "rating_only" else [".train", ".valid", ".test"]
    return [f"{AMAZON_2023}/benchmark/{core}/{split}/{category}{part}.csv.gz" for part in parts]
