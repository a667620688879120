"""The cost model chooses sensibly, is visible and can be overridden."""

import numpy as np
import pytest

from refattn.convbasis.fast import cost
from refattn.convbasis.fast.cost import Plan


def test_short_or_nearly_unstructured_heads_go_direct_and_long_ones_do_not():
    assert cost.choose_plan(64, 1, 64, np.float32).path == "direct"
    assert cost.choose_plan(2048, 2048, 64, np.float32).path == "direct"
    for n in (8192, 65_536, 1_048_576):
        assert cost.choose_plan(n, 16, 64, np.float32).path == "block transform"


def test_the_choice_is_the_cheapest_by_the_model():
    chosen = cost.choose_plan(65_536, 16, 64, np.float32)
    best = cost.estimated_seconds(cost.block_transform_work(65_536, 16, 64, np.float32, chosen.block))
    for block in (64, 256, 1024, 4096, 16_384):
        assert best <= cost.estimated_seconds(cost.block_transform_work(65_536, 16, 64, np.float32, block))
    assert best <= cost.estimated_seconds(cost.direct_work(65_536, 64, np.float32))


def test_every_kind_of_work_has_a_price():
    kinds = {*cost.block_transform_work(1000, 3, 5, np.float64, 64), *cost.direct_work(1000, 5, np.float64)}
    assert kinds == set(cost.SECONDS)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("fastest",), ValueError),
        (("direct", 8), ValueError),
        (("block transform", 0), ValueError),
        (("block transform", 2.5), TypeError),
    ],
    ids=["unknown", "direct with a block", "no block", "half a block"],
)
def test_plans_are_checked(arguments, error):
    with pytest.raises(error):
        Plan(*arguments)


def test_memory_of_the_block_transform_is_a_few_times_v():
    n = 1 << 20
    plan = cost.choose_plan(n, 16, 64, np.float32)
    assert cost.block_transform_bytes(n, 16, 64, np.float32, plan.block) < 4.5 * n * 64 * 4
