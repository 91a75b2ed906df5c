"""Regions are those of the real membership, and gateways know whole regions."""

from __future__ import annotations

from itertools import pairwise

import pytest

from unisono.routing.entry import node_key, region_of, shared_bits
from unisono.routing.membership import VIEW as REAL_VIEW
from unisono.simulation.cell import Cell, by_distance, by_hash, known_to, main_city
from unisono.simulation.geography import one_way_us
from unisono.simulation.settings import VIEW
from unisono.simulation.world import Machine, build

MACHINES = build(7, 700)


def test_the_view_is_the_memberships() -> None:
    assert VIEW == REAL_VIEW


@pytest.mark.parametrize("view", [16, 64, 256, 1000])
@pytest.mark.parametrize("divide", [by_hash, by_distance])
def test_every_machine_is_in_one_region_of_bounded_size(divide: object, view: int) -> None:
    assert callable(divide)
    groups: list[list[Machine]] = divide(MACHINES, view)
    assert max(map(len, groups)) <= view
    assert sorted(m.index for group in groups for m in group) == list(range(len(MACHINES)))


def test_regions_by_hash_are_those_that_members_keep() -> None:
    for group in by_hash(MACHINES, 100):
        keys = [node_key(m.node) for m in group]
        depth = min(shared_bits(keys[0], key) for key in keys)
        outside = [node_key(m.node) for m in MACHINES if m not in group]
        region = region_of(keys[0], depth)
        assert {region_of(key, depth) for key in keys} == {region}
        assert all(region_of(key, depth) != region for key in outside)


def test_regions_by_distance_are_closer_together() -> None:
    def spread(groups: list[list[Machine]]) -> float:
        pairs = [one_way_us(a.city, b.city) for g in groups for a, b in pairwise(g)]
        return sum(pairs) / len(pairs)

    assert spread(by_distance(MACHINES, 64)) < spread(by_hash(MACHINES, 64)) / 4


@pytest.mark.parametrize("near", [False, True])
def test_a_gateway_knows_its_own_region_and_as_many_as_its_view_holds(near: bool) -> None:
    groups = (by_distance if near else by_hash)(MACHINES, 64)
    cells = [Cell(index, members) for index, members in enumerate(groups)]
    for cell in cells:
        small = known_to(cell.index, cells, 64, near=near)
        large = known_to(cell.index, cells, 300, near=near)
        assert cell in small
        assert cell in large
        assert len(large) > len(small)
        assert sum(len(c.members) for c in large) <= 300
    assert known_to(0, cells, 700, near=near) == cells or near


def test_the_main_city_is_the_one_of_most_members() -> None:
    members = [m for m in MACHINES if m.city == 4][:5] + [m for m in MACHINES if m.city == 2][:3]
    assert main_city(members) == 4
