"""What may be done instead of the operators of ONNX and the operations of ATen that are not imported."""

from __future__ import annotations

from collections.abc import Mapping

DATA = "the shape of its result depends on the data: {}"
RANDOM = "it gives random numbers: make them, or numbers that decide, an input of the model"

_ONNX: Mapping[str, str] = {
    DATA.format("end the model before it, and do this to the model's results"):
        "NonZero Compress Unique NonMaxSuppression ImageDecoder",
    RANDOM: "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli",
    "sequences and optionals are no tensors: have the tensors apart, or stacked in one":
        "SequenceMap SequenceConstruct SequenceEmpty SequenceAt SequenceErase SequenceInsert SequenceLength "
        "SplitToSequence ConcatFromSequence Optional OptionalGetElement OptionalHasElement",
    "strings are not computed with: make numbers of them before the model":
        "StringConcat StringSplit StringNormalizer RegexFullMatch LabelEncoder CategoryMapper",
    "it is for training: export the model for inference": "Adagrad Adam Momentum Gradient",
}  # fmt: skip
_TORCH: Mapping[str, str] = {
    DATA.format("use torch.where, or do this to the program's results"):
        "nonzero masked_select unique_consecutive unique_dim _unique _unique2 bincount _local_scalar_dense",
    "give output_size": "repeat_interleave",
    "sparse tensors are not supported: use dense ones, to_dense()": "_to_sparse _to_sparse_csr _to_sparse_csc "
        "_sparse_mm sparse_sampled_addmm _sparse_mm_reduce_impl _sparse_sum _coalesce _indices _values",
    "it is for training: take the loss out of the program": "torch_nn::_linear_cross_entropy_batch_chunked "
        "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction _ctc_loss _ctc_loss.Tensor",
    "its windows are random: use adaptive_max_pool": "fractional_max_pool2d fractional_max_pool3d",
    "binomials are not drawn: sum torch.bernoulli, or make them an input of the program": "binomial",
    "compute it before, or by a series; jax.scipy.special has others":
        "special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 "
        "special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0 "
        "special_scaled_modified_bessel_k1",
    "it is for training: call model.eval() before exporting":
        "_native_batch_norm_legit convolution_backward native_layer_norm_backward native_group_norm_backward "
        "native_batch_norm_backward embedding_dense_backward max_pool2d_with_indices_backward avg_pool2d_backward "
        "_adaptive_avg_pool2d_backward rrelu_with_noise rrelu_with_noise_functional _batch_norm_with_update_functional "
        "_batch_norm_with_update",
    "eigenvalues of a matrix that is not symmetric are not computed: use torch.linalg.eigh, or compute them before":
        "linalg_eig _linalg_eigvals",
    "use the factors of torch.linalg.cholesky or torch.linalg.lu_factor": "linalg_ldl_factor_ex linalg_ldl_solve",
}  # fmt: skip


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    return {name: advice for advice, names in table.items() for name in names.split()}


ONNX, TORCH = _by_name(_ONNX), _by_name(_TORCH)


def onnx_advice(operator: str) -> str:
    """What to do instead of an operator."""
    return ONNX.get(operator, "docs/onnx_coverage.md lists those that are")


def torch_advice(operation: str) -> str:
    """What to do instead of an operation, named without its overload."""
    own = "it is no operation of torch's own: export what it computes, in torch's operations"
    return TORCH.get(operation, own if "::" in operation else "docs/pytorch_coverage.md lists those that are")
