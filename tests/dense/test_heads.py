"""Heads shared and axes broadcast, forward and backward."""

import numpy as np
import pytest
from dense_definition import INF, LAYOUTS, check_derivatives, check_layouts, definition, ids, normal

import refattn.dense
from refattn import dense_attention
from refattn.testing import row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_heads_are_shared_and_axes_broadcast_as_the_definition_says(layout):
    check_layouts(refattn.dense, layout)


@pytest.mark.parametrize("shape", [(9, 9), (4, 6), (9, 1, 6), (1, 9, 4, 6)], ids=str)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_array_masks_belong_to_the_query_heads_under_grouping(shape, kind):
    q, k, v = normal((2, 9, shape[-2], 3), (2, 3, shape[-1], 3), (2, 3, shape[-1], 2))
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < 0.7 if kind == "boolean" else rng.standard_normal(shape)
    added = np.broadcast_to(np.where(mask, 0.0, -INF) if kind == "boolean" else mask, (2, 9, q.shape[-2], k.shape[-2]))
    out = dense_attention(q, k, v, mask=mask)
    for b, h in np.ndindex(2, 9):
        expected, _ = definition(q[b, h], k[b, h // 3], v[b, h // 3], lambda i, j, at=(b, h): added[(*at, i, j)])
        assert row_errors(out[b, h], expected).max() <= tolerance("reordered").rtol


@pytest.mark.parametrize("block", [1, 2, None], ids=str)
@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_gradients_are_summed_over_shared_heads_and_broadcast_axes(layout, block):
    check_derivatives(refattn.dense, layout, "causal", 3, 3, block=block)
