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
    RANDOM: "rand randn randint randperm rand_like randn_like randint_like bernoulli normal multinomial uniform "
            "exponential poisson",
    "it is for training: call model.eval() before exporting":
        "_native_batch_norm_legit _native_batch_norm_legit_functional convolution_backward native_layer_norm_backward "
        "native_group_norm_backward native_batch_norm_backward embedding_dense_backward",
    "complex numbers are not imported: multiply with the cosines and sines of the transform, or write it in JAX":
        "_fft_r2c _fft_c2c _fft_c2r complex polar view_as_complex view_as_real",
    "decompositions are not imported: compute it before exporting":
        "_linalg_svd _linalg_eigh _linalg_slogdet _linalg_det linalg_eig linalg_qr linalg_lu_factor_ex linalg_lu_solve "
        "linalg_pinv linalg_inv_ex linalg_cholesky_ex _linalg_solve_ex triangular_solve",
}  # fmt: skip


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    return {name: advice for advice, names in table.items() for name in names.split()}


ONNX, TORCH = _by_name(_ONNX), _by_name(_TORCH)


def onnx_advice(operator: str) -> str:
    """What to do instead of an operator."""
    return ONNX.get(operator, "docs/onnx_coverage.md lists those that are")


def torch_advice(operation: str) -> str:
    """What to do instead of an operation, named without its overload."""
    return TORCH.get(operation, "docs/pytorch_coverage.md lists those that are")
