"""Conv-Basis attention: arXiv 2405.05219, verified at three levels (oracle, paper, fast)."""

from refattn.convbasis.attention import ConvCache, conv_attention, conv_attention_forward
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
from refattn.convbasis.recover import recover
from refattn.convbasis.toeplitz import conv_matrix, conv_product, correlation, subconv_matrix, subconv_product

__all__ = [
    "Closeness",
    "ConvBasis",
    "ConvCache",
    "basis_from_starts",
    "closeness",
    "conv_attention",
    "conv_attention_forward",
    "conv_matrix",
    "conv_product",
    "convolution_error",
    "correlation",
    "decompose",
    "inference_bound",
    "logit_residual",
    "posterior_bound",
    "recover",
    "sharp_bound",
    "subconv_matrix",
    "subconv_product",
]
