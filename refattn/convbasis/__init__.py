"""Conv-Basis attention: arXiv 2405.05219, verified at three levels (oracle, paper, fast)."""

from typing import TYPE_CHECKING

from refattn._moved import explains
from refattn.convbasis.attention import (
    ConvForwardCache,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
)
from refattn.convbasis.basis import ConvBasis, basis_from_starts, decompose
from refattn.convbasis.bounds import (
    Closeness,
    closeness,
    convolution_error,
    inference_bound,
    logit_residual,
    posterior_bound,
    sharp_bound,
)
from refattn.convbasis.fast.cost import Plan, choose_plan
from refattn.convbasis.guarded.gradients import ConvGradients, Recomputed
from refattn.convbasis.recovery import recover
from refattn.convbasis.starts.best import BestStarts, best_starts, best_starts_of_matrix
from refattn.convbasis.starts.fewest import CurvePoint, ToleranceRecovery, recover_to_tolerance
from refattn.convbasis.starts.least_squares import least_squares_basis, segment_means
from refattn.convbasis.toeplitz import conv_matrix, conv_product, correlation, subconv_matrix, subconv_product

__all__ = [
    "BestStarts",
    "Closeness",
    "ConvBasis",
    "ConvForwardCache",
    "ConvGradients",
    "CurvePoint",
    "Plan",
    "Recomputed",
    "ToleranceRecovery",
    "basis_from_starts",
    "best_starts",
    "best_starts_of_matrix",
    "choose_plan",
    "closeness",
    "conv_attention",
    "conv_attention_backward",
    "conv_attention_forward",
    "conv_matrix",
    "conv_product",
    "convolution_error",
    "correlation",
    "decompose",
    "inference_bound",
    "least_squares_basis",
    "logit_residual",
    "posterior_bound",
    "recover",
    "recover_to_tolerance",
    "segment_means",
    "sharp_bound",
    "subconv_matrix",
    "subconv_product",
]

if not TYPE_CHECKING:
    __getattr__ = explains(__name__)
