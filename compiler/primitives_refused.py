"""What JAX can trace and inferc does not compile: each primitive with a way out, which its error says."""

from __future__ import annotations

from collections.abc import Mapping

_EFFECT = "it is a side effect: take it out of the function, and return what it needs as a result"
_REFS = "references are state: return the new value, or carry it through lax.scan"
_DEVICES = "it is for several devices: compile the function of one device"
_GRADIENT = "it comes from differentiating: compile the function that was differentiated"
_LINEAR_ALGEBRA = "compute the decomposition before compiling, or with lax.fori_loop"

# Groups of primitives and the way out of each.
GROUPS: tuple[tuple[str, str], ...] = (
    (_EFFECT, "debug_callback debug_print io_callback pure_callback inspect_sharding infeed outfeed create_token "
              "after_all"),
    ("it raises errors, which is a side effect: leave the check out, or return what it tests as a result", "check"),
    (_REFS, "get swap addupdate new_ref ref_new freeze ref_get ref_set ref_addupdate empty2"),
    (_DEVICES, "all_gather all_to_all axis_index pmax pmin ppermute psum ragged_all_to_all all_gather_reduced "
               "reduce_scatter shard_map psum_invariant pvary pbroadcast psend precv custom_partitioning"),
    (_GRADIENT, "select_and_gather_add select_and_scatter select_and_scatter_add igamma_grad_a custom_lin linear_call "
                "random_gamma_grad"),
    (_LINEAR_ALGEBRA, "eig schur"),
    ("it is code that only one platform has: use the plain JAX operations", "ffi_call call_exported cudnn_fusion "
     "dot_product_attention_fwd dot_product_attention_fp8_fwd scaled_matmul scaled_dot philox2x32 philox4x32 "
     "threefry4x32"),
    ("its bits are the platform's own: use jax.random with a key of threefry, the default", "rng_uniform "
     "rng_bit_generator"),
)  # fmt: skip
REFUSED: Mapping[str, str] = {name: why for why, names in GROUPS for name in names.split()}
