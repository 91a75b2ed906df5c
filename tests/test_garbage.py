"""Pauses of the collector."""

from __future__ import annotations

import gc

import pytest

from unisono.garbage import collection_paused


def test_the_collector_rests_meanwhile_and_works_again_afterwards() -> None:
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_pause_within_a_pause_does_not_end_it() -> None:
    with collection_paused():
        with collection_paused():
            pass
        assert not gc.isenabled()


def test_an_error_ends_the_pause() -> None:
    with pytest.raises(KeyError), collection_paused(keep=True):
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_is_kept_is_left_out_of_later_collections() -> None:
    gc.collect()
    try:
        with collection_paused(keep=True):
            made = [[]]
        assert gc.get_freeze_count() > 0
        assert all(each is not made for each in gc.get_objects())
    finally:
        gc.unfreeze()
