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
        "_native_batch_norm_legit convolution_backward native_layer_norm_backward native_group_norm_backward "
        "native_batch_norm_backward embedding_dense_backward max_pool2d_with_indices_backward avg_pool2d_backward "
        "_adaptive_avg_pool2d_backward rrelu_with_noise rrelu_with_noise_functional _batch_norm_with_update_functional "
        "_batch_norm_with_update",
    "eigenvalues of a matrix that is not symmetric are not computed: use torch.linalg.eigh, or compute them before":
        "linalg_eig _linalg_eigvals",
    "use the factors of torch.linalg.cholesky or torch.linalg.lu_factor": "linalg_ldl_factor_ex linalg_ldl_solve",
    "its groups are of sizes that the data say: use scatter_reduce with the group of each row": "segment_reduce",
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
