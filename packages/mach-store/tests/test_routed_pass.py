from __future__ import annotations

import numpy as np

from mach_store.routed_pass import RoutedPass, RouteLog


def routed(layer: int) -> RoutedPass:
    return RoutedPass(layer, np.array([[layer]], np.uint16))


def test_routes_are_kept_only_while_they_are_wanted_and_given_once() -> None:
    log = RouteLog()
    log.add(routed(0))
    assert not log.kept and log.drain() == []
    log.keep(True)
    log.add(routed(1))
    log.add(routed(2))
    assert [passed.layer for passed in log.drain()] == [1, 2]
    assert log.kept and log.drain() == []
    log.add(routed(3))
    log.keep(False)
    log.keep(True)
    assert log.drain() == [], "those of before are forgotten"
