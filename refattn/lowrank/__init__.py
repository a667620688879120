"""Low-rank attention with structured masks (arXiv 2405.05219, section 6)."""

from typing import TYPE_CHECKING

from refattn._moved import explains
from refattn.lowrank.attention import (
    LowRankForwardCache,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    lowrank_bound,
)
from refattn.lowrank.distinct_masks import DistinctColumnsMask, DistinctRowsMask
from refattn.lowrank.elu_features import EluFeatures
from refattn.lowrank.features import FeatureMap, PolynomialFeatures, logit_bound
from refattn.lowrank.layouts import (
    as_continuous_rows,
    as_distinct_rows,
    as_row_change,
    document_blocks,
    prefix_lm,
    shifted_groups,
    sliding_window,
)
from refattn.lowrank.masks import ContinuousRowsMask, RowChangeMask, StructuredMask
from refattn.lowrank.polynomials import (
    degree_for,
    monomial_rank,
    paper_rank,
    polynomial_coefficients,
    polynomial_error,
    polynomial_rounding,
)
from refattn.lowrank.products import (
    MaskedProductForwardCache,
    MaskedProductGradients,
    masked_product,
    masked_product_backward,
    masked_product_forward,
)
from refattn.lowrank.random_features import RandomFeatures

__all__ = [
    "ContinuousRowsMask",
    "DistinctColumnsMask",
    "DistinctRowsMask",
    "EluFeatures",
    "FeatureMap",
    "LowRankForwardCache",
    "MaskedProductForwardCache",
    "MaskedProductGradients",
    "PolynomialFeatures",
    "RandomFeatures",
    "RowChangeMask",
    "StructuredMask",
    "as_continuous_rows",
    "as_distinct_rows",
    "as_row_change",
    "degree_for",
    "document_blocks",
    "logit_bound",
    "lowrank_attention",
    "lowrank_attention_backward",
    "lowrank_attention_forward",
    "lowrank_bound",
    "masked_product",
    "masked_product_backward",
    "masked_product_forward",
    "monomial_rank",
    "paper_rank",
    "polynomial_coefficients",
    "polynomial_error",
    "polynomial_rounding",
    "prefix_lm",
    "shifted_groups",
    "sliding_window",
]

if not TYPE_CHECKING:
    __getattr__ = explains(__name__)
