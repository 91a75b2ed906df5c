"""Ten cities on five continents, and how long a packet takes between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class City:
    """A place where nodes and clients are."""

    name: str
    continent: str
    utc_offset: int
    """Hours that local time is ahead of UTC."""
    share: float
    """Part of all nodes, and of all requests, that is here."""


CITIES = (
    City("Dallas", "North America", -6, 0.12),
    City("Toronto", "North America", -5, 0.07),
    City("Washington DC", "North America", -5, 0.15),
    City("Frankfurt", "Europe", 1, 0.13),
    City("London", "Europe", 0, 0.11),
    City("Madrid", "Europe", 1, 0.07),
    City("Osaka", "Asia", 9, 0.08),
    City("Sydney", "Oceania", 11, 0.06),
    City("Tokyo", "Asia", 9, 0.14),
    City("Sao Paulo", "South America", -3, 0.07),
)
"""The shares are an assumption: no public census of such nodes exists."""

ROUND_TRIP_MS = (
    (2, 34, 31, 123, 113, 119, 150, 185, 141, 144),
    (34, 2, 19, 93, 84, 108, 169, 214, 162, 131),
    (31, 19, 2, 90, 76, 89, 175, 213, 169, 119),
    (123, 92, 92, 2, 13, 29, 232, 250, 231, 197),
    (114, 84, 76, 13, 2, 27, 244, 261, 242, 188),
    (119, 107, 90, 29, 27, 2, 259, 275, 255, 207),
    (150, 171, 176, 234, 245, 259, 2, 122, 9, 292),
    (184, 214, 214, 250, 261, 275, 122, 2, 115, 328),
    (143, 164, 167, 231, 243, 257, 9, 115, 2, 283),
    (144, 131, 119, 198, 188, 206, 291, 327, 287, 2),
)
"""Mean milliseconds there and back between the cities, in their order, as IBM Cloud measured them
between its regions from 28 September to 27 October 2024 ("Network latency", IBM Cloud Docs, VPC;
https://github.com/ibm-cloud-docs/vpc, _include-segments/network-latency.md). Within a city: 2 ms,
the round trip between its zones in the same tables. Access lines come on top (`hardware`)."""


def one_way_us(a: int, b: int) -> int:
    """Microseconds from city `a` to city `b`: half the mean of both measured round trips."""
    return (ROUND_TRIP_MS[a][b] + ROUND_TRIP_MS[b][a]) * 250


def local_hour(city: City, since_midnight_us: int) -> float:
    """The hour of the day in the city, 0 ≤ hour < 24, at a time since midnight UTC."""
    return (since_midnight_us / 3_600_000_000 + city.utc_offset) % 24
