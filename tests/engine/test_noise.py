"""Counter-based noise."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.noise import gaussian

counters = st.integers(0, 2**63 - 1)


def test_the_stream_is_pinned() -> None:
    """These numbers may never change: recorded sessions are replayed with them."""
    golden = [-0.11120135337114334, -2.1106841564178467, 1.1696275472640991, -1.6177271604537964]
    assert gaussian((2, 2), seed=1, index=2, step=3).reshape(-1).tolist() == golden


@given(counters, counters, st.integers(0, 100))
def test_equal_names_give_equal_noise_and_others_do_not(seed: int, index: int, step: int) -> None:
    """Each of seed, index and step matters."""
    here = gaussian((8,), seed=seed, index=index, step=step)
    assert np.array_equal(here, gaussian((8,), seed=seed, index=index, step=step))
    for other in ((seed ^ 1, index, step), (seed, index ^ 1, step), (seed, index, step + 1)):
        assert not np.array_equal(here, gaussian((8,), seed=other[0], index=other[1], step=other[2]))


def test_draws_do_not_overlap() -> None:
    """A long draw shares no value with the draws next to it."""
    draws = [gaussian((4096,), seed=5, index=i, step=s) for i in range(3) for s in range(3)]
    assert len(np.unique(np.concatenate(draws))) > 0.999 * 9 * 4096


def test_it_is_standard_normal() -> None:
    """Mean, variance, kurtosis and tails of a large draw."""
    x = gaussian((400_001,), seed=3, index=0, step=0).astype(np.float64)
    assert x.dtype == np.float64 and np.isfinite(x).all()
    assert abs(x.mean()) < 0.01 and abs(x.var() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.06
    assert abs((np.abs(x) > 2).mean() - 0.0455) < 0.002
